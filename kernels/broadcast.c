/* Rows repeated over other dims, and the sums that are their gradients.
 *
 *   modulate    y = x (1 + scale) + shift         dx = dy (1 + scale)   dscale = sum_S dy x   dshift = sum_S dy
 *   gated_add   z = x + gate y                    dx = dz   dy = gate dz   dgate = sum_S dz y
 *   add_rows    z = x + y, y repeated             dx = dz   dy = sum dz over the repeats
 *   sum_mid     out = sum a b over middle dims    (b absent: sum a)
 *
 *   x, y, z [B, ..., C], S = the product of "...";  shift, scale, gate [B, C]       Peebles & Xie 2023, fig. 3
 *
 * Every operand is seen as [G, R, K]: G groups of R rows of K elements, with one small row of K
 * per group.  A task is (group, block of rows, chunk of the row), so that the small row is
 * converted once per task and stays in L1. */
#include "kernels/opdef.h"

enum { ROWS = 32, COLS = 512 };         /* a task's block */

typedef struct grk { int64_t G, R, K; } grk;
typedef struct block { int64_t g, row, rows, col, cols; } block;

static int64_t block_count(grk s) { return s.G * dt_div_up(s.R, ROWS) * dt_div_up(s.K, COLS); }

static block block_at(grk s, int64_t task)
{
    int64_t nc = dt_div_up(s.K, COLS), nr = dt_div_up(s.R, ROWS);
    block b = { .g = task / (nc * nr), .row = task / nc % nr * ROWS, .col = task % nc * COLS };
    b.rows = dt_min64(ROWS, s.R - b.row);
    b.cols = dt_min64(COLS, s.K - b.col);
    return b;
}

static int64_t block_offset(grk s, const block *b, int64_t i)
{
    return (b->g * s.R + b->row + i) * s.K + b->col;
}

/* x [B, ..., C] */
static grk grk_of_batch(const dt_tensor *x)
{
    int nd = x->dims.nd;
    return (grk){ x->dims.d[0], dt_dims_span(x->dims, 1, nd - 1), x->dims.d[nd - 1] };
}

static bool is_per_sample(const dt_tensor *v, const dt_tensor *x)
{
    return !v || (v->dims.nd == 2 && x->dims.nd >= 2 && v->dims.d[0] == x->dims.d[0] &&
                  v->dims.d[1] == dt_last_dim(x) && dt_is_float(v));
}

/* ---- sum_mid ---- */

/* out [front ..., back ...] = sum over the dims between.  attr.i: 0 = dims kept in front, 1 =
 * kept at the back, 2 = dtype. R rows are cut into SPLITS parts by R alone, so that the order of
 * additions does not depend on the threads. */
enum { SUM_RUN = 64, SPLIT_ROWS = 256, SPLITS = 16 };

static grk sum_mid_grk(const dt_node *n)
{
    const dt_dims *d = &n->in[0]->dims;
    int f = (int)n->attr.i[0], b = d->nd - (int)n->attr.i[1];
    return (grk){ dt_dims_span(*d, 0, f), dt_dims_span(*d, f, b), dt_dims_span(*d, b, d->nd) };
}

static int64_t sum_splits(int64_t R) { return dt_min64(SPLITS, dt_div_up(R, SPLIT_ROWS)); }

static const char *sum_mid_shape(dt_node *n)
{
    const dt_tensor *a = n->in[0], *b = n->in[1];
    int f = (int)n->attr.i[0], k = (int)n->attr.i[1];
    if (f + k > a->dims.nd || (b && !dt_dims_same(a->dims, b->dims)))
        return "factors must have one shape that covers the dims kept";
    dt_dims d = { .nd = f + k };
    for (int i = 0; i < f; i++)
        d.d[i] = a->dims.d[i];
    for (int i = 0; i < k; i++)
        d.d[f + i] = a->dims.d[a->dims.nd - k + i];
    dt_node_out(n, 0, (dt_dtype)n->attr.i[2], d);
    return NULL;
}

