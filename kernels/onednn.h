/* onednn.h - the oneDNN primitives the CPU kernels use, made at plan time and run with plain pointers. */
#ifndef DT_KERNELS_ONEDNN_H
#define DT_KERNELS_ONEDNN_H
#include <stdbool.h>
#include "base/err.h"
#include "graph/graph.h"

typedef struct dt_dnn dt_dnn;       /* a primitive with what surrounds it; one thread at a time */

/* c = f(alpha op(a) op(b) + bias), or f of c and that.   op(a) [m, k]  op(b) [k, n]  c [m, n]  bias [n], all dense.
 * A transposed operand is stored [k, m] or [n, k].  Sums are fp32 whatever the types. */
struct dt_dnn_matmul {
    int64_t  m, n, k;
    dt_dtype a, b, c;
    bool     a_trans, b_trans, bias;    /* bias is of b's type */
    bool     add;
    double   alpha;                 /* 1 if there is a bias */
    enum dt_epilogue epilogue;      /* f */
    int      threads;               /* a transposed: that many take rows of c each, which oneDNN shares out badly; or 0 */
};
int dt_dnn_matmul_new(dt_dnn **out, const struct dt_dnn_matmul *p, dt_err *err);

/* x [b, h, w, c]  weights [o, c, kh, kw]  bias [o]  y [b, oh, ow, o], of type t.  dw is fp32 and may be added to. */
struct dt_dnn_conv {
    int64_t  b, h, w, c, o, kh, kw, oh, ow, stride;
    int64_t  pad[4];                /* top, left, bottom, right */
    dt_dtype t;
    bool     bias, add;
};
int dt_dnn_conv_new(dt_dnn **out, const struct dt_dnn_conv *p, dt_err *err);       /* run: x, w, bias -> y */
int dt_dnn_conv_dx_new(dt_dnn **out, const struct dt_dnn_conv *p, dt_err *err);    /* run: dy, w, NULL -> dx */
int dt_dnn_conv_dw_new(dt_dnn **out, const struct dt_dnn_conv *p, dt_err *err);    /* run: x, dy, NULL -> dw */

int64_t dt_dnn_workspace(const dt_dnn *d);          /* bytes that run needs at ws, 64-byte aligned */
void    dt_dnn_run(dt_dnn *d, const void *a, const void *b, const void *bias, void *c, void *ws);
void    dt_dnn_free(dt_dnn **d);
void    dt_dnn_release(void *state);                /* the same as a dt_kernel.release */

#endif
