/* What training minimises.  Sums go over chunks of DT_CHUNK elements, chunk by chunk in order,
 * in fp64. */
#include <math.h>
#include "kernels/opdef.h"
#include "kernels/vmath.h"

static bool is_fp32(const dt_tensor *x) { return x->dtype == DT_F32; }

/* ---- flow_noise: y = (1 - sigma) x0 + sigma noise.   Lipman et al. 2023; attr.i[0] = dtype ---- */

static const char *flow_noise_shape(dt_node *n)
{
    const dt_tensor *x0 = n->in[0], *noise = n->in[1], *sigma = n->in[2];
    if (!is_fp32(x0) || !is_fp32(noise) || !dt_dims_same(x0->dims, noise->dims))
        return "x0 and noise must be fp32 of one shape";
    if (!is_fp32(sigma) || sigma->dims.nd != 1 || sigma->dims.d[0] != x0->dims.d[0])
        return "sigma must be [B] fp32";
    dt_node_out(n, 0, (dt_dtype)n->attr.i[0], x0->dims);
    return NULL;
}

static void flow_noise_run(const dt_node *n, const dt_run *r)
{
    int64_t B = n->in[0]->dims.d[0], M = dt_tensor_numel(n->in[0]) / B,
            per = dt_div_up(M, DT_CHUNK);
    const float *x0 = r->in[0], *noise = r->in[1], *sigma = r->in[2];
    dt_dtype t = n->out[0]->dtype;
#pragma omp parallel for num_threads(dt_team(r, B * M)) schedule(static)
    for (int64_t task = 0; task < B * per; task++) {
        float tmp[DT_CHUNK] DT_ALIGNED, s = sigma[task / per];
        int64_t at = task / per * M + task % per * DT_CHUNK,
                len = dt_min64(DT_CHUNK, M - task % per * DT_CHUNK);
        float *y = dt_row_out(r->out[0], t, at, tmp);
#pragma omp simd
        for (int64_t i = 0; i < len; i++)
            y[i] = (1.0f - s) * x0[at + i] + s * noise[at + i];
        dt_row_flush(r->out[0], t, at, len, y);
    }
}

const dt_op dt_op_flow_noise = {
    .name = "flow_noise", .shape = flow_noise_shape, .cpu = { .run = flow_noise_run },
};

dt_tensor *dt_flow_noise(dt_graph *g, dt_tensor *x0, dt_tensor *noise, dt_tensor *sigma)
{
    return dt_make(g, &dt_op_flow_noise, DT_ATTR(.i = { dt_graph_dtype(g) }),
                   DT_IN(x0, noise, sigma));
}

/* ---- mse_loss: mean(w 1[|d| <= limit or not finite] d^2), d = p - t; masked elements count in the mean.   attr.f[0] =
 * limit, <= 0: none
 *      l1_loss:  mean |d| ---- */

static const char *loss_shape(dt_node *n)
{
    const dt_tensor *p = n->in[0], *t = n->in[1], *w = n->in[2];
    int64_t B = p->dims.d[0];
    if (!dt_is_float(p) || !dt_is_float(t) || !dt_dims_same(p->dims, t->dims))
        return "prediction and target must be of one shape";
    if (w && (!is_fp32(w) || w->dims.nd != 1 || w->dims.d[0] != B))
        return "weights must be [B] fp32";
    dt_node_out(n, 0, DT_F32, DT_DIMS(1));
    dt_node_out(n, 1, DT_F32, DT_DIMS(B));
    return NULL;
}

/* Workspace: a sum per sample and chunk, fp64. */
static int64_t chunks_per_sample(const dt_tensor *p)
{
    return dt_div_up(dt_tensor_numel(p) / p->dims.d[0], DT_CHUNK);
}

static int loss_prepare(const dt_node *n, dt_prep *p)
{
    p->workspace = n->in[0]->dims.d[0] * chunks_per_sample(n->in[0]) * (int64_t)sizeof(double);
    return 0;
}

/* A NaN and an infinity are no outliers: they have to be seen. */
static inline bool outlies(float d, float limit) { return fabsf(d) > limit && fabsf(d) < INFINITY; }

