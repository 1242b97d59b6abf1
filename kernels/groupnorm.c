/* GroupNorm, channels last.   Wu & He 2018
 *
 *   xh = (x - m) r    y = xh w + b      m, r: mean and 1 / sqrt(var + eps) per sample and group
 *
 *   and, where SiLU follows, y sigmoid(y) at once
 *
 *   x, y [B, P, C]   P positions   G groups of C/G neighbouring channels   w, b [C], may be absent   m, r [B, G] fp32
 *
 * With g = dy w:   dx = r (g - mean(g) - xh mean(g xh)), means over the P C/G elements of the group
 *                  dw = sum_{B,P} dy xh        db = sum_{B,P} dy
 *
 * A sample is cut into blocks of positions by P and C alone.  Mean and squared deviation of each
 * block are combined in order of the blocks (Chan et al. 1979), so the result depends on neither
 * threads nor cancellation. */
#include <math.h>
#include <omp.h>
#include "kernels/opdef.h"
#include "kernels/vmath.h"

enum { BLOCK = 8192 };          /* elements of a block, unless one position is longer */

typedef struct gshape { int64_t B, P, C, G, per, nblock; } gshape;

static gshape shape_of(const dt_tensor *x, int64_t groups)
{
    int64_t C = dt_last_dim(x), B = x->dims.d[0], P = dt_tensor_numel(x) / (B * C),
            per = dt_max64(1, BLOCK / C);
    return (gshape){ B, P, C, groups, per, dt_div_up(P, per) };
}

/* Workspace: per thread two blocks of scratch and two rows of C; then two numbers per sample,
 * block and channel (dx, dw) or group (forward); then two per sample and channel. */
static int64_t scratch_floats(gshape s) { return 2 * (s.per + 1) * s.C; }

static int prepare(const dt_node *n, dt_prep *p, const dt_tensor *x)
{
    gshape s = shape_of(x, n->attr.i[0]);
    p->workspace = (p->dev->threads * scratch_floats(s) + 2 * s.B * (s.nblock + 1) * s.C) *
                   (int64_t)sizeof(float);
    return 0;
}

static float *block_sums(const dt_run *r, gshape s)
{
    return (float *)r->workspace + r->dev->threads * scratch_floats(s);
}
static float *sample_sums(const dt_run *r, gshape s)
{
    return block_sums(r, s) + 2 * s.B * s.nblock * s.C;
}
static float *scratch(const dt_run *r, gshape s, int which)
{
    return (float *)r->workspace + omp_get_thread_num() * scratch_floats(s) + which * s.per * s.C;
}

/* Two rows [C] of this thread; a number per group repeated for its channels, so that inner loops
 * run over whole rows. */
static float *channel_row(const dt_run *r, gshape s, int which)
{
    return scratch(r, s, 0) + (2 * s.per + which) * s.C;
}

static void spread(float *row, const float *groups, int64_t stride, gshape s)
{
    int64_t cg = s.C / s.G;
    for (int64_t g = 0; g < s.G; g++)
        for (int64_t c = 0; c < cg; c++)
            row[g * cg + c] = groups[g * stride];
}

/* ---- forward ---- */

static const char *groupnorm_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0];
    int64_t C = dt_last_dim(x), G = n->attr.i[0];
    if (!dt_is_float(x) || x->dims.nd < 2 || G < 1 || C % G)
        return "x must be [B, ..., C] with C a multiple of the groups";
    if (!dt_is_vector(n->in[1], C) || !dt_is_vector(n->in[2], C))
        return "weight and bias must be [C] with C the last dim of x";
    dt_node_out(n, 0, x->dtype, x->dims);
    dt_node_out(n, 1, DT_F32, DT_DIMS(x->dims.d[0], G));
    dt_node_out(n, 2, DT_F32, DT_DIMS(x->dims.d[0], G));
    return NULL;
}

/* out[g * 2] = k sum of row over the channels of group g */
static void gather_groups(float *out, const float *row, float k, gshape s)
{
    int64_t cg = s.C / s.G;
    for (int64_t g = 0; g < s.G; g++) {
        float sum = 0;
        for (int64_t c = 0; c < cg; c++)
            sum += row[g * cg + c];
        out[2 * g] = k * sum;
    }
}

/* mean and sum of squared deviations of each group of a block [np, C] -> out [G][2]; acc, mean:
 * rows of C */
