/* params.c - flat blocks of parameters: layout, fresh values, load and save. */
#include "tensor/params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/rng.h"
#include "graph/device.h"
#include "tensor/place.h"
#include "tensor/strmap.h"

enum {
    ALIGN = 32,                 /* elements: 64 bytes in bf16; the same in all dtypes, so that layouts agree */
    TASK = 1 << 20,             /* elements that a thread converts at a time */
    STAGE = 256 << 20,          /* bytes of host memory on the way to a device that is not the CPU */
};

/* --- declaration --- */

dt_params *dt_params_new(const char *name)
{
    dt_params *p = dt_alloc(sizeof(*p));
    p->name = dt_strdup(name);
    p->index = dt_strmap_new();
    p->linear_index = dt_strmap_new();
    return p;
}

static void *dev_free(dt_params *p, void *block)
{
    if (block)
        p->dev->free(p->dev, block);
    return NULL;
}

static void free_blocks(dt_params *p)
{
    if (p->master && p->master != p->w_train)
        dev_free(p, p->master);
    p->w_train = dev_free(p, p->w_train);
    p->w_frozen = dev_free(p, p->w_frozen);
    p->grad = dev_free(p, p->grad);
    p->m = dev_free(p, p->m);
    p->v2 = dev_free(p, p->v2);
    p->ema = dev_free(p, p->ema);
    p->master = NULL;
    p->allocated = false;
}

void dt_params_free(dt_params **params)
{
    dt_params *p = *params;
    if (!p)
        return;
    free_blocks(p);
    for (int64_t i = 0; i < p->n; i++) {
        free(p->v[i]->name);
        free(p->v[i]->piece);
        free(p->v[i]);
    }
    dt_strmap *index = p->index, *linear = p->linear_index;
    dt_strmap_free(&index);
    dt_strmap_free(&linear);
    dt_st_close(&p->file);
    dt_strs_release(&p->linears);
    free(p->v);
    free(p->name);
    free(p);
    *params = NULL;
}

dt_param *dt_params_find(const dt_params *p, const char *name)
{
    int64_t i = dt_strmap_get(p->index, name);
    return i < 0 ? NULL : p->v[i];
}

dt_param *dt_params_declare(dt_params *p, const char *name, dt_dims dims, dt_init init, double scale)
{
    dt_param *old = dt_params_find(p, name);
    if (old)
        return dt_dims_same(old->dims, dims) ? old : NULL;
    dt_param *q = dt_alloc(sizeof(*q));
    *q = (dt_param){ .name = dt_strdup(name), .dims = dims, .numel = dt_numel(dims), .init = init, .scale = scale,
                     .index = (int)p->n };
    dt_grow(&p->v, &p->cap, p->n + 1, sizeof(*p->v));
    p->v[p->n] = q;
    dt_strmap_add(p->index, q->name, p->n++);
    return q;
}

void dt_params_add_linear(dt_params *p, const char *path)
{
    if (dt_strmap_get(p->linear_index, path) >= 0)
        return;
    dt_strs_add(&p->linears, path);
    dt_strmap_add(p->linear_index, p->linears.v[p->linears.n - 1], p->linears.n - 1);
}

/* --- layout --- */

static int64_t part_size(const dt_params *p, bool trainable)
{
    int64_t n = 0;
    for (int64_t i = 0; i < p->n; i++)
        if (p->v[i]->trainable == trainable && p->v[i]->place == DT_IN_BLOCK)
            n += (p->v[i]->numel + ALIGN - 1) / ALIGN * ALIGN;
    return n;
}

static bool keeps_grads(const dt_params *p)
{
    for (int64_t i = 0; i < p->n; i++)
        if (p->v[i]->trainable && !p->v[i]->update)
            return true;
    return false;
}

