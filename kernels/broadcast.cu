/* Maths: see broadcast.c. */
#include "kernels/cuda.cuh"

/* ---- sum_mid ---- */

static int64_t span(const dt_dims *d, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        n *= d->d[i];
    return n;
}

static dt_columns sum_mid_columns(const dt_node *n)
{
    const dt_dims *d = &n->in[0]->dims;
    int f = (int)n->attr.i[0], b = d->nd - (int)n->attr.i[1];
    return dt_columns_of(span(d, 0, f), span(d, f, b), span(d, b, d->nd));
}

struct product {
    dt_view a, b;
    int64_t K;
    __device__ float operator()(int64_t row, int64_t c) const
    {
        return dt_load(a, row * K + c) * dt_load_or(b, row * K + c, 1.0f);
    }
};

static int64_t sum_mid_workspace(const dt_node *n) { return dt_columns_bytes(sum_mid_columns(n)); }

static void sum_mid_run(const dt_node *n, const dt_run *r)
{
    dt_columns s = sum_mid_columns(n);
    dt_columns_launch(r, dt_view_out(n, r, 0), (float *)r->workspace, s,
                      n->attr.i[DT_ATTR_ACC] != 0,
                      product{ dt_view_in(n, r, 0), dt_view_in(n, r, 1), s.K });
}

/* ---- rows repeated: out = f(x, y at the same place, small rows a, b).  Blocks stride over
 * rows, threads over columns. ---- */

struct operands {
    dt_view out, x, y;              /* [N, C]; y may be absent, as a and b */
    dt_view a, b;                   /* a row of C for every R rows of x, or (period > 0) for each row modulo period */
    int64_t N, C, R, period;
};

template <int V, class F> static __global__ void rows_kernel(operands o, F f)
{
    for (int64_t row = dt_first_row(); row < o.N; row += dt_row_stride()) {
        int64_t at = row * o.C, small = (o.period ? row % o.period : row / o.R) * o.C;
        for (int64_t c = V * threadIdx.x; c < o.C; c += V * blockDim.x) {
            float x[V], y[V], a[V], b[V];
            dt_loadv<V>(x, o.x, at + c);
            dt_loadv_or<V>(y, o.y, at + c, 0.0f);
            dt_loadv_or<V>(a, o.a, small + c, 0.0f);
            dt_loadv_or<V>(b, o.b, small + c, 0.0f);
            for (int k = 0; k < V; k++)
                x[k] = f(x[k], y[k], a[k], b[k]);
            dt_storev<V>(o.out, at + c, x);
        }
    }
}

template <class F> static void rows(const dt_run *r, operands o, F f)
{
    unsigned grid = dt_row_grid(o.N, o.C);
    if (o.C % 4)
        DT_LAUNCH((rows_kernel<1, F>), grid, dt_row_block(o.C), 0, r->dev->stream, o, f);
    else
        DT_LAUNCH((rows_kernel<4, F>), grid, dt_row_block(o.C), 0, r->dev->stream, o, f);
}

struct add_row {
    __device__ float operator()(float x, float, float a, float) const { return x + a; }
};
struct scale_shift {
    __device__ float operator()(float x, float, float a, float b) const
    {
        return x * (1.0f + a) + b;
    }
};
struct gate { __device__ float operator()(float x, float, float a, float) const { return a * x; } };
struct gate_add {
    __device__ float operator()(float x, float y, float a, float) const { return y + a * x; }
};

static operands operands_of(const dt_node *n, const dt_run *r)
{
    operands o = {};
    o.out = dt_view_out(n, r, 0);
    o.x = dt_view_in(n, r, 0);
    o.a = dt_view_in(n, r, 1);
    o.C = dt_width(n->in[0]);
    o.N = dt_count(n->in[0]) / o.C;
    o.R = o.N / n->in[0]->dims.d[0];
    return o;
}

static void add_rows_run(const dt_node *n, const dt_run *r)
{
    operands o = operands_of(n, r);
    o.period = dt_count(n->in[1]) / o.C;
    rows(r, o, add_row{});
}

static void modulate_run(const dt_node *n, const dt_run *r)
{
    operands o = operands_of(n, r);
    o.b = dt_view_in(n, r, 2);
    rows(r, o, scale_shift{});
}

static void gated_add_run(const dt_node *n, const dt_run *r)
{
    operands o = operands_of(n, r);
    o.y = dt_view_in(n, r, 2);
    if (o.y.p)
        rows(r, o, gate_add{});
    else
        rows(r, o, gate{});
}

const dt_cuda_op dt_cuda_broadcast[] = {
    { "add_rows",  add_rows_run },
    { "gated_add", gated_add_run },
    { "modulate",  modulate_run },
    { "sum_mid",   sum_mid_run, sum_mid_workspace },
    { NULL }
};