static float square_sum(const float *p, const float *t, int64_t n, float limit)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        float d = p[i] - t[i];
        sum += outlies(d, limit) ? 0.0f : d * d;
    }
    return sum;
}

static float abs_sum(const float *p, const float *t, int64_t n, float limit)
{
    (void)limit;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += fabsf(p[i] - t[i]);
    return sum;
}

static float limit_of(const dt_node *n)
{
    return n->attr.f[0] > 0 ? (float)n->attr.f[0] : INFINITY;
}

static void loss_run(const dt_node *n, const dt_run *r,
                     float (*chunk)(const float *, const float *, int64_t, float))
{
    const dt_tensor *p = n->in[0];
    int64_t B = p->dims.d[0], M = dt_tensor_numel(p) / B, per = chunks_per_sample(p);
    const float *w = r->in[2];
    double *sums = r->workspace, total = 0;
#pragma omp parallel for num_threads(dt_team(r, B * M)) schedule(static)
    for (int64_t task = 0; task < B * per; task++) {
        float bp[DT_CHUNK] DT_ALIGNED, bt[DT_CHUNK] DT_ALIGNED;
        int64_t at = task / per * M + task % per * DT_CHUNK,
                len = dt_min64(DT_CHUNK, M - task % per * DT_CHUNK);
        sums[task] = chunk(dt_row_in(r->in[0], p->dtype, at, len, bp),
                           dt_row_in(r->in[1], n->in[1]->dtype, at, len, bt), len, limit_of(n));
    }
    for (int64_t b = 0; b < B; b++) {
        double sum = 0;
        for (int64_t k = 0; k < per; k++)
            sum += sums[b * per + k];
        sum *= (w ? w[b] : 1.0) / (double)M;
        if (r->out[1])
            ((float *)r->out[1])[b] = (float)sum;
        total += sum;
    }
    *(float *)r->out[0] = (float)(total / (double)B);
}

static void mse_loss_run(const dt_node *n, const dt_run *r) { loss_run(n, r, square_sum); }
static void l1_loss_run(const dt_node *n, const dt_run *r) { loss_run(n, r, abs_sum); }

/* in p, t, w or NULL, dy [1] */
static const char *loss_bwd_shape(dt_node *n)
{
    dt_node_out(n, 0, n->in[0]->dtype, n->in[0]->dims);
    return NULL;
}

static void square_slope(float *dp, const float *p, const float *t, int64_t n, float k, float limit)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float d = p[i] - t[i];
        dp[i] = outlies(d, limit) ? 0.0f : 2.0f * k * d;
    }
}

static void abs_slope(float *dp, const float *p, const float *t, int64_t n, float k, float limit)
{
    (void)limit;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float d = p[i] - t[i];
        dp[i] = d == 0.0f ? 0.0f : copysignf(k, k * d);
    }
}

static void loss_bwd_run(const dt_node *n, const dt_run *r,
                         void (*chunk)(float *, const float *, const float *, int64_t, float,
                                       float))
{
    const dt_tensor *p = n->in[0];
    int64_t B = p->dims.d[0], M = dt_tensor_numel(p) / B, per = chunks_per_sample(p);
    const float *w = r->in[2];
    double scale = *(const float *)r->in[3] / ((double)B * (double)M);
#pragma omp parallel for num_threads(dt_team(r, B * M)) schedule(static)
    for (int64_t task = 0; task < B * per; task++) {
        float bp[DT_CHUNK] DT_ALIGNED, bt[DT_CHUNK] DT_ALIGNED, bo[DT_CHUNK] DT_ALIGNED;
        int64_t b = task / per, at = b * M + task % per * DT_CHUNK,
                len = dt_min64(DT_CHUNK, M - task % per * DT_CHUNK);
        float *dp = dt_row_out(r->out[0], p->dtype, at, bo);
        chunk(dp, dt_row_in(r->in[0], p->dtype, at, len, bp),
              dt_row_in(r->in[1], n->in[1]->dtype, at, len, bt), len,
              (float)(scale * (w ? w[b] : 1.0)), limit_of(n));
        dt_row_flush(r->out[0], p->dtype, at, len, dp);
    }
}

