/* train_opts.c - dt-train's option tables.  See train_opts.h. */
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "data/data_opts.h"
#include "train/train_opts.h"

const char *const dt_precision_names[] = { "no", "bf16", NULL };
const char *const dt_save_dtype_names[] = { "fp32", "bf16", "fp16", NULL };
static const char *const report_names[] = { "tensorboard", "none", NULL };

#define O(field) offsetof(dt_train_opts, field)
#define REFUSED(flag, why) { flag, 0, "VALUE", DT_OPT_REFUSED, 0, 0, 0, NULL, why }

#define MODEL_ROWS \
    DT_OPT_GROUP("Model"), \
    { "pretrained_model_name_or_path", 0, "DIR", DT_OPT_STR, O(model), 0, 0, NULL, \
      "model folder in diffusers layout", .often = true }, \
    { "transformer_path", 0, "FILE", DT_OPT_STR, O(transformer_path), 0, 0, NULL, \
      "transformer weights to use instead of the folder's: safetensors, diffusers or single-file FLUX names" }, \
    { "vae_path", 0, "FILE", DT_OPT_STR, O(vae_path), 0, 0, NULL, "vae weights to use instead of the folder's" }, \
    { "output_dir", 0, "DIR", DT_OPT_STR, O(output_dir), 0, 0, NULL, \
      "where everything is written (sd-model-finetuned)", .often = true }

