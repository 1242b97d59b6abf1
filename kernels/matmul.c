/* Matrix products on the last dimension.  Leading dims are flattened to M.
 *
 *   matmul_wt    y = x w^T + b          x [M, K]  w [N, K]  b [N]  ->  y [M, N]
 *   matmul_add   y = c + alpha x w^T    c [M, N]; y may lie in c's memory
 *   matmul_dx    dx = alpha dy w        dy [M, N]  w [N, K]  ->  dx [M, K]
 *   matmul_dw    dw = alpha dy^T x      dy [M, N]  x [M, K]  ->  dw [N, K], may add to what is there
 *   col_sum      db = sum_M dy          dy [M, N]            ->  db [N],    may add to what is there
 *
 * The first two may end with an activation (dt_epilogue) of y.  x, w, y are of one type, fp32 or bf16; sums are fp32
 * (oneDNN's or kernels/gemm.h's).  Gradients of parameters are fp32. */
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "kernels/gemm.h"
#include "kernels/opdef.h"
#include "train/lora.h"

enum {
    EPILOGUES = 1 << DT_EPI_SILU | 1 << DT_EPI_GELU_TANH | 1 << DT_EPI_GELU_ERF | 1 << DT_EPI_QUICK_GELU
};

static int64_t rows(const dt_tensor *x) { return dt_tensor_numel(x) / dt_last_dim(x); }

static dt_dims with_last(dt_dims d, int64_t n)
{
    d.d[d.nd - 1] = n;
    return d;
}

static bool pair_ok(const dt_tensor *x, const dt_tensor *w)
{
    return dt_is_float(x) && x->dtype == w->dtype && w->dims.nd == 2;
}

static void cost_mnk(dt_cost *c, int64_t m, int64_t n, int64_t k, dt_dtype t)
{
    double elements = (double)(m * n + n * k + m * k);
    *c = (dt_cost){ 2.0 * (double)m * (double)n * (double)k, elements * (double)dt_dtype_size(t) };
}

/* --- matmul_wt --- */

static const char *wt_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0], *w = n->in[1], *b = n->in[2];
    if (!pair_ok(x, w) || w->dims.d[1] != dt_last_dim(x))
        return "matmul: x [..., K] and w [N, K] must agree in K and type";
    if (!dt_is_vector(b, w->dims.d[0]) || (b && b->dtype != w->dtype))
        return "matmul: bias must be [N], of the weight's type";
    dt_node_out(n, 0, x->dtype, with_last(x->dims, w->dims.d[0]));
    return NULL;
}

static dt_tensor *grad_x(dt_graph *g, const dt_tensor *dy, const dt_tensor *w, double alpha)
{
    dt_tensor *in[] = { (dt_tensor *)dy, (dt_tensor *)w };
    return dt_apply(g, &dt_op_matmul_dx, DT_ATTR(.f = { alpha }), 2, in)->out[0];
}

static dt_tensor *grad_w(dt_graph *g, const dt_tensor *dy, const dt_tensor *x, const dt_tensor *w,
                         double alpha)
{
    dt_tensor *in[] = { (dt_tensor *)dy, (dt_tensor *)x };
    dt_attr a = { .i = { dt_grad_dtype(w) }, .f = { alpha } };
    return dt_apply(g, &dt_op_matmul_dw, &a, 2, in)->out[0];
}

static void wt_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    if (dt_wants(n, 0))
        dx[0] = grad_x(g, dy[0], n->in[1], 1);
    if (dt_wants(n, 1))
        dx[1] = grad_w(g, dy[0], n->in[0], n->in[1], 1);
    if (dt_wants(n, 2))
        dx[2] = dt_col_sum(g, dy[0], n->in[2]);
}

static void wt_cost(const dt_node *n, dt_cost *c)
{
    const dt_tensor *x = n->in[0], *w = n->in[1];
    cost_mnk(c, rows(x), w->dims.d[0], w->dims.d[1], x->dtype);
}

/* A product, and who does it. */
struct product {
    struct dt_dnn_matmul m;
    dt_dnn *dnn;                    /* NULL: kernels/gemm.h */
};

