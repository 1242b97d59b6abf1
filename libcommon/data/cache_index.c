/* cache_index.c - keys, requests and indexes of caches.  See cache_write.h and dt-cache(5). */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "data/cache_write.h"

enum { REQ_INTS = 7, MAX_SIDE_PX = 1 << 30 };

/* --- requests and keys --- */

char *dt_cache_request(const dt_batch_item *it, int w, int h)
{
    return dt_sprintf("%d %d %d %d %d %d %d %s", it->resize_w, it->resize_h, it->crop_x, it->crop_y, w, h, it->flip,
                      it->item->path);
}

const char *dt_cache_request_path(const char *req)
{
    for (int i = 0; i < REQ_INTS && req; i++)
        req = (req = strchr(req, ' ')) ? req + 1 : NULL;
    return req ? req : "";
}

void dt_cache_request_size(const char *req, int *w, int *h)
{
    if (sscanf(req, "%*d %*d %*d %*d %d %d", w, h) != 2)
        *w = *h = 0;
}

static void add_int(dt_hasher *h, int64_t v)
{
    char s[32];
    snprintf(s, sizeof(s), "%lld", (long long)v);
    dt_hasher_str(h, s);
}

static dt_hasher *key_begin(const dt_cache_recipe *r, bool text)
{
    dt_hasher *h = dt_hasher_new();
    dt_hasher_str(h, text ? "dt-cache text" : "dt-cache image");
    add_int(h, r->code);
    dt_hasher_str(h, dt_dtype_name(r->dtype));
    dt_hasher_str(h, dt_dtype_name(r->compute));
    for (int i = 0; i < r->n; i++)
        if (r->part[i].text == text) {
            dt_hasher_str(h, r->part[i].name);
            dt_hasher_str(h, r->part[i].hash.hex);
        }
    return h;
}

dt_hash dt_cache_image_key(const dt_cache_recipe *r, const char *req, const dt_hash *source)
{
    dt_hasher *h = key_begin(r, false);
    size_t ints = (size_t)(dt_cache_request_path(req) - req);
    int w, ht;
    dt_cache_request_size(req, &w, &ht);
    add_int(h, r->tile_px && (w > r->tile_px || ht > r->tile_px) ? r->tile_px : 0);
    dt_hasher_str(h, source->hex);
    dt_hasher_add(h, req, ints);
    return dt_hasher_end(&h);
}

/* Without padding the limit counts only where it cuts, and then T says so. */
dt_hash dt_cache_text_key(const dt_cache_recipe *r, const char *caption, int64_t T)
{
    dt_hasher *h = key_begin(r, true);
    if (r->text_padding)
        dt_hasher_str(h, dt_padding_names[r->text_padding]);
    add_int(h, T);
    dt_hasher_str(h, caption);
    return dt_hasher_end(&h);
}

const dt_cache_part *dt_cache_recipe_part(const dt_cache_recipe *r, const char *name)
{
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->part[i].name, name))
            return &r->part[i];
    return NULL;
}

bool dt_cache_recipe_fits(const dt_cache_recipe *a, const dt_cache_recipe *b, bool text)
{
    int n = 0;
    for (int i = 0; i < b->n; i++)
        n += b->part[i].text == text;
    for (int i = 0; i < a->n; i++) {
        const dt_cache_part *p = &a->part[i], *q = dt_cache_recipe_part(b, p->name);
        if (p->text == text && (n--, !q || q->text != text || strcmp(p->hash.hex, q->hash.hex)))
            return false;
    }
    if (n || a->code != b->code || a->dtype != b->dtype || a->compute != b->compute)
        return false;
    return text ? a->text_len == b->text_len && a->text_padding == b->text_padding : a->tile_px == b->tile_px;
}

bool dt_cache_recipe_same(const dt_cache_recipe *a, const dt_cache_recipe *b)
{
    if (a->code != b->code || a->dtype != b->dtype || a->compute != b->compute || a->tile_px != b->tile_px ||
        a->text_len != b->text_len || a->text_padding != b->text_padding || a->n != b->n)
        return false;
    for (int i = 0; i < a->n; i++) {
        const dt_cache_part *p = &a->part[i], *q = &b->part[i];
        if (strcmp(p->name, q->name) || p->text != q->text || strcmp(p->hash.hex, q->hash.hex) ||
            strcmp(p->stat.hex, q->stat.hex))
            return false;
    }
    return true;
}

void dt_cache_rec_release(dt_cache_rec *r)
{
    free(r->req);
    free(r->why);
    *r = (dt_cache_rec){ 0 };
}

