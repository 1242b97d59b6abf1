/* Data movement.  Elements are moved as bytes: any dtype.
 *
 *   concat     along one dim                            dx = the slices
 *   slice      [start, start + len) of one dim          dx = zeros with dy put back
 *   chunk      n equal slices of the last dim at once   dx = one concat, zeros where no gradient came
 *   permute    out dim i = x dim perm[i]                dx = the inverse permutation
 *
 * For a dim d, a tensor is seen as [outer, d, inner]: each outer index owns one contiguous run
 * of d*inner elements. */
#include "kernels/opdef.h"

static int64_t outer_of(const dt_tensor *x, int dim) { return dt_dims_span(x->dims, 0, dim); }

/* bytes of the run that one outer index owns */
static int64_t run_bytes(const dt_tensor *x, int dim)
{
    return dt_dims_span(x->dims, dim, x->dims.nd) * (int64_t)dt_dtype_size(x->dtype);
}

/* count pieces of `bytes`: dst + i dst_step <- src + i src_step, or zeros if src is NULL */
static void copy_runs(const dt_run *r, char *dst, int64_t dst_step, const char *src,
                      int64_t src_step, int64_t bytes, int64_t count)
{
    if (dst_step == bytes && (!src || src_step == bytes)) {         /* one piece: cut it for the threads */
        int64_t all = bytes * count, cut = 1 << 16;
#pragma omp parallel for num_threads(dt_team(r, all / 4)) schedule(static)
        for (int64_t at = 0; at < all; at += cut) {
            if (src)
                memcpy(dst + at, src + at, (size_t)dt_min64(cut, all - at));
            else
                memset(dst + at, 0, (size_t)dt_min64(cut, all - at));
        }
        return;
    }
#pragma omp parallel for num_threads(dt_team(r, bytes * count / 4)) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        if (src)
            memcpy(dst + i * dst_step, src + i * src_step, (size_t)bytes);
        else
            memset(dst + i * dst_step, 0, (size_t)bytes);
    }
}

/* ---- concat: attr.i[0] = dim ---- */

static const char *concat_shape(dt_node *n)
{
    dt_dims d = n->in[0]->dims;
    int dim = (int)n->attr.i[0];
    if (dim < 0 || dim >= d.nd)
        return "no such dim";
    d.d[dim] = 0;
    for (int i = 0; i < n->nin; i++) {
        dt_dims e = n->in[i]->dims;
        int64_t len = e.nd == d.nd ? e.d[dim] : 0;
        e.d[dim] = d.d[dim];
        if (!dt_dims_same(d, e) || n->in[i]->dtype != n->in[0]->dtype)
            return "parts must agree in dtype and in all other dims";
        d.d[dim] += len;
    }
    dt_node_out(n, 0, n->in[0]->dtype, d);
    return NULL;
}

static void concat_run(const dt_node *n, const dt_run *r)
{
    int dim = (int)n->attr.i[0];
    int64_t step = run_bytes(n->out[0], dim), at = 0;
    for (int i = 0; i < n->nin; i++) {
        int64_t bytes = run_bytes(n->in[i], dim);
        copy_runs(r, (char *)r->out[0] + at, step, r->in[i], bytes, bytes,
                  outer_of(n->out[0], dim));
        at += bytes;
    }
}

static void concat_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    int dim = (int)n->attr.i[0];
    int64_t at = 0;
    for (int i = 0; i < n->nin; i++) {
        int64_t len = n->in[i]->dims.d[dim];
        if (dt_wants(n, i))
            dx[i] = dt_grad_of(g, n->in[i], dt_slice(g, dy[0], dim, at, len));
        at += len;
    }
}

const dt_op dt_op_concat = {
    .name = "concat", .shape = concat_shape, .grad = concat_grad, .cpu = { .run = concat_run },
};

dt_tensor *dt_concat(dt_graph *g, int dim, int n, dt_tensor *const *x)
{
    if (n < 1 || n > DT_MAX_IN) {
        dt_graph_fail(g, "concat of %d tensors (1 to %d)", n, DT_MAX_IN);
        return x[0];
    }
    return n == 1 ? x[0] : dt_make(g, &dt_op_concat, DT_ATTR(.i = { dim }), n, x);
}

