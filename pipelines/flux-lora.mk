# flux-lora.mk - a LoRA of a FLUX model, from pictures to samples, in stages that can be stopped anywhere.
#
#     make -f pipelines/flux-lora.mk MODEL_NAME=models/FLUX.1-dev DATASET_NAME=photos OUTPUT_DIR=out/photos
#
#     OUTPUT_DIR/plan.ndjson        dt-bucket          sizes, buckets, captions, the order of batches
#     OUTPUT_DIR/cache/             dt-cache-latents   what the autoencoder and the text encoders make of them
#     OUTPUT_DIR/lora.safetensors   dt-train lora      and checkpoint-N/, loss.png, metrics.ndjson, logs/
#     OUTPUT_DIR/samples.png        dt-sample          rows: prompts; columns: base, LoRA
#
# The same command again goes on where it was, inside a stage too, and redoes nothing; -n shows what is left.  A name of a
# file above is a target: `make -f pipelines/flux-lora.mk … out/photos/lora.safetensors`.  With SHARDS=8 and -j8 eight
# processes fill the cache.  A stage whose settings change is run anew with all after it; a LoRA that has begun is
# resumed only with the settings it began with, so other settings want another OUTPUT_DIR.  Paths may not hold blanks.
#
# Variables, on the command line or in the environment.  Defaults are the reference's for this workflow.
MODEL_NAME          ?=              # model folder in diffusers' layout
DATASET_NAME        ?=              # folder of pictures with captions in .txt files, or the root of the metadata's paths
DATASET_META_NAME   ?=              # metadata: .json, .jsonl, .csv
OUTPUT_DIR          ?= out/flux-lora

# What is trained
RANK                ?= 128
ALPHA               ?= 64
TARGETS             ?=              # comma list of layers: to_q,to_k,to_v,to_out.0,ff.0,ff.2; all linear ones if empty
LORA_FORMAT         ?= comfy        # or peft, kohya

# How long, on what
IMAGE_SAMPLE_SIZE   ?= 1024
TRAIN_BATCH_SIZE    ?= 1
ACCUMULATION        ?= 1
EPOCHS              ?= 100
STEPS               ?=              # optimiser steps; EPOCHS decides if empty
LEARNING_RATE       ?= 1e-04
CHECKPOINTING_STEPS ?= 50
SEED                ?= 42

# Where it runs
DEVICE              ?= cpu
THREADS             ?= 0            # 0 = all cores; a resumed run needs those it began with
MIXED_PRECISION     ?= bf16
SHARDS              ?= 1            # processes that fill the cache

# What is sampled
PROMPTS             ?=              # file with a prompt a line; the captions of the first pictures if empty
SAMPLE_SIZE         ?= $(IMAGE_SAMPLE_SIZE)
SAMPLE_STEPS        ?= 28

# Other flags of each tool
BUCKET_FLAGS        ?= --enable_bucket --dataloader_num_workers=8
CACHE_FLAGS         ?= --vae_mini_batch=1
TRAIN_FLAGS         ?= --gradient_checkpointing --uniform_sampling --max_grad_norm=0.05 --adam_weight_decay=3e-2 \
                       --adam_epsilon=1e-10
SAMPLE_FLAGS        ?=

include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
$(call settings,MODEL_NAME DATASET_NAME DATASET_META_NAME OUTPUT_DIR RANK ALPHA TARGETS LORA_FORMAT IMAGE_SAMPLE_SIZE \
    TRAIN_BATCH_SIZE ACCUMULATION EPOCHS STEPS LEARNING_RATE CHECKPOINTING_STEPS SEED DEVICE THREADS MIXED_PRECISION SHARDS \
    PROMPTS SAMPLE_SIZE SAMPLE_STEPS BUCKET_FLAGS CACHE_FLAGS TRAIN_FLAGS SAMPLE_FLAGS)
$(call needed,MODEL_NAME DATASET_NAME)

