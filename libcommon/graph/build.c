/* build.c - appending nodes and leaves.  See graph.h. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "graph/internal.h"
#include "kernels/ops.h"

dt_graph *dt_graph_new(dt_dtype act)
{
    dt_graph *g = dt_alloc(sizeof(*g));
    g->act = act;
    g->block = -1;
    g->scope_name = "";
    g->bad = (dt_tensor){ .kind = DT_ACT, .dtype = DT_F32, .dims = DT_DIMS(1), .node = &g->bad_node };
    g->bad_node = (dt_node){ .op = &dt_op_view, .graph = g, .block = -1, .nout = DT_MAX_OUT, .scope = "" };
    for (int i = 0; i < DT_MAX_OUT; i++)
        g->bad_node.out[i] = &g->bad;
    return g;
}

void dt_graph_free(dt_graph **pg)
{
    dt_graph *g = *pg;
    if (!g)
        return;
    for (int64_t i = 0; i < g->nnode; i++)
        free(g->node[i]);
    for (int64_t i = 0; i < g->ntensor; i++)
        free(g->tensor[i]);
    for (int64_t i = 0; i < g->nowned; i++)
        free(g->owned[i]);
    free(g->node);
    free(g->tensor);
    free(g->owned);
    free(g);
    *pg = NULL;
}

dt_dtype dt_graph_dtype(const dt_graph *g) { return g->act; }
const char *dt_graph_error(const dt_graph *g) { return g->error[0] ? g->error : NULL; }
dt_params *dt_graph_params(const dt_graph *g) { return g->params; }
void dt_graph_checkpoint(dt_graph *g, bool on) { g->checkpoint = on; }

void dt_graph_fail(dt_graph *g, const char *fmt, ...)
{
    if (g->error[0])
        return;
    int at = g->scope[0] ? snprintf(g->error, sizeof(g->error), "%s: ", g->scope) : 0;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(g->error + at, sizeof(g->error) - (size_t)at, fmt, ap);
    va_end(ap);
}

/* --- owned memory --- */

static void *own(dt_graph *g, void *p)
{
    dt_grow(&g->owned, &g->cap_owned, g->nowned + 1, sizeof(*g->owned));
    g->owned[g->nowned++] = p;
    return p;
}

const char *dt_graph_intern(dt_graph *g, const char *s) { return own(g, dt_strdup(s)); }

dt_tensor *dt_graph_add_tensor(dt_graph *g, enum dt_kind kind, dt_dtype t, dt_dims dims)
{
    dt_tensor *x = dt_alloc(sizeof(*x));
    *x = (dt_tensor){ .kind = kind, .dtype = t, .dims = dims, .id = (int)g->ntensor };
    dt_grow(&g->tensor, &g->cap_tensor, g->ntensor + 1, sizeof(*g->tensor));
    return g->tensor[g->ntensor++] = x;
}

dt_node *dt_graph_add_node(dt_graph *g, const dt_op *op)
{
    dt_node *n = dt_alloc(sizeof(*n));
    *n = (dt_node){ .op = op, .id = (int)g->nnode, .block = g->backward ? -1 : g->block,
                    .scope = g->scope_name, .graph = g, .backward = g->backward };
    dt_grow(&g->node, &g->cap_node, g->nnode + 1, sizeof(*g->node));
    return g->node[g->nnode++] = n;
}

void dt_graph_insert(dt_graph *g, const int64_t *at, int64_t n)
{
    int64_t to = g->nnode, from = g->nnode - n;
    dt_node **moved = dt_alloc((size_t)(n + 1) * sizeof(*moved));
    memcpy(moved, g->node + from, (size_t)n * sizeof(*moved));
    while (n > 0)
        if (at[n - 1] >= from)
            g->node[--to] = moved[--n];
        else
            g->node[--to] = g->node[--from];
    free(moved);
}

/* --- scopes and parameters --- */

static void scope_changed(dt_graph *g) { g->scope_name = dt_graph_intern(g, g->scope); }

void dt_graph_use(dt_graph *g, dt_params *p)
{
    g->params = p;
    g->depth = 0;
    g->scope[0] = '\0';
    scope_changed(g);
}

