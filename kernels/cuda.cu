/* libdt-cuda.so: one CUDA device with one stream.
 *
 * Nothing here waits except sync, download, replay, free and (with DT_SYNC=1) each op.  The first error of the stream is
 * kept with the name of what ran then, and dt_device.sync reports it; with DT_SYNC=1 that is the op that failed. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "graph/cuda_plugin.h"

struct cuda_device {
    dt_device   d;
    int         ordinal;
    char        name[320];
    bool        sync_each;          /* DT_SYNC=1 */
    cudaError_t error;              /* first since the last report */
    char        where[128];
};

static cuda_device *cuda_of(dt_device *d) { return (cuda_device *)d; }

/* ---- errors ---- */

/* libdt's dt_err_set is not linked in. */
static int fail(dt_err *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
        va_end(ap);
    }
    return code;
}

int dt_cuda_fail(dt_err *err, cudaError_t e, const char *file, int line)
{
    return fail(err, e == cudaErrorMemoryAllocation ? DT_ENOMEM : DT_EFAIL, "%s (%s:%d)", cudaGetErrorString(e), file, line);
}

void dt_cuda_note(dt_device *d, cudaError_t e, const char *what)
{
    cuda_device *c = cuda_of(d);
    if (e == cudaSuccess || c->error != cudaSuccess)
        return;
    c->error = e;
    snprintf(c->where, sizeof(c->where), "%s", what);
}

static int report(cuda_device *c, dt_err *err)
{
    cudaError_t e = c->error;
    if (e == cudaSuccess)
        return 0;
    c->error = cudaSuccess;
    return fail(err, DT_EFAIL, "%s: %s: %s", c->name, c->where, cudaGetErrorString(e));
}

/* ---- memory ---- */

static void *device_alloc(dt_device *d, int64_t bytes)
{
    void *p = NULL;
    cudaSetDevice(cuda_of(d)->ordinal);
    if (bytes < 0 || cudaMalloc(&p, bytes ? (size_t)bytes : 1) != cudaSuccess) {
        cudaGetLastError();                     /* "does not fit" is an answer, not an error of the stream */
        return NULL;
    }
    return p;
}

static void device_free(dt_device *d, void *p)
{
    if (p)
        dt_cuda_note(d, cudaFree(p), "free");
}

static void device_zero(dt_device *d, void *p, int64_t bytes)
{
    dt_cuda_note(d, cudaMemsetAsync(p, 0, (size_t)bytes, (cudaStream_t)d->stream), "zero");
}

static void device_upload(dt_device *d, void *dst, const void *src, int64_t bytes)
{
    dt_cuda_note(
        d,
        cudaMemcpyAsync(dst, src, (size_t)bytes, cudaMemcpyHostToDevice, (cudaStream_t)d->stream),
        "upload");
}

static void device_download(dt_device *d, void *dst, const void *src, int64_t bytes)
{
    cudaStream_t s = (cudaStream_t)d->stream;
    dt_cuda_note(d, cudaMemcpyAsync(dst, src, (size_t)bytes, cudaMemcpyDeviceToHost, s),
                 "download");
    dt_cuda_note(d, cudaStreamSynchronize(s), "download");
}

static int device_sync(dt_device *d, dt_err *err)
{
    dt_cuda_note(d, cudaStreamSynchronize((cudaStream_t)d->stream),
                 "a kernel (DT_SYNC=1 tells which)");
    return report(cuda_of(d), err);
}

/* ---- ops ---- */

static const dt_cuda_op *const families[] = { dt_cuda_broadcast, dt_cuda_groupnorm, dt_cuda_norm,
                                              dt_cuda_pointwise };

static const dt_cuda_op *find_op(const char *name)
{
    for (const dt_cuda_op *family : families)
        for (const dt_cuda_op *op = family; op->name; op++)
            if (!strcmp(op->name, name))
                return op;
    return NULL;
}

static bool is_ported(const dt_tensor *t) { return !t || dt_cuda_takes(t->dtype); }

