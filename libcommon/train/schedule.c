/* schedule.c - learning-rate and noise schedules.  See schedule.h for sources. */
#include <math.h>
#include <string.h>
#include "train/schedule.h"

const char *const dt_lr_names[] = { "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts",
                                    "polynomial", NULL };
const char *const dt_weighting_names[] = { "none", "sigma_sqrt", "logit_normal", "mode", "cosmap", NULL };

static double decay(const dt_lr *s, int64_t k)
{
    double span = (double)(s->total > s->warmup ? s->total - s->warmup : 1);
    double p = (double)(k - s->warmup) / span;
    switch (s->kind) {
    case DT_LR_LINEAR:
        return fmax(0.0, (double)(s->total - k) / span);
    case DT_LR_COSINE:
        return fmax(0.0, 0.5 * (1.0 + cos(M_PI * s->cycles * 2.0 * p)));
    case DT_LR_RESTARTS:
        return p >= 1.0 ? 0.0 : fmax(0.0, 0.5 * (1.0 + cos(M_PI * fmod(s->cycles * p, 1.0))));
    case DT_LR_POLYNOMIAL:
        if (k > s->total)
            return s->end / s->base;
        return ((s->base - s->end) * pow(1.0 - p, s->power) + s->end) / s->base;
    default:
        return 1.0;
    }
}

double dt_lr_at(const dt_lr *s, int64_t k)
{
    if (s->base == 0)               /* decay() of the polynomial is relative to it */
        return 0;
    if (s->kind != DT_LR_CONSTANT && k < s->warmup)
        return s->base * (double)k / (double)s->warmup;
    return s->base * decay(s, k);
}

int dt_flow_parse(dt_flow *f, const cJSON *j, const char *what, dt_err *err)
{
    int rc;
    *f = (dt_flow){ 0 };
    if ((rc = dt_json_bool_or(&f->dynamic, j, "use_dynamic_shifting", false, what, err)) < 0 ||
        (rc = dt_json_num_or(&f->shift, j, "shift", 1.0, what, err)) < 0 ||
        (rc = dt_json_num_or(&f->base_shift, j, "base_shift", 0.5, what, err)) < 0 ||
        (rc = dt_json_num_or(&f->max_shift, j, "max_shift", 1.15, what, err)) < 0 ||
        (rc = dt_json_num_or(&f->base_len, j, "base_image_seq_len", 256, what, err)) < 0 ||
        (rc = dt_json_num_or(&f->max_len, j, "max_image_seq_len", 4096, what, err)) < 0 ||
        (rc = dt_json_num_or(&f->shift_terminal, j, "shift_terminal", 0, what, err)) < 0 ||
        (rc = dt_json_int_or(&f->train_steps, j, "num_train_timesteps", 1000, 1, 1000000, what, err)) < 0)
        return rc;
    if (!(f->shift > 0) || f->max_len == f->base_len)
        return dt_err_set(err, DT_EDATA, "%s: 'shift' must be positive and the two sequence lengths different", what);
    return 0;
}

double dt_flow_mu(const dt_flow *f, int64_t image_tokens)
{
    double m = (f->max_shift - f->base_shift) / (f->max_len - f->base_len);
    return (double)image_tokens * m + f->base_shift - m * f->base_len;
}

void dt_flow_shift(const dt_flow *f, double *sigma, int64_t n, int64_t image_tokens)
{
    double e = f->dynamic ? exp(dt_flow_mu(f, image_tokens)) : f->shift;
    for (int64_t i = 0; i < n; i++)
        sigma[i] = e * sigma[i] / (1.0 + (e - 1.0) * sigma[i]);
    if (f->shift_terminal > 0 && n > 0) {
        double scale = (1.0 - sigma[n - 1]) / (1.0 - f->shift_terminal);
        for (int64_t i = 0; i < n; i++)
            sigma[i] = 1.0 - (1.0 - sigma[i]) / scale;
    }
}

static void linspace(double *v, double from, double to, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        v[i] = n == 1 ? from : from + (to - from) * (double)i / (double)(n - 1);
}

void dt_flow_sigmas(const dt_flow *f, double *sigma, int64_t n, int64_t image_tokens)
{
    linspace(sigma, 1.0, 1.0 / (double)n, n);
    dt_flow_shift(f, sigma, n, image_tokens);
    sigma[n] = 0.0;
}

double dt_timestep_density(const dt_timesteps *t, double a)
{
    switch (t->weighting) {
    case DT_W_LOGIT_NORMAL:
        return 1.0 / (1.0 + exp(-(t->logit_mean + t->logit_std * a)));
    case DT_W_MODE: {
        double c = cos(M_PI * a / 2.0);
        return 1.0 - a - t->mode_scale * (c * c - 1.0 + a);
    }
    default:
        return a;
    }
}

int64_t dt_timestep_index(const dt_timesteps *t, uint64_t seed, int64_t step, int64_t slot, int64_t nslot)
{
    dt_rng r = dt_rng_make(seed, DT_RNG_TIMESTEP, (uint32_t)step, (uint32_t)slot);
    double u;
    if (t->weighting == DT_W_LOGIT_NORMAL && !t->uniform) {
        u = dt_timestep_density(t, dt_rng_normal(&r));
    } else {
        u = dt_rng_uniform(&r);
        if (t->uniform)         /* one stratum per sample of the step, so every step covers all noise levels */
            u = ((double)slot + u) / (double)nslot;
        else
            u = dt_timestep_density(t, u);
    }
    int64_t i = (int64_t)(u * (double)t->steps);
    return i < 0 ? 0 : i >= t->steps ? t->steps - 1 : i;
}

double dt_timestep_weight(const dt_timesteps *t, double s)
{
    if (t->weighting == DT_W_SIGMA_SQRT)
        return 1.0 / (s * s);
    if (t->weighting == DT_W_COSMAP)
        return 2.0 / (M_PI * (1.0 - 2.0 * s + 2.0 * s * s));
    return 1.0;
}