static void mse_loss_bwd_run(const dt_node *n, const dt_run *r)
{
    loss_bwd_run(n, r, square_slope);
}
static void l1_loss_bwd_run(const dt_node *n, const dt_run *r) { loss_bwd_run(n, r, abs_slope); }

const dt_op dt_op_mse_loss_bwd = {
    .name = "mse_loss_bwd", .shape = loss_bwd_shape, .inplace = 3,
    .cpu = { .run = mse_loss_bwd_run },
};
const dt_op dt_op_l1_loss_bwd = {
    .name = "l1_loss_bwd", .shape = loss_bwd_shape, .inplace = 3, .cpu = { .run = l1_loss_bwd_run },
};

static void loss_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx,
                      const dt_op *op)
{
    if (!dy[0] || !dt_wants(n, 0))
        return;
    dx[0] = dt_grad_of(g, n->in[0], dt_make(g, op, &n->attr, DT_IN(n->in[0], n->in[1], n->in[2], dy[0])));
}

static void mse_loss_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    loss_grad(g, n, dy, dx, &dt_op_mse_loss_bwd);
}

static void l1_loss_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    loss_grad(g, n, dy, dx, &dt_op_l1_loss_bwd);
}

const dt_op dt_op_mse_loss = {
    .name = "mse_loss", .shape = loss_shape, .grad = mse_loss_grad, .optional_out = 2,
    .cpu = { .prepare = loss_prepare, .run = mse_loss_run },
};
const dt_op dt_op_l1_loss = {
    .name = "l1_loss", .shape = loss_shape, .grad = l1_loss_grad, .optional_out = 2,
    .cpu = { .prepare = loss_prepare, .run = l1_loss_run },
};

dt_tensor *dt_mse_loss(dt_graph *g, dt_tensor *p, dt_tensor *t, dt_tensor *w, double limit,
                       dt_tensor **per_sample)
{
    const dt_node *n = dt_apply(g, &dt_op_mse_loss, DT_ATTR(.f = { limit }), DT_IN(p, t, w));
    if (per_sample)
        *per_sample = n->out[1];
    return n->out[0];
}

dt_tensor *dt_l1_loss(dt_graph *g, dt_tensor *p, dt_tensor *t)
{
    return dt_make(g, &dt_op_l1_loss, NULL, DT_IN(p, t));
}

/* ---- diagonal Gaussian.  moments [N, 2C] = mean | logvar; l = clamp(logvar, -30, 20).   Kingma & Welling 2014, app. B
 *
 *   posterior_sample   z = mean + exp(l / 2) eps      dmean = dz    dlogvar = dz eps exp(l / 2) / 2, 0 where clamped
 *   kl_loss            mean over elements of (mean^2 + exp(l) - 1 - l) / 2
 *                      dmean = k mean     dlogvar = k (exp(l) - 1) / 2, 0 where clamped;  k = dy / (N C) ---- */

static bool is_moments(const dt_tensor *m)
{
    return dt_is_float(m) && dt_last_dim(m) % 2 == 0 && dt_last_dim(m) <= 2 * DT_CHUNK;
}

static float clamp_logvar(float l) { return l < -30.0f ? -30.0f : l > 20.0f ? 20.0f : l; }
static float inside(float l) { return l >= -30.0f && l <= 20.0f ? 1.0f : 0.0f; }

static const char *posterior_sample_shape(dt_node *n)
{
    const dt_tensor *m = n->in[0], *eps = n->in[1];
    dt_dims d = m->dims;
    d.d[d.nd - 1] /= 2;
    if (!is_moments(m) || !is_fp32(eps) || !dt_dims_same(eps->dims, d))
        return "moments must be [..., 2C] and eps [..., C] fp32, C at most 1024";
    dt_node_out(n, 0, m->dtype, d);
    return NULL;
}

