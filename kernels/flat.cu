/* Loops over flat ranges of parameters: optimiser, clipping, EMA, conversion.  Maths: see cpu.c
 * and graph/device.h. */
#include "kernels/cuda.cuh"

static __global__ void adamw_kernel(float *w, float *m, float *v, const float *grad, int64_t n,
                                    float decay, float c1, float b2, float c2, float step,
                                    float root, float eps, float scale)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        float x = grad ? grad[i] * scale : 0.0f;
        m[i] += c1 * (x - m[i]);
        v[i] = v[i] * b2 + c2 * x * x;
        w[i] = w[i] * decay - step * m[i] / (sqrtf(v[i]) / root + eps);
    }
}

static void flat_adamw(dt_device *d, float *master, float *m, float *v, const float *grad,
                       int64_t n, const dt_adamw *a)
{
    if (n > 0)
        DT_LAUNCH(adamw_kernel, dt_grid(n, DT_THREADS), DT_THREADS, 0, d->stream, master, m, v,
                  grad, n, (float)(1 - a->lr * a->weight_decay), (float)(1 - a->beta1),
                  (float)a->beta2, (float)(1 - a->beta2), (float)(a->lr / a->bias1),
                  (float)sqrt(a->bias2), (float)a->eps, (float)a->grad_scale);
    dt_cuda_note(d, cudaGetLastError(), "adamw");
}

/* Sums of squares: SUM_BLOCKS blocks of one warp each; the host adds the blocks in order. */
enum { SUM_BLOCKS = 512 };

static __global__ void sumsq_kernel(double *part, const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * 32 + threadIdx.x; i < n; i += SUM_BLOCKS * 32)
        sum += (double)x[i] * (double)x[i];
    sum = dt_warp_sum(sum);
    if (threadIdx.x == 0)
        part[blockIdx.x] = sum;
}

static double flat_sumsq(dt_device *d, const float *x, int64_t n)
{
    double part[SUM_BLOCKS], sum = 0, *buf = (double *)d->alloc(d, sizeof(part));
    if (!buf) {
        dt_cuda_note(d, cudaErrorMemoryAllocation, "sumsq");
        return NAN;
    }
    DT_LAUNCH(sumsq_kernel, SUM_BLOCKS, 32, 0, d->stream, buf, x, n);
    dt_cuda_note(d, cudaGetLastError(), "sumsq");
    d->download(d, part, buf, sizeof(part));
    d->free(d, buf);
    for (int i = 0; i < SUM_BLOCKS; i++)
        sum += part[i];
    return sum;
}

static __global__ void ema_kernel(float *ema, const float *w, int64_t n, float c)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        ema[i] += c * (w[i] - ema[i]);
}

static void flat_ema(dt_device *d, float *ema, const float *w, int64_t n, double decay)
{
    if (n > 0)
        DT_LAUNCH(ema_kernel, dt_grid(n, DT_THREADS), DT_THREADS, 0, d->stream, ema, w, n,
                  (float)(1 - decay));
    dt_cuda_note(d, cudaGetLastError(), "ema");
}

static __global__ void convert_kernel(dt_view dst, dt_view src, int64_t n)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        dt_store(dst, i, dt_load(src, i));
}

static void flat_convert(dt_device *d, void *dst, dt_dtype dd, const void *src, dt_dtype sd,
                         int64_t n)
{
    if (!dt_cuda_takes(dd) || !dt_cuda_takes(sd)) {
        dt_cuda_note(d, cudaErrorNotSupported, "convert: types other than F32 and BF16");
        return;
    }
    if (n > 0)
        DT_LAUNCH(convert_kernel, dt_grid(n, DT_THREADS), DT_THREADS, 0, d->stream,
                  dt_view{ dst, dd == DT_BF16 }, dt_view{ (void *)src, sd == DT_BF16 }, n);
    dt_cuda_note(d, cudaGetLastError(), "convert");
}

const dt_flat_ops dt_cuda_flat = { flat_adamw, flat_sumsq, flat_ema, flat_convert };