static void block_moments(const float *x, int64_t np, gshape s, float *out, float *acc, float *mean)
{
    memset(acc, 0, (size_t)s.C * sizeof(*acc));
    for (int64_t p = 0; p < np; p++)
#pragma omp simd
        for (int64_t c = 0; c < s.C; c++)
            acc[c] += x[p * s.C + c];
    gather_groups(out, acc, 1.0f / (float)(np * (s.C / s.G)), s);
    spread(mean, out, 2, s);
    memset(acc, 0, (size_t)s.C * sizeof(*acc));
    for (int64_t p = 0; p < np; p++)
#pragma omp simd
        for (int64_t c = 0; c < s.C; c++) {
            float d = x[p * s.C + c] - mean[c];
            acc[c] += d * d;
        }
    gather_groups(out + 1, acc, 1.0f, s);
}

static void statistics(const dt_node *n, const dt_run *r, gshape s, float *mean, float *rstd)
{
    dt_dtype t = n->in[0]->dtype;
    float *bs = block_sums(r, s);
#pragma omp parallel for num_threads(dt_team(r, s.B * s.P * s.C)) schedule(static)
    for (int64_t task = 0; task < s.B * s.nblock; task++) {
        int64_t b = task / s.nblock, p0 = task % s.nblock * s.per, np = dt_min64(s.per, s.P - p0);
        const float *x = dt_row_in(r->in[0], t, (b * s.P + p0) * s.C, np * s.C, scratch(r, s, 0));
        block_moments(x, np, s, bs + task * 2 * s.G, channel_row(r, s, 0), channel_row(r, s, 1));
    }
    for (int64_t bg = 0; bg < s.B * s.G; bg++) {
        double m = 0, dev = 0, count = 0;
        for (int64_t k = 0; k < s.nblock; k++) {
            const float *v = bs + ((bg / s.G * s.nblock + k) * s.G + bg % s.G) * 2;
            double nk = (double)(dt_min64(s.per, s.P - k * s.per) * (s.C / s.G)), d = v[0] - m;
            count += nk;
            m += d * nk / count;
            dev += v[1] + d * d * nk * (count - nk) / count;
        }
        mean[bg] = (float)m;
        rstd[bg] = (float)(1.0 / sqrt(dev / count + n->attr.f[0]));
    }
}

/* y = x a + h with per-sample channel factors a = r w, h = b - m r w */
static void factors(const dt_node *n, const dt_run *r, gshape s, const float *mean,
                    const float *rstd, float *ah)
{
    int64_t cg = s.C / s.G;
    for (int64_t b = 0; b < s.B; b++) {
        float *a = ah + b * 2 * s.C, *h = a + s.C;
        const float *w = n->in[1] ? dt_row_in(r->in[1], n->in[1]->dtype, 0, s.C, a) : NULL;
        const float *bias = n->in[2] ? dt_row_in(r->in[2], n->in[2]->dtype, 0, s.C, h) : NULL;
        for (int64_t c = 0; c < s.C; c++) {
            a[c] = rstd[b * s.G + c / cg] * (w ? w[c] : 1.0f);
            h[c] = (bias ? bias[c] : 0.0f) - mean[b * s.G + c / cg] * a[c];
        }
    }
}

static void groupnorm_run(const dt_node *n, const dt_run *r)
{
    gshape s = shape_of(n->in[0], n->attr.i[0]);
    dt_dtype t = n->in[0]->dtype;
    bool silu = n->attr.i[DT_ATTR_EPI] == DT_EPI_SILU;
    float *mean = r->out[1], *rstd = r->out[2], *ah = sample_sums(r, s);
    statistics(n, r, s, mean, rstd);
    factors(n, r, s, mean, rstd, ah);
#pragma omp parallel for num_threads(dt_team(r, s.B * s.P * s.C)) schedule(static)
    for (int64_t task = 0; task < s.B * s.nblock; task++) {
        int64_t b = task / s.nblock, p0 = task % s.nblock * s.per, np = dt_min64(s.per, s.P - p0),
                at = (b * s.P + p0) * s.C;
        const float *x = dt_row_in(r->in[0], t, at, np * s.C, scratch(r, s, 0));
        const float *a = ah + b * 2 * s.C, *h = a + s.C;
        float *y = dt_row_out(r->out[0], t, at, scratch(r, s, 1));
        for (int64_t p = 0; p < np; p++)
#pragma omp simd
            for (int64_t c = 0; c < s.C; c++)
                y[p * s.C + c] = x[p * s.C + c] * a[c] + h[c];
        if (silu)
#pragma omp simd
            for (int64_t i = 0; i < np * s.C; i++)
                y[i] *= dt_sigmoidf(y[i]);
        dt_row_flush(r->out[0], t, at, np * s.C, y);
    }
}

