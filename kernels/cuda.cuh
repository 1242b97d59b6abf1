/* cuda.cuh - what the .cu files share on the device: typed views of memory, reductions in a
 * fixed order, sums of columns. */
#ifndef DT_KERNELS_CUDA_CUH
#define DT_KERNELS_CUDA_CUH
#include <cuda_bf16.h>
#include "graph/cuda_plugin.h"

/* ---- memory: fp32 or bf16, read and written as fp32.  The branch on the type is the same for
 * all threads. ---- */

struct dt_view {
    void *p;
    bool  bf16;
};

static inline dt_view dt_view_of(void *p, const dt_tensor *t)
{
    return dt_view{ t ? p : NULL, t && t->dtype == DT_BF16 };
}
static inline dt_view dt_view_in(const dt_node *n, const dt_run *r, int i)
{
    return n->in[i] ? dt_view_of(r->in[i], n->in[i]) : dt_view{ NULL, false };
}
static inline dt_view dt_view_out(const dt_node *n, const dt_run *r, int i)
{
    return dt_view_of(r->out[i], n->out[i]);
}

static __device__ inline float dt_load(dt_view v, int64_t i)
{
    return v.bf16 ? __bfloat162float(((const __nv_bfloat16 *)v.p)[i]) : ((const float *)v.p)[i];
}

static __device__ inline float dt_load_or(dt_view v, int64_t i, float absent)
{
    return v.p ? dt_load(v, i) : absent;
}

static __device__ inline void dt_store(dt_view v, int64_t i, float x)
{
    if (v.bf16)
        ((__nv_bfloat16 *)v.p)[i] = __float2bfloat16_rn(x);
    else
        ((float *)v.p)[i] = x;
}

static __device__ inline float dt_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* Four elements at i, a multiple of 4, in one access; fewer at the end n. */
static __device__ inline void dt_load4(float x[4], dt_view v, int64_t i, int64_t n)
{
    if (i + 4 > n) {
        for (int k = 0; k < 4; k++)
            x[k] = i + k < n ? dt_load(v, i + k) : 0.0f;
    } else if (v.bf16) {
        ushort4 u = *(const ushort4 *)((const __nv_bfloat16 *)v.p + i);
        x[0] = __uint_as_float((unsigned)u.x << 16);
        x[1] = __uint_as_float((unsigned)u.y << 16);
        x[2] = __uint_as_float((unsigned)u.z << 16);
        x[3] = __uint_as_float((unsigned)u.w << 16);
    } else {
        float4 f = *(const float4 *)((const float *)v.p + i);
        x[0] = f.x, x[1] = f.y, x[2] = f.z, x[3] = f.w;
    }
}

static __device__ inline void dt_store4(dt_view v, int64_t i, int64_t n, const float x[4])
{
    if (i + 4 > n) {
        for (int k = 0; k < 4 && i + k < n; k++)
            dt_store(v, i + k, x[k]);
    } else if (v.bf16) {
        ushort4 u;
        u.x = __bfloat16_as_ushort(__float2bfloat16_rn(x[0]));
        u.y = __bfloat16_as_ushort(__float2bfloat16_rn(x[1]));
        u.z = __bfloat16_as_ushort(__float2bfloat16_rn(x[2]));
        u.w = __bfloat16_as_ushort(__float2bfloat16_rn(x[3]));
        *(ushort4 *)((__nv_bfloat16 *)v.p + i) = u;
    } else {
        *(float4 *)((float *)v.p + i) = make_float4(x[0], x[1], x[2], x[3]);
    }
}

/* V = 4: as above, rows being a multiple of 4; V = 1: any. */
template <int V> static __device__ inline void dt_loadv(float *x, dt_view v, int64_t i)
{
    if (V == 4)
        dt_load4(x, v, i, i + 4);
    else
        x[0] = dt_load(v, i);
}

template <int V>
static __device__ inline void dt_loadv_or(float *x, dt_view v, int64_t i, float absent)
{
    if (v.p)
        dt_loadv<V>(x, v, i);
    else
        for (int k = 0; k < V; k++)
            x[k] = absent;
}

template <int V> static __device__ inline void dt_storev(dt_view v, int64_t i, const float *x)
{
    if (V == 4)
        dt_store4(v, i, i + 4, x);
    else
        dt_store(v, i, x[0]);
}

/* ---- launches ---- */

constexpr int64_t DT_THREADS = 256, DT_MAX_GRID = 16384;    /* kernels stride over what a grid of that size leaves */

static inline unsigned dt_grid(int64_t items, int64_t per_block)
{
    int64_t blocks = (items + per_block - 1) / per_block;
    return (unsigned)(blocks < 1 ? 1 : blocks > DT_MAX_GRID ? DT_MAX_GRID : blocks);
}

static inline int64_t dt_count(const dt_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->dims.nd; i++)
        n *= t->dims.d[i];
    return n;
}

static inline int64_t dt_width(const dt_tensor *t) { return t->dims.d[t->dims.nd - 1]; }

