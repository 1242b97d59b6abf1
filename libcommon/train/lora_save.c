/* lora_save.c - LoRA files.
 *
 * kohya's names are those of the single file, where q, k and v (and the MLP of a single block) are one
 * matrix.  Adapters of such parts become one of rank parts * r whose up matrix is block-diagonal, with zeros for
 * a part that has none:
 *
 *   down [parts r, in] = [A_0; A_1; ...]        up [sum out, parts r] = diag(B_0, B_1, ...)
 *
 * unless all parts share one A: then down = A, up = [B_0; B_1; ...], rank r. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "tensor/strmap.h"
#include "train/lora.h"

const char *const dt_lora_layouts[] = { "comfy", "peft", "kohya", NULL };

struct unit {                       /* one down/up pair of the file */
    const dt_lora *l;
    const dt_adapter *part[DT_MAX_PIECES];      /* NULL: a part of a fused matrix without adapter */
    int64_t rows[DT_MAX_PIECES];    /* of each part's weight */
    int     parts;
    bool    swap, shared;
    char   *stem;
    int64_t r, in, out;             /* of the pair; each part has r / parts, or r when shared */
    double  scale;
};

struct saver {
    const dt_lora *const *l;        /* [nl], NULL = none */
    int      nl;
    dt_dtype dtype;
    bool     use_ema;
    struct unit *u;
    int64_t  n;
    float   *down, *up, *half;      /* of the largest unit */
    float    alpha;
    void    *out;
};

/* --- units --- */

static struct unit *plain_unit(struct unit *u, const dt_lora *l, const dt_adapter *a, const char *before)
{
    *u = (struct unit){ .l = l, .part = { a }, .rows = { a->b->dims.d[0] }, .parts = 1, .r = a->rank,
                        .in = a->a->dims.d[1], .out = a->b->dims.d[0], .scale = a->scale,
                        .stem = dt_sprintf("%s%s", before, a->path) };
    return u;
}

static char *kohya_stem(const dt_lora *l, const char *name)
{
    char *s = dt_sprintf("%s%s", dt_lora_part_named(l->base->name)->kohya, name);
    for (char *c = s; *c; c++)
        if (*c == '.')
            *c = '_';
    return s;
}

/* Output rows of the parts of the fused matrix `name`, from the model: also of those without adapter. */
static void part_rows(const dt_lora *l, struct unit *u, const char *name)
{
    const dt_strs *linears = &l->base->linears;
    dt_other_name o;
    for (int64_t i = 0; i < linears->n; i++)
        if (l->naming(linears->v[i], &o) && !strcmp(o.name, name))
            u->rows[o.part] = dt_lora_weight(l->base, linears->v[i])->dims.d[0];
}

/* Adds adapter a to the unit of its single-file name, which `index` finds. */
static void kohya_unit(struct saver *s, dt_strmap *index, const dt_lora *l, const dt_adapter *a)
{
    dt_other_name o;
    if (!l->naming || !l->naming(a->path, &o)) {
        o = (dt_other_name){ .parts = 1 };
        snprintf(o.name, sizeof(o.name), "%s", a->path);
    }
    char *stem = kohya_stem(l, o.name);
    int64_t k = dt_strmap_get(index, stem);
    if (k >= 0) {
        s->u[k].part[o.part] = a;
        free(stem);
        return;
    }
    struct unit *u = plain_unit(&s->u[s->n], l, a, "");
    free(u->stem);
    u->stem = stem;
    u->swap = o.swap;
    u->parts = o.parts;
    u->part[0] = NULL;
    u->part[o.part] = a;
    if (o.parts > 1)
        part_rows(l, u, o.name);
    dt_strmap_add(index, u->stem, s->n++);
}

static int read_half(const struct saver *s, const struct unit *u, const dt_param *q, float *out, dt_err *err)
{
    return dt_params_read(u->l->params, q, s->use_ema, out, err);
}

/* All parts there, of one scale and one A. */
static int find_shared(const struct saver *s, struct unit *u, dt_err *err)
{
    const dt_adapter *first = u->part[0];
    for (int i = 0; i < u->parts; i++)
        if (!u->part[i] || u->part[i]->rank != first->rank || u->part[i]->scale != first->scale)
            return 0;
    size_t n = (size_t)first->a->numel * 4;
    float *a = dt_alloc(2 * n), *b = a + first->a->numel;
    int rc = read_half(s, u, first->a, a, err);
    bool same = true;
    for (int i = 1; i < u->parts && rc == 0 && same; i++) {
        rc = read_half(s, u, u->part[i]->a, b, err);
        same = rc == 0 && !memcmp(a, b, n);
    }
    u->shared = same;
    free(a);
    return rc;
}

