/* trainer.h - the training loop: accumulate, clip, update, log, validate, checkpoint, stop on request. */
#ifndef DT_TRAIN_TRAINER_H
#define DT_TRAIN_TRAINER_H
#include "base/progress.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/schedule.h"
#include "train/task.h"
#include "train/tfevents.h"

typedef struct dt_trainer {
    /* what is trained, on what, with what; all borrowed */
    const dt_task *task;
    dt_source      source;
    dt_session    *session;         /* all shapes added and allocated */
    dt_optim      *optim;
    dt_lr          lr;
    double         peak_flops;      /* what the device can do at most; 0: not known */

    /* how long and how */
    int64_t  max_steps;             /* optimiser steps */
    int64_t  accumulate;            /* micro-batches per step */
    int64_t  save_every, keep;      /* checkpointing_steps, checkpoints_total_limit; 0 = never / all */
    int64_t  validate_every;        /* 0 = never */
    const char *output_dir;
    int64_t  dump_steps;            /* first N steps to dump_dir */
    const char *dump_dir;

    /* state: zero for a fresh run, from dt_checkpoint_load for a resumed one */
    dt_train_state state;
    const cJSON *about;             /* more of the run, for the manifests of its checkpoints; may be NULL */

    /* where it is reported; each may be NULL */
    dt_progress *progress;
    dt_metrics  *metrics;
    dt_events   *events;

    /* hooks */
    void *ctx;
    int  (*save_extra)(void *ctx, const char *dir, dt_err *err);        /* into every checkpoint */
    int  (*saved)(void *ctx, dt_err *err);                              /* after every checkpoint; may be NULL */
    int  (*validate)(void *ctx, int64_t step, dt_err *err);             /* before step 0 and every validate_every */
    int  (*intact)(void *ctx, dt_err *err);  /* after every step: what it was computed with is right */
    void (*say)(void *ctx, const char *line);                           /* rare events: saved, resumed */
    const volatile int *stop;                                           /* save and leave; may be NULL */
    volatile int *save_now;                                             /* save and go on, cleared by it; may be NULL */

    /* results */
    double  last_loss;
    double  seconds, images;        /* of the steps of this process */
} dt_trainer;

/* Runs to max_steps, the plan's end, or a signal (DT_ESIGNAL, state saved).  DT_ENAN names the first op and block whose
 * output is not finite. */
int dt_train(dt_trainer *t, dt_err *err);

#endif
