/* task.h - what the training loop knows about a model: how to build its graph for a shape and how to fill the
 * inputs for a batch.  task_flux.c and task_vae.c are tasks; trainer.c runs any.
 *
 * A task's graph has these by name: input "loss_scale" [1] fp32, output "loss" [1] fp32 (mean over the
 * micro-batch, before scaling), output "per_sample" [B] fp32 (optional), output "prediction" (optional). */
#ifndef DT_TRAIN_TASK_H
#define DT_TRAIN_TASK_H
#include "graph/session.h"
#include "train/optim.h"
#include "train/trace.h"

typedef struct dt_sample {
    int64_t     item;               /* number in the plan */
    const char *caption;            /* "" when dropped; borrowed */
    /* posterior of the latent [C, h, w], if the task wants latents; borrowed from the cache */
    int64_t     C, h, w;
    dt_dtype    lat_dtype;
    const void *mean, *logvar;
    /* text states [T, D] and pooled state [P], if the task wants them */
    int64_t     T, D, P;            /* T <= that of the batch */
    dt_dtype    txt_dtype;
    const void *states, *pooled;
    uint8_t    *rgb;                /* [h_px, w_px, 3], if the task wants pictures; owned by the batch */
} dt_sample;

typedef struct dt_micro {       /* a micro-batch */
    int64_t    index, epoch;        /* micro-batch number over the whole plan, and its epoch */
    int        n;
    int64_t    w_px, h_px;
    int64_t    T;                   /* rows of text states; 0: as many as the model has */
    dt_sample *s;                   /* [n] */
    dt_trace   trace;               /* with this batch */
} dt_micro;

/* Where batches come from, in the order of the plan. */
typedef struct dt_source {
    void *ctx;
    int  (*next)(void *ctx, dt_micro **b, dt_err *err);     /* 1: *b is set, 0: the plan is at its end, < 0: error */
    void (*done)(void *ctx, dt_micro *b);
} dt_source;

/* Where a micro-batch stands in the run: what its random draws are keyed by. */
typedef struct dt_step_at {
    uint64_t seed;
    int64_t  step;                  /* optimiser step, 0-based */
    int64_t  micro, nmicro;         /* within the step */
} dt_step_at;

typedef struct dt_task {
    void        *ctx;
    dt_build_fn  build;             /* (ctx, shape) */
    dt_shape_key (*shape)(void *ctx, int n, int64_t w_px, int64_t h_px, int64_t T);     /* as in dt_micro */
    /* Allocates the host memory that feed needs for a shape; returns what it has by now, bytes. */
    int64_t (*reserve)(void *ctx, const dt_shape_key *shape, dt_err *err);
    /* Writes every input but loss_scale.  Host work happens here: noise, posterior sample, timesteps. */
    int  (*feed)(void *ctx, dt_graph *g, dt_plan *p, const dt_micro *b, const dt_step_at *at, dt_err *err);
    void (*free)(void *ctx);
} dt_task;

/* A task that was never made (all 0) may be released, too. */
static inline void dt_task_release(dt_task *t)
{
    if (t->free)
        t->free(t->ctx);
    *t = (dt_task){ 0 };
}

#endif
