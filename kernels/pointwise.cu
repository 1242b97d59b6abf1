/* Maths: see pointwise.c.  Each thread takes four neighbouring elements per step; memory-bound. */
#include "kernels/cuda.cuh"

/* ---- y = f(x), y = f(a, b) ---- */

template <class F> static __global__ void map1_kernel(dt_view y, dt_view x, int64_t n, F f)
{
    int64_t stride = 4 * (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x); i < n; i += stride) {
        float v[4];
        dt_load4(v, x, i, n);
        for (int k = 0; k < 4; k++)
            v[k] = f(v[k]);
        dt_store4(y, i, n, v);
    }
}

template <class F>
static __global__ void map2_kernel(dt_view y, dt_view a, dt_view b, int64_t n, F f)
{
    int64_t stride = 4 * (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x); i < n; i += stride) {
        float u[4], v[4];
        dt_load4(u, a, i, n);
        dt_load4(v, b, i, n);
        for (int k = 0; k < 4; k++)
            u[k] = f(u[k], v[k]);
        dt_store4(y, i, n, u);
    }
}

template <class F> static void map1(const dt_node *n, const dt_run *r, F f)
{
    int64_t N = dt_count(n->out[0]);
    DT_LAUNCH(map1_kernel<F>, dt_grid(N, 4 * DT_THREADS), DT_THREADS, 0, r->dev->stream,
              dt_view_out(n, r, 0), dt_view_in(n, r, 0), N, f);
}

template <class F> static void map2(const dt_node *n, const dt_run *r, F f)
{
    int64_t N = dt_count(n->out[0]);
    DT_LAUNCH(map2_kernel<F>, dt_grid(N, 4 * DT_THREADS), DT_THREADS, 0, r->dev->stream,
              dt_view_out(n, r, 0), dt_view_in(n, r, 0), dt_view_in(n, r, 1), N, f);
}

template <class F> static void run1(const dt_node *n, const dt_run *r) { map1(n, r, F{}); }
template <class F> static void run2(const dt_node *n, const dt_run *r) { map2(n, r, F{}); }

struct silu { __device__ float operator()(float x) const { return x * dt_sigmoid(x); } };
struct silu_bwd {
    __device__ float operator()(float dy, float x) const
    {
        float s = dt_sigmoid(x);
        return dy * s * (1.0f + x * (1.0f - s));
    }
};

struct quick_gelu {
    __device__ float operator()(float x) const { return x * dt_sigmoid(1.702f * x); }
};
struct quick_gelu_bwd {
    __device__ float operator()(float dy, float x) const
    {
        float s = dt_sigmoid(1.702f * x);
        return dy * s * (1.0f + 1.702f * x * (1.0f - s));
    }
};

struct gelu_erf {
    __device__ float operator()(float x) const { return 0.5f * x * (1.0f + erff(0.70710678f * x)); }
};
struct gelu_erf_bwd {
    __device__ float operator()(float dy, float x) const
    {
        float P = 0.5f * (1.0f + erff(0.70710678f * x));
        return dy * (P + x * 0.39894228f * expf(-0.5f * x * x));
    }
};

struct gelu_tanh {
    __device__ float operator()(float x) const
    {
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    }
};
struct gelu_tanh_bwd {
    __device__ float operator()(float dy, float x) const
    {
        float q = x * x, t = tanhf(0.79788456f * (x + 0.044715f * q * x));
        float du = 0.79788456f * (1.0f + 3.0f * 0.044715f * q);
        return dy * (0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * du);
    }
};

struct relu { __device__ float operator()(float x) const { return x < 0.0f ? 0.0f : x; } };
struct relu_bwd {
    __device__ float operator()(float dy, float x) const { return x > 0.0f ? dy : 0.0f; }
};

/* ---- affine, cast ---- */

struct identity { __device__ float operator()(float x) const { return x; } };

struct affine {
    float a, b;
    __device__ float operator()(float x) const { return a * x + b; }
};

static void affine_run(const dt_node *n, const dt_run *r)
{
    map1(n, r, affine{ (float)n->attr.f[0], (float)n->attr.f[1] });
}

/* ---- a + b, a - b, a b ---- */

struct add { __device__ float operator()(float a, float b) const { return a + b; } };
struct sub { __device__ float operator()(float a, float b) const { return a - b; } };
struct mul { __device__ float operator()(float a, float b) const { return a * b; } };

/* ---- internal: the seed of the gradient, and dt_param.grad += ---- */

static __global__ void fill_kernel(float *y, float v, const float *factor) { *y = factor ? v * *factor : v; }

static void fill_run(const dt_node *n, const dt_run *r)
{
    DT_LAUNCH(fill_kernel, 1, 1, 0, r->dev->stream, (float *)r->out[0], (float)n->attr.f[0],
              (const float *)dt_view_in(n, r, 0).p);
}

static void accumulate_run(const dt_node *n, const dt_run *r)
{
    int64_t N = dt_count(n->out[0]);
    dt_view y = dt_view_out(n, r, 0);
    if (n->attr.i[DT_ATTR_ACC])
        DT_LAUNCH(map2_kernel<add>, dt_grid(N, 4 * DT_THREADS), DT_THREADS, 0, r->dev->stream, y, y,
                  dt_view_in(n, r, 0), N, add{});
    else
        map1(n, r, identity{});
}

const dt_cuda_op dt_cuda_pointwise[] = {
    { "accumulate",     accumulate_run },
    { "add",            run2<add> },
    { "affine",         affine_run },
    { "cast",           run1<identity> },
    { "fill",           fill_run },
    { "gelu_erf",       run1<gelu_erf> },
    { "gelu_erf_bwd",   run2<gelu_erf_bwd> },
    { "gelu_tanh",      run1<gelu_tanh> },
    { "gelu_tanh_bwd",  run2<gelu_tanh_bwd> },
    { "mul",            run2<mul> },
    { "quick_gelu",     run1<quick_gelu> },
    { "quick_gelu_bwd", run2<quick_gelu_bwd> },
    { "relu",           run1<relu> },
    { "relu_bwd",       run2<relu_bwd> },
    { "silu",           run1<silu> },
    { "silu_bwd",       run2<silu_bwd> },
    { "sub",            run2<sub> },
    { NULL }
};
