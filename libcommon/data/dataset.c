/* dataset.c - reads dataset_config files: every key by one table.  See dataset.h. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/file.h"
#include "base/json.h"
#include "base/toml.h"
#include "data/dataset.h"

#define MAX_CONFIG_BYTES (4 << 20)
#define MAX_SIDE_PX 8192
#define MUSUBI_SIZE ((dt_size){ 960, 544 })         /* its default */

enum { GENERAL = 1, DATASET = 2, SUBSET = 4 };      /* where a key may stand */
enum { KOHYA = 1, MUSUBI = 2, BOTH = 3 };           /* whose it is */
enum kind { OF_SET_INT, OF_SET_FLAG, OF_SET_SIZE, INT, NUM, FLAG, STR, REFUSED, NOTED };

static const struct key {
    const char *name;
    int       of, in;
    enum kind kind;
    size_t    off;              /* in dt_dataset (OF_SET_) or dt_subset */
    double    min, max;
    const char *why;            /* REFUSED, NOTED */
} keys[] = {
#define SET(f) offsetof(dt_dataset, f)
#define SUB(f) offsetof(dt_subset, f)
    { "resolution", BOTH, GENERAL | DATASET, OF_SET_SIZE, SET(reso), 1, MAX_SIDE_PX },
    { "batch_size", BOTH, GENERAL | DATASET, OF_SET_INT, SET(batch), 1, 65536 },
    { "enable_bucket", BOTH, GENERAL | DATASET, OF_SET_FLAG, SET(bucket) },
    { "bucket_no_upscale", BOTH, GENERAL | DATASET, OF_SET_FLAG, SET(no_upscale) },
    { "bucket_reso_steps", KOHYA, GENERAL | DATASET, OF_SET_INT, SET(step), 1, 1024 },
    { "min_bucket_reso", KOHYA, GENERAL | DATASET, OF_SET_INT, SET(min_px), 16, MAX_SIDE_PX },
    { "max_bucket_reso", KOHYA, GENERAL | DATASET, OF_SET_INT, SET(max_px), 16, MAX_SIDE_PX },
    { "skip_image_resolution", KOHYA, GENERAL | DATASET, OF_SET_SIZE, SET(skip), 1, 65536 },

    { "image_dir", KOHYA, SUBSET, STR, SUB(dir) },
    { "metadata_file", KOHYA, SUBSET, STR, SUB(meta) },
    { "class_tokens", KOHYA, SUBSET, STR, SUB(class_tokens) },
    { "image_directory", MUSUBI, DATASET, STR, SUB(dir) },
    { "image_jsonl_file", MUSUBI, DATASET, STR, SUB(jsonl) },
    { "num_repeats", BOTH, GENERAL | DATASET | SUBSET, INT, SUB(repeats), 1, DT_MAX_REPEATS },
    { "caption_extension", BOTH, GENERAL | DATASET | SUBSET, STR, SUB(ext) },
    { "caption_prefix", KOHYA, GENERAL | DATASET | SUBSET, STR, SUB(prefix) },
    { "caption_suffix", KOHYA, GENERAL | DATASET | SUBSET, STR, SUB(suffix) },
    { "caption_separator", KOHYA, GENERAL | DATASET | SUBSET, STR, SUB(sep) },
    { "keep_tokens_separator", KOHYA, GENERAL | DATASET | SUBSET, STR, SUB(keep_sep) },
    { "secondary_separator", KOHYA, GENERAL | DATASET | SUBSET, STR, SUB(second_sep) },
    { "keep_tokens", KOHYA, GENERAL | DATASET | SUBSET, INT, SUB(keep), 0, 1 << 20 },
    { "shuffle_caption", KOHYA, GENERAL | DATASET | SUBSET, FLAG, SUB(shuffle) },
    { "flip_aug", KOHYA, GENERAL | DATASET | SUBSET, FLAG, SUB(flip) },
    { "caption_dropout_rate", KOHYA, GENERAL | DATASET | SUBSET, NUM, SUB(drop), 0, 1 },
    { "caption_dropout_every_n_epochs", KOHYA, GENERAL | DATASET | SUBSET, INT, SUB(drop_every), 0, 1 << 30 },
    { "caption_tag_dropout_rate", KOHYA, GENERAL | DATASET | SUBSET, NUM, SUB(tag_drop), 0, 1 },

#define NO(name, of, in, why) { name, of, in, REFUSED, 0, 0, 0, why }
    NO("is_reg", KOHYA, SUBSET, "regularisation pictures and their prior loss are not offered"),
    NO("random_crop", KOHYA, GENERAL | DATASET | SUBSET, "latents are cached: the crop is the middle, chosen once"),
    NO("color_aug", KOHYA, GENERAL | DATASET | SUBSET, "latents are cached: colours cannot change between epochs"),
    NO("face_crop_aug_range", KOHYA, GENERAL | DATASET | SUBSET,
       "latents are cached: the crop is the middle, chosen once"),
    NO("enable_wildcard", KOHYA, GENERAL | DATASET | SUBSET, "wildcards and captions of several lines are not offered"),
    NO("token_warmup_step", KOHYA, GENERAL | DATASET | SUBSET, "a warm-up of tags is not offered"),
    NO("alpha_mask", KOHYA, GENERAL | DATASET | SUBSET, "masked losses are not offered"),
    NO("conditioning_data_dir", KOHYA, GENERAL | DATASET | SUBSET, "control pictures are not offered"),
    NO("custom_attributes", KOHYA, GENERAL | DATASET | SUBSET, "there is no code that would read them"),
    NO("resize_interpolation", KOHYA, GENERAL | DATASET | SUBSET,
       "pictures are always resized with an antialiased bilinear filter"),
    NO("validation_split", KOHYA, GENERAL | DATASET | SUBSET, "name held-out pictures with --validation_data_dir"),
    NO("network_multiplier", KOHYA, GENERAL | DATASET, "the adapter always acts at alpha / rank"),
    NO("video_directory", MUSUBI, DATASET, "only pictures are planned"),
    NO("video_jsonl_file", MUSUBI, DATASET, "only pictures are planned"),
    NO("control_directory", MUSUBI, DATASET, "control pictures are not offered"),
    NO("multiple_target", MUSUBI, GENERAL | DATASET, "layered pictures are not offered"),
    NO("target_frames", MUSUBI, DATASET, "only pictures are planned"),
    NO("frame_extraction", MUSUBI, DATASET, "only pictures are planned"),
    NO("frame_stride", MUSUBI, DATASET, "only pictures are planned"),
    NO("frame_sample", MUSUBI, DATASET, "only pictures are planned"),
    NO("max_frames", MUSUBI, DATASET, "only pictures are planned"),
    NO("source_fps", MUSUBI, DATASET, "only pictures are planned"),
    NO("control_resolution", MUSUBI, GENERAL | DATASET, "control pictures are not offered"),
    NO("no_resize_control", MUSUBI, GENERAL | DATASET, "control pictures are not offered"),
    NO("flux_kontext_no_resize_control", MUSUBI, GENERAL | DATASET, "control pictures are not offered"),
    NO("qwen_image_edit_no_resize_control", MUSUBI, GENERAL | DATASET, "control pictures are not offered"),
    NO("qwen_image_edit_control_resolution", MUSUBI, GENERAL | DATASET, "control pictures are not offered"),
    NO("fp_latent_window_size", MUSUBI, DATASET, "FramePack is not offered"),
    NO("fp_1f_clean_indices", MUSUBI, DATASET, "FramePack is not offered"),
    NO("fp_1f_target_index", MUSUBI, DATASET, "FramePack is not offered"),
    NO("fp_1f_no_post", MUSUBI, DATASET, "FramePack is not offered"),

#define IDLE(name, of, in, why) { name, of, in, NOTED, 0, 0, 0, why }
    IDLE("cache_info", KOHYA, GENERAL | DATASET | SUBSET, "the plan is where sizes and captions are kept"),
    IDLE("token_warmup_min", KOHYA, GENERAL | DATASET | SUBSET, "without token_warmup_step there is no warm-up"),
    IDLE("validation_seed", KOHYA, GENERAL | DATASET | SUBSET, "without validation_split nothing is drawn"),
    IDLE("cache_directory", MUSUBI, GENERAL | DATASET,
         "the cache is where dt-cache-latents --output or dt-train --output_dir says"),
};
enum { N_KEYS = sizeof keys / sizeof *keys };

