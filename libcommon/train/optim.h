/* optim.h - AdamW over sets of parameters: norm, clip, update, EMA, all as loops over flat blocks. */
#ifndef DT_TRAIN_OPTIM_H
#define DT_TRAIN_OPTIM_H
#include "graph/device.h"
#include "tensor/params.h"

enum { DT_OPTIM_SETS = 4 };

typedef struct dt_optim {
    dt_params *set[DT_OPTIM_SETS];      /* borrowed; their trainable parts are updated */
    int        nset;
    double     beta1, beta2, eps, weight_decay;
    double     max_norm;                /* global L2 norm; 0 = no clipping */
    double     ema_decay;               /* 0 = no EMA */
    int64_t    k;                       /* updates done */
} dt_optim;

void   dt_optim_zero(dt_optim *o);      /* gradients := 0 */
double dt_optim_norm(const dt_optim *o);    /* global gradient norm, fp64; not finite if any gradient is not */
/* Clips (torch.nn.utils.clip_grad_norm_: scale = max_norm / (norm + 1e-6), at most 1), updates, refreshes the working
 * copies and the EMA (diffusers' EMAModel: update k keeps min(ema_decay, k / (9 + k)) of it, the first one nothing),
 * zeroes the gradients. */
void   dt_optim_step(dt_optim *o, double lr, double norm);
/* The first parameter with a weight, a moment or an average that is not finite, its set and which of these; NULL: none. */
const dt_param *dt_optim_not_finite(const dt_optim *o, const char **set, const char **role);

#endif
