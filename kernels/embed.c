/* Tables: rows by index, relative position bias, sinusoids. */
#include <math.h>
#include "kernels/opdef.h"

/* ---- embedding: w [V, C], ids [...] i32 -> [..., C].   dw[v] = sum of dy over the places where ids = v
 * Few rows of a large table: one that lies in a file is not brought into memory for them. ---- */

static const char *embedding_shape(dt_node *n)
{
    const dt_tensor *w = n->in[0], *ids = n->in[1];
    if (w->dims.nd != 2 || ids->dtype != DT_I32 || ids->dims.nd >= DT_MAX_DIMS)
        return "embedding takes a table [V, C] and ids of type I32";
    dt_dims d = ids->dims;
    d.d[d.nd++] = w->dims.d[1];
    dt_node_out(n, 0, w->dtype, d);
    return NULL;
}

/* An id outside the table reads as row 0: the tokenizer's ranges are checked against V when a
 * model is loaded. */
static int64_t row_of(int32_t id, int64_t V) { return id >= 0 && id < V ? id : 0; }

static void embedding_run(const dt_node *n, const dt_run *r)
{
    int64_t V = n->in[0]->dims.d[0], C = n->in[0]->dims.d[1], N = dt_tensor_numel(n->in[1]);
    int64_t bytes = C * (int64_t)dt_dtype_size(n->in[0]->dtype);
    const int32_t *ids = r->in[1];
    const dt_param *q = n->in[0]->kind == DT_PARAM && n->in[0]->param->place != DT_IN_BLOCK ? n->in[0]->param : NULL;
    for (int64_t i = 0; i < N && q; i++)
        dt_param_row(q, row_of(ids[i], V), (char *)r->out[0] + i * bytes, n->out[0]->dtype);
    if (q)
        return;
#pragma omp parallel for num_threads(dt_team(r, N * C)) schedule(static)
    for (int64_t i = 0; i < N; i++)
        memcpy((char *)r->out[0] + i * bytes, (const char *)r->in[0] + row_of(ids[i], V) * bytes,
               (size_t)bytes);
}

/* in dy, ids; attr.i[0] = V.  Each thread owns columns and walks the ids in order, so equal ids
 * add up in a fixed order. */
static const char *embedding_dw_shape(dt_node *n)
{
    dt_node_out(n, 0, DT_F32, DT_DIMS(n->attr.i[0], dt_last_dim(n->in[0])));
    return NULL;
}

static void embedding_dw_run(const dt_node *n, const dt_run *r)
{
    enum { COLS = 64 };
    int64_t V = n->attr.i[0], C = dt_last_dim(n->in[0]), N = dt_tensor_numel(n->in[1]);
    const int32_t *ids = r->in[1];
    float *dw = r->out[0];
    if (!n->attr.i[DT_ATTR_ACC])
        memset(dw, 0, (size_t)(V * C) * sizeof(*dw));
#pragma omp parallel for num_threads(dt_team(r, N * C)) schedule(static)
    for (int64_t c0 = 0; c0 < C; c0 += COLS) {
        float tmp[COLS] DT_ALIGNED;
        int64_t cols = dt_min64(COLS, C - c0);
        for (int64_t i = 0; i < N; i++) {
            const float *dy = dt_row_in(r->in[0], n->in[0]->dtype, i * C + c0, cols, tmp);
            float *to = dw + row_of(ids[i], V) * C + c0;
#pragma omp simd
            for (int64_t c = 0; c < cols; c++)
                to[c] += dy[c];
        }
    }
}

const dt_op dt_op_embedding_dw = {
    .name = "embedding_dw", .shape = embedding_dw_shape, .accumulates = true,
    .cpu = { .run = embedding_dw_run },
};

static void embedding_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_attr a = { .i = { n->in[0]->dims.d[0] } };
    dx[0] = dt_grad_of(g, n->in[0], dt_make(g, &dt_op_embedding_dw, &a, DT_IN(dy[0], n->in[1])));
}

const dt_op dt_op_embedding = {
    .name = "embedding", .shape = embedding_shape, .grad = embedding_grad, .cost = dt_cost_taken,
    .cpu = { .run = embedding_run },
};

dt_tensor *dt_embedding(dt_graph *g, dt_tensor *w, dt_tensor *ids)
{
    return dt_make(g, &dt_op_embedding, NULL, DT_IN(w, ids));
}

/* ---- gather_rows: x [B, S, C], idx [B] i32 -> [B, C] ---- */

static const char *gather_rows_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0], *idx = n->in[1];
    if (x->dims.nd != 3 || idx->dtype != DT_I32 || idx->dims.nd != 1 ||
        idx->dims.d[0] != x->dims.d[0])
        return "gather takes x [B, S, C] and idx [B] of type I32";
    dt_node_out(n, 0, x->dtype, DT_DIMS(x->dims.d[0], x->dims.d[2]));
    return NULL;
}