void dt_scope(dt_graph *g, const char *fmt, ...)
{
    size_t len = strlen(g->scope);
    if (g->depth == DT_MAX_SCOPE || len + 2 > sizeof(g->scope)) {
        dt_graph_fail(g, "scopes nest too deeply");
        return;
    }
    g->scope_len[g->depth++] = (int)len;
    if (len)
        g->scope[len++] = '.';
    va_list ap;
    va_start(ap, fmt);
    int w = vsnprintf(g->scope + len, sizeof(g->scope) - len, fmt, ap);
    va_end(ap);
    if (w < 0 || (size_t)w >= sizeof(g->scope) - len)
        dt_graph_fail(g, "scope name is too long");
    scope_changed(g);
}

void dt_scope_end(dt_graph *g)
{
    if (!g->depth) {
        dt_graph_fail(g, "scope ended that was not begun");
        return;
    }
    g->scope[g->scope_len[--g->depth]] = '\0';
    scope_changed(g);
}

const char *dt_scope_path(dt_graph *g, const char *name)
{
    snprintf(g->path, sizeof(g->path), "%s%s%s", g->scope, g->scope[0] ? "." : "", name);
    return g->path;
}

dt_tensor *dt_param_tensor(dt_graph *g, dt_param *p)
{
    for (int64_t i = 0; i < g->ntensor; i++)
        if (g->tensor[i]->kind == DT_PARAM && g->tensor[i]->param == p)
            return g->tensor[i];
    dt_tensor *t = dt_graph_add_tensor(g, DT_PARAM, p->w ? p->dtype : g->act, p->dims);
    t->param = p;
    t->name = p->name;
    t->needs_grad = p->trainable;
    return t;
}

dt_tensor *dt_weight(dt_graph *g, const char *name, dt_dims dims, dt_init init, double scale)
{
    if (g->error[0])
        return &g->bad;
    if (!g->params) {
        dt_graph_fail(g, "weight '%s' without a parameter set", name);
        return &g->bad;
    }
    const char *path = dt_scope_path(g, name);
    const dt_param *old = dt_params_find(g->params, path);
    dt_param *p = dt_params_declare(g->params, path, dims, init, scale);
    if (!p) {
        char want[128], have[128] = "another shape";
        dt_dims_text(dims, want, sizeof(want));
        if (old)
            dt_dims_text(old->dims, have, sizeof(have));
        dt_graph_fail(g, "weight '%s' is %s here and %s elsewhere", name, want, have);
        return &g->bad;
    }
    return dt_param_tensor(g, p);
}

void dt_block(dt_graph *g)
{
    if (g->block >= 0)
        dt_graph_fail(g, "recompute units do not nest");
    g->block = g->nblock++;
}

void dt_block_end(dt_graph *g) { g->block = -1; }

/* --- leaves --- */

dt_tensor *dt_find(dt_graph *g, const char *name)
{
    for (int64_t i = 0; i < g->ntensor; i++) {
        dt_tensor *t = g->tensor[i];
        if (t->kind != DT_PARAM && t->kind != DT_GRAD && t->name && !strcmp(t->name, name))
            return t;
    }
    return NULL;
}

static bool dims_ok(dt_dims d)
{
    if (d.nd < 1 || d.nd > DT_MAX_DIMS)
        return false;
    int64_t n = 1;
    for (int i = 0; i < d.nd; i++)
        if (d.d[i] < 1 || __builtin_mul_overflow(n, d.d[i], &n) || n > (int64_t)1 << 48)
            return false;
    return true;
}

static dt_tensor *leaf(dt_graph *g, enum dt_kind kind, const char *name, dt_dtype t, dt_dims dims)
{
    if (g->error[0])
        return &g->bad;
    if (!dims_ok(dims) || dt_find(g, name)) {
        dt_graph_fail(g, "input '%s' has an empty shape or a name that is taken", name);
        return &g->bad;
    }
    dt_tensor *x = dt_graph_add_tensor(g, kind, t, dims);
    x->name = dt_graph_intern(g, name);
    return x;
}

dt_tensor *dt_input(dt_graph *g, const char *name, dt_dtype t, dt_dims dims)
{
    return leaf(g, DT_INPUT, name, t, dims);
}

dt_tensor *dt_const(dt_graph *g, const char *name, dt_dtype t, dt_dims dims, const void *values)
{
    dt_tensor *x = leaf(g, DT_CONST, name, t, dims);
    if (x == &g->bad)
        return x;
    void *copy = own(g, dt_alloc((size_t)dt_bytes(x)));
    memcpy(copy, values, (size_t)dt_bytes(x));
    x->values = copy;
    return x;
}