static int sum_mid_prepare(const dt_node *n, dt_prep *p)
{
    grk s = sum_mid_grk(n);
    p->workspace = s.G * sum_splits(s.R) * s.K * (int64_t)sizeof(float);
    return 0;
}

/* acc = sum over the rows of a block of a b, in runs, so that rounding errors grow with the root of R */
static void sum_rows(const dt_node *n, const dt_run *r, grk s, block b, float *acc)
{
    const dt_tensor *tb = n->in[1];
    float part[COLS] DT_ALIGNED, ba[COLS] DT_ALIGNED, bb[COLS] DT_ALIGNED;
    memset(acc, 0, (size_t)b.cols * sizeof(*acc));
    for (int64_t i0 = 0; i0 < b.rows; i0 += SUM_RUN) {
        memset(part, 0, (size_t)b.cols * sizeof(*part));
        for (int64_t i = i0; i < dt_min64(i0 + SUM_RUN, b.rows); i++) {
            int64_t at = block_offset(s, &b, i);
            const float *x = dt_row_in(r->in[0], n->in[0]->dtype, at, b.cols, ba);
            if (!tb) {
#pragma omp simd
                for (int64_t c = 0; c < b.cols; c++)
                    part[c] += x[c];
                continue;
            }
            const float *y = dt_row_in(r->in[1], tb->dtype, at, b.cols, bb);
#pragma omp simd
            for (int64_t c = 0; c < b.cols; c++)
                part[c] += x[c] * y[c];
        }
#pragma omp simd
        for (int64_t c = 0; c < b.cols; c++)
            acc[c] += part[c];
    }
}

static void sum_mid_run(const dt_node *n, const dt_run *r)
{
    grk s = sum_mid_grk(n);
    int64_t P = sum_splits(s.R), per = dt_div_up(s.R, P), nc = dt_div_up(s.K, COLS);
    float *ws = r->workspace;
    int team = dt_team(r, s.G * s.R * s.K);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t task = 0; task < s.G * P * nc; task++) {
        int64_t gp = task / nc, col = task % nc * COLS, row = gp % P * per;
        block b = { gp / P, row, dt_max64(0, dt_min64(per, s.R - row)), col,
                    dt_min64(COLS, s.K - col) };
        sum_rows(n, r, s, b, ws + gp * s.K + col);
    }
    dt_dtype t = n->out[0]->dtype;
    bool add = n->attr.i[DT_ATTR_ACC] != 0;
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t task = 0; task < s.G * nc; task++) {
        int64_t g = task / nc, col = task % nc * COLS, cols = dt_min64(COLS, s.K - col),
                at = g * s.K + col;
        float acc[COLS] DT_ALIGNED;
        if (add)
            memcpy(acc, (float *)r->out[0] + at, (size_t)cols * sizeof(*acc));
        else
            memset(acc, 0, (size_t)cols * sizeof(*acc));
        for (int64_t p = 0; p < P; p++) {
            const float *w = ws + (g * P + p) * s.K + col;
#pragma omp simd
            for (int64_t c = 0; c < cols; c++)
                acc[c] += w[c];
        }
        dt_convert((char *)r->out[0] + at * (int64_t)dt_dtype_size(t), t, acc, DT_F32, cols);
    }
}

const dt_op dt_op_sum_mid = {
    .name = "sum_mid", .shape = sum_mid_shape, .accumulates = true,
    .cpu = { .prepare = sum_mid_prepare, .run = sum_mid_run },
};

dt_tensor *dt_sum_mid(dt_graph *g, dt_tensor *a, dt_tensor *b, int keep_front, int keep_back,
                      dt_dtype t)
{
    return dt_make(g, &dt_op_sum_mid, DT_ATTR(.i = { keep_front, keep_back, t }), DT_IN(a, b));
}

/* ---- add_rows ---- */

