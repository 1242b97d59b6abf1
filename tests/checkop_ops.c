/* checkop_ops.c - every op has a case, and is in kernels/registry.c: an op without cases would be one without tests. */
#include <stdio.h>
#include "tests/checkop_run.h"

static void note(struct check_ops *s, const dt_node *n)
{
    int k = 0;
    while (dt_ops[k] && dt_ops[k] != n->op)
        k++;
    if (k < CHECK_MAX_OPS && dt_ops[k])
        s->seen[k] = true;
    else if (!check_skips(n))
        s->unlisted = n->op;
}

void check_ops_note(struct check_ops *s, const check_case *c)
{
    static const dt_dtype type[] = { DT_F32, DT_BF16 };     /* fp32 needs no casts */
    for (int t = 0; t < 2; t++) {
        struct check_graph x;
        check_graph_init(&x, c, type[t]);
        for (int64_t i = 0; i < x.g->nnode; i++)
            note(s, x.g->node[i]);
        check_graph_release(&x);
    }
}

const char *check_ops_missing(struct check_ops *s)
{
    if (s->unlisted)
        snprintf(s->says, sizeof(s->says), "dt_ops lacks '%s'", s->unlisted->name);
    for (int k = 0; dt_ops[k]; k++)
        if (k >= CHECK_MAX_OPS || !s->seen[k])
            snprintf(s->says, sizeof(s->says), "no case has '%s'", dt_ops[k]->name);
    return *s->says ? s->says : NULL;
}
