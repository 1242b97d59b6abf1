/* lora.c - which layers get an adapter. */
#include "train/lora.h"

#include <fnmatch.h>
#include <stdlib.h>

#include "tensor/strmap.h"

/* --- the networks --- */

static const char *const transformer_prefixes[] = {
    "transformer.", "transformer_2.", "unet.", "base_model.model.", "diffusion_model.", "model.", "lora_unet__",
    "lora_unet_", "lycoris_", "lora_transformer_", NULL,
};
static const char *const clip_prefixes[] = {
    "text_encoder.", "lora_te1_", "lora_te_", "text_encoders.clip_l.", "clip_l.", "te1.", NULL,
};
/* sd-scripts counts to 3, OneTrainer to 2. */
static const char *const t5_prefixes[] = {
    "text_encoder_2.", "lora_te3_", "lora_te2_", "text_encoders.t5xxl.", "t5xxl.", "te3.", "te2.", NULL,
};

const dt_lora_part dt_lora_parts[] = {
    { "transformer", "transformer.", "lora_unet_", dt_flux_single_name, NULL, NULL, transformer_prefixes },
    { "text_encoder", "text_encoder.", "lora_te1_", NULL, dt_clip_old_name, "text_model.", clip_prefixes },
    { "text_encoder_2", "text_encoders.t5xxl.transformer.", "lora_te3_", NULL, NULL, NULL, t5_prefixes },
    { 0 },
};

const dt_lora_part *dt_lora_part_named(const char *name)
{
    for (const dt_lora_part *p = dt_lora_parts; p->name; p++)
        if (!strcmp(p->name, name))
            return p;
    return dt_lora_parts;
}

const dt_lora_part *dt_lora_part_of(const char *tensor)
{
    for (const dt_lora_part *p = dt_lora_parts + 1; p->name; p++)
        for (const char *const *s = p->prefixes; *s; s++)
            if (!strncmp(tensor, *s, strlen(*s)))
                return p;
    return dt_lora_parts;
}

dt_lora *dt_lora_make(dt_params *base, dt_lora_naming naming)
{
    dt_lora *l = dt_alloc(sizeof(*l));
    l->base = base;
    l->naming = naming;
    l->params = dt_params_new("lora");
    l->index = dt_strmap_new();
    return l;
}

void dt_lora_free(dt_lora **lora)
{
    dt_lora *l = *lora;
    if (!l)
        return;
    for (int64_t i = 0; i < l->n; i++)
        free(l->v[i].path);
    for (int64_t i = 0; l->values && i < 2 * l->n; i++)
        free(l->values[i]);
    free(l->values);
    dt_strmap *index = l->index;
    dt_strmap_free(&index);
    dt_params_free(&l->params);
    dt_strs_release(&l->targets);
    dt_strs_release(&l->report);
    free(l->v);
    free(l);
    *lora = NULL;
}

const dt_adapter *dt_lora_find(const dt_lora *l, const char *path)
{
    int64_t i = dt_strmap_get(l->index, path);
    return i < 0 ? NULL : &l->v[i];
}

const dt_param *dt_lora_weight(const dt_params *base, const char *path)
{
    char *name = dt_sprintf("%s.weight", path);
    const dt_param *w = dt_params_find(base, name);
    free(name);
    return w;
}

void dt_lora_swap_halves(float *x, int64_t rows, int64_t cols)
{
    int64_t half = rows / 2 * cols;
    for (int64_t i = 0; i < half; i++) {
        float t = x[i];
        x[i] = x[half + i];
        x[half + i] = t;
    }
}

static dt_param *declare(dt_lora *l, const char *path, const char *half, dt_dims dims, dt_init init)
{
    char *name = dt_sprintf("%s.%s.weight", path, half);
    dt_param *p = dt_params_declare(l->params, name, dims, init, 0);
    p->trainable = true;
    free(name);
    return p;
}

dt_adapter *dt_lora_add(dt_lora *l, const char *path, int64_t rank, double scale)
{
    const dt_param *w = dt_lora_weight(l->base, path);
    dt_grow(&l->v, &l->cap, l->n + 1, sizeof(*l->v));
    dt_adapter *a = &l->v[l->n];
    /* kaiming_uniform(a = sqrt 5) is U(-1/sqrt(in), 1/sqrt(in)) */
    *a = (dt_adapter){
        .path = dt_strdup(path), .rank = rank, .scale = scale,
        .a = declare(l, path, "lora_A", DT_DIMS(rank, w->dims.d[1]), DT_INIT_FAN_IN),
        .b = declare(l, path, "lora_B", DT_DIMS(w->dims.d[0], rank), DT_INIT_ZERO),
    };
    dt_strmap_add(l->index, a->path, l->n++);
    return a;
}

/* --- targets --- */

static bool ends_with(const char *path, const char *end)
{
    size_t n = strlen(path), k = strlen(end);
    return n >= k && !strcmp(path + n - k, end) && (n == k || path[n - k - 1] == '.');
}

