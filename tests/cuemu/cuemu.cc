/* The machine behind cuda_runtime.h: fibres, the scheduler of a block, memory, captured launches.
 *
 * A warp runs ahead as far as it can before the next one moves: that is the schedule under which
 * a missing barrier does most harm.  Its fibres run until each waits or ends, then shuffles are
 * opened that all lanes of their mask have come to, and so on.  When no warp can move, the
 * barrier opens if all threads of the block wait at it; if not, some thread will never come, and
 * the launch fails. */
#undef _FORTIFY_SOURCE             /* its longjmp refuses to change stacks */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <algorithm>
#include <map>
#include <vector>
#include "cuda_runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define SWITCH_BEGIN(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SWITCH_END(save, bottom, size) __sanitizer_finish_switch_fiber(save, bottom, size)
#else
#define SWITCH_BEGIN(save, bottom, size) (void)0
#define SWITCH_END(save, bottom, size) (void)0
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern char __start_cuemu_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuemu_shared[] __attribute__((weak, visibility("hidden")));

namespace {

constexpr size_t STACK = 256 * 1024;
constexpr int MAX_THREADS = 1024;

enum wait { RUN, AT_SHUFFLE, AT_BARRIER, DONE };

struct fibre {
    ucontext_t start;
    jmp_buf    at;
    bool       begun;               /* its stack holds the loop of fibre_main */
    char      *stack;
    void      *fake;                /* AddressSanitizer's */
    uint3      idx;
    enum wait  wait;
    const char *file;
    int        line;
    unsigned   mask;
    uint64_t   value, result;
    int        source;
};

struct machine {
    fibre  f[MAX_THREADS];
    int    threads, current;
    jmp_buf scheduler;
    void  *fake;
    const void *bottom;             /* the scheduler's stack, for AddressSanitizer */
    size_t size;
    const std::function<void()> *kernel;
    unsigned launches;
    cudaError_t error;
    char   message[512];
    std::map<char *, size_t> memory;
    std::vector<std::function<void()>> *capture;
} m;

void fail(cudaError_t e, const char *fmt, ...)
{
    if (m.error != cudaSuccess)
        return;
    m.error = e;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(m.message, sizeof(m.message), fmt, ap);
    va_end(ap);
}

/* ---- fibres ---- */

/* Back to the scheduler; returns when it resumes this fibre. */
void yield()
{
    fibre *f = &m.f[m.current];
    if (!_setjmp(f->at)) {
        SWITCH_BEGIN(&f->fake, m.bottom, m.size);
        _longjmp(m.scheduler, 1);
    }
    SWITCH_END(f->fake, &m.bottom, &m.size);
}

void fibre_main()
{
    SWITCH_END(NULL, &m.bottom, &m.size);
    for (;;) {
        (*m.kernel)();
        m.f[m.current].wait = DONE;
        yield();
    }
}

void resume(int t)
{
    fibre *f = &m.f[t];
    m.current = t;
    threadIdx = f->idx;
    if (_setjmp(m.scheduler)) {
        SWITCH_END(m.fake, NULL, NULL);
        return;
    }
    SWITCH_BEGIN(&m.fake, f->stack, STACK);
    if (f->begun)
        _longjmp(f->at, 1);
    f->begun = true;
    setcontext(&f->start);
}

void make_fibre(fibre *f)
{
    if (!f->stack)
        f->stack = (char *)malloc(STACK);
    getcontext(&f->start);
    f->start.uc_stack.ss_sp = f->stack;
    f->start.uc_stack.ss_size = STACK;
    f->start.uc_link = NULL;
    makecontext(&f->start, fibre_main, 0);
    f->begun = false;
}

/* ---- meetings ---- */

int warp_of(int t) { return t & ~31; }

/* All lanes that fibre t's mask names, at the same shuffle with the same mask. */
bool shuffle_complete(int t)
{
    const fibre *f = &m.f[t];
    for (int lane = 0; lane < 32; lane++) {
        if (!(f->mask >> lane & 1))
            continue;
        int o = warp_of(t) + lane;
        const fibre *other = &m.f[o];
        if (o >= m.threads || other->wait != AT_SHUFFLE || other->mask != f->mask ||
            other->line != f->line || strcmp(other->file, f->file))
            return false;
    }
    return true;
}

void open_shuffle(int t)
{
    unsigned mask = m.f[t].mask;
    for (int lane = 0; lane < 32; lane++) {
        fibre *f = &m.f[warp_of(t) + lane];
        if (!(mask >> lane & 1))
            continue;
        if (f->source < 0 || f->source > 31 || !(mask >> f->source & 1))
            fail(cudaErrorLaunchFailure, "%s:%d: lane %d reads lane %d, which is not in mask %08x",
                 f->file, f->line, lane, f->source, mask);
        else
            f->result = m.f[warp_of(t) + f->source].value;
        f->wait = RUN;
    }
}

bool open_shuffles(int warp)
{
    bool any = false;
    for (int t = warp; t < m.threads && t < warp + 32; t++)
        if (m.f[t].wait == AT_SHUFFLE && shuffle_complete(t)) {
            open_shuffle(t);
            any = true;
        }
    return any;
}

bool open_barrier()
{
    for (int t = 0; t < m.threads; t++)
        if (m.f[t].wait != AT_BARRIER || m.f[t].line != m.f[0].line ||
            strcmp(m.f[t].file, m.f[0].file))
            return false;
    for (int t = 0; t < m.threads; t++)
        m.f[t].wait = RUN;
    return true;
}

void blame()
{
    for (int t = 0; t < m.threads; t++) {
        const fibre *f = &m.f[t];
        if (f->wait == AT_SHUFFLE)
            fail(cudaErrorLaunchFailure, "%s:%d: not all lanes of mask %08x come to this shuffle",
                 f->file, f->line, f->mask);
    }
    for (int t = 0; t < m.threads; t++)
        if (m.f[t].wait == AT_BARRIER)
            fail(cudaErrorLaunchFailure, "%s:%d: not all threads of the block come to this barrier",
                 m.f[t].file, m.f[t].line);
}

/* ---- blocks ---- */

/* Permutation of 0..n-1: ascending, descending, then shuffled anew for each launch. */
std::vector<int> order_of(int n, int salt)
{
    std::vector<int> order(n);
    uint64_t r = 0x9e3779b97f4a7c15u * (m.launches + 1) + (uint64_t)salt;
    for (int i = 0; i < n; i++)
        order[i] = m.launches % 3 == 1 ? n - 1 - i : i;
    for (int i = n - 1; m.launches % 3 == 2 && i > 0; i--) {
        r = r * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i], order[(r >> 33) % (unsigned)(i + 1)]);
    }
    return order;
}

