/* LayerNorm and RMSNorm over the last dim.
 *
 *   xh = (x - m) r    y = xh w + b      m = mean(x), r = 1 / sqrt(mean((x - m)^2) + eps)
 *   RMSNorm: m = 0, no b
 *
 *   x, y [N, C]   w, b [C], may be absent   r, m [N] fp32: kept for the gradient
 *
 * With g = dy w:   dx = r (g - mean(g) - xh mean(g xh))     (RMSNorm: without mean(g))
 *                  dw = sum_N dy xh        db = sum_N dy
 *
 * Ba et al. 2016; Zhang & Sennrich 2019.  A task is a block of whole rows that fits L1, brought
 * to fp32 once. */
#include <math.h>
#include <omp.h>
#include "kernels/opdef.h"

enum { BLOCK = 2048 };          /* elements of a block of rows, unless one row is longer */

typedef struct rows { int64_t N, C, per; } rows;        /* per: rows in a block */

static rows rows_of(const dt_tensor *x)
{
    int64_t C = dt_last_dim(x);
    return (rows){ dt_tensor_numel(x) / C, C, dt_max64(1, BLOCK / C) };
}

/* Scratch: w and b as fp32, then three blocks per thread. */
static int prepare(const dt_node *n, dt_prep *p)
{
    rows s = rows_of(n->in[0]);
    p->workspace = (2 * s.C + (int64_t)p->dev->threads * 3 * s.per * s.C) * (int64_t)sizeof(float);
    return 0;
}

static float *scratch(const dt_run *r, rows s, int which)
{
    return (float *)r->workspace + 2 * s.C + (omp_get_thread_num() * 3 + which) * s.per * s.C;
}

/* An optional [C] input as fp32, at slot 0 or 1 of the scratch; absent: `value` */
static const float *vector(const dt_node *n, const dt_run *r, int i, int slot, int64_t C,
                           float value)
{
    float *v = (float *)r->workspace + slot * C;
    if (n->in[i])
        return dt_row_in(r->in[i], n->in[i]->dtype, 0, C, v);
    for (int64_t c = 0; c < C; c++)
        v[c] = value;
    return v;
}

static dt_dims stat_dims(const dt_tensor *x)
{
    dt_dims d = x->dims;
    if (d.nd == 1)
        return DT_DIMS(1);
    d.nd--;
    return d;
}

/* ---- forward ---- */

static float row_mean(const float *x, int64_t C)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t c = 0; c < C; c++)
        s += x[c];
    return s / (float)C;
}

static float row_square(const float *x, float m, int64_t C)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t c = 0; c < C; c++)
        s += (x[c] - m) * (x[c] - m);
    return s / (float)C;
}

static void norm_run(const dt_node *n, const dt_run *r, bool centre)
{
    rows s = rows_of(n->in[0]);
    dt_dtype t = n->in[0]->dtype;
    float *rstd = r->out[1], *mean = centre ? r->out[2] : NULL, eps = (float)n->attr.f[0];
    const float *w = vector(n, r, 1, 0, s.C, 1.0f), *b = vector(n, r, 2, 1, s.C, 0.0f);
#pragma omp parallel for num_threads(dt_team(r, s.N * s.C)) schedule(static)
    for (int64_t row = 0; row < s.N; row += s.per) {
        int64_t at = row * s.C, nr = dt_min64(s.per, s.N - row);
        const float *x = dt_row_in(r->in[0], t, at, nr * s.C, scratch(r, s, 0));
        float *y = dt_row_out(r->out[0], t, at, scratch(r, s, 1));
        for (int64_t i = 0; i < nr; i++) {
            const float *xi = x + i * s.C;
            float *yi = y + i * s.C;
            float m = centre ? row_mean(xi, s.C) : 0.0f;
            float k = 1.0f / sqrtf(row_square(xi, m, s.C) + eps);
#pragma omp simd
            for (int64_t c = 0; c < s.C; c++)
                yi[c] = (xi[c] - m) * k * w[c] + b[c];
            if (rstd)
                rstd[row + i] = k;
            if (mean)
                mean[row + i] = m;
        }
        dt_row_flush(r->out[0], t, at, nr * s.C, y);
    }
}