/* The tables that a value may stand in, the most specific first, with the words for messages. */
struct scope {
    dt_datasets *d;
    const cJSON *table[3];
    int   in[3], n;
    char  where[64];            /* of the first: "datasets[0].subsets[1]" */
};

static int whose(const dt_datasets *d) { return d->musubi ? MUSUBI : KOHYA; }

static const struct key *find_key(const char *name, int of)
{
    for (int i = 0; i < N_KEYS; i++)
        if ((keys[i].of & of) && !strcmp(keys[i].name, name))
            return &keys[i];
    return NULL;
}

static int unknown_key(const dt_datasets *d, const char *where, const char *name, dt_err *err)
{
    const char *near[N_KEYS];
    int n = 0;
    for (int i = 0; i < N_KEYS; i++)
        if (keys[i].of & whose(d))
            near[n++] = keys[i].name;
    int best = dt_nearest(name, near, n);
    return dt_err_set(err, DT_EDATA, "%s: %s: unknown key '%s'%s%s%s", d->path, where, name,
                      best < 0 ? "" : " (did you mean '", best < 0 ? "" : near[best], best < 0 ? "" : "'?)");
}

/* Does the value ask for anything?  false, 0, "" and [] do not. */
static bool asks(const cJSON *v)
{
    return cJSON_IsTrue(v) || (cJSON_IsNumber(v) && v->valuedouble != 0) || (cJSON_IsString(v) && *v->valuestring) ||
           ((cJSON_IsArray(v) || cJSON_IsObject(v)) && v->child);
}