#define RUN_ROWS \
    DT_OPT_GROUP("Optimiser"), \
    { "learning_rate", 0, "F", DT_OPT_FLOAT, O(learning_rate), 0, 10, NULL, "peak learning rate (1e-4)", .often = true }, \
    { "scale_lr", 0, NULL, DT_OPT_FLAG, O(scale_lr), 0, 0, NULL, \
      "multiply the learning rate by batch size and accumulation" }, \
    { "lr_scheduler", 0, "NAME", DT_OPT_ENUM, O(lr_scheduler), 0, 0, dt_lr_names, \
      "shape of the learning rate over optimiser steps (constant)" }, \
    { "lr_warmup_steps", 0, "N", DT_OPT_INT, O(lr_warmup_steps), 0, 1e9, NULL, \
      "optimiser steps of linear warm-up, except for constant (500)" }, \
    { "lr_num_cycles", 0, "F", DT_OPT_FLOAT, O(lr_num_cycles), 0, 1e6, NULL, \
      "waves of cosine (0.5) or cosine_with_restarts (1)" }, \
    { "lr_power", 0, "F", DT_OPT_FLOAT, O(lr_power), 0, 100, NULL, "exponent of polynomial (1)" }, \
    { "adam_beta1", 0, "F", DT_OPT_FLOAT, O(beta1), 0, 0.999999, NULL, "AdamW: decay of the first moment (0.9)" }, \
    { "adam_beta2", 0, "F", DT_OPT_FLOAT, O(beta2), 0, 0.999999, NULL, \
      "AdamW: decay of the second moment (0.999)" }, \
    { "adam_weight_decay", 0, "F", DT_OPT_FLOAT, O(weight_decay), 0, 10, NULL, \
      "AdamW: decoupled weight decay (0.01)" }, \
    { "adam_epsilon", 0, "F", DT_OPT_FLOAT, O(epsilon), 0, 1, NULL, "AdamW: epsilon (1e-8)" }, \
    { "max_grad_norm", 0, "F", DT_OPT_FLOAT, O(max_grad_norm), 0, 1e9, NULL, \
      "clip the global gradient norm to this; 0 = do not clip, which takes less memory (1)" }, \
    { "use_ema", 0, NULL, DT_OPT_FLAG, O(use_ema), 0, 0, NULL, \
      "keep an fp32 running mean of the trained weights; saved and sampled with" }, \
    { "ema_decay", 0, "F", DT_OPT_FLOAT, O(ema_decay), 0, 0.9999999, NULL, "decay of the running mean (0.9999)" }, \
    DT_OPT_GROUP("Device and memory"), \
    { "device", 0, "NAME", DT_OPT_STR, O(device), 0, 0, NULL, "cpu, cuda or cuda:N (cpu)" }, \
    { "threads", 0, "N", DT_OPT_INT, O(threads), 0, 1024, NULL, \
      "CPU compute threads; part of what a run's bits depend on; 0 = all cores (0)" }, \
    { "mixed_precision", 0, "NAME", DT_OPT_ENUM, O(mixed_precision), 0, 0, dt_precision_names, \
      "storage of activations and working weights: no (fp32) or bf16; master weights are always fp32 (no)" }, \
    { "gradient_checkpointing", 0, NULL, DT_OPT_FLAG, O(gradient_checkpointing), 0, 0, NULL, \
      "compute each block's activations again in the backward pass instead of keeping them", .often = true }, \
    { "low_vram", 0, NULL, DT_OPT_FLAG, O(low_vram), 0, 0, NULL, \
      "keep frozen matrices out of memory: each is brought in from the weight file where it is used; encoders are never " \
      "resident with the transformer anyway" }, \
    { "memory_budget", 0, "BYTES", DT_OPT_BYTES, O(memory_budget), 1, 1e15, NULL, \
      "stay below this (24G): gives weights back after use and turns on gradient_checkpointing if needed, and refuses to start if " \
      "that is not enough", .often = true }, \
    { "memory_plan", 0, NULL, DT_OPT_FLAG, O(memory_plan), 0, 0, NULL, \
      "print the memory plan per bucket and kind, and stop; a bare --plan does the same" }, \
    DT_OPT_GROUP("Saving and resuming"), \
    { "checkpointing_steps", 0, "N", DT_OPT_INT, O(checkpointing_steps), 1, 1e9, NULL, \
      "save the whole state every N optimiser steps (500)" }, \
    { "save_dtype", 0, "NAME", DT_OPT_ENUM, O(save_dtype), 0, 0, dt_save_dtype_names, \
      "dtype of the finished weights: fp32, bf16 or fp16 (bf16 with --mixed_precision bf16, otherwise fp32)" }, \
    { "checkpoints_total_limit", 0, "N", DT_OPT_INT, O(checkpoints_total_limit), 1, 1e9, NULL, \
      "keep only the newest N checkpoints (all)" }, \
    { "resume_from_checkpoint", 0, "PATH", DT_OPT_STR, O(resume), 0, 0, NULL, \
      "where to go on: latest, the newest checkpoint under output_dir if there is one; the name of one; or none, to start " \
      "anew and set aside what is there (latest)", .often = true }, \
    DT_OPT_GROUP("Watching"), \
    { "logging_dir", 0, "DIR", DT_OPT_STR, O(logging_dir), 0, 0, NULL, \
      "TensorBoard files, under output_dir (logs)" }, \
    { "tracker_project_name", 0, "NAME", DT_OPT_STR, O(project), 0, 0, NULL, \
      "folder under logging_dir (text2image-fine-tune)" }, \
    { "report_to", 0, "NAME", DT_OPT_ENUM, O(report_to), 0, 0, report_names, "tensorboard or none (tensorboard)" }, \
    { "progress", 0, "FILE", DT_OPT_STR, O(progress), 0, 0, NULL, \
      "NDJSON progress to a file, or to a file descriptor by number" }, \
    { "quiet", 'q', NULL, DT_OPT_FLAG, O(quiet), 0, 0, NULL, "say nothing on standard error except warnings and errors" }, \
    { "dump_steps", 0, "N", DT_OPT_INT, O(dump_steps), 0, 1e6, NULL, \
      "write everything about the first N steps to dump_dir (0)" }, \
    { "dump_dir", 0, "DIR", DT_OPT_STR, O(dump_dir), 0, 0, NULL, \
      "step-NNNNNN.safetensors: inputs, prediction, loss, gradients, weights (output_dir/dump)" }