dt_tensor *dt_output(dt_graph *g, dt_tensor *x, const char *name)
{
    if (g->error[0])
        return x;
    x->keep = dt_root(x)->keep = true;
    if (name && !x->name)
        x->name = dt_graph_intern(g, name);
    return x;
}

void dt_require_grad(dt_graph *g, dt_tensor *x)
{
    if (g->nnode)
        dt_graph_fail(g, "dt_require_grad comes before the first op");
    x->needs_grad = true;
}

/* --- nodes --- */

void dt_node_out(dt_node *n, int i, dt_dtype t, dt_dims dims)
{
    if (!dims_ok(dims)) {
        dt_graph_fail(n->graph, "%s: empty or oversized output", n->op->name);
        dims = DT_DIMS(1);
    }
    dt_tensor *x = dt_graph_add_tensor(n->graph, DT_ACT, t, dims);
    x->node = n;
    n->out[i] = x;
    if (n->nout < i + 1)
        n->nout = i + 1;
}

bool dt_wants(const dt_node *n, int i) { return i < n->nin && n->in[i] && n->in[i]->needs_grad; }

void dt_node_describe(const dt_node *n, char *buf, size_t bytes)
{
    size_t at = (size_t)snprintf(buf, bytes, "%s:", n->op->name);
    for (int i = 0; i < n->nin && at < bytes; i++) {
        char d[128] = "none";
        if (n->in[i])
            dt_dims_text(n->in[i]->dims, d, sizeof(d));
        at += (size_t)snprintf(buf + at, bytes - at, "%s %s%s%s", i ? "," : "", d, n->in[i] ? " " : "",
                               n->in[i] ? dt_dtype_name(n->in[i]->dtype) : "");
    }
}

static bool is_float(dt_dtype t) { return t == DT_F32 || t == DT_BF16 || t == DT_F16; }

dt_node *dt_apply(dt_graph *g, const dt_op *op, const dt_attr *a, int nin, dt_tensor *const *in)
{
    if (g->error[0])
        return &g->bad_node;
    dt_node *n = dt_graph_add_node(g, op);
    n->nin = nin;
    bool grad = false;
    for (int i = 0; i < nin; i++) {
        n->in[i] = in[i];
        grad |= in[i] && in[i]->needs_grad;
    }
    if (a)
        n->attr = *a;
    const char *complaint = op->shape(n);
    if (complaint) {
        char what[512];
        dt_node_describe(n, what, sizeof(what));
        dt_graph_fail(g, "%s (got %s)", complaint, what);
    }
    if (g->error[0]) {
        g->nnode--;
        free(n);
        return &g->bad_node;
    }
    for (int i = 0; i < n->nout; i++)
        n->out[i]->needs_grad = grad && op->grad && is_float(n->out[i]->dtype);
    return n;
}

/* --- views --- */

static const char *view_shape(dt_node *n)
{
    dt_dims d = { .nd = (int)n->attr.i[0] };
    int64_t numel = dt_numel(n->in[0]->dims), known = 1;
    int guess = -1;
    for (int i = 0; i < d.nd; i++) {
        d.d[i] = n->attr.i[1 + i];
        if (d.d[i] == -1)
            guess = i;
        else
            known *= d.d[i];
    }
    if (guess >= 0 && known > 0)
        d.d[guess] = numel / known;
    if (!dims_ok(d) || dt_numel(d) != numel)
        return "reshape must keep the number of elements";
    dt_node_out(n, 0, n->in[0]->dtype, d);
    n->out[0]->base = dt_root(n->in[0]);
    return NULL;
}

static void view_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dx[0] = dt_reshape(g, dy[0], n->in[0]->dims);
}

static void view_cost(const dt_node *n, dt_cost *c)
{
    (void)n;
    *c = (dt_cost){ 0, 0 };
}

const dt_op dt_op_view = { .name = "view", .shape = view_shape, .grad = view_grad, .cost = view_cost };

dt_tensor *dt_reshape(dt_graph *g, dt_tensor *x, dt_dims dims)
{
    dt_attr a = { .i = { dims.nd } };
    for (int i = 0; i < dims.nd; i++)
        a.i[1 + i] = dims.d[i];
    return dt_apply(g, &dt_op_view, &a, 1, &x)->out[0];
}