static int groupnorm_prepare(const dt_node *n, dt_prep *p) { return prepare(n, p, n->in[0]); }

/* ---- gradients: in dy, x, m, r, w or NULL ---- */

/* Per sample and channel: sum dy and sum dy xh over positions -> sample_sums [B][2][C] */
static void channel_sums(const dt_node *n, const dt_run *r, gshape s)
{
    const float *mean = r->in[2], *rstd = r->in[3];
    float *bs = block_sums(r, s), *ss = sample_sums(r, s);
#pragma omp parallel for num_threads(dt_team(r, s.B * s.P * s.C)) schedule(static)
    for (int64_t task = 0; task < s.B * s.nblock; task++) {
        int64_t b = task / s.nblock, p0 = task % s.nblock * s.per, np = dt_min64(s.per, s.P - p0),
                at = (b * s.P + p0) * s.C;
        const float *dy = dt_row_in(r->in[0], n->in[0]->dtype, at, np * s.C, scratch(r, s, 0));
        const float *x = dt_row_in(r->in[1], n->in[1]->dtype, at, np * s.C, scratch(r, s, 1));
        float *s1 = bs + task * 2 * s.C, *s2 = s1 + s.C;
        memset(s1, 0, 2 * (size_t)s.C * sizeof(*s1));
        float *m = channel_row(r, s, 0), *k = channel_row(r, s, 1);
        spread(m, mean + b * s.G, 1, s);
        spread(k, rstd + b * s.G, 1, s);
        for (int64_t p = 0; p < np; p++)
#pragma omp simd
            for (int64_t c = 0; c < s.C; c++) {
                s1[c] += dy[p * s.C + c];
                s2[c] += dy[p * s.C + c] * ((x[p * s.C + c] - m[c]) * k[c]);
            }
    }
    memset(ss, 0, 2 * (size_t)(s.B * s.C) * sizeof(*ss));
    for (int64_t task = 0; task < s.B * s.nblock; task++) {
        float *to = ss + task / s.nblock * 2 * s.C;
#pragma omp simd
        for (int64_t c = 0; c < 2 * s.C; c++)
            to[c] += bs[task * 2 * s.C + c];
    }
}

static const char *groupnorm_dx_shape(dt_node *n)
{
    dt_node_out(n, 0, n->in[1]->dtype, n->in[1]->dims);
    return NULL;
}

static int grad_prepare(const dt_node *n, dt_prep *p) { return prepare(n, p, n->in[1]); }

/* dx = dy a + x k + h: a = r w per channel, k = -r^2 mean(g xh), h = -r mean(g) - m k per group;
 * into [B][3][C] */
static void dx_factors(const dt_node *n, const dt_run *r, gshape s, float *out)
{
    const float *mean = r->in[2], *rstd = r->in[3], *ss = sample_sums(r, s);
    float *w = scratch(r, s, 0);
    int64_t cg = s.C / s.G;
    const float *wv = n->in[4] ? dt_row_in(r->in[4], n->in[4]->dtype, 0, s.C, w) : NULL;
    for (int64_t bg = 0; bg < s.B * s.G; bg++) {
        int64_t b = bg / s.G, c0 = bg % s.G * cg;
        double g1 = 0, g2 = 0, count = (double)(s.P * cg);
        for (int64_t c = c0; c < c0 + cg; c++) {
            double wc = wv ? wv[c] : 1.0f;
            g1 += wc * ss[b * 2 * s.C + c];
            g2 += wc * ss[b * 2 * s.C + s.C + c];
        }
        float rs = rstd[bg], k = (float)(-rs * rs * g2 / count),
              h = (float)(-rs * g1 / count) - mean[bg] * k;
        for (int64_t c = c0; c < c0 + cg; c++) {
            out[(b * 3 + 0) * s.C + c] = rs * (wv ? wv[c] : 1.0f);
            out[(b * 3 + 1) * s.C + c] = k;
            out[(b * 3 + 2) * s.C + c] = h;
        }
    }
}