#define REFUSED_ROWS \
    DT_OPT_GROUP("Of the reference, not taken"), \
    REFUSED("use_8bit_adam", "moments are kept in fp32: use the default AdamW"), \
    REFUSED("use_came", "only AdamW is offered"), \
    REFUSED("multi_stream", "encoders run before training, so there is nothing to overlap"), \
    REFUSED("revision", "models are folders on disk, they have no revisions"), \
    REFUSED("variant", "give the folder that holds the variant"), \
    REFUSED("non_ema_revision", "models are folders on disk, they have no revisions"), \
    REFUSED("cache_dir", "nothing is downloaded; the latent cache is --latents"), \
    REFUSED("push_to_hub", "dt uses no network"), \
    REFUSED("hub_model_id", "dt uses no network"), \
    REFUSED("hub_token", "dt uses no network"), \
    REFUSED("prediction_type", "FLUX predicts the velocity of its flow; there is no other type"), \
    REFUSED("snr_loss", "flow matching has no SNR loss; see --weighting_scheme"), \
    REFUSED("allow_tf32", "TF32 is chosen by the device's precision, see --mixed_precision"), \
    REFUSED("local_rank", "the launcher's environment says which rank this is"), \
    REFUSED("config_path", "it has no effect in this workflow"), \
    REFUSED("enable_text_encoder_in_dataloader", "captions are encoded once, before training"), \
    REFUSED("use_deepspeed", "this version trains in one process"), \
    REFUSED("use_fsdp", "this version trains in one process")

#define STAGE_ROWS \
    { "plan", 0, "FILE", DT_OPT_STR, O(plan), 0, 0, NULL, \
      "the plan that dt-bucket wrote; without it one is made from train_data_dir" }, \
    { "latents", 0, "DIR", DT_OPT_STR, O(latents), 0, 0, NULL, \
      "the cache that dt-cache-latents wrote, or - for its stream; without it the cache is made in " \
      "output_dir/cache" }, \
    { "vae_mini_batch", 0, "N", DT_OPT_INT, O(vae_mini_batch), 1, 1024, NULL, "pictures encoded at once (32)" }, \
    { "vae_tile", 0, "PX", DT_OPT_INT, O(vae_tile_px), 0, 65536, NULL, \
      "encode and decode pictures larger than this in overlapping tiles; 0 = never (0)" }, \
    { "max_sequence_length", 0, "N", DT_OPT_INT, O(max_sequence_length), 1, 4096, NULL, \
      "tokens of T5, padding included (512, or the tokenizer's limit if that is less)" }, \
    { "text_padding", 0, "NAME", DT_OPT_ENUM, O(text_padding), 0, 0, dt_padding_names, \
      "T5 states of a caption: max, padded to max_sequence_length and the padding attended, as the reference does; or none, " \
      "its own tokens alone (max)" }

#define FLUX_ROWS \
    DT_OPT_GROUP("Objective"), \
    { "weighting_scheme", 0, "NAME", DT_OPT_ENUM, O(weighting), 0, 0, dt_weighting_names, \
      "density of timesteps and weight of the loss (none)" }, \
    { "uniform_sampling", 0, NULL, DT_OPT_FLAG, O(uniform_sampling), 0, 0, NULL, \
      "stratify timesteps: the samples of a step cover all noise levels" }, \
    { "train_sampling_steps", 0, "N", DT_OPT_INT, O(timesteps.steps), 1, 1e6, NULL, \
      "length of the noise table (1000)" }, \
    { "logit_mean", 0, "F", DT_OPT_FLOAT, O(timesteps.logit_mean), -100, 100, NULL, "logit_normal: mean (0)" }, \
    { "logit_std", 0, "F", DT_OPT_FLOAT, O(timesteps.logit_std), 0, 100, NULL, \
      "logit_normal: standard deviation (1)" }, \
    { "mode_scale", 0, "F", DT_OPT_FLOAT, O(timesteps.mode_scale), -10, 10, NULL, "mode: scale (1.29)" }, \
    { "guidance_scale", 0, "F", DT_OPT_FLOAT, O(guidance), 0, 1000, NULL, \
      "guidance the model is told, if it has that input (3.5)" }, \
    { "noise_offset", 0, "F", DT_OPT_FLOAT, O(noise_offset), 0, 10, NULL, \
      "add F * N(0,1) per picture and channel to the noise (0)" }, \
    { "input_perturbation", 0, "F", DT_OPT_FLOAT, O(input_perturbation), 0, 10, NULL, \
      "add F * N(0,1) to the noise that is mixed in, not to the target (0)" }, \
    { "outlier_limit", 0, "F", DT_OPT_FLOAT, O(outlier_limit), 0, 1e9, NULL, \
      "elements whose error is above F give no loss; 0 = all do (50)" }, \
    DT_OPT_GROUP("Validation"), \
    { "validation_prompts", 0, "TEXT", DT_OPT_LIST, O(validation_prompts), 0, 0, NULL, \
      "sample these, always from the same noise, into samples.png", .often = true }, \
    { "validation_steps", 0, "N", DT_OPT_INT, O(validation_steps), 1, 1e9, NULL, \
      "validate every N optimiser steps (2000)" }, \
    { "validation_epochs", 0, "N", DT_OPT_INT, O(validation_epochs), 1, 1e9, NULL, \
      "validate every N epochs instead" }, \
    { "validation_inference_steps", 0, "N", DT_OPT_INT, O(validation_inference_steps), 1, 1000, NULL, \
      "sampling steps (20)" }, \
    { "validation_size", 0, "PX", DT_OPT_INT, O(validation_size), 16, 65536, NULL, \
      "side of validation samples (image_sample_size)" }, \
    { "validation_data_dir", 0, "DIR", DT_OPT_STR, O(held.train_data_dir), 0, 0, NULL, \
      "pictures held out: their loss at fixed timesteps and noise" }, \
    { "validation_data_meta", 0, "FILE", DT_OPT_STR, O(held.train_data_meta), 0, 0, NULL, \
      "metadata of the held-out pictures" }

