/* opdef.h - what the files that define ops share. */
#ifndef DT_KERNELS_OPDEF_H
#define DT_KERNELS_OPDEF_H
#include <string.h>
#include "graph/graph.h"
#include "kernels/oplist.h"
#include "kernels/ops.h"
#include "kernels/rows.h"

/* The one output of a new node.  DT_IN gives its last two arguments, and dt_apply's: DT_IN(a, b) */
static inline dt_tensor *dt_make(dt_graph *g, const dt_op *op, const dt_attr *a, int nin,
                                 dt_tensor *const *in)
{
    return dt_apply(g, op, a, nin, in)->out[0];
}
#define DT_LIST(...) (dt_tensor *[]){ __VA_ARGS__ }
#define DT_IN(...) (int)(sizeof(DT_LIST(__VA_ARGS__)) / sizeof(dt_tensor *)), DT_LIST(__VA_ARGS__)
#define DT_ATTR(...) (&(dt_attr){ __VA_ARGS__ })

/* --- shapes --- */

static inline int64_t dt_last_dim(const dt_tensor *x) { return x->dims.d[x->dims.nd - 1]; }
static inline int64_t dt_tensor_numel(const dt_tensor *x) { return dt_numel(x->dims); }

/* Product of dims from..to-1. */
static inline int64_t dt_dims_span(dt_dims s, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        n *= s.d[i];
    return n;
}

static inline bool dt_is_float(const dt_tensor *x)
{
    return x->dtype == DT_F32 || x->dtype == DT_BF16 || x->dtype == DT_F16;
}

static inline bool dt_is_vector(const dt_tensor *x, int64_t n)      /* absent, or [n] */
{
    return !x || (x->dims.nd == 1 && x->dims.d[0] == n && dt_is_float(x));
}

/* --- gradients --- */

/* fp32 for a parameter or a view of one, else the tensor's own. */
static inline dt_dtype dt_grad_dtype(const dt_tensor *x)
{
    const dt_tensor *root = x->base ? x->base : x;
    return root->kind == DT_PARAM ? DT_F32 : x->dtype;
}

/* dx as the gradient of x: cast if x is of another type. */
static inline dt_tensor *dt_grad_of(dt_graph *g, const dt_tensor *x, dt_tensor *dx)
{
    return dx->dtype == dt_grad_dtype(x) ? dx : dt_cast(g, dx, dt_grad_dtype(x));
}

/* Sum of a b (b NULL: of a) over the dims between the leading `keep_front` and the trailing
 * `keep_back`; broadcast.c */
dt_tensor *dt_sum_mid(dt_graph *g, dt_tensor *a, dt_tensor *b, int keep_front, int keep_back,
                      dt_dtype t);

/* Gradient of a bias b [N]: dy [..., N] summed over the leading dims, in a fixed order; matmul.c */
dt_tensor *dt_col_sum(dt_graph *g, dt_tensor *dy, const dt_tensor *b);

/* y = f(y) for n elements, f as the op of that name computes it; pointwise.c */
void dt_epilogue_row(enum dt_epilogue e, float *y, int64_t n);

/* --- cost and running --- */

/* What is taken of a table or a tensor is read, and no more. */
static inline void dt_cost_taken(const dt_node *n, dt_cost *c)
{
    c->bytes = 2.0 * (double)(dt_tensor_numel(n->out[0]) * (int64_t)dt_dtype_size(n->out[0]->dtype));
}

/* Threads worth starting for n elements. */
static inline int dt_team(const dt_run *r, int64_t n)
{
    int64_t most = 1 + n / 16384;
    return most < r->dev->threads ? (int)most : r->dev->threads;
}

static inline int64_t dt_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t dt_max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t dt_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

#define DT_ALIGNED __attribute__((aligned(64)))

#endif