/* ---- slice: attr.i = dim, start, len ---- */

static const char *slice_shape(dt_node *n)
{
    dt_dims d = n->in[0]->dims;
    int64_t dim = n->attr.i[0], start = n->attr.i[1], len = n->attr.i[2];
    if (dim < 0 || dim >= d.nd || start < 0 || len < 1 || start > d.d[dim] - len)
        return "slice is outside its tensor";
    d.d[dim] = len;
    dt_node_out(n, 0, n->in[0]->dtype, d);
    return NULL;
}

static void slice_run(const dt_node *n, const dt_run *r)
{
    int dim = (int)n->attr.i[0];
    int64_t bytes = run_bytes(n->out[0], dim), step = run_bytes(n->in[0], dim);
    copy_runs(r, r->out[0], bytes, (const char *)r->in[0] + bytes / n->attr.i[2] * n->attr.i[1],
              step, bytes, outer_of(n->in[0], dim));
}

/* attr.i = dim, start, len, whole length of dim */
static const char *slice_bwd_shape(dt_node *n)
{
    dt_dims d = n->in[0]->dims;
    d.d[n->attr.i[0]] = n->attr.i[3];
    dt_node_out(n, 0, n->in[0]->dtype, d);
    return NULL;
}

static void slice_bwd_run(const dt_node *n, const dt_run *r)
{
    int dim = (int)n->attr.i[0];
    int64_t bytes = run_bytes(n->in[0], dim), step = run_bytes(n->out[0], dim),
            outer = outer_of(n->in[0], dim);
    int64_t before = bytes / n->attr.i[2] * n->attr.i[1], after = step - before - bytes;
    char *out = r->out[0];
    if (before)
        copy_runs(r, out, step, NULL, 0, before, outer);
    copy_runs(r, out + before, step, r->in[0], bytes, bytes, outer);
    if (after)
        copy_runs(r, out + before + bytes, step, NULL, 0, after, outer);
}

const dt_op dt_op_slice_bwd = {
    .name = "slice_bwd", .shape = slice_bwd_shape, .cpu = { .run = slice_bwd_run },
};

static void slice_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_attr a = n->attr;
    a.i[3] = n->in[0]->dims.d[a.i[0]];
    dx[0] = dt_grad_of(g, n->in[0], dt_make(g, &dt_op_slice_bwd, &a, DT_IN(dy[0])));
}

const dt_op dt_op_slice = {
    .name = "slice", .shape = slice_shape, .grad = slice_grad, .cost = dt_cost_taken,
    .cpu = { .run = slice_run },
};

dt_tensor *dt_slice(dt_graph *g, dt_tensor *x, int dim, int64_t start, int64_t len)
{
    return dt_make(g, &dt_op_slice, DT_ATTR(.i = { dim, start, len }), DT_IN(x));
}

/* ---- chunk: attr.i[0] = n ---- */

static const char *chunk_shape(dt_node *n)
{
    dt_dims d = n->in[0]->dims;
    int64_t parts = n->attr.i[0];
    if (d.d[d.nd - 1] % parts)
        return "the last dim must divide into the chunks";
    d.d[d.nd - 1] /= parts;
    for (int i = 0; i < parts; i++)
        dt_node_out(n, i, n->in[0]->dtype, d);
    return NULL;
}

static void chunk_run(const dt_node *n, const dt_run *r)
{
    int dim = n->in[0]->dims.nd - 1;
    int64_t step = run_bytes(n->in[0], dim), bytes = step / n->attr.i[0];
    for (int i = 0; i < n->nout; i++)
        if (r->out[i])
            copy_runs(r, r->out[i], bytes, (const char *)r->in[0] + i * bytes, step, bytes,
                      outer_of(n->in[0], dim));
}

static const char *chunk_bwd_shape(dt_node *n)
{
    const dt_tensor *any = NULL;
    for (int i = 0; i < n->nin && !any; i++)
        any = n->in[i];
    dt_dims d = any->dims;
    d.d[d.nd - 1] *= n->attr.i[0];
    dt_node_out(n, 0, any->dtype, d);
    return NULL;
}