static void posterior_sample_run(const dt_node *n, const dt_run *r)
{
    int64_t C = dt_last_dim(n->out[0]), N = dt_tensor_numel(n->out[0]) / C;
    dt_dtype t = n->in[0]->dtype;
#pragma omp parallel for num_threads(dt_team(r, N * C)) schedule(static)
    for (int64_t i = 0; i < N; i++) {
        float bm[2 * DT_CHUNK] DT_ALIGNED, bz[DT_CHUNK] DT_ALIGNED;
        const float *m = dt_row_in(r->in[0], t, i * 2 * C, 2 * C, bm),
                    *eps = (const float *)r->in[1] + i * C;
        float *z = dt_row_out(r->out[0], t, i * C, bz);
#pragma omp simd
        for (int64_t c = 0; c < C; c++)
            z[c] = m[c] + dt_expf(0.5f * clamp_logvar(m[C + c])) * eps[c];
        dt_row_flush(r->out[0], t, i * C, C, z);
    }
}

/* in dz, moments, eps */
static const char *posterior_bwd_shape(dt_node *n)
{
    dt_node_out(n, 0, n->in[1]->dtype, n->in[1]->dims);
    return NULL;
}

static void posterior_sample_bwd_run(const dt_node *n, const dt_run *r)
{
    int64_t C = dt_last_dim(n->in[0]), N = dt_tensor_numel(n->in[0]) / C;
    dt_dtype t = n->in[1]->dtype;
#pragma omp parallel for num_threads(dt_team(r, N * C)) schedule(static)
    for (int64_t i = 0; i < N; i++) {
        float bm[2 * DT_CHUNK] DT_ALIGNED, bz[DT_CHUNK] DT_ALIGNED, bo[2 * DT_CHUNK] DT_ALIGNED;
        const float *dz = dt_row_in(r->in[0], n->in[0]->dtype, i * C, C, bz);
        const float *m = dt_row_in(r->in[1], t, i * 2 * C, 2 * C, bm),
                    *eps = (const float *)r->in[2] + i * C;
        float *dm = dt_row_out(r->out[0], t, i * 2 * C, bo);
#pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            float l = m[C + c];
            dm[c] = dz[c];
            dm[C + c] = inside(l) * 0.5f * dz[c] * eps[c] * dt_expf(0.5f * clamp_logvar(l));
        }
        dt_row_flush(r->out[0], t, i * 2 * C, 2 * C, dm);
    }
}

const dt_op dt_op_posterior_sample_bwd = {
    .name = "posterior_sample_bwd", .shape = posterior_bwd_shape, .inplace = 2,
    .cpu = { .run = posterior_sample_bwd_run },
};

static void posterior_sample_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dz,
                                  dt_tensor **dx)
{
    if (dt_wants(n, 0))
        dx[0] = dt_make(g, &dt_op_posterior_sample_bwd, NULL, DT_IN(dz[0], n->in[0], n->in[1]));
}

const dt_op dt_op_posterior_sample = {
    .name = "posterior_sample", .shape = posterior_sample_shape, .grad = posterior_sample_grad,
    .cpu = { .run = posterior_sample_run },
};

dt_tensor *dt_posterior_sample(dt_graph *g, dt_tensor *moments, dt_tensor *eps)
{
    return dt_make(g, &dt_op_posterior_sample, NULL, DT_IN(moments, eps));
}

static const char *kl_loss_shape(dt_node *n)
{
    if (!is_moments(n->in[0]))
        return "moments must be [..., 2C], C at most 1024";
    dt_node_out(n, 0, DT_F32, DT_DIMS(1));
    return NULL;
}

/* Workspace: a sum per row of moments, fp64. */
static int kl_loss_prepare(const dt_node *n, dt_prep *p)
{
    p->workspace = dt_tensor_numel(n->in[0]) / dt_last_dim(n->in[0]) * (int64_t)sizeof(double);
    return 0;
}