dt_params_bytes dt_params_size(const dt_params *p, dt_dtype dtype, unsigned flags)
{
    int64_t t = part_size(p, true), f = part_size(p, false);
    bool optim = !(flags & DT_PARAMS_NO_OPTIM);
    return (dt_params_bytes){
        .weights = (t + f) * (int64_t)dt_dtype_size(dtype) + dt_params_in_file(p),
        .grads   = keeps_grads(p) ? 4 * t : 0,
        .master  = optim && dtype != DT_F32 ? 4 * t : 0,
        .moments = optim ? 8 * t : 0,
        .ema     = flags & DT_PARAMS_EMA ? 4 * t : 0,
    };
}

/* Block of n elements, of any value; NULL for none. */
static int block(dt_params *p, void *out /* T ** */, int64_t n, size_t size, const char *role, dt_err *err)
{
    int64_t bytes = n * (int64_t)size;
    void *b = NULL;
    if (n > 0 && !(b = p->dev->alloc_params(p->dev, bytes)))
        return dt_err_set(err, DT_ENOMEM, "%s: %.2f GiB of %s do not fit on %s", p->name, (double)bytes / (1 << 30),
                          role, p->dev->name);
    memcpy(out, &b, sizeof(b));
    return 0;
}

static void point(dt_params *p)
{
    int64_t at[2] = { 0, 0 };                       /* frozen, trainable */
    size_t size = dt_dtype_size(p->dtype);
    for (int64_t i = 0; i < p->n; i++) {
        dt_param *q = p->v[i];
        q->dtype = p->dtype;
        if (q->place != DT_IN_BLOCK)
            continue;
        q->off = at[q->trainable];
        at[q->trainable] += (q->numel + ALIGN - 1) / ALIGN * ALIGN;
        q->w = (char *)(q->trainable ? p->w_train : p->w_frozen) + (size_t)q->off * size;
        if (!q->trainable)
            continue;
        q->grad   = p->grad ? p->grad + q->off : NULL;
        q->master = p->master ? p->master + q->off : NULL;
        q->m      = p->m ? p->m + q->off : NULL;
        q->v      = p->v2 ? p->v2 + q->off : NULL;
        q->ema    = p->ema ? p->ema + q->off : NULL;
    }
}

int dt_params_alloc(dt_params *p, struct dt_device *dev, dt_dtype dtype, unsigned flags, dt_err *err)
{
    bool optim = !(flags & DT_PARAMS_NO_OPTIM);
    p->dev = dev;
    p->dtype = dtype;
    p->n_train = part_size(p, true);
    p->n_frozen = part_size(p, false);
    int64_t t = p->n_train;
    int rc;
    if ((rc = block(p, &p->w_train, t, dt_dtype_size(dtype), "trainable weights", err)) < 0 ||
        (rc = block(p, &p->w_frozen, p->n_frozen, dt_dtype_size(dtype), "weights", err)) < 0 ||
        (rc = block(p, &p->grad, keeps_grads(p) ? t : 0, 4, "gradients", err)) < 0)
        goto fail;
    if (dtype == DT_F32)
        p->master = p->w_train;
    else if (optim && (rc = block(p, &p->master, t, 4, "master weights", err)) < 0)
        goto fail;
    if (optim &&
        ((rc = block(p, &p->m, t, 4, "moments", err)) < 0 || (rc = block(p, &p->v2, t, 4, "moments", err)) < 0))
        goto fail;
    if ((flags & DT_PARAMS_EMA) && (rc = block(p, &p->ema, t, 4, "moving averages", err)) < 0)
        goto fail;
    /* Padding takes part in loops over the blocks: it is zero and stays so. */
    struct { void *b; size_t size; } zero[] = {
        { p->w_train, dt_dtype_size(dtype) }, { p->grad, 4 }, { p->master, 4 }, { p->m, 4 }, { p->v2, 4 },
        { p->ema, 4 },
    };
    for (size_t i = 0; i < sizeof(zero) / sizeof(*zero); i++)
        if (zero[i].b)
            dev->zero(dev, zero[i].b, t * (int64_t)zero[i].size);
    point(p);
    p->allocated = true;
    return 0;
fail:
    free_blocks(p);
    return rc;
}

