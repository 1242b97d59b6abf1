/* lora.h - low-rank adapters on linear layers (Hu et al. 2021):   y = x W^T + b + (alpha/r) (x A^T) B^T
 *
 *   W [out, in] frozen     A [r, in] "down"     B [out, r] "up"
 *
 * Life: build the model's graph once, so that its dt_params knows the linear layers -> dt_lora_new (to train) or
 * dt_lora_open_parts (from a file) -> base->lora = it -> dt_params_alloc(lora->params) -> dt_params_init or
 * dt_lora_fill -> every graph built from then on has the branches: dt_linear calls dt_lora_find.
 * The adapters' parameters are a set of their own, "<module path>.lora_A.weight" and ".lora_B.weight". */
#ifndef DT_TRAIN_LORA_H
#define DT_TRAIN_LORA_H
#include "base/err.h"
#include "base/mem.h"
#include "models/names.h"
#include "tensor/params.h"

/* The single-file name of a module (models/names.h: dt_flux_single_name); kohya's files are written in it.  NULL for
 * networks that have no other names. */
typedef bool (*dt_lora_naming)(const char *path, dt_other_name *out);

/* A network that files may have adapters of. */
typedef struct dt_lora_part {
    const char *name;               /* of its set: "transformer"; before the layer in the layout peft */
    const char *comfy, *kohya;      /* before it in these */
    dt_lora_naming naming;          /* of kohya's layout; NULL: the network's own names */
    dt_lora_naming old;             /* read besides; may be NULL */
    const char *implied;            /* what layers' paths begin with and some files leave out; or NULL */
    const char *const *prefixes;    /* read; a tensor with one of a text encoder is for that */
} dt_lora_part;
extern const dt_lora_part dt_lora_parts[];          /* the transformer, CLIP, T5; name NULL ends */
const dt_lora_part *dt_lora_part_named(const char *name);       /* the transformer if there is none */
const dt_lora_part *dt_lora_part_of(const char *tensor);        /* that a tensor of a file is for */

typedef struct dt_adapter {
    char     *path;                 /* of the linear layer */
    dt_param *a, *b;                /* in the set of the dt_lora: [rank, in], [out, rank] */
    int64_t   rank;
    double    scale;                /* alpha / rank */
} dt_adapter;

typedef struct dt_lora {
    dt_params *base;                /* borrowed; not written to */
    dt_lora_naming naming;
    int64_t    rank;                /* asked for; of a file: the largest */
    double     alpha;               /* asked for; of a file: that of the largest */
    dt_params *params;              /* owned; all trainable */
    dt_adapter *v;                  /* in order of declaration of the layers */
    int64_t    n, cap;
    dt_strs    targets;             /* as asked for; of a file: the layers */
    dt_strs    report;              /* a line for each target: what it matched */
    void      *index;               /* path -> adapter, private */
    float    **values;              /* of a file, until dt_lora_fill: A and B of each adapter; private */
} dt_lora;

/* A target is put on a layer if it is the layer's path, or the end of it after a dot ("to_q"), or a glob
 * that matches all of it ('*' crosses dots).  "ff.0", "ff.2", "ff_context.0" and "ff_context.2" mean FLUX's
 * "ff.net.0.proj" and so on.  No targets: every linear layer.  `skips`, likewise, take layers away.  A target or skip
 * that matches nothing is DT_EUSAGE with the nearest names. */
typedef struct dt_lora_config {
    int64_t rank;                   /* >= 1 */
    double  alpha;                  /* <= 0: rank */
    const dt_strs *targets, *skips; /* NULL = none */
    dt_lora_naming naming;
} dt_lora_config;

int  dt_lora_new(dt_lora **out, dt_params *base, const dt_lora_config *c, dt_err *err);
void dt_lora_free(dt_lora **l);

/* NULL if the layer has none. */
const dt_adapter *dt_lora_find(const dt_lora *l, const char *path);

/* --- files (dt-lora(5)) --- */
enum dt_lora_layout {
    DT_LORA_COMFY,  /* transformer.<module>.lora_A.weight, .lora_B.weight, .alpha: ComfyUI,
                       diffusers, and most others */
    DT_LORA_PEFT,   /* the same without .alpha, which is in the metadata lora_adapter_metadata: diffusers and peft */
    DT_LORA_KOHYA,  /* lora_unet_<single-file name>.lora_down.weight, .lora_up.weight, .alpha: sd-scripts,
                       ComfyUI, diffusers */
};
extern const char *const dt_lora_layouts[];         /* "comfy", "peft", "kohya", NULL */

typedef struct dt_lora_info {       /* goes into the metadata; NULL and negative: left out */
    const char  *base_hash;
    int64_t      steps;
    const dt_st *from;              /* converted from this file, whose metadata are kept but for those of its layout; steps and
                                     * base_hash are its own.  NULL: trained just now */
} dt_lora_info;

/* In every layout, applied at strength 1 the file gives what was trained (tests/golden/lora_check.py).  Of kohya's
 * layout diffusers 0.42 reads only the layers inside blocks; ComfyUI reads all. */
int dt_lora_save(const dt_lora *l, const char *path, enum dt_lora_layout layout, dt_dtype dtype, bool use_ema,
                 const dt_lora_info *info, dt_err *err);

/* Those of several networks in one file; n of them, of which NULL have none, but one has. */
int dt_lora_save_parts(const dt_lora *const *l, int n, const char *path, enum dt_lora_layout layout, dt_dtype dtype,
                       bool use_ema, const dt_lora_info *info, dt_err *err);

/* Fused layers of the layout whose parts have scales that are no power of two apart: their B cannot be
 * kept to the bit. */
int64_t dt_lora_rounds(const dt_lora *l, enum dt_lora_layout layout);

/* Reads any of these layouts and their variants (other prefixes, lora_up/lora_down, fused q, k and v), for n networks
 * whose sets have the names of dt_lora_parts: out[i] is what the file has for base[i], NULL if that is nothing; base[i]
 * may be NULL.  Tensors that are for none of them or belong to no layer are DT_EDATA, and so are halves of pairs.  Where
 * the file does not say alpha, it is the rank. */
int dt_lora_open_parts(dt_lora **out, dt_params *const *base, int n, const char *path, dt_err *err);
/* Once, after dt_params_alloc(l->params): the values of the file. */
int dt_lora_fill(dt_lora *l, dt_err *err);
/* Bytes of host memory that dt_lora_fill will give back; l may be NULL. */
int64_t dt_lora_held(const dt_lora *l);

/* n files that are open and not filled, each times its strength, as one; v[i] that are NULL afterwards
 * live on in *out.  v[i] that are NULL before add nothing; *out is NULL if all are. */
int dt_lora_mix(dt_lora **out, dt_lora **v, const double *strength, int64_t n, dt_err *err);

/* "FILE:0.8"; what follows the last colon is part of the name unless it is a number.  Caller frees. */
char *dt_lora_split(const char *word, double *strength);

/* For the other lora_*.c */
dt_adapter *dt_lora_add(dt_lora *l, const char *path, int64_t rank, double scale);
dt_lora    *dt_lora_make(dt_params *base, dt_lora_naming naming);
const dt_param *dt_lora_weight(const dt_params *base, const char *path);       /* of a linear layer */
void        dt_lora_swap_halves(float *x, int64_t rows, int64_t cols);          /* of the rows */

#endif
