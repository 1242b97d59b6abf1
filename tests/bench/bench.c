/* bench: how fast the networks run on this machine, and where the time goes.
 *
 *   bench [-t f32|bf16] [-n RUNS] [-a] [NAME ...]      a table for each work (work.h): all, if none is named; -a: every shape
 *   bench [-t f32|bf16] -s NAME                        serve: what tests/bench/torch_compare.py talks to
 *
 * Shares are of the peaks that peak.h measures in the same run.  A server says "ready" when it has warmed up,
 * answers every "run" with the seconds it took and "peak" with the process's peak of resident memory in KiB
 * since it was ready. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/mem.h"
#include "base/tool.h"
#include "bench/peak.h"
#include "bench/work.h"
#include "graph/internal.h"

enum { WARM_UP = 1 };

struct row {                        /* of one op, or of one op and shape */
    const char *op;
    char   what[160];
    int    calls;
    double seconds, least, flops, bytes;        /* of all calls; seconds: medians */
};

struct table {
    struct row *row;
    int64_t n, cap;
    bool    shapes;
    const struct peak *peak;
    struct row products;            /* those that arithmetic takes longer than memory does, whatever a row is of */
};

/* What a plan's nodes took, [run][node].  Of each the median counts, and the least: peaks are the best of many tries,
 * too. */
struct times {
    struct { const dt_node *node; double seconds; } *at;
    int64_t n, cap;
};

static double median(double *x, int n)
{
    for (int i = 1; i < n; i++)
        for (int k = i; k > 0 && x[k] < x[k - 1]; k--) {
            double t = x[k];
            x[k] = x[k - 1];
            x[k - 1] = t;
        }
    return n % 2 ? x[n / 2] : (x[n / 2] + x[n / 2 - 1]) / 2;
}

/* --- profile --- */

static bool starts(const char *s, const char *with) { return !strncmp(s, with, strlen(with)); }

static void keep(void *ctx, const dt_node *n, double seconds)
{
    struct times *t = ctx;
    dt_grow(&t->at, &t->cap, t->n + 1, sizeof(*t->at));
    t->at[t->n].node = n;
    t->at[t->n++].seconds = seconds;
}

static void count(struct row *r, dt_cost c, double seconds, double least)
{
    r->calls++;
    r->seconds += seconds;
    r->least += least;
    r->flops += c.flops;
    r->bytes += c.bytes;
}

static void add(struct table *t, const dt_node *n, double seconds, double least)
{
    char what[160] = "";
    int64_t i = 0;
    if (t->shapes)
        dt_node_describe(n, what, sizeof(what));
    while (i < t->n && (strcmp(t->row[i].op, n->op->name) || strcmp(t->row[i].what, what)))
        i++;
    if (i == t->n) {
        dt_grow(&t->row, &t->cap, t->n + 1, sizeof(*t->row));
        t->row[t->n++] = (struct row){ .op = n->op->name };
        memcpy(t->row[i].what, what, sizeof(what));
    }
    dt_cost c = dt_node_cost(n);
    count(&t->row[i], c, seconds, least);
    if (starts(n->op->name, "matmul") && c.flops / t->peak->flops >= c.bytes / t->peak->bytes)
        count(&t->products, c, seconds, least);
}

static void profile(struct table *t, dt_plan *plan, int runs)
{
    struct times all = { 0 };
    double *s = dt_alloc((size_t)runs * sizeof(*s));
    for (int r = 0; r < runs; r++)
        dt_plan_profile(plan, keep, &all);
    int64_t nodes = all.n / runs;
    for (int64_t i = 0; i < nodes; i++) {
        for (int r = 0; r < runs; r++)
            s[r] = all.at[r * nodes + i].seconds;
        double middle = median(s, runs);        /* sorts them */
        add(t, all.at[i].node, middle, s[0]);
    }
    free(s);
    free(all.at);
}

static int by_seconds(const void *a, const void *b)
{
    double x = ((const struct row *)a)->seconds, y = ((const struct row *)b)->seconds;
    return (x < y) - (x > y);
}

static void print_profile(struct table *t)
{
    const struct peak *p = t->peak;
    const struct row *m = &t->products;
    double total = 0, products = 0, attention = 0;
    qsort(t->row, (size_t)t->n, sizeof(*t->row), by_seconds);
    for (int64_t i = 0; i < t->n; i++) {
        const struct row *r = &t->row[i];
        total += r->seconds;
        products += starts(r->op, "matmul") || starts(r->op, "conv2d") ? r->seconds : 0;
        attention += starts(r->op, "attention") ? r->seconds : 0;
    }
    printf("  %5s %9s %6s %8s %6s %7s %8s %6s %7s  %s\n", "calls", "ms", "share", "GFLOP/s", "peak", "at best", "GB/s",
           "peak", "at best", "op");
    for (int64_t i = 0; i < t->n; i++) {
        const struct row *r = &t->row[i];
        double f = 100 * r->flops / p->flops, b = 100 * r->bytes / p->bytes;
        printf("  %5d %9.3f %5.1f%% %8.1f %5.0f%% %6.0f%% %8.1f %5.0f%% %6.0f%%  %s\n", r->calls, r->seconds * 1e3,
               100 * r->seconds / total, r->flops / r->seconds * 1e-9, f / r->seconds, f / r->least,
               r->bytes / r->seconds * 1e-9, b / r->seconds, b / r->least, r->what[0] ? r->what : r->op);
    }
    if (m->calls)
        printf("  matrix products that arithmetic limits: %.1f%% of the peak, at best %.1f%%\n",
               100 * m->flops / m->seconds / p->flops, 100 * m->flops / m->least / p->flops);
    printf("  matrix products and convolutions %.1f%%, attention %.1f%%, all else %.1f%%\n\n", 100 * products / total,
           100 * attention / total, 100 * (total - products - attention) / total);
}

