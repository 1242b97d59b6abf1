/* internal.h - what the files of libcommon/graph share. */
#ifndef DT_GRAPH_INTERNAL_H
#define DT_GRAPH_INTERNAL_H
#include "base/mem.h"
#include "graph/graph.h"

enum { DT_MAX_SCOPE = 16, DT_SCOPE_BYTES = 512 };

struct dt_graph {
    dt_dtype    act;
    char        error[1024];        /* "" while all is well */
    dt_node   **node;
    int64_t     nnode, cap_node;
    dt_tensor **tensor;
    int64_t     ntensor, cap_tensor;
    void      **owned;              /* names, constants: freed with the graph */
    int64_t     nowned, cap_owned;
    dt_params  *params;
    dt_tensor  *loss;               /* of dt_backward, else NULL */
    char        scope[DT_SCOPE_BYTES];
    int         scope_len[DT_MAX_SCOPE], depth;
    const char *scope_name;         /* interned copy of scope, for nodes */
    char        path[DT_SCOPE_BYTES + 256];
    int         block, nblock;
    bool        checkpoint, backward, planned;
    dt_node     bad_node;           /* what failed builders return */
    dt_tensor   bad;
};

dt_node   *dt_graph_add_node(dt_graph *g, const dt_op *op);
/* Moves the last n nodes: node k goes in front of what is at place at[k] of the others; at[] ascends. */
void       dt_graph_insert(dt_graph *g, const int64_t *at, int64_t n);
dt_tensor *dt_graph_add_tensor(dt_graph *g, enum dt_kind kind, dt_dtype t, dt_dims dims);
const char *dt_graph_intern(dt_graph *g, const char *s);
/* "add: [2, 16, 64] F32, [2, 16] F32" into buf */
void       dt_node_describe(const dt_node *n, char *buf, size_t bytes);

/* The tensor whose bytes t shows: t itself or, for a view, its base. */
static inline dt_tensor *dt_root(dt_tensor *t) { return t->base ? t->base : t; }
static inline int64_t dt_bytes(const dt_tensor *t)
{
    return dt_numel(t->dims) * (int64_t)dt_dtype_size(t->dtype);
}

extern const dt_op dt_op_view;      /* a reshape: shares bytes, runs nothing */

#endif
