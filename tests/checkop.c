/* checkop: check every kernel alone.  TAP on stdout; exit 0 all well, 1 a failure, 77 no such device.
 *
 *   checkop [-s SEED] [-d DEVICE] [-b] [-l] [PATTERN]
 *
 * For each case (checkop.h) whose "family: name" contains PATTERN:
 *   reference   forward against the case's own plain loops, where it has some
 *   gradient    backward against central differences of forward along random directions, one leaf at a time
 *   variants    in place, adding to what is there, without optional outputs: the same result;
 *               with each epilogue: that function of the result;
 *               on another number of threads: the same bits
 *   values      equal, tiny, huge and one-hot inputs give no NaN
 *   NaN         in an input or a gradient is passed on, in fp32 and bf16
 *   bf16        against fp32 on the same values
 *   plan        the planned run gives the bits of the node-by-node run, and twice the gradient when run twice
 * and, of all cases together, whether every op is in one.
 * With -d, instead: each node's kernel on DEVICE against the CPU's on the same inputs, in fp32 and
 * bf16, and three times with the same bits.  DEVICE "cuemu" is the CUDA plugin under the emulation in tests/cuemu,
 * without the large cases; there the three times are three orders of threads.
 * With -b, instead: time, GFLOP/s and GB/s of each node of the large cases, as shares of a measured peak.
 * All buffers stand between guards and begin as NaN. */
#include <malloc.h>
#include <math.h>
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/checkop_run.h"
#include "tests/tolerance.h"

extern const check_case attention_cases[], broadcast_cases[], conv_cases[], embed_cases[],
    groupnorm_cases[], matmul_cases[], norm_cases[], objective_cases[], pointwise_cases[],
    rope_cases[], shape_cases[];

dt_device *dt_cuda_open(int ordinal, int abi, dt_err *err);    /* kernels/cuda.cu, compiled for tests/cuemu */

struct family { const char *name; const check_case *cases; };

struct opts {
    uint64_t    seed;
    const char *device, *pattern;
    bool        bench, list;
    dt_device  *cpu, *dev;
    int         count, failed;
    struct check_peak peak;
    struct check_ops ops;
};

/* A complaint; valid until the next. */
static const char *say(const char *fmt, ...)
{
    static char msg[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    return msg;
}

/* Values of t as fp32; caller frees. */
static float *values(const struct check_graph *x, const dt_tensor *t)
{
    return check_floats(t, check_host(x, t));
}

static double norm2(const float *x, int64_t n)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += (double)x[i] * x[i];
    return sqrt(s);
}

/* |a - ref| / |ref|.  What cancels to nearly nothing is measured against `floor` per element instead. */
static double rel_error(const float *a, const float *ref, int64_t n, double floor)
{
    double s = 0, den = fmax(norm2(ref, n), floor * sqrt((double)n));
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - ref[i];
        s += isfinite(ref[i]) || a[i] != ref[i] ? d * d : 0;        /* equal infinities agree */
    }
    return sqrt(s) / fmax(den, 1e-30);
}

static bool has_nan(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (isnan(x[i]))
            return true;
    return false;
}

/* --- TAP --- */

static void report(struct opts *o, const struct family *f, const check_case *c, const char *check,
                   const char *bad)
{
    bool skip = bad == check_not_ported;
    printf("%sok %d - %s: %s: %s%s\n", bad && !skip ? "not " : "", ++o->count, f->name, c->name,
           check, skip ? " # SKIP not ported" : "");
    if (skip)
        return;
    if (bad)
        printf("# %s\n", bad);
    o->failed += bad != NULL;
}

/* --- gradients of a run --- */

/* The gradient of a leaf tensor as fp32; NULL if it has none.  Caller frees. */
static float *leaf_grad(const struct check_graph *x, const dt_tensor *leaf)
{
    if (leaf->kind != DT_PARAM)
        return leaf->grad ? values(x, leaf->grad) : NULL;
    float *sum = NULL;
    for (int64_t i = 0; i < x->g->ntensor; i++) {
        const dt_tensor *t = x->g->tensor[i];
        if (t->kind != DT_GRAD || t->param != leaf->param)
            continue;
        float *v = check_floats(t, x->host[i]);
        for (int64_t k = 0; sum && k < dt_numel(t->dims); k++)
            v[k] += sum[k];
        free(sum);
        sum = v;
    }
    return sum;
}

