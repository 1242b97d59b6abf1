/* schedules.c - noise and learning-rate schedules.  The references compute in fp32, the library in fp64. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/golden/gold.h"
#include "train/schedule.h"

#define TOL 1e-6

static const dt_flow flux = { .dynamic = true, .shift = 3.0, .base_shift = 0.5, .max_shift = 1.15, .base_len = 256,
                              .max_len = 4096, .train_steps = 1000 };
static const dt_flow qwen = { .dynamic = true, .shift = 1.0, .base_shift = 0.5, .max_shift = 0.9, .base_len = 256,
                              .max_len = 8192, .shift_terminal = 0.02, .train_steps = 1000 };

static void one_table(const gold *f, tally *t, const dt_flow *flow, int64_t tokens, int64_t steps, const char *name)
{
    float *a = dt_alloc((size_t)(steps + 1) * sizeof(*a));
    double *sigma = dt_alloc((size_t)(steps + 1) * sizeof(*sigma));
    dt_flow_sigmas(flow, sigma, steps, tokens);
    for (int64_t i = 0; i <= steps; i++)
        a[i] = (float)sigma[i];
    tally_tensor(t, f, name, a, steps + 1, TOL);
    free(sigma);
    free(a);
}

static void sigmas(const gold *f)
{
    tally t = { 0 };
    static const int64_t steps[] = { 1, 4, 28, 1000 }, tokens[] = { 60, 256, 1024, 2304, 4096, 8100 };
    static const int64_t shift[] = { 1, 3, 7 };
    char name[64];
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 6; k++) {
            snprintf(name, sizeof(name), "out.dynamic.%lld.%lld", (long long)tokens[k], (long long)steps[i]);
            one_table(f, &t, &flux, tokens[k], steps[i], name);
        }
        for (int k = 0; k < 3; k++) {
            dt_flow flow = flux;
            flow.dynamic = false;
            flow.shift = (double)shift[k];
            snprintf(name, sizeof(name), "out.static.%lld.%lld", (long long)shift[k], (long long)steps[i]);
            one_table(f, &t, &flow, 60, steps[i], name);
        }
        if (steps[i] > 1) {
            snprintf(name, sizeof(name), "out.terminal.4096.%lld", (long long)steps[i]);
            one_table(f, &t, &qwen, 4096, steps[i], name);
        }
    }
    tap(&t, "sigmas of FlowMatchEulerDiscreteScheduler");
}

/* From the raw draw to u, to the place in the table, to sigma. */
static void density(const gold *f, const char *name, const dt_timesteps *how)
{
    tally t = { 0 };
    char key[64];
    const char *draw = how->weighting == DT_W_LOGIT_NORMAL ? "in.normal" : "in.uniform";
    int64_t n = gold_entry(f, "%s", draw)->dims.d[0];
    double table[1001];
    dt_flow_sigmas(&flux, table, 1000, 1024);
    float *in = gold_f32(f, draw), *u = dt_alloc((size_t)n * sizeof(*u)), *s = dt_alloc((size_t)n * sizeof(*s));
    for (int64_t i = 0; i < n; i++) {
        double d = dt_timestep_density(how, in[i]);
        u[i] = (float)d;
        s[i] = (float)table[(int64_t)(d * 1000.0)];
    }
    snprintf(key, sizeof(key), "out.u.%s", name);
    tally_tensor(&t, f, key, u, n, TOL);
    snprintf(key, sizeof(key), "out.sigma.%s", name);
    tally_tensor(&t, f, key, s, n, TOL);
    tap(&t, "training sigmas, %s", name);
    free(s);
    free(u);
    free(in);
}

static void loss_weights(const gold *f)
{
    static const int kind[] = { DT_W_NONE, DT_W_SIGMA_SQRT, DT_W_COSMAP };
    static const char *const name[] = { "out.weight.none", "out.weight.sigma_sqrt", "out.weight.cosmap" };
    tally t = { 0 };
    int64_t n = gold_entry(f, "out.sigma.logit_normal")->dims.d[0];
    float *sigma = gold_f32(f, "out.sigma.logit_normal"), *w = dt_alloc((size_t)n * sizeof(*w));
    for (int k = 0; k < 3; k++) {
        dt_timesteps how = { .weighting = kind[k] };
        for (int64_t i = 0; i < n; i++)
            w[i] = (float)dt_timestep_weight(&how, sigma[i]);
        tally_tensor(&t, f, name[k], w, n, TOL);
    }
    tap(&t, "loss weights");
    free(w);
    free(sigma);
}

static void learning_rates(const gold *f)
{
    int64_t total = gold_int(f, "steps"), warm = gold_int(f, "warmup");
    static const struct { const char *name; dt_lr lr; } cases[] = {
        { "constant",               { .kind = DT_LR_CONSTANT } },
        { "constant_with_warmup",   { .kind = DT_LR_WARMUP } },
        { "linear",                 { .kind = DT_LR_LINEAR } },
        { "cosine",                 { .kind = DT_LR_COSINE, .cycles = 0.5 } },
        { "cosine_with_restarts",   { .kind = DT_LR_RESTARTS, .cycles = 1 } },
        { "cosine_with_restarts.3", { .kind = DT_LR_RESTARTS, .cycles = 3 } },
        { "polynomial",             { .kind = DT_LR_POLYNOMIAL, .end = 1e-7, .power = 1 } },
        { "polynomial.2",           { .kind = DT_LR_POLYNOMIAL, .end = 1e-7, .power = 2 } },
    };
    tally t = { 0 };
    float *a = dt_alloc((size_t)(total + 1) * sizeof(*a));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        dt_lr lr = cases[i].lr;
        lr.base = 1e-3;
        lr.warmup = warm;
        lr.total = total;
        for (int64_t k = 0; k <= total; k++)
            a[k] = (float)(dt_lr_at(&lr, k) / 1e-3);
        char *key = dt_sprintf("out.lr.%s", cases[i].name);
        tally_tensor(&t, f, key, a, total + 1, TOL);
        free(key);
        lr.base = 0;            /* to look at a run that learns nothing: no NaN */
        a[0] = (float)dt_lr_at(&lr, total / 2);
        tally_add(&t, "base 0", a, &(float){ 0 }, 1, 1, TOL);
    }
    tap(&t, "learning rates of diffusers.optimization");
    free(a);
}

void golden_schedules(void)
{
    gold f;
    gold_open(&f, "schedule");
    sigmas(&f);
    density(&f, "none", &(dt_timesteps){ .weighting = DT_W_NONE, .steps = 1000 });
    density(&f, "logit_normal", &(dt_timesteps){ .weighting = DT_W_LOGIT_NORMAL, .logit_std = 1.0, .steps = 1000 });
    density(&f, "logit_shifted", &(dt_timesteps){ .weighting = DT_W_LOGIT_NORMAL, .logit_mean = 0.5, .logit_std = 0.8,
                                                  .steps = 1000 });
    density(&f, "mode", &(dt_timesteps){ .weighting = DT_W_MODE, .mode_scale = 1.29, .steps = 1000 });
    loss_weights(&f);
    learning_rates(&f);
    gold_close(&f);
}
