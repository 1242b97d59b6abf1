/* sampler.h - pictures from prompts by a FLUX folder, with LoRAs and without, in stages:
 *
 *   new -> every prompt and size added -> dt_sampler_memory says what it will take -> dt_sampler_load -> dt_sampler_run
 *
 * The text encoders are loaded with their part of the LoRA, run on all prompts, and gone before the transformer, its
 * part and the autoencoder are loaded. */
#ifndef DT_TRAIN_SAMPLER_H
#define DT_TRAIN_SAMPLER_H
#include "models/flux_run.h"
#include "train/lora.h"
#include "train/memory.h"

typedef struct dt_sampler dt_sampler;       /* opaque; one thread at a time */

struct dt_sampler_params {
    dt_flux_pipe *pipe;             /* borrowed, as is dev; nothing is loaded yet */
    dt_device    *dev;
    dt_lora     **lora;             /* [DT_FLUX_NPART], NULL = none; taken, NULL afterwards; of dt_lora_open_parts or
                                       dt_lora_mix, not filled */
    bool          base;             /* beside the LoRA: pictures without it, too */
    dt_dtype      act;
    int64_t       tile_px;          /* models/flux_run.h */
};
int     dt_sampler_new(dt_sampler **out, const struct dt_sampler_params *p, dt_err *err);
void    dt_sampler_free(dt_sampler **s);

int64_t dt_sampler_add_prompt(dt_sampler *s, const char *text, dt_err *err);    /* its number; the same
                                                                                   text has the same */
/* pictures of a prompt */
int     dt_sampler_add_size(dt_sampler *s, int64_t prompt, int64_t w_px, int64_t h_px, dt_err *err);

/* Adds its moments to the memory plan, "captions" and "pictures"; `process` is what there is beside it. */
void    dt_sampler_memory(const dt_sampler *s, dt_mem_plan *p, int64_t process);

/* Encodes all prompts and loads what makes the pictures.  `stop` may be NULL. */
int     dt_sampler_load(dt_sampler *s, const volatile int *stop, dt_err *err);

typedef struct dt_sampler_shot {
    int64_t prompt;                 /* its number */
    int64_t w_px, h_px, steps;
    double  guidance;
    bool    base;                   /* without the LoRA */
    float  *latents;                /* [C, h, w]: noise N(0,1) in, result out */
    bool  (*on_step)(void *ctx, int64_t step);      /* may be NULL; false stops */
    void   *ctx;
} dt_sampler_shot;
int64_t dt_sampler_latents(const dt_sampler *s, int64_t w_px, int64_t h_px);    /* C * h * w */
/* rgb [h_px, w_px, 3] */
int     dt_sampler_run(dt_sampler *s, const dt_sampler_shot *shot, uint8_t *rgb, dt_err *err);

#endif
