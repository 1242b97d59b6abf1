/* gold.c - see gold.h. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/golden/gold.h"

static int tests, failures;

void must(int rc, const dt_err *err)
{
    if (rc >= 0)
        return;
    printf("Bail out! %s\n", err->msg);
    exit(1);
}

char *gold_path(const char *name)
{
    const char *dir = getenv("GOLDEN_DIR");
    return dt_sprintf("%s/%s", dir ? dir : "tests/golden", name);
}

static dt_st *open_file(const char *name)
{
    dt_err err = { 0 };
    dt_st *st = NULL;
    char *path = gold_path(name);
    must(dt_st_open(&st, path, &err), &err);
    free(path);
    return st;
}

void gold_open(gold *f, const char *name)
{
    *f = (gold){ .name = name };
    char *file = dt_sprintf("%s.safetensors", name);
    f->st = open_file(file);
    free(file);
    const char *other = dt_st_meta(f->st, "weights");
    f->weights = other ? open_file(other) : f->st;
    if (dt_st_meta(f->st, "config"))
        f->config = gold_json(f, "config");
}

void gold_close(gold *f)
{
    if (f->weights != f->st)
        dt_st_close(&f->weights);
    dt_st_close(&f->st);
    cJSON_Delete(f->config);
    *f = (gold){ 0 };
}

const dt_st_entry *gold_entry(const gold *f, const char *fmt, ...)
{
    char name[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof(name), fmt, ap);
    va_end(ap);
    const dt_st_entry *e = dt_st_find(f->st, name);
    if (!e) {
        printf("Bail out! %s.safetensors: no tensor '%s'\n", f->name, name);
        exit(1);
    }
    return e;
}

static float *entry_f32(const dt_st_entry *e)
{
    int64_t n = dt_numel(e->dims);
    float *x = dt_alloc((size_t)n * sizeof(*x) + 1);
    void *raw = dt_alloc(e->bytes + 1);             /* data in a file may be unaligned */
    memcpy(raw, e->data, e->bytes);
    dt_convert(x, DT_F32, raw, e->dtype, n);
    free(raw);
    return x;
}

float *gold_f32(const gold *f, const char *name)
{
    return entry_f32(gold_entry(f, "%s", name));
}

cJSON *gold_json(const gold *f, const char *key)
{
    const char *text = dt_st_meta(f->st, key);
    cJSON *j = text ? cJSON_Parse(text) : NULL;
    if (!j) {
        printf("Bail out! %s.safetensors: metadata '%s' is missing or not JSON\n", f->name, key);
        exit(1);
    }
    return j;
}

int64_t gold_int(const gold *f, const char *key)
{
    cJSON *j = gold_json(f, key);
    int64_t v = (int64_t)j->valuedouble;
    cJSON_Delete(j);
    return v;
}

static int with_prefix(const dt_st *st, const dt_param *p, dt_st_entry *out, void *ctx, dt_err *err)
{
    char *name = dt_sprintf("%s%s", (const char *)ctx, p->name);
    const dt_st_entry *e = dt_st_find(st, name);
    int rc = e ? 1 : dt_err_set(err, DT_EDATA, "no tensor '%s'", name);
    if (e)
        *out = *e;
    free(name);
    return rc;
}

void gold_load(const dt_st *st, dt_params *p, const char *prefix)
{
    dt_err err = { 0 };
    must(dt_params_load(p, st, with_prefix, (void *)prefix, &err), &err);
}

void gold_channels_last(float *dst, const float *src, dt_dims s, bool back)
{
    int64_t B = s.d[0], C = s.d[1], n = s.d[2] * s.d[3];
    for (int64_t b = 0; b < B; b++)
        for (int64_t c = 0; c < C; c++)
            for (int64_t i = 0; i < n; i++) {
                int64_t torch_at = (b * C + c) * n + i, last_at = (b * n + i) * C + c;
                dst[back ? torch_at : last_at] = src[back ? last_at : torch_at];
            }
}

/* --- jobs --- */

void job_start(job *j, dt_device *dev, dt_graph *g, const char *what)
{
    dt_err err = { 0 };
    *j = (job){ .dev = dev, .g = g };
    if (dt_graph_error(g)) {
        printf("Bail out! %s: %s\n", what, dt_graph_error(g));
        exit(1);
    }
    must(dt_plan_new(&j->plan, g, dev, &err), &err);
    j->arena = dev->alloc(dev, dt_plan_bytes(j->plan));
    dt_plan_bind(j->plan, j->arena);
}

