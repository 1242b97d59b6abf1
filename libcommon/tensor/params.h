/* params.h - the parameters of one model component, in flat blocks by role.
 *
 * Life: new -> declared by building the model's graph once (graph.h: dt_weight) -> trainable ones chosen ->
 * dt_params_alloc lays them out -> loaded or initialised -> used by graphs and optimiser.
 *
 *   w       working copy, in the compute dtype: what kernels read.  Of frozen parameters it may be the file's own
 *           (place.c)
 *   grad    fp32, trainable only: kernels add into it (never overwrite); none where runs update the parameters
 *           (dt_param.update)
 *   master  fp32, trainable only; the same memory as w when the compute dtype is fp32
 *   m, v    fp32, trainable only: AdamW moments
 *   ema     fp32, trainable only, if asked for
 *
 * Trainable parameters are laid out first and contiguously, in declaration order, each starting on a 64-byte
 * boundary; optimiser, EMA, clipping, sharding and checkpoints are loops over [0, n_train). */
#ifndef DT_TENSOR_PARAMS_H
#define DT_TENSOR_PARAMS_H
#include <stdbool.h>
#include "base/err.h"
#include "base/mem.h"
#include "tensor/dtype.h"
#include "tensor/safetensors.h"

struct dt_device;
struct dt_update;

typedef enum dt_init {              /* how fresh weights begin; fan_in = product of all dims but the first */
    DT_INIT_ZERO, DT_INIT_ONE,
    DT_INIT_FAN_IN,                 /* U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for Linear and Conv
                                       (weight and, with scale = the layer's fan_in, bias) */
    DT_INIT_NORMAL,                 /* N(0, scale^2) */
} dt_init;

enum { DT_MAX_PIECES = 4 };         /* of a tensor in a file */

enum dt_place {
    DT_IN_BLOCK,                    /* memory of its own */
    DT_IN_FILE,                     /* used where it lies in the mapped file */
    DT_FETCHED,                     /* likewise there, in another type or in pieces: no w, a graph brings it into
                                       being where it reads it */
};

typedef struct dt_param {
    char    *name;                  /* "transformer_blocks.0.attn.to_q.weight" */
    dt_dims  dims;
    int64_t  numel;
    dt_init  init;
    double   scale;                 /* see dt_init */
    bool     trainable;
    int      index;                 /* place in the set, declaration order */
    int64_t  off;                   /* first element in the blocks of its part (trainable or frozen) */
    dt_dtype dtype;                 /* of w */
    void    *w;                     /* in a file: read-only, and aligned for its type alone */
    enum dt_place place;
    bool     give_back;             /* in a file: after each use its pages are */
    bool     read;                  /* by an op of any plan, more than rows of it */
    dt_st_entry *piece;             /* fetched: its rows in the file, `pieces` of them, one after the other; owned */
    int      pieces;
    const dt_st *file;              /* not in a block: what it is in */
    float   *grad, *master, *m, *v, *ema;   /* NULL unless trainable (ema: unless asked for; grad: with update) */
    struct dt_update *update;       /* not NULL: a run updates it when its gradient is there, and keeps none
                                       (graph.h); borrowed */
    double   sumsq;                 /* then: of the gradient of the last run, -1 = it had none */
} dt_param;

typedef struct dt_params {
    char      *name;                /* "transformer", "vae", "text_encoder", "text_encoder_2", "lora" */
    dt_param **v;
    int64_t    n, cap;
    void      *index;               /* name -> dt_param, private */
    bool       allocated;
    dt_dtype   dtype;
    struct dt_device *dev;
    int64_t    n_train, n_frozen;   /* elements, padding included */
    void      *w_train, *w_frozen;
    float     *grad, *master, *m, *v2, *ema;
    dt_st     *file;                /* what parameters that are in no block point into; owned */
    dt_strs    linears;             /* paths of the linear layers, in order of declaration: what LoRA may adapt */
    void      *linear_index;        /* path -> place in linears, private */
    /* LoRA (train/lora.h): dt_linear asks this for its path; NULL when there is none.  Borrowed. */
    struct dt_lora *lora;
} dt_params;