static int op_prepare(const dt_node *n, dt_prep *p)
{
    bool ok = true;
    for (int i = 0; i < n->nin; i++)
        ok = ok && is_ported(n->in[i]);
    for (int i = 0; i < n->nout; i++)
        ok = ok && is_ported(n->out[i]);
    if (!ok)
        return fail(p->err, DT_EFAIL, "types other than F32 and BF16 are not ported to CUDA");
    const dt_cuda_op *op = find_op(n->op->name);
    p->state = (void *)op;
    p->workspace = op->workspace ? op->workspace(n) : 0;
    return 0;
}

static void op_run(const dt_node *n, const dt_run *r)
{
    const dt_cuda_op *op = (const dt_cuda_op *)r->state;
    op->launch(n, r);
    dt_cuda_note(r->dev, cudaGetLastError(), op->name);
    if (cuda_of(r->dev)->sync_each)
        dt_cuda_note(r->dev, cudaStreamSynchronize((cudaStream_t)r->dev->stream), op->name);
}

static const dt_kernel kernel_of_all = { op_prepare, op_run, NULL };

static const dt_kernel *device_kernel(dt_device *, const dt_op *op)
{
    return find_op(op->name) ? &kernel_of_all : NULL;
}

/* ---- capture ---- */

static int device_capture(dt_device *d, void (*launch)(void *), void *ctx, void **out, dt_err *err)
{
    cudaStream_t s = (cudaStream_t)d->stream;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    int rc = DT_EFAIL;
    *out = NULL;
    DT_CUDA_TRY(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), err, out);
    launch(ctx);
    DT_CUDA_TRY(cudaStreamEndCapture(s, &graph), err, out);
    if ((rc = report(cuda_of(d), err)) < 0)
        goto out;
    rc = DT_EFAIL;
    DT_CUDA_TRY(cudaGraphInstantiate(&exec, graph, 0), err, out);
    *out = exec;
    rc = 0;
out:
    if (graph)
        cudaGraphDestroy(graph);
    return rc;
}

static int device_replay(dt_device *d, void *graph, dt_err *err)
{
    dt_cuda_note(d, cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)d->stream), "replay");
    return device_sync(d, err);
}

static void device_release(dt_device *d, void *graph)
{
    if (graph)
        dt_cuda_note(d, cudaGraphExecDestroy((cudaGraphExec_t)graph), "release");
}

/* ---- open, close ---- */

static void device_close(dt_device *d)
{
    if (d->stream)
        cudaStreamDestroy((cudaStream_t)d->stream);
    free(cuda_of(d));
}

static void set_functions(dt_device *d, bool capture)
{
    d->kind = DT_CUDA;
    d->threads = 1;
    d->flat = &dt_cuda_flat;
    d->alloc = d->alloc_params = device_alloc;
    d->free = device_free;
    d->zero = device_zero;
    d->upload = device_upload;
    d->download = device_download;
    d->sync = device_sync;
    d->kernel = device_kernel;
    if (capture) {
        d->capture = device_capture;
        d->replay = device_replay;
        d->release = device_release;
    }
    d->close = device_close;
}

extern "C" dt_device *dt_cuda_open(int ordinal, int abi, dt_err *err)
{
    const char *sync = getenv("DT_SYNC");
    cudaDeviceProp prop;
    cudaStream_t stream = NULL;
    cuda_device *c = NULL;
    if (abi != DT_DEVICE_ABI) {
        fail(err, DT_EFAIL, "the plugin is of another version (%d, the program's is %d)", DT_DEVICE_ABI, abi);
        return NULL;
    }
    DT_CUDA_TRY(cudaSetDevice(ordinal), err, out);
    DT_CUDA_TRY(cudaGetDeviceProperties(&prop, ordinal), err, out);
    DT_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), err, out);
    c = (cuda_device *)calloc(1, sizeof(*c));
    if (!c) {
        dt_cuda_fail(err, cudaErrorMemoryAllocation, __FILE__, __LINE__);
        cudaStreamDestroy(stream);
        goto out;
    }
    c->ordinal = ordinal;
    c->sync_each = sync && !strcmp(sync, "1");
    snprintf(c->name, sizeof(c->name), "cuda:%d %s", ordinal, prop.name);
    set_functions(&c->d, !c->sync_each);
    c->d.name = c->name;
    c->d.mem_bytes = (int64_t)prop.totalGlobalMem;
    c->d.stream = stream;
out:
    return c ? &c->d : NULL;
}
