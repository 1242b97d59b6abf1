/* peak.h - what this machine can do at most: measured, not looked up. */
#ifndef DT_BENCH_PEAK_H
#define DT_BENCH_PEAK_H
#include "graph/graph.h"

struct peak {
    double fma;                     /* FLOP/s: fp32 multiply-adds in registers, all threads */
    double product;                 /* FLOP/s: the best of a few large matrix products, of the asked dtype */
    double flops;                   /* the better of the two, of the asked dtype: what shares are shares of */
    double bytes;                   /* bytes/s: a[i] = b[i] + s c[i] on arrays that fit no cache (McCalpin's triad) */
};

struct peak peak_measure(dt_device *dev, dt_dtype t);
double      bench_now(void);        /* seconds, of the monotonic clock */

#endif
