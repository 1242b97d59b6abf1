/* cpu.c - the CPU as a device, and the loops over flat ranges of parameters.
 * Reductions add blocks of a fixed size in order, so that results do not depend on the number of threads. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "graph/graph.h"

enum {
    BLOCK = 1 << 16,                    /* elements (in cpu_zero: bytes) a thread takes at a time */
    HUGE_PAGE = 1 << 21,                /* bytes */
};

/* --- flat ranges --- */

static void adamw_block(float *restrict w, float *restrict m, float *restrict v, const float *restrict g, int64_t n,
                        const dt_adamw *a)
{
    const float decay = (float)(1 - a->lr * a->weight_decay);
    const float c1 = (float)(1 - a->beta1), c2 = (float)(1 - a->beta2), b2 = (float)a->beta2;
    const float step = (float)(a->lr / a->bias1), root = (float)sqrt(a->bias2);
    const float eps = (float)a->eps, gs = (float)a->grad_scale;
    for (int64_t i = 0; i < n; i++) {
        float x = g ? g[i] * gs : 0.0f;
        m[i] += c1 * (x - m[i]);
        v[i] = v[i] * b2 + c2 * x * x;
        w[i] = w[i] * decay - step * m[i] / (sqrtf(v[i]) / root + eps);
    }
}

static void cpu_adamw(dt_device *d, float *master, float *m, float *v, const float *grad, int64_t n, const dt_adamw *a)
{
    (void)d;
#pragma omp parallel for if (n > BLOCK)
    for (int64_t i = 0; i < n; i += BLOCK)
        adamw_block(master + i, m + i, v + i, grad ? grad + i : NULL, n - i < BLOCK ? n - i : BLOCK, a);
}

static double sumsq_block(const float *x, int64_t n)
{
    double lane[8] = { 0 };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++)
            lane[k] += (double)x[i + k] * (double)x[i + k];
    for (int k = 0; i + k < n; k++)
        lane[k] += (double)x[i + k] * (double)x[i + k];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static double cpu_sumsq(dt_device *d, const float *x, int64_t n)
{
    (void)d;
    int64_t nb = (n + BLOCK - 1) / BLOCK;
    double *part = dt_alloc((size_t)(nb ? nb : 1) * sizeof(*part)), sum = 0;
#pragma omp parallel for if (nb > 1)
    for (int64_t b = 0; b < nb; b++)
        part[b] = sumsq_block(x + b * BLOCK, n - b * BLOCK < BLOCK ? n - b * BLOCK : BLOCK);
    for (int64_t b = 0; b < nb; b++)
        sum += part[b];
    free(part);
    return sum;
}

static void cpu_ema(dt_device *d, float *ema, const float *w, int64_t n, double decay)
{
    (void)d;
    const float c = (float)(1 - decay);
#pragma omp parallel for simd if (parallel : n > BLOCK)
    for (int64_t i = 0; i < n; i++)
        ema[i] += c * (w[i] - ema[i]);
}

static void cpu_convert(dt_device *d, void *dst, dt_dtype dd, const void *src, dt_dtype sd, int64_t n)
{
    (void)d;
    size_t ds = dt_dtype_size(dd), ss = dt_dtype_size(sd);
#pragma omp parallel for if (n > BLOCK)
    for (int64_t i = 0; i < n; i += BLOCK)
        dt_convert((char *)dst + (size_t)i * ds, dd, (const char *)src + (size_t)i * ss, sd,
                   n - i < BLOCK ? n - i : BLOCK);
}

static const dt_flat_ops flat = { .adamw = cpu_adamw, .sumsq = cpu_sumsq, .ema = cpu_ema, .convert = cpu_convert };

/* --- device --- */

static void *cpu_alloc_params(dt_device *d, int64_t bytes)
{
    /* Linux promises memory that it does not have. */
    if (bytes < 0 || bytes > d->mem_bytes)
        return NULL;
    void *p = NULL;
    return posix_memalign(&p, bytes >= 4 * HUGE_PAGE ? HUGE_PAGE : 256, bytes ? (size_t)bytes : 1) ? NULL : p;
}

static void *cpu_alloc(dt_device *d, int64_t bytes)
{
    void *p = cpu_alloc_params(d, bytes);
    if (p && bytes >= 4 * HUGE_PAGE)                    /* may be refused */
        madvise(p, (size_t)(bytes / HUGE_PAGE * HUGE_PAGE), MADV_HUGEPAGE);
    return p;
}

static void cpu_free(dt_device *d, void *p)
{
    (void)d;
    free(p);
}

static void cpu_zero(dt_device *d, void *p, int64_t bytes)
{
    (void)d;
#pragma omp parallel for
    for (int64_t i = 0; i < bytes; i += BLOCK)
        memset((char *)p + i, 0, (size_t)(bytes - i < BLOCK ? bytes - i : BLOCK));
}

static void cpu_copy(dt_device *d, void *dst, const void *src, int64_t bytes)
{
    (void)d;
    memcpy(dst, src, (size_t)bytes);
}

static int cpu_sync(dt_device *d, dt_err *err)
{
    (void)d, (void)err;
    return 0;
}

static const dt_kernel *cpu_kernel(dt_device *d, const dt_op *op)
{
    (void)d;
    return op->cpu.run ? &op->cpu : NULL;
}

static void cpu_close(dt_device *d) { free(d); }

int dt_cpu_open(dt_device **out, dt_err *err)
{
    (void)err;
    dt_device *d = dt_alloc(sizeof(*d));
    *d = (dt_device){
        .kind = DT_CPU, .name = "cpu", .threads = omp_get_max_threads(),
        .mem_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), .flat = &flat,
        .alloc = cpu_alloc, .alloc_params = cpu_alloc_params, .free = cpu_free, .zero = cpu_zero, .upload = cpu_copy,
        .download = cpu_copy, .sync = cpu_sync, .kernel = cpu_kernel, .close = cpu_close,
    };
    *out = d;
    return 0;
}
