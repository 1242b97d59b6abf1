/* optim.h - AdamW over sets of parameters: norm, clip, update, EMA, all as loops over flat blocks. */
#ifndef DT_TRAIN_OPTIM_H
#define DT_TRAIN_OPTIM_H
#include "graph/graph.h"

enum { DT_OPTIM_SETS = 4 };

typedef struct dt_optim {
    dt_params *set[DT_OPTIM_SETS];      /* borrowed; their trainable parts are updated */
    int        nset;
    double     beta1, beta2, eps, weight_decay;
    double     max_norm;                /* global L2 norm; 0 = no clipping */
    double     ema_decay;               /* 0 = no EMA */
    int64_t    k;                       /* updates done */
    bool       fused;                   /* dt_optim_fuse */
    dt_update  update;                  /* then: what the parameters point to, so that a dt_optim stays where it is */
} dt_optim;

/* Before the sets are allocated and graphs planned: runs update what trains (dt_update), and gradients are
 * not kept.  For runs that are a step each, without clipping.  Weights, moments, averages and norms have the bits that
 * they have otherwise. */
void   dt_optim_fuse(dt_optim *o);
/* Before each run; does nothing unless fused.  The step that follows it must be of this lr. */
void   dt_optim_begin(dt_optim *o, double lr);

void   dt_optim_zero(dt_optim *o);      /* gradients := 0 */
double dt_optim_norm(const dt_optim *o);    /* global gradient norm, fp64; not finite if any gradient is not */
/* Clips (torch.nn.utils.clip_grad_norm_: scale = max_norm / (norm + 1e-6), at most 1), updates, refreshes the working
 * copies and the EMA (diffusers' EMAModel: update k keeps min(ema_decay, k / (9 + k)) of it, the first one nothing),
 * zeroes the gradients.  Fused: updates what had no gradient in the run. */
void   dt_optim_step(dt_optim *o, double lr, double norm);
/* The first parameter with a weight, a moment or an average that is not finite, its set and which of
 * these; NULL: none. */
const dt_param *dt_optim_not_finite(const dt_optim *o, const char **set, const char **role);

#endif