static void groupnorm_dx_run(const dt_node *n, const dt_run *r)
{
    gshape s = shape_of(n->in[1], n->attr.i[0]);
    channel_sums(n, r, s);
    float *f = (float *)r->workspace + r->dev->threads * scratch_floats(s) +
               2 * s.B * (s.nblock + 1) * s.C;
    dx_factors(n, r, s, f);
    dt_dtype t = n->out[0]->dtype;
#pragma omp parallel for num_threads(dt_team(r, s.B * s.P * s.C)) schedule(static)
    for (int64_t task = 0; task < s.B * s.nblock; task++) {
        int64_t b = task / s.nblock, p0 = task % s.nblock * s.per, np = dt_min64(s.per, s.P - p0),
                at = (b * s.P + p0) * s.C;
        const float *dy = dt_row_in(r->in[0], n->in[0]->dtype, at, np * s.C, scratch(r, s, 0));
        const float *x = dt_row_in(r->in[1], n->in[1]->dtype, at, np * s.C, scratch(r, s, 1));
        const float *a = f + b * 3 * s.C, *k = a + s.C, *h = k + s.C;
        float *dx = dt_row_out(r->out[0], t, at, scratch(r, s, 0));
        for (int64_t p = 0; p < np; p++)
#pragma omp simd
            for (int64_t c = 0; c < s.C; c++)
                dx[p * s.C + c] = dy[p * s.C + c] * a[c] + x[p * s.C + c] * k[c] + h[c];
        dt_row_flush(r->out[0], t, at, np * s.C, dx);
    }
}

static int groupnorm_dx_prepare(const dt_node *n, dt_prep *p)
{
    gshape s = shape_of(n->in[1], n->attr.i[0]);
    int rc = grad_prepare(n, p);
    p->workspace += 3 * s.B * s.C * (int64_t)sizeof(float);
    return rc;
}

const dt_op dt_op_groupnorm_dx = {
    .name = "groupnorm_dx", .shape = groupnorm_dx_shape, .inplace = 3,
    .cpu = { .prepare = groupnorm_dx_prepare, .run = groupnorm_dx_run },
};

static const char *groupnorm_dw_shape(dt_node *n)
{
    dt_node_out(n, 0, DT_F32, DT_DIMS(dt_last_dim(n->in[1])));
    return NULL;
}

static void groupnorm_dw_run(const dt_node *n, const dt_run *r)
{
    gshape s = shape_of(n->in[1], n->attr.i[0]);
    channel_sums(n, r, s);
    float *dw = r->out[0];
    if (!n->attr.i[DT_ATTR_ACC])
        memset(dw, 0, (size_t)s.C * sizeof(*dw));
    for (int64_t b = 0; b < s.B; b++)
#pragma omp simd
        for (int64_t c = 0; c < s.C; c++)
            dw[c] += sample_sums(r, s)[(b * 2 + 1) * s.C + c];
}

const dt_op dt_op_groupnorm_dw = {
    .name = "groupnorm_dw", .shape = groupnorm_dw_shape, .accumulates = true,
    .cpu = { .prepare = grad_prepare, .run = groupnorm_dw_run },
};

static void groupnorm_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_tensor *x = n->in[0], *m = n->out[1], *r = n->out[2];
    if (!dy[0])
        return;
    if (dt_wants(n, 0))
        dx[0] = dt_grad_of(
            g, x, dt_make(g, &dt_op_groupnorm_dx, &n->attr, DT_IN(dy[0], x, m, r, n->in[1])));
    if (dt_wants(n, 1))
        dx[1] = dt_grad_of(g, n->in[1],
                           dt_make(g, &dt_op_groupnorm_dw, &n->attr, DT_IN(dy[0], x, m, r)));
    if (dt_wants(n, 2))
        dx[2] = dt_sum_mid(g, dy[0], NULL, 0, 1, dt_grad_dtype(n->in[2]));
}

const dt_op dt_op_groupnorm = {
    .name = "groupnorm", .shape = groupnorm_shape, .grad = groupnorm_grad, .inplace = 1,
    .epilogues = 1 << DT_EPI_SILU,
    .cpu = { .prepare = groupnorm_prepare, .run = groupnorm_run },
};

dt_tensor *dt_groupnorm(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b, int groups,
                        double eps)
{
    return dt_make(g, &dt_op_groupnorm, DT_ATTR(.i = { groups }, .f = { eps }), DT_IN(x, w, b));
}