static const dt_opt lora_table[] = {
    MODEL_ROWS,
    DT_DATA_OPTS(dt_train_opts, data),
    STAGE_ROWS,
    DT_OPT_GROUP("LoRA"),
    { "rank", 0, "N", DT_OPT_INT, O(rank), 1, 65536, NULL, "rank of the adapters (128)", .often = true },
    { "network_alpha", 0, "F", DT_OPT_FLOAT, O(network_alpha), 1e-6, 1e6, NULL,
      "alpha; the adapters act at alpha / rank (64)" },
    { "target_name", 0, "LIST", DT_OPT_STR, O(target_name), 0, 0, NULL,
      "comma list of module paths, dotted suffixes or globs to adapt (every linear layer)" },
    { "lora_skip_name", 0, "LIST", DT_OPT_STR, O(lora_skip_name), 0, 0, NULL,
      "comma list, as target_name, of modules to leave out" },
    { "lora_format", 0, "NAME", DT_OPT_ENUM, O(lora_format), 0, 0, dt_lora_layouts,
      "layout of lora.safetensors: comfy, peft or kohya (comfy)" },
    { "use_peft_lora", 0, NULL, DT_OPT_FLAG, O(use_peft_lora), 0, 0, NULL, "the same as --lora_format peft" },
    FLUX_ROWS, RUN_ROWS, REFUSED_ROWS,
    REFUSED("train_text_encoder", "dt-train lora adapts the transformer; dt-train full can train the text encoders"),
    DT_OPT_END
};

static const dt_opt full_table[] = {
    MODEL_ROWS,
    { "from_config", 0, NULL, DT_OPT_FLAG, O(from_config), 0, 0, NULL,
      "begin with fresh weights: only the configs of the transformer (and trained text encoders) are read" },
    DT_DATA_OPTS(dt_train_opts, data),
    STAGE_ROWS,
    DT_OPT_GROUP("What is trained"),
    { "trainable_modules", 0, "TEXT", DT_OPT_LIST, O(trainable_modules), 0, 0, NULL,
      "parameters whose name contains one of these are trained (all)", .often = true },
    { "train_text_encoder", 0, NULL, DT_OPT_FLAG, O(train_text_encoder), 0, 0, NULL, "train CLIP and T5 as well" },
    FLUX_ROWS, RUN_ROWS, REFUSED_ROWS,
    DT_OPT_END
};

static const dt_opt vae_table[] = {
    MODEL_ROWS,
    { "from_config", 0, NULL, DT_OPT_FLAG, O(from_config), 0, 0, NULL,
      "begin with fresh weights: only the config of the vae is read" },
    DT_DATA_OPTS(dt_train_opts, data),
    { "plan", 0, "FILE", DT_OPT_STR, O(plan), 0, 0, NULL,
      "the plan that dt-bucket wrote; without it one is made from train_data_dir" },
    DT_OPT_GROUP("Objective"),
    { "fit_scaling", 0, NULL, DT_OPT_FLAG, O(fit_scaling), 0, 0, NULL,
      "at the end, set scaling_factor and shift_factor so that latents have mean 0 and variance 1" },
    { "kl_weight", 0, "F", DT_OPT_FLOAT, O(kl_weight), 0, 1e3, NULL, "weight of the KL term beside L1 (1e-6)" },
    { "trainable_modules", 0, "TEXT", DT_OPT_LIST, O(trainable_modules), 0, 0, NULL,
      "parameters whose name contains one of these are trained (all)" },
    RUN_ROWS, REFUSED_ROWS,
    DT_OPT_END
};

