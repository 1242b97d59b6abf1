/* nan.c - which node made the first number that is none. */
#include <stdlib.h>
#include "graph/plan.h"

static bool is_finite(const dt_plan *p, const dt_tensor *t)
{
    void *ptr = dt_plan_pointer(p, t);
    bool fetched = t->kind == DT_PARAM && t->param->place == DT_FETCHED;
    void *host = ptr || fetched ? dt_try_alloc((size_t)dt_bytes(t)) : NULL;
    if (!host)
        return true;
    if (fetched)
        dt_param_bring(t->param, host, t->dtype);
    else
        p->dev->download(p->dev, host, ptr, dt_bytes(t));
    bool ok = dt_finite(host, t->dtype, dt_numel(t->dims));
    free(host);
    return ok;
}

/* A fetched parameter is brought by a node of its own (materialise.c), which is not to blame for
 * what is in the file. */
static bool brings(const dt_node *n) { return n->nin == 0 && n->out[0]->param; }

/* Inputs and parameters are never written over by a node; what other nodes made is finite, or this
 * were not the first. */
static const dt_tensor *source(const dt_plan *p, const dt_node *n)
{
    for (int k = 0; k < n->nin; k++) {
        const dt_tensor *t = n->in[k] ? dt_root(n->in[k]) : NULL;
        if (t && (t->kind == DT_INPUT || t->kind == DT_PARAM || (t->node && brings(t->node))) && !is_finite(p, t))
            return t;
    }
    return NULL;
}

const dt_node *dt_plan_find_nan(dt_plan *p, const dt_tensor **from)
{
    *from = NULL;
    dt_plan_consts(p);
    for (int64_t i = 0; i < p->nitem; i++) {
        const dt_node *n = p->item[i].node;
        if (n->op == &dt_op_update)         /* looking changes no weights */
            continue;
        dt_plan_launch(p, &p->item[i]);
        p->dev->sync(p->dev, NULL);
        for (int o = 0; o < n->nout && !brings(n); o++)
            if (!is_finite(p, n->out[o])) {
                *from = source(p, n);
                return n;
            }
    }
    return NULL;
}

int dt_plan_blame(dt_plan *p, const char *what, dt_err *err)
{
    const dt_tensor *from;
    const dt_node *n = dt_plan_find_nan(p, &from);
    if (!n)
        return dt_err_set(err, DT_ENAN, "%s is not finite", what);
    const char *name = !from ? "" : from->param ? from->param->name : from->name ? from->name : "";
    return dt_err_set(err, DT_ENAN, "%s is not finite; first in '%s' of %s%s%s%s%s", what, n->op->name,
                      n->scope[0] ? n->scope : "the objective", n->backward ? " (backward)" : "",
                      *name ? ", from '" : "", name,
                      *name ? "'" : "");
}
