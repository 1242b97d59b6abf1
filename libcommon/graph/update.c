/* update.c - parameters that are updated during the backward pass, so that their gradients are not kept.  See graph.h.
 *
 *   before    accumulate dw1 -> grad    ...    accumulate dw2 -> grad
 *   after     accumulate dw1 -> G       ...    accumulate dw2 -> a view of G    update G, w, loss
 *
 * grad is dt_param.grad, all of it 0 at first.  G is an activation: the first part of a gradient overwrites it, later
 * ones add to it.  The update stands behind the last part and behind the last reader of w, because dx = dy w comes
 * before or after dw, and a recomputed forward reads w once more. */
#include <math.h>
#include <stdlib.h>
#include "graph/plan.h"
#include "kernels/oplist.h"

/* --- the node --- */

void dt_param_update(dt_device *d, const dt_param *q, const float *grad, const dt_adamw *a, double ema_decay)
{
    d->flat->adamw(d, q->master, q->m, q->v, grad, q->numel, a);
    if (q->ema)
        d->flat->ema(d, q->ema, q->master, q->numel, ema_decay);
    if ((void *)q->master != q->w)
        d->flat->convert(d, q->w, q->dtype, q->master, DT_F32, q->numel);
}

static void update_run(const dt_node *n, const dt_run *r)
{
    dt_param *q = n->in[1]->param;
    dt_update *u = q->update;
    if (!u->begun)
        u->stopped = !isfinite(r->dev->flat->sumsq(r->dev, r->in[2], 1));
    u->begun = true;
    q->sumsq = u->stopped ? NAN : r->dev->flat->sumsq(r->dev, r->in[0], q->numel);
    u->stopped |= !isfinite(q->sumsq);
    if (!u->stopped)
        dt_param_update(r->dev, q, r->in[0], &u->adamw, u->ema_decay);
}

/* Of what surely is there: the gradient twice; weight and moments, read and written. */
static void update_cost(const dt_node *n, dt_cost *c)
{
    *c = (dt_cost){ 0, 8.0 * 4 * (double)n->in[1]->param->numel };
}

const dt_op dt_op_update = { .name = "update", .cost = update_cost, .cpu = { .run = update_run } };

/* --- the pass --- */

struct due {                        /* an update to come */
    dt_tensor *w, *grad;
    const dt_node *after;
    int64_t at;                     /* place of `after` */
};

static int by_place(const void *pa, const void *pb)
{
    const struct due *a = pa, *b = pb;
    return a->at != b->at ? (a->at < b->at ? -1 : 1) : a->w->id - b->w->id;
}

static void read_or_made(struct due *d, const dt_node *by, int64_t at)
{
    d->after = by;
    d->at = at;
}

/* One more part of the gradient that `d` is for. */
static void join(struct due *d, dt_node *acc)
{
    dt_tensor *part = acc->out[0];
    part->kind = DT_ACT;
    part->param = NULL;
    acc->attr.i[DT_ATTR_ACC] = d->grad != NULL;
    if (d->grad)
        part->base = d->grad;
    else
        d->grad = part;
}

static void add_update(dt_graph *g, const struct due *d)
{
    dt_node *n = dt_graph_add_node(g, &dt_op_update);
    n->nin = 3;
    n->in[0] = d->grad;
    n->in[1] = d->w;
    n->in[2] = g->loss;
    n->scope = d->after->scope;
    n->backward = n->live = true;
}

void dt_place_updates(dt_graph *g)
{
    struct due *due = dt_alloc((size_t)(g->ntensor + 1) * sizeof(*due));       /* tensor id -> that of a parameter */
    int64_t n = 0, ntensor = g->ntensor;
    for (int64_t i = 0; i < g->nnode; i++) {
        dt_node *x = g->node[i];
        dt_param *q = x->live && x->op == &dt_op_accumulate ? x->out[0]->param : NULL;
        for (int k = 0; x->live && k < x->nin; k++)
            if (x->in[k] && dt_root(x->in[k])->kind == DT_PARAM)
                read_or_made(&due[dt_root(x->in[k])->id], x, i);
        if (!q || !q->update)
            continue;
        dt_tensor *w = dt_param_tensor(g, q);
        due[w->id].w = w;
        read_or_made(&due[w->id], x, i);
        join(&due[w->id], x);
    }
    for (int64_t i = 0; i < ntensor; i++)
        if (due[i].grad)
            due[n++] = due[i];
    qsort(due, (size_t)n, sizeof(*due), by_place);
    int64_t *at = dt_alloc((size_t)(n + 1) * sizeof(*at));
    for (int64_t i = 0; i < n; i++) {
        add_update(g, &due[i]);
        at[i] = due[i].at + 1;
    }
    dt_graph_insert(g, at, n);
    free(at);
    free(due);
}