static const dt_cli cli[] = {
    [DT_METHOD_LORA] = { "dt-train lora", "--pretrained_model_name_or_path DIR --train_data_dir DIR [OPTION]...",
        "Train a low-rank adapter (LoRA) of a FLUX model on pictures with captions.",
        "  dt-train lora --pretrained_model_name_or_path FLUX.1-dev --train_data_dir photos --enable_bucket \\\n"
        "      --rank 16 --network_alpha 16 --max_train_steps 1000 --output_dir out\n", lora_table },
    [DT_METHOD_FULL] = { "dt-train full", "--pretrained_model_name_or_path DIR --train_data_dir DIR [OPTION]...",
        "Train all or some weights of a FLUX model, from a checkpoint or from fresh weights.",
        "  dt-train full --pretrained_model_name_or_path FLUX.1-dev --train_data_dir photos --trainable_modules attn \\\n"
        "      --mixed_precision bf16 --gradient_checkpointing --output_dir out\n", full_table },
    [DT_METHOD_VAE] = { "dt-train vae", "--pretrained_model_name_or_path DIR --train_data_dir DIR [OPTION]...",
        "Train the autoencoder of a model folder on pictures.",
        "  dt-train vae --pretrained_model_name_or_path tiny --from_config --train_data_dir pictures --output_dir out\n", vae_table },
};

const dt_cli *dt_train_cli(enum dt_method method) { return &cli[method]; }

void dt_train_opts_init(dt_train_opts *o, enum dt_method method)
{
    *o = (dt_train_opts){
        .method = method, .data = DT_DATA_DEFAULTS, .held = DT_DATA_DEFAULTS, .output_dir = "sd-model-finetuned",
        .vae_mini_batch = 32, .device = "cpu", .save_dtype = -1,
        .learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .weight_decay = 1e-2, .epsilon = 1e-8,
        .max_grad_norm = 1.0, .ema_decay = 0.9999, .lr_warmup_steps = 500, .lr_num_cycles = -1, .lr_power = 1,
        .timesteps = { .logit_std = 1.0, .mode_scale = 1.29, .steps = 1000 }, .guidance = 3.5, .outlier_limit = 50,
        .kl_weight = 1e-6, .rank = 128, .network_alpha = 64, .lora_format = -1, .checkpointing_steps = 500,
        .validation_inference_steps = 20, .logging_dir = "logs", .project = "text2image-fine-tune",
    };
}

void dt_train_opts_release(dt_train_opts *o)
{
    dt_strs_release(&o->data.fix_sample_size);
    dt_strs_release(&o->trainable_modules);
    dt_strs_release(&o->validation_prompts);
}

/* --- options that say nothing in this run: refused, never passed over --- */

static bool held_out(const dt_train_opts *o) { return o->held.train_data_dir || o->held.train_data_meta; }
static bool validates(const dt_train_opts *o) { return held_out(o) || o->validation_prompts.n; }

static bool planned(const dt_train_opts *o) { return o->plan || o->latents; }
static bool reads_no_pictures(const dt_train_opts *o) { return planned(o) && !held_out(o); }
static bool encodes_nothing(const dt_train_opts *o) { return o->latents && !held_out(o); }
static bool decodes_nothing(const dt_train_opts *o) { return o->latents && !validates(o); }
static bool never_validates(const dt_train_opts *o) { return !validates(o); }
static bool no_prompts(const dt_train_opts *o) { return !o->validation_prompts.n; }
static bool lr_constant(const dt_train_opts *o) { return o->lr_scheduler == DT_LR_CONSTANT; }
static bool lr_no_cosine(const dt_train_opts *o)
{
    return o->lr_scheduler != DT_LR_COSINE && o->lr_scheduler != DT_LR_RESTARTS;
}
static bool lr_no_polynomial(const dt_train_opts *o) { return o->lr_scheduler != DT_LR_POLYNOMIAL; }
static bool no_ema(const dt_train_opts *o) { return !o->use_ema; }
static bool no_logit_normal(const dt_train_opts *o) { return o->weighting != DT_W_LOGIT_NORMAL; }
static bool no_mode(const dt_train_opts *o) { return o->weighting != DT_W_MODE; }
static bool no_dumps(const dt_train_opts *o) { return !o->dump_steps; }
static bool no_events(const dt_train_opts *o) { return o->report_to != 0; }

