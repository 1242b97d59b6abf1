/* dataset_read.c - the pictures and captions of a dataset_config.  See dataset.h.
 *
 * Captions: kohya's scripts take the first line of a caption file, else class_tokens, between prefix and suffix; of a
 * metadata_file, "caption" and "tags".  musubi-tuner takes the whole file. */
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "base/window.h"
#include "data/dataset.h"

#define MAX_META_BYTES (1ll << 30)

char *dt_dataset_locate(const char *named_in, const char *path)
{
    char *dir = dt_sprintf("%.*s", (int)(dt_path_base(named_in) - named_in), named_in),
        *there = dt_path_join(dir, path);
    bool here = dt_exists(path) || !dt_exists(there);
    free(dir);
    if (!here)
        return there;
    free(there);
    return dt_strdup(path);
}

/* --- metadata_file: { "a.png": {"caption": "...", "tags": "..."}, ... } --- */

/* A key is a path, or a name in image_dir with or without its extension.  Caller frees; NULL: no such picture. */
static char *picture_of(const char *dir, const char *key)
{
    static const char *const ext[] = { "", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG", ".JPEG", ".WEBP",
                                       ".BMP" };
    if (dt_exists(key) && !dt_is_dir(key))
        return dt_strdup(key);
    for (size_t i = 0; dir && i < sizeof ext / sizeof *ext; i++) {
        char *name = dt_sprintf("%s%s", key, ext[i]), *path = dt_path_join(dir, name);
        free(name);
        if (dt_exists(path) && !dt_is_dir(path))
            return path;
        free(path);
    }
    return NULL;
}

static char *caption_of(const cJSON *o)
{
    const char *c = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "caption"));
    const char *t = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "tags"));
    char *text = c && t && *t ? dt_sprintf("%s, %s", c, t) : dt_strdup(c ? c : t ? t : "");
    text[strcspn(text, "\r\n")] = 0;
    return text;
}

static int read_metadata(const dt_datasets *d, int i, const char *dir, dt_meta *m, dt_err *err)
{
    const dt_subset *s = &d->sub[i];
    char *path = dt_dataset_locate(d->path, s->meta);
    cJSON *doc = NULL, *o;
    int rc = dt_json_read(&doc, path, MAX_META_BYTES, err);
    if (rc == 0 && !cJSON_IsObject(doc))
        rc = dt_err_set(err, DT_EDATA, "%s: must be an object of pictures", path);
    if (rc == 0)
        cJSON_ArrayForEach(o, doc) {
            char *file = picture_of(dir, o->string), *text = caption_of(o);
            if (file)
                dt_meta_add(m, &(dt_meta_item){ .path = file, .text = text, .tar = -1, .repeats = s->repeats,
                            .sub = i }, file);
            else
                dt_meta_skip(m, "%s: '%s': no such picture", path, o->string);
            free(file);
            free(text);
        }
    cJSON_Delete(doc);
    free(path);
    return rc;
}

/* --- image_jsonl_file: {"image_path": "...", "caption": "..."} a line --- */

/* Does it have "control_path" or "control_path_0", ... ? */
static bool has_control(const cJSON *o)
{
    const cJSON *v;
    cJSON_ArrayForEach(v, o)
        if (!strncmp(v->string, "control_path", 12))
            return true;
    return false;
}

static void add_line(const char *jsonl, int64_t line, const cJSON *o, const dt_subset *s, int i, dt_meta *m)
{
    const char *path = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "image_path"));
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "caption"));
    const char *why = has_control(o) ? "control pictures are not offered"
                    : cJSON_GetObjectItemCaseSensitive(o, "image_path_0") ? "layered pictures are not offered"
                    : !path || !*path ? "'image_path' must be a string" : !text ? "'caption' must be a string" : NULL;
    char *at = dt_sprintf("%s: line %lld", jsonl, (long long)line);
    if (why) {
        dt_meta_skip(m, "%s: %s", at, why);
    } else {
        char *file = dt_dataset_locate(jsonl, path);
        dt_meta_add(m, &(dt_meta_item){ .path = file, .text = text, .tar = -1, .repeats = s->repeats, .sub = i }, at);
        free(file);
    }
    free(at);
}

static int read_jsonl(const dt_datasets *d, int i, dt_meta *m, dt_err *err)
{
    char *path = dt_dataset_locate(d->path, d->sub[i].jsonl), *p;
    dt_window w;
    size_t n;
    int64_t line = 0;
    int rc = dt_window_open(&w, path, MAX_META_BYTES, err);
    while (rc == 0 && (rc = dt_window_line(&w, &p, &n, err)) > 0) {
        rc = 0;
        line++;
        if (strspn(p, " \t\r") >= n)
            continue;
        cJSON *o = memchr(p, '\0', n) ? NULL : cJSON_ParseWithLength(p, n);
        if (cJSON_IsObject(o))
            add_line(path, line, o, &d->sub[i], i, m);
        else
            rc = dt_err_set(err, DT_EDATA, "%s: line %lld is not a JSON object", path, (long long)line);
        cJSON_Delete(o);
    }
    dt_window_close(&w);
    free(path);
    return rc;
}

/* --- captions --- */

