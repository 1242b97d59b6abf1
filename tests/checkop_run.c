/* checkop_run.c - see checkop_run.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tests/checkop_run.h"

enum { GUARD = 256 };

const char check_not_ported[] = "not ported";

/* --- the loss: sum y seed, in this program only --- */

static const char *dot_shape(dt_node *n)
{
    dt_node_out(n, 0, DT_F32, DT_DIMS(1));
    return NULL;
}

static const char *seed_shape(dt_node *n)
{
    dt_node_out(n, 0, (dt_dtype)n->attr.i[0], n->in[0]->dims);
    return NULL;
}

static void dot_run(const dt_node *n, const dt_run *r)
{
    (void)n;
    *(float *)r->out[0] = 0;        /* checkop computes the loss itself, in fp64 */
}

static void seed_run(const dt_node *n, const dt_run *r)
{
    dt_convert(r->out[0], n->out[0]->dtype, r->in[0], DT_F32, dt_numel(n->in[0]->dims));
}

static const dt_op seed_op = {
    .name = "seed", .shape = seed_shape, .cpu = { NULL, seed_run, NULL },
};

static void dot_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_attr a = { .i = { n->in[0]->dtype } };
    dt_tensor *in[] = { n->in[1], dy[0] };
    dx[0] = dt_apply(g, &seed_op, &a, 2, in)->out[0];
}

static const dt_op dot_op = {
    .name = "dot", .shape = dot_shape, .grad = dot_grad, .cpu = { NULL, dot_run, NULL },
};

bool check_skips(const dt_node *n)
{
    return n->op == &dt_op_view || n->op == &dot_op || n->op == &seed_op;
}

/* --- data --- */

static dt_dims dims_of(const check_in *in)
{
    dt_dims d = { 0 };
    while (d.nd < DT_MAX_DIMS && in->d[d.nd]) {
        d.d[d.nd] = in->d[d.nd];
        d.nd++;
    }
    return d;
}

static float snap(float v) { return dt_bf16_to_f32(dt_f32_to_bf16(v)); }

/* The sum of four bytes: near enough to normal, and quick. */
static float quick_normal(dt_rng *r)
{
    uint32_t u = dt_rng_u32(r);
    return ((float)((u & 255) + (u >> 8 & 255) + (u >> 16 & 255) + (u >> 24)) - 510.0f) / 147.8f;
}

static float fill_value(enum check_fill fill, int64_t i, int64_t hot, dt_rng *r)
{
    switch (fill) {
    case FILL_EQUAL:   return 0.5f;
    case FILL_TINY:    return 1e-20f * quick_normal(r);
    case FILL_HUGE:    return 1e4f * quick_normal(r);
    case FILL_ONE_HOT: return i == hot;
    default:           return quick_normal(r);
    }
}

static float off_kinks(const check_case *c, float v)
{
    for (int k = 0; k < c->nkink; k++)
        if (fabs(v - c->kink[k]) < 0.1)
            v = (float)(c->kink[k] + (v < c->kink[k] ? -0.1 : 0.1));
    return v;
}

static float draw(const check_case *c, const check_in *in, enum check_fill fill, int64_t i,
                  int64_t n, int64_t hot, dt_rng *r)
{
    if (in && in->kind == CHECK_INT)
        return (float)(in->lo + (double)dt_rng_below(r, (uint64_t)(in->hi - in->lo)));
    if (in && in->kind == CHECK_MASK)
        return (in->d[0] == 1 || i < n - n / in->d[0]) && dt_rng_uniform(r) < 0.75;
    if (in && in->lo < in->hi)
        return snap((float)(in->lo + (in->hi - in->lo) * dt_rng_uniform(r)));
    float v = fill_value(fill, i, hot, r);
    return snap(fill == FILL_RANDOM ? off_kinks(c, v) : v);
}

static void add_leaf(struct check_data *d, const check_case *c, const char *name, int64_t n,
                     const check_in *in, enum check_fill fill, uint64_t seed)
{
    dt_rng r = dt_rng_make(seed, DT_RNG_TEST, 0, (uint32_t)d->n);
    int64_t hot = (int64_t)dt_rng_below(&r, (uint64_t)n);
    dt_grow(&d->leaf, &d->cap, d->n + 1, sizeof(*d->leaf));
    struct check_leaf *l = &d->leaf[d->n++];
    *l = (struct check_leaf){ dt_strdup(name), dt_alloc((size_t)n * sizeof(float)), n };
    for (int64_t i = 0; i < n; i++)
        l->v[i] = draw(c, in, fill, i, n, hot, &r);
}

