# tiny-flux.mk - makes examples/tiny-flux, a small model of FLUX's architecture, from examples/pictures.
#
#     make -f pipelines/tiny-flux.mk            into out/tiny-flux/model
#     make -f pipelines/tiny-flux.mk install    and from there to examples/tiny-flux
#
#     tokenizer, tokenizer_2     dt-train tokenizer   vocabularies, from the captions
#     vae                        dt-train vae         the autoencoder, from fresh weights; its latents are scaled at the end
#     transformer, text_encoder, text_encoder_2       dt-train full   all three together, from fresh weights
#
# Sizes of the networks are in the config.json files of examples/tiny-flux.  Stages resume as in flux-lora.mk.
EXAMPLES       ?= $(dir $(lastword $(MAKEFILE_LIST)))../examples
CONFIGS        ?= $(EXAMPLES)/tiny-flux     # folder in diffusers' layout; weights in it are not read
DATASET_META   ?= $(EXAMPLES)/pictures/metadata.json
OUTPUT_DIR     ?= out/tiny-flux
SIZE           ?= 64
SEED           ?= 42
DEVICE         ?= cpu
THREADS        ?= 0

VOCABULARY     ?= 1024
TOKENS         ?= 32

VAE_STEPS      ?= 1200
VAE_BATCH      ?= 16
VAE_LR         ?= 1.5e-3
VAE_FLAGS      ?= --lr_scheduler=cosine --lr_warmup_steps=50 --kl_weight=1e-3 --random_flip

BATCH          ?= 32
FLAGS          ?= --lr_scheduler=cosine --uniform_sampling --caption_dropout=0 --use_ema
BLOCKS         ?= 4             # single blocks until the last stage
STEPS          ?= 1500
LR             ?= 1e-3
# Once more from there, with a learning rate that begins anew.
MORE_STEPS     ?= 1900
MORE_LR        ?= 8e-4
MORE_SEED      ?= 43
# And with the single blocks that the config says, one less, which makes all files together smaller than 12 MB.
LAST_STEPS     ?= 900
LAST_LR        ?= 7e-4
LAST_SEED      ?= 44

CHECKPOINTING_STEPS ?= 500
SAVE_DTYPE     ?= bf16

include $(dir $(lastword $(MAKEFILE_LIST)))common.mk
$(call settings,CONFIGS DATASET_META OUTPUT_DIR SIZE SEED DEVICE THREADS VOCABULARY TOKENS VAE_STEPS VAE_BATCH VAE_LR VAE_FLAGS \
    BATCH FLAGS STEPS LR MORE_STEPS MORE_LR MORE_SEED LAST_STEPS LAST_LR LAST_SEED BLOCKS CHECKPOINTING_STEPS SAVE_DTYPE)