/* --- values --- */

/* Host values to all copies of q.  tmp holds as many values as q. */
static void store(dt_params *p, dt_param *q, int64_t n, const float *host, void *tmp)
{
    dt_device *d = p->dev;
    if (q->master)
        d->upload(d, q->master, host, 4 * n);
    if (q->ema)
        d->upload(d, q->ema, host, 4 * n);
    if ((void *)q->master == q->w)
        return;
    dt_convert(tmp, q->dtype, host, DT_F32, n);
    d->upload(d, q->w, tmp, n * (int64_t)dt_dtype_size(q->dtype));
}

void dt_params_sync(dt_params *p)
{
    if (p->master && p->master != p->w_train)
        p->dev->flat->convert(p->dev, p->w_train, p->dtype, p->master, DT_F32, p->n_train);
}

static void fresh(float *x, const dt_param *q, uint64_t seed)
{
    /* A tensor's draws are named by its name: adding or freezing others changes nothing. */
    uint64_t id = XXH3_64bits(q->name, strlen(q->name));
    uint32_t when = (uint32_t)(id >> 32), item = (uint32_t)id;
    double fan_in = q->scale;
    if (q->init == DT_INIT_FAN_IN && fan_in <= 0) {
        fan_in = 1;
        for (int i = 1; i < q->dims.nd; i++)
            fan_in *= (double)q->dims.d[i];
    }
    double bound = 1 / sqrt(fan_in);
    dt_rng r = dt_rng_make(seed, DT_RNG_INIT, when, item);
    switch (q->init) {
    case DT_INIT_ZERO:
        memset(x, 0, (size_t)q->numel * 4);
        break;
    case DT_INIT_ONE:
        for (int64_t i = 0; i < q->numel; i++)
            x[i] = 1;
        break;
    case DT_INIT_FAN_IN:
        for (int64_t i = 0; i < q->numel; i++)
            x[i] = (float)((2 * dt_rng_uniform(&r) - 1) * bound);
        break;
    case DT_INIT_NORMAL:
        dt_rng_fill_normal(x, q->numel, seed, DT_RNG_INIT, when, item);
        for (int64_t i = 0; i < q->numel; i++)
            x[i] *= (float)q->scale;
        break;
    }
}

int dt_params_init(dt_params *p, uint64_t seed, dt_err *err)
{
    const dt_param *failed = NULL;
#pragma omp parallel for schedule(dynamic) if (p->dev->kind == DT_CPU)
    for (int64_t i = 0; i < p->n; i++) {
        dt_param *q = p->v[i];
        float *x = dt_try_alloc((size_t)q->numel * 8);      /* the values, and room for them in the type of w */
        if (x) {
            fresh(x, q, seed);
            store(p, q, q->numel, x, x + q->numel);
        } else {
#pragma omp atomic write
            failed = q;
        }
        free(x);
    }
    return failed ? dt_err_set(err, DT_ENOMEM, "no memory for fresh values of '%s'", failed->name) : 0;
}

/* --- load --- */

struct task {                   /* some elements of one piece of one parameter */
    dt_param   *q;
    const void *src;
    dt_dtype    type;
    int64_t     at, n;          /* in q */
};

struct tasks {
    struct task *v;
    int64_t      n, cap;
};

static void add_tasks(struct tasks *t, dt_param *q, const dt_st_entry *piece, int k)
{
    int64_t at = 0;
    for (int i = 0; i < k; i++) {
        int64_t n = dt_numel(piece[i].dims), size = (int64_t)dt_dtype_size(piece[i].dtype);
        for (int64_t j = 0; j < n; j += TASK) {
            dt_grow(&t->v, &t->cap, t->n + 1, sizeof(*t->v));
            t->v[t->n++] = (struct task){ q, (const char *)piece[i].data + j * size, piece[i].dtype, at + j,
                                          n - j < TASK ? n - j : TASK };
        }
        at += n;
    }
}

