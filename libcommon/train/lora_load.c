/* lora_load.c - reading LoRA files of any of the layouts that FLUX's come in.
 *
 * A key is <prefixes><module><half>.  The module may be in diffusers' names or the single file's, with dots or
 * underscores: both are put into one table with all dots as underscores.  A pair on a fused matrix is taken apart
 * (lora_save.c has the layout): by blocks if up is block-diagonal, else every part gets all of down
 * and its rows of up. */
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/json.h"
#include "tensor/strmap.h"
#include "train/lora.h"

struct module {                     /* a name in the table, and the layers it stands for */
    char   *key;                    /* dots are underscores */
    int64_t part[DT_MAX_PIECES];    /* layer + 1, 0 = none */
    int     parts;
    bool    swap;
};

struct pair {                       /* what a file has for one module */
    char *stem;
    const dt_st_entry *down, *up, *alpha;
};

struct layer {                      /* result: fp32 [rank, in], [out, rank]; NULL = none */
    float  *a, *b;
    int64_t rank;
    double  scale;
};

struct loader {
    dt_params   *base;
    const dt_lora_part *part;       /* of base */
    const dt_st *st;
    cJSON       *config;            /* peft's settings, or NULL */
    bool         own_config;        /* they are of this component only */
    struct module *module;
    int64_t      nmodule, cap_module;
    dt_strmap   *modules, *stems;
    struct pair *pair;
    int64_t      npair, cap_pair;
    struct layer *layer;            /* of each linear layer of base */
};

/* --- the table of modules --- */

static void underscores(char *s)
{
    for (; *s; s++)
        if (*s == '.')
            *s = '_';
}

static struct module *module_of(struct loader *l, const char *name)
{
    char *key = dt_strdup(name);
    underscores(key);
    int64_t k = dt_strmap_get(l->modules, key);
    if (k >= 0) {
        free(key);
        return &l->module[k];
    }
    dt_grow(&l->module, &l->cap_module, l->nmodule + 1, sizeof(*l->module));
    struct module *m = &l->module[l->nmodule];
    *m = (struct module){ .key = key, .parts = 1 };
    dt_strmap_add(l->modules, key, l->nmodule++);
    return m;
}

static void build_table(struct loader *l)
{
    const dt_strs *linears = &l->base->linears;
    dt_lora_naming naming = l->part->naming;
    dt_other_name o;
    for (int64_t i = 0; i < linears->n; i++) {
        module_of(l, linears->v[i])->part[0] = i + 1;
        if (l->part->old && l->part->old(linears->v[i], &o))
            module_of(l, o.name)->part[0] = i + 1;
        if (!naming || !naming(linears->v[i], &o))
            continue;
        struct module *m = module_of(l, o.name);
        m->parts = o.parts;
        m->swap = o.swap;
        m->part[o.part] = i + 1;
    }
}

static const struct module *look_up(const struct loader *l, const char *before, const char *name)
{
    char *key = dt_sprintf("%s%s", before, name);
    underscores(key);
    int64_t k = dt_strmap_get(l->modules, key);
    free(key);
    return k < 0 ? NULL : &l->module[k];
}

/* What follows the first of the prefixes that s begins with; NULL if none. */
static const char *behind(const char *s, const char *const *prefix)
{
    while (*prefix && strncmp(s, *prefix, strlen(*prefix)))
        prefix++;
    return *prefix ? s + strlen(*prefix) : NULL;
}

static const struct module *find_module(const struct loader *l, const char *stem)
{
    static const char *const any[] = { "base_model.model.", "transformer.", NULL };
    const struct module *m = NULL;
    for (const char *s = stem, *next; s && !m; s = next) {
        if (!(m = look_up(l, "", s)) && l->part->implied)
            m = look_up(l, l->part->implied, s);
        if (!(next = behind(s, l->part->prefixes)))
            next = behind(s, any);
    }
    return m;
}

/* --- keys of the file --- */

enum half { DOWN, UP, ALPHA };