static bool is_leaf(const dt_tensor *t)
{
    return t->needs_grad && !t->node && (t->kind == DT_INPUT || t->kind == DT_PARAM);
}

/* sum y seed in fp64, and in *size the L2 norm of its terms */
static double loss_of(const struct check_graph *x, double *size)
{
    float *y = values(x, x->y), *s = values(x, x->seed);
    double sum = 0, sq = 0;
    for (int64_t i = 0; i < dt_numel(x->y->dims); i++) {
        sum += (double)y[i] * s[i];
        sq += (double)y[i] * s[i] * y[i] * s[i];
    }
    free(y);
    free(s);
    *size = sqrt(sq);
    return sum;
}

/* Central difference along u with Richardson's extrapolation: error O(h^4). */
static double difference(struct check_graph *x, dt_device *dev, const dt_tensor *leaf,
                         const float *at, const float *u, double h, double *noise)
{
    float *v = check_host(x, leaf);
    int64_t n = dt_numel(leaf->dims);
    double d[2], size = 0;
    for (int step = 0; step < 2; step++) {
        double l[2], by = step ? h / 2 : h;
        for (int s = 0; s < 2; s++) {
            for (int64_t i = 0; i < n; i++)
                v[i] = (float)(at[i] + (s ? by : -by) * u[i]);
            check_run(x, dev, false);
            l[s] = loss_of(x, &size);
        }
        d[step] = (l[1] - l[0]) / (2 * by);
    }
    memcpy(v, at, (size_t)n * sizeof(*v));
    *noise = 64 * 0x1p-24 * size / h;
    return (4 * d[1] - d[0]) / 3;
}

static double direction(float *u, int64_t n, int kind, dt_rng *r)
{
    int64_t hot = (int64_t)dt_rng_below(r, (uint64_t)n);
    for (int64_t i = 0; i < n; i++)
        u[i] = kind ? (float)dt_rng_normal(r) : i == hot;
    return kind ? 1e-2 : 4e-2;
}

static const char *check_leaf_gradient(struct check_graph *x, const struct opts *o,
                                       const dt_tensor *leaf)
{
    int64_t n = dt_numel(leaf->dims);
    float *g = leaf_grad(x, leaf), *at = values(x, leaf), *u = dt_alloc((size_t)n * sizeof(*u));
    const char *bad = g ? NULL : "a leaf has no gradient";
    dt_rng r = dt_rng_make(o->seed, DT_RNG_TEST, 1, (uint32_t)leaf->id);
    for (int kind = 0; kind < 3 && !bad; kind++) {
        double noise, dot = 0, h = direction(u, n, kind, &r);
        double fd = difference(x, o->cpu, leaf, at, u, h, &noise);
        for (int64_t i = 0; i < n; i++)
            dot += (double)g[i] * u[i];
        double allow = 2e-3 * (kind ? norm2(g, n) : fabs(dot)) + noise;
        if (!(fabs(fd - dot) <= allow))
            bad = say("%s: gradient says %.6g, differences %.6g, allowed %.2g apart", leaf->name,
                      dot, fd, allow);
    }
    free(g);
    free(u);
    free(at);
    return bad;
}

static const char *frozen_gradient(const struct check_graph *x)
{
    for (int64_t i = 0; i < x->g->ntensor; i++)
        if (x->g->tensor[i]->kind == DT_GRAD && !x->g->tensor[i]->param->trainable)
            return "a frozen parameter gets a gradient";
    return NULL;
}