/* Rank, rows and scale of a fused unit. */
static int finish_unit(const struct saver *s, struct unit *u, bool values, dt_err *err)
{
    if (u->parts == 1)
        return 0;
    int rc = values ? find_shared(s, u, err) : 0;
    int64_t most = 0;
    u->out = 0;
    u->scale = 0;
    for (int i = 0; i < u->parts; i++) {
        u->out += u->rows[i];
        if (!u->part[i])
            continue;
        most = u->part[i]->rank > most ? u->part[i]->rank : most;
        if (u->scale == 0)
            u->scale = u->part[i]->scale;
    }
    u->r = u->shared ? most : most * u->parts;
    return rc;
}

static void add_units(struct saver *s, dt_strmap *index, const dt_lora *l, enum dt_lora_layout layout)
{
    char *peft = dt_sprintf("%s.", l->base->name);
    const char *before = layout == DT_LORA_PEFT ? peft : dt_lora_part_named(l->base->name)->comfy;
    for (int64_t i = 0; i < l->n; i++) {
        if (layout == DT_LORA_KOHYA)
            kohya_unit(s, index, l, &l->v[i]);
        else
            plain_unit(&s->u[s->n++], l, &l->v[i], before);
    }
    free(peft);
}

/* `values`: those of the adapters are there to be looked at. */
static int make_units(struct saver *s, enum dt_lora_layout layout, bool values, dt_err *err)
{
    dt_strmap *index = dt_strmap_new();
    int64_t all = 0;
    int rc = 0;
    for (int k = 0; k < s->nl; k++)
        all += s->l[k] ? s->l[k]->n : 0;
    s->u = dt_alloc((size_t)all * sizeof(*s->u));
    for (int k = 0; k < s->nl; k++)
        if (s->l[k])
            add_units(s, index, s->l[k], layout);
    for (int64_t i = 0; i < s->n && rc == 0; i++)
        rc = finish_unit(s, &s->u[i], values, err);
    dt_strmap_free(&index);
    return rc;
}

/* What a part's B is multiplied by, as the pair has one scale; that is 0 only if all of them are. */
static double ratio(const struct unit *u, const dt_adapter *a) { return u->scale == 0 ? 1 : a->scale / u->scale; }

int64_t dt_lora_rounds(const dt_lora *l, enum dt_lora_layout layout)
{
    struct saver s = { .l = &l, .nl = 1 };
    int64_t n = 0;
    int e;
    make_units(&s, layout, false, NULL);
    for (int64_t i = 0; i < s.n; i++) {
        bool rounds = false;
        for (int k = 0; k < s.u[i].parts; k++)
            rounds |= s.u[i].part[k] && fabs(frexp(ratio(&s.u[i], s.u[i].part[k]), &e)) != 0.5;
        n += rounds;
        free(s.u[i].stem);
    }
    free(s.u);
    return n;
}

/* --- values --- */

/* down [r, in], up [out, r] */
static int fill_unit(struct saver *s, const struct unit *u, dt_err *err)
{
    memset(s->down, 0, (size_t)(u->r * u->in) * 4);
    memset(s->up, 0, (size_t)(u->out * u->r) * 4);
    int64_t row = 0, slot = u->shared ? 0 : u->r / u->parts;
    for (int i = 0; i < u->parts; row += u->rows[i++]) {
        const dt_adapter *a = u->part[i];
        if (!a)
            continue;
        int rc = read_half(s, u, a->a, s->down + slot * i * u->in, err);
        if (rc < 0 || (rc = read_half(s, u, a->b, s->half, err)) < 0)
            return rc;
        float k = (float)ratio(u, a);
        for (int64_t y = 0; y < u->rows[i]; y++)
            for (int64_t x = 0; x < a->rank; x++)
                s->up[(row + y) * u->r + slot * i + x] = k * s->half[y * a->rank + x];
    }
    if (u->swap)
        dt_lora_swap_halves(s->up, u->out, u->r);
    return 0;
}

/* Entries: the alphas of all units (unless peft), then down and up of each. */
static int fetch(void *ctx, int64_t i, const void **data, dt_err *err)
{
    struct saver *s = ctx;
    if (i < 0) {
        i = -1 - i;
        s->alpha = (float)(s->u[i].scale * (double)s->u[i].r);
        *data = &s->alpha;
        return 0;
    }
    const struct unit *u = &s->u[i / 2];
    int rc = i % 2 ? 0 : fill_unit(s, u, err);
    const float *x = i % 2 ? s->up : s->down;
    int64_t n = u->r * (i % 2 ? u->out : u->in);
    dt_convert(s->out, s->dtype, x, DT_F32, n);
    *data = s->out;
    if (rc == 0 && !dt_finite(s->out, s->dtype, n))
        rc = dt_err_set(err, DT_ENAN, "the adapter of '%s' is not finite in %s, or beyond its range", u->stem,
                        dt_dtype_name(s->dtype));
    return rc;
}

