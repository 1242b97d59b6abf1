/* materialise.c - parameters that have no memory of their own.
 *
 * A fetched parameter (dt_params_place) lies in its weight file.  Every node that reads it gets a fetch of its own just before it,
 * whose output dies with that node: the arena never holds more than the largest such matrix, and the pages of the
 * file are the system's to keep or drop. */
#include <stdlib.h>
#include <string.h>
#include "graph/plan.h"

static void fetch_cpu(const dt_node *n, const dt_run *r)
{
    dt_param_bring(n->out[0]->param, r->out[0], n->out[0]->dtype);
}

static void fetch_cost(const dt_node *n, dt_cost *c)
{
    c->flops = 0;
    c->bytes = 2.0 * (double)dt_bytes(n->out[0]);
}

static const dt_op fetch = { .name = "fetch", .cost = fetch_cost, .cpu = { .run = fetch_cpu } };

static dt_node *make_fetch(dt_graph *g, const dt_node *reader, const dt_tensor *param)
{
    dt_node *n = dt_graph_add_node(g, &fetch);
    n->live = true;
    n->scope = reader->scope;
    n->backward = reader->backward;
    n->recompute = reader->recompute;
    dt_node_out(n, 0, param->dtype, param->dims);
    n->out[0]->param = param->param;
    return n;
}

void dt_materialise(dt_graph *g)
{
    int64_t n = g->nnode, at = 0;
    dt_node **old = dt_alloc((size_t)(n + 1) * sizeof(*old)), **all = NULL;
    int64_t cap = 0;
    memcpy(old, g->node, (size_t)n * sizeof(*old));
    for (int64_t i = 0; i < n; i++) {
        dt_node *r = old[i];
        for (int k = 0; r->live && k < r->nin; k++) {
            dt_tensor *t = r->in[k];
            if (!t || t->kind != DT_PARAM || t->param->place != DT_FETCHED || dt_reads_rows(r, k))
                continue;
            dt_node *f = make_fetch(g, r, t);
            r->in[k] = f->out[0];
            dt_grow(&all, &cap, at + 1, sizeof(*all));
            all[at++] = f;
        }
        dt_grow(&all, &cap, at + 1, sizeof(*all));
        all[at++] = r;
    }
    free(old);
    free(g->node);
    g->node = all;
    g->nnode = at;
    g->cap_node = cap;
}