static const char *check_gradient(struct check_graph *x, const struct opts *o)
{
    const char *bad = frozen_gradient(x);
    int leaves = 0;
    for (int64_t i = 0; i < x->g->ntensor && !bad; i++)
        if (is_leaf(x->g->tensor[i])) {
            bad = check_leaf_gradient(x, o, x->g->tensor[i]);
            leaves++;
        }
    if (!bad && !leaves)
        bad = "nothing to differentiate by; CHECK_NO_GRAD?";
    check_run(x, o->cpu, false);    /* the values of the unmoved point again */
    return bad;
}

/* --- variants of a node --- */

/* Outputs of n by `how` on dev against what the host has.  tol 0: the same bits. */
static const char *same_result(const struct check_graph *x, const dt_node *n, dt_device *dev,
                               struct check_how how, double tol, const char *what)
{
    void *in[DT_MAX_IN] = { NULL }, *out[DT_MAX_OUT] = { NULL }, *got[DT_MAX_OUT] = { NULL };
    check_pointers(x, n, in, out);
    for (int k = 0; k < n->nout; k++)
        if (n->out[k]) {
            got[k] = dt_alloc((size_t)dt_bytes(n->out[k]) + 64);
            if (n->out[k]->kind != DT_GRAD)     /* those begin at 0 */
                memcpy(got[k], out[k], (size_t)dt_bytes(n->out[k]));
        }
    const char *bad = check_node(n, dev, in, got, &how);
    for (int k = 0; k < n->nout && !bad; k++) {
        if (!n->out[k] || how.drop >> k & 1)
            continue;
        float *a = check_floats(n->out[k], got[k]), *b = check_floats(n->out[k], out[k]);
        int64_t len = dt_numel(n->out[k]->dims);
        for (int64_t i = 0; how.acc && i < len; i++)
            b[i] *= 2;                          /* it began with the result itself */
        double e = rel_error(a, b, len, tol ? 1e-3 : 0);
        if (!(e <= tol))
            bad = say("%s %s: output %d is off by %.2g, allowed %.2g", n->op->name, what, k, e, tol);
        free(a);
        free(b);
    }
    for (int k = 0; k < n->nout; k++)
        free(got[k]);
    return bad;
}

static bool inplace_fits(const dt_node *n, int k)
{
    if (k >= n->nin || !n->in[k] || !(n->op->inplace >> k & 1) ||
        dt_bytes(n->in[k]) != dt_bytes(n->out[0]) || n->in[k]->dtype != n->out[0]->dtype)
        return false;
    for (int j = 0; j < n->nin; j++)
        if (j != k && n->in[j] && dt_root(n->in[j]) == dt_root(n->in[k]))
            return false;
    return true;
}

double check_epilogue(enum dt_epilogue e, double x)
{
    switch (e) {
    case DT_EPI_SILU:       return x / (1 + exp(-x));
    case DT_EPI_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case DT_EPI_GELU_ERF:   return x / 2 * erfc(-x / sqrt(2));
    case DT_EPI_GELU_TANH:  return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    default:                return x;
    }
}

/* The host's first output of n becomes f of itself meanwhile. */
static const char *with_epilogue(const struct check_graph *x, const dt_node *n, dt_device *dev,
                                 enum dt_epilogue e, double tol)
{
    const dt_tensor *t = n->out[0];
    int64_t len = dt_numel(t->dims);
    void *host = check_host(x, t), *plain = dt_alloc((size_t)dt_bytes(t));
    float *y = values(x, t);
    dt_node with = *n;
    with.attr.i[DT_ATTR_EPI] = e;
    memcpy(plain, host, (size_t)dt_bytes(t));
    for (int64_t i = 0; i < len; i++)
        y[i] = (float)check_epilogue(e, y[i]);
    dt_convert(host, t->dtype, y, DT_F32, len);
    const char *bad = same_result(x, &with, dev, (struct check_how){ .inplace = -1 }, tol, "with an epilogue");
    memcpy(host, plain, (size_t)dt_bytes(t));
    free(plain);
    free(y);
    return bad;
}

