/* sample_run.h - a whole run of dt-sample from its options: prompts, model, LoRAs, memory plan, pictures, sheet. */
#ifndef DT_TRAIN_SAMPLE_RUN_H
#define DT_TRAIN_SAMPLE_RUN_H
#include <stdbool.h>
#include "base/mem.h"
#include "data/prompts.h"

typedef struct dt_sample_opts {         /* names of the flags */
    const char *model, *transformer_path, *vae_path, *output, *grid, *init_latents, *save_latents, *device, *progress;
    dt_strs lora, prompt;               /* "FILE" or "FILE:STRENGTH"; texts */
    int64_t steps, width, height;       /* width, height: 0 = the model's own */
    int64_t seed, num_images, vae_tile, max_sequence_length, memory_budget;
    double  guidance;
    bool    guidance_given;
    int     text_padding;               /* dt_padding */
    int     bf16, low_vram, compare_base, memory_plan, quiet;
} dt_sample_opts;
#define DT_SAMPLE_DEFAULTS { .device = "cpu", .steps = 28, .seed = 42, .num_images = 1, .guidance = 3.5 }

typedef struct dt_sample_ui {           /* the library does not print */
    void *ctx;
    void (*say)(void *ctx, bool warning, const char *line);
    void (*out)(void *ctx, const char *text);   /* the memory plan; a JSON line for each picture that was
                                                   written to a file */
    const volatile int *stop;
} dt_sample_ui;

/* `files` hold prompts (data/prompts.h). */
int dt_sample_run(const dt_sample_opts *o, const dt_strs *files, const dt_sample_ui *ui, dt_err *err);

#endif