static int fetch_with_alpha(void *ctx, int64_t i, const void **data, dt_err *err)
{
    int64_t n = ((const struct saver *)ctx)->n;
    return fetch(ctx, i < n ? -1 - i : i - n, data, err);
}

static int alloc_unit(struct saver *s, dt_err *err)
{
    int64_t down = 1, up = 1;
    for (int64_t i = 0; i < s->n; i++) {
        const struct unit *u = &s->u[i];
        down = u->r * u->in > down ? u->r * u->in : down;
        up = u->out * u->r > up ? u->out * u->r : up;
    }
    s->down = dt_try_alloc((size_t)down * 4);
    s->up = dt_try_alloc((size_t)up * 4);
    s->half = dt_try_alloc((size_t)up * 4);
    s->out = dt_try_alloc((size_t)(down > up ? down : up) * dt_dtype_size(s->dtype));
    return s->down && s->up && s->half && s->out ? 0 : dt_err_set(err, DT_ENOMEM, "no memory to write the LoRA");
}

/* --- metadata --- */

/* Its path without what some versions of its library leave out: peft takes the end of a path for it. */
static const char *end_of(const dt_lora *l, const char *path)
{
    const char *implied = dt_lora_part_named(l->base->name)->implied;
    return implied && !strncmp(path, implied, strlen(implied)) ? path + strlen(implied) : path;
}

/* diffusers gives these to peft.LoraConfig, without the component's name. */
static void add_peft(cJSON *o, const dt_lora *l)
{
    const char *c = l->base->name;
    char key[128];
#define KEY(k) (snprintf(key, sizeof(key), "%s." k, c), key)
    cJSON_AddNumberToObject(o, KEY("r"), (double)l->rank);
    cJSON_AddNumberToObject(o, KEY("lora_alpha"), l->alpha);
    cJSON *targets = cJSON_AddArrayToObject(o, KEY("target_modules"));
    cJSON *ranks = cJSON_AddObjectToObject(o, KEY("rank_pattern")),
        *alphas = cJSON_AddObjectToObject(o, KEY("alpha_pattern"));
    for (int64_t i = 0; i < l->n; i++) {
        const dt_adapter *a = &l->v[i];
        double alpha = a->scale * (double)a->rank;
        const char *path = end_of(l, a->path);
        cJSON_AddItemToArray(targets, cJSON_CreateString(path));
        if (a->rank != l->rank)
            cJSON_AddNumberToObject(ranks, path, (double)a->rank);
        if (fabs(alpha - l->alpha) > 1e-9 * l->alpha)
            cJSON_AddNumberToObject(alphas, path, alpha);
    }
#undef KEY
}

static char *peft_config(const struct saver *s)
{
    cJSON *o = cJSON_CreateObject();
    for (int k = 0; k < s->nl; k++)
        if (s->l[k])
            add_peft(o, s->l[k]);
    char *text = cJSON_PrintUnformatted(o);
    cJSON_Delete(o);
    return text;
}

struct meta {
    dt_st_kv *kv;
    dt_strs   own;                  /* key, value, key, ... */
};

static bool has(const struct meta *m, const char *key)
{
    for (int64_t i = 0; i < m->own.n; i += 2)
        if (!strcmp(m->own.v[i], key))
            return true;
    return false;
}

/* Takes value; the first of a key stays. */
static void add_meta(struct meta *m, const char *key, char *value)
{
    if (!has(m, key)) {
        dt_strs_add(&m->own, key);
        dt_strs_add(&m->own, value);
    }
    free(value);
}

/* What the file it was has to say, but for what only its layout means. */
static void keep_meta(struct meta *m, const dt_st *from)
{
    static const char *const skip[] = { "lora_adapter_metadata", "ss_network_module", "ss_network_dim",
                                        "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash", NULL };
    const char *key, *value;
    for (int64_t i = 0; (value = dt_st_meta_at(from, i, &key)); i++) {
        const char *const *s = skip;
        while (*s && strcmp(*s, key))
            s++;
        if (!*s)
            add_meta(m, key, dt_strdup(value));
    }
}

static char *join_targets(const dt_lora *l)
{
    char *targets = dt_strdup("");
    for (int64_t i = 0; i < l->targets.n; i++) {
        char *more = dt_sprintf("%s%s%s", targets, i ? "," : "", l->targets.v[i]);
        free(targets);
        targets = more;
    }
    return targets;
}