static const char *add_rows_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0], *y = n->in[1];
    int off = x->dims.nd - y->dims.nd;
    if (!dt_is_float(x) || !dt_is_float(y) || off < 0)
        return "the repeated rows must be the trailing dims of x";
    for (int i = 0; i < y->dims.nd; i++)
        if (y->dims.d[i] != x->dims.d[off + i])
            return "the repeated rows must be the trailing dims of x";
    dt_node_out(n, 0, x->dtype, x->dims);
    return NULL;
}

static void add_rows_run(const dt_node *n, const dt_run *r)
{
    dt_dtype tx = n->in[0]->dtype, tr = n->in[1]->dtype;
    int64_t K = dt_tensor_numel(n->in[1]);
    grk s = { 1, dt_tensor_numel(n->in[0]) / K, K };
#pragma omp parallel for num_threads(dt_team(r, s.R * K)) schedule(static)
    for (int64_t task = 0; task < block_count(s); task++) {
        block b = block_at(s, task);
        float br[COLS] DT_ALIGNED, bx[COLS] DT_ALIGNED, bo[COLS] DT_ALIGNED;
        const float *row = dt_row_in(r->in[1], tr, b.col, b.cols, br);
        for (int64_t i = 0; i < b.rows; i++) {
            int64_t at = block_offset(s, &b, i);
            const float *x = dt_row_in(r->in[0], tx, at, b.cols, bx);
            float *o = dt_row_out(r->out[0], tx, at, bo);
#pragma omp simd
            for (int64_t c = 0; c < b.cols; c++)
                o[c] = x[c] + row[c];
            dt_row_flush(r->out[0], tx, at, b.cols, o);
        }
    }
}

static void add_rows_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    if (dt_wants(n, 0))
        dx[0] = dt_grad_of(g, n->in[0], dy[0]);
    if (dt_wants(n, 1))
        dx[1] = dt_sum_mid(g, dy[0], NULL, 0, n->in[1]->dims.nd, dt_grad_dtype(n->in[1]));
}

const dt_op dt_op_add_rows = {
    .name = "add_rows", .shape = add_rows_shape, .grad = add_rows_grad, .inplace = 1,
    .cpu = { .run = add_rows_run },
};

dt_tensor *dt_add_rows(dt_graph *g, dt_tensor *x, dt_tensor *y)
{
    return dt_make(g, &dt_op_add_rows, NULL, DT_IN(x, y));
}

/* ---- modulate: in x, scale, shift; shift may be absent ---- */

static const char *modulate_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0];
    if (!dt_is_float(x) || !is_per_sample(n->in[1], x) || !is_per_sample(n->in[2], x))
        return "shift and scale must be [B, C] of x [B, ..., C]";
    dt_node_out(n, 0, x->dtype, x->dims);
    return NULL;
}

static void modulate_run(const dt_node *n, const dt_run *r)
{
    const dt_tensor *shift = n->in[2];
    dt_dtype tx = n->in[0]->dtype;
    grk s = grk_of_batch(n->in[0]);
#pragma omp parallel for num_threads(dt_team(r, s.G * s.R * s.K)) schedule(static)
    for (int64_t task = 0; task < block_count(s); task++) {
        block b = block_at(s, task);
        float ba[COLS] DT_ALIGNED, bs[COLS] DT_ALIGNED, bx[COLS] DT_ALIGNED, bo[COLS] DT_ALIGNED;
        int64_t row = b.g * s.K + b.col;
        const float *a = dt_row_in(r->in[1], n->in[1]->dtype, row, b.cols, ba);
        const float *h = bs;
        if (shift)
            h = dt_row_in(r->in[2], shift->dtype, row, b.cols, bs);
        else
            memset(bs, 0, sizeof(bs));
        for (int64_t i = 0; i < b.rows; i++) {
            int64_t at = block_offset(s, &b, i);
            const float *x = dt_row_in(r->in[0], tx, at, b.cols, bx);
            float *o = dt_row_out(r->out[0], tx, at, bo);
#pragma omp simd
            for (int64_t c = 0; c < b.cols; c++)
                o[c] = x[c] * (1.0f + a[c]) + h[c];
            dt_row_flush(r->out[0], tx, at, b.cols, o);
        }
    }
}