#define PLANNED "is in the plan already: give it to dt-bucket"
#define SIZES   "is in the plan already: give it to dt-bucket (samples: --validation_size)"
static const struct idle {
    const char *flag;
    bool (*is)(const dt_train_opts *o);
    const char *why;
} idle[] = {
    { "dataset_config", planned, PLANNED }, { "folder_repeats", planned, PLANNED },
    { "train_data_dir", planned, PLANNED }, { "train_data_meta", planned, PLANNED },
    { "max_train_samples", planned, PLANNED }, { "train_batch_size", planned, PLANNED },
    { "caption_dropout", planned, PLANNED }, { "random_flip", planned, PLANNED },
    { "num_train_epochs", planned, PLANNED }, { "seed", planned, PLANNED },
    { "trust_sizes", reads_no_pictures, PLANNED }, { "verify_images", reads_no_pictures, PLANNED },
    { "max_skipped_fraction", reads_no_pictures, PLANNED },
    { "image_sample_size", planned, SIZES }, { "enable_bucket", planned, SIZES },
    { "random_ratio_crop", planned, SIZES }, { "random_hw_adapt", planned, SIZES },
    { "fix_sample_size", planned, SIZES }, { "multiple", planned, SIZES },
    { "vae_mini_batch", encodes_nothing, "has no effect: the cache is filled; give it to dt-cache-latents" },
    { "vae_tile", decodes_nothing, "has no effect: the cache is filled; give it to dt-cache-latents" },
    { "validation_steps", never_validates, "needs --validation_prompts or --validation_data_dir" },
    { "validation_epochs", never_validates, "needs --validation_prompts or --validation_data_dir" },
    { "validation_inference_steps", no_prompts, "needs --validation_prompts" },
    { "validation_size", no_prompts, "needs --validation_prompts" },
    { "lr_warmup_steps", lr_constant,
      "has no effect with --lr_scheduler constant: constant_with_warmup has a warm-up" },
    { "lr_num_cycles", lr_no_cosine, "needs --lr_scheduler cosine or cosine_with_restarts" },
    { "lr_power", lr_no_polynomial, "needs --lr_scheduler polynomial" },
    { "ema_decay", no_ema, "needs --use_ema" },
    { "logit_mean", no_logit_normal, "needs --weighting_scheme logit_normal" },
    { "logit_std", no_logit_normal, "needs --weighting_scheme logit_normal" },
    { "mode_scale", no_mode, "needs --weighting_scheme mode" },
    { "dump_dir", no_dumps, "needs --dump_steps" },
    { "logging_dir", no_events, "needs --report_to tensorboard" },
    { "tracker_project_name", no_events, "needs --report_to tensorboard" },
};

static int refuse_idle(const dt_train_opts *o, int argc, char **argv, dt_err *err)
{
    const dt_cli *c = dt_train_cli(o->method);
    for (size_t i = 0; i < sizeof(idle) / sizeof(idle[0]); i++)
        if (idle[i].is(o) && dt_cli_given(c, argc, argv, idle[i].flag))
            return dt_err_set(err, DT_EUSAGE, "--%s %s", idle[i].flag, idle[i].why);
    return 0;
}

static int check_inputs(const dt_train_opts *o, dt_err *err)
{
    if (!o->model)
        return dt_err_set(err, DT_EUSAGE, "--pretrained_model_name_or_path is missing");
    if (!planned(o) && !o->data.train_data_dir && !o->data.train_data_meta && !o->data.dataset_config)
        return dt_err_set(err, DT_EUSAGE, "--train_data_dir is missing (or --dataset_config, or --plan and --latents)");
    if (o->plan || !o->latents || !strcmp(o->latents, "-"))
        return 0;
    char *plan = dt_path_join(o->latents, "plan.ndjson");
    bool there = dt_exists(plan);
    free(plan);
    return there ? 0
                 : dt_err_set(err, DT_EUSAGE,
                              "--latents DIR needs the --plan that it was made for: there is no plan.ndjson in it");
}