/* `same` is what the result may differ from the host's by, `sum` what the sum with something may. */
static const char *node_variants(const struct check_graph *x, const dt_node *n, dt_device *dev,
                                 double same, double sum)
{
    const char *bad = same_result(x, n, dev, (struct check_how){ .inplace = -1 }, same, "run again");
    for (int k = 0; k < DT_MAX_IN && !bad; k++)
        if (inplace_fits(n, k))
            bad = same_result(x, n, dev, (struct check_how){ .inplace = k }, same, "in place");
    for (int k = 0; k < n->nout && !bad; k++)
        if (n->op->optional_out >> k & 1)
            bad = same_result(x, n, dev, (struct check_how){ .inplace = -1, .drop = 1u << k }, same,
                              "without an output");
    if (!bad && n->op->accumulates && n->out[0]->dtype == DT_F32 && n->out[0]->kind != DT_GRAD) {
        dt_node acc = *n;
        acc.attr.i[DT_ATTR_ACC] = 1;
        bad = same_result(x, &acc, dev, (struct check_how){ .inplace = -1, .acc = true }, sum,
                          "adding");
    }
    for (int e = 1; !bad && n->op->epilogues >> e; e++)
        if (n->op->epilogues >> e & 1)
            bad = with_epilogue(x, n, dev, (enum dt_epilogue)e, sum);
    return bad;
}

/* Three runs on dev give the same bits. */
static const char *same_bits(const struct check_graph *x, const dt_node *n, dt_device *dev)
{
    void *in[DT_MAX_IN] = { NULL }, *host[DT_MAX_OUT] = { NULL }, *out[3][DT_MAX_OUT] = { 0 };
    const char *bad = NULL;
    check_pointers(x, n, in, host);
    for (int i = 0; i < 3 && !bad; i++) {
        for (int k = 0; k < n->nout; k++)
            out[i][k] = n->out[k] ? dt_alloc((size_t)dt_bytes(n->out[k]) + 64) : NULL;
        bad = check_node(n, dev, in, out[i], NULL);
        for (int k = 0; k < n->nout && !bad; k++)
            if (n->out[k] && memcmp(out[i][k], out[0][k], (size_t)dt_bytes(n->out[k])))
                bad = say("%s: output %d has other bits when run again", n->op->name, k);
    }
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < n->nout; k++)
            free(out[i][k]);
    return bad;
}

/* oneDNN may split a sum by the number of threads; ours never do. */
static bool splits_by_thread(const dt_node *n)
{
    return !strncmp(n->op->name, "matmul", 6) || !strncmp(n->op->name, "conv2d", 6);
}

static const char *check_variants(const struct check_graph *x, const struct opts *o)
{
    double tol = tol_op(DT_F32, x->c->k);
    dt_device other = *o->cpu;
    int threads = omp_get_max_threads();
    other.threads = threads == 1 ? 3 : 1;
    const char *bad = NULL;
    for (int64_t i = 0; i < x->g->nnode && !bad; i++) {
        const dt_node *n = x->g->node[i];
        if (check_skips(n))
            continue;
        bad = node_variants(x, n, o->cpu, 0, tol);
        omp_set_num_threads(other.threads);
        if (!bad)
            bad = same_result(x, n, &other, (struct check_how){ .inplace = -1 },
                              splits_by_thread(n) ? tol : 0, "on another number of threads");
        omp_set_num_threads(threads);
    }
    return bad;
}

/* --- adversarial values --- */

static const char *const fill_name[NFILL] = { "random", "equal", "tiny", "huge", "one-hot" };

static const char *check_values(const check_case *c, const struct opts *o, enum check_fill fill)
{
    struct check_data d;
    struct check_graph x;
    const char *bad = check_graph_init(&x, c, DT_F32);
    check_data_init(&d, c, fill, o->seed);
    if (!bad) {
        check_graph_load(&x, &d);
        bad = check_run(&x, o->cpu, true);
    }
    for (int64_t i = 0; !bad && i < x.g->ntensor; i++) {
        const dt_tensor *t = x.g->tensor[i];
        if (t->base || t->dtype != DT_F32 || !has_nan(x.host[i], dt_numel(t->dims)))
            continue;
        bad = say("%s values: NaN from %s", fill_name[fill], t->node ? t->node->op->name : "a leaf");
    }
    check_graph_release(&x);
    check_data_release(&d);
    return bad;
}

