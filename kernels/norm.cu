/* Maths: see norm.c.  A warp or a block per row; passes after the first find the row in L1. */
#include "kernels/cuda.cuh"

/* ---- forward ---- */

struct norm_args {
    dt_view y, x, w, b;             /* x, y [N, C]; w, b [C] or absent */
    float  *rstd, *mean;            /* [N] or NULL */
    int64_t N, C;
    float   eps;
    bool    centre;
};

template <int V> static __global__ void norm_kernel(norm_args a)
{
    for (int64_t row = dt_first_row(); row < a.N; row += dt_row_stride()) {
        int64_t at = row * a.C;
        float x[V], w[V], b[V], sum = 0, m = 0, dev = 0;
        if (a.centre) {
            for (int64_t c = V * threadIdx.x; c < a.C; c += V * blockDim.x) {
                dt_loadv<V>(x, a.x, at + c);
                for (int k = 0; k < V; k++)
                    sum += x[k];
            }
            m = dt_row_sum(sum) / (float)a.C;
        }
        for (int64_t c = V * threadIdx.x; c < a.C; c += V * blockDim.x) {
            dt_loadv<V>(x, a.x, at + c);
            for (int k = 0; k < V; k++)
                dev += (x[k] - m) * (x[k] - m);
        }
        float rstd = 1.0f / sqrtf(dt_row_sum(dev) / (float)a.C + a.eps);
        for (int64_t c = V * threadIdx.x; c < a.C; c += V * blockDim.x) {
            dt_loadv<V>(x, a.x, at + c);
            dt_loadv_or<V>(w, a.w, c, 1.0f);
            dt_loadv_or<V>(b, a.b, c, 0.0f);
            for (int k = 0; k < V; k++)
                x[k] = (x[k] - m) * rstd * w[k] + b[k];
            dt_storev<V>(a.y, at + c, x);
        }
        if (threadIdx.x == 0 && a.rstd)
            a.rstd[row] = rstd;
        if (threadIdx.x == 0 && a.mean)
            a.mean[row] = m;
    }
}

static void norm_run(const dt_node *n, const dt_run *r, bool centre)
{
    norm_args a = {};
    a.y = dt_view_out(n, r, 0);
    a.x = dt_view_in(n, r, 0);
    a.w = dt_view_in(n, r, 1);
    a.b = dt_view_in(n, r, 2);
    a.rstd = (float *)r->out[1];
    a.mean = centre ? (float *)r->out[2] : NULL;
    a.C = dt_width(n->in[0]);
    a.N = dt_count(n->in[0]) / a.C;
    a.eps = (float)n->attr.f[0];
    a.centre = centre;
    DT_LAUNCH(a.C % 4 ? norm_kernel<1> : norm_kernel<4>, dt_row_grid(a.N, a.C), dt_row_block(a.C),
              0, r->dev->stream, a);
}

static void layernorm_run(const dt_node *n, const dt_run *r) { norm_run(n, r, true); }
static void rmsnorm_run(const dt_node *n, const dt_run *r) { norm_run(n, r, false); }

/* ---- gradient of x: in dy, x, r, w or NULL, m (LayerNorm) ---- */

struct norm_dx_args {
    dt_view dx, dy, x, w;
    const float *rstd, *mean;       /* mean NULL: RMSNorm */
    int64_t N, C;
};

template <int V> static __global__ void norm_dx_kernel(norm_dx_args a)
{
    for (int64_t row = dt_first_row(); row < a.N; row += dt_row_stride()) {
        int64_t at = row * a.C;
        float dy[V], x[V], w[V], rstd = a.rstd[row], m = a.mean ? a.mean[row] : 0.0f, s1 = 0,
                                 s2 = 0;
        for (int64_t c = V * threadIdx.x; c < a.C; c += V * blockDim.x) {
            dt_loadv<V>(dy, a.dy, at + c);
            dt_loadv<V>(x, a.x, at + c);
            dt_loadv_or<V>(w, a.w, c, 1.0f);
            for (int k = 0; k < V; k++) {
                s1 += dy[k] * w[k];
                s2 += dy[k] * w[k] * (x[k] - m);
            }
        }
        float g1 = a.mean ? dt_row_sum(s1) / (float)a.C : 0.0f;
        float g2 = dt_row_sum(s2) * rstd / (float)a.C;
        for (int64_t c = V * threadIdx.x; c < a.C; c += V * blockDim.x) {
            dt_loadv<V>(dy, a.dy, at + c);
            dt_loadv<V>(x, a.x, at + c);
            dt_loadv_or<V>(w, a.w, c, 1.0f);
            for (int k = 0; k < V; k++)
                x[k] = rstd * (dy[k] * w[k] - g1 - (x[k] - m) * rstd * g2);
            dt_storev<V>(a.dx, at + c, x);
        }
    }
}

static void norm_dx_run(const dt_node *n, const dt_run *r)
{
    norm_dx_args a = {};
    a.dx = dt_view_out(n, r, 0);
    a.dy = dt_view_in(n, r, 0);
    a.x = dt_view_in(n, r, 1);
    a.w = dt_view_in(n, r, 3);
    a.rstd = (const float *)r->in[2];
    a.mean = (const float *)dt_view_in(n, r, 4).p;
    a.C = dt_width(n->in[1]);
    a.N = dt_count(n->in[1]) / a.C;
    DT_LAUNCH(a.C % 4 ? norm_dx_kernel<1> : norm_dx_kernel<4>, dt_row_grid(a.N, a.C),
              dt_row_block(a.C), 0, r->dev->stream, a);
}

/* ---- gradient of w: in dy, x, r, m or NULL ---- */

struct norm_dw_term {
    dt_view dy, x;
    const float *rstd, *mean;
    int64_t C;
    __device__ float operator()(int64_t row, int64_t c) const
    {
        float m = mean ? mean[row] : 0.0f;
        return dt_load(dy, row * C + c) * ((dt_load(x, row * C + c) - m) * rstd[row]);
    }
};

static dt_columns norm_dw_columns(const dt_node *n)
{
    int64_t C = dt_width(n->in[1]);
    return dt_columns_of(1, dt_count(n->in[1]) / C, C);
}

static int64_t norm_dw_workspace(const dt_node *n) { return dt_columns_bytes(norm_dw_columns(n)); }

static void norm_dw_run(const dt_node *n, const dt_run *r)
{
    dt_columns s = norm_dw_columns(n);
    norm_dw_term f = { dt_view_in(n, r, 0), dt_view_in(n, r, 1), (const float *)r->in[2],
                       (const float *)dt_view_in(n, r, 3).p, s.K };
    dt_columns_launch(r, dt_view_out(n, r, 0), (float *)r->workspace, s,
                      n->attr.i[DT_ATTR_ACC] != 0, f);
}

const dt_cuda_op dt_cuda_norm[] = {
    { "layernorm", layernorm_run },
    { "norm_dw",   norm_dw_run, norm_dw_workspace },
    { "norm_dx",   norm_dx_run },
    { "rmsnorm",   rmsnorm_run },
    { NULL }
};