static bool matches(const char *path, const char *target)
{
    return strpbrk(target, "*?[") ? !fnmatch(target, path, 0) : ends_with(path, target);
}

/* Marks the layers that match; returns how many. */
static int64_t mark(bool *on, const dt_strs *linears, const char *target, bool value)
{
    int64_t n = 0;
    for (int64_t i = 0; i < linears->n; i++)
        if (matches(linears->v[i], target)) {
            on[i] = value;
            n++;
        }
    return n;
}

/* The documented names of FLUX's feed-forward layers, which are not their names. */
static const char *alias(const char *target)
{
    static const char *const table[][2] = {
        { "ff.0", "ff.net.0.proj" }, { "ff.2", "ff.net.2" },
        { "ff_context.0", "ff_context.net.0.proj" }, { "ff_context.2", "ff_context.net.2" },
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
        if (!strcmp(target, table[i][0]))
            return table[i][1];
    return NULL;
}

/* The ends of all paths, each once: "to_q", "attn.to_q", ... */
static void suffixes(dt_strs *out, const dt_strs *linears)
{
    dt_strmap *seen = dt_strmap_new();
    for (int64_t i = 0; i < linears->n; i++)
        for (const char *s = linears->v[i]; s; s = strchr(s, '.') ? strchr(s, '.') + 1 : NULL)
            if (dt_strmap_get(seen, s) < 0) {
                dt_strmap_add(seen, s, 0);
                if (*s < '0' || *s > '9')
                    dt_strs_add(out, s);
            }
    dt_strmap_free(&seen);
}

/* Up to three names that `word` may have meant, as ", did you mean a, b?"; caller frees. */
static char *near_misses(const char *word, const dt_strs *linears)
{
    dt_strs cand = { 0 };
    suffixes(&cand, linears);
    char *text = dt_strdup("");
    for (int k = 0; k < 3; k++) {
        int i = dt_nearest(word, (const char *const *)cand.v, (int)cand.n);
        if (i < 0)
            break;
        char *more = dt_sprintf("%s%s%s", text, k ? ", " : "; did you mean ", cand.v[i]);
        free(text);
        text = more;
        free(cand.v[i]);
        cand.v[i] = cand.v[--cand.n];
    }
    dt_strs_release(&cand);
    return text;
}

static int apply(dt_lora *l, bool *on, const char *what, const char *target, bool value, dt_err *err)
{
    const dt_strs *linears = &l->base->linears;
    const char *other = alias(target);
    int64_t n = mark(on, linears, target, value);
    if (n)
        other = NULL;
    else if (other)
        n = mark(on, linears, other, value);
    if (!n) {
        char *near = near_misses(target, linears);
        int rc = dt_err_set(err, DT_EUSAGE, "%s '%s' matches no linear layer of %s%s", what, target, l->base->name,
                            near);
        free(near);
        return rc;
    }
    char *line = dt_sprintf("%s %s%s%s%s: %lld layers", what, target, other ? " (" : "", other ? other : "",
                            other ? ")" : "", (long long)n);
    dt_strs_add(&l->report, line);
    free(line);
    return 0;
}

static int choose(dt_lora *l, bool *on, const dt_lora_config *c, dt_err *err)
{
    int64_t nt = c->targets ? c->targets->n : 0, ns = c->skips ? c->skips->n : 0;
    int rc = 0;
    for (int64_t i = 0; i < l->base->linears.n; i++)
        on[i] = nt == 0;
    for (int64_t i = 0; i < nt && rc == 0; i++) {
        dt_strs_add(&l->targets, c->targets->v[i]);
        rc = apply(l, on, "target", c->targets->v[i], true, err);
    }
    for (int64_t i = 0; i < ns && rc == 0; i++)
        rc = apply(l, on, "skip", c->skips->v[i], false, err);
    return rc;
}

int dt_lora_new(dt_lora **out, dt_params *base, const dt_lora_config *c, dt_err *err)
{
    if (c->rank < 1)
        return dt_err_set(err, DT_EUSAGE, "the rank of a LoRA must be at least 1");
    dt_lora *l = dt_lora_make(base, c->naming);
    l->rank = c->rank;
    l->alpha = c->alpha > 0 ? c->alpha : (double)c->rank;
    int64_t n = base->linears.n;
    bool *on = dt_alloc((size_t)(n ? n : 1));
    int rc = choose(l, on, c, err);
    for (int64_t i = 0; i < n && rc == 0; i++)
        if (on[i])
            dt_lora_add(l, base->linears.v[i], l->rank, l->alpha / (double)l->rank);
    if (rc == 0 && !l->n)
        rc = dt_err_set(err, DT_EUSAGE, "no linear layer of %s is left to adapt", base->name);
    free(on);
    if (rc < 0)
        dt_lora_free(&l);
    else
        *out = l;
    return rc;
}
