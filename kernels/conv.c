/* 2-D convolution and nearest-neighbour upsampling of channels-last images.
 *
 *   y[b, i, j, o] = bias[o] + sum_{c, u, v} w[o, c, u, v] x[b, i s + u - top, j s + v - left, c]
 *
 *   x [B, H, W, C]   w [O, C, kh, kw]   bias [O]   y [B, H', W', O]
 *   H' = (H + top + bottom - kh) / s + 1, W' likewise; outside the image x is 0
 *
 * x, w, y are of one type, fp32 or bf16; sums are fp32 (oneDNN's). */
#include "kernels/onednn.h"
#include "kernels/opdef.h"

enum { STRIDE, PAD, H_IN = PAD + 4, W_IN, KH = H_IN, KW };     /* attr.i: H_IN, W_IN of dx; KH, KW of dw */

static int64_t dim(const dt_tensor *x, int i) { return x->dims.d[i]; }

/* `in` with its padding */
static int64_t out_size(int64_t in, int64_t k, int64_t stride) { return (in - k) / stride + 1; }

static int make(dt_prep *p, int (*fn)(dt_dnn **, const struct dt_dnn_conv *, dt_err *),
                const struct dt_dnn_conv *c)
{
    dt_dnn *d = NULL;
    int rc = fn(&d, c, p->err);
    if (rc < 0)
        return rc;
    p->state = d;
    p->workspace = dt_dnn_workspace(d);
    return 0;
}

/* The operation as oneDNN needs it, of images x and y. */
static struct dt_dnn_conv geometry(const dt_node *n, const dt_tensor *x, const dt_tensor *y,
                                   int64_t kh, int64_t kw)
{
    const int64_t *a = n->attr.i;
    return (struct dt_dnn_conv){
        .b = dim(x, 0), .h = dim(x, 1), .w = dim(x, 2), .c = dim(x, 3), .o = dim(y, 3),
        .kh = kh, .kw = kw, .oh = dim(y, 1), .ow = dim(y, 2), .stride = a[STRIDE], .t = x->dtype,
        .pad = { a[PAD], a[PAD + 1], a[PAD + 2], a[PAD + 3] },
    };
}

static void cost(dt_cost *c, const dt_tensor *x, const dt_tensor *y, int64_t kh, int64_t kw)
{
    double wn = (double)(dim(x, 3) * dim(y, 3) * kh * kw), yn = (double)dt_tensor_numel(y);
    c->flops = 2 * wn * yn / (double)dim(y, 3);
    c->bytes = (wn + yn + (double)dt_tensor_numel(x)) * (double)dt_dtype_size(x->dtype);
}

/* --- conv2d --- */

static const char *conv_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0], *w = n->in[1], *b = n->in[2];
    const int64_t *a = n->attr.i;
    if (x->dims.nd != 4 || w->dims.nd != 4 || dim(w, 1) != dim(x, 3) || !dt_is_float(x) ||
        w->dtype != x->dtype)
        return "conv2d: x [B, H, W, C] and w [O, C, kh, kw] must agree in C and type";
    if (!dt_is_vector(b, dim(w, 0)) || (b && b->dtype != w->dtype))
        return "conv2d: bias must be [O], of the weight's type";
    int64_t h = dim(x, 1) + a[PAD] + a[PAD + 2], wd = dim(x, 2) + a[PAD + 1] + a[PAD + 3];
    if (a[STRIDE] < 1 || h < dim(w, 2) || wd < dim(w, 3))
        return "conv2d: the image is smaller than the kernel";
    dt_node_out(n, 0, x->dtype, DT_DIMS(dim(x, 0), out_size(h, dim(w, 2), a[STRIDE]),
                                        out_size(wd, dim(w, 3), a[STRIDE]), dim(w, 0)));
    return NULL;
}

static void conv_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_tensor *x = n->in[0], *w = n->in[1];
    dt_attr a = n->attr;
    if (dt_wants(n, 0)) {
        a.i[H_IN] = dim(x, 1);
        a.i[W_IN] = dim(x, 2);
        dx[0] = dt_apply(g, &dt_op_conv2d_dx, &a, DT_IN(dy[0], w))->out[0];
    }
    if (dt_wants(n, 1)) {
        a.i[KH] = dim(w, 2);
        a.i[KW] = dim(w, 3);
        dx[1] = dt_grad_of(g, w, dt_apply(g, &dt_op_conv2d_dw, &a, DT_IN(x, dy[0]))->out[0]);
    }
    if (dt_wants(n, 2))
        dx[2] = dt_col_sum(g, dy[0], n->in[2]);
}

