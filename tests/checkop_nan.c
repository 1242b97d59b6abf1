/* checkop_nan.c - a NaN is not lost: of a leaf that is NaN the output shows it, of a gradient that is NaN the
 * gradients of all leaves show it.  That the loss and the norm of the gradient are finite is worth nothing where a
 * kernel drops NaNs: by a comparison that is false for them, a maximum, a clamp, a mask. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/checkop_run.h"

static bool all_finite(const dt_tensor *t, const void *host)
{
    int64_t n = dt_numel(t->dims);
    float *v = check_floats(t, host);
    bool ok = true;
    for (int64_t i = 0; i < n && ok; i++)
        ok = isfinite(v[i]);
    free(v);
    return ok;
}

static bool is_float(const dt_tensor *t) { return t->dtype == DT_F32 || t->dtype == DT_BF16; }

static const char *lost_backward(const struct check_graph *x)
{
    for (int64_t i = 0; i < x->g->ntensor; i++) {
        const dt_tensor *t = x->g->tensor[i];
        bool param = t->kind == DT_GRAD, input = t->kind == DT_INPUT && t->grad && is_float(t);
        if (param && all_finite(t, x->host[i]))
            return "a NaN in the output's gradient is lost on its way to a weight";
        if (input && all_finite(t->grad, check_host(x, t->grad)))
            return "a NaN in the output's gradient is lost on its way to an input";
    }
    return NULL;
}

static bool named(const dt_tensor *t, const char *name) { return t->name && !strcmp(t->name, name); }

/* What becomes of `value` in all of leaf l. */
static const char *lost(const check_case *c, dt_device *cpu, dt_dtype type, struct check_data *d, struct check_leaf *l,
                        float value)
{
    struct check_graph x;
    const char *bad = check_graph_init(&x, c, type);
    const dt_tensor *leaf = NULL;
    for (int64_t i = 0; i < x.g->ntensor && !bad; i++)
        if (named(x.g->tensor[i], l->name))
            leaf = x.g->tensor[i];
    bool back = leaf && leaf == x.seed;
    if (!bad && leaf && is_float(leaf)) {
        float *was = l->v;
        l->v = dt_alloc((size_t)l->n * sizeof(*l->v));
        for (int64_t i = 0; i < l->n; i++)
            l->v[i] = value;
        check_graph_load(&x, d);
        bad = check_run(&x, cpu, back);
        if (!bad && !back && is_float(x.y) && all_finite(x.y, check_host(&x, x.y)))
            bad = isnan(value) ? "a NaN in an input is not in the output" : "an infinity in an input is not in the output";
        if (!bad && back && !(c->flags & CHECK_MASKED))
            bad = lost_backward(&x);
        free(l->v);
        l->v = was;
    }
    check_graph_release(&x);
    return bad;
}

const char *check_nan(const check_case *c, dt_device *cpu, dt_dtype type, uint64_t seed)
{
    struct check_data d;
    const char *bad = NULL;
    check_data_init(&d, c, FILL_RANDOM, seed);
    for (int64_t l = 0; l < d.n && !bad; l++) {
        bad = lost(c, cpu, type, &d, &d.leaf[l], NAN);
        if (!bad && c->flags & CHECK_INF)
            bad = lost(c, cpu, type, &d, &d.leaf[l], INFINITY);
    }
    check_data_release(&d);
    return bad;
}