int dt_train_opts_check(dt_train_opts *o, int argc, char **argv, dt_err *err)
{
    int rc = check_inputs(o, err);
    if (rc == 0)
        rc = refuse_idle(o, argc, argv, err);
    if (rc == 0 && o->data.dataset_config)
        rc = dt_data_config_alone(dt_train_cli(o->method), argc, argv, err);
    if (rc < 0)
        return rc;
    if (o->use_peft_lora && o->lora_format >= 0 && o->lora_format != DT_LORA_PEFT)
        return dt_err_set(err, DT_EUSAGE, "--use_peft_lora and --lora_format %s exclude each other",
                          dt_lora_layouts[o->lora_format]);
    if (o->lora_format < 0)
        o->lora_format = o->use_peft_lora ? DT_LORA_PEFT : DT_LORA_COMFY;
    if (o->low_vram && o->from_config)
        return dt_err_set(err, DT_EUSAGE, "--low_vram needs weights in a file, --from_config has none");
    if (o->save_dtype < 0)
        o->save_dtype = o->mixed_precision ? 1 : 0;
    if (o->validation_steps && o->validation_epochs)
        return dt_err_set(err, DT_EUSAGE, "--validation_steps and --validation_epochs exclude each other");
    if (o->lr_num_cycles < 0)
        o->lr_num_cycles = o->lr_scheduler == DT_LR_COSINE ? 0.5 : 1;
    if (planned(o) && !dt_cli_given(dt_train_cli(o->method), argc, argv, "gradient_accumulation_steps"))
        o->data.gradient_accumulation_steps = 0;
    o->timesteps.weighting = o->weighting;
    o->timesteps.uniform = o->uniform_sampling;
    return 0;
}

/* Options that a run may have otherwise when it goes on; what is not here is a setting of the run. */
static const char *const may_change[] = {
    /* compared by content */
    "pretrained_model_name_or_path", "transformer_path", "vae_path", "vae_tile", "plan", "latents",
    /* compared as the plan has them */
    "train_data_dir", "train_data_meta", "dataset_config", "folder_repeats", "max_train_samples", "caption_dropout",
    "random_flip", "trust_sizes", "verify_images", "max_skipped_fraction", "image_sample_size", "enable_bucket",
    "random_ratio_crop", "random_hw_adapt", "fix_sample_size", "multiple", "train_batch_size", "num_train_epochs", "seed",
    /* compared as they come to be: the kind of device, its threads, recomputing as chosen by the budget */
    "device", "threads", "gradient_checkpointing", "memory_budget",
    /* change no weight */
    "output_dir", "dataloader_num_workers", "vae_mini_batch", "max_train_steps", "low_vram", "memory_plan",
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "validation_prompts", "validation_steps",
    "validation_epochs", "validation_inference_steps", "validation_size", "validation_data_dir",
    "validation_data_meta", "logging_dir", "tracker_project_name", "report_to", "progress", "quiet", "dump_steps", "dump_dir",
    /* of the result alone */
    "save_dtype", "lora_format", "use_peft_lora", "fit_scaling",
};

bool dt_train_opts_may_change(const char *name)
{
    for (size_t i = 0; i < sizeof(may_change) / sizeof(may_change[0]); i++)
        if (!strcmp(name, may_change[i]))
            return true;
    return false;
}

cJSON *dt_train_opts_settings(const dt_train_opts *o)
{
    const dt_cli *c = dt_train_cli(o->method);
    cJSON *set = cJSON_CreateObject();
    cJSON_AddStringToObject(set, "command", strrchr(c->tool, ' ') + 1);
    for (const dt_opt *row = c->table; row->name || row->help; row++) {
        if (!row->name || row->type == DT_OPT_REFUSED || dt_train_opts_may_change(row->name))
            continue;
        cJSON *v = dt_cli_value(row, o);
        cJSON_AddItemToObject(set, row->name, v ? v : cJSON_CreateNull());
    }
    return set;
}
