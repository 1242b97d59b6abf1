/* names.h - other names that the tensors of a network have in the files people own.
 * The names of models/X.c are diffusers'.  The dt_..._rename functions are for dt_params_load: they
 * look at the file and find its layout themselves, diffusers' own included. */
#ifndef DT_MODELS_NAMES_H
#define DT_MODELS_NAMES_H
#include "models/flux.h"
#include "models/text_clip.h"
#include "models/text_t5.h"
#include "tensor/params.h"

typedef struct dt_other_name {      /* of a module, in another naming of the same network */
    char name[200];
    int  part, parts;               /* it is these rows of `parts` modules fused there; 0 of 1: a module of its own */
    bool swap;                      /* halves of the rows lie the other way round */
} dt_other_name;

/* --- FLUX transformer: Black Forest Labs' single file (flux1-dev.safetensors), also as "model.diffusion_model." of
 * a checkpoint --- */
bool dt_flux_single_name(const char *name, dt_other_name *out);     /* module or tensor; false if there is none */
int  dt_flux_rename(const dt_st *st, const dt_param *p, dt_st_entry out[DT_MAX_PIECES], void *unused, dt_err *err);

/* A transformer that the matrices of a file of weights, or of a LoRA in any naming, fit: numbers of blocks
 * and widths are the file's, and FLUX.1's where it does not say.  Heads are not known: some that fit. */
void dt_flux_guess(dt_flux_config *c, const dt_st *st);
/* Likewise text encoders, but for their embeddings. */
void dt_text_guess(dt_clip_config *clip, dt_t5_config *t5, const dt_st *st);

/* --- CLIP: modules as diffusers' first LoRA files have them --- */
bool dt_clip_old_name(const char *name, dt_other_name *out);

/* --- AutoencoderKL: the original naming (ae.safetensors; "first_stage_model." or "vae." of a checkpoint)
 * and diffusers' old names of the attention --- */
int  dt_vae_rename(const dt_st *st, const dt_param *p, dt_st_entry out[DT_MAX_PIECES], void *unused, dt_err *err);

#endif