/* --- reference --- */

static const char *check_reference(const struct check_graph *x, const struct check_data *d)
{
    const float *in[DT_MAX_IN] = { NULL };
    int64_t n = dt_numel(x->y->dims);
    float *ref = dt_alloc((size_t)n * sizeof(*ref)), *y = values(x, x->y);
    for (int i = 0; i < x->nin; i++)
        in[i] = check_leaf_of(d, x->in[i]->name)->v;
    x->c->reference(x->c, in, ref);
    double e = rel_error(y, ref, n, 0), tol = tol_op(DT_F32, x->c->k);
    free(ref);
    free(y);
    return e <= tol ? NULL : say("off by %.2g, allowed %.2g", e, tol);
}

/* --- bf16 --- */

static const char *compare(const char *what, float *a, float *b, int64_t n, double tol)
{
    double e = a && b ? rel_error(a, b, n, 1e-2) : a || b ? INFINITY : 0;
    free(a);
    free(b);
    return e <= tol ? NULL : say("%s is off by %.2g, allowed %.2g", what, e, tol);
}

static const char *check_bf16(const struct check_graph *ref, const struct check_data *d,
                              const struct opts *o)
{
    struct check_graph x;
    double tol = tol_op(DT_BF16, ref->c->k);
    const char *bad = check_graph_init(&x, ref->c, DT_BF16);
    if (!bad) {
        check_graph_load(&x, d);
        bad = check_run(&x, o->cpu, true);
    }
    if (!bad)
        bad = compare("the output", values(&x, x.y), values(ref, ref->y), dt_numel(ref->y->dims), tol);
    for (int i = 0; i < x.nin && !bad; i++)
        if (is_leaf(ref->in[i]))
            bad = compare(ref->in[i]->name, leaf_grad(&x, x.in[i]), leaf_grad(ref, ref->in[i]),
                          dt_numel(ref->in[i]->dims), tol);
    check_graph_release(&x);
    return bad;
}

/* --- plan --- */

static void fill_params(const struct check_graph *x, const struct check_data *d)
{
    for (int64_t i = 0; i < x->set->n; i++) {
        dt_param *p = x->set->v[i];
        dt_convert(p->w, p->dtype, check_leaf_of(d, p->name)->v, DT_F32, p->numel);
        if (p->grad)
            memset(p->grad, 0, (size_t)p->numel * sizeof(float));
    }
}

static const char *compare_plan(const struct check_graph *x, const struct check_graph *ref,
                                dt_plan *plan)
{
    float *y = dt_alloc((size_t)dt_bytes(x->y));
    dt_plan_read(plan, x->y, y);
    const char *bad = compare("the output", y, values(ref, ref->y), dt_numel(x->y->dims), 0);
    for (int64_t i = 0; i < ref->g->ntensor && !bad; i++) {
        const dt_tensor *t = ref->g->tensor[i];
        if (t->kind != DT_PARAM || !t->needs_grad)
            continue;
        float *twice = leaf_grad(ref, t), *got = dt_alloc((size_t)t->param->numel * sizeof(*got));
        for (int64_t k = 0; k < t->param->numel; k++)
            twice[k] *= 2;
        memcpy(got, dt_params_find(x->set, t->name)->grad, (size_t)t->param->numel * sizeof(*got));
        bad = compare(t->name, got, twice, t->param->numel, tol_op(DT_F32, ref->c->k));
    }
    return bad;
}

