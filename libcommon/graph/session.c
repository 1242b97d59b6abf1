/* session.c - plans by shape over one arena.  See session.h. */
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "graph/session.h"

struct entry {
    dt_shape_key shape;
    dt_graph *g;
    dt_plan  *plan;
};

struct dt_session {
    dt_device    *dev;
    dt_build_fn   build;
    void         *ctx;
    struct entry *e;
    int64_t       n, cap, bytes;
    void         *arena;
    bool          owned;
};

dt_session *dt_session_new(dt_device *dev, dt_build_fn build, void *ctx)
{
    dt_session *s = dt_alloc(sizeof(*s));
    *s = (dt_session){ .dev = dev, .build = build, .ctx = ctx };
    return s;
}

void dt_session_free(dt_session **ps)
{
    dt_session *s = *ps;
    if (!s)
        return;
    for (int64_t i = 0; i < s->n; i++) {
        dt_plan_free(&s->e[i].plan);
        dt_graph_free(&s->e[i].g);
    }
    if (s->owned && s->arena)
        s->dev->free(s->dev, s->arena);
    free(s->e);
    free(s);
    *ps = NULL;
}

static struct entry *find(const dt_session *s, const dt_shape_key *shape)
{
    for (int64_t i = 0; i < s->n; i++)
        if (!memcmp(&s->e[i].shape, shape, sizeof(*shape)))
            return &s->e[i];
    return NULL;
}

int dt_session_add(dt_session *s, const dt_shape_key *shape, dt_err *err)
{
    if (find(s, shape))
        return 0;
    struct entry e = { .shape = *shape, .g = s->build(s->ctx, shape) };
    int rc = dt_plan_new(&e.plan, e.g, s->dev, err);
    if (rc < 0) {
        dt_graph_free(&e.g);
        return rc;
    }
    if (dt_plan_bytes(e.plan) > s->bytes)
        s->bytes = dt_plan_bytes(e.plan);
    dt_grow(&s->e, &s->cap, s->n + 1, sizeof(*s->e));
    s->e[s->n++] = e;
    return 0;
}

int64_t dt_session_bytes(const dt_session *s) { return s->bytes; }

const dt_plan_stats *dt_session_stats(const dt_session *s, int i, dt_shape_key *shape)
{
    if (i < 0 || i >= s->n)
        return NULL;
    if (shape)
        *shape = s->e[i].shape;
    return dt_plan_stat(s->e[i].plan);
}

int dt_session_alloc(dt_session *s, void *shared, dt_err *err)
{
    s->owned = !shared;
    s->arena = shared ? shared : s->dev->alloc(s->dev, s->bytes ? s->bytes : 1);
    if (!s->arena)
        return dt_err_set(err, DT_ENOMEM, "cannot allocate %.1f MiB for activations on %s",
                          (double)s->bytes / 1048576.0, s->dev->name);
    for (int64_t i = 0; i < s->n; i++)
        dt_plan_bind(s->e[i].plan, s->arena);
    return 0;
}

dt_plan *dt_session_use(dt_session *s, const dt_shape_key *shape, dt_graph **g)
{
    struct entry *e = find(s, shape);
    if (g)
        *g = e ? e->g : NULL;
    return e ? e->plan : NULL;
}