void check_data_init(struct check_data *d, const check_case *c, enum check_fill fill, uint64_t seed)
{
    struct check_graph x;
    *d = (struct check_data){ 0 };
    if (check_graph_init(&x, c, DT_F32)) {
        check_graph_release(&x);
        return;
    }
    for (int i = 0; i < x.nin; i++)
        add_leaf(d, c, x.in[i]->name, dt_numel(x.in[i]->dims), &c->in[i], fill, seed);
    for (int64_t i = 0; i < x.set->n; i++)
        if (!check_leaf_of(d, x.set->v[i]->name))
            add_leaf(d, c, x.set->v[i]->name, x.set->v[i]->numel, NULL, fill, seed);
    add_leaf(d, c, "seed", dt_numel(x.y->dims), NULL, FILL_RANDOM, seed);
    check_graph_release(&x);
}

void check_data_release(struct check_data *d)
{
    for (int64_t i = 0; i < d->n; i++) {
        free(d->leaf[i].name);
        free(d->leaf[i].v);
    }
    free(d->leaf);
    *d = (struct check_data){ 0 };
}

struct check_leaf *check_leaf_of(const struct check_data *d, const char *name)
{
    for (int64_t i = 0; i < d->n; i++)
        if (!strcmp(d->leaf[i].name, name))
            return &d->leaf[i];
    return NULL;
}

/* --- graphs --- */

static dt_tensor *make_input(struct check_graph *x, int i)
{
    const check_in *in = &x->c->in[i];
    char name[16];
    snprintf(name, sizeof(name), "in%d", i);
    dt_dims d = dims_of(in);
    if (in->kind == CHECK_WEIGHT || in->kind == CHECK_FROZEN) {
        dt_param *p = dt_params_declare(x->set, name, d, DT_INIT_ZERO, 0);
        p->trainable = in->kind == CHECK_WEIGHT;
        return dt_param_tensor(x->g, p);
    }
    dt_dtype t = in->kind == CHECK_INT ? DT_I32 : in->kind == CHECK_MASK ? DT_U8 :
                 in->kind == CHECK_ACT_F32 || in->kind == CHECK_CONST_F32 ? DT_F32 : dt_graph_dtype(x->g);
    dt_tensor *v = dt_input(x->g, name, t, d);
    if (in->kind == CHECK_ACT || in->kind == CHECK_ACT_F32)
        dt_require_grad(x->g, v);
    return v;
}

static void build(struct check_graph *x, dt_dtype t)
{
    x->g = dt_graph_new(t);
    dt_graph_use(x->g, x->set);
    for (x->nin = 0; x->nin < DT_MAX_IN && x->c->in[x->nin].kind; x->nin++)
        x->in[x->nin] = make_input(x, x->nin);
    x->y = x->c->build(x->g, x->in);
}

const char *check_graph_init(struct check_graph *x, const check_case *c, dt_dtype t)
{
    *x = (struct check_graph){ .c = c, .set = dt_params_new("case") };
    build(x, t);                    /* once to have the layers declare their parameters */
    if (dt_graph_error(x->g))
        return dt_graph_error(x->g);
    dt_graph_free(&x->g);
    for (int64_t i = 0; i < x->set->n; i++)
        if (strncmp(x->set->v[i]->name, "in", 2))
            x->set->v[i]->trainable = true;
    build(x, t);
    if (!dt_graph_error(x->g) && !(c->flags & CHECK_NO_GRAD)) {
        x->seed = dt_input(x->g, "seed", DT_F32, x->y->dims);
        dt_tensor *in[] = { x->y, x->seed };
        x->loss = dt_apply(x->g, &dot_op, NULL, 2, in)->out[0];
        dt_backward(x->g, x->loss, NULL);
    }
    if (!dt_graph_error(x->g))
        x->host = dt_alloc(((size_t)x->g->ntensor + 1) * sizeof(*x->host));
    return dt_graph_error(x->g);
}

