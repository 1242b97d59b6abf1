/* graph_net.h - for the tests of the graph's passes: a small network with the shape of a diffusion transformer, and a
 * way to run any graph. */
#ifndef DT_TESTS_GRAPH_NET_H
#define DT_TESTS_GRAPH_NET_H
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "graph/plan.h"
#include "kernels/oplist.h"
#include "kernels/ops.h"

enum { NET_B = 2, NET_S = 24, NET_C = 32, NET_BLOCKS = 8 };
enum { NET_BACKWARD = 1, NET_RECOMPUTE = 2 };

static inline int net_open(dt_device **cpu, void **state)
{
    (void)state;
    omp_set_num_threads(1);         /* for such small sums, threads only wait for each other */
    return dt_device_open(cpu, "cpu", NULL);
}

static inline int net_close(dt_device **cpu, void **state)
{
    (void)state;
    unsetenv("DT_FUSE");                /* that a failed test has left */
    dt_device_close(cpu);
    return 0;
}

static inline dt_tensor *net_block(dt_graph *g, int i, dt_tensor *x, dt_tensor *cond)
{
    dt_tensor *m[3], *h;
    dt_block(g);
    dt_scope(g, "block.%d", i);
    dt_chunk(g, dt_linear(g, "mod", dt_silu(g, dt_linear(g, "embed", cond, NET_C, true)), 3 * NET_C, true), 3, m);
    h = dt_modulate(g, dt_layernorm(g, x, NULL, NULL, 1e-6), m[0], m[1]);
    dt_tensor *q = dt_linear(g, "q", h, NET_C, false), *k = dt_linear(g, "k", h, NET_C, false);
    h = dt_attention(g, q, k, dt_linear(g, "v", h, NET_C, false), &(dt_attn){ .heads = 4 });
    x = dt_gated_add(g, x, m[2], dt_linear(g, "o", h, NET_C, true));
    h = dt_gelu_tanh(g, dt_linear(g, "up", dt_layernorm(g, x, NULL, NULL, 1e-6), 4 * NET_C, true));
    x = dt_add(g, x, dt_linear(g, "down", h, NET_C, true));
    dt_scope_end(g);
    dt_block_end(g);
    return x;
}

/* Inputs "x", "cond", "target"; outputs "y", "loss". */
static inline dt_graph *net_build(dt_params *set, dt_dtype act, int flags)
{
    dt_graph *g = dt_graph_new(act);
    dt_graph_checkpoint(g, flags & NET_RECOMPUTE);
    dt_graph_use(g, set);
    dt_tensor *x = dt_input(g, "x", act, DT_DIMS(NET_B, NET_S, NET_C));
    dt_tensor *cond = dt_input(g, "cond", act, DT_DIMS(NET_B, NET_C));
    dt_tensor *target = dt_input(g, "target", DT_F32, DT_DIMS(NET_B, NET_S, NET_C));
    for (int i = 0; i < NET_BLOCKS; i++)
        x = net_block(g, i, x, cond);
    dt_tensor *y = dt_output(g, dt_linear(g, "out", x, NET_C, true), "y");
    dt_tensor *loss = dt_output(g, dt_mse_loss(g, y, target, NULL, 0, NULL), "loss");
    if (flags & NET_BACKWARD)
        dt_backward(g, loss, NULL);
    return g;
}

/* The network's parameters, all trainable, with fresh values. */
static inline dt_params *net_params(dt_device *dev, dt_dtype act)
{
    dt_params *set = dt_params_new("net");
    dt_graph *g = net_build(set, act, 0);
    dt_graph_free(&g);
    for (int64_t i = 0; i < set->n; i++)
        set->v[i]->trainable = true;
    if (dt_params_alloc(set, dev, act, DT_PARAMS_NO_OPTIM, NULL) < 0)
        abort();
    dt_params_init(set, 7, NULL);
    return set;
}

typedef struct running {
    dt_device *dev;
    dt_graph  *g;                   /* owned */
    dt_plan   *plan;
    void      *arena;
} running;

/* Plans g and binds it; NULL or the complaint. */
static inline const char *running_start(running *r, dt_device *dev, dt_graph *g)
{
    static dt_err err;
    *r = (running){ .dev = dev, .g = g };
    if (dt_plan_new(&r->plan, g, dev, &err) < 0)
        return err.msg;
    r->arena = dev->alloc(dev, dt_plan_bytes(r->plan) + 1);
    memset(r->arena, 0xff, (size_t)dt_plan_bytes(r->plan));     /* NaN */
    dt_plan_bind(r->plan, r->arena);
    return NULL;
}

static inline void running_stop(running *r)
{
    dt_plan_free(&r->plan);
    dt_graph_free(&r->g);
    r->dev->free(r->dev, r->arena);
}

/* Inputs become draws that depend on their names' order alone. */
static inline void running_once(running *r)
{
    uint32_t item = 0;
    for (int64_t i = 0; i < r->g->ntensor; i++) {
        dt_tensor *t = r->g->tensor[i];
        if (t->kind != DT_INPUT)
            continue;
        int64_t n = dt_numel(t->dims);
        float *v = dt_alloc((size_t)n * sizeof(*v));
        void *raw = dt_alloc((size_t)dt_bytes(t));
        dt_rng_fill_normal(v, n, 3, DT_RNG_TEST, 0, item++);
        dt_convert(raw, t->dtype, v, DT_F32, n);
        dt_plan_write(r->plan, t, raw);
        free(raw);
        free(v);
    }
    dt_plan_run(r->plan, NULL);
}

/* Values of a named tensor as fp32; caller frees. */
static inline float *running_read(running *r, const char *name, int64_t *n)
{
    dt_tensor *t = dt_find(r->g, name);
    *n = dt_numel(t->dims);
    void *raw = dt_alloc((size_t)dt_bytes(t));
    float *v = dt_alloc((size_t)*n * sizeof(*v));
    dt_plan_read(r->plan, t, raw);
    dt_convert(v, DT_F32, raw, t->dtype, *n);
    free(raw);
    return v;
}

/* Launches of `op`; without backward ones and recomputed ones if `forward`. */
static inline int running_count(const running *r, const dt_op *op, bool forward)
{
    int count = 0;
    for (int64_t i = 0; i < r->plan->nitem; i++) {
        const dt_node *n = r->plan->item[i].node;
        count += n->op == op && !(forward && (n->backward || n->recompute));
    }
    return count;
}

#endif