static void note(dt_datasets *d, const char *name, const char *why)
{
    char *line = dt_sprintf("%s: '%s' has no effect: %s", d->path, name, why);
    bool there = false;
    for (int64_t i = 0; i < d->notes.n; i++)
        there |= !strcmp(d->notes.v[i], line);
    if (!there)
        dt_strs_add(&d->notes, line);
    free(line);
}

/* Are all keys of one table known, in their place, and possible? */
static int check_table(dt_datasets *d, const cJSON *t, int in, const char *where, dt_err *err)
{
    const cJSON *v;
    if (!cJSON_IsObject(t))
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be a table", d->path, where);
    cJSON_ArrayForEach(v, t) {
        const struct key *k = find_key(v->string, whose(d));
        if (in == DATASET && !d->musubi && !strcmp(v->string, "subsets"))
            continue;
        if (!k && find_key(v->string, BOTH))
            return dt_err_set(err, DT_EDATA, "%s: %s: '%s' is a key of %s; this file is one of %s", d->path, where,
                              v->string,
                              d->musubi ? "sd-scripts" : "musubi-tuner", d->musubi ? "musubi-tuner" : "sd-scripts");
        if (!k)
            return unknown_key(d, where, v->string, err);
        if (!(k->in & in))
            return dt_err_set(err, DT_EDATA, "%s: %s: '%s' belongs into %s", d->path, where, v->string,
                              k->in & SUBSET ? "[[datasets.subsets]]" : "[[datasets]]");
        if (k->kind == REFUSED && asks(v))
            return dt_err_set(err, DT_EDATA, "%s: %s: '%s': %s", d->path, where, v->string, k->why);
        if (k->kind == NOTED)
            note(d, v->string, k->why);
    }
    return 0;
}

