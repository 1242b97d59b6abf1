/* peak.c - see peak.h. */
#include <stdlib.h>
#include <time.h>
#include "base/mem.h"
#include "bench/peak.h"
#include "graph/peak.h"
#include "kernels/onednn.h"

enum { TRIES = 7, TRIAD = 1 << 24 };

double bench_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static double product_rate(int64_t n, dt_dtype t)
{
    dt_dnn *d = NULL;
    dt_err err = { 0 };
    struct dt_dnn_matmul m = { .m = n, .n = n, .k = n, .a = t, .b = t, .c = t, .alpha = 1 };
    if (dt_dnn_matmul_new(&d, &m, &err) < 0)
        return 0;
    size_t bytes = (size_t)(n * n) * dt_dtype_size(t);
    void *a = dt_alloc(bytes), *b = dt_alloc(bytes), *c = dt_alloc(bytes);
    void *ws = aligned_alloc(64, (size_t)dt_dnn_workspace(d) + 64);
    double best = 0;
    for (int k = 0; ws && k < TRIES; k++) {
        double t0 = bench_now();
        dt_dnn_run(d, a, b, NULL, c, ws);
        double rate = 2.0 * (double)n * (double)n * (double)n / (bench_now() - t0);
        best = rate > best ? rate : best;
    }
    free(a);
    free(b);
    free(c);
    free(ws);
    dt_dnn_free(&d);
    return best;
}

static double triad_rate(int threads)
{
    float *a = dt_alloc(TRIAD * sizeof(*a)), *b = dt_alloc(TRIAD * sizeof(*a)), *c = dt_alloc(TRIAD * sizeof(*a));
    double best = 0;
    for (int k = 0; k < TRIES; k++) {
        double t0 = bench_now();
#pragma omp parallel for simd num_threads(threads)
        for (int64_t i = 0; i < TRIAD; i++)
            a[i] = b[i] + 0.5f * c[i];
        double rate = 3.0 * TRIAD * sizeof(*a) / (bench_now() - t0);
        best = rate > best && k > 0 ? rate : best;          /* the first one makes the pages */
    }
    free(a);
    free(b);
    free(c);
    return best;
}

struct peak peak_measure(dt_device *dev, dt_dtype t)
{
    static const int64_t sides[] = { 768, 1024, 2048, 3072 };
    struct peak p = { .fma = dt_peak_fma(dev->threads, 0.5), .bytes = triad_rate(dev->threads) };
    for (size_t i = 0; i < sizeof(sides) / sizeof(sides[0]); i++) {
        double r = product_rate(sides[i], t);
        p.product = r > p.product ? r : p.product;
    }
    p.flops = t == DT_F32 && p.fma > p.product ? p.fma : p.product;
    return p;
}