static void release(void *state)
{
    struct product *s = state;
    dt_dnn_free(&s->dnn);
    free(s);
}

static int make(dt_prep *p, const struct dt_dnn_matmul *m)
{
    struct product s = { .m = *m };
    if (dt_gemm_takes(m)) {
        p->workspace = dt_gemm_workspace(m, p->dev->threads);
    } else {
        int rc = dt_dnn_matmul_new(&s.dnn, m, p->err);
        if (rc < 0)
            return rc;
        p->workspace = dt_dnn_workspace(s.dnn);
    }
    p->state = memcpy(dt_alloc(sizeof(s)), &s, sizeof(s));
    return 0;
}

static void multiply(const dt_run *r, const void *a, const void *b, const void *bias, void *c)
{
    struct product *s = r->state;
    if (s->dnn)
        dt_dnn_run(s->dnn, a, b, bias, c, r->workspace);
    else
        dt_gemm_run(&s->m, r->dev->threads, a, b, bias, c, r->workspace);
}

static int wt_prepare(const dt_node *n, dt_prep *p)
{
    const dt_tensor *x = n->in[0], *w = n->in[1];
    return make(p, &(struct dt_dnn_matmul){
        .m = rows(x), .n = w->dims.d[0], .k = w->dims.d[1], .a = x->dtype, .b = w->dtype,
        .c = x->dtype, .b_trans = true, .alpha = 1, .bias = n->in[2] != NULL,
        .epilogue = (enum dt_epilogue)n->attr.i[DT_ATTR_EPI],
    });
}

/* Of the gradients too, which have no in[2]. */
static void wt_run(const dt_node *n, const dt_run *r)
{
    (void)n;
    multiply(r, r->in[0], r->in[1], r->in[2], r->out[0]);
}

const dt_op dt_op_matmul_wt = {
    .name = "matmul_wt", .shape = wt_shape, .grad = wt_grad, .cost = wt_cost,
    .epilogues = EPILOGUES,
    .cpu = { wt_prepare, wt_run, release },
};

/* --- matmul_add --- */

static const char *add_shape(dt_node *n)
{
    const dt_tensor *c = n->in[0], *x = n->in[1], *w = n->in[2];
    if (!pair_ok(x, w) || w->dims.d[1] != dt_last_dim(x))
        return "matmul_add: x [..., K] and w [N, K] must agree in K and type";
    if (c->dtype != x->dtype || dt_last_dim(c) != w->dims.d[0] || rows(c) != rows(x))
        return "matmul_add: c must be [..., N], of x's type";
    dt_node_out(n, 0, c->dtype, c->dims);
    return NULL;
}

static void add_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    if (dt_wants(n, 0))
        dx[0] = dy[0];
    if (dt_wants(n, 1)) {
        dx[1] = grad_x(g, dy[0], n->in[2], n->attr.f[0]);
        if (!dt_dims_same(dx[1]->dims, n->in[1]->dims))
            dx[1] = dt_reshape(g, dx[1], n->in[1]->dims);
    }
    if (dt_wants(n, 2))
        dx[2] = grad_w(g, dy[0], n->in[1], n->in[2], n->attr.f[0]);
}

static void add_cost(const dt_node *n, dt_cost *c)
{
    const dt_tensor *x = n->in[1], *w = n->in[2];
    cost_mnk(c, rows(x), w->dims.d[0], w->dims.d[1], x->dtype);
}

static int add_prepare(const dt_node *n, dt_prep *p)
{
    const dt_tensor *x = n->in[1], *w = n->in[2];
    return make(p, &(struct dt_dnn_matmul){
        .m = rows(x), .n = w->dims.d[0], .k = w->dims.d[1], .a = x->dtype, .b = w->dtype,
        .c = x->dtype, .b_trans = true, .add = true, .alpha = n->attr.f[0],
        .epilogue = (enum dt_epilogue)n->attr.i[DT_ATTR_EPI],
    });
}

