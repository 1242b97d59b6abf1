/* train_opts.h - everything that dt-train's command line sets, with the names that the reference's scripts have. */
#ifndef DT_TRAIN_TRAIN_OPTS_H
#define DT_TRAIN_TRAIN_OPTS_H
#include "base/opt.h"
#include "data/plan.h"
#include "text/tokenizer.h"
#include "train/lora.h"
#include "train/schedule.h"

enum dt_method { DT_METHOD_LORA, DT_METHOD_FULL, DT_METHOD_VAE };

typedef struct dt_train_opts {
    int method;                     /* dt_method; the subcommand */
    struct dt_data_settings data;   /* data/data_opts.h */
    struct dt_data_settings held;   /* held-out pictures: validation_data_dir, validation_data_meta */

    const char *model, *transformer_path, *vae_path, *output_dir;
    int         from_config;        /* fresh weights */
    int         fit_scaling;        /* vae: measure scaling_factor and shift_factor at the end */
    const char *plan, *latents;
    int64_t     vae_mini_batch, max_sequence_length, vae_tile_px;
    int         text_padding;       /* dt_padding */

    const char *device;
    int64_t     threads, memory_budget;
    int         save_dtype;         /* index of dt_save_dtype_names; -1: as mixed_precision */
    int         mixed_precision;    /* index of dt_precision_names */
    int         gradient_checkpointing, low_vram, memory_plan;

    double      learning_rate, beta1, beta2, weight_decay, epsilon, max_grad_norm, ema_decay;
    int         scale_lr, use_ema, lr_scheduler;
    int64_t     lr_warmup_steps;
    double      lr_num_cycles, lr_power;

    dt_timesteps timesteps;         /* steps, density; uniform is set from uniform_sampling */
    int         weighting, uniform_sampling;
    double      guidance, noise_offset, input_perturbation, outlier_limit, kl_weight;

    int64_t     rank;
    double      network_alpha;
    const char *target_name, *lora_skip_name;
    int         lora_format, use_peft_lora, train_text_encoder;
    dt_strs     trainable_modules;

    int64_t     checkpointing_steps, checkpoints_total_limit;
    const char *resume;
    dt_strs     validation_prompts;
    int64_t     validation_steps, validation_epochs, validation_inference_steps, validation_size;
    int64_t     dump_steps;
    const char *dump_dir;
    const char *logging_dir, *project, *progress;
    int         report_to, quiet;
} dt_train_opts;

extern const char *const dt_save_dtype_names[];     /* "fp32", "bf16", "fp16" */
extern const char *const dt_precision_names[];      /* "no", "bf16"; NULL-terminated */

/* Defaults and the table of `dt-train METHOD`. */
void dt_train_opts_init(dt_train_opts *o, enum dt_method method);
const dt_cli *dt_train_cli(enum dt_method method);
/* What the table cannot say: flags that need or exclude each other, and those that would have no effect in this run.
 * Given a plan, gradient_accumulation_steps is 0 unless it is on the command line: as in the plan.  DT_EUSAGE. */
int  dt_train_opts_check(dt_train_opts *o, int argc, char **argv, dt_err *err);
/* What resuming must find unchanged, as {"command": "lora", "rank": 4, ...}: every option but those that a run may have
 * otherwise when it goes on; caller deletes.  And is this option one of those? */
cJSON *dt_train_opts_settings(const dt_train_opts *o);
bool dt_train_opts_may_change(const char *name);
void dt_train_opts_release(dt_train_opts *o);

#endif
