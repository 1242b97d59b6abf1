/* materialise.c - parameters that have no memory of their own.
 *
 * A fetched parameter (dt_params_place) lies in its weight file.  Every node that reads it gets a fetch of its
 * own just before it, whose output dies with that node: the arena never holds more than the largest such matrix, and
 * the pages of the file are the system's to keep or drop. */
#include <stdlib.h>
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
    int64_t nodes = g->nnode, n = 0, cap = 0, *at = NULL;
    for (int64_t i = 0; i < nodes; i++) {
        dt_node *r = g->node[i];
        for (int k = 0; r->live && k < r->nin; k++) {
            dt_tensor *t = r->in[k];
            if (!t || t->kind != DT_PARAM || t->param->place != DT_FETCHED || dt_reads_rows(r, k))
                continue;
            r->in[k] = make_fetch(g, r, t)->out[0];
            dt_grow(&at, &cap, n + 1, sizeof(*at));
            at[n++] = i;
        }
    }
    dt_graph_insert(g, at, n);
    free(at);
}
