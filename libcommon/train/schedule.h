/* schedule.h - learning-rate schedules and flow-matching noise schedules. */
#ifndef DT_TRAIN_SCHEDULE_H
#define DT_TRAIN_SCHEDULE_H
#include "base/json.h"
#include "base/rng.h"

/* --- learning rate: diffusers' get_scheduler formulas, k counted in optimiser steps --- */
enum dt_lr_kind { DT_LR_CONSTANT, DT_LR_WARMUP, DT_LR_LINEAR, DT_LR_COSINE, DT_LR_RESTARTS, DT_LR_POLYNOMIAL };
extern const char *const dt_lr_names[];         /* "constant", "constant_with_warmup", ...; NULL-terminated */

typedef struct dt_lr {
    int     kind;               /* dt_lr_kind */
    double  base;               /* peak */
    int64_t warmup, total;      /* steps */
    double  cycles;             /* cosine: half a wave (0.5); restarts: whole ones (1) */
    double  end, power;         /* polynomial: 1e-7, 1 */
} dt_lr;
/* Learning rate of optimiser step k, k = 0 for the first. */
double dt_lr_at(const dt_lr *s, int64_t k);

/* --- flow matching: diffusers' FlowMatchEulerDiscreteScheduler --- */
typedef struct dt_flow {
    bool    dynamic;            /* use_dynamic_shifting */
    double  shift;              /* static shift */
    double  base_shift, max_shift, base_len, max_len;   /* mu = line through (base_len, base_shift),
                                                           (max_len, max_shift) */
    double  shift_terminal;     /* 0 = none */
    int64_t train_steps;        /* num_train_timesteps, 1000 */
} dt_flow;
int    dt_flow_parse(dt_flow *f, const cJSON *json, const char *what, dt_err *err);
double dt_flow_mu(const dt_flow *f, int64_t image_tokens);
/* Shifts sigma[0..n) in place (dynamic with mu of image_tokens, or static), then stretches to shift_terminal. */
void   dt_flow_shift(const dt_flow *f, double *sigma, int64_t n, int64_t image_tokens);
/* n sampling steps from linspace(1, 1/n, n): sigma[0..n], sigma[n] = 0. */
void   dt_flow_sigmas(const dt_flow *f, double *sigma, int64_t n, int64_t image_tokens);

/* --- training timesteps and loss weights: Esser et al. 2024 (arXiv 2403.03206), sec. 3.1, as diffusers has them --- */
enum dt_weighting { DT_W_NONE, DT_W_SIGMA_SQRT, DT_W_LOGIT_NORMAL, DT_W_MODE, DT_W_COSMAP };
extern const char *const dt_weighting_names[];  /* "none", "sigma_sqrt", "logit_normal", "mode", "cosmap" */

typedef struct dt_timesteps {
    int     weighting;          /* dt_weighting */
    double  logit_mean, logit_std, mode_scale;
    bool    uniform;            /* --uniform_sampling: stratified over the samples of an optimiser step, all ranks
                                   and micro-batches */
    int64_t steps;              /* table length, train_sampling_steps */
} dt_timesteps;
/* Density of diffusers' compute_density_for_timestep_sampling: u in [0, 1) from a draw.  `a` is N(0,1) for
 * logit_normal, U[0,1) otherwise. */
double dt_timestep_density(const dt_timesteps *t, double a);
/* Index into the noise table (0 = noisiest) of sample `slot` out of `nslot` in optimiser step `step`. */
int64_t dt_timestep_index(const dt_timesteps *t, uint64_t seed, int64_t step, int64_t slot, int64_t nslot);
/* Loss weight w(sigma). */
double dt_timestep_weight(const dt_timesteps *t, double sigma);

#endif
