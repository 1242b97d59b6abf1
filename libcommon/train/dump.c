/* dump.c - training steps as safetensors.  See dump.h. */
#include <inttypes.h>
#include <stdlib.h>
#include "base/file.h"
#include "graph/internal.h"
#include "train/dump.h"

struct dt_dump {
    dt_st_entry *e;
    int64_t n, cap;
};

dt_dump *dt_dump_new(void) { return dt_alloc(sizeof(dt_dump)); }

static void clear(dt_dump *d)
{
    for (int64_t i = 0; i < d->n; i++) {
        free((void *)d->e[i].name);
        free((void *)d->e[i].data);
    }
    d->n = 0;
}

void dt_dump_free(dt_dump **pd)
{
    if (!*pd)
        return;
    clear(*pd);
    free((*pd)->e);
    free(*pd);
    *pd = NULL;
}

/* Room for one tensor; takes name.  NULL when memory is out. */
static void *add(dt_dump *d, char *name, dt_dtype t, dt_dims dims, dt_err *err)
{
    size_t bytes = (size_t)dt_numel(dims) * dt_dtype_size(t);
    void *data = dt_try_alloc(bytes + 1);
    if (!data) {
        dt_err_set(err, DT_ENOMEM, "no memory to dump '%s'", name);
        free(name);
        return NULL;
    }
    dt_grow(&d->e, &d->cap, d->n + 1, sizeof(*d->e));
    d->e[d->n++] = (dt_st_entry){ .name = name, .dtype = t, .dims = dims, .data = data, .bytes = bytes };
    return data;
}

static bool dumped(const dt_tensor *t) { return t->name && (t->kind == DT_INPUT || (t->kind == DT_ACT && t->keep)); }

int64_t dt_dump_bytes(const dt_graph *g, int64_t micros, const dt_optim *o)
{
    int64_t bytes = 0, numbers = 0;
    for (int64_t i = 0; i < g->ntensor; i++)
        bytes += dumped(g->tensor[i]) ? dt_bytes(g->tensor[i]) : 0;
    for (int i = 0; i < o->nset; i++)
        for (int64_t j = 0; j < o->set[i]->n; j++)
            numbers += o->set[i]->v[j]->trainable ? o->set[i]->v[j]->numel : 0;
    return micros * bytes + 2 * numbers * (int64_t)sizeof(float);
}

int dt_dump_micro(dt_dump *d, dt_graph *g, dt_plan *p, int64_t micro, dt_err *err)
{
    for (int64_t i = 0; i < g->ntensor; i++) {
        dt_tensor *t = g->tensor[i];
        if (!dumped(t))
            continue;
        void *data = add(d, dt_sprintf("micro.%" PRId64 ".%s", micro, t->name), t->dtype, t->dims, err);
        if (!data)
            return DT_ENOMEM;
        dt_plan_read(p, t, data);
    }
    return 0;
}

static int dump_params(dt_dump *d, const dt_optim *o, const char *prefix, bool grads, dt_err *err)
{
    for (int i = 0; i < o->nset; i++)
        for (int64_t j = 0; j < o->set[i]->n; j++) {
            dt_params *s = o->set[i];
            dt_param *q = s->v[j];
            if (!q->trainable)
                continue;
            void *data = add(d, dt_sprintf("%s.%s.%s", prefix, s->name, q->name), DT_F32, q->dims, err);
            if (!data)
                return DT_ENOMEM;
            s->dev->download(s->dev, data, grads ? q->grad : q->master, q->numel * (int64_t)sizeof(float));
        }
    return 0;
}

int dt_dump_grads(dt_dump *d, const dt_optim *o, dt_err *err) { return dump_params(d, o, "grad", true, err); }
int dt_dump_weights(dt_dump *d, const dt_optim *o, dt_err *err) { return dump_params(d, o, "weight", false, err); }

int dt_dump_scalar(dt_dump *d, const char *name, double value, dt_err *err)
{
    double *v = add(d, dt_strdup(name), DT_F64, DT_DIMS(1), err);
    if (!v)
        return DT_ENOMEM;
    *v = value;
    return 0;
}

int dt_dump_write(dt_dump *d, const char *dir, int64_t step, dt_err *err)
{
    char *path = dt_sprintf("%s/step-%06" PRId64 ".safetensors", dir, step);
    int rc = dt_mkdirs(dir, err);
    if (rc == 0)
        rc = dt_st_write(path, d->e, d->n, NULL, err);
    clear(d);
    free(path);
    return rc;
}
