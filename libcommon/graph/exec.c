/* exec.c - running a plan: bind pointers once, then walk the list. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "graph/plan.h"

void *dt_plan_pointer(const dt_plan *p, const dt_tensor *t)
{
    if (!t)
        return NULL;
    if (t->base)
        t = t->base;
    if (t->kind == DT_PARAM)
        return t->param->w;
    if (t->kind == DT_GRAD)
        return t->param->grad;
    int64_t s = p->slot_of[t->id];
    return s < 0 ? NULL : p->arena + p->slot[s].offset;
}

/* The parameter that a tensor shows, or NULL. */
static const dt_param *param_of(dt_tensor *t)
{
    t = t ? dt_root(t) : NULL;
    return t && t->kind == DT_PARAM ? t->param : NULL;
}

void dt_plan_bind(dt_plan *p, void *arena)
{
    p->arena = arena;
    for (int64_t i = 0; i < p->nitem; i++) {
        dt_item *it = &p->item[i];
        it->from_file = false;
        for (int k = 0; k < it->node->nin; k++) {
            const dt_param *q = param_of(it->node->in[k]);
            it->in[k] = dt_plan_pointer(p, it->node->in[k]);
            it->from_file |= q && q->place == DT_IN_FILE;
        }
        for (int k = 0; k < it->node->nout; k++)
            it->out[k] = dt_plan_pointer(p, it->node->out[k]);
        it->ws = it->ws_slot < 0 ? NULL : p->arena + p->slot[it->ws_slot].offset;
    }
    if (p->captured)
        p->dev->release(p->dev, p->captured);
    p->captured = NULL;
}

void dt_plan_write(dt_plan *p, const dt_tensor *t, const void *data)
{
    void *dst = dt_plan_pointer(p, t);
    if (dst)
        p->dev->upload(p->dev, dst, data, dt_bytes(t));
}

void dt_plan_read(dt_plan *p, const dt_tensor *t, void *data)
{
    p->dev->download(p->dev, data, dt_plan_pointer(p, t), dt_bytes(t));
}

void dt_plan_launch(const dt_plan *p, const dt_item *it)
{
    dt_run r = { .dev = p->dev, .in = it->in, .out = it->out, .workspace = it->ws, .state = it->state };
    it->kernel->run(it->node, &r);
    for (int k = 0; it->from_file && k < it->node->nin; k++)
        if (param_of(it->node->in[k]))
            dt_param_used(param_of(it->node->in[k]));
}

static void launch_all(void *ctx)
{
    const dt_plan *p = ctx;
    for (int64_t i = 0; i < p->nitem; i++)
        dt_plan_launch(p, &p->item[i]);
}

/* Plans share one arena in turn, so constants are written before every run. */
void dt_plan_consts(dt_plan *p)
{
    for (int64_t i = 0; i < p->g->ntensor; i++)
        if (p->g->tensor[i]->kind == DT_CONST)
            dt_plan_write(p, p->g->tensor[i], p->g->tensor[i]->values);
}

int dt_plan_run(dt_plan *p, dt_err *err)
{
    dt_plan_consts(p);
    if (p->captured)
        return p->dev->replay(p->dev, p->captured, err);
    /* The first run is plain: libraries may allocate or tune in it, which a capture forbids. */
    if (p->dev->capture && !p->looks && p->runs++ > 0) {
        int rc = p->dev->capture(p->dev, launch_all, p, &p->captured, err);
        return rc < 0 ? rc : p->dev->replay(p->dev, p->captured, err);
    }
    launch_all(p);
    return p->dev->sync(p->dev, err);
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

dt_cost dt_node_cost(const dt_node *n)
{
    dt_cost c = { 0, 0 };
    for (int i = 0; i < n->nin; i++)
        c.bytes += n->in[i] ? (double)dt_bytes(n->in[i]) : 0;
    for (int i = 0; i < n->nout; i++)
        c.bytes += n->out[i] ? (double)dt_bytes(n->out[i]) : 0;
    if (n->op->cost)
        n->op->cost(n, &c);
    return c;
}

void dt_plan_profile(dt_plan *p, void (*fn)(void *ctx, const dt_node *n, double seconds), void *ctx)
{
    dt_plan_consts(p);
    for (int64_t i = 0; i < p->nitem; i++) {
        double t0 = now();
        dt_plan_launch(p, &p->item[i]);
        p->dev->sync(p->dev, NULL);
        fn(ctx, p->item[i].node, now() - t0);
    }
}
