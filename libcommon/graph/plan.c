/* plan.c - from a graph to a list of launches and one arena.
 *
 *   live       nodes that reach no output and no parameter gradient are dropped
 *   update     parameters whose gradients are not kept are updated in between (update.c)
 *   fuse       neighbours become one launch (fuse.c)
 *   materialise parameters that stay in a file are brought into the arena where they are read (materialise.c)
 *   prepare    kernels are chosen, their primitives made, their workspaces known
 *   liveness   a slot of the arena per tensor, from its maker to its last reader; in-place ops take over a slot
 *   layout     layout.c
 */
#include <stdlib.h>
#include <string.h>
#include "graph/plan.h"
#include "kernels/ops.h"
#include "kernels/oplist.h"

enum { ALIGN = 256 };

/* --- live --- */

static void mark_live(dt_graph *g)
{
    bool *wanted = dt_alloc((size_t)g->ntensor + 1);
    for (int64_t i = g->nnode - 1; i >= 0; i--) {
        dt_node *n = g->node[i];
        n->live = false;
        for (int o = 0; o < n->nout; o++)
            n->live |= n->out[o]->keep || n->out[o]->kind == DT_GRAD || wanted[n->out[o]->id];
        for (int k = 0; n->live && k < n->nin; k++)
            if (n->in[k])
                wanted[n->in[k]->id] = true;
    }
    free(wanted);
}

/* --- prepare --- */

static int64_t add_slot(dt_plan *p, int64_t bytes, int64_t first, int64_t last)
{
    dt_grow(&p->slot, &p->cap_slot, p->nslot + 1, sizeof(*p->slot));
    p->slot[p->nslot] = (dt_slot){ .bytes = bytes, .first = first, .last = last, .offset = -1 };
    return p->nslot++;
}

static int prepare_item(dt_plan *p, dt_node *n, dt_err *err)
{
    bool update = n->op == &dt_op_update;               /* goes through dt_flat_ops, whatever the device */
    const dt_kernel *k = update ? &n->op->cpu : p->dev->kernel(p->dev, n->op);
    if (!k)
        return dt_err_set(err, DT_EFAIL, "%s has no kernel for '%s' (%s)", p->dev->name, n->op->name, n->scope);
    dt_item *it = &p->item[p->nitem++];
    *it = (dt_item){ .node = n, .kernel = k, .ws_slot = -1 };
    p->looks |= update;
    if (!k->prepare)
        return 0;
    dt_prep prep = { .dev = p->dev, .err = err };
    int rc = k->prepare(n, &prep);
    it->state = prep.state;
    it->ws_bytes = prep.workspace;
    if (rc < 0)
        dt_err_prefix(err, "%s: %s", n->scope, n->op->name);
    return rc;
}

static void note_reads(const dt_node *n)
{
    for (int k = 0; k < n->nin; k++) {
        dt_tensor *t = n->in[k] ? dt_root(n->in[k]) : NULL;
        if (t && t->kind == DT_PARAM && !dt_reads_rows(n, k))
            t->param->read = true;
    }
}

static int prepare(dt_plan *p, dt_err *err)
{
    dt_graph *g = p->g;
    p->item = dt_alloc(((size_t)g->nnode + 1) * sizeof(*p->item));
    for (int64_t i = 0; i < g->nnode; i++) {
        dt_node *n = g->node[i];
        if (!n->live || n->op == &dt_op_view)
            continue;
        int rc = prepare_item(p, n, err);
        if (rc < 0)
            return rc;
        note_reads(n);
        dt_cost c = dt_node_cost(n);
        p->stats.flops += c.flops;
        p->stats.bytes += c.bytes;
        if (n->recompute)
            p->stats.flops_recompute += c.flops;
    }
    p->stats.nodes = (int)p->nitem;
    return 0;
}

/* --- liveness --- */

/* When each tensor's bytes are read last, as an index of items; -1 = never. */
static int64_t *last_readers(const dt_plan *p)
{
    int64_t *last = dt_alloc(((size_t)p->g->ntensor + 1) * sizeof(*last));
    for (int64_t i = 0; i < p->g->ntensor; i++)
        last[i] = p->g->tensor[i]->keep ? p->nitem : -1;
    for (int64_t i = 0; i < p->nitem; i++)
        for (int k = 0; k < p->item[i].node->nin; k++) {
            dt_tensor *t = p->item[i].node->in[k];
            if (t && last[dt_root(t)->id] < i)
                last[dt_root(t)->id] = i;
        }
    return last;
}