static const struct { const char *end; enum half half; } ends[] = {
    { ".lora_A.weight", DOWN },         { ".lora_B.weight", UP },
    { ".lora_A.default.weight", DOWN }, { ".lora_B.default.weight", UP },
    { ".lora_down.weight", DOWN },      { ".lora_up.weight", UP },
    { ".lora.down.weight", DOWN },      { ".lora.up.weight", UP },
    { "_lora.down.weight", DOWN },      { "_lora.up.weight", UP },
    { ".lora_linear_layer.down.weight", DOWN }, { ".lora_linear_layer.up.weight", UP },
    { ".lora_A", DOWN },                { ".lora_B", UP },
    { ".alpha", ALPHA },
};

static struct pair *pair_of(struct loader *l, const char *name, size_t n)
{
    char *stem = dt_sprintf("%.*s", (int)n, name);
    int64_t k = dt_strmap_get(l->stems, stem);
    if (k >= 0) {
        free(stem);
        return &l->pair[k];
    }
    dt_grow(&l->pair, &l->cap_pair, l->npair + 1, sizeof(*l->pair));
    l->pair[l->npair] = (struct pair){ .stem = stem };
    dt_strmap_add(l->stems, stem, l->npair);
    return &l->pair[l->npair++];
}

/* False if the key has no end that we know. */
static bool take_key(struct loader *l, const dt_st_entry *e)
{
    size_t n = strlen(e->name);
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        size_t k = strlen(ends[i].end);
        if (n <= k || strcmp(e->name + n - k, ends[i].end))
            continue;
        struct pair *p = pair_of(l, e->name, n - k);
        *(ends[i].half == DOWN ? &p->down : ends[i].half == UP ? &p->up : &p->alpha) = e;
        return true;
    }
    return false;
}

/* What the names say is for this network. */
static int take_keys(struct loader *l, dt_err *err)
{
    int64_t n = 0;
    const char *first = NULL;
    for (int64_t i = 0; i < dt_st_count(l->st); i++) {
        const dt_st_entry *e = dt_st_at(l->st, i);
        if (dt_lora_part_of(e->name) != l->part || take_key(l, e))
            continue;
        first = first ? first : e->name;
        n++;
    }
    if (n)
        return dt_err_set(err, DT_EDATA, "%s: %lld tensors are no part of a LoRA that can be read here, first '%s'",
                          dt_st_path(l->st), (long long)n, first);
    n = 0;
    for (int64_t i = 0; i < l->npair; i++)
        if (!find_module(l, l->pair[i].stem)) {
            first = first ? first : l->pair[i].stem;
            n++;
        }
    if (n)
        return dt_err_set(err, DT_EDATA, "%s: %lld of %lld modules are no linear layers of %s, first '%s'",
                          dt_st_path(l->st), (long long)n, (long long)l->npair, l->base->name, first);
    return 0;
}

/* --- scale --- */

/* Value of "<component>.<key>" in lora_adapter_metadata, of "<key>" in adapter_config.json. */
static const cJSON *config_item(const struct loader *l, const char *key)
{
    char name[128];
    snprintf(name, sizeof(name), "%s.%s", l->base->name, key);
    return cJSON_GetObjectItemCaseSensitive(l->config, l->own_config ? key : name);
}

/* diffusers puts peft's settings into the file, peft itself beside it. */
static int read_config(struct loader *l, const char *path, dt_err *err)
{
    const char *text = dt_st_meta(l->st, "lora_adapter_metadata"), *base = dt_path_base(path);
    if (text && !(l->config = cJSON_Parse(text)))
        return dt_err_set(err, DT_EDATA, "%s: lora_adapter_metadata is not valid JSON", path);
    if (text || strcmp(base, "adapter_model.safetensors"))
        return 0;
    char *beside = dt_sprintf("%.*sadapter_config.json", (int)(base - path), path);
    int rc = dt_exists(beside) ? dt_json_read(&l->config, beside, 1 << 20, err) : 0;
    l->own_config = true;
    free(beside);
    return rc;
}

/* peft's patterns are regular expressions for the end of a path; those that files have are plain paths, with '^',
 * '$' or '\' at most. */
static bool pattern_matches(const char *pattern, const char *path)
{
    char plain[256];
    size_t n = 0;
    bool whole = *pattern == '^';
    for (const char *c = pattern + whole; *c && n + 1 < sizeof(plain); c++)
        if (*c != '\\' && *c != '$')
            plain[n++] = *c;
    plain[n] = '\0';
    size_t k = strlen(path);
    return k >= n && !strcmp(path + k - n, plain) && (k == n || (!whole && path[k - n - 1] == '.'));
}