/* A copy by all threads: one alone does not saturate memory. */
static void copy(const dt_run *r, void *dst, const void *src, int64_t bytes)
{
    enum { BLOCK = 1 << 16 };
    int64_t nblock = dt_div_up(bytes, BLOCK);
#pragma omp parallel for schedule(static) num_threads(dt_team(r, bytes / 4))
    for (int64_t i = 0; i < nblock; i++)
        memcpy((char *)dst + i * BLOCK, (const char *)src + i * BLOCK,
               (size_t)dt_min64(BLOCK, bytes - i * BLOCK));
}

static void add_run(const dt_node *n, const dt_run *r)
{
    const dt_tensor *c = n->in[0];
    if (r->out[0] != r->in[0])
        copy(r, r->out[0], r->in[0], dt_tensor_numel(c) * (int64_t)dt_dtype_size(c->dtype));
    multiply(r, r->in[1], r->in[2], NULL, r->out[0]);
}

const dt_op dt_op_matmul_add = {
    .name = "matmul_add", .shape = add_shape, .grad = add_grad, .cost = add_cost, .inplace = 1,
    .epilogues = EPILOGUES,
    .cpu = { add_prepare, add_run, release },
};

/* --- gradients --- */

static const char *dx_shape(dt_node *n)
{
    dt_node_out(n, 0, n->in[0]->dtype, with_last(n->in[0]->dims, n->in[1]->dims.d[1]));
    return NULL;
}

static int dx_prepare(const dt_node *n, dt_prep *p)
{
    const dt_tensor *dy = n->in[0], *w = n->in[1];
    return make(p, &(struct dt_dnn_matmul){
        .m = rows(dy), .n = w->dims.d[1], .k = w->dims.d[0], .a = dy->dtype, .b = w->dtype,
        .c = dy->dtype, .alpha = n->attr.f[0],
    });
}

const dt_op dt_op_matmul_dx = {
    .name = "matmul_dx", .shape = dx_shape, .cost = wt_cost,
    .cpu = { dx_prepare, wt_run, release },
};

static const char *dw_shape(dt_node *n)
{
    dt_dims d = DT_DIMS(dt_last_dim(n->in[0]), dt_last_dim(n->in[1]));
    dt_node_out(n, 0, (dt_dtype)n->attr.i[0], d);
    return NULL;
}

static void dw_cost(const dt_node *n, dt_cost *c)
{
    const dt_tensor *dy = n->in[0], *x = n->in[1];
    cost_mnk(c, rows(x), dt_last_dim(dy), dt_last_dim(x), x->dtype);
}

static int dw_prepare(const dt_node *n, dt_prep *p)
{
    const dt_tensor *dy = n->in[0], *x = n->in[1];
    return make(p, &(struct dt_dnn_matmul){
        .m = dt_last_dim(dy), .n = dt_last_dim(x), .k = rows(x), .a = dy->dtype, .b = x->dtype,
        .c = n->out[0]->dtype, .a_trans = true, .alpha = n->attr.f[0],
        .add = n->attr.i[DT_ATTR_ACC], .threads = p->dev->threads,
    });
}

const dt_op dt_op_matmul_dw = {
    .name = "matmul_dw", .shape = dw_shape, .cost = dw_cost, .accumulates = true,
    .cpu = { dw_prepare, wt_run, release },
};

/* --- col_sum: blocks of rows are summed in parallel, then their sums in order, so that the bits do not depend on
 * the number of threads --- */

static const char *col_sum_shape(dt_node *n)
{
    dt_node_out(n, 0, (dt_dtype)n->attr.i[0], DT_DIMS(dt_last_dim(n->in[0])));
    return NULL;
}

static int64_t col_sum_block(const dt_tensor *dy)
{
    int64_t m = rows(dy);
    return dt_max64(64, dt_div_up(m, 64));
}

static int col_sum_prepare(const dt_node *n, dt_prep *p)
{
    const dt_tensor *dy = n->in[0];
    int64_t nblock = dt_div_up(rows(dy), col_sum_block(dy));
    p->workspace = nblock * dt_last_dim(dy) * (int64_t)sizeof(float);
    return 0;
}