static void gather_rows_run(const dt_node *n, const dt_run *r)
{
    const dt_dims *d = &n->in[0]->dims;
    int64_t bytes = d->d[2] * (int64_t)dt_dtype_size(n->in[0]->dtype);
    const int32_t *idx = r->in[1];
    for (int64_t b = 0; b < d->d[0]; b++)
        memcpy((char *)r->out[0] + b * bytes,
               (const char *)r->in[0] + (b * d->d[1] + row_of(idx[b], d->d[1])) * bytes,
               (size_t)bytes);
}

/* in dy, idx; attr.i[0] = S */
static const char *gather_rows_bwd_shape(dt_node *n)
{
    const dt_dims *d = &n->in[0]->dims;
    dt_node_out(n, 0, n->in[0]->dtype, DT_DIMS(d->d[0], n->attr.i[0], d->d[1]));
    return NULL;
}

static void gather_rows_bwd_run(const dt_node *n, const dt_run *r)
{
    const dt_dims *d = &n->out[0]->dims;
    int64_t bytes = d->d[2] * (int64_t)dt_dtype_size(n->out[0]->dtype);
    const int32_t *idx = r->in[1];
    memset(r->out[0], 0, (size_t)(d->d[0] * d->d[1] * bytes));
    for (int64_t b = 0; b < d->d[0]; b++)
        memcpy((char *)r->out[0] + (b * d->d[1] + row_of(idx[b], d->d[1])) * bytes,
               (const char *)r->in[0] + b * bytes, (size_t)bytes);
}

const dt_op dt_op_gather_rows_bwd = {
    .name = "gather_rows_bwd", .shape = gather_rows_bwd_shape,
    .cpu = { .run = gather_rows_bwd_run },
};

static void gather_rows_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_attr a = { .i = { n->in[0]->dims.d[1] } };
    dx[0] = dt_grad_of(g, n->in[0], dt_make(g, &dt_op_gather_rows_bwd, &a, DT_IN(dy[0], n->in[1])));
}

const dt_op dt_op_gather_rows = {
    .name = "gather_rows", .shape = gather_rows_shape, .grad = gather_rows_grad,
    .cost = dt_cost_taken,
    .cpu = { .run = gather_rows_run },
};

dt_tensor *dt_gather_rows(dt_graph *g, dt_tensor *x, dt_tensor *idx)
{
    return dt_make(g, &dt_op_gather_rows, NULL, DT_IN(x, idx));
}

/* ---- t5_bias: w [buckets, h] -> bias [h, S, S] fp32, bias[., q, k] = w[bucket(k - q), .].   Raffel
 * et al. 2020, sec. 2.1
 *
 * attr.i = S, max_distance.  Half of the buckets are for keys after the query.  Of a half, the
 * first half holds one distance each, the rest grow in the logarithm up to max_distance. ---- */

static int64_t t5_bucket(int64_t rel, int64_t buckets, int64_t max_distance)
{
    int64_t half = buckets / 2, exact = half / 2, base = rel > 0 ? half : 0,
            dist = rel < 0 ? -rel : rel;
    if (dist < exact)
        return base + dist;
    /* fp32 throughout and in this order, as in the reference: distances at a power of two sit on bucket borders */
    float at = logf((float)dist / (float)exact) / (float)log((double)max_distance / (double)exact) *
               (float)(half - exact);
    return base + dt_min64(exact + (int64_t)at, half - 1);
}

static const char *t5_bias_shape(dt_node *n)
{
    const dt_tensor *w = n->in[0];
    int64_t S = n->attr.i[0];
    if (w->dims.nd != 2 || w->dims.d[0] % 4 || !dt_is_float(w) || n->attr.i[1] <= w->dims.d[0] / 4)
        return "the table must be [buckets, heads], buckets a multiple of 4 and under 4 "
               "max_distance";
    dt_node_out(n, 0, DT_F32, DT_DIMS(w->dims.d[1], S, S));
    return NULL;
}

/* Workspace: the table as fp32 [buckets, h], then per head the 2S-1 values of one diagonal each. */
static int t5_bias_prepare(const dt_node *n, dt_prep *p)
{
    p->workspace = (dt_tensor_numel(n->in[0]) + n->in[0]->dims.d[1] * (2 * n->attr.i[0] - 1)) *
                   (int64_t)sizeof(float);
    return 0;
}

static void t5_bias_run(const dt_node *n, const dt_run *r)
{
    int64_t buckets = n->in[0]->dims.d[0], h = n->in[0]->dims.d[1], S = n->attr.i[0], D = 2 * S - 1;
    float *tmp = r->workspace, *diagonal = tmp + buckets * h, *out = r->out[0];
    const float *w = dt_row_in(r->in[0], n->in[0]->dtype, 0, buckets * h, tmp);
    for (int64_t d = 0; d < D; d++) {
        int64_t bucket = t5_bucket(d - (S - 1), buckets, n->attr.i[1]);
        for (int64_t k = 0; k < h; k++)
            diagonal[k * D + d] = w[bucket * h + k];
    }
#pragma omp parallel for num_threads(dt_team(r, h * S * S)) schedule(static)
    for (int64_t row = 0; row < h * S; row++)
        memcpy(out + row * S, diagonal + row / S * D + (S - 1 - row % S), (size_t)S * sizeof(*out));
}

