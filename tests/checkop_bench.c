/* checkop_bench.c - checkop -b: the time of each node. */
#include <stdio.h>
#include "tests/checkop_run.h"

static dt_tensor *product(dt_graph *g, dt_tensor **in) { return dt_matmul_wt(g, in[0], in[1], NULL); }
static dt_tensor *sum(dt_graph *g, dt_tensor **in) { return dt_add(g, in[0], in[1]); }

#define PEAK(fn, n, m) { #fn, fn, { CONST(n, m), CONST(n, m) }, .flags = CHECK_NO_GRAD }
static const check_case peak_cases[DT_NDEV][2] = {
    [DT_CPU] = { PEAK(product, 2048, 2048), PEAK(sum, 8192, 4096) },
    [DT_CUDA] = { PEAK(product, 8192, 8192), PEAK(sum, 32768, 8192) },
};

static double seconds_of(const struct check_graph *x, const dt_node *n, dt_device *dev)
{
    void *in[DT_MAX_IN] = { NULL }, *out[DT_MAX_OUT] = { NULL };
    check_pointers(x, n, in, out);
    struct check_how how = { .inplace = -1, .times = 7 };
    return check_node(n, dev, in, out, &how) ? 0 : how.seconds;
}

/* Times every node of a case; prints them as shares of `peak` or, if `only`, keeps the last one's rates there. */
static void bench(dt_device *dev, const check_case *c, dt_dtype t, uint64_t seed,
                  const struct check_peak *peak, struct check_peak *only)
{
    struct check_data d;
    struct check_graph x;
    const char *bad = check_graph_init(&x, c, t);
    check_data_init(&d, c, FILL_RANDOM, seed);
    if (!bad) {
        check_graph_load(&x, &d);
        bad = check_run(&x, dev, true);
    }
    for (int64_t i = 0; !bad && i < x.g->nnode; i++) {
        const dt_node *n = x.g->node[i];
        dt_cost k = dt_node_cost(n);
        double s = check_skips(n) || k.bytes < 1e5 ? 0 : seconds_of(&x, n, dev);
        if (!s)
            continue;
        struct check_peak rate = { k.flops / s, k.bytes / s };
        if (only)
            *only = rate;
        else
            printf("%-34s %-16s %-4s %9.3f ms %9.1f GFLOP/s %3.0f%% %8.1f GB/s %3.0f%%\n", c->name,
                   n->op->name, dt_dtype_name(t), s * 1e3, rate.flops * 1e-9,
                   100 * rate.flops / peak->flops, rate.bytes * 1e-9, 100 * rate.bytes / peak->bytes);
    }
    if (bad)
        printf("%s: %s\n", c->name, bad);
    check_graph_release(&x);
    check_data_release(&d);
}

void check_bench(dt_device *dev, const check_case *c, dt_dtype t, uint64_t seed,
                 const struct check_peak *peak)
{
    bench(dev, c, t, seed, peak, NULL);
}

void check_peaks(dt_device *dev, struct check_peak *peak)
{
    struct check_peak r = { 0 };
    bench(dev, &peak_cases[dev->kind][0], dev->kind == DT_CUDA ? DT_BF16 : DT_F32, 1, NULL, &r);
    peak->flops = r.flops;
    bench(dev, &peak_cases[dev->kind][1], DT_F32, 1, NULL, &r);
    peak->bytes = r.bytes;
    printf("%s: %.1f GFLOP/s in a large product, %.1f GB/s in a large sum\n", dev->name,
           peak->flops * 1e-9, peak->bytes * 1e-9);
}
