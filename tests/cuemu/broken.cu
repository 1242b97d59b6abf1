/* Small kernels, right and wrong, for tests/unit/cuemu_machine.c.  Each wrong one has one
 * classic slip. */
#include "tests/cuemu/broken.h"

#include <cuda_runtime.h>

enum { N = 128, ALL = -1 };

static __device__ float warp_sum(float v, unsigned mask)
{
    for (int o = 16; o > 0; o >>= 1)
        v += __shfl_xor_sync(mask, v, o);
    return v;
}

/* out[i] = sum of x over the block, twice, for all threads.  `slip` leaves something out. */
static __global__ void sum_kernel(float *out, const float *x, int slip)
{
    __shared__ float part[4];
    unsigned lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float total = 0;
    for (int round = 0; round < 2; round++) {
        float v = warp_sum(x[threadIdx.x] * (float)(round + 1), ALL);
        if (lane == 0)
            part[warp] = v;
        if (slip != CUEMU_NO_BARRIER_BEFORE)
            __syncthreads();
        for (int k = 0; k < 4; k++)
            total += part[k];
        if (slip != CUEMU_NO_BARRIER_AFTER)
            __syncthreads();
    }
    out[threadIdx.x] = total;
}

static __global__ void uninitialised_kernel(float *out)
{
    __shared__ float part[N];
    if (threadIdx.x)
        part[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x];
}

static __global__ void mask_kernel(float *out, const float *x, int slip)
{
    float v = x[threadIdx.x];
    if (slip == CUEMU_MASK_LACKS_CALLER)
        v = warp_sum(v, 0x0000ffffu);
    if (slip == CUEMU_MASK_NAMES_ABSENT && (threadIdx.x & 31) < 16)
        v = warp_sum(v, 0xffffffffu);
    if (slip == CUEMU_SOURCE_OUTSIDE_MASK && (threadIdx.x & 31) < 16)
        v += __shfl_xor_sync(0x0000ffffu, v, 16);
    if (slip == CUEMU_HALF_WARPS)                   /* right: two masks at two places */
        v = (threadIdx.x & 31) < 16 ? v + __shfl_xor_sync(0x0000ffffu, v, 1)
                                    : v + __shfl_xor_sync(0xffff0000u, v, 1);
    out[threadIdx.x] = v;
}

static __global__ void divergent_kernel(float *out)
{
    if (threadIdx.x < 64)
        __syncthreads();
    out[threadIdx.x] = 0;
}

static __global__ void two_barriers_kernel(float *out)
{
    if (threadIdx.x < 64)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 0;
}

static __global__ void atomic_kernel(float *out)
{
    atomicAdd(out, 1.0f);
}

static int finish(float *out, float *device, char *message, size_t bytes)
{
    cudaError_t e = cudaStreamSynchronize(NULL);
    snprintf(message, bytes, "%s", cudaGetErrorString(e));
    cudaMemcpyAsync(out, device, N * sizeof(*out), cudaMemcpyDeviceToHost, NULL);
    cudaFree(device);
    return e == cudaSuccess ? 0 : -1;
}

extern "C" int cuemu_try(int slip, float *out, char *message, size_t bytes)
{
    float x[N], *d = NULL, *dx = NULL;
    for (int i = 0; i < N; i++)
        x[i] = (float)i;
    cudaMalloc((void **)&d, N * sizeof(float));
    cudaMalloc((void **)&dx, N * sizeof(float));
    cudaMemsetAsync(d, 0, N * sizeof(float), NULL);
    cudaMemcpyAsync(dx, x, sizeof(x), cudaMemcpyHostToDevice, NULL);
    switch (slip) {
    case CUEMU_UNINITIALISED:
        DT_LAUNCH(uninitialised_kernel, 1, N, 0, NULL, d);
        break;
    case CUEMU_DIVERGENT_BARRIER:
        DT_LAUNCH(divergent_kernel, 1, N, 0, NULL, d);
        break;
    case CUEMU_TWO_BARRIERS:
        DT_LAUNCH(two_barriers_kernel, 1, N, 0, NULL, d);
        break;
    case CUEMU_ATOMIC:
        DT_LAUNCH(atomic_kernel, dim3(5, 3, 2), dim3(4, 8, 2), 0, NULL, d);
        break;
    case CUEMU_BLOCK_TOO_LARGE:
        DT_LAUNCH(atomic_kernel, 1, 1025, 0, NULL, d);
        break;
    case CUEMU_RIGHT:
    case CUEMU_NO_BARRIER_BEFORE:
    case CUEMU_NO_BARRIER_AFTER:
        DT_LAUNCH(sum_kernel, 2, N, 0, NULL, d, dx, slip);
        break;
    default:
        DT_LAUNCH(mask_kernel, 1, N, 0, NULL, d, dx, slip);
    }
    cudaFree(dx);
    return finish(out, d, message, bytes);
}

extern "C" float cuemu_read_from_host(void)
{
    float *d = NULL;
    cudaMalloc((void **)&d, sizeof(float));
    return *(volatile float *)d;
}