/* The slot that out[0] of item i may take over, or -1. */
static int64_t inplace_slot(const dt_plan *p, int64_t i, const int64_t *last)
{
    const dt_node *n = p->item[i].node;
    for (int k = 0; k < n->nin; k++) {
        if (!(n->op->inplace >> k & 1) || !n->in[k])
            continue;
        const dt_tensor *t = dt_root(n->in[k]);
        if (t->kind != DT_ACT || t->keep || last[t->id] != i || dt_bytes(t) != dt_bytes(n->out[0]) ||
            t->dtype != n->out[0]->dtype)
            continue;
        bool shared = false;
        for (int j = 0; j < n->nin; j++)
            shared |= j != k && n->in[j] && dt_root(n->in[j]) == t;
        if (!shared)
            return p->slot_of[t->id];
    }
    return -1;
}

static void give_slots(dt_plan *p)
{
    dt_graph *g = p->g;
    int64_t *last = last_readers(p);
    p->slot_of = dt_alloc(((size_t)g->ntensor + 1) * sizeof(*p->slot_of));
    for (int64_t i = 0; i < g->ntensor; i++) {
        dt_tensor *t = g->tensor[i];
        p->slot_of[i] = -1;
        if (t->kind == DT_INPUT || (t->kind == DT_CONST && last[i] >= 0)) {
            p->slot_of[i] = add_slot(p, dt_bytes(t), 0, p->nitem);
            *(t->kind == DT_INPUT ? &p->stats.inputs : &p->stats.consts) += dt_bytes(t);
        }
    }
    for (int64_t i = 0; i < p->nitem; i++) {
        dt_item *it = &p->item[i];
        for (int o = 0; o < it->node->nout; o++) {
            dt_tensor *t = it->node->out[o];
            if (t->kind != DT_ACT || t->base || (last[t->id] < 0 && (it->node->op->optional_out >> o & 1)))
                continue;
            int64_t end = last[t->id] < i ? i : last[t->id];
            int64_t s = o == 0 ? inplace_slot(p, i, last) : -1;
            if (s < 0)
                s = add_slot(p, dt_bytes(t), i, end);
            else if (p->slot[s].last < end)
                p->slot[s].last = end;
            p->slot_of[t->id] = s;
        }
        if (it->ws_bytes)
            it->ws_slot = add_slot(p, it->ws_bytes, i, i);
        if (it->ws_bytes > p->stats.workspace)
            p->stats.workspace = it->ws_bytes;
    }
    free(last);
}

/* --- the whole --- */

int dt_plan_new(dt_plan **out, dt_graph *g, dt_device *dev, dt_err *err)
{
    *out = NULL;
    if (dt_graph_error(g))
        return dt_err_set(err, DT_EDATA, "%s", dt_graph_error(g));
    if (g->planned)
        return dt_err_set(err, DT_EFAIL, "a graph is planned once");
    g->planned = true;
    dt_plan *p = dt_alloc(sizeof(*p));
    p->g = g;
    p->dev = dev;
    mark_live(g);
    dt_place_updates(g);
    dt_fuse(g);
    dt_materialise(g);
    int rc = prepare(p, err);
    if (rc < 0) {
        dt_plan_free(&p);
        return rc;
    }
    give_slots(p);
    p->stats.arena = dt_layout(p->slot, p->nslot, ALIGN);
    p->stats.activations = p->stats.arena - p->stats.inputs - p->stats.consts;
    *out = p;
    return 0;
}

void dt_plan_free(dt_plan **pp)
{
    dt_plan *p = *pp;
    if (!p)
        return;
    for (int64_t i = 0; i < p->nitem; i++)
        if (p->item[i].kernel->release && p->item[i].state)
            p->item[i].kernel->release(p->item[i].state);
    if (p->captured)
        p->dev->release(p->dev, p->captured);
    free(p->item);
    free(p->slot);
    free(p->slot_of);
    free(p);
    *pp = NULL;
}

int64_t dt_plan_bytes(const dt_plan *p) { return p->stats.arena; }
const dt_plan_stats *dt_plan_stat(const dt_plan *p) { return &p->stats; }