void job_stop(job *j)
{
    dt_plan_free(&j->plan);
    j->dev->free(j->dev, j->arena);
    dt_graph_free(&j->g);
    *j = (job){ 0 };
}

static dt_tensor *job_find(job *j, const char *name)
{
    dt_tensor *t = dt_find(j->g, name);
    if (!t) {
        printf("Bail out! the graph has no tensor '%s'\n", name);
        exit(1);
    }
    return t;
}

void job_write(job *j, const char *input, const float *values)
{
    dt_tensor *t = job_find(j, input);
    int64_t n = dt_numel(t->dims);
    void *data = dt_alloc((size_t)n * dt_dtype_size(t->dtype));
    dt_convert(data, t->dtype, values, DT_F32, n);
    dt_plan_write(j->plan, t, data);
    free(data);
}

void job_read(job *j, const char *name, float *values)
{
    dt_tensor *t = job_find(j, name);
    int64_t n = dt_numel(t->dims);
    void *data = dt_alloc((size_t)n * dt_dtype_size(t->dtype));
    dt_plan_read(j->plan, t, data);
    dt_convert(values, DT_F32, data, t->dtype, n);
    free(data);
}

float job_scalar(job *j, const char *name)
{
    float v;
    job_read(j, name, &v);
    return v;
}

void job_run(job *j)
{
    dt_err err = { 0 };
    must(dt_plan_run(j->plan, &err), &err);
}

/* --- results --- */

void tally_error(tally *t, const char *what, double error, double tol)
{
    double share = error / tol;
    t->n++;
    if (!(share <= 1.0)) {
        size_t used = strlen(t->notes), room = sizeof(t->notes) - used;
        int n = snprintf(t->notes + used, room, "# %s: off by %.3g, allowed %.3g\n", what, error, tol);
        if ((size_t)n >= room)
            t->notes[used] = 0;     /* whole lines only */
        t->bad++;
    }
    if (!(share <= t->worst)) {
        t->worst = share;
        snprintf(t->where, sizeof(t->where), "%s", what);
    }
}

void tally_add(tally *t, const char *what, const float *a, const float *ref, int64_t n, double floor, double tol)
{
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        diff += ((double)a[i] - ref[i]) * ((double)a[i] - ref[i]);
        norm += (double)ref[i] * ref[i];
    }
    tally_error(t, what, sqrt(diff) / fmax(sqrt(norm), floor), tol);
}

void tally_tensor(tally *t, const gold *f, const char *name, const float *a, int64_t n, double tol)
{
    const dt_st_entry *e = gold_entry(f, "%s", name);
    if (dt_numel(e->dims) != n) {
        printf("Bail out! %s.safetensors: '%s' has %lld elements, %lld are compared\n", f->name, name,
               (long long)dt_numel(e->dims), (long long)n);
        exit(1);
    }
    float *ref = entry_f32(e);
    tally_add(t, name, a, ref, n, 0, tol);
    free(ref);
}

void tally_block(tally *t, const gold *f, const dt_params *set, const float *block, int64_t n, double tol,
                 const char *fmt, ...)
{
    char key[120];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(key, sizeof(key), fmt, ap);
    va_end(ap);
    float *a = dt_alloc((size_t)n * sizeof(*a));
    set->dev->download(set->dev, a, block, n * (int64_t)sizeof(*a));
    tally_tensor(t, f, key, a, n, tol);
    free(a);
}

void tally_num(tally *t, const char *what, double a, double ref, double tol)
{
    tally_error(t, what, a == ref ? 0.0 : fabs(a - ref) / fabs(ref), tol);
}

void tap(const tally *t, const char *fmt, ...)
{
    bool ok = t->bad == 0 && t->n > 0;              /* nothing compared is nothing shown */
    va_list ap;
    va_start(ap, fmt);
    printf("%s %d - ", ok ? "ok" : "not ok", ++tests);
    vprintf(fmt, ap);
    va_end(ap);
    printf(" (%d compared, worst %.2g of the tolerance", t->n, t->worst);
    printf(t->where[0] ? " at %s)\n" : ")\n", t->where);
    fputs(t->notes, stdout);
    fflush(stdout);
    failures += !ok;
}

int tap_done(void)
{
    printf("1..%d\n", tests);
    return failures ? 1 : 0;
}