static const cJSON *value_of(const struct scope *s, const struct key *k)
{
    for (int i = 0; i < s->n; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(s->table[i], k->name);
        if (v && (k->in & s->in[i]))
            return v;
    }
    return NULL;
}

static bool whole(const cJSON *v, const struct key *k, int64_t *out)
{
    if (!cJSON_IsNumber(v) || v->valuedouble != floor(v->valuedouble) || v->valuedouble < k->min ||
        v->valuedouble > k->max)
        return false;
    *out = (int64_t)v->valuedouble;
    return true;
}

/* 512, [512], [768, 512] or "768,512": width, height. */
static bool size_of(const cJSON *v, const struct key *k, dt_size *out)
{
    int64_t w = 0, h = 0;
    if (cJSON_IsString(v)) {
        const char *s = v->valuestring;
        long long a = 0, b = 0;
        int one = 0, two = 0;
        sscanf(s, " %lld %n, %lld %n", &a, &one, &b, &two);
        bool pair = two && !s[two];
        w = pair || (one && !s[one]) ? a : 0;
        h = pair ? b : w;
    } else if (cJSON_IsArray(v)) {
        int n = cJSON_GetArraySize(v);
        if (n < 1 || n > 2 || !whole(cJSON_GetArrayItem(v, 0), k, &w) || !whole(cJSON_GetArrayItem(v, n - 1), k, &h))
            return false;
    } else if (whole(v, k, &w)) {
        h = w;
    }
    *out = (dt_size){ (int)w, (int)h };
    return w >= (int64_t)k->min && h >= (int64_t)k->min && w <= (int64_t)k->max && h <= (int64_t)k->max;
}

static int set_key(const struct scope *s, const struct key *k, const cJSON *v, void *field, dt_err *err)
{
    static const char *const must[] = {
        [OF_SET_INT] = "a whole number", [OF_SET_FLAG] = "true or false", [OF_SET_SIZE] = "a number or [width, height]",
        [INT] = "a whole number", [NUM] = "a number", [FLAG] = "true or false", [STR] = "a string",
    };
    bool ok = false;
    switch (k->kind) {
    case OF_SET_INT:
    case INT:         ok = whole(v, k, field); break;
    case OF_SET_FLAG:
    case FLAG:        ok = cJSON_IsBool(v); *(int *)field = cJSON_IsTrue(v); break;
    case OF_SET_SIZE: ok = size_of(v, k, field); break;
    case NUM:         ok = cJSON_IsNumber(v) && v->valuedouble >= k->min && v->valuedouble <= k->max;
                      *(double *)field = v->valuedouble; break;
    default:          ok = cJSON_IsString(v); *(const char **)field = v->valuestring; break;
    }
    if (ok)
        return 0;
    if (k->min == k->max)
        return dt_err_set(err, DT_EDATA, "%s: %s: '%s' must be %s", s->d->path, s->where, k->name, must[k->kind]);
    return dt_err_set(err, DT_EDATA, "%s: %s: '%s' must be %s from %g to %g", s->d->path, s->where, k->name,
                      must[k->kind], k->min, k->max);
}

/* The values of a dataset (sub NULL) or of a subset. */
static int fill(const struct scope *s, dt_dataset *set, dt_subset *sub, dt_err *err)
{
    int rc = 0;
    for (int i = 0; i < N_KEYS && rc == 0; i++) {
        const struct key *k = &keys[i];
        bool of_set = k->kind <= OF_SET_SIZE;
        const cJSON *v = k->kind < REFUSED && (k->of & whose(s->d)) && of_set == !sub ? value_of(s, k) : NULL;
        if (v)
            rc = set_key(s, k, v, (char *)(of_set ? (void *)set : (void *)sub) + k->off, err);
    }
    return rc;
}

/* --- a dataset --- */