static void chunk_bwd_run(const dt_node *n, const dt_run *r)
{
    int dim = n->out[0]->dims.nd - 1;
    int64_t step = run_bytes(n->out[0], dim), bytes = step / n->attr.i[0];
    for (int i = 0; i < n->attr.i[0]; i++)
        copy_runs(r, (char *)r->out[0] + i * bytes, step, r->in[i], bytes, bytes,
                  outer_of(n->out[0], dim));
}

const dt_op dt_op_chunk_bwd = {
    .name = "chunk_bwd", .shape = chunk_bwd_shape, .cpu = { .run = chunk_bwd_run },
};

static void chunk_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dx[0] = dt_grad_of(g, n->in[0], dt_make(g, &dt_op_chunk_bwd, &n->attr, n->nout, dy));
}

const dt_op dt_op_chunk = {
    .name = "chunk", .shape = chunk_shape, .grad = chunk_grad,
    .optional_out = (1u << DT_MAX_OUT) - 1, .cpu = { .run = chunk_run },
};

void dt_chunk(dt_graph *g, dt_tensor *x, int n, dt_tensor **out)
{
    if (n < 1 || n > DT_MAX_OUT)
        dt_graph_fail(g, "chunk into %d parts (1 to %d)", n, DT_MAX_OUT);
    const dt_node *node = dt_apply(g, &dt_op_chunk, DT_ATTR(.i = { n }), DT_IN(x));
    for (int i = 0; i < n; i++)
        out[i] = node->out[i < DT_MAX_OUT ? i : 0];
}

/* ---- permute: attr.i[d] = perm[d] ---- */

static const char *permute_shape(dt_node *n)
{
    dt_dims x = n->in[0]->dims, d = x;
    unsigned seen = 0;
    for (int i = 0; i < x.nd; i++) {
        int64_t p = n->attr.i[i];
        if (p < 0 || p >= x.nd || seen >> p & 1)
            return "perm must name each dim once";
        seen |= 1u << p;
        d.d[i] = x.d[p];
    }
    dt_node_out(n, 0, n->in[0]->dtype, d);
    return NULL;
}

/* A permutation with dims of 1 dropped and dims that stay neighbours merged: sizes in output
 * order, and strides in x (elements). */
typedef struct walk { int nd; int64_t size[DT_MAX_DIMS], step[DT_MAX_DIMS]; } walk;

static walk walk_of(const dt_node *n)
{
    const dt_dims *x = &n->in[0]->dims;
    int64_t step[DT_MAX_DIMS];
    for (int64_t i = x->nd - 1, s = 1; i >= 0; s *= x->d[i--])
        step[i] = s;
    walk w = { 0, { 0 }, { 0 } };
    for (int i = 0; i < x->nd; i++) {
        int64_t size = x->d[n->attr.i[i]], st = step[n->attr.i[i]];
        if (size == 1)
            continue;
        if (w.nd && w.step[w.nd - 1] == st * size) {
            w.size[w.nd - 1] *= size;
            w.step[w.nd - 1] = st;
        } else {
            w.size[w.nd] = size;
            w.step[w.nd++] = st;
        }
    }
    if (!w.nd)
        w = (walk){ 1, { 1 }, { 1 } };
    return w;
}

/* dst[i] = src[i * step]; the size is constant in each branch, so that the copies are single
 * moves */
static void gather(char *dst, const char *src, int64_t count, int64_t step, size_t size)
{
    if (step == 1) {
        memcpy(dst, src, (size_t)count * size);
    } else if (size == 4) {
        for (int64_t i = 0; i < count; i++)
            memcpy(dst + 4 * i, src + 4 * i * step, 4);
    } else if (size == 2) {
        for (int64_t i = 0; i < count; i++)
            memcpy(dst + 2 * i, src + 2 * i * step, 2);
    } else {
        for (int64_t i = 0; i < count; i++)
            memcpy(dst + i * (int64_t)size, src + i * step * (int64_t)size, size);
    }
}

enum { TILE = 32 };