plan    := $(OUTPUT_DIR)/plan.ndjson
cache   := $(OUTPUT_DIR)/cache
shard   := $(foreach i,$(shell seq 0 $$(($(SHARDS) - 1))),$iof$(SHARDS))
shards  := $(foreach s,$(shard),$(call record,cache-$s))
lora    := $(OUTPUT_DIR)/lora.safetensors
prompts := $(or $(PROMPTS),$(OUTPUT_DIR)/prompts.ndjson)
samples := $(OUTPUT_DIR)/samples.png

all: $(samples)
.PRECIOUS: $(plan) $(shards) $(lora) $(OUTPUT_DIR)/prompts.ndjson $(samples)

compute := --device=$(DEVICE) --threads=$(THREADS) --mixed_precision=$(MIXED_PRECISION)

# --- plan ---
plan_cmd := $(DT)dt-bucket --train_data_dir=$(DATASET_NAME) $(if $(DATASET_META_NAME),--train_data_meta=$(DATASET_META_NAME)) \
    --image_sample_size=$(IMAGE_SAMPLE_SIZE) --train_batch_size=$(TRAIN_BATCH_SIZE) \
    --gradient_accumulation_steps=$(ACCUMULATION) --num_train_epochs=$(EPOCHS) $(if $(STEPS),--max_train_steps=$(STEPS)) \
    --seed=$(SEED) $(BUCKET_FLAGS) --output=$(plan)
$(plan): $(or $(DATASET_META_NAME),$(DATASET_NAME)) $(call changed,plan,$(plan_cmd))
	$(call stage,plan,$(plan_cmd))

# --- cache: dt-cache-latents knows what is there; make, only which shards are done ---
cache_cmd = $(DT)dt-cache-latents --pretrained_model_name_or_path=$(MODEL_NAME) --plan=$(plan) $(compute) $(CACHE_FLAGS) \
    $(if $(filter-out 1,$(SHARDS)),--shard=$(subst of,/,$1)) --output=$(cache)
define cache_rule
$(call record,cache-$1): $(plan) $(call changed,cache-$1,$(cache_cmd))
	$(call stage,cache-$1,$(cache_cmd))
endef
$(foreach s,$(shard),$(eval $(call cache_rule,$s)))

# --- training ---
lora_cmd := $(DT)dt-train lora --pretrained_model_name_or_path=$(MODEL_NAME) --plan=$(plan) --latents=$(cache) $(compute) \
    --rank=$(RANK) --network_alpha=$(ALPHA) $(if $(TARGETS),--target_name=$(TARGETS)) --lora_format=$(LORA_FORMAT) \
    --learning_rate=$(LEARNING_RATE) --gradient_accumulation_steps=$(ACCUMULATION) $(if $(STEPS),--max_train_steps=$(STEPS)) \
    --checkpointing_steps=$(CHECKPOINTING_STEPS) $(TRAIN_FLAGS) --resume_from_checkpoint=latest --output_dir=$(OUTPUT_DIR)
$(lora): $(plan) $(shards) $(call changed,lora,$(lora_cmd))
	$(call stage,lora,$(lora_cmd))

# --- samples ---
# Four captions of the plan, as JSON strings in JSON lines; the empty prompt if there are none.
$(OUTPUT_DIR)/prompts.ndjson: $(plan)
	sed -n 's/^{"item":.*"text":\("\([^"\\]\|\\.\)\{1,\}"\).*/{"prompt":\1}/p' $< | awk '!seen[$$0]++' | head -n 4 >$@.tmp
	[ -s $@.tmp ] || echo '{"prompt":""}' >$@.tmp
	mv $@.tmp $@

samples_cmd := $(DT)dt-sample --pretrained_model_name_or_path=$(MODEL_NAME) --lora=$(lora) --compare_base $(compute) \
    --width=$(SAMPLE_SIZE) --height=$(SAMPLE_SIZE) --steps=$(SAMPLE_STEPS) --seed=$(SEED) $(SAMPLE_FLAGS) \
    --grid=$(samples) $(prompts)
$(samples): $(lora) $(prompts) $(call changed,samples,$(samples_cmd))
	$(call stage,samples,$(samples_cmd))