/* Makes the pages of fresh memory at once: one fault for each of them would take longer than filling them. */
static void make_pages(void *p, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)p + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)p + bytes) / page * page;
    if (end > from)
        madvise((void *)from, end - from, MADV_POPULATE_WRITE);     /* before Linux 5.14 it fails, and
                                                                       they come one by one */
}

/* What was read is forgotten at once: file and copy are not in memory together. */
static void load_cpu(const dt_st *st, const struct tasks *t)
{
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < t->n; i++) {
        const struct task *k = &t->v[i];
        dt_param *q = k->q;
        size_t size = dt_dtype_size(q->dtype);
        make_pages((char *)q->w + (size_t)k->at * size, (size_t)k->n * size);
        dt_convert((char *)q->w + (size_t)k->at * size, q->dtype, k->src, k->type, k->n);
        if (q->master && (void *)q->master != q->w)
            dt_convert(q->master + k->at, DT_F32, k->src, k->type, k->n);
        if (q->ema)
            dt_convert(q->ema + k->at, DT_F32, k->src, k->type, k->n);
        dt_st_forget(st, k->src, (size_t)k->n * dt_dtype_size(k->type));
    }
}

/* Through host memory: threads convert a stage full, then it is uploaded.  `role` picks the copy. */
static int load_stage(dt_params *p, const dt_st *st, const struct tasks *t, int role, dt_err *err)
{
    size_t size = role ? 4 : dt_dtype_size(p->dtype), slot = TASK * size;
    int64_t per = STAGE / (int64_t)slot;
    char *stage = dt_try_alloc(STAGE);
    if (!stage)
        return dt_err_set(err, DT_ENOMEM, "%s: no memory to load through", p->name);
    for (int64_t first = 0; first < t->n; first += per) {
        int64_t n = t->n - first < per ? t->n - first : per;
#pragma omp parallel for schedule(dynamic)
        for (int64_t i = 0; i < n; i++) {
            const struct task *k = &t->v[first + i];
            dt_convert(stage + (size_t)i * slot, role ? DT_F32 : p->dtype, k->src, k->type, k->n);
            dt_st_forget(st, k->src, (size_t)k->n * dt_dtype_size(k->type));
        }
        for (int64_t i = 0; i < n; i++) {
            const struct task *k = &t->v[first + i];
            char *const dst[] = { k->q->w, (char *)k->q->master, (char *)k->q->ema };
            if (dst[role])
                p->dev->upload(p->dev, dst[role] + (size_t)k->at * size, stage + (size_t)i * slot,
                               k->n * (int64_t)size);
        }
        int rc = p->dev->sync(p->dev, err);
        if (rc < 0) {
            free(stage);
            return rc;
        }
    }
    free(stage);
    return 0;
}

int dt_params_load(dt_params *p, const dt_st *st, dt_rename_fn rename, void *ctx, dt_err *err)
{
    struct tasks t = { 0 };
    int rc = 0;
    for (int64_t i = 0; i < p->n && rc >= 0; i++) {
        dt_st_entry piece[DT_MAX_PIECES];
        if (p->v[i]->place != DT_IN_BLOCK)
            continue;
        if ((rc = dt_param_find(p->v[i], st, rename, ctx, piece, err)) < 0)
            goto out;
        add_tasks(&t, p->v[i], piece, rc);
    }
    if (p->dev->kind == DT_CPU) {
        load_cpu(st, &t);
        rc = 0;
        goto out;
    }
    rc = load_stage(p, st, &t, 0, err);
    if (rc == 0 && p->master && (void *)p->master != p->w_train)
        rc = load_stage(p, st, &t, 1, err);
    if (rc == 0 && p->ema)
        rc = load_stage(p, st, &t, 2, err);
out:
    free(t.v);
    return rc;
}

/* --- save --- */

