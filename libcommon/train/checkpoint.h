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

typedef struct dt_train_state {     /* all that a run is, besides parameters; stored in the manifest */
    int64_t step;                   /* optimiser steps done */
    int64_t batch;                  /* micro-batches consumed: the plan is sought to this one */
    int64_t epoch;
    int64_t optim_k;
    int64_t validated;              /* 1 + the last step that was validated, 0 = none */
    uint64_t seed;                  /* every draw is keyed by (seed, batch or step, item): these are the RNG's counters */
    int64_t metrics_bytes;          /* length of metrics.ndjson at this step */
    int     threads;                /* CPU compute threads: part of what makes bits */
    char    base[33];               /* hash of the weights that training began with, "" = fresh ones or not known */
    char    settings[33];           /* hash of every setting that changes the weights */
} dt_train_state;

/* Writes DIR whole: into DIR.tmp, manifest, fsync, rename or exchange.  `extra(ctx, dir)` adds files first; may be NULL. */
int dt_checkpoint_save(const char *dir, const dt_optim *o, const dt_train_state *s,
                       int (*extra)(void *ctx, const char *dir, dt_err *err), void *ctx, dt_err *err);
/* The state alone: is this the run that made it? */
int dt_checkpoint_state(const char *dir, dt_train_state *s, dt_err *err);
/* Reads parameters, moments and state back; sizes and hashes are checked first. */
int dt_checkpoint_load(const char *dir, dt_optim *o, dt_train_state *s, dt_err *err);
/* The checkpoint of the highest step under `output_dir` that has a manifest, or NULL; caller frees. */
char *dt_checkpoint_latest(const char *output_dir);
/* Removes the oldest ones so that at most `keep` stay, keep <= 0 keeps all; and what a killed run has left of others. */
int dt_checkpoint_prune(const char *output_dir, int64_t keep, dt_err *err);

#endif