void check_graph_release(struct check_graph *x)
{
    for (int64_t i = 0; x->host && i < x->g->ntensor; i++)
        free(x->host[i]);
    free(x->host);
    dt_graph_free(&x->g);
    dt_params_free(&x->set);
}

void *check_host(const struct check_graph *x, const dt_tensor *t)
{
    return t ? x->host[(t->base ? t->base : t)->id] : NULL;
}

static void *host_of(struct check_graph *x, const dt_tensor *t)
{
    if (!x->host[t->id])
        x->host[t->id] = dt_alloc((size_t)dt_bytes(t) + 64);
    return x->host[t->id];
}

void check_graph_load(struct check_graph *x, const struct check_data *d)
{
    for (int64_t i = 0; i < x->g->ntensor; i++) {
        dt_tensor *t = x->g->tensor[i];
        if (t->base)
            continue;
        void *p = host_of(x, t);
        bool given = t->kind == DT_INPUT || t->kind == DT_PARAM;
        const struct check_leaf *l = given ? check_leaf_of(d, t->name) : NULL;
        if (l)
            dt_convert(p, t->dtype, l->v, DT_F32, l->n);
        else if (t->kind == DT_CONST)
            memcpy(p, t->values, (size_t)dt_bytes(t));
        else
            memset(p, 0, (size_t)dt_bytes(t));
    }
}

float *check_floats(const dt_tensor *t, const void *host)
{
    int64_t n = dt_numel(t->dims);
    float *v = dt_alloc((size_t)(n + 1) * sizeof(*v));
    dt_convert(v, DT_F32, host, t->dtype, n);
    return v;
}

/* --- running one node --- */

struct guarded { char *raw; int64_t bytes; };      /* device memory: guard, bytes, guard */

static void *inside(const struct guarded *b) { return b->raw ? b->raw + GUARD : NULL; }

/* All bytes 0xff: a NaN in every float type, and what guards hold. */
static bool guarded_new(struct guarded *b, dt_device *dev, int64_t bytes, const void *data)
{
    int64_t all = bytes + 2 * GUARD;
    *b = (struct guarded){ dev->alloc(dev, all), bytes };
    void *ff = malloc((size_t)all);
    if (b->raw && ff) {
        memset(ff, 0xff, (size_t)all);
        if (data)
            memcpy((char *)ff + GUARD, data, (size_t)bytes);
        dev->upload(dev, b->raw, ff, all);
    }
    free(ff);
    return b->raw && ff;
}

/* Downloads; NULL, or the complaint if a guard or (with `same`) the content has changed. */
static const char *guarded_get(const struct guarded *b, dt_device *dev, void *data,
                               const void *same)
{
    int64_t all = b->bytes + 2 * GUARD;
    unsigned char *p = malloc((size_t)all);
    if (!p)
        return "out of memory";
    dev->download(dev, p, b->raw, all);
    const char *bad = NULL;
    for (int i = 0; i < GUARD; i++)
        if (p[i] != 0xff || p[GUARD + b->bytes + i] != 0xff)
            bad = "wrote outside a buffer";
    if (same && memcmp(p + GUARD, same, (size_t)b->bytes))
        bad = "changed an input";
    if (data)
        memcpy(data, p + GUARD, (size_t)b->bytes);
    free(p);
    return bad;
}

struct launch {
    struct guarded in[DT_MAX_IN], out[DT_MAX_OUT], ws;
    void *pin[DT_MAX_IN], *pout[DT_MAX_OUT];
};

static bool launch_buffers(struct launch *l, const dt_node *n, dt_device *dev, void *const *in,
                           void *const *out, const struct check_how *how, int64_t workspace)
{
    bool ok = true;
    for (int i = 0; i < n->nin; i++) {
        if (n->in[i])
            ok &= guarded_new(&l->in[i], dev, dt_bytes(n->in[i]), in[i]);
        l->pin[i] = inside(&l->in[i]);
    }
    for (int o = 0; o < n->nout; o++) {
        bool read = o == 0 && (how->acc || n->out[0]->kind == DT_GRAD);
        if (!n->out[o] || how->drop >> o & 1)
            continue;
        if (o == 0 && how->inplace >= 0) {
            l->pout[0] = l->pin[how->inplace];
            continue;
        }
        ok &= guarded_new(&l->out[o], dev, dt_bytes(n->out[o]), read ? out[o] : NULL);
        l->pout[o] = inside(&l->out[o]);
    }
    if (workspace)
        ok &= guarded_new(&l->ws, dev, workspace, NULL);
    return ok;
}

