/* peak.c - see peak.h. */
#include <stdlib.h>
#include <time.h>
#include "base/mem.h"
#include "bench/peak.h"
#include "kernels/onednn.h"
#include "kernels/tile.h"

enum { TRIES = 7, CHAINS = 12, TURNS = 1 << 21, TRIAD = 1 << 24 };

double bench_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* CHAINS chains of multiply-adds that do not wait for each other: more than latency times width. */
static float multiply_add(float start)
{
    dt_vec x[CHAINS], a = { 0 }, b = { 0 }, sum = { 0 };
    a += 0.999f;
    b += start;
    for (int i = 0; i < CHAINS; i++)
        x[i] = b + (float)i;
    for (int t = 0; t < TURNS; t++)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            x[i] = x[i] * a + b;
    for (int i = 0; i < CHAINS; i++)
        sum += x[i];
    return sum[0];
}

static double fma_rate(int threads)
{
    double best = 0;
    for (int k = 0; k < TRIES; k++) {
        double t0 = bench_now();
        float sum = 0;
#pragma omp parallel for reduction(+ : sum) num_threads(threads)
        for (int i = 0; i < threads; i++)
            sum += multiply_add((float)i * 1e-3f);
        double s = bench_now() - t0 + (sum == 1e30f);       /* the sum must be seen to be needed */
        double rate = 2.0 * CHAINS * DT_VEC * TURNS * threads / s;
        best = rate > best ? rate : best;
    }
    return best;
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
    struct peak p = { .fma = fma_rate(dev->threads), .bytes = triad_rate(dev->threads) };
    for (size_t i = 0; i < sizeof(sides) / sizeof(sides[0]); i++) {
        double r = product_rate(sides[i], t);
        p.product = r > p.product ? r : p.product;
    }
    p.flops = t == DT_F32 && p.fma > p.product ? p.fma : p.product;
    return p;
}