static void kl_loss_run(const dt_node *n, const dt_run *r)
{
    int64_t C = dt_last_dim(n->in[0]) / 2, N = dt_tensor_numel(n->in[0]) / (2 * C);
    double *sums = r->workspace, total = 0;
#pragma omp parallel for num_threads(dt_team(r, N * C)) schedule(static)
    for (int64_t i = 0; i < N; i++) {
        float bm[2 * DT_CHUNK] DT_ALIGNED, sum = 0;
        const float *m = dt_row_in(r->in[0], n->in[0]->dtype, i * 2 * C, 2 * C, bm);
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) {
            float l = clamp_logvar(m[C + c]);
            sum += m[c] * m[c] + dt_expf(l) - 1.0f - l;
        }
        sums[i] = sum;
    }
    for (int64_t i = 0; i < N; i++)
        total += sums[i];
    *(float *)r->out[0] = (float)(0.5 * total / ((double)N * (double)C));
}

/* in moments, dy [1] */
static void kl_loss_bwd_run(const dt_node *n, const dt_run *r)
{
    int64_t C = dt_last_dim(n->in[0]) / 2, N = dt_tensor_numel(n->in[0]) / (2 * C);
    dt_dtype t = n->in[0]->dtype;
    float k = (float)(*(const float *)r->in[1] / ((double)N * (double)C));
#pragma omp parallel for num_threads(dt_team(r, N * C)) schedule(static)
    for (int64_t i = 0; i < N; i++) {
        float bm[2 * DT_CHUNK] DT_ALIGNED, bo[2 * DT_CHUNK] DT_ALIGNED;
        const float *m = dt_row_in(r->in[0], t, i * 2 * C, 2 * C, bm);
        float *dm = dt_row_out(r->out[0], t, i * 2 * C, bo);
#pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            float l = m[C + c];
            dm[c] = k * m[c];
            dm[C + c] = inside(l) * 0.5f * k * (dt_expf(clamp_logvar(l)) - 1.0f);
        }
        dt_row_flush(r->out[0], t, i * 2 * C, 2 * C, dm);
    }
}

const dt_op dt_op_kl_loss_bwd = {
    .name = "kl_loss_bwd", .shape = loss_bwd_shape, .inplace = 1, .cpu = { .run = kl_loss_bwd_run },
};

static void kl_loss_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dx[0] = dt_make(g, &dt_op_kl_loss_bwd, NULL, DT_IN(n->in[0], dy[0]));
}

const dt_op dt_op_kl_loss = {
    .name = "kl_loss", .shape = kl_loss_shape, .grad = kl_loss_grad,
    .cpu = { .prepare = kl_loss_prepare, .run = kl_loss_run },
};

dt_tensor *dt_kl_loss(dt_graph *g, dt_tensor *moments)
{
    return dt_make(g, &dt_op_kl_loss, NULL, DT_IN(moments));
}

/* ---- weighted_sum of fp32 scalars; attr.f = weights ---- */

static const char *weighted_sum_shape(dt_node *n)
{
    for (int i = 0; i < n->nin; i++)
        if (!is_fp32(n->in[i]) || dt_tensor_numel(n->in[i]) != 1)
            return "takes fp32 scalars [1]";
    dt_node_out(n, 0, DT_F32, DT_DIMS(1));
    return NULL;
}

static void weighted_sum_run(const dt_node *n, const dt_run *r)
{
    double sum = 0;
    for (int i = 0; i < n->nin; i++)
        sum += n->attr.f[i] * *(const float *)r->in[i];
    *(float *)r->out[0] = (float)sum;
}

static void weighted_sum_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    for (int i = 0; i < n->nin; i++)
        if (dt_wants(n, i))
            dx[i] = dt_affine(g, dy[0], n->attr.f[i], 0);
}

const dt_op dt_op_weighted_sum = {
    .name = "weighted_sum", .shape = weighted_sum_shape, .grad = weighted_sum_grad,
    .cpu = { .run = weighted_sum_run },
};

dt_tensor *dt_weighted_sum(dt_graph *g, int n, dt_tensor *const *x, const double *w)
{
    dt_attr a = { .f = { 0 } };
    if (n < 1 || n > 4) {
        dt_graph_fail(g, "weighted sum of %d numbers (1 to 4)", n);
        n = 1;
    }
    for (int i = 0; i < n; i++)
        a.f[i] = w[i];
    return dt_make(g, &dt_op_weighted_sum, &a, n, x);
}