/* Of several the first is what the file is said to be. */
static void make_meta(struct meta *m, const struct saver *s, enum dt_lora_layout layout, const dt_lora_info *info)
{
    int k = 0;
    while (!s->l[k])
        k++;
    const dt_lora *l = s->l[k];
    add_meta(m, "format", dt_strdup("pt"));
    add_meta(m, "dt_version", dt_strdup(DT_VERSION));
    add_meta(m, "dt_layout", dt_strdup(dt_lora_layouts[layout]));
    if (info && info->from)
        keep_meta(m, info->from);
    add_meta(m, "dt_rank", dt_sprintf("%lld", (long long)l->rank));
    add_meta(m, "dt_alpha", dt_sprintf("%.9g", l->alpha));
    if (!info || !info->from)
        add_meta(m, "dt_targets", join_targets(l));
    if (info && info->base_hash)
        add_meta(m, "dt_base_hash", dt_strdup(info->base_hash));
    if (info && !info->from && info->steps >= 0)
        add_meta(m, "dt_steps", dt_sprintf("%lld", (long long)info->steps));
    if (layout == DT_LORA_PEFT)
        add_meta(m, "lora_adapter_metadata", peft_config(s));
    if (layout == DT_LORA_KOHYA) {
        add_meta(m, "ss_network_module", dt_strdup("networks.lora"));
        add_meta(m, "ss_network_dim", dt_sprintf("%lld", (long long)l->rank));
        add_meta(m, "ss_network_alpha", dt_sprintf("%.9g", l->alpha));
    }
    m->kv = dt_alloc((size_t)(m->own.n / 2 + 1) * sizeof(*m->kv));
    for (int64_t i = 0; i < m->own.n / 2; i++)
        m->kv[i] = (dt_st_kv){ m->own.v[2 * i], m->own.v[2 * i + 1] };
}

/* --- all of it --- */

static dt_st_entry *make_entries(const struct saver *s, enum dt_lora_layout layout, dt_strs *names)
{
    int64_t alphas = layout == DT_LORA_PEFT ? 0 : s->n;
    dt_st_entry *e = dt_alloc((size_t)(3 * s->n) * sizeof(*e));
    const char *down = layout == DT_LORA_KOHYA ? "lora_down" : "lora_A",
        *up = layout == DT_LORA_KOHYA ? "lora_up" : "lora_B";
    for (int64_t i = 0; i < alphas + 2 * s->n; i++) {
        const struct unit *u = &s->u[i < alphas ? i : (i - alphas) / 2];
        char *name;
        if (i < alphas) {
            name = dt_sprintf("%s.alpha", u->stem);
            e[i] = (dt_st_entry){ .dtype = DT_F32 };
        } else {
            bool is_up = (i - alphas) % 2;
            name = dt_sprintf("%s.%s.weight", u->stem, is_up ? up : down);
            e[i] = (dt_st_entry){ .dtype = s->dtype, .dims = is_up ? DT_DIMS(u->out, u->r) : DT_DIMS(u->r, u->in) };
        }
        dt_strs_add(names, name);
        free(name);
        e[i].name = names->v[i];
    }
    return e;
}

int dt_lora_save(const dt_lora *l, const char *path, enum dt_lora_layout layout, dt_dtype dtype, bool use_ema,
                 const dt_lora_info *info, dt_err *err)
{
    return dt_lora_save_parts(&l, 1, path, layout, dtype, use_ema, info, err);
}

int dt_lora_save_parts(const dt_lora *const *l, int n, const char *path, enum dt_lora_layout layout, dt_dtype dtype,
                       bool use_ema, const dt_lora_info *info, dt_err *err)
{
    struct saver s = { .l = l, .nl = n, .dtype = dtype, .use_ema = use_ema };
    struct meta m = { 0 };
    dt_strs names = { 0 };
    dt_st_entry *e = NULL;
    int rc;
    make_meta(&m, &s, layout, info);
    if ((rc = make_units(&s, layout, true, err)) < 0 || (rc = alloc_unit(&s, err)) < 0)
        goto out;
    e = make_entries(&s, layout, &names);
    rc = dt_st_write_from(path, e, names.n, m.kv, layout == DT_LORA_PEFT ? fetch : fetch_with_alpha, &s, err);
out:
    for (int64_t i = 0; i < s.n; i++)
        free(s.u[i].stem);
    dt_strs_release(&m.own);
    free(m.kv);
    dt_strs_release(&names);
    free(e);
    free(s.u);
    free(s.down);
    free(s.up);
    free(s.half);
    free(s.out);
    return rc;
}