static const char *launch_collect(struct launch *l, const dt_node *n, dt_device *dev,
                                  void *const *in, void *const *out, const struct check_how *how)
{
    const char *bad = l->ws.raw ? guarded_get(&l->ws, dev, NULL, NULL) : NULL, *b;
    for (int i = 0; i < n->nin; i++)
        if (l->in[i].raw && (b = guarded_get(&l->in[i], dev, i == how->inplace ? out[0] : NULL,
                                             i == how->inplace ? NULL : in[i])))
            bad = b;
    for (int o = 0; o < n->nout; o++)
        if (l->out[o].raw && (b = guarded_get(&l->out[o], dev, out[o], NULL)))
            bad = b;
    return bad;
}

static void launch_release(struct launch *l, dt_device *dev)
{
    for (int i = 0; i < DT_MAX_IN; i++)
        dev->free(dev, l->in[i].raw);
    for (int o = 0; o < DT_MAX_OUT; o++)
        dev->free(dev, l->out[o].raw);
    dev->free(dev, l->ws.raw);
}

/* With one CPU thread its own time counts, whatever else the machine does. */
static double clock_of(const dt_device *dev)
{
    struct timespec ts;
    bool alone = dev->kind == DT_CPU && dev->threads == 1;
    clock_gettime(alone ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static void measure(const dt_kernel *k, const dt_node *n, const dt_run *r, struct check_how *how)
{
    how->seconds = 1e30;
    for (int i = 0; i < how->times; i++) {
        double t0 = clock_of(r->dev);
        k->run(n, r);
        r->dev->sync(r->dev, NULL);
        double t = clock_of(r->dev) - t0;
        how->seconds = t < how->seconds ? t : how->seconds;
    }
}

const char *check_node(const dt_node *n, dt_device *dev, void *const *in, void *const *out,
                       struct check_how *how)
{
    static const struct check_how plain = { .inplace = -1 };
    struct check_how h = how ? *how : plain;
    const dt_kernel *k = dev->kernel(dev, n->op);
    if (!k)
        return check_not_ported;
    dt_err err = { 0 };
    dt_prep prep = { .dev = dev, .err = &err };
    if (k->prepare && k->prepare(n, &prep) < 0)
        return "cannot be prepared";
    struct launch l = { 0 };
    bool ok = launch_buffers(&l, n, dev, in, out, &h, prep.workspace);
    const char *bad = ok ? NULL : "out of memory";
    if (!bad) {
        dt_run r = { dev, l.pin, l.pout, inside(&l.ws), prep.state };
        k->run(n, &r);
        if (dev->sync(dev, &err) < 0)
            bad = "failed on the device";
        else if (h.times)
            measure(k, n, &r, how);
        else
            bad = launch_collect(&l, n, dev, in, out, &h);
    }
    launch_release(&l, dev);
    if (k->release && prep.state)
        k->release(prep.state);
    return bad;
}

/* --- running a graph --- */

void check_pointers(const struct check_graph *x, const dt_node *n, void **in, void **out)
{
    for (int i = 0; i < n->nin; i++)
        in[i] = check_host(x, n->in[i]);
    for (int o = 0; o < n->nout; o++)
        out[o] = check_host(x, n->out[o]);
}

const char *check_run(struct check_graph *x, dt_device *dev, bool backward)
{
    for (int64_t i = 0; i < x->g->nnode; i++) {
        const dt_node *n = x->g->node[i];
        if (n->op == &dt_op_view || (n->backward && !backward))
            continue;
        void *in[DT_MAX_IN] = { NULL }, *out[DT_MAX_OUT] = { NULL };
        check_pointers(x, n, in, out);
        const char *bad = check_node(n, dev, in, out, NULL);
        if (bad)
            return bad;
    }
    return NULL;
}