static void conv_cost(const dt_node *n, dt_cost *c)
{
    cost(c, n->in[0], n->out[0], dim(n->in[1], 2), dim(n->in[1], 3));
}

static int conv_prepare(const dt_node *n, dt_prep *p)
{
    const dt_tensor *w = n->in[1];
    struct dt_dnn_conv c = geometry(n, n->in[0], n->out[0], dim(w, 2), dim(w, 3));
    c.bias = n->in[2] != NULL;
    return make(p, dt_dnn_conv_new, &c);
}

/* Of all three: the gradients have no in[2]. */
static void conv_run(const dt_node *n, const dt_run *r)
{
    (void)n;
    dt_dnn_run(r->state, r->in[0], r->in[1], r->in[2], r->out[0], r->workspace);
}

const dt_op dt_op_conv2d = {
    .name = "conv2d", .shape = conv_shape, .grad = conv_grad, .cost = conv_cost,
    .cpu = { conv_prepare, conv_run, dt_dnn_release },
};

/* --- conv2d_dx: dy, w -> dx --- */

static const char *dx_shape(dt_node *n)
{
    const dt_tensor *dy = n->in[0], *w = n->in[1];
    dt_node_out(n, 0, dy->dtype, DT_DIMS(dim(dy, 0), n->attr.i[H_IN], n->attr.i[W_IN], dim(w, 1)));
    return NULL;
}

static void dx_cost(const dt_node *n, dt_cost *c)
{
    cost(c, n->out[0], n->in[0], dim(n->in[1], 2), dim(n->in[1], 3));
}

static int dx_prepare(const dt_node *n, dt_prep *p)
{
    const dt_tensor *w = n->in[1];
    struct dt_dnn_conv c = geometry(n, n->out[0], n->in[0], dim(w, 2), dim(w, 3));
    return make(p, dt_dnn_conv_dx_new, &c);
}

const dt_op dt_op_conv2d_dx = {
    .name = "conv2d_dx", .shape = dx_shape, .cost = dx_cost,
    .cpu = { dx_prepare, conv_run, dt_dnn_release },
};

/* --- conv2d_dw: x, dy -> dw fp32, may add to what is there --- */

static const char *dw_shape(dt_node *n)
{
    dt_dims d = DT_DIMS(dim(n->in[1], 3), dim(n->in[0], 3), n->attr.i[KH], n->attr.i[KW]);
    dt_node_out(n, 0, DT_F32, d);
    return NULL;
}

static void dw_cost(const dt_node *n, dt_cost *c)
{
    cost(c, n->in[0], n->in[1], n->attr.i[KH], n->attr.i[KW]);
}

static int dw_prepare(const dt_node *n, dt_prep *p)
{
    struct dt_dnn_conv c = geometry(n, n->in[0], n->in[1], n->attr.i[KH], n->attr.i[KW]);
    c.add = n->attr.i[DT_ATTR_ACC];
    return make(p, dt_dnn_conv_dw_new, &c);
}

const dt_op dt_op_conv2d_dw = {
    .name = "conv2d_dw", .shape = dw_shape, .cost = dw_cost, .accumulates = true,
    .cpu = { dw_prepare, conv_run, dt_dnn_release },
};

/* --- upsample2: y[b, i, j] = x[b, i/2, j/2] --- */

static const char *up_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0];
    if (x->dims.nd != 4)
        return "upsample2: x must be [B, H, W, C]";
    dt_node_out(n, 0, x->dtype, DT_DIMS(dim(x, 0), 2 * dim(x, 1), 2 * dim(x, 2), dim(x, 3)));
    return NULL;
}

static void up_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    (void)n;
    dx[0] = dt_apply(g, &dt_op_upsample2_bwd, NULL, DT_IN(dy[0]))->out[0];
}

