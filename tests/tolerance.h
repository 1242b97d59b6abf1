/* tolerance.h - how far numbers may be apart: one place, by storage dtype.  Errors are relative L2, |a - b| / |b|.
 *
 *   one op      fp32: 8 u sqrt(K), u = 2^-24, K the length of the longest sum behind an element; bf16 adds its roundings
 *               of inputs and outputs (all sums are fp32)
 *   a model     fp32: 1e-5 forward, 1e-4 for every gradient.  bf16: the reference run in bf16 and in fp32
 *               (tests/golden/flux.py) differs from itself by 0.6e-2 forward and up to 3.2e-2 in gradients; two bf16 runs
 *               may by sqrt(2) of that
 */
#ifndef DT_TESTS_TOLERANCE_H
#define DT_TESTS_TOLERANCE_H
#include <math.h>
#include "tensor/dtype.h"

static inline double tol_op(dt_dtype t, int64_t k)
{
    double sum = 8 * 0x1p-24 * sqrt((double)(k > 1 ? k : 1));
    return t == DT_BF16 ? 4 * 0x1p-8 + sum : sum;
}

static inline double tol_forward(dt_dtype t)
{
    return t == DT_F32 ? 1e-5 : 8 * 0x1p-9;
}

static inline double tol_gradient(dt_dtype t)
{
    return t == DT_F32 ? 1e-4 : 32 * 0x1p-9;
}

#endif