/* Rules for buckets that those programs pass over in silence. */
static void note_idle_rules(struct scope *s, const dt_dataset *t)
{
    dt_datasets *d = s->d;
    if (!t->bucket && t->no_upscale)
        note(d, "bucket_no_upscale", "without enable_bucket every picture is cut to 'resolution'");
    if (!t->bucket && t->step)
        note(d, "bucket_reso_steps", "without enable_bucket there are no buckets");
    const char *why = !t->bucket ? "without enable_bucket there are no buckets"
                    : t->no_upscale ? "with bucket_no_upscale sizes come from the pictures" : NULL;
    if (why && t->min_px)
        note(d, "min_bucket_reso", why);
    if (why && t->max_px)
        note(d, "max_bucket_reso", why);
}

static int check_sizes(const struct scope *s, dt_dataset *t, int64_t multiple, dt_err *err)
{
    const char *path = s->d->path;
    if (!t->reso.w && s->d->musubi)
        t->reso = MUSUBI_SIZE;
    if (!t->reso.w)
        return dt_err_set(err, DT_EDATA, "%s: %s: 'resolution' is missing", path, s->where);
    if (!t->bucket && (t->reso.w % multiple || t->reso.h % multiple))
        return dt_err_set(err, DT_EDATA,
                          "%s: %s: 'resolution' %dx%d: without enable_bucket both must be multiples of %lld",
                          path, s->where, t->reso.w, t->reso.h, (long long)multiple);
    t->step = t->step ? t->step : s->d->musubi ? multiple : 64;
    if (t->step % multiple)
        return dt_err_set(err, DT_EDATA, "%s: %s: 'bucket_reso_steps' must be a multiple of %lld", path, s->where,
                          (long long)multiple);
    int least = t->reso.w < t->reso.h ? t->reso.w : t->reso.h, most = t->reso.w + t->reso.h - least;
    bool ranged = t->bucket && !t->no_upscale && !s->d->musubi;
    if (ranged && t->min_px > least)
        return dt_err_set(err, DT_EDATA, "%s: %s: 'min_bucket_reso' is above 'resolution'", path, s->where);
    if (ranged && t->max_px && t->max_px < most)
        return dt_err_set(err, DT_EDATA, "%s: %s: 'max_bucket_reso' is below 'resolution'", path, s->where);
    if (ranged && (t->min_px % t->step || t->max_px % t->step))
        return dt_err_set(err, DT_EDATA, "%s: %s: 'min_bucket_reso' and 'max_bucket_reso' must be multiples of %lld",
                          path, s->where, (long long)t->step);
    t->min_px = t->min_px ? t->min_px : least < 256 ? least / t->step * t->step : 256 / t->step * t->step;
    t->max_px = t->max_px ? t->max_px : most > 1024 ? (most + t->step - 1) / t->step * t->step : 1024;
    t->min_px = t->min_px > t->step ? t->min_px : t->step;
    if (t->bucket && (int64_t)t->reso.w * t->reso.h < t->step * t->step)
        return dt_err_set(err, DT_EDATA, "%s: %s: 'resolution' is too small for buckets in steps of %lld", path,
                          s->where, (long long)t->step);
    return 0;
}

static void make_buckets(const dt_datasets *d, dt_dataset *t)
{
    if (!t->bucket) {
        t->size = dt_alloc(sizeof *t->size);
        t->size[0] = t->reso;
        t->n_size = 1;
    } else if (d->musubi) {
        t->n_size = dt_bucket_list_musubi(&t->size, t->reso, (int)t->step);
    } else {
        t->n_size = dt_bucket_list(&t->size, t->reso, (int)t->min_px, (int)t->max_px, (int)t->step);
    }
}

static bool same_source(const dt_subset *a, const dt_subset *b)
{
    const char *x = a->meta ? a->meta : a->dir, *y = b->meta ? b->meta : b->dir;
    return a->set == b->set && !a->meta == !b->meta && x && y && !strcmp(x, y);
}

