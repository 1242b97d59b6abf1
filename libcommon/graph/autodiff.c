/* autodiff.c - reverse mode over the node list, and recompute (gradient checkpointing: Chen et al.,
 * "Training deep nets with sublinear memory cost", 2016).
 *
 * Nodes are visited last to first.  When the walk enters a recompute unit, the unit's nodes are appended once
 * more, reading the unit's inputs, and the gradients of its ops are taken at those copies; what the copies do
 * not contribute is dropped later with all dead nodes. */
#include <stdlib.h>
#include <string.h>
#include "graph/internal.h"
#include "kernels/ops.h"
#include "kernels/oplist.h"

/* Copy of node n that reads map[] where a copy exists. */
static void clone_node(dt_graph *g, dt_node *n, dt_tensor **map)
{
    dt_node *c = dt_graph_add_node(g, n->op);
    c->nin = n->nin;
    c->nout = n->nout;
    c->attr = n->attr;
    c->scope = n->scope;
    c->recompute = true;
    for (int i = 0; i < n->nin; i++)
        c->in[i] = n->in[i] && map[n->in[i]->id] ? map[n->in[i]->id] : n->in[i];
    for (int i = 0; i < n->nout; i++) {
        dt_tensor *o = n->out[i];
        dt_tensor *t = dt_graph_add_tensor(g, DT_ACT, o->dtype, o->dims);
        t->node = c;
        t->needs_grad = o->needs_grad;
        if (o->base)
            t->base = map[o->base->id] ? map[o->base->id] : o->base;
        c->out[i] = t;
        map[o->id] = t;
    }
    n->clone = c;
}

static void clone_block(dt_graph *g, int64_t nforward, int64_t ntensor, int block)
{
    dt_tensor **map = dt_alloc((size_t)ntensor * sizeof(*map));
    for (int64_t i = 0; i < nforward; i++)
        if (g->node[i]->block == block)
            clone_node(g, g->node[i], map);
    free(map);
}

static void add_param_grad(dt_graph *g, dt_tensor *param, dt_tensor *grad)
{
    dt_attr add = { .i[DT_ATTR_ACC] = 1 };
    dt_node *n = dt_apply(g, &dt_op_accumulate, &add, 1, &grad);
    if (g->error[0])
        return;
    n->out[0]->kind = DT_GRAD;
    n->out[0]->param = param->param;
}

static void add_grad(dt_graph *g, const dt_node *n, dt_tensor *x, dt_tensor *dx)
{
    if (g->error[0])
        return;
    if (!dt_dims_same(x->dims, dx->dims)) {
        dt_graph_fail(g, "%s: gradient has another shape than its input", n->op->name);
        return;
    }
    if (x->kind == DT_PARAM)
        add_param_grad(g, x, dx);
    else
        x->grad = x->grad ? dt_add(g, x->grad, dx) : dx;
}

static void node_grad(dt_graph *g, dt_node *n)
{
    dt_tensor *dy[DT_MAX_OUT] = { NULL }, *dx[DT_MAX_IN] = { NULL };
    bool any = false;
    for (int o = 0; o < n->nout; o++) {
        dy[o] = n->out[o]->grad;
        any |= dy[o] != NULL;
    }
    if (!any)
        return;
    const dt_node *at = n->clone ? n->clone : n;
    g->scope_name = n->scope;
    n->op->grad(g, at, dy, dx);
    for (int i = 0; i < n->nin; i++)
        if (dx[i] && dt_wants(at, i))
            add_grad(g, n, n->in[i], dx[i]);
}

void dt_backward(dt_graph *g, dt_tensor *loss, dt_tensor *scale)
{
    if (g->error[0])
        return;
    if (dt_numel(loss->dims) != 1 || loss->dtype != DT_F32 || !loss->needs_grad) {
        dt_graph_fail(g,
                      loss->needs_grad ? "the loss must be one fp32 number"
                                       : "nothing that is trained reaches the loss");
        return;
    }
    int64_t nforward = g->nnode, ntensor = g->ntensor;
    g->loss = loss;
    bool *cloned = dt_alloc((size_t)g->nblock + 1);
    g->backward = true;
    dt_attr one = { .f = { 1.0 } };
    loss->grad = dt_apply(g, &dt_op_fill, &one, scale ? 1 : 0, &scale)->out[0];
    for (int64_t i = nforward - 1; i >= 0 && !g->error[0]; i--) {
        dt_node *n = g->node[i];
        bool needs = false;
        for (int o = 0; o < n->nout; o++)
            needs |= n->out[o]->needs_grad && n->out[o]->grad;
        if (!needs)
            continue;
        if (g->checkpoint && n->block >= 0 && !cloned[n->block]) {
            cloned[n->block] = true;
            clone_block(g, nforward, ntensor, n->block);
        }
        node_grad(g, n);
    }
    free(cloned);
}
