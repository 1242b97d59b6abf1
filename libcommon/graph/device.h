/* device.h - where kernels run.  The CPU is built in; CUDA is the plugin libdt-cuda.so, opened by name, which
 * exports `dt_device *dt_cuda_open(int ordinal, int abi, dt_err *err)`. */
#ifndef DT_GRAPH_DEVICE_H
#define DT_GRAPH_DEVICE_H
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "tensor/dtype.h"

#define DT_DEVICE_ABI 4             /* of this header and graph.h; a plugin of another number is refused */

enum { DT_CPU, DT_CUDA, DT_NDEV };

struct dt_op;
struct dt_kernel;
typedef struct dt_device dt_device;

/* Loops over flat ranges of parameters: optimiser, clipping, EMA.  All pointers are device memory. */
typedef struct dt_adamw {
    double lr, beta1, beta2, eps, weight_decay;     /* double: 1 - beta2 in fp32 is off by 1e-5 */
    double bias1, bias2;            /* 1 - beta1^k, 1 - beta2^k at optimiser step k >= 1 */
    double grad_scale;              /* gradient is multiplied by this first (clipping, accumulation) */
} dt_adamw;

typedef struct dt_flat_ops {
    /* AdamW, Loshchilov & Hutter 2019, alg. 2, in torch's order: w *= 1 - lr*wd; m, v; w -= lr/bias1 * m /
     * (sqrt(v)/sqrt(bias2) + eps); grad NULL: all of it is 0 */
    void   (*adamw)(dt_device *d, float *master, float *m, float *v, const float *grad, int64_t n, const dt_adamw *a);
    double (*sumsq)(dt_device *d, const float *x, int64_t n);  /* fp64, fixed order; NaN/Inf propagate; synchronises */
    void   (*ema)(dt_device *d, float *ema, const float *w, int64_t n, double decay);    /* ema += (1-decay)(w-ema) */
    void   (*convert)(dt_device *d, void *dst, dt_dtype dd, const void *src, dt_dtype sd, int64_t n);
} dt_flat_ops;

struct dt_device {
    int         kind;               /* DT_CPU, DT_CUDA */
    const char *name;               /* "cpu", "cuda:0 NVIDIA H200" */
    int         threads;            /* CPU compute threads */
    int64_t     mem_bytes;          /* physical memory of the device */
    void       *stream;             /* cudaStream_t, NULL on the CPU */
    const dt_flat_ops *flat;

    /* 256-byte aligned; NULL if it does not fit.  alloc is for arenas, which every op goes through again and again:
     * huge pages on the CPU.  alloc_params is for parameters, filled once and then streamed: pages as the system gives
     * them on its own.  Those of 4 KiB slow no step down, and in a virtual machine huge ones can come half as fast. */
    void *(*alloc)(dt_device *d, int64_t bytes);
    void *(*alloc_params)(dt_device *d, int64_t bytes);
    void  (*free)(dt_device *d, void *p);
    void  (*zero)(dt_device *d, void *p, int64_t bytes);
    void  (*upload)(dt_device *d, void *dst, const void *src, int64_t bytes);   /* host to device,
                                                                                   ordered with kernels */
    void  (*download)(dt_device *d, void *dst, const void *src, int64_t bytes); /* synchronises */
    int   (*sync)(dt_device *d, dt_err *err);                           /* reports the sticky error of the stream */
    const struct dt_kernel *(*kernel)(dt_device *d, const struct dt_op *op);    /* NULL: not ported */
    /* Capture and replay of a list of launches (CUDA graphs); NULL where there is no such thing. */
    int   (*capture)(dt_device *d, void (*launch)(void *), void *ctx, void **graph, dt_err *err);
    int   (*replay)(dt_device *d, void *graph, dt_err *err);
    void  (*release)(dt_device *d, void *graph);
    void  (*close)(dt_device *d);
};

/* "cpu", "cuda", "cuda:1".  A missing plugin or device is DT_EFAIL with the reason; never a silent CPU. */
int  dt_device_open(dt_device **out, const char *name, dt_err *err);
int  dt_cpu_open(dt_device **out, dt_err *err);     /* kernels/cpu.c */
void dt_device_close(dt_device **d);

#endif