void begin_block(dim3 block)
{
    if (__start_cuemu_shared)
        memset(__start_cuemu_shared, 0xff, (size_t)(__stop_cuemu_shared - __start_cuemu_shared));
    for (int t = 0; t < m.threads; t++) {
        fibre *f = &m.f[t];
        if (!f->stack || f->wait != DONE)
            make_fibre(f);
        f->wait = RUN;
        f->idx = uint3{ (unsigned)t % block.x, (unsigned)t / block.x % block.y,
                        (unsigned)t / (block.x * block.y) };
    }
}

/* Until all lanes wait for others than their own or have ended. */
void run_warp(int warp, const std::vector<int> &lanes)
{
    do {
        for (int lane : lanes)
            if (warp + lane < m.threads && m.f[warp + lane].wait == RUN)
                resume(warp + lane);
    } while (m.error == cudaSuccess && open_shuffles(warp));
}

void run_block(const std::vector<int> &warps, const std::vector<int> &lanes)
{
    for (;;) {
        for (int w : warps)
            run_warp(32 * w, lanes);
        bool done = true;
        for (int t = 0; t < m.threads; t++)
            done &= m.f[t].wait == DONE;
        if (m.error != cudaSuccess || done)
            return;
        if (!open_barrier()) {
            blame();
            return;
        }
    }
}

