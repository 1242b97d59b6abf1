# demo.mk - `make demo`: flux-lora.mk on examples/.  A tiny model of FLUX's architecture, which never saw a cat, learns
# cat faces from eight pictures; three of the prompts ask for cats that it saw, did not see, and nobody drew, the other
# three for what it knew before.  So that it does not forget that, 48 pictures of the base stand beside the cats, which
# are in the metadata four times each.
EXAMPLES            ?= $(dir $(lastword $(MAKEFILE_LIST)))../examples

MODEL_NAME          ?= $(EXAMPLES)/tiny-flux
DATASET_NAME        ?= $(EXAMPLES)/concept
DATASET_META_NAME   ?= $(EXAMPLES)/concept/demo.json
PROMPTS             ?= $(EXAMPLES)/prompts.txt
OUTPUT_DIR          ?= out/demo
IMAGE_SAMPLE_SIZE   ?= 64
MIXED_PRECISION     ?= no
RANK                ?= 16
ALPHA               ?= 16
TRAIN_BATCH_SIZE    ?= 8
STEPS               ?= 320
LEARNING_RATE       ?= 1e-3
CHECKPOINTING_STEPS ?= 160
BUCKET_FLAGS        ?=
CACHE_FLAGS         ?=
TRAIN_FLAGS         ?= --uniform_sampling --lr_scheduler=cosine --lr_warmup_steps=20 \
                       --validation_data_meta=$(EXAMPLES)/concept/heldout.json --validation_steps=80

# The demo shares the machine with other programs: threads that wait sleep.
export OMP_WAIT_POLICY ?= passive

demo: all
	@printf '%s\n' '' 'Look at' \
	    '  $(samples)   rows: prompts; columns: the base model, and with the LoRA' \
	    '  $(OUTPUT_DIR)/loss.png      training loss, and the loss of two cats that were held out' \
	    'There is more in $(OUTPUT_DIR): lora.safetensors, metrics.ndjson, checkpoints, logs/ for TensorBoard.'
.PHONY: demo
.DEFAULT_GOAL := demo

include $(dir $(lastword $(MAKEFILE_LIST)))flux-lora.mk