static double alpha_of(const struct loader *l, const struct pair *p, const char *path, int64_t rank)
{
    float alpha;
    if (p->alpha) {
        dt_convert(&alpha, DT_F32, p->alpha->data, p->alpha->dtype, 1);
        return alpha;
    }
    const cJSON *j, *whole = config_item(l, "lora_alpha"), *each = config_item(l, "alpha_pattern");
    cJSON_ArrayForEach(j, each)
        if (cJSON_IsNumber(j) && j->string && pattern_matches(j->string, path))
            whole = j;
    double a = cJSON_IsNumber(whole) ? whole->valuedouble : (double)rank;
    return cJSON_IsTrue(config_item(l, "use_rslora")) ? a * sqrt((double)rank) : a;
}

/* --- values --- */

/* [rows, cols], trailing ones (1x1 convolutions) ignored. */
static int matrix(const dt_st_entry *e, int64_t *rows, int64_t *cols, dt_err *err)
{
    int nd = e->dims.nd;
    while (nd > 2 && e->dims.d[nd - 1] == 1)
        nd--;
    if (nd != 2 || e->dtype >= DT_I64 || e->dims.d[0] < 1 || e->dims.d[1] < 1)
        return dt_err_set(err, DT_EDATA, "%s: '%s' is not a matrix of floats", e->file, e->name);
    *rows = e->dims.d[0];
    *cols = e->dims.d[1];
    return 0;
}

static float *as_f32(const dt_st_entry *e, dt_err *err)
{
    int64_t n = dt_numel(e->dims);
    float *x = dt_try_alloc((size_t)n * 4);
    if (x)
        dt_convert(x, DT_F32, e->data, e->dtype, n);
    else
        dt_err_set(err, DT_ENOMEM, "%s: no memory to load it", e->file);
    return x;
}

static bool all_zero(const float *x, int64_t rows, int64_t cols, int64_t stride)
{
    for (int64_t y = 0; y < rows; y++)
        for (int64_t i = 0; i < cols; i++)
            if (x[y * stride + i] != 0)
                return false;
    return true;
}

struct fused {                      /* a pair in fp32, and the rows of its parts */
    float  *down, *up;
    int64_t r, in, out, rows[DT_MAX_PIECES];
};

/* Zero outside the diagonal blocks? */
static bool is_diagonal(const struct fused *f, int parts)
{
    if (parts == 1 || f->r % parts)
        return false;
    int64_t slot = f->r / parts, row = 0;
    for (int i = 0; i < parts; row += f->rows[i++]) {
        const float *x = f->up + row * f->r;
        if (!all_zero(x, f->rows[i], slot * i, f->r) ||
            !all_zero(x + slot * (i + 1), f->rows[i], f->r - slot * (i + 1), f->r))
            return false;
    }
    return true;
}

/* Part i of f, of rank n at most from column `at`. */
static int take_part(struct layer *out, const struct fused *f, int i, int64_t at, int64_t n, double scale, dt_err *err)
{
    int64_t row = 0;
    for (int k = 0; k < i; k++)
        row += f->rows[k];
    const float *down = f->down + at * f->in, *up = f->up + row * f->r + at;
    while (n && n < f->r && all_zero(down + (n - 1) * f->in, 1, f->in, f->in) &&
           all_zero(up + n - 1, f->rows[i], 1, f->r))
        n--;                                        /* filled up to the rank of the others */
    if (!n)
        return 0;
    out->a = dt_try_alloc((size_t)(n * f->in) * 4);
    out->b = dt_try_alloc((size_t)(f->rows[i] * n) * 4);
    if (!out->a || !out->b)
        return dt_err_set(err, DT_ENOMEM, "no memory to load a LoRA");
    memcpy(out->a, down, (size_t)(n * f->in) * 4);
    for (int64_t y = 0; y < f->rows[i]; y++)
        memcpy(out->b + y * n, up + y * f->r, (size_t)n * 4);
    out->rank = n;
    out->scale = scale;
    return 0;
}