/* A row per warp when rows are short, a row per block when they are long. */
static inline dim3 dt_row_block(int64_t C) { return C <= 1024 ? dim3(32, 8) : dim3(256, 1); }
static inline unsigned dt_row_grid(int64_t N, int64_t C) { return dt_grid(N, C <= 1024 ? 8 : 1); }
static __device__ inline int64_t dt_first_row()
{
    return (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
}
static __device__ inline int64_t dt_row_stride() { return (int64_t)gridDim.x * blockDim.y; }

/* ---- sums, always in the same order ---- */

static __device__ inline float dt_warp_sum(float v)
{
    for (int o = 16; o > 0; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

static __device__ inline double dt_warp_sum(double v)
{
    for (int o = 16; o > 0; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

/* Over the threads of a row of the block: all get the sum.  A block of several rows has 32
 * threads in each. */
static __device__ float dt_row_sum(float v)
{
    __shared__ float part[32];
    v = dt_warp_sum(v);
    if (blockDim.x == 32)
        return v;
    unsigned lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    if (lane == 0)
        part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = dt_warp_sum(lane < warps ? part[lane] : 0.0f);
    __syncthreads();                                /* part may be written again */
    return v;
}

/* ---- sums of columns: out[g, c] = sum over R rows of f(row, c), rows g R .. g R + R - 1 of K
 * columns
 *
 * Rows are cut into splits by R alone.  A block adds a split of 32 columns with 8 rows of
 * threads; a second kernel adds the splits. ---- */

constexpr int64_t DT_COLUMNS = 32, DT_COLUMN_ROWS = 8, DT_SPLIT_ROWS = 64, DT_MAX_SPLITS = 64;

struct dt_columns {
    int64_t G, R, K, splits;
};

static inline dt_columns dt_columns_of(int64_t G, int64_t R, int64_t K)
{
    int64_t s = (R + DT_SPLIT_ROWS - 1) / DT_SPLIT_ROWS;
    return dt_columns{ G, R, K, s > DT_MAX_SPLITS ? DT_MAX_SPLITS : s };
}

/* The first of the R rows in split p, and for p = splits the end. */
static __device__ inline int64_t dt_split(dt_columns s, int64_t p)
{
    int64_t first = p * ((s.R + s.splits - 1) / s.splits);
    return first < s.R ? first : s.R;
}

static inline int64_t dt_columns_bytes(dt_columns s)
{
    return s.G * s.splits * s.K * (int64_t)sizeof(float);
}

/* Sum over the 8 rows of threads, given to all of them. */
static __device__ float dt_column_sum(float v)
{
    __shared__ float tile[DT_COLUMN_ROWS][DT_COLUMNS + 1];
    tile[threadIdx.y][threadIdx.x] = v;
    __syncthreads();
    float sum = 0;
    for (int k = 0; k < DT_COLUMN_ROWS; k++)
        sum += tile[k][threadIdx.x];
    __syncthreads();                                /* tile may be written again */
    return sum;
}

template <class F> static __global__ void dt_columns_kernel(float *part, dt_columns s, F f)
{
    int64_t c = (int64_t)blockIdx.x * DT_COLUMNS + threadIdx.x;
    for (int64_t gp = blockIdx.y; gp < s.G * s.splits; gp += gridDim.y) {
        int64_t g = gp / s.splits, first = dt_split(s, gp % s.splits), end = dt_split(s, gp % s.splits + 1);
        float sum = 0;
        if (c < s.K)
            for (int64_t r = first + threadIdx.y; r < end; r += DT_COLUMN_ROWS)
                sum += f(g * s.R + r, c);
        sum = dt_column_sum(sum);
        if (threadIdx.y == 0 && c < s.K)
            part[gp * s.K + c] = sum;
    }
}

static __global__ void dt_columns_add_kernel(dt_view out, const float *part, dt_columns s, bool add)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.G * s.K; i += stride) {
        float sum = add ? dt_load(out, i) : 0.0f;
        for (int64_t p = 0; p < s.splits; p++)
            sum += part[(i / s.K * s.splits + p) * s.K + i % s.K];
        dt_store(out, i, sum);
    }
}

static inline dim3 dt_column_grid(dt_columns s)
{
    int64_t rows = s.G * s.splits;
    return dim3((unsigned)((s.K + DT_COLUMNS - 1) / DT_COLUMNS),
                (unsigned)(rows > 65535 ? 65535 : rows));
}

static inline dim3 dt_column_block()
{
    return dim3((unsigned)DT_COLUMNS, (unsigned)DT_COLUMN_ROWS);
}

/* part: dt_columns_bytes of workspace */
template <class F>
static void dt_columns_launch(const dt_run *r, dt_view out, float *part, dt_columns s, bool add,
                              F f)
{
    DT_LAUNCH(dt_columns_kernel<F>, dt_column_grid(s), dt_column_block(), 0, r->dev->stream, part,
              s, f);
    DT_LAUNCH(dt_columns_add_kernel, dt_grid(s.G * s.K, DT_THREADS), DT_THREADS, 0, r->dev->stream,
              out, part, s, add);
}

#endif