/* The copy of q that counts, and its type. */
static const void *best(const dt_param *q, bool use_ema, dt_dtype *type)
{
    *type = DT_F32;
    if (use_ema && q->ema)
        return q->ema;
    if (q->master)
        return q->master;
    *type = q->dtype;
    return q->w;
}

int dt_params_read(const dt_params *p, const dt_param *q, bool use_ema, float *out, dt_err *err)
{
    dt_dtype type;
    if (q->place == DT_FETCHED) {
        dt_param_bring(q, out, DT_F32);
        return 0;
    }
    const void *src = best(q, use_ema, &type);
    void *tmp = out;
    if (type != DT_F32 && !(tmp = dt_try_alloc((size_t)q->numel * dt_dtype_size(type))))
        return dt_err_set(err, DT_ENOMEM, "no memory to read '%s'", q->name);
    p->dev->download(p->dev, tmp, src, q->numel * (int64_t)dt_dtype_size(type));
    if (tmp != out) {
        dt_convert(out, DT_F32, tmp, type, q->numel);
        free(tmp);
    }
    return p->dev->sync(p->dev, err);
}

int dt_params_write(dt_params *p, dt_param *q, const float *values, dt_err *err)
{
    if (q->place != DT_IN_BLOCK)
        return dt_err_set(err, DT_EFAIL, "'%s' lies in its file and cannot be written", q->name);
    void *tmp = dt_try_alloc((size_t)q->numel * 4);
    if (!tmp)
        return dt_err_set(err, DT_ENOMEM, "no memory to write '%s'", q->name);
    store(p, q, q->numel, values, tmp);
    int rc = p->dev->sync(p->dev, err);
    free(tmp);
    return rc;
}

struct saver {
    const dt_params *p;
    dt_dtype dtype;
    bool     use_ema;
    void    *host, *out;        /* of the largest parameter: as it is, and as saved */
};

static int fetch_param(void *ctx, int64_t i, const void **data, dt_err *err)
{
    struct saver *s = ctx;
    dt_device *d = s->p->dev;
    const dt_param *q = s->p->v[i];
    const void *src = s->out;
    dt_dtype type;
    if (q->place == DT_FETCHED) {
        dt_param_bring(q, s->out, s->dtype);
        type = q->piece[0].dtype;
    } else {
        src = best(q, s->use_ema, &type);
        if (d->kind != DT_CPU) {
            d->download(d, s->host, src, q->numel * (int64_t)dt_dtype_size(type));
            src = s->host;
        }
        if (type != s->dtype) {
            dt_convert(s->out, s->dtype, src, type, q->numel);
            src = s->out;
        }
    }
    if (type != s->dtype && !dt_finite(s->out, s->dtype, q->numel))
        return dt_err_set(err, DT_ENAN, "'%s' is not finite in %s, or beyond its range", q->name,
                          dt_dtype_name(s->dtype));
    *data = src;
    return d->sync(d, err);
}

int dt_params_save(const dt_params *p, const char *path, dt_dtype dtype, bool use_ema, const dt_st_kv *meta,
                   dt_err *err)
{
    struct saver s = { .p = p, .dtype = dtype, .use_ema = use_ema };
    dt_st_entry *e = dt_alloc((size_t)p->n * sizeof(*e));
    int64_t most = 1;
    int rc;
    for (int64_t i = 0; i < p->n; i++) {
        e[i] = (dt_st_entry){ .name = p->v[i]->name, .dtype = dtype, .dims = p->v[i]->dims };
        most = p->v[i]->numel > most ? p->v[i]->numel : most;
    }
    s.host = dt_try_alloc((size_t)most * 4);
    s.out = dt_try_alloc((size_t)most * dt_dtype_size(dtype));
    if (s.host && s.out)
        rc = dt_st_write_from(path, e, p->n, meta, fetch_param, &s, err);
    else
        rc = dt_err_set(err, DT_ENOMEM, "%s: no memory to save through", path);
    free(s.host);
    free(s.out);
    free(e);
    return rc;
}