/* A plane whose columns are contiguous in src: tiles are read by rows of src into `tile` and
 * written by rows of dst, because rows of src that are a power of two apart would evict each
 * other if they were read one element at a time. */
#define TRANSPOSE(NAME, TYPE) \
    static void NAME(TYPE *dst, const TYPE *src, int64_t R, int64_t C, int64_t step) \
    { \
        TYPE tile[TILE][TILE + 1]; \
        for (int64_t i0 = 0; i0 < R; i0 += TILE) \
            for (int64_t j0 = 0; j0 < C; j0 += TILE) { \
                int64_t rows = dt_min64(TILE, R - i0), cols = dt_min64(TILE, C - j0); \
                for (int64_t j = 0; j < cols; j++) \
                    for (int64_t i = 0; i < rows; i++) \
                        tile[i][j] = src[(j0 + j) * step + i0 + i]; \
                for (int64_t i = 0; i < rows; i++) \
                    memcpy(dst + (i0 + i) * C + j0, tile[i], (size_t)cols * sizeof(TYPE)); \
            } \
    }
TRANSPOSE(transpose4, uint32_t)
TRANSPOSE(transpose2, uint16_t)

/* The last two dims of w, src and dst at their first element. */
static void permute_plane(const walk *w, char *dst, const char *src, size_t size)
{
    int64_t R = w->nd > 1 ? w->size[w->nd - 2] : 1, C = w->size[w->nd - 1], cs = w->step[w->nd - 1];
    int64_t rs = w->nd > 1 ? w->step[w->nd - 2] : 0, sz = (int64_t)size;
    if (rs == 1 && size == 4)
        transpose4((uint32_t *)dst, (const uint32_t *)src, R, C, cs);
    else if (rs == 1 && size == 2)
        transpose2((uint16_t *)dst, (const uint16_t *)src, R, C, cs);
    else
        for (int64_t i = 0; i < R; i++)
            gather(dst + i * C * sz, src + i * rs * sz, C, cs, size);
}

static void permute_run(const dt_node *n, const dt_run *r)
{
    walk w = walk_of(n);
    int64_t size = (int64_t)dt_dtype_size(n->in[0]->dtype), N = dt_tensor_numel(n->in[0]),
            planes = 1;
    for (int i = 0; i < w.nd - 2; i++)
        planes *= w.size[i];
    if (planes == 1 && w.nd == 2 && w.size[0] >= 2 * TILE) {         /* one plane: cut its rows for the threads */
        int64_t rows = TILE, R = w.size[0], C = w.size[1];
#pragma omp parallel for num_threads(dt_team(r, N)) schedule(static)
        for (int64_t i = 0; i < R; i += rows) {
            walk part = w;
            part.size[0] = dt_min64(rows, R - i);
            permute_plane(&part, (char *)r->out[0] + i * C * size,
                          (const char *)r->in[0] + i * w.step[0] * size, (size_t)size);
        }
        return;
    }
    int64_t plane = N / planes;
#pragma omp parallel for num_threads(dt_team(r, N)) schedule(static)
    for (int64_t k = 0; k < planes; k++) {
        int64_t at = 0, rest = k;
        for (int i = w.nd - 3; i >= 0; i--) {
            at += rest % w.size[i] * w.step[i];
            rest /= w.size[i];
        }
        permute_plane(&w, (char *)r->out[0] + k * plane * size, (const char *)r->in[0] + at * size,
                      (size_t)size);
    }
}

static void permute_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    int inverse[DT_MAX_DIMS];
    for (int i = 0; i < n->in[0]->dims.nd; i++)
        inverse[n->attr.i[i]] = i;
    dx[0] = dt_grad_of(g, n->in[0], dt_permute(g, dy[0], inverse));
}

const dt_op dt_op_permute = {
    .name = "permute", .shape = permute_shape, .grad = permute_grad, .cpu = { .run = permute_run },
};

dt_tensor *dt_permute(dt_graph *g, dt_tensor *x, const int *perm)
{
    dt_attr a = { .i = { 0 } };
    for (int i = 0; i < x->dims.nd; i++)
        a.i[i] = perm[i];
    return dt_make(g, &dt_op_permute, &a, DT_IN(x));
}
