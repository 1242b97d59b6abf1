/* flux_pipe.h - a FLUX model folder (diffusers layout) and the four networks in it.
 *
 *   DIR/transformer  DIR/vae  DIR/text_encoder (CLIP)  DIR/text_encoder_2 (T5)  DIR/scheduler
 *   DIR/tokenizer    DIR/tokenizer_2
 *
 * Opening reads the configs and declares every parameter; weights come into memory per component, when asked. */
#ifndef DT_MODELS_FLUX_PIPE_H
#define DT_MODELS_FLUX_PIPE_H
#include "base/hash.h"
#include "models/flux.h"
#include "models/text_clip.h"
#include "models/text_t5.h"
#include "models/vae_kl.h"
#include "text/tokenizer.h"
#include "train/schedule.h"

enum dt_flux_part { DT_FLUX_DIT, DT_FLUX_VAE, DT_FLUX_CLIP, DT_FLUX_T5, DT_FLUX_NPART };
extern const char *const dt_flux_part_dir[DT_FLUX_NPART];   /* "transformer", "vae", "text_encoder", "text_encoder_2" */

typedef struct dt_flux_pipe {
    char          *dir;
    dt_flux_config dit;
    dt_vae_config  vae;
    dt_clip_config clip;
    dt_t5_config   t5;
    dt_flow        flow;
    dt_params     *part[DT_FLUX_NPART];     /* declared; allocated by dt_flux_pipe_load or _fresh */
    char          *weights[DT_FLUX_NPART];  /* file or folder to load from; NULL = DIR/<part> */
    dt_tokenizer  *clip_tok, *t5_tok;       /* NULL until dt_flux_pipe_tokenizers */
    int64_t        clip_len, t5_len;        /* tokens of a caption, at most: 77 and 512, or the tokenizers'
                                               model_max_length if less */
    enum dt_padding text_padding;           /* of T5; the caller sets it before anything is planned.  CLIP's is
                                               always DT_PAD_MAX */
} dt_flux_pipe;

/* The parameters of part k, from p's configurations alone: p need not be of a folder. */
int  dt_flux_declare(dt_params **out, const dt_flux_pipe *p, enum dt_flux_part k, dt_err *err);

/* `max_sequence_length` caps T5's tokens; 0 = 512. */
int  dt_flux_pipe_open(dt_flux_pipe **out, const char *dir, int64_t max_sequence_length, dt_err *err);
void dt_flux_pipe_close(dt_flux_pipe **p);
int  dt_flux_pipe_tokenizers(dt_flux_pipe *p, dt_err *err);

/* How the tensors of a part are found in its files. */
extern const dt_rename_fn dt_flux_part_rename[DT_FLUX_NPART];
/* Opens the weights of part `k` and settles which of them stay there (dt_params_place): before anything is
 * planned with it, once it is known what trains. */
int  dt_flux_pipe_place(dt_flux_pipe *p, enum dt_flux_part k, dt_device *dev, dt_dtype dtype, bool fetch, dt_err *err);
/* Allocates it on dev in `dtype` (choose trainable parameters before) and loads its weights; places it
 * first if nobody did. */
int  dt_flux_pipe_load(dt_flux_pipe *p, enum dt_flux_part k, dt_device *dev, dt_dtype dtype, unsigned flags,
                       dt_err *err);
/* The same with fresh weights drawn from seed. */
int  dt_flux_pipe_fresh(dt_flux_pipe *p, enum dt_flux_part k, dt_device *dev, dt_dtype dtype, unsigned flags,
                        uint64_t seed, dt_err *err);
/* dt_params_check and dt_params_give_back of all parts. */
int  dt_flux_pipe_check(const dt_flux_pipe *p, dt_err *err);
bool dt_flux_pipe_give_back(dt_flux_pipe *p);
void dt_flux_pipe_unload(dt_flux_pipe *p, enum dt_flux_part k);  /* frees the weights; declared anew on the next load */
/* Hash of a part's config and weight files: what cached states depend on. */
int  dt_flux_pipe_hash(const dt_flux_pipe *p, enum dt_flux_part k, dt_hash *out, dt_err *err);

/* T: how many text states a caption has.  t5_len, or with DT_PAD_NONE the number of its tokens. */
int64_t dt_flux_text_len(const dt_flux_pipe *p, const char *text, dt_err *err);
/* Token ids of one caption: clip [clip_len], t5 [t5_len] of which the first T count, and where CLIP's pooled state is
 * read.  Returns T.  DT_EDATA: a token that its encoder does not know. */
int64_t dt_flux_tokenize(const dt_flux_pipe *p, const char *text, int32_t *clip, int32_t *eos_at, int32_t *t5,
                         dt_err *err);

/* Writes part k in diffusers' layout: DIR/<part>/config.json (copied) and the weights. */
int  dt_flux_pipe_save(const dt_flux_pipe *p, enum dt_flux_part k, const char *dir, dt_dtype dtype, bool ema,
                       const dt_st_kv *meta, dt_err *err);

#endif