static const char *check_plan(const struct check_graph *ref, const struct check_data *d,
                              const struct opts *o)
{
    static dt_err err;
    struct check_graph x;
    dt_plan *plan = NULL;
    void *arena = NULL;
    const char *bad = check_graph_init(&x, ref->c, DT_F32);
    if (!bad && dt_params_alloc(x.set, o->cpu, DT_F32, DT_PARAMS_NO_OPTIM, &err) < 0)
        bad = err.msg;
    if (!bad) {
        dt_output(x.g, x.y, "y");
        fill_params(&x, d);
        if (dt_plan_new(&plan, x.g, o->cpu, &err) < 0)
            bad = err.msg;
    }
    if (!bad) {
        arena = o->cpu->alloc(o->cpu, dt_plan_bytes(plan) + 1);
        memset(arena, 0xff, (size_t)dt_plan_bytes(plan));
        dt_plan_bind(plan, arena);
        for (int64_t i = 0; i < ref->g->ntensor; i++)
            if (ref->g->tensor[i]->kind == DT_INPUT)
                dt_plan_write(plan, dt_find(x.g, ref->g->tensor[i]->name), ref->host[i]);
        for (int i = 0; i < 2 && !bad; i++)
            if (dt_plan_run(plan, &err) < 0)
                bad = err.msg;
    }
    if (!bad)
        bad = compare_plan(&x, ref, plan);
    dt_plan_free(&plan);
    o->cpu->free(o->cpu, arena);
    check_graph_release(&x);
    return bad;
}

/* --- another device --- */

static const char *check_device(const check_case *c, const struct opts *o, dt_dtype t,
                                enum check_fill fill)
{
    struct check_data d;
    struct check_graph x;
    const char *bad = check_graph_init(&x, c, t);
    check_data_init(&d, c, fill, o->seed);
    if (!bad) {
        check_graph_load(&x, &d);
        bad = check_run(&x, o->cpu, true);
    }
    double tol = tol_op(t, c->k);
    for (int64_t i = 0; !bad && i < x.g->nnode; i++)
        if (!check_skips(x.g->node[i])) {
            bad = node_variants(&x, x.g->node[i], o->dev, tol, tol);
            if (!bad)
                bad = same_bits(&x, x.g->node[i], o->dev);
        }
    check_graph_release(&x);
    check_data_release(&d);
    return bad;
}

/* --- main --- */

static const char *check_forward(struct check_graph *x, const struct check_data *d, dt_device *dev)
{
    check_graph_load(x, d);
    const char *bad = check_run(x, dev, true);
    bool nan = x->y->dtype == DT_F32 && has_nan(check_host(x, x->y), dt_numel(x->y->dims));
    return !bad && nan ? "NaN in the output" : bad;
}

static void check_on_cpu(struct opts *o, const struct family *f, const check_case *c)
{
    struct check_data d;
    struct check_graph x;
    bool large = c->flags & CHECK_LARGE, grad = !(c->flags & CHECK_NO_GRAD);
    const char *bad = check_graph_init(&x, c, DT_F32);
    check_data_init(&d, c, FILL_RANDOM, o->seed);
    check_ops_note(&o->ops, c);
    if (!bad)
        bad = check_forward(&x, &d, o->cpu);
    report(o, f, c, "runs", bad);
    if (!bad) {
        if (c->reference)
            report(o, f, c, "reference", check_reference(&x, &d));
        if (grad && !large)
            report(o, f, c, "gradient", check_gradient(&x, o));
        report(o, f, c, "variants", check_variants(&x, o));
        for (int fill = FILL_EQUAL; fill < NFILL && !large; fill++)
            if (fill != FILL_HUGE || !(c->flags & CHECK_NO_HUGE))
                report(o, f, c, fill_name[fill], check_values(c, o, (enum check_fill)fill));
        if (!large)
            report(o, f, c, "NaN", check_nan(c, o->cpu, DT_F32, o->seed));
        if (!large)
            report(o, f, c, "NaN, bf16", check_nan(c, o->cpu, DT_BF16, o->seed));
        report(o, f, c, "bf16", check_bf16(&x, &d, o));
        if (grad)
            report(o, f, c, "plan", check_plan(&x, &d, o));
    }
    check_graph_release(&x);
    check_data_release(&d);
}