static void layernorm_run(const dt_node *n, const dt_run *r) { norm_run(n, r, true); }
static void rmsnorm_run(const dt_node *n, const dt_run *r) { norm_run(n, r, false); }

static const char *layernorm_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0];
    int64_t C = dt_last_dim(x);
    if (!dt_is_float(x) || !dt_is_vector(n->in[1], C) || !dt_is_vector(n->in[2], C))
        return "weight and bias must be [C] with C the last dim of x";
    dt_node_out(n, 0, x->dtype, x->dims);
    dt_node_out(n, 1, DT_F32, stat_dims(x));
    dt_node_out(n, 2, DT_F32, stat_dims(x));
    return NULL;
}

static const char *rmsnorm_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0];
    if (!dt_is_float(x) || !dt_is_vector(n->in[1], dt_last_dim(x)))
        return "weight must be [C] with C the last dim of x";
    dt_node_out(n, 0, x->dtype, x->dims);
    dt_node_out(n, 1, DT_F32, stat_dims(x));
    return NULL;
}

/* ---- gradient of x: in dy, x, r, w or NULL, m (LayerNorm) ---- */

static const char *norm_dx_shape(dt_node *n)
{
    dt_node_out(n, 0, n->in[1]->dtype, n->in[1]->dims);
    return NULL;
}

/* means of g = dy w and of g xh */
static void row_dots(const float *dy, const float *x, const float *w, float m, float k, int64_t C,
                     float *g1, float *g2)
{
    float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (int64_t c = 0; c < C; c++) {
        float g = dy[c] * w[c];
        a += g;
        b += g * (x[c] - m);
    }
    *g1 = a / (float)C;
    *g2 = b * k / (float)C;
}

static void norm_dx_run(const dt_node *n, const dt_run *r)
{
    rows s = rows_of(n->in[1]);
    dt_dtype td = n->in[0]->dtype, tx = n->in[1]->dtype;
    const float *rstd = r->in[2], *mean = r->in[4];
    const float *w = vector(n, r, 3, 0, s.C, 1.0f);
#pragma omp parallel for num_threads(dt_team(r, s.N * s.C)) schedule(static)
    for (int64_t row = 0; row < s.N; row += s.per) {
        int64_t at = row * s.C, nr = dt_min64(s.per, s.N - row);
        const float *dy = dt_row_in(r->in[0], td, at, nr * s.C, scratch(r, s, 0));
        const float *x = dt_row_in(r->in[1], tx, at, nr * s.C, scratch(r, s, 1));
        float *dx = dt_row_out(r->out[0], tx, at, scratch(r, s, 2));
        for (int64_t i = 0; i < nr; i++) {
            const float *xi = x + i * s.C, *dyi = dy + i * s.C;
            float *dxi = dx + i * s.C;
            float k = rstd[row + i], m = mean ? mean[row + i] : 0.0f, g1, g2;
            row_dots(dyi, xi, w, m, k, s.C, &g1, &g2);
            if (!mean)
                g1 = 0.0f;
#pragma omp simd
            for (int64_t c = 0; c < s.C; c++)
                dxi[c] = k * (dyi[c] * w[c] - g1 - (xi[c] - m) * k * g2);
        }
        dt_row_flush(r->out[0], tx, at, nr * s.C, dx);
    }
}

const dt_op dt_op_norm_dx = {
    .name = "norm_dx", .shape = norm_dx_shape, .inplace = 3,
    .cpu = { .prepare = prepare, .run = norm_dx_run },
};

/* ---- gradient of w: in dy, x, r, m or NULL ---- */

enum { COLS = 512, SPLIT_ROWS = 256, SPLITS = 16 };     /* rows are split by N alone: the order of sums is fixed */

static int64_t splits(int64_t N) { return dt_min64(SPLITS, dt_div_up(N, SPLIT_ROWS)); }

static const char *norm_dw_shape(dt_node *n)
{
    dt_node_out(n, 0, DT_F32, DT_DIMS(dt_last_dim(n->in[1])));
    return NULL;
}

static int norm_dw_prepare(const dt_node *n, dt_prep *p)
{
    rows s = rows_of(n->in[1]);
    p->workspace = splits(s.N) * s.C * (int64_t)sizeof(float);
    return 0;
}