static void up_run(const dt_node *n, const dt_run *r)
{
    const dt_tensor *x = n->in[0];
    int64_t lines = dim(x, 0) * dim(x, 1), w = dim(x, 2);
    size_t pixel = (size_t)dim(x, 3) * dt_dtype_size(x->dtype), line = 2 * (size_t)w * pixel;
#pragma omp parallel for schedule(static) num_threads(dt_team(r, dt_tensor_numel(x)))
    for (int64_t i = 0; i < lines; i++) {
        const char *src = (const char *)r->in[0] + (size_t)(i * w) * pixel;
        char *dst = (char *)r->out[0] + 2 * (size_t)i * line;
        for (int64_t j = 0; j < w; j++) {
            memcpy(dst + (size_t)(2 * j) * pixel, src + (size_t)j * pixel, pixel);
            memcpy(dst + (size_t)(2 * j + 1) * pixel, src + (size_t)j * pixel, pixel);
        }
        memcpy(dst + line, dst, line);
    }
}

const dt_op dt_op_upsample2 = {
    .name = "upsample2", .shape = up_shape, .grad = up_grad, .cpu = { NULL, up_run, NULL },
};

static const char *down_shape(dt_node *n)
{
    const dt_tensor *dy = n->in[0];
    dt_node_out(n, 0, dy->dtype, DT_DIMS(dim(dy, 0), dim(dy, 1) / 2, dim(dy, 2) / 2, dim(dy, 3)));
    return NULL;
}

static void add_row(float *sum, const void *p, dt_dtype t, int64_t at, int64_t n, bool first)
{
    float tmp[DT_CHUNK];
    const float *x = dt_row_in(p, t, at, n, tmp);
    for (int64_t c = 0; c < n; c++)
        sum[c] = (first ? 0.0f : sum[c]) + x[c];
}

static void down_run(const dt_node *n, const dt_run *r)
{
    const dt_tensor *y = n->out[0];
    int64_t lines = dim(y, 0) * dim(y, 1), w = dim(y, 2), C = dim(y, 3);
#pragma omp parallel for schedule(static) num_threads(dt_team(r, 4 * dt_tensor_numel(y)))
    for (int64_t i = 0; i < lines; i++)
        for (int64_t j = 0; j < w; j++)
            for (int64_t c = 0; c < C; c += DT_CHUNK) {
                float tmp[DT_CHUNK];
                int64_t len = dt_min64(DT_CHUNK, C - c);
                int64_t up = (4 * i * w + 2 * j) * C + c, at = (i * w + j) * C + c;
                float *sum = dt_row_out(r->out[0], y->dtype, at, tmp);
                add_row(sum, r->in[0], y->dtype, up, len, true);
                add_row(sum, r->in[0], y->dtype, up + C, len, false);
                add_row(sum, r->in[0], y->dtype, up + 2 * w * C, len, false);
                add_row(sum, r->in[0], y->dtype, up + 2 * w * C + C, len, false);
                dt_row_flush(r->out[0], y->dtype, at, len, sum);
            }
}

const dt_op dt_op_upsample2_bwd = {
    .name = "upsample2_bwd", .shape = down_shape, .cpu = { NULL, down_run, NULL },
};

/* --- builders --- */

dt_tensor *dt_conv2d_w(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b, int stride,
                       const int pad[4])
{
    dt_attr a = { .i = { stride, pad[0], pad[1], pad[2], pad[3] } };
    return dt_apply(g, &dt_op_conv2d, &a, DT_IN(x, w, b))->out[0];
}

dt_tensor *dt_conv2d(dt_graph *g, const char *name, dt_tensor *x, int64_t out, int k, int stride,
                     const int pad[4])
{
    int64_t c = dt_last_dim(x);
    dt_scope(g, "%s", name);
    dt_tensor *w = dt_weight(g, "weight", DT_DIMS(out, c, k, k), DT_INIT_FAN_IN, 0);
    dt_tensor *b = dt_weight(g, "bias", DT_DIMS(out), DT_INIT_FAN_IN, (double)(c * k * k));
    dt_tensor *y = dt_conv2d_w(g, x, w, b, stride, pad);
    dt_scope_end(g);
    return y;
}

dt_tensor *dt_upsample2(dt_graph *g, dt_tensor *x)
{
    return dt_apply(g, &dt_op_upsample2, NULL, DT_IN(x))->out[0];
}
