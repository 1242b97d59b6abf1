/* rows.h - reading and writing rows of any storage dtype as fp32, so that one kernel serves all.
 * A row that is fp32 already is used in place; others go through a caller's buffer that stays in L1. */
#ifndef DT_KERNELS_ROWS_H
#define DT_KERNELS_ROWS_H
#include "tensor/dtype.h"

enum { DT_CHUNK = 1024 };           /* elements a pointwise kernel handles at a time */

/* n elements from element `at` of p, as fp32: p itself or tmp. */
static inline const float *dt_row_in(const void *p, dt_dtype t, int64_t at, int64_t n, float *tmp)
{
    if (t == DT_F32)
        return (const float *)p + at;
    dt_convert(tmp, DT_F32, (const char *)p + at * (int64_t)dt_dtype_size(t), t, n);
    return tmp;
}

/* Where to put n fp32 results; dt_row_flush then stores them. */
static inline float *dt_row_out(void *p, dt_dtype t, int64_t at, float *tmp)
{
    return t == DT_F32 ? (float *)p + at : tmp;
}

static inline void dt_row_flush(void *p, dt_dtype t, int64_t at, int64_t n, const float *tmp)
{
    if (t != DT_F32)
        dt_convert((char *)p + at * (int64_t)dt_dtype_size(t), t, tmp, DT_F32, n);
}
#endif
