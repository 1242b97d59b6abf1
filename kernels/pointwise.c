/* Functions of one element, or of two at the same place.
 *
 *   silu        x s,  s = sigmoid(x)                          d = s (1 + x (1 - s))
 *   quick_gelu  x s,  s = sigmoid(1.702 x)                    d = s (1 + 1.702 x (1 - s))
 *   gelu_erf    x P,  P = (1 + erf(x / sqrt 2)) / 2           d = P + x exp(-x^2 / 2) / sqrt(2 pi)
 *   gelu_tanh   x (1 + t) / 2,  t = tanh u,  u = sqrt(2 / pi) (x + 0.044715 x^3)
 *                                                             d = (1 + t) / 2 + x (1 - t^2) u' / 2
 *
 * All arithmetic is fp32; values are rounded once, when stored.  In place is fine everywhere:
 * element i is read before it is written.  Hendrycks & Gimpel 2016 (GELU), Elfwing et al. 2018
 * (SiLU). */
#include "kernels/opdef.h"
#include "kernels/vmath.h"

/* ---- y = f(x) ---- */

typedef void row1(float *y, const float *x, int64_t n, const double *f);
typedef void row2(float *y, const float *a, const float *b, int64_t n, const double *f);

static void run1(const dt_node *n, const dt_run *r, row1 *fn)
{
    dt_dtype tx = n->in[0]->dtype, ty = n->out[0]->dtype;
    int64_t N = dt_tensor_numel(n->out[0]);
#pragma omp parallel for num_threads(dt_team(r, N)) schedule(static)
    for (int64_t at = 0; at < N; at += DT_CHUNK) {
        float bx[DT_CHUNK] DT_ALIGNED, by[DT_CHUNK] DT_ALIGNED,
            *y = dt_row_out(r->out[0], ty, at, by);
        int64_t len = dt_min64(DT_CHUNK, N - at);
        fn(y, dt_row_in(r->in[0], tx, at, len, bx), len, n->attr.f);
        dt_row_flush(r->out[0], ty, at, len, y);
    }
}

static void run2(const dt_node *n, const dt_run *r, row2 *fn)
{
    dt_dtype ta = n->in[0]->dtype, tb = n->in[1]->dtype, ty = n->out[0]->dtype;
    int64_t N = dt_tensor_numel(n->out[0]);
#pragma omp parallel for num_threads(dt_team(r, N)) schedule(static)
    for (int64_t at = 0; at < N; at += DT_CHUNK) {
        float ba[DT_CHUNK] DT_ALIGNED, bb[DT_CHUNK] DT_ALIGNED, by[DT_CHUNK] DT_ALIGNED;
        int64_t len = dt_min64(DT_CHUNK, N - at);
        float *y = dt_row_out(r->out[0], ty, at, by);
        fn(y, dt_row_in(r->in[0], ta, at, len, ba), dt_row_in(r->in[1], tb, at, len, bb), len,
           n->attr.f);
        dt_row_flush(r->out[0], ty, at, len, y);
    }
}

static const char *shape1(dt_node *n)
{
    if (!dt_is_float(n->in[0]))
        return "needs a float tensor";
    dt_node_out(n, 0, n->in[0]->dtype, n->in[0]->dims);
    return NULL;
}

static const char *shape2(dt_node *n)
{
    if (!dt_dims_same(n->in[0]->dims, n->in[1]->dims) || !dt_is_float(n->in[0]) ||
        !dt_is_float(n->in[1]))
        return "operands must be float tensors of one shape";
    dt_node_out(n, 0, n->in[0]->dtype, n->in[0]->dims);
    return NULL;
}

/* The descriptors of a function: forward from NAME_row, gradient op NAME_bwd (dy, x) -> dx from
 * NAME_bwd_row. */
#define FUNCTION(NAME, EPILOGUE) \
    static void NAME##_run(const dt_node *n, const dt_run *r) { run1(n, r, NAME##_row); } \
    static void NAME##_bwd_run(const dt_node *n, const dt_run *r) { run2(n, r, NAME##_bwd_row); } \
    const dt_op dt_op_##NAME##_bwd = { \
        .name = #NAME "_bwd", \
        .shape = shape2, \
        .inplace = 3, \
        .cpu = { .run = NAME##_bwd_run }, \
    }; \
    static void NAME##_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx) \
    { \
        dx[0] = dt_make(g, &dt_op_##NAME##_bwd, NULL, DT_IN(dy[0], n->in[0])); \
        dx[0] = dt_grad_of(g, n->in[0], dx[0]); \
    } \
    const dt_op dt_op_##NAME = { \
        .name = #NAME, \
        .shape = shape1, \
        .grad = NAME##_grad, \
        .inplace = 1, \
        .epilogue = EPILOGUE, \
        .cpu = { .run = NAME##_run }, \
    }; \
    dt_tensor *dt_##NAME(dt_graph *g, dt_tensor *x) \
    { \
        return dt_make(g, &dt_op_##NAME, NULL, DT_IN(x)); \
    }

static void silu_row(float *y, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * dt_sigmoidf(x[i]);
}

static void silu_bwd_row(float *dx, const float *dy, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float s = dt_sigmoidf(x[i]);
        dx[i] = dy[i] * s * (1.0f + x[i] * (1.0f - s));
    }
}
FUNCTION(silu, DT_EPI_SILU)

static void quick_gelu_row(float *y, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * dt_sigmoidf(1.702f * x[i]);
}

static void quick_gelu_bwd_row(float *dx, const float *dy, const float *x, int64_t n,
                               const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float s = dt_sigmoidf(1.702f * x[i]);
        dx[i] = dy[i] * s * (1.0f + 1.702f * x[i] * (1.0f - s));
    }
}
FUNCTION(quick_gelu, DT_EPI_QUICK_GELU)