/* prefix + " " + caption + " " + suffix; tags joined by secondary_separator are one tag only while they are drawn. */
static char *finished(const void *by, const char *said)
{
    const dt_subset *s = by;
    if (!s->prefix && !s->suffix && !s->second_sep)
        return NULL;
    char *text = dt_sprintf("%s%s%s%s%s", s->prefix ? s->prefix : "", s->prefix && *s->prefix ? " " : "", said,
                            s->suffix && *s->suffix ? " " : "", s->suffix ? s->suffix : "");
    if (dt_subset_draws(s))
        return text;
    char *last = dt_subset_caption(s, text, NULL);
    free(text);
    return last;
}

bool dt_subset_draws(const dt_subset *s)
{
    return s->shuffle || s->tag_drop > 0;
}

/* Adds the trimmed parts of text; a caption without separator marks keeps its empty tags, as there. */
static void split_tags(dt_strs *out, const char *text, size_t bytes, const char *sep, bool keep_empty)
{
    for (const char *p = text, *end = text + bytes, *next; p <= end; p = next) {
        const char *q = memmem(p, (size_t)(end - p), sep, strlen(sep));
        const char *stop = q ? q : end;
        next = q ? q + strlen(sep) : end + 1;
        while (p < stop && strchr(" \t\r\n", *p))
            p++;
        while (stop > p && strchr(" \t\r\n", stop[-1]))
            stop--;
        char *tag = dt_sprintf("%.*s", (int)(stop - p), p);
        if (*tag || keep_empty)
            dt_strs_add(out, tag);
        free(tag);
    }
}

/* fixed ||| drawn ||| fixed, or the first keep_tokens tags fixed. */
static void sort_out(const dt_subset *s, const char *text, dt_strs *head, dt_strs *flex, dt_strs *tail)
{
    size_t n = s->keep_sep ? strlen(s->keep_sep) : 0;
    const char *a = n ? strstr(text, s->keep_sep) : NULL;
    if (!a) {
        dt_strs all = { 0 };
        split_tags(&all, text, strlen(text), s->sep, true);
        for (int64_t i = 0; i < all.n; i++)
            dt_strs_add(i < s->keep ? head : flex, all.v[i]);
        dt_strs_release(&all);
        return;
    }
    const char *b = strstr(a + n, s->keep_sep);
    split_tags(head, text, (size_t)(a - text), s->sep, false);
    split_tags(flex, a + n, b ? (size_t)(b - a) - n : strlen(a + n), s->sep, false);
    if (b)
        split_tags(tail, b + n, strlen(b + n), s->sep, false);
}

static void join(char **text, const char *tag)
{
    char *old = *text;
    *text = old ? dt_sprintf("%s, %s", old, tag) : dt_strdup(tag);
    free(old);
}

static char *replaced(char *text, const char *from, const char *to)     /* takes text */
{
    for (char *at = *from ? strstr(text, from) : NULL; at; ) {
        size_t done = (size_t)(at - text) + strlen(to);
        char *more = dt_sprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
        free(text);
        text = more;
        at = strstr(text + done, from);
    }
    return text;
}

char *dt_subset_caption(const dt_subset *s, const char *text, dt_rng *r)
{
    dt_strs head = { 0 }, flex = { 0 }, tail = { 0 };
    char *out = NULL;
    if (!dt_subset_draws(s)) {
        out = dt_strdup(text);
    } else {
        sort_out(s, text, &head, &flex, &tail);
        uint32_t *perm = dt_alloc((size_t)(flex.n + 1) * sizeof *perm);
        for (int64_t i = 0; i < flex.n; i++)
            perm[i] = (uint32_t)i;
        if (s->shuffle && flex.n)
            dt_rng_permute(perm, flex.n, r);
        for (int64_t i = 0; i < head.n; i++)
            join(&out, head.v[i]);
        for (int64_t i = 0; i < flex.n; i++)
            if (s->tag_drop <= 0 || dt_rng_uniform(r) >= s->tag_drop)
                join(&out, flex.v[perm[i]]);
        for (int64_t i = 0; i < tail.n; i++)
            join(&out, tail.v[i]);
        free(perm);
    }
    out = out ? out : dt_strdup("");
    dt_strs_release(&head);
    dt_strs_release(&flex);
    dt_strs_release(&tail);
    return s->second_sep ? replaced(out, s->second_sep, s->sep) : out;
}

/* --- the whole --- */

int dt_datasets_read(const dt_datasets *d, dt_meta *m, dt_err *err)
{
    int rc = 0;
    *m = (dt_meta){ 0 };
    for (int i = 0; i < d->n_sub && rc == 0; i++) {
        const dt_subset *s = &d->sub[i];
        char *dir = s->dir ? dt_dataset_locate(d->path, s->dir) : NULL;
        m->reword = finished;
        m->by = s;
        if (s->meta)
            rc = read_metadata(d, i, dir, m, err);
        else if (s->jsonl)
            rc = read_jsonl(d, i, m, err);
        else
            rc = dt_meta_add_folder(m, dir,
                                    &(struct dt_meta_how){ .ext = s->ext, .caption = s->class_tokens, .flat = true,
                                    .first_line = !d->musubi, .repeats = s->repeats, .sub = i }, err);
        free(dir);
    }
    m->reword = NULL;
    return rc < 0 ? rc : dt_meta_check(m, err);
}
