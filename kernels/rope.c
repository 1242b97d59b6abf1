/* Interleaved rotary embedding.   Su et al. 2021, eq. 34
 *
 *   (y0, y1) = (x0 c - x1 s, x1 c + x0 s)  for each pair (x[2k], x[2k+1]), c = cos[pos, k], s = sin[pos, k]
 *
 *   x, y [B, S, h, d]   cos, sin [S, d/2] fp32
 *
 * A rotation: the gradient is the same op with the angle negated (attr.i[0] = 1). */
#include "kernels/opdef.h"

static const char *rope_shape(dt_node *n)
{
    const dt_tensor *x = n->in[0], *c = n->in[1], *s = n->in[2];
    if (x->dims.nd != 4 || x->dims.d[3] % 2 || x->dims.d[3] > DT_CHUNK || !dt_is_float(x))
        return "x must be [B, S, h, d] with d even and at most 1024";
    if (c->dims.nd != 2 || c->dims.d[0] != x->dims.d[1] || c->dims.d[1] != x->dims.d[3] / 2 ||
        !dt_dims_same(c->dims, s->dims) || c->dtype != DT_F32 || s->dtype != DT_F32)
        return "cos and sin must be [S, d/2] fp32 of x [B, S, h, d]";
    dt_node_out(n, 0, x->dtype, x->dims);
    return NULL;
}

static void rotate(float *y, const float *x, const float *c, const float *s, float sign,
                   int64_t half)
{
#pragma omp simd
    for (int64_t k = 0; k < half; k++) {
        float x0 = x[2 * k], x1 = x[2 * k + 1], sk = sign * s[k];
        y[2 * k] = x0 * c[k] - x1 * sk;
        y[2 * k + 1] = x1 * c[k] + x0 * sk;
    }
}

static void rope_run(const dt_node *n, const dt_run *r)
{
    const dt_dims *d = &n->in[0]->dims;
    int64_t S = d->d[1], h = d->d[2], dim = d->d[3], step = dt_max64(1, DT_CHUNK / dim);
    const float *cos = r->in[1], *sin = r->in[2];
    float sign = n->attr.i[0] ? -1.0f : 1.0f;
    dt_dtype t = n->in[0]->dtype;
#pragma omp parallel for num_threads(dt_team(r, d->d[0] * S * h * dim)) schedule(static)
    for (int64_t bs = 0; bs < d->d[0] * S; bs++) {
        float bx[DT_CHUNK] DT_ALIGNED, by[DT_CHUNK] DT_ALIGNED;
        const float *c = cos + bs % S * (dim / 2), *s = sin + bs % S * (dim / 2);
        for (int64_t i = 0; i < h; i += step) {
            int64_t heads = dt_min64(step, h - i), at = (bs * h + i) * dim;
            const float *x = dt_row_in(r->in[0], t, at, heads * dim, bx);
            float *y = dt_row_out(r->out[0], t, at, by);
            for (int64_t k = 0; k < heads; k++)
                rotate(y + k * dim, x + k * dim, c, s, sign, dim / 2);
            dt_row_flush(r->out[0], t, at, heads * dim, y);
        }
    }
}

static void rope_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dx[0] = dt_make(g, &dt_op_rope, DT_ATTR(.i = { !n->attr.i[0] }),
                    DT_IN(dy[0], n->in[1], n->in[2]));
}

const dt_op dt_op_rope = {
    .name = "rope", .shape = rope_shape, .grad = rope_grad, .inplace = 1,
    .cpu = { .run = rope_run },
};

dt_tensor *dt_rope(dt_graph *g, dt_tensor *x, dt_tensor *cos, dt_tensor *sin)
{
    return dt_make(g, &dt_op_rope, NULL, DT_IN(x, cos, sin));
}
