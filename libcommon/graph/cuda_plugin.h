/* cuda_plugin.h - the inside of libdt-cuda.so: what kernels/cuda.cu and the .cu file of each family
 * share on the host.
 *
 * A family exports a table of dt_cuda_op; cuda.cu looks ops up by name when a graph is
 * planned.  Nothing of libdt is linked in: the plugin reads nodes through graph.h, whose
 * DT_DEVICE_ABI it was compiled with. */
#ifndef DT_GRAPH_CUDA_PLUGIN_H
#define DT_GRAPH_CUDA_PLUGIN_H
#include <cuda_runtime.h>
extern "C" {
#include "graph/graph.h"
}

struct dt_cuda_op {
    const char *name;                                       /* of the dt_op; NULL ends a table */
    void    (*launch)(const dt_node *n, const dt_run *r);   /* enqueues on r->dev->stream; reports nothing */
    int64_t (*workspace)(const dt_node *n);                 /* bytes; NULL = none */
};

extern const dt_cuda_op dt_cuda_pointwise[], dt_cuda_broadcast[], dt_cuda_norm[],
    dt_cuda_groupnorm[];
extern const dt_flat_ops dt_cuda_flat;

static inline bool dt_cuda_takes(dt_dtype t) { return t == DT_F32 || t == DT_BF16; }

/* The emulation in tests/cuemu has its own. */
#ifndef DT_LAUNCH
#define DT_LAUNCH(kernel, grid, block, shared, stream, ...) \
    (kernel)<<<(grid), (block), (shared), (cudaStream_t)(stream)>>>(__VA_ARGS__)
#endif

/* Calls that may fail for reasons outside: fills err with the place and CUDA's words, and leaves
 * by the label. */
#define DT_CUDA_TRY(call, err, out) \
    do { \
        cudaError_t dt_cuda_e = (call); \
        if (dt_cuda_e != cudaSuccess) { \
            dt_cuda_fail(err, dt_cuda_e, __FILE__, __LINE__); \
            goto out; \
        } \
    } while (0)
int dt_cuda_fail(dt_err *err, cudaError_t e, const char *file, int line);

/* First error of a stream since dt_device.sync reported one; `what` is borrowed. */
void dt_cuda_note(dt_device *d, cudaError_t e, const char *what);

#endif
