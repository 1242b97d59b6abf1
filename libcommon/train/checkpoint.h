/* checkpoint.h - training state on disk, dt-checkpoint(5).
 *
 *   DIR/SET.ROLE.safetensors    per parameter set and role: master, m, v, ema; fp32, trainable parameters only
 *   DIR/...                     what the caller adds (lora.safetensors, transformer/)
 *   DIR/manifest.json           written last: a folder without it is no checkpoint
 */
#ifndef DT_TRAIN_CHECKPOINT_H
#define DT_TRAIN_CHECKPOINT_H
#include "base/json.h"
#include "train/optim.h"
#include "train/trace.h"

typedef struct dt_train_state {     /* all that a run is, besides parameters; stored in the manifest */
    int64_t step;                   /* optimiser steps done */
    int64_t batch;                  /* micro-batches consumed: the plan is sought to this one */
    int64_t epoch;
    int64_t optim_k;
    int64_t validated;              /* 1 + the last step that was validated, 0 = none */
    uint64_t seed;  /* every draw is keyed by (seed, batch or step, item): these are the RNG's counters */
    int64_t metrics_bytes;          /* length of metrics.ndjson at this step */
    int     threads;                /* CPU compute threads: part of what makes bits */
    char    base[33];               /* hash of the weights that training began with, "" = fresh ones or not known */
    int64_t planned;  /* steps that the run should have, by which the learning rate is laid out; 0 = not known */
    dt_trace trace;                 /* of those batches; "" = there are none */
} dt_train_state;

/* Writes DIR whole: into DIR.tmp, manifest, fsync, rename or exchange.  `about`: more fields of the manifest, or NULL.
 * `extra(ctx, dir)` adds files first; may be NULL. */
int dt_checkpoint_save(const char *dir, const dt_optim *o, const dt_train_state *s, const cJSON *about,
                       int (*extra)(void *ctx, const char *dir, dt_err *err), void *ctx, dt_err *err);
/* The state alone: is this the run that made it?  And the whole manifest, if `about` is not NULL; caller deletes. */
int dt_checkpoint_state(const char *dir, dt_train_state *s, cJSON **about, dt_err *err);
/* Reads parameters, moments and state back; hashes are checked first, and the sizes of tensors. */
int dt_checkpoint_load(const char *dir, dt_optim *o, dt_train_state *s, dt_err *err);
/* The checkpoint of the highest step under `output_dir` that has a manifest, or NULL; caller frees.  A folder that
 * cannot be looked into is an error: a run that began anew would write over what is there. */
int dt_checkpoint_latest(char **path, const char *output_dir, dt_err *err);
/* Of those up to `step`, removes the oldest so that at most `keep` stay, keep <= 0 keeps all; and what a
 * killed run has left of others.  Later ones are not of this run, or of a part of it that it does again. */
int dt_checkpoint_prune(const char *output_dir, int64_t keep, int64_t step, dt_err *err);

#endif