void dt_cache_index_release(dt_cache_index *x)
{
    dt_map_close(&x->map);
    free(x->name);
    free(x->file_bytes);
    dt_strs_release(&x->files);
    *x = (dt_cache_index){ 0 };
}

/* --- writing --- */

static void add_ints(cJSON *o, const char *key, const int64_t *v, int n)
{
    cJSON *a = cJSON_AddArrayToObject(o, key);
    for (int i = 0; i < n; i++)
        cJSON_AddItemToArray(a, cJSON_CreateNumber((double)v[i]));
}

static void put_line(cJSON *o, FILE *f)         /* takes o */
{
    char *line = dt_json_line(o);
    fprintf(f, "%s\n", line);
    free(line);
    cJSON_Delete(o);
}

static void write_header(const dt_cache_index *x, FILE *f)
{
    const dt_cache_recipe *r = &x->recipe;
    cJSON *o = cJSON_CreateObject(), *a;
    cJSON_AddNumberToObject(o, "dt_cache", 1);
    cJSON_AddNumberToObject(o, "serial", (double)x->serial);
    add_ints(o, "shard", (int64_t[]){ x->shard, x->shards }, 2);
    cJSON_AddNumberToObject(o, "code", (double)r->code);
    cJSON_AddStringToObject(o, "dtype", dt_dtype_name(r->dtype));
    cJSON_AddStringToObject(o, "compute", dt_dtype_name(r->compute));
    cJSON_AddNumberToObject(o, "tile", (double)r->tile_px);
    cJSON_AddNumberToObject(o, "text_len", (double)r->text_len);
    cJSON_AddStringToObject(o, "text_padding", dt_padding_names[r->text_padding]);
    a = cJSON_AddArrayToObject(o, "encoders");
    for (int i = 0; i < r->n; i++) {
        cJSON *p = cJSON_CreateObject();
        cJSON_AddStringToObject(p, "part", r->part[i].name);
        cJSON_AddStringToObject(p, "of", r->part[i].text ? "text" : "image");
        cJSON_AddStringToObject(p, "hash", r->part[i].hash.hex);
        cJSON_AddStringToObject(p, "stat", r->part[i].stat.hex);
        cJSON_AddItemToArray(a, p);
    }
    a = cJSON_AddArrayToObject(o, "files");
    for (int64_t i = 0; i < x->files.n; i++) {
        cJSON *p = cJSON_CreateObject();
        cJSON_AddStringToObject(p, "name", x->files.v[i]);
        cJSON_AddNumberToObject(p, "bytes", (double)x->file_bytes[i]);
        cJSON_AddItemToArray(a, p);
    }
    put_line(o, f);
}

static void write_rec(const dt_cache_rec *r, FILE *f)
{
    cJSON *o = cJSON_CreateObject();
    if (r->kind == DT_CACHE_SKIP) {
        cJSON_AddStringToObject(o, "skip", r->req);
        cJSON_AddStringToObject(o, "why", r->why ? r->why : "");
        put_line(o, f);
        return;
    }
    if (r->kind == DT_CACHE_IMAGE) {
        int v[REQ_INTS] = { 0 };
        sscanf(r->req, "%d %d %d %d %d %d %d", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6]);
        cJSON_AddStringToObject(o, "image", dt_cache_request_path(r->req));
        add_ints(o, "resize", (int64_t[]){ v[0], v[1] }, 2);
        add_ints(o, "crop", (int64_t[]){ v[2], v[3] }, 2);
        add_ints(o, "size", (int64_t[]){ v[4], v[5] }, 2);
        if (v[6])
            cJSON_AddTrueToObject(o, "flip");
        cJSON_AddStringToObject(o, "source", r->source.hex);
        if (*r->stat.hex)
            cJSON_AddStringToObject(o, "stat", r->stat.hex);
    } else {
        cJSON_AddStringToObject(o, "text", r->req);
    }
    cJSON_AddStringToObject(o, "key", r->key.hex);
    cJSON_AddStringToObject(o, "sum", r->sum.hex);
    add_ints(o, "at", (int64_t[]){ r->file, r->off, r->bytes }, 3);
    put_line(o, f);
}