static void modulate_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    if (dt_wants(n, 0))
        dx[0] = dt_make(g, &dt_op_modulate, NULL, DT_IN(dy[0], n->in[1]));
    if (dt_wants(n, 1))
        dx[1] = dt_sum_mid(g, dy[0], n->in[0], 1, 1, dt_grad_dtype(n->in[1]));
    if (dt_wants(n, 2))
        dx[2] = dt_sum_mid(g, dy[0], NULL, 1, 1, dt_grad_dtype(n->in[2]));
}

const dt_op dt_op_modulate = {
    .name = "modulate", .shape = modulate_shape, .grad = modulate_grad, .inplace = 1,
    .cpu = { .run = modulate_run },
};

dt_tensor *dt_modulate(dt_graph *g, dt_tensor *x, dt_tensor *shift, dt_tensor *scale)
{
    return dt_make(g, &dt_op_modulate, NULL, DT_IN(x, scale, shift));
}

/* ---- gated_add: in y, gate, x; x may be absent (the gradient of y) ---- */

static const char *gated_add_shape(dt_node *n)
{
    const dt_tensor *y = n->in[0], *x = n->in[2];
    if (!dt_is_float(y) || !is_per_sample(n->in[1], y) ||
        (x && (!dt_dims_same(x->dims, y->dims) || !dt_is_float(x))))
        return "gate must be [B, C] of x and y [B, ..., C]";
    dt_node_out(n, 0, x ? x->dtype : y->dtype, y->dims);
    return NULL;
}

static void gated_add_run(const dt_node *n, const dt_run *r)
{
    const dt_tensor *tx = n->in[2];
    dt_dtype ty = n->in[0]->dtype, to = n->out[0]->dtype;
    grk s = grk_of_batch(n->in[0]);
#pragma omp parallel for num_threads(dt_team(r, s.G * s.R * s.K)) schedule(static)
    for (int64_t task = 0; task < block_count(s); task++) {
        block b = block_at(s, task);
        float bg[COLS] DT_ALIGNED, bx[COLS] DT_ALIGNED, by[COLS] DT_ALIGNED, bo[COLS] DT_ALIGNED;
        const float *gate = dt_row_in(r->in[1], n->in[1]->dtype, b.g * s.K + b.col, b.cols, bg);
        for (int64_t i = 0; i < b.rows; i++) {
            int64_t at = block_offset(s, &b, i);
            const float *y = dt_row_in(r->in[0], ty, at, b.cols, by);
            float *o = dt_row_out(r->out[0], to, at, bo);
            if (tx) {
                const float *x = dt_row_in(r->in[2], tx->dtype, at, b.cols, bx);
#pragma omp simd
                for (int64_t c = 0; c < b.cols; c++)
                    o[c] = x[c] + gate[c] * y[c];
            } else {
#pragma omp simd
                for (int64_t c = 0; c < b.cols; c++)
                    o[c] = gate[c] * y[c];
            }
            dt_row_flush(r->out[0], to, at, b.cols, o);
        }
    }
}

static void gated_add_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dz, dt_tensor **dx)
{
    if (dt_wants(n, 0))
        dx[0] = dt_grad_of(g, n->in[0], dt_make(g, &dt_op_gated_add, NULL, DT_IN(dz[0], n->in[1])));
    if (dt_wants(n, 1))
        dx[1] = dt_sum_mid(g, dz[0], n->in[0], 1, 1, dt_grad_dtype(n->in[1]));
    if (dt_wants(n, 2))
        dx[2] = dt_grad_of(g, n->in[2], dz[0]);
}

const dt_op dt_op_gated_add = {
    .name = "gated_add", .shape = gated_add_shape, .grad = gated_add_grad, .inplace = 1 | 4,
    .cpu = { .run = gated_add_run },
};

dt_tensor *dt_gated_add(dt_graph *g, dt_tensor *x, dt_tensor *gate, dt_tensor *y)
{
    return dt_make(g, &dt_op_gated_add, NULL, DT_IN(y, gate, x));
}
