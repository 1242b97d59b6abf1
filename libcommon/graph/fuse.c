/* fuse.c - rewrites of the live nodes, before they are planned.  Each takes away a pass over memory.
 *
 *   accumulate     dt_param.grad += dw, where the kernel that makes dw can add        -> it adds there itself
 *                  the first part of a gradient that lives in the arena (update.c)    -> is written there
 *   epilogue       f(y), where the kernel that makes y can apply f                    -> it writes f(y)
 *
 * Each only where nothing else reads what is left out, and no caller keeps it: in the backward of a network f reads y
 * again, so that an epilogue is for forward passes without one, and for the first forward of a recompute unit.
 * DT_FUSE=0 in the environment leaves all of them out, so that results and times can be compared. */
#include <stdlib.h>
#include <string.h>
#include "graph/plan.h"
#include "kernels/oplist.h"

static int *count_readers(const dt_graph *g)
{
    int *readers = dt_alloc(((size_t)g->ntensor + 1) * sizeof(*readers));
    for (int64_t i = 0; i < g->nnode; i++)
        for (int k = 0; g->node[i]->live && k < g->node[i]->nin; k++)
            if (g->node[i]->in[k])
                readers[g->node[i]->in[k]->id]++;
    return readers;
}

/* t is what a node makes for one reader and nobody else. */
static bool passes_by(const dt_tensor *t, const int *readers)
{
    return t->kind == DT_ACT && t->node && t->node->live && !t->base && !t->keep &&
           t->node->out[0] == t && readers[t->id] == 1;
}

/* `maker` writes what `n`, its only reader, would have written. */
static void take_over(dt_node *maker, dt_node *n)
{
    maker->out[0] = n->out[0];
    maker->out[0]->node = maker;
    n->live = false;
}

static void fuse_accumulate(dt_node *acc, const int *readers)
{
    dt_tensor *dw = acc->in[0];
    dt_node *view = NULL;
    if (dw->base && dw->node->op == &dt_op_view && readers[dw->id] == 1) {
        view = dw->node;
        dw = view->in[0];
    }
    bool add = acc->attr.i[DT_ATTR_ACC];
    if (!passes_by(dw, readers) || (add && !dw->node->op->accumulates) || dw->dtype != DT_F32)
        return;
    if (acc->out[0]->base && acc->out[0]->base->node->id > dw->node->id)    /* what it adds to is written later */
        return;
    dw->node->attr.i[DT_ATTR_ACC] = add;
    take_over(dw->node, acc);
    if (view)
        view->live = false;
}

static void fuse_epilogue(dt_node *n, const int *readers)
{
    dt_tensor *y = n->in[0];
    if (!passes_by(y, readers) || !(y->node->op->epilogues >> n->op->epilogue & 1) ||
        y->node->attr.i[DT_ATTR_EPI] || n->out[0]->dtype != y->dtype)
        return;
    y->node->attr.i[DT_ATTR_EPI] = n->op->epilogue;
    take_over(y->node, n);
}

void dt_fuse(dt_graph *g)
{
    const char *how = getenv("DT_FUSE");
    if (how && !strcmp(how, "0"))
        return;
    int *readers = count_readers(g);
    for (int64_t i = 0; i < g->nnode; i++) {
        dt_node *n = g->node[i];
        if (n->live && n->op == &dt_op_accumulate)
            fuse_accumulate(n, readers);
        else if (n->live && n->op->epilogue)
            fuse_epilogue(n, readers);
    }
    free(readers);
}