static void norm_dw_part(const dt_node *n, const dt_run *r, rows s, int64_t row0, int64_t row1,
                         int64_t col, float *acc)
{
    const float *rstd = r->in[2], *mean = r->in[3];
    float bd[COLS] DT_ALIGNED, bx[COLS] DT_ALIGNED;
    int64_t cols = dt_min64(COLS, s.C - col);
    memset(acc, 0, (size_t)cols * sizeof(*acc));
    for (int64_t row = row0; row < row1; row++) {
        const float *dy = dt_row_in(r->in[0], n->in[0]->dtype, row * s.C + col, cols, bd);
        const float *x = dt_row_in(r->in[1], n->in[1]->dtype, row * s.C + col, cols, bx);
        float k = rstd[row], m = mean ? mean[row] : 0.0f;
#pragma omp simd
        for (int64_t c = 0; c < cols; c++)
            acc[c] += dy[c] * ((x[c] - m) * k);
    }
}

static void norm_dw_run(const dt_node *n, const dt_run *r)
{
    rows s = rows_of(n->in[1]);
    int64_t P = splits(s.N), per = dt_div_up(s.N, P), nc = dt_div_up(s.C, COLS);
    float *ws = r->workspace, *dw = r->out[0];
#pragma omp parallel for num_threads(dt_team(r, s.N * s.C)) schedule(static)
    for (int64_t task = 0; task < P * nc; task++) {
        int64_t p = task / nc, col = task % nc * COLS;
        norm_dw_part(n, r, s, p * per, dt_min64((p + 1) * per, s.N), col, ws + p * s.C + col);
    }
    if (!n->attr.i[DT_ATTR_ACC])
        memset(dw, 0, (size_t)s.C * sizeof(*dw));
    for (int64_t p = 0; p < P; p++)
#pragma omp simd
        for (int64_t c = 0; c < s.C; c++)
            dw[c] += ws[p * s.C + c];
}

const dt_op dt_op_norm_dw = {
    .name = "norm_dw", .shape = norm_dw_shape, .accumulates = true,
    .cpu = { .prepare = norm_dw_prepare, .run = norm_dw_run },
};

/* ---- descriptors ---- */

static void norm_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx,
                      dt_tensor *mean)
{
    if (!dy[0])
        return;
    if (dt_wants(n, 0))
        dx[0] = dt_grad_of(
            g, n->in[0],
            dt_make(g, &dt_op_norm_dx, NULL, DT_IN(dy[0], n->in[0], n->out[1], n->in[1], mean)));
    if (dt_wants(n, 1))
        dx[1] = dt_grad_of(
            g, n->in[1], dt_make(g, &dt_op_norm_dw, NULL, DT_IN(dy[0], n->in[0], n->out[1], mean)));
}

static void layernorm_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    norm_grad(g, n, dy, dx, n->out[2]);
    if (dy[0] && dt_wants(n, 2))
        dx[2] = dt_sum_mid(g, dy[0], NULL, 0, 1, dt_grad_dtype(n->in[2]));
}

static void rmsnorm_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    norm_grad(g, n, dy, dx, NULL);
}

const dt_op dt_op_layernorm = {
    .name = "layernorm", .shape = layernorm_shape, .grad = layernorm_grad, .inplace = 1,
    .optional_out = 2 | 4,
    .cpu = { .prepare = prepare, .run = layernorm_run },
};

const dt_op dt_op_rmsnorm = {
    .name = "rmsnorm", .shape = rmsnorm_shape, .grad = rmsnorm_grad, .inplace = 1,
    .optional_out = 2,
    .cpu = { .prepare = prepare, .run = rmsnorm_run },
};

dt_tensor *dt_layernorm(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b, double eps)
{
    return dt_make(g, &dt_op_layernorm, DT_ATTR(.f = { eps }), DT_IN(x, w, b));
}

dt_tensor *dt_rmsnorm(dt_graph *g, dt_tensor *x, dt_tensor *w, double eps)
{
    return dt_make(g, &dt_op_rmsnorm, DT_ATTR(.f = { eps }), DT_IN(x, w));
}