static int check_dims(const struct loader *l, const struct module *m, const struct pair *p, struct fused *f,
                      dt_err *err)
{
    int64_t r = 0, in = 0, out = 0;
    int rc;
    if ((rc = matrix(p->down, &f->r, &f->in, err)) < 0 || (rc = matrix(p->up, &f->out, &r, err)) < 0)
        return rc;
    const char *path = "";
    for (int i = 0; i < m->parts; i++) {
        if (!m->part[i])
            return dt_err_set(err, DT_EDATA, "%s: '%s' is on layers that %s has not", p->down->file, p->stem,
                              l->base->name);
        const dt_param *w = dt_lora_weight(l->base, l->base->linears.v[m->part[i] - 1]);
        f->rows[i] = w->dims.d[0];
        in = w->dims.d[1];
        out += f->rows[i];
        path = l->base->linears.v[m->part[i] - 1];
        if (l->layer[m->part[i] - 1].a)
            return dt_err_set(err, DT_EDATA, "%s: layer '%s' is adapted twice, again by '%s'", p->down->file, path,
                              p->stem);
    }
    if (f->r != r || f->in != in || f->out != out)
        return dt_err_set(err, DT_EDATA, "%s: '%s' is [%lld, %lld] and [%lld, %lld], but layer '%s' is [%lld, %lld]",
                          p->down->file, p->stem, (long long)f->r, (long long)f->in, (long long)f->out, (long long)r,
                          path,
                          (long long)out, (long long)in);
    return 0;
}

static int take_pair(struct loader *l, const struct pair *p, dt_err *err)
{
    const char *file = dt_st_path(l->st);
    if (!p->down || !p->up)
        return dt_err_set(err, DT_EDATA, "%s: '%s' has no %s matrix", file, p->stem, p->down ? "up" : "down");
    if (p->alpha && (dt_numel(p->alpha->dims) != 1 || p->alpha->dtype >= DT_I64))
        return dt_err_set(err, DT_EDATA, "%s: '%s' is not a number", file, p->alpha->name);
    const struct module *m = find_module(l, p->stem);
    struct fused f = { 0 };
    int rc = check_dims(l, m, p, &f, err);
    if (rc < 0)
        return rc;
    f.down = as_f32(p->down, err);
    f.up = as_f32(p->up, err);
    if (!f.down || !f.up) {
        rc = DT_ENOMEM;
        goto out;
    }
    double scale = alpha_of(l, p, l->base->linears.v[m->part[0] - 1], f.r) / (double)f.r;
    if (!isfinite(scale)) {
        rc = dt_err_set(err, DT_EDATA, "%s: the alpha of '%s' is not finite", file, p->stem);
        goto out;
    }
    if (m->swap)
        dt_lora_swap_halves(f.up, f.out, f.r);
    bool diagonal = is_diagonal(&f, m->parts);
    int64_t n = diagonal ? f.r / m->parts : f.r;
    for (int i = 0; i < m->parts && rc == 0; i++)
        rc = take_part(&l->layer[m->part[i] - 1], &f, i, diagonal ? n * i : 0, n, scale, err);
out:
    free(f.down);
    free(f.up);
    return rc;
}

/* --- opening --- */

static dt_lora *make_lora(struct loader *l)
{
    const dt_strs *linears = &l->base->linears;
    dt_lora *o = dt_lora_make(l->base, l->part->naming);
    o->values = dt_alloc((size_t)(2 * linears->n) * sizeof(*o->values));
    for (int64_t i = 0; i < linears->n; i++) {
        struct layer *y = &l->layer[i];
        if (!y->a)
            continue;
        o->values[2 * o->n] = y->a;
        o->values[2 * o->n + 1] = y->b;
        y->a = y->b = NULL;
        dt_lora_add(o, linears->v[i], y->rank, y->scale);
        dt_strs_add(&o->targets, linears->v[i]);
        if (y->rank > o->rank) {
            o->rank = y->rank;
            o->alpha = y->scale * (double)y->rank;
        }
    }
    bool text = l->part != dt_lora_parts;
    char *line = dt_sprintf("%s: %lld layers%s%s, rank %lld, alpha %g", dt_st_path(l->st), (long long)o->n,
                            text ? " of " : "", text ? l->base->name : "", (long long)o->rank, o->alpha);
    dt_strs_add(&o->report, line);
    free(line);
    return o;
}