static void gelu_erf_row(float *y, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = 0.5f * x[i] * (1.0f + dt_erff(0.70710678f * x[i]));
}

static void gelu_erf_bwd_row(float *dx, const float *dy, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float P = 0.5f * (1.0f + dt_erff(0.70710678f * x[i]));
        dx[i] = dy[i] * (P + x[i] * 0.39894228f * dt_expf(-0.5f * x[i] * x[i]));
    }
}
FUNCTION(gelu_erf, DT_EPI_GELU_ERF)

/* x (1 + tanh u) / 2 is x sigmoid(2u): one exponential, and no cancellation where tanh is near -1. */
#define GELU_2U(X) (1.59576912f * ((X) + 0.044715f * (X) * (X) * (X)))

static void gelu_tanh_row(float *y, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * dt_sigmoidf(GELU_2U(x[i]));
}

/* sigmoid' = e s^2 with e = exp(-2u), which must not become infinite: its limit is where s^2 is 0. */
static void gelu_tanh_bwd_row(float *dx, const float *dy, const float *x, int64_t n,
                              const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float v = GELU_2U(x[i]), dv = 1.59576912f * (1.0f + 3.0f * 0.044715f * x[i] * x[i]);
        float e = dt_expf(v < -80.0f ? 80.0f : -v), s = 1.0f / (1.0f + e);
        dx[i] = dy[i] * s * (1.0f + x[i] * (e * s) * dv);
    }
}
FUNCTION(gelu_tanh, DT_EPI_GELU_TANH)

void dt_epilogue_row(enum dt_epilogue e, float *y, int64_t n)
{
    static row1 *const of[] = { [DT_EPI_SILU] = silu_row, [DT_EPI_GELU_TANH] = gelu_tanh_row,
                                [DT_EPI_GELU_ERF] = gelu_erf_row, [DT_EPI_QUICK_GELU] = quick_gelu_row };
    if (e)
        of[e](y, y, n, NULL);
}

static void relu_row(float *y, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] < 0.0f ? 0.0f : x[i];           /* NaN stays */
}

static void relu_bwd_row(float *dx, const float *dy, const float *x, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;
}
FUNCTION(relu, DT_EPI_NONE)

/* ---- affine, cast ---- */

static void affine_row(float *y, const float *x, int64_t n, const double *f)
{
    float a = (float)f[0], b = (float)f[1];
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = a * x[i] + b;
}

static void affine_run(const dt_node *n, const dt_run *r) { run1(n, r, affine_row); }

static void affine_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dx[0] = dt_grad_of(g, n->in[0], dt_affine(g, dy[0], n->attr.f[0], 0));
}

const dt_op dt_op_affine = {
    .name = "affine", .shape = shape1, .grad = affine_grad, .inplace = 1,
    .cpu = { .run = affine_run },
};

dt_tensor *dt_affine(dt_graph *g, dt_tensor *x, double a, double b)
{
    return dt_make(g, &dt_op_affine, DT_ATTR(.f = { a, b }), DT_IN(x));
}

static const char *cast_shape(dt_node *n)
{
    dt_node_out(n, 0, (dt_dtype)n->attr.i[0], n->in[0]->dims);
    return NULL;
}

static void cast_run(const dt_node *n, const dt_run *r)
{
    dt_dtype tx = n->in[0]->dtype, ty = n->out[0]->dtype;
    int64_t N = dt_tensor_numel(n->out[0]), step = 8 * DT_CHUNK;
#pragma omp parallel for num_threads(dt_team(r, N)) schedule(static)
    for (int64_t at = 0; at < N; at += step)
        dt_convert((char *)r->out[0] + at * (int64_t)dt_dtype_size(ty), ty,
                   (const char *)r->in[0] + at * (int64_t)dt_dtype_size(tx), tx,
                   dt_min64(step, N - at));
}

static void cast_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dx[0] = dt_grad_of(g, n->in[0], dy[0]);
}