int dt_cache_index_write(const dt_cache_index *x, const struct dt_cache_lines *lines, FILE *f, dt_err *err)
{
    int64_t entries = 0;
    int rc = 0;
    write_header(x, f);
    for (int64_t i = 0; i < lines->n && rc >= 0; i++) {
        dt_cache_rec rec = { 0 };
        if ((rc = lines->get(lines->ctx, i, &rec, err)) == 1) {
            write_rec(&rec, f);
            entries++;
        }
        dt_cache_rec_release(&rec);
    }
    fprintf(f, "{\"end\":true,\"entries\":%lld}\n", (long long)entries);
    return rc < 0 ? rc : ferror(f) ? dt_err_sys(err, DT_EIO, "cannot write the index") : 0;
}

/* --- reading --- */

static int get_hash(dt_hash *h, const cJSON *o, const char *key, const char *what, dt_err *err)
{
    const char *s;
    int rc = dt_json_str_or(&s, o, key, "", what, err);
    if (rc < 0)
        return rc;
    if (strlen(s) != 32 || strspn(s, "0123456789abcdef") != 32)
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be 32 hex digits", what, key);
    memcpy(h->hex, s, 33);
    return 0;
}

static int get_ints(int64_t *v, int want, const cJSON *o, const char *key, const char *what, dt_err *err)
{
    int n = 0, rc = dt_json_ints_or(v, &n, want, o, key, what, err);
    if (rc == 0 && n != want)
        rc = dt_err_set(err, DT_EDATA, "%s: '%s' must be %d integers", what, key, want);
    return rc;
}

static int get_dtype(dt_dtype *t, const cJSON *o, const char *key, const char *what, dt_err *err)
{
    const char *s;
    int rc = dt_json_str_or(&s, o, key, "", what, err), v = rc < 0 ? -1 : dt_dtype_parse(s);
    if (rc == 0 && v < 0)
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be a dtype, not '%s'", what, key, s);
    *t = v < 0 ? DT_F32 : (dt_dtype)v;
    return rc;
}

static int get_padding(enum dt_padding *p, const cJSON *o, const char *what, dt_err *err)
{
    const char *s;
    int rc = dt_json_str_or(&s, o, "text_padding", dt_padding_names[DT_PAD_MAX], what, err);
    if (rc < 0)
        return rc;
    *p = DT_PAD_MAX;
    while (dt_padding_names[*p] && strcmp(dt_padding_names[*p], s))
        ++*p;
    return dt_padding_names[*p] ? 0 : dt_err_set(err, DT_EDATA, "%s: 'text_padding' must be max or none, not '%s'",
                                                 what, s);
}

static int read_parts(dt_cache_recipe *r, const cJSON *o, const char *what, dt_err *err)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, cJSON_GetObjectItemCaseSensitive(o, "encoders")) {
        const char *name, *of;
        dt_cache_part *p = &r->part[r->n];
        int rc;
        if (r->n == DT_CACHE_MAX_PARTS)
            return dt_err_set(err, DT_EDATA, "%s: more than %d 'encoders'", what, DT_CACHE_MAX_PARTS);
        if ((rc = dt_json_str_or(&name, e, "part", "", what, err)) < 0 ||
            (rc = dt_json_str_or(&of, e, "of", "", what, err)) < 0 ||
            (rc = get_hash(&p->hash, e, "hash", what, err)) < 0 ||
            (rc = get_hash(&p->stat, e, "stat", what, err)) < 0)
            return rc;
        snprintf(p->name, sizeof(p->name), "%s", name);
        p->text = !strcmp(of, "text");
        r->n++;
    }
    return 0;
}

static int read_files(dt_cache_index *x, const cJSON *o, const char *what, dt_err *err)
{
    const cJSON *e, *list = cJSON_GetObjectItemCaseSensitive(o, "files");
    x->file_bytes = dt_alloc((size_t)(cJSON_GetArraySize(list) + 1) * sizeof(*x->file_bytes));
    cJSON_ArrayForEach(e, list) {
        const char *name;
        int rc = dt_json_str_or(&name, e, "name", "", what, err);
        if (rc == 0)
            rc = dt_json_int(&x->file_bytes[x->files.n], e, "bytes", 0, 1ll << 53, what, err);
        if (rc < 0)
            return rc;
        if (!*name || *name == '.' || strchr(name, '/'))
            return dt_err_set(err, DT_EDATA, "%s: '%s' is no name of a shard", what, name);
        dt_strs_add(&x->files, name);
    }
    return 0;
}