/* in dy [h, S, S]; attr.i = S, max_distance, buckets */
static const char *t5_bias_dw_shape(dt_node *n)
{
    dt_node_out(n, 0, DT_F32, DT_DIMS(n->attr.i[2], n->in[0]->dims.d[0]));
    return NULL;
}

static void t5_bias_dw_run(const dt_node *n, const dt_run *r)
{
    int64_t S = n->attr.i[0], buckets = n->attr.i[2], h = n->in[0]->dims.d[0];
    const float *dy = r->in[0];
    float *dw = r->out[0];
    if (!n->attr.i[DT_ATTR_ACC])
        memset(dw, 0, (size_t)(buckets * h) * sizeof(*dw));
#pragma omp parallel for num_threads(dt_team(r, h * S * S)) schedule(static)
    for (int64_t k = 0; k < h; k++)
        for (int64_t d = 1 - S; d < S; d++) {
            double sum = 0;
            for (int64_t q = dt_max64(0, -d); q < dt_min64(S, S - d); q++)
                sum += dy[(k * S + q) * S + q + d];
            dw[t5_bucket(d, buckets, n->attr.i[1]) * h + k] += (float)sum;
        }
}

const dt_op dt_op_t5_bias_dw = {
    .name = "t5_bias_dw", .shape = t5_bias_dw_shape, .accumulates = true,
    .cpu = { .run = t5_bias_dw_run },
};

static void t5_bias_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_attr a = n->attr;
    a.i[2] = n->in[0]->dims.d[0];
    dx[0] = dt_grad_of(g, n->in[0], dt_make(g, &dt_op_t5_bias_dw, &a, DT_IN(dy[0])));
}

const dt_op dt_op_t5_bias = {
    .name = "t5_bias", .shape = t5_bias_shape, .grad = t5_bias_grad,
    .cpu = { .prepare = t5_bias_prepare, .run = t5_bias_run },
};

dt_tensor *dt_t5_bias(dt_graph *g, dt_tensor *w, int64_t S, int max_distance)
{
    return dt_make(g, &dt_op_t5_bias, DT_ATTR(.i = { S, max_distance }), DT_IN(w));
}

/* ---- timestep_embed: t [B] fp32 -> [B, n] = [sin a, cos a], or [cos a, sin a] when flip
 *
 *   a_i = scale (t f_i)   f_i = exp(-ln 10000 i / (n/2 - shift)), i < n/2         Vaswani et al. 2017, sec. 3.5
 *
 * attr.i = n, flip, dtype; attr.f = shift, scale.  Rounded to fp32 after each step as the
 * reference does: at t = 1000 one unit in the last place of f moves the angle by 6e-5. ---- */

static const char *timestep_embed_shape(dt_node *n)
{
    const dt_tensor *t = n->in[0];
    int64_t width = n->attr.i[0];
    if (t->dims.nd != 1 || t->dtype != DT_F32 || width < 2 || width % 2)
        return "timesteps must be [B] fp32 and the width even";
    dt_node_out(n, 0, (dt_dtype)n->attr.i[2], DT_DIMS(t->dims.d[0], width));
    return NULL;
}

static int timestep_embed_prepare(const dt_node *n, dt_prep *p)
{
    p->workspace = n->attr.i[0] * (int64_t)sizeof(float);
    return 0;
}

static void timestep_embed_run(const dt_node *n, const dt_run *r)
{
    int64_t B = n->in[0]->dims.d[0], width = n->attr.i[0], half = width / 2;
    float *row = r->workspace, *cosines = n->attr.i[1] ? row : row + half,
          *sines = n->attr.i[1] ? row + half : row;
    const float *t = r->in[0];
    float scale = (float)n->attr.f[1], divisor = (float)((double)half - n->attr.f[0]);
    dt_dtype to = n->out[0]->dtype;
    for (int64_t b = 0; b < B; b++) {
        for (int64_t i = 0; i < half; i++) {
            float exponent = (float)-9.210340371976184 * (float)i / divisor;
            float a = scale * (t[b] * (float)exp((double)exponent));
            cosines[i] = (float)cos((double)a);
            sines[i] = (float)sin((double)a);
        }
        dt_convert((char *)r->out[0] + b * width * (int64_t)dt_dtype_size(to), to, row, DT_F32,
                   width);
    }
}

const dt_op dt_op_timestep_embed = {
    .name = "timestep_embed", .shape = timestep_embed_shape,
    .cpu = { .prepare = timestep_embed_prepare, .run = timestep_embed_run },
};

dt_tensor *dt_timestep_embed(dt_graph *g, dt_tensor *t, int n, bool flip, double shift,
                             double scale)
{
    return dt_make(g, &dt_op_timestep_embed,
                   DT_ATTR(.i = { n, flip, dt_graph_dtype(g) }, .f = { shift, scale }), DT_IN(t));
}