const dt_op dt_op_cast = {
    .name = "cast", .shape = cast_shape, .grad = cast_grad, .cpu = { .run = cast_run },
};

dt_tensor *dt_cast(dt_graph *g, dt_tensor *x, dt_dtype t)
{
    if (x->dtype == t)
        return x;
    return dt_make(g, &dt_op_cast, DT_ATTR(.i = { t }), DT_IN(x));
}

/* ---- a + b, a - b, a b ---- */

static void add_row(float *y, const float *a, const float *b, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void sub_row(float *y, const float *a, const float *b, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] - b[i];
}

static void mul_row(float *y, const float *a, const float *b, int64_t n, const double *f)
{
    (void)f;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] * b[i];
}

static void add_run(const dt_node *n, const dt_run *r) { run2(n, r, add_row); }
static void sub_run(const dt_node *n, const dt_run *r) { run2(n, r, sub_row); }
static void mul_run(const dt_node *n, const dt_run *r) { run2(n, r, mul_row); }

static void add_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    for (int i = 0; i < 2; i++)
        if (dt_wants(n, i))
            dx[i] = dt_grad_of(g, n->in[i], dy[0]);
}

static void sub_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    if (dt_wants(n, 0))
        dx[0] = dt_grad_of(g, n->in[0], dy[0]);
    if (dt_wants(n, 1))
        dx[1] = dt_grad_of(g, n->in[1], dt_affine(g, dy[0], -1, 0));
}

static void mul_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    for (int i = 0; i < 2; i++)
        if (dt_wants(n, i))
            dx[i] = dt_grad_of(g, n->in[i], dt_mul(g, dy[0], n->in[1 - i]));
}

const dt_op dt_op_add = {
    .name = "add", .shape = shape2, .grad = add_grad, .inplace = 3, .cpu = { .run = add_run },
};
const dt_op dt_op_sub = {
    .name = "sub", .shape = shape2, .grad = sub_grad, .inplace = 3, .cpu = { .run = sub_run },
};
const dt_op dt_op_mul = {
    .name = "mul", .shape = shape2, .grad = mul_grad, .inplace = 3, .cpu = { .run = mul_run },
};

dt_tensor *dt_add(dt_graph *g, dt_tensor *a, dt_tensor *b)
{
    return dt_make(g, &dt_op_add, NULL, DT_IN(a, b));
}
dt_tensor *dt_sub(dt_graph *g, dt_tensor *a, dt_tensor *b)
{
    return dt_make(g, &dt_op_sub, NULL, DT_IN(a, b));
}
dt_tensor *dt_mul(dt_graph *g, dt_tensor *a, dt_tensor *b)
{
    return dt_make(g, &dt_op_mul, NULL, DT_IN(a, b));
}

/* ---- internal: the seed of the gradient, and dt_param.grad += ---- */

/* out [1] fp32 = f[0], times in[0] [1] fp32 if given */
static const char *fill_shape(dt_node *n)
{
    if (n->in[0] && (dt_tensor_numel(n->in[0]) != 1 || n->in[0]->dtype != DT_F32))
        return "the factor must be one fp32 number";
    dt_node_out(n, 0, DT_F32, DT_DIMS(1));
    return NULL;
}

static void fill_run(const dt_node *n, const dt_run *r)
{
    *(float *)r->out[0] = (float)n->attr.f[0] * (n->in[0] ? *(const float *)r->in[0] : 1.0f);
}

const dt_op dt_op_fill = { .name = "fill", .shape = fill_shape, .cpu = { .run = fill_run } };

static const char *accumulate_shape(dt_node *n)
{
    dt_node_out(n, 0, DT_F32, n->in[0]->dims);
    return NULL;
}

static void accumulate_run(const dt_node *n, const dt_run *r)
{
    dt_dtype t = n->in[0]->dtype;
    bool add = n->attr.i[DT_ATTR_ACC];
    int64_t N = dt_tensor_numel(n->in[0]);
#pragma omp parallel for num_threads(dt_team(r, N)) schedule(static)
    for (int64_t at = 0; at < N; at += DT_CHUNK) {
        float buf[DT_CHUNK] DT_ALIGNED, *y = (float *)r->out[0] + at;
        int64_t len = dt_min64(DT_CHUNK, N - at);
        const float *x = dt_row_in(r->in[0], t, at, len, buf);
        if (add)
            add_row(y, y, x, len, NULL);
        else
            memcpy(y, x, (size_t)len * sizeof(*y));
    }
}

static void accumulate_cost(const dt_node *n, dt_cost *c)
{
    c->bytes = (double)dt_tensor_numel(n->in[0]) * (8.0 + (double)dt_dtype_size(n->in[0]->dtype));
}

const dt_op dt_op_accumulate = {
    .name = "accumulate", .shape = accumulate_shape, .cost = accumulate_cost, .accumulates = true,
    .cpu = { .run = accumulate_run },
};