static void check_on_device(struct opts *o, const struct family *f, const check_case *c)
{
    static const dt_dtype type[] = { DT_F32, DT_BF16 };
    for (int t = 0; t < 2; t++)
        for (int fill = 0; fill < NFILL; fill++) {
            if ((fill == FILL_HUGE && (c->flags & CHECK_NO_HUGE)) ||
                (fill && (c->flags & CHECK_LARGE)))
                continue;
            char what[64];
            snprintf(what, sizeof(what), "%s %s", dt_dtype_name(type[t]), fill_name[fill]);
            report(o, f, c, what, check_device(c, o, type[t], (enum check_fill)fill));
        }
}

static bool is_emulated(const struct opts *o) { return o->device && !strcmp(o->device, "cuemu"); }

static void each_case(struct opts *o, const struct family *f)
{
    for (const check_case *c = f->cases; c && c->name; c++) {
        char full[256];
        snprintf(full, sizeof(full), "%s: %s", f->name, c->name);
        if ((o->pattern && !strstr(full, o->pattern)) ||
            (is_emulated(o) && (c->flags & CHECK_LARGE)))
            continue;
        if (o->list) {
            puts(full);
        } else if (o->bench) {
            if (c->flags & CHECK_LARGE) {
                check_bench(o->dev, c, DT_F32, o->seed, &o->peak);
                check_bench(o->dev, c, DT_BF16, o->seed, &o->peak);
            }
        } else if (o->dev != o->cpu) {
            check_on_device(o, f, c);
        } else {
            check_on_cpu(o, f, c);
        }
    }
}

static int open_devices(struct opts *o)
{
    dt_err err = { 0 };
    if (dt_device_open(&o->cpu, "cpu", &err) < 0) {
        fprintf(stderr, "checkop: %s\n", err.msg);
        return 1;
    }
    o->dev = o->cpu;
    if (is_emulated(o)) {
        o->dev = dt_cuda_open(0, DT_DEVICE_ABI, &err);
    } else if (o->device && strcmp(o->device, "cpu") && dt_device_open(&o->dev, o->device, &err) < 0) {
        printf("1..0 # SKIP %s\n", err.msg);
        dt_device_close(&o->cpu);
        return 77;
    }
    return 0;
}

int main(int argc, char **argv)
{
    const struct family family[] = {
        { "attention", attention_cases }, { "broadcast", broadcast_cases },
        { "conv", conv_cases },           { "embed", embed_cases },
        { "groupnorm", groupnorm_cases }, { "matmul", matmul_cases },
        { "norm", norm_cases },           { "objective", objective_cases },
        { "pointwise", pointwise_cases }, { "rope", rope_cases },
        { "shape", shape_cases },
    };
    struct opts o = { .seed = 1 };
    for (int c; (c = getopt(argc, argv, "s:d:bl")) != -1;) {
        switch (c) {
        case 's': o.seed = strtoull(optarg, NULL, 0); break;
        case 'd': o.device = optarg; break;
        case 'b': o.bench = true; break;
        case 'l': o.list = true; break;
        default:
            fprintf(stderr, "usage: checkop [-s SEED] [-d DEVICE] [-b] [-l] [PATTERN]\n");
            return 2;
        }
    }
    o.pattern = argv[optind];
    mallopt(M_MMAP_THRESHOLD, 1 << 30);     /* keep pages: fresh ones cost more than most kernels */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    int rc = open_devices(&o);
    if (rc)
        return rc;
    if (o.bench && !o.list)
        check_peaks(o.dev, &o.peak);
    for (size_t i = 0; i < sizeof(family) / sizeof(*family); i++)
        each_case(&o, &family[i]);
    if (o.dev == o.cpu && !o.bench && !o.list && !o.pattern)
        report(&o, &(struct family){ .name = "registry" }, &(check_case){ .name = "every op" }, "has a case",
               check_ops_missing(&o.ops));
    if (!o.bench && !o.list)
        printf("# seed %llu\n1..%d\n", (unsigned long long)o.seed, o.count);
    if (o.dev != o.cpu)
        dt_device_close(&o.dev);
    dt_device_close(&o.cpu);
    return o.failed ? 1 : 0;
}
