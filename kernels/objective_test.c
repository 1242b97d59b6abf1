/* Cases of objective.c.  Sums go over chunks of 1024 per sample. */
#include <math.h>
#include "tests/checkop.h"

static dt_tensor *flow_noise(dt_graph *g, dt_tensor **in) { return dt_flow_noise(g, in[0], in[1], in[2]); }
static dt_tensor *mse(dt_graph *g, dt_tensor **in) { return dt_mse_loss(g, in[0], in[1], NULL, 0, NULL); }
static dt_tensor *mse_w(dt_graph *g, dt_tensor **in) { return dt_mse_loss(g, in[0], in[1], in[2], 0, NULL); }
static dt_tensor *mse_masked(dt_graph *g, dt_tensor **in) { return dt_mse_loss(g, in[0], in[1], in[2], 3.5, NULL); }
static dt_tensor *l1(dt_graph *g, dt_tensor **in) { return dt_l1_loss(g, in[0], in[1]); }
static dt_tensor *l1_self(dt_graph *g, dt_tensor **in) { return dt_l1_loss(g, in[0], in[0]); }
static dt_tensor *posterior(dt_graph *g, dt_tensor **in) { return dt_posterior_sample(g, in[0], in[1]); }
static dt_tensor *kl(dt_graph *g, dt_tensor **in) { return dt_kl_loss(g, in[0]); }

static dt_tensor *mse_rows(dt_graph *g, dt_tensor **in)
{
    dt_tensor *rows;
    dt_mse_loss(g, in[0], in[1], in[2], 0, &rows);
    return rows;
}

static dt_tensor *sum(dt_graph *g, dt_tensor **in)
{
    return dt_weighted_sum(g, 2,
                           (dt_tensor *[]){ dt_mse_loss(g, in[0], in[1], NULL, 0, NULL), dt_l1_loss(g, in[0], in[1]) },
                           (double[]){ 0.25, -3 });
}

static void sum_ref(const check_case *c, const float *const *in, float *y)
{
    double sum = 0;
    for (int64_t i = 0; i < check_numel(&c->in[0]); i++) {
        double d = (double)in[0][i] - in[1][i];
        sum += 0.25 * d * d - 3 * fabs(d);
    }
    *y = (float)(sum / (double)check_numel(&c->in[0]));
}

static double clamped(float logvar) { return fmin(fmax(logvar, -30), 20); }

static void posterior_ref(const check_case *c, const float *const *in, float *y)
{
    int64_t N = c->in[0].d[0] * c->in[0].d[1], C = c->in[0].d[2] / 2;
    const float *m = in[0], *eps = in[1];
    for (int64_t i = 0; i < N; i++, m += 2 * C)
        for (int64_t k = 0; k < C; k++)
            *y++ = (float)(m[k] + exp(clamped(m[C + k]) / 2) * *eps++);
}

static void kl_ref(const check_case *c, const float *const *in, float *y)
{
    int64_t N = c->in[0].d[0] * c->in[0].d[1], C = c->in[0].d[2] / 2;
    const float *m = in[0];
    double sum = 0;
    for (int64_t i = 0; i < N; i++, m += 2 * C)
        for (int64_t k = 0; k < C; k++)
            sum += (m[k] * m[k] + exp(clamped(m[C + k])) - 1 - clamped(m[C + k])) / 2;
    *y = (float)(sum / (double)(N * C));
}

const check_case objective_cases[] = {
    { "flow_noise 2x3x5",     flow_noise, { CONST_F32(2, 3, 5), CONST_F32(2, 3, 5), RANGE(CONST_F32, 0, 1, 2) },
      .flags = CHECK_NO_GRAD },
    { "flow_noise 3x1100",    flow_noise, { CONST_F32(3, 1100), CONST_F32(3, 1100), RANGE(CONST_F32, 0, 1, 3) },
      .flags = CHECK_NO_GRAD },
    { "mse 2x3x5",            mse,        { ACT(2, 3, 5), CONST_F32(2, 3, 5) }, .k = 30 },
    { "mse weights",          mse_w,      { ACT(2, 3, 5), CONST_F32(2, 3, 5), CONST_F32(2) }, .k = 30 },
    /* |p - t| is in (0.5, 1.5) for the first target, beyond the limit of 3.5 for no element or for all */
    { "mse within limit",     mse_masked, { RANGE(ACT, 0, 0.5, 2, 15), RANGE(CONST_F32, 1, 1.5, 2, 15), CONST_F32(2) },
      .k = 30 },
    { "mse beyond limit",     mse_masked, { RANGE(ACT, 0, 0.5, 2, 15), RANGE(CONST_F32, 5, 6, 2, 15), CONST_F32(2) },
      .k = 30, .flags = CHECK_MASKED | CHECK_INF },
    { "mse 2x1100",           mse,        { ACT(2, 1100), CONST_F32(2, 1100) }, .k = 2200 },
    { "mse rows",             mse_rows,   { CONST(3, 1100), CONST_F32(3, 1100), CONST_F32(3) }, .k = 1100,
      .flags = CHECK_NO_GRAD },
    { "mse large",            mse,        { ACT(1, 4096, 64), CONST_F32(1, 4096, 64) }, .k = 262144,
      .flags = CHECK_LARGE },
    { "l1 2x3x5",             l1,         { RANGE(ACT, 1, 2, 2, 3, 5), RANGE(CONST_F32, -1, 0.5, 2, 3, 5) }, .k = 30 },
    { "l1 of itself",         l1_self,    { ACT(2, 15) }, .k = 30, .flags = CHECK_MASKED },
    { "l1 negative",          l1,         { RANGE(ACT, -2, -1, 2, 1100), RANGE(CONST, 0, 1, 2, 1100) }, .k = 2200 },
    { "posterior 2x3x4",      posterior,  { ACT(2, 3, 4), CONST_F32(2, 3, 2) }, .flags = CHECK_NO_HUGE,
      .reference = posterior_ref },
    { "posterior clamped",    posterior,  { RANGE(ACT, -34, -31, 2, 3, 4), CONST_F32(2, 3, 2) }, .reference = posterior_ref },
    { "posterior, too large", posterior,  { RANGE(ACT, 21, 24, 2, 3, 4), CONST_F32(2, 3, 2) }, .reference = posterior_ref },
    { "kl 2x3x4",             kl,         { ACT(2, 3, 4) }, .k = 12, .flags = CHECK_NO_HUGE, .reference = kl_ref },
    { "kl clamped",           kl,         { RANGE(ACT, -34, -31, 2, 3, 4) }, .k = 12, .reference = kl_ref },
    { "kl, too large",        kl,         { RANGE(ACT, 21, 24, 2, 3, 4) }, .k = 12, .reference = kl_ref },
    { "weighted sum",         sum,        { RANGE(ACT, 1, 2, 2, 3, 5), RANGE(CONST_F32, -1, 0.5, 2, 3, 5) }, .k = 30,
      .reference = sum_ref },
    { 0 }
};
