/* cuda_runtime.h - CUDA on the host, for checking .cu files where there is no GPU.  The same text is
 * compiled by g++ with this folder first on the include path.  What no .cu file uses is not here.
 *
 *   grid     blocks run one after the other
 *   block    one fibre per thread; a fibre runs until it meets others: __syncthreads, a shuffle, the
 *            end.  Which fibre goes first changes from launch to launch (ascending, descending,
 *            shuffled), so that a result which depends on it is found by running again
 *   shared   __shared__ is a static in a section of its own, filled with NaN before each block
 *   device   memory from cudaMalloc is unreadable outside kernels and copies, as on a real machine
 *
 * Reported as errors of the launch, by cudaGetErrorString, with file and line: a barrier that some
 * threads do not reach or reach elsewhere, a shuffle whose mask names a lane that is not there or
 * lacks its caller, a source lane outside the mask, a launch out of limits. */
#ifndef DT_CUEMU_CUDA_RUNTIME_H
#define DT_CUEMU_CUDA_RUNTIME_H
#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>

/* ---- language ---- */

#define __global__ __attribute__((unused))
#define __device__ __attribute__((unused))
#define __shared__ static __attribute__((section("cuemu_shared")))

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w)
{
    return float4{ x, y, z, w };
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

static inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* ---- meeting points ---- */

void cuemu_barrier(const char *file, int line);
/* Gives v, gets the value of lane `source` of this warp. */
uint64_t cuemu_exchange(unsigned mask, uint64_t v, int source, const char *file, int line);
int cuemu_lane();

template <class T>
static inline T cuemu_shuffle(unsigned mask, T v, int source, const char *file, int line)
{
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof(T));
    bits = cuemu_exchange(mask, bits, source, file, line);
    memcpy(&v, &bits, sizeof(T));
    return v;
}

#define __syncthreads() cuemu_barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, v, bits) \
    cuemu_shuffle(mask, v, cuemu_lane() ^ (bits), __FILE__, __LINE__)

/* Fibres change only at meeting points, so plain arithmetic is atomic. */
template <class T> static inline T atomicAdd(T *p, T v)
{
    T old = *p;
    *p = old + v;
    return old;
}

/* ---- launches ---- */

struct cuemu_stream;
typedef cuemu_stream *cudaStream_t;

void cuemu_launch(std::function<void()> kernel, dim3 grid, dim3 block, cudaStream_t stream);

/* Arguments are converted and kept when launched, as CUDA does, not when run (a captured launch
 * runs later). */
template <class... P, class... A>
static inline void cuemu_call(void (*kernel)(P...), dim3 grid, dim3 block, size_t,
                              cudaStream_t stream, A... args)
{
    std::tuple<P...> kept(args...);
    cuemu_launch([kernel, kept] { std::apply(kernel, kept); }, grid, block, stream);
}

#define DT_LAUNCH(kernel, grid, block, shared, stream, ...) \
    cuemu_call((kernel), dim3(grid), dim3(block), (shared), (cudaStream_t)(stream), __VA_ARGS__)

/* ---- runtime ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum { cudaStreamNonBlocking = 1 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

struct cudaDeviceProp {
    char   name[256];
    size_t totalGlobalMem;
};
typedef struct cuemu_graph *cudaGraph_t;
typedef struct cuemu_graph *cudaGraphExec_t;

cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s);
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t e);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t g);

#endif
