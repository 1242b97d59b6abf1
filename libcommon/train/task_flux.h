/* task_flux.h - flow matching on FLUX latents, for LoRA and full training. */
#ifndef DT_TRAIN_TASK_FLUX_H
#define DT_TRAIN_TASK_FLUX_H
#include "models/flux_pipe.h"
#include "train/task.h"

struct dt_flux_task_params {
    dt_flux_pipe *pipe;             /* borrowed; parts allocated by the caller (a memory plan may be made without) */
    dt_dtype act;                   /* activation dtype */
    bool     backward;              /* false: held-out loss only */
    bool     checkpoint;            /* recompute blocks */
    bool     train_text;            /* text encoders are in the graph; batches bring captions, not states */
    dt_timesteps timesteps;  /* table length and density; with backward = false fixed quantiles are used instead */
    double   guidance;              /* what a model with guidance is told (3.5) */
    double   noise_offset;          /* adds offset * N(0,1) per sample and channel to the noise */
    double   input_perturbation;    /* adds p * N(0,1) to the noise that is mixed in, not to the target */
    double   outlier_limit;         /* elements with |error| above it do not count (50); 0 = all count */
};

/* DT_EUSAGE: a noise table without steps.  dt_task_release frees it. */
int dt_flux_task_new(dt_task *out, const struct dt_flux_task_params *p, dt_err *err);

#endif