static void release(struct loader *l)
{
    for (int64_t i = 0; i < l->nmodule; i++)
        free(l->module[i].key);
    for (int64_t i = 0; i < l->npair; i++)
        free(l->pair[i].stem);
    for (int64_t i = 0; l->layer && i < l->base->linears.n; i++) {
        free(l->layer[i].a);
        free(l->layer[i].b);
    }
    dt_strmap_free(&l->modules);
    dt_strmap_free(&l->stems);
    cJSON_Delete(l->config);
    free(l->module);
    free(l->pair);
    free(l->layer);
}

/* *out is NULL if the file has nothing for base. */
static int open_one(dt_lora **out, dt_params *base, const dt_st *st, dt_err *err)
{
    struct loader l = { .base = base, .part = dt_lora_part_named(base->name), .st = st, .modules = dt_strmap_new(),
                        .stems = dt_strmap_new() };
    l.layer = dt_alloc((size_t)(base->linears.n + 1) * sizeof(*l.layer));
    *out = NULL;
    build_table(&l);
    int rc = read_config(&l, dt_st_path(st), err);
    if (rc == 0)
        rc = take_keys(&l, err);
    for (int64_t i = 0; i < l.npair && rc == 0; i++)
        rc = take_pair(&l, &l.pair[i], err);
    if (rc == 0 && l.npair)
        *out = make_lora(&l);
    if (*out && !(*out)->n) {
        dt_lora_free(out);
        rc = dt_err_set(err, DT_EDATA, "%s: all of its matrices are zero", dt_st_path(st));
    }
    release(&l);
    return rc;
}

/* Tensors for a network that is not among those of base. */
static int check_parts(const dt_st *st, dt_params *const *base, int n, dt_err *err)
{
    int64_t lost = 0;
    const char *first = NULL, *name = NULL;
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        const dt_lora_part *p = dt_lora_part_of(dt_st_at(st, i)->name);
        int k = 0;
        while (k < n && !(base[k] && dt_lora_part_named(base[k]->name) == p))
            k++;
        if (k < n)
            continue;
        first = lost++ ? first : dt_st_at(st, i)->name;
        name = lost > 1 ? name : p->name;
    }
    return lost ? dt_err_set(err, DT_EDATA, "%s: %lld of its tensors are for %s, which is not here, first '%s'",
                             dt_st_path(st), (long long)lost, name, first) : 0;
}

int dt_lora_open_parts(dt_lora **out, dt_params *const *base, int n, const char *path, dt_err *err)
{
    dt_st *st = NULL;
    bool any = false;
    memset(out, 0, (size_t)n * sizeof(*out));
    int rc = dt_st_open(&st, path, err);
    if (rc == 0)
        rc = check_parts(st, base, n, err);
    for (int i = 0; i < n && rc == 0; i++) {
        if (base[i])
            rc = open_one(&out[i], base[i], st, err);
        any |= out[i] != NULL;
    }
    if (rc == 0 && !any)
        rc = dt_err_set(err, DT_EDATA, "%s: holds no LoRA", path);
    for (int i = 0; i < n && rc < 0; i++)
        dt_lora_free(&out[i]);
    dt_st_close(&st);
    return rc;
}

int dt_lora_fill(dt_lora *l, dt_err *err)
{
    enum { TRIM = 1 << 20 };                    /* bytes that may be free without being given back */
    int64_t freed = 0;
    for (int64_t i = 0; i < 2 * l->n && l->values; i++) {
        dt_param *to = i % 2 ? l->v[i / 2].b : l->v[i / 2].a;
        int rc = dt_params_write(l->params, to, l->values[i], err);
        if (rc < 0)
            return rc;
        free(l->values[i]);
        l->values[i] = NULL;
        freed += to->numel * (int64_t)sizeof(float);
        if (freed >= TRIM) {                    /* small ones lie among what stays */
            malloc_trim(0);
            freed = 0;
        }
    }
    free(l->values);
    l->values = NULL;
    return 0;
}

int64_t dt_lora_held(const dt_lora *l)
{
    int64_t floats = 0;
    for (int64_t i = 0; l && l->values && i < l->n; i++)
        floats += l->v[i].a->numel + l->v[i].b->numel;
    return floats * (int64_t)sizeof(float);
}
