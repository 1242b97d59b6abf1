/* lora.h - low-rank adapters on linear layers (Hu et al. 2021):   y = x W^T + b + (alpha/r) (x A^T) B^T
 *
 *   W [out, in] frozen     A [r, in] "down"     B [out, r] "up"
 *
 * Life: build the model's graph once, so that its dt_params knows the linear layers -> dt_lora_new (to train) or
 * dt_lora_open (from a file) -> base->lora = it -> dt_params_alloc(lora->params) -> dt_params_init or the values of the
 * file -> every graph built from then on has the branches: dt_linear calls dt_lora_find.
 * The adapters' parameters are a set of their own, "<module path>.lora_A.weight" and ".lora_B.weight". */
#ifndef DT_TRAIN_LORA_H
#define DT_TRAIN_LORA_H
#include "base/err.h"
#include "base/mem.h"
#include "tensor/params.h"

typedef struct dt_adapter {
    char     *path;                 /* of the linear layer */
    dt_param *a, *b;                /* in the set of the dt_lora: [rank, in], [out, rank] */
    int64_t   rank;
    double    scale;                /* alpha / rank */
} dt_adapter;

typedef struct dt_lora {
    int64_t    rank;                /* asked for; of a file: the largest */
    double     alpha;
    dt_params *params;              /* owned; all trainable */
    dt_adapter *v;                  /* in order of declaration of the layers */
    int64_t    n, cap;
    dt_strs    targets, skips;      /* as asked for */
    void      *index;               /* path -> adapter, private */
} dt_lora;

void dt_lora_free(dt_lora **l);

/* NULL if the layer has none. */
const dt_adapter *dt_lora_find(const dt_lora *l, const char *path);

#endif