/* --- tables --- */

struct opts {
    dt_dtype dtype;
    int      runs;
    bool     shapes;
    dt_device *dev;
};

static int table(const struct opts *o, const char *name, const struct peak *p, dt_err *err)
{
    work *w = NULL;
    double *s = dt_alloc((size_t)o->runs * sizeof(*s)), t0 = bench_now();
    struct table t = { .shapes = o->shapes, .peak = p };
    int rc = work_new(&w, name, o->dtype, o->dev, err);
    double ready = bench_now() - t0;
    for (int i = -WARM_UP; i < o->runs && rc == 0; i++) {
        t0 = bench_now();
        rc = work_run(w, err);
        if (i >= 0)
            s[i] = bench_now() - t0;
    }
    if (rc == 0) {
        const dt_plan_stats *st = dt_plan_stat(work_plan(w));
        double m = median(s, o->runs);
        printf("%s %s: %.1f ms (%.1f to %.1f, %d runs), %.1f GFLOP/s, %.0f%% of the peak; arena %.1f MiB, weights %.1f MiB; "
               "made in %.2f s\n", name, dt_dtype_name(o->dtype), m * 1e3, s[0] * 1e3, s[o->runs - 1] * 1e3, o->runs,
               st->flops / m * 1e-9, 100 * st->flops / m / p->flops, (double)st->arena / 1048576.0,
               (double)work_weights(w) / 1048576.0, ready);
        profile(&t, work_plan(w), o->runs);
        print_profile(&t);
    }
    free(t.row);
    free(s);
    work_free(&w);
    return rc;
}

/* Of the works named, or of all. */
static int tables(const struct opts *o, char **names, dt_err *err)
{
    struct peak p = peak_measure(o->dev, o->dtype);
    printf("%d threads, %s: %.1f GFLOP/s in fp32 registers, %.1f GFLOP/s in a large product, %.1f GB/s\n\n",
           o->dev->threads, dt_dtype_name(o->dtype), p.fma * 1e-9, p.product * 1e-9, p.bytes * 1e-9);
    const char *name;
    for (int k = 0, rc; (name = *names ? names[k] : work_name(k)); k++)
        if ((rc = table(o, name, &p, err)) < 0)
            return rc;
    return 0;
}

/* --- serving --- */

static long peak_kib(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long kib = 0;
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "VmHWM: %ld kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

static void forget_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (f) {
        fputs("5", f);
        fclose(f);
    }
}

static int serve(const struct opts *o, const char *name, dt_err *err)
{
    work *w = NULL;
    char line[16];
    int rc = work_new(&w, name, o->dtype, o->dev, err);
    forget_peak();
    for (int i = 0; i < WARM_UP && rc == 0; i++)
        rc = work_run(w, err);
    if (rc == 0)
        puts("ready");
    for (fflush(stdout); rc == 0 && fgets(line, sizeof(line), stdin); fflush(stdout)) {
        double t0 = bench_now();
        if (starts(line, "peak")) {
            printf("%ld\n", peak_kib());
            continue;
        }
        rc = work_run(w, err);
        printf("%.9f\n", bench_now() - t0);
    }
    work_free(&w);
    return rc;
}

int main(int argc, char **argv)
{
    struct opts o = { .dtype = DT_F32, .runs = 9 };
    const char *served = NULL;
    dt_err err = { 0 };
    for (int c; (c = getopt(argc, argv, "t:n:as:")) != -1;) {
        if (c == 't' && !strcmp(optarg, "bf16"))
            o.dtype = DT_BF16;
        else if (c == 't' && !strcmp(optarg, "f32"))
            o.dtype = DT_F32;
        else if (c == 'n' && atoi(optarg) > 0)
            o.runs = atoi(optarg);
        else if (c == 'a')
            o.shapes = true;
        else if (c == 's')
            served = optarg;
        else
            return fputs("usage: bench [-t f32|bf16] [-n RUNS] [-a] [-s NAME] [NAME ...]\n", stderr), 2;
    }
    dt_malloc_install();                /* as the tools do: what is freed is not in the peak */
    int rc = dt_cpu_open(&o.dev, &err);
    if (rc == 0)
        rc = served ? serve(&o, served, &err) : tables(&o, argv + optind, &err);
    dt_device_close(&o.dev);
    if (rc < 0)
        fprintf(stderr, "bench: %s\n", err.msg);
    return rc < 0;
}