# Model folders: configs and vocabularies; with the autoencoder; with all weights; with better ones; with one block less.
blank := $(OUTPUT_DIR)/blank
base  := $(OUTPUT_DIR)/base
first := $(OUTPUT_DIR)/first
second := $(OUTPUT_DIR)/second
model := $(OUTPUT_DIR)/model
configs := $(wildcard $(CONFIGS)/model_index.json $(CONFIGS)/*/*config.json)
vae   := $(OUTPUT_DIR)/vae/vae/diffusion_pytorch_model.safetensors
full  := $(OUTPUT_DIR)/full/transformer/diffusion_pytorch_model.safetensors
more  := $(OUTPUT_DIR)/more/transformer/diffusion_pytorch_model.safetensors

last  := $(OUTPUT_DIR)/last/transformer/diffusion_pytorch_model.safetensors
config := transformer/config.json

all: $(model)/model_index.json
.PHONY: install
.PRECIOUS: $(vae) $(full) $(more) $(last) $(foreach m,$(blank) $(base) $(first) $(second) $(model),$m/model_index.json)

train := --train_data_meta=$(DATASET_META) --image_sample_size=$(SIZE) --device=$(DEVICE) --threads=$(THREADS) \
    --num_train_epochs=100000 --checkpointing_steps=$(CHECKPOINTING_STEPS) --checkpoints_total_limit=2 \
    --save_dtype=$(SAVE_DTYPE) --resume_from_checkpoint=latest

# --- configs and vocabularies ---
blank_cmd := $(DT)dt-train tokenizer --train_data_meta=$(DATASET_META) --clip_vocab_size=$(VOCABULARY) \
    --t5_vocab_size=$(VOCABULARY) --clip_length=$(TOKENS) --t5_length=$(TOKENS) --output_dir=$(blank)
$(blank)/model_index.json: $(DATASET_META) $(configs) $(call changed,tokenizer,$(blank_cmd))
	for d in scheduler transformer vae text_encoder text_encoder_2; do \
	    mkdir -p $(blank)/$$d && cp $(CONFIGS)/$$d/*.json $(blank)/$$d/ || exit; done
	sed -i 's/\("num_single_layers": *\)[0-9]*/\1$(BLOCKS)/' $(blank)/$(config)
	$(call stage,tokenizer,$(blank_cmd))
	cp $(CONFIGS)/model_index.json $@

# --- autoencoder ---
vae_cmd := $(DT)dt-train vae --pretrained_model_name_or_path=$(blank) --from_config --fit_scaling $(train) --seed=$(SEED) \
    --train_batch_size=$(VAE_BATCH) --max_train_steps=$(VAE_STEPS) --learning_rate=$(VAE_LR) $(VAE_FLAGS) \
    --output_dir=$(OUTPUT_DIR)/vae
$(vae): $(blank)/model_index.json $(call changed,vae,$(vae_cmd))
	$(call stage,vae,$(vae_cmd))

# $(call put,FOLDER,FROM,PARTS,OF): FOLDER is FROM with PARTS of the folder OF; complete when it has its model_index.json
define put
	rm -rf $1 $1.tmp
	cp -r $2 $1.tmp
	for d in $3; do rm -rf $1.tmp/$$d && cp -r $4/$$d $1.tmp/$$d || exit; done
	mv $1.tmp $1
endef

$(base)/model_index.json: $(blank)/model_index.json $(vae)
	$(call put,$(base),$(blank),vae,$(OUTPUT_DIR)/vae)

# --- transformer and text encoders ---
all_three := $(train) --train_text_encoder --train_batch_size=$(BATCH) $(FLAGS)
full_cmd := $(DT)dt-train full --pretrained_model_name_or_path=$(base) --from_config $(all_three) --ema_decay=0.998 --seed=$(SEED) \
    --max_train_steps=$(STEPS) --learning_rate=$(LR) --lr_warmup_steps=100 --output_dir=$(OUTPUT_DIR)/full
$(full): $(base)/model_index.json $(call changed,full,$(full_cmd))
	$(call stage,full,$(full_cmd))

$(first)/model_index.json: $(base)/model_index.json $(full)
	$(call put,$(first),$(base),transformer text_encoder text_encoder_2,$(OUTPUT_DIR)/full)

more_cmd := $(DT)dt-train full --pretrained_model_name_or_path=$(first) $(all_three) --ema_decay=0.998 --seed=$(MORE_SEED) \
    --max_train_steps=$(MORE_STEPS) --learning_rate=$(MORE_LR) --lr_warmup_steps=50 --output_dir=$(OUTPUT_DIR)/more
$(more): $(first)/model_index.json $(call changed,more,$(more_cmd))
	$(call stage,more,$(more_cmd))

# The weights of the block that the config does not have are left in the file, and not read.
$(second)/model_index.json: $(first)/model_index.json $(more)
	$(call put,$(second),$(first),transformer text_encoder text_encoder_2,$(OUTPUT_DIR)/more)
	cp $(CONFIGS)/$(config) $(second)/$(config)

last_cmd := $(DT)dt-train full --pretrained_model_name_or_path=$(second) $(all_three) --ema_decay=0.995 --seed=$(LAST_SEED) \
    --max_train_steps=$(LAST_STEPS) --learning_rate=$(LAST_LR) --lr_warmup_steps=30 --output_dir=$(OUTPUT_DIR)/last
$(last): $(second)/model_index.json $(call changed,last,$(last_cmd))
	$(call stage,last,$(last_cmd))

$(model)/model_index.json: $(second)/model_index.json $(last)
	$(call put,$(model),$(second),transformer text_encoder text_encoder_2,$(OUTPUT_DIR)/last)

install: all
	rm -rf $(EXAMPLES)/tiny-flux
	cp -r $(model) $(EXAMPLES)/tiny-flux
