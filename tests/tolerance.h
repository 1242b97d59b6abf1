/* tolerance.h - how far numbers may be apart: one place, by storage dtype.  Errors are relative L2, |a - b| / |b|.
 *
 *   one op      8 u sqrt(K)     u unit roundoff of the dtype, K length of the longest sum behind an element
 *   a model     the 1e-5 forward and 1e-4 for every gradient in fp32; in bf16 the reference, run in bf16 and in fp32
 *               (tests/golden/flux.py), differs from itself by 0.6e-2 and up to 3.2e-2; two bf16 runs may by sqrt(2) of that
 */
#ifndef DT_TESTS_TOLERANCE_H
#define DT_TESTS_TOLERANCE_H
#include <math.h>
#include "tensor/dtype.h"

static inline double tol_unit(dt_dtype t)           /* half the distance from 1 to the next number */
{
    return t == DT_BF16 ? 0x1p-9 : t == DT_F16 ? 0x1p-11 : t == DT_F64 ? 0x1p-53 : 0x1p-24;
}

static inline double tol_op(dt_dtype t, int64_t k)
{
    return 8.0 * tol_unit(t) * sqrt(k > 1 ? (double)k : 1.0);
}

static inline double tol_forward(dt_dtype t)
{
    return t == DT_F32 ? 1e-5 : 6.0 * tol_unit(t);
}

static inline double tol_gradient(dt_dtype t)
{
    return t == DT_F32 ? 1e-4 : 32.0 * tol_unit(t);
}

#endif