/* What says how captions are found, where they are in a file of metadata. */
static void note_idle_captions(struct scope *s, const dt_subset *sub)
{
    static const char *const key[] = { "class_tokens", "caption_extension" };
    for (int i = 0; i < 2 && (sub->meta || sub->jsonl); i++)
        if (cJSON_GetObjectItemCaseSensitive(s->table[0], key[i]))
            note(s->d, key[i], sub->meta ? "captions are those of metadata_file" : "captions are those of image_jsonl_file");
}

static int add_subset(dt_datasets *d, struct scope *s, int64_t *cap, dt_err *err)
{
    dt_subset sub = { .set = d->n_set - 1, .repeats = 1, .sep = "," };
    if (d->musubi)
        sub.ext = ".txt";
    int rc = fill(s, NULL, &sub, err);
    if (rc < 0)
        return rc;
    if (!sub.dir && !sub.meta && !sub.jsonl)
        return dt_err_set(err, DT_EDATA, "%s: %s: '%s' is missing", d->path, s->where,
                          d->musubi ? "image_directory" : "image_dir");
    if (sub.dir && sub.jsonl)
        return dt_err_set(err, DT_EDATA, "%s: %s: 'image_directory' and 'image_jsonl_file' exclude each other", d->path,
                          s->where);
    note_idle_captions(s, &sub);
    if (!*sub.sep)
        return dt_err_set(err, DT_EDATA, "%s: %s: 'caption_separator' is empty", d->path, s->where);
    for (int i = 0; i < d->n_sub; i++)
        if (!d->musubi && same_source(&d->sub[i], &sub)) {
            char *line = dt_sprintf("%s: %s: left out: the dataset has '%s' already", d->path, s->where,
                                    sub.meta ? sub.meta : sub.dir);
            dt_strs_add(&d->notes, line);
            free(line);
            return 0;
        }
    dt_grow(&d->sub, cap, d->n_sub + 1, sizeof *d->sub);
    d->sub[d->n_sub++] = sub;
    return 0;
}

static int add_subsets(dt_datasets *d, const struct scope *set, const cJSON *subsets, int64_t *cap, dt_err *err)
{
    int n = 0, rc = 0;
    const cJSON *t;
    if (!cJSON_IsArray(subsets) || !subsets->child)
        return dt_err_set(err, DT_EDATA, "%s: %s: no [[datasets.subsets]]", d->path, set->where);
    cJSON_ArrayForEach(t, subsets) {
        struct scope s = { .d = d, .table = { t, set->table[0], set->table[1] }, .in = { SUBSET, DATASET, GENERAL },
                           .n = 3 };
        snprintf(s.where, sizeof s.where, "%.40s.subsets[%d]", set->where, n++);
        if ((rc = check_table(d, t, SUBSET, s.where, err)) < 0 || (rc = add_subset(d, &s, cap, err)) < 0)
            break;
    }
    return rc;
}

static bool is_musubi(const cJSON *datasets)
{
    static const char *const mark[] = { "image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file" };
    const cJSON *t;
    cJSON_ArrayForEach(t, datasets)
        for (int i = 0; i < 4; i++)
            if (cJSON_GetObjectItemCaseSensitive(t, mark[i]))
                return true;
    return false;
}

