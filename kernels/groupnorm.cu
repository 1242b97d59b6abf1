/* Maths: see groupnorm.c.  Sums run down the positions of each channel first (dt_columns), then
 * over the channels of a group. */
#include "kernels/cuda.cuh"

struct gshape {
    int64_t B, P, C, G;
};

static gshape shape_of(const dt_tensor *x, int64_t groups)
{
    gshape s = { x->dims.d[0], 0, dt_width(x), groups };
    s.P = dt_count(x) / (s.B * s.C);
    return s;
}

/* Rows (sample, position) of C channels, a warp or a block each: out = f(at, sample, channel) */
template <class F> static __global__ void channels_kernel(dt_view out, gshape s, F f)
{
    for (int64_t row = dt_first_row(); row < s.B * s.P; row += dt_row_stride())
        for (int64_t c = threadIdx.x; c < s.C; c += blockDim.x)
            dt_store(out, row * s.C + c, f(row * s.C + c, row / s.P, c));
}

template <class F> static void channels(const dt_run *r, dt_view out, gshape s, F f)
{
    DT_LAUNCH(channels_kernel<F>, dt_row_grid(s.B * s.P, s.C), dt_row_block(s.C), 0, r->dev->stream,
              out, s, f);
}

/* ---- forward ---- */

/* Mean and squared deviation of each channel in each split of the positions -> part [B, splits,
 * C][2] */
static __global__ void moments_kernel(float *part, dt_view x, dt_columns s)
{
    int64_t c = (int64_t)blockIdx.x * DT_COLUMNS + threadIdx.x;
    for (int64_t gp = blockIdx.y; gp < s.G * s.splits; gp += gridDim.y) {
        int64_t g = gp / s.splits, first = dt_split(s, gp % s.splits), end = dt_split(s, gp % s.splits + 1);
        float sum = 0, dev = 0;
        if (c < s.K)
            for (int64_t r = first + threadIdx.y; r < end; r += DT_COLUMN_ROWS)
                sum += dt_load(x, (g * s.R + r) * s.K + c);
        float m = dt_column_sum(sum) / (float)(end > first ? end - first : 1);
        if (c < s.K)
            for (int64_t r = first + threadIdx.y; r < end; r += DT_COLUMN_ROWS) {
                float d = dt_load(x, (g * s.R + r) * s.K + c) - m;
                dev += d * d;
            }
        dev = dt_column_sum(dev);
        if (threadIdx.y == 0 && c < s.K) {
            part[2 * (gp * s.K + c)] = m;
            part[2 * (gp * s.K + c) + 1] = dev;
        }
    }
}

/* One warp per sample and group adds up its splits and channels (Chan et al. 1979). */
static __global__ void statistics_kernel(float *mean, float *rstd, const float *part, gshape s,
                                         dt_columns col, float eps)
{
    int64_t b = blockIdx.x / s.G, g = blockIdx.x % s.G, cg = s.C / s.G;
    double count = (double)(s.P * cg), sum = 0, dev = 0;
    for (int64_t i = threadIdx.x; i < col.splits * cg; i += 32) {
        int64_t p = i / cg, n = dt_split(col, p + 1) - dt_split(col, p);
        sum += (double)n * part[2 * ((b * col.splits + p) * s.C + g * cg + i % cg)];
    }
    double m = dt_warp_sum(sum) / count;
    for (int64_t i = threadIdx.x; i < col.splits * cg; i += 32) {
        int64_t p = i / cg, n = dt_split(col, p + 1) - dt_split(col, p);
        const float *v = part + 2 * ((b * col.splits + p) * s.C + g * cg + i % cg);
        dev += v[1] + (double)n * (v[0] - m) * (v[0] - m);
    }
    dev = dt_warp_sum(dev);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = (float)m;
        rstd[blockIdx.x] = (float)(1.0 / sqrt(dev / count + eps));
    }
}

struct normalise {
    dt_view x, w, b;
    const float *mean, *rstd;
    int64_t G, cg;
    bool    silu;
    __device__ float operator()(int64_t at, int64_t sample, int64_t c) const
    {
        int64_t g = sample * G + c / cg;
        float y = (dt_load(x, at) - mean[g]) * rstd[g] * dt_load_or(w, c, 1.0f) +
                  dt_load_or(b, c, 0.0f);
        return silu ? y * dt_sigmoid(y) : y;
    }
};

static int64_t groupnorm_workspace(const dt_node *n)
{
    gshape s = shape_of(n->in[0], n->attr.i[0]);
    return 2 * dt_columns_bytes(dt_columns_of(s.B, s.P, s.C));
}

static void groupnorm_run(const dt_node *n, const dt_run *r)
{
    gshape s = shape_of(n->in[0], n->attr.i[0]);
    dt_columns col = dt_columns_of(s.B, s.P, s.C);
    dt_view x = dt_view_in(n, r, 0);
    float *mean = (float *)r->out[1], *rstd = (float *)r->out[2], *part = (float *)r->workspace;
    DT_LAUNCH(moments_kernel, dt_column_grid(col), dt_column_block(), 0, r->dev->stream, part, x,
              col);
    DT_LAUNCH(statistics_kernel, (unsigned)(s.B * s.G), 32, 0, r->dev->stream, mean, rstd, part, s,
              col, (float)n->attr.f[0]);
    channels(r, dt_view_out(n, r, 0), s,
             normalise{ x, dt_view_in(n, r, 1), dt_view_in(n, r, 2), mean, rstd, s.G, s.C / s.G,
                        n->attr.i[DT_ATTR_EPI] == DT_EPI_SILU });
}