static int read_header(dt_cache_index *x, const cJSON *o, const char *what, dt_err *err)
{
    int64_t version, shard[2];
    int rc;
    dt_cache_recipe *r = &x->recipe;
    if ((rc = dt_json_int(&version, o, "dt_cache", 1, 1, what, err)) < 0 ||
        (rc = dt_json_int(&x->serial, o, "serial", 0, 1ll << 53, what, err)) < 0 ||
        (rc = get_ints(shard, 2, o, "shard", what, err)) < 0 ||
        (rc = dt_json_int(&r->code, o, "code", 0, 1ll << 53, what, err)) < 0 ||
        (rc = get_dtype(&r->dtype, o, "dtype", what, err)) < 0 ||
        (rc = get_dtype(&r->compute, o, "compute", what, err)) < 0 ||
        (rc = dt_json_int(&r->tile_px, o, "tile", 0, MAX_SIDE_PX, what, err)) < 0 ||
        (rc = dt_json_int(&r->text_len, o, "text_len", 0, 1 << 20, what, err)) < 0 ||
        (rc = get_padding(&r->text_padding, o, what, err)) < 0 ||
        (rc = read_parts(r, o, what, err)) < 0)
        return rc;
    x->shard = shard[0];
    x->shards = shard[1];
    return read_files(x, o, what, err);
}

static int read_image_request(char **req, const char *path, const cJSON *o, const char *what, dt_err *err)
{
    int64_t resize[2], crop[2], size[2];
    bool flip;
    int rc;
    if ((rc = get_ints(resize, 2, o, "resize", what, err)) < 0 ||
        (rc = get_ints(crop, 2, o, "crop", what, err)) < 0 || (rc = get_ints(size, 2, o, "size", what, err)) < 0 ||
        (rc = dt_json_bool_or(&flip, o, "flip", false, what, err)) < 0)
        return rc;
    *req = dt_sprintf("%lld %lld %lld %lld %lld %lld %d %s", (long long)resize[0], (long long)resize[1],
                      (long long)crop[0], (long long)crop[1], (long long)size[0], (long long)size[1], flip, path);
    return 0;
}

static int read_rec(const dt_cache_index *x, dt_cache_rec *r, const cJSON *o, const char *what, dt_err *err)
{
    const char *image, *text, *skip, *why;
    int64_t at[3] = { 0 };
    int rc;
    if ((rc = dt_json_str_or(&image, o, "image", NULL, what, err)) < 0 ||
        (rc = dt_json_str_or(&text, o, "text", NULL, what, err)) < 0 ||
        (rc = dt_json_str_or(&skip, o, "skip", NULL, what, err)) < 0 ||
        (rc = dt_json_str_or(&why, o, "why", "", what, err)) < 0)
        return rc;
    if (!image + !text + !skip != 2)
        return dt_err_set(err, DT_EDATA, "%s: must have one of 'image', 'text' and 'skip'", what);
    r->kind = skip ? DT_CACHE_SKIP : image ? DT_CACHE_IMAGE : DT_CACHE_TEXT;
    if (skip) {
        r->req = dt_strdup(skip);
        r->why = dt_strdup(why);
        return 0;
    }
    if (text)
        r->req = dt_strdup(text);
    else if ((rc = read_image_request(&r->req, image, o, what, err)) < 0)
        return rc;
    if ((rc = get_hash(&r->key, o, "key", what, err)) < 0 || (rc = get_hash(&r->sum, o, "sum", what, err)) < 0 ||
        (image && (rc = get_hash(&r->source, o, "source", what, err)) < 0) ||
        (image && cJSON_HasObjectItem(o, "stat") && (rc = get_hash(&r->stat, o, "stat", what, err)) < 0) ||
        (rc = get_ints(at, 3, o, "at", what, err)) < 0)
        return rc;
    r->file = at[0], r->off = at[1], r->bytes = at[2];
    if (r->file < -1 || r->file >= x->files.n || r->off < 0 || r->bytes < 0 ||
        (r->file >= 0 && (r->off > x->file_bytes[r->file] || r->bytes > x->file_bytes[r->file] - r->off)))
        return dt_err_set(err, DT_EDATA, "%s: 'at' lies outside its shard", what);
    return 0;
}

/* The line at pos as an object, which the caller deletes; *pos moves to the next. */
static int read_line(const dt_cache_index *x, size_t *pos, cJSON **o, char what[512], dt_err *err)
{
    const char *p = x->text + *pos, *end = x->text + x->bytes;
    const char *nl = *pos < x->bytes ? memchr(p, '\n', (size_t)(end - p)) : NULL, *stop = nl ? nl : end;
    int64_t line = 1;
    *o = NULL;
    if (*pos >= x->bytes)
        return dt_err_set(err, DT_EDATA, "%s: cut off: the last line is missing", x->name);
    *o = cJSON_ParseWithLengthOpts(p, (size_t)(stop - p), NULL, false);
    *pos = (size_t)(stop - x->text) + 1;
    snprintf(what, 512, "%s: byte %lld", x->name, (long long)(p - x->text));
    if (cJSON_IsObject(*o))
        return 0;
    cJSON_Delete(*o);
    *o = NULL;
    while ((p = memrchr(x->text, '\n', (size_t)(p - x->text))))
        line++;
    return dt_err_set(err, DT_EDATA, "%s: line %lld: not a JSON object", x->name, (long long)line);
}