dt_params *dt_params_new(const char *name);
void       dt_params_free(dt_params **p);
dt_param  *dt_params_find(const dt_params *p, const char *name);    /* NULL if absent */
/* Declares or, if it exists with these dims, returns it.  NULL if it exists with others. */
dt_param  *dt_params_declare(dt_params *p, const char *name, dt_dims dims, dt_init init, double scale);

/* dt_linear says that `path`.weight is the weight of a linear layer.  Again is harmless. */
void       dt_params_add_linear(dt_params *p, const char *path);

/* --- parameters that stay in their file: place.c --- */
/* Before plans and alloc, once it is known what trains: on the CPU frozen matrices and larger that lie in st as
 * `dtype` and in one piece are used where they lie; with `fetch` the other ones stay there too.  Takes *st, which the
 * load is then to be given. */
typedef int (*dt_rename_fn)(const dt_st *st, const dt_param *p, dt_st_entry out[DT_MAX_PIECES], void *ctx, dt_err *err);
int        dt_params_place(dt_params *p, dt_st **st, dt_rename_fn rename, void *ctx, struct dt_device *dev,
                           dt_dtype dtype, bool fetch, dt_err *err);
/* After the load: closes the file if nothing stays in it. */
void       dt_params_loaded(dt_params *p);
/* DT_EDATA if the file that some stay in was written to.  To be asked before anything made with them is kept. */
int        dt_params_check(const dt_params *p, dt_err *err);
/* Pages of the file are given back after each use: a little slower, and a matrix at a time is in memory.  False:
 * nothing changes. */
bool       dt_params_give_back(dt_params *p);
/* The values of a fetched parameter, converted to t; host memory. */
void       dt_param_bring(const dt_param *q, void *dst, dt_dtype t);
/* A row of one that is in no block: nothing else of it comes into memory. */
void       dt_param_row(const dt_param *q, int64_t row, void *dst, dt_dtype t);
void       dt_param_used(const dt_param *q);        /* an op that read it has run */
int64_t    dt_params_in_file(const dt_params *p);   /* bytes of the file that are in memory at most, once
                                                       everything is planned */

/* Bytes that they will take, in the file and by alloc, for the memory plan, by role.  Sets in which every
 * dt_param.update is set have no gradients. */
typedef struct dt_params_bytes { int64_t weights, grads, master, moments, ema; } dt_params_bytes;
enum {
    DT_PARAMS_EMA = 1,
    DT_PARAMS_NO_OPTIM = 2,         /* gradients, but no master and no moments */
};
dt_params_bytes dt_params_size(const dt_params *p, dt_dtype dtype, unsigned flags);
int  dt_params_alloc(dt_params *p, struct dt_device *dev, dt_dtype dtype, unsigned flags, dt_err *err);

/* Fresh weights: each parameter's draws depend only on (seed, its name).  DT_ENOMEM names the parameter. */
int  dt_params_init(dt_params *p, uint64_t seed, dt_err *err);
/* Fills every parameter that does not stay in the file from st (any float dtype), many at a time.  Missing
 * tensors and wrong shapes are DT_EDATA naming file and tensor; what the file holds beyond is ignored.
 * `rename` finds the tensor of p in files with other names; NULL = identity.  It fills out[0..k) with
 * pieces that follow one another along p's first dimension (a piece may be some rows of a tensor) and returns k
 * >= 1 or a DT_E code; dt_st_need and dt_st_rows help. */
int  dt_params_load(dt_params *p, const dt_st *st, dt_rename_fn rename, void *ctx, dt_err *err);
/* After the master weights changed by other means: working copy := master. */
void dt_params_sync(dt_params *p);

/* Values of q in fp32, in host memory: the average if use_ema and there is one, else master, else w. */
int  dt_params_read(const dt_params *p, const dt_param *q, bool use_ema, float *out, dt_err *err);
/* Sets all copies of q (fp32, host memory). */
int  dt_params_write(dt_params *p, dt_param *q, const float *values, dt_err *err);

/* Writes all parameters as `dtype` (from master where there is one; ema instead if use_ema). */
int  dt_params_save(const dt_params *p, const char *path, dt_dtype dtype, bool use_ema, const dt_st_kv *meta,
                    dt_err *err);

#endif