static int read_sets(dt_datasets *d, int64_t multiple, dt_err *err)
{
    const cJSON *general = cJSON_GetObjectItemCaseSensitive(d->doc, "general"), *t, *v;
    const cJSON *datasets = cJSON_GetObjectItemCaseSensitive(d->doc, "datasets");
    int64_t cap = 0, sub_cap = 0;
    int rc = 0;
    cJSON_ArrayForEach(v, d->doc)
        if (strcmp(v->string, "general") && strcmp(v->string, "datasets"))
            return dt_err_set(err, DT_EDATA, "%s: unknown table or key '%s': there are [general] and [[datasets]]",
                              d->path, v->string);
    if (!cJSON_IsArray(datasets) || !datasets->child)
        return dt_err_set(err, DT_EDATA, "%s: no [[datasets]]", d->path);
    d->musubi = is_musubi(datasets);
    if (general && (rc = check_table(d, general, GENERAL, "general", err)) < 0)
        return rc;
    cJSON_ArrayForEach(t, datasets) {
        struct scope s = { .d = d, .table = { t, general }, .in = { DATASET, GENERAL }, .n = 2 };
        snprintf(s.where, sizeof s.where, "datasets[%d]", d->n_set);
        dt_grow(&d->set, &cap, d->n_set + 1, sizeof *d->set);
        dt_dataset *set = &d->set[d->n_set++];
        *set = (dt_dataset){ .batch = 1 };
        if ((rc = check_table(d, t, DATASET, s.where, err)) < 0 || (rc = fill(&s, set, NULL, err)) < 0)
            return rc;
        note_idle_rules(&s, set);
        if ((rc = check_sizes(&s, set, multiple, err)) < 0)
            return rc;
        make_buckets(d, set);
        rc = d->musubi ? add_subset(d, &s, &sub_cap, err)
                       : add_subsets(d, &s, cJSON_GetObjectItemCaseSensitive(t, "subsets"), &sub_cap, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int dt_datasets_open(dt_datasets **out, const char *path, int64_t multiple, dt_err *err)
{
    dt_datasets *d = dt_alloc(sizeof *d);
    d->path = dt_strdup(path);
    int rc = !strcasecmp(dt_path_ext(path), ".json") ? dt_json_read(&d->doc, path, MAX_CONFIG_BYTES, err)
                                                     : dt_toml_read(&d->doc, path, MAX_CONFIG_BYTES, err);
    if (rc == 0 && !cJSON_IsObject(d->doc))
        rc = dt_err_set(err, DT_EDATA, "%s: must be an object with 'general' and 'datasets'", path);
    if (rc == 0)
        rc = read_sets(d, multiple, err);
    if (rc < 0)
        dt_datasets_close(&d);
    *out = d;
    return rc;
}

void dt_datasets_close(dt_datasets **pd)
{
    dt_datasets *d = *pd;
    *pd = NULL;
    if (!d)
        return;
    for (int i = 0; i < d->n_set; i++)
        free(d->set[i].size);
    free(d->set);
    free(d->sub);
    dt_strs_release(&d->notes);
    cJSON_Delete(d->doc);
    free(d->path);
    free(d);
}

/* --- sizes --- */

/* Do sizes of batches come from the pictures, which are only shrunk? */
static bool shrinks(const dt_datasets *d, const dt_dataset *s) { return s->bucket && s->no_upscale && !d->musubi; }

/* Is this picture left as it is, but for its edges? */
static bool stays(const dt_datasets *d, const dt_dataset *s, int w, int h)
{
    return s->bucket && s->no_upscale && d->musubi && (int64_t)w * h <= (int64_t)s->reso.w * s->reso.h;
}

dt_size dt_dataset_size(const dt_datasets *d, const dt_dataset *s, int w, int h)
{
    dt_size resized;
    if (stays(d, s, w, h))
        return (dt_size){ w / (int)s->step * (int)s->step, h / (int)s->step * (int)s->step };
    if (shrinks(d, s))
        return dt_bucket_shrink(s->reso, (int)s->step, w, h, &resized);
    return dt_bucket_choose(s->size, s->n_size, w, h);
}

dt_fit dt_dataset_fit(const dt_datasets *d, const dt_dataset *s, int w, int h, dt_size target)
{
    dt_size resized = { w, h };
    if (shrinks(d, s))
        dt_bucket_shrink(s->reso, (int)s->step, w, h, &resized);
    else if (!stays(d, s, w, h))
        return dt_fit_cover_round(w, h, target);
    return (dt_fit){ resized.w, resized.h, (resized.w - target.w) / 2, (resized.h - target.h) / 2 };
}