/* ---- gradients: in dy, x, m, r, w or NULL ---- */

/* dy and dy xh at a row (sample, position) */
struct gradient_term {
    dt_view dy, x;                  /* x absent: dy alone */
    const float *mean, *rstd;
    int64_t P, C, G, cg;
    __device__ float operator()(int64_t row, int64_t c) const
    {
        float d = dt_load(dy, row * C + c);
        int64_t g = row / P * G + c / cg;
        return x.p ? d * ((dt_load(x, row * C + c) - mean[g]) * rstd[g]) : d;
    }
};

static gradient_term term_of(const dt_node *n, const dt_run *r, gshape s)
{
    return gradient_term{ dt_view_in(n, r, 0), dt_view_in(n, r, 1), (const float *)r->in[2], (const float *)r->in[3],
                          s.P, s.C, s.G, s.C / s.G };
}

/* Means of g and g xh over a group from sums per sample and channel: one warp each -> means [B
 * G][2] */
static __global__ void group_means_kernel(float *means, const float *s1, const float *s2, dt_view w,
                                          gshape s)
{
    int64_t b = blockIdx.x / s.G, g = blockIdx.x % s.G, cg = s.C / s.G;
    double g1 = 0, g2 = 0, count = (double)(s.P * cg);
    for (int64_t c = g * cg + threadIdx.x; c < (g + 1) * cg; c += 32) {
        double wc = dt_load_or(w, c, 1.0f);
        g1 += wc * s1[b * s.C + c];
        g2 += wc * s2[b * s.C + c];
    }
    g1 = dt_warp_sum(g1);
    g2 = dt_warp_sum(g2);
    if (threadIdx.x == 0) {
        means[2 * blockIdx.x] = (float)(g1 / count);
        means[2 * blockIdx.x + 1] = (float)(g2 / count);
    }
}

struct gradient_of_x {
    dt_view dy, x, w;
    const float *mean, *rstd, *means;
    int64_t G, cg;
    __device__ float operator()(int64_t at, int64_t sample, int64_t c) const
    {
        int64_t g = sample * G + c / cg;
        float k = rstd[g], xh = (dt_load(x, at) - mean[g]) * k;
        return k *
               (dt_load(dy, at) * dt_load_or(w, c, 1.0f) - means[2 * g] - xh * means[2 * g + 1]);
    }
};

/* Workspace: partial sums, then two sums per sample and channel, then two means per sample and
 * group. */
static int64_t groupnorm_dx_workspace(const dt_node *n)
{
    gshape s = shape_of(n->in[1], n->attr.i[0]);
    return dt_columns_bytes(dt_columns_of(s.B, s.P, s.C)) +
           2 * s.B * (s.C + s.G) * (int64_t)sizeof(float);
}

static void groupnorm_dx_run(const dt_node *n, const dt_run *r)
{
    gshape s = shape_of(n->in[1], n->attr.i[0]);
    dt_columns col = dt_columns_of(s.B, s.P, s.C);
    float *part = (float *)r->workspace,
          *s1 = part + dt_columns_bytes(col) / (int64_t)sizeof(float), *s2 = s1 + s.B * s.C,
          *means = s2 + s.B * s.C;
    gradient_term with_x = term_of(n, r, s), alone = with_x;
    alone.x.p = NULL;
    dt_columns_launch(r, dt_view{ s1, false }, part, col, false, alone);
    dt_columns_launch(r, dt_view{ s2, false }, part, col, false, with_x);
    dt_view w = dt_view_in(n, r, 4);
    DT_LAUNCH(group_means_kernel, (unsigned)(s.B * s.G), 32, 0, r->dev->stream, means, s1, s2, w,
              s);
    channels(
        r, dt_view_out(n, r, 0), s,
        gradient_of_x{ with_x.dy, with_x.x, w, with_x.mean, with_x.rstd, means, s.G, s.C / s.G });
}

static dt_columns groupnorm_dw_columns(gshape s) { return dt_columns_of(1, s.B * s.P, s.C); }

static int64_t groupnorm_dw_workspace(const dt_node *n)
{
    return dt_columns_bytes(groupnorm_dw_columns(shape_of(n->in[1], n->attr.i[0])));
}

static void groupnorm_dw_run(const dt_node *n, const dt_run *r)
{
    gshape s = shape_of(n->in[1], n->attr.i[0]);
    dt_columns_launch(r, dt_view_out(n, r, 0), (float *)r->workspace, groupnorm_dw_columns(s),
                      n->attr.i[DT_ATTR_ACC] != 0, term_of(n, r, s));
}

const dt_cuda_op dt_cuda_groupnorm[] = {
    { "groupnorm",    groupnorm_run,    groupnorm_workspace },
    { "groupnorm_dw", groupnorm_dw_run, groupnorm_dw_workspace },
    { "groupnorm_dx", groupnorm_dx_run, groupnorm_dx_workspace },
    { NULL }
};