static void col_sum_rows(const dt_tensor *dy, const void *p, int64_t m0, int64_t m1, float *sum)
{
    float tmp[DT_CHUNK];
    int64_t cols = dt_last_dim(dy);
    memset(sum, 0, (size_t)cols * sizeof(*sum));
    for (int64_t m = m0; m < m1; m++)
        for (int64_t c = 0; c < cols; c += DT_CHUNK) {
            int64_t len = dt_min64(DT_CHUNK, cols - c);
            const float *x = dt_row_in(p, dy->dtype, m * cols + c, len, tmp);
            for (int64_t i = 0; i < len; i++)
                sum[c + i] += x[i];
        }
}

static void col_sum_run(const dt_node *n, const dt_run *r)
{
    const dt_tensor *dy = n->in[0];
    int64_t m = rows(dy), cols = dt_last_dim(dy);
    int64_t block = col_sum_block(dy), nblock = dt_div_up(m, block);
    float *part = r->workspace, tmp[DT_CHUNK];
#pragma omp parallel for schedule(static) num_threads(dt_team(r, m * cols))
    for (int64_t i = 0; i < nblock; i++)
        col_sum_rows(dy, r->in[0], i * block, dt_min64(m, (i + 1) * block), part + i * cols);
    for (int64_t i = 1; i < nblock; i++)
        for (int64_t c = 0; c < cols; c++)
            part[c] += part[i * cols + c];
    dt_dtype t = n->out[0]->dtype;
    for (int64_t c = 0; c < cols; c += DT_CHUNK) {
        int64_t len = dt_min64(DT_CHUNK, cols - c);
        float *y = dt_row_out(r->out[0], t, c, tmp);
        for (int64_t i = 0; i < len; i++)
            y[i] = part[c + i] + (n->attr.i[DT_ATTR_ACC] ? y[i] : 0.0f);
        dt_row_flush(r->out[0], t, c, len, y);
    }
}

const dt_op dt_op_col_sum = {
    .name = "col_sum", .shape = col_sum_shape, .accumulates = true,
    .cpu = { col_sum_prepare, col_sum_run, NULL },
};

dt_tensor *dt_col_sum(dt_graph *g, dt_tensor *dy, const dt_tensor *b)
{
    return dt_apply(g, &dt_op_col_sum, DT_ATTR(.i = { dt_grad_dtype(b) }), DT_IN(dy))->out[0];
}

/* --- builders --- */

dt_tensor *dt_matmul_wt(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b)
{
    return dt_apply(g, &dt_op_matmul_wt, NULL, DT_IN(x, w, b))->out[0];
}

dt_tensor *dt_matmul_add(dt_graph *g, dt_tensor *c, dt_tensor *x, dt_tensor *w, double alpha)
{
    return dt_apply(g, &dt_op_matmul_add, DT_ATTR(.f = { alpha }), DT_IN(c, x, w))->out[0];
}

static dt_tensor *add_adapter(dt_graph *g, const dt_adapter *a, dt_tensor *x, dt_tensor *y)
{
    dt_tensor *down = dt_matmul_wt(g, x, dt_param_tensor(g, a->a), NULL);
    return dt_matmul_add(g, y, down, dt_param_tensor(g, a->b), a->scale);
}

dt_tensor *dt_linear(dt_graph *g, const char *name, dt_tensor *x, int64_t out, bool bias)
{
    int64_t in = dt_last_dim(x);
    dt_params *set = dt_graph_params(g);
    dt_scope(g, "%s", name);
    dt_tensor *w = dt_weight(g, "weight", DT_DIMS(out, in), DT_INIT_FAN_IN, 0);
    dt_tensor *b = bias ? dt_weight(g, "bias", DT_DIMS(out), DT_INIT_FAN_IN, (double)in) : NULL;
    dt_tensor *y = dt_matmul_wt(g, x, w, b);
    dt_scope_end(g);
    if (dt_graph_error(g))
        return y;
    dt_params_add_linear(set, dt_scope_path(g, name));
    const dt_adapter *a = set->lora ? dt_lora_find(set->lora, dt_scope_path(g, name)) : NULL;
    return a ? add_adapter(g, a, x, y) : y;
}