int dt_cache_index_read(dt_cache_index *x, const char *text, size_t bytes, const char *name, dt_err *err)
{
    char what[512];
    cJSON *o;
    *x = (dt_cache_index){ .name = dt_strdup(name), .text = text, .bytes = bytes };
    int rc = read_line(x, &x->first, &o, what, err);
    if (rc == 0)
        rc = read_header(x, o, what, err);
    cJSON_Delete(o);
    if (rc < 0)
        dt_cache_index_release(x);
    return rc;
}

/* What has been read takes no memory. */
static void forget_behind(const dt_cache_index *x, size_t from, size_t to)
{
    enum { AT_ONCE = 1 << 20 };
    if (x->map.bytes && from / AT_ONCE != to / AT_ONCE)
        dt_map_forget(&x->map, x->text + from / AT_ONCE * AT_ONCE, to - from / AT_ONCE * AT_ONCE);
}

int dt_cache_index_next(const dt_cache_index *x, size_t *pos, dt_cache_rec *rec, dt_err *err)
{
    char what[512];
    cJSON *o;
    *rec = (dt_cache_rec){ 0 };
    *pos = *pos ? *pos : x->first;
    size_t from = *pos;
    int rc = read_line(x, pos, &o, what, err);
    if (rc < 0)
        return rc;
    if (!cJSON_GetObjectItemCaseSensitive(o, "end"))
        rc = (rc = read_rec(x, rec, o, what, err)) < 0 ? rc : 1;
    else if (*pos < x->bytes)
        rc = dt_err_set(err, DT_EDATA, "%s: goes on after its end", what);
    cJSON_Delete(o);
    forget_behind(x, from, *pos);
    if (rc < 0)
        dt_cache_rec_release(rec);
    return rc;
}

int dt_cache_index_check(const dt_cache_index *x, dt_err *err)
{
    size_t pos = 0;
    dt_cache_rec rec;
    int rc;
    while ((rc = dt_cache_index_next(x, &pos, &rec, err)) == 1)
        dt_cache_rec_release(&rec);
    return rc;
}

/* --- the indexes of a folder --- */

static int newest_first(const void *pa, const void *pb)
{
    const dt_cache_index *a = pa, *b = pb;
    return a->serial != b->serial ? (a->serial < b->serial ? 1 : -1) : -strcmp(a->name, b->name);
}

static bool is_index(const char *name)
{
    return !strncmp(name, "index-", 6) && !strcmp(dt_path_ext(name), ".ndjson");
}

static int read_one(dt_cache_index *x, const char *path, dt_err *err)
{
    dt_map map;
    int rc = dt_map_open(&map, path, err);
    if (rc < 0)
        return rc;
    if ((rc = dt_cache_index_read(x, (const char *)map.data, map.bytes, path, err)) < 0)
        dt_map_close(&map);
    else
        x->map = map;
    return rc;
}

int dt_cache_indexes(dt_cache_index **x, int64_t *n, const char *dir, dt_strs *broken, dt_err *err)
{
    int64_t cap = 0;
    int rc = 0;
    DIR *d = opendir(dir);
    *x = NULL;
    *n = 0;
    if (!d)
        return dt_err_open(err, dir);
    for (struct dirent *e; rc == 0 && (e = readdir(d));) {
        dt_cache_index one;
        dt_err bad = { 0 };
        if (!is_index(e->d_name))
            continue;
        char *path = dt_path_join(dir, e->d_name);
        rc = read_one(&one, path, &bad);
        if (rc == 0 && broken && (rc = dt_cache_index_check(&one, &bad)) < 0)
            dt_cache_index_release(&one);
        free(path);
        if (rc == 0) {
            dt_grow(x, &cap, *n + 1, sizeof(**x));
            (*x)[(*n)++] = one;
        } else if (broken && rc == DT_EDATA) {
            dt_strs_add(broken, bad.msg);
            rc = 0;
        } else if (err) {
            *err = bad;
        }
    }
    closedir(d);
    if (*n)
        qsort(*x, (size_t)*n, sizeof(**x), newest_first);
    return rc;
}