/* ---- memory ---- */

size_t pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

void device_memory(bool readable)
{
    for (auto &a : m.memory)
        mprotect(a.first, a.second, readable ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void run_grid(const std::function<void()> &kernel, dim3 grid, dim3 block)
{
    m.kernel = &kernel;
    m.threads = (int)(block.x * block.y * block.z);
    gridDim = grid;
    blockDim = block;
    std::vector<int> warps = order_of((m.threads + 31) / 32, 0), lanes = order_of(32, 1);
    m.launches++;
    device_memory(true);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x && m.error == cudaSuccess; x++) {
                blockIdx = uint3{ x, y, z };
                begin_block(block);
                run_block(warps, lanes);
            }
    device_memory(false);
}

cudaError_t enqueue(std::function<void()> work)
{
    if (m.capture)
        m.capture->push_back(work);
    else
        work();
    return cudaSuccess;
}

} /* namespace */

/* ---- device side ---- */

int cuemu_lane()
{
    uint3 t = m.f[m.current].idx;
    return (int)((t.z * blockDim.y + t.y) * blockDim.x + t.x) & 31;
}

void cuemu_barrier(const char *file, int line)
{
    fibre *f = &m.f[m.current];
    f->file = file;
    f->line = line;
    f->wait = AT_BARRIER;
    yield();
}

uint64_t cuemu_exchange(unsigned mask, uint64_t v, int source, const char *file, int line)
{
    fibre *f = &m.f[m.current];
    if (!(mask >> cuemu_lane() & 1))
        fail(cudaErrorLaunchFailure, "%s:%d: mask %08x lacks lane %d, which calls", file, line,
             mask, cuemu_lane());
    f->file = file;
    f->line = line;
    f->mask = mask;
    f->value = v;
    f->source = source;
    f->wait = AT_SHUFFLE;
    yield();
    return f->result;
}

/* ---- host side ---- */

void cuemu_launch(std::function<void()> kernel, dim3 grid, dim3 block, cudaStream_t)
{
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (!threads || threads > MAX_THREADS || block.z > 64 || !grid.x || !grid.y || !grid.z ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        fail(cudaErrorInvalidConfiguration, "grid %u x %u x %u of blocks %u x %u x %u", grid.x,
             grid.y, grid.z, block.x, block.y, block.z);
        return;
    }
    enqueue([=] { run_grid(kernel, grid, block); });
}

struct cuemu_stream { int unused; };
struct cuemu_graph { std::vector<std::function<void()>> work; };

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    snprintf(p->name, sizeof(p->name), "emulated");
    p->totalGlobalMem = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = new cuemu_stream{};
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaGetLastError(); }

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    void *q = mmap(NULL, pages(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (q == MAP_FAILED)
        return cudaErrorMemoryAllocation;
    m.memory[(char *)q] = pages(bytes);
    *p = q;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    auto it = m.memory.find((char *)p);
    if (it == m.memory.end())
        return cudaErrorNotSupported;
    munmap(p, it->second);
    m.memory.erase(it);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t)
{
    return enqueue([=] {
        device_memory(true);
        memset(p, value, bytes);
        device_memory(false);
    });
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    return enqueue([=] {
        device_memory(true);
        memcpy(dst, src, bytes);
        device_memory(false);
    });
}

cudaError_t cudaGetLastError()
{
    cudaError_t e = m.error;
    m.error = cudaSuccess;
    return e;
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:                   return "no error";
    case cudaErrorMemoryAllocation:     return "out of memory";
    case cudaErrorInvalidDevice:        return "invalid device ordinal";
    case cudaErrorNotSupported:         return "operation not supported";
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchFailure:        return m.message;
    }
    return "unknown error";
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    m.capture = new std::vector<std::function<void()>>;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g)
{
    *g = new cuemu_graph{ *m.capture };
    delete m.capture;
    m.capture = NULL;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long)
{
    *exec = new cuemu_graph(*g);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t)
{
    for (auto &work : exec->work)
        enqueue(work);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g) { return cudaGraphExecDestroy(g); }
