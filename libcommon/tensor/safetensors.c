/* safetensors.c - the format: u64 LE header length N, N bytes of JSON, data.  The JSON maps each name to
 * {"dtype", "shape", "data_offsets": [begin, end)} in bytes of the data section; "__metadata__" maps strings to
 * strings.  As in the reference implementation the tensors must tile the data section without hole or overlap.
 * Nothing read from the header is used before it was checked here. */
#include "tensor/safetensors.h"

#include <endian.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "tensor/strmap.h"

enum { MAX_HEADER = 100 * 1000 * 1000 };

struct shard {
    char    *path;
    dt_map   map;           /* zero when the bytes are the caller's */
    dt_watch watch;
};

struct dt_st {
    struct shard *shard;
    int64_t       nshard, cap_shard;
    dt_st_entry  *e;        /* names owned */
    int64_t       n, cap;
    dt_strmap    *index;
    cJSON        *meta;     /* of the first file, or NULL */
};

/* --- one header --- */

/* A JSON number that is an integer in [0, 2^53]. */
static bool whole(const cJSON *j, int64_t *out)
{
    if (!cJSON_IsNumber(j) || !(j->valuedouble >= 0 && j->valuedouble <= 0x1p53))
        return false;
    *out = (int64_t)j->valuedouble;
    return (double)*out == j->valuedouble;
}

static int parse_shape(dt_st_entry *e, const cJSON *shape, dt_err *err)
{
    if (!cJSON_IsArray(shape))
        return dt_err_set(err, DT_EDATA, "%s: tensor '%s' has no shape", e->file, e->name);
    const cJSON *j;
    cJSON_ArrayForEach(j, shape) {
        int64_t d;
        if (!whole(j, &d))
            return dt_err_set(err, DT_EDATA, "%s: tensor '%s' has a dimension that is not a whole number", e->file,
                              e->name);
        if (e->dims.nd == DT_MAX_DIMS)
            return dt_err_set(err, DT_EDATA, "%s: tensor '%s' has more than %d dimensions", e->file, e->name,
                              DT_MAX_DIMS);
        e->dims.d[e->dims.nd++] = d;
    }
    return 0;
}

/* Elements times size; false if that overflows. */
static bool size_of(dt_dims dims, dt_dtype t, int64_t *bytes)
{
    *bytes = (int64_t)dt_dtype_size(t);
    bool overflow = false, empty = false;
    for (int i = 0; i < dims.nd; i++) {
        empty |= dims.d[i] == 0;
        overflow |= __builtin_mul_overflow(*bytes, dims.d[i] ? dims.d[i] : 1, bytes);
    }
    if (empty)
        *bytes = 0;
    return !overflow;
}

static int parse_entry(dt_st_entry *e, const cJSON *j, const uint8_t *data, int64_t data_bytes, dt_err *err)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(j, "dtype");
    const cJSON *off = cJSON_GetObjectItemCaseSensitive(j, "data_offsets");
    if (!cJSON_IsString(type))
        return dt_err_set(err, DT_EDATA, "%s: tensor '%s' has no dtype", e->file, e->name);
    int t = dt_dtype_parse(type->valuestring);
    if (t < 0)
        return dt_err_set(err, DT_EDATA, "%s: tensor '%s' is of type '%.32s', which is not supported", e->file, e->name,
                          type->valuestring);
    e->dtype = (dt_dtype)t;
    int rc = parse_shape(e, cJSON_GetObjectItemCaseSensitive(j, "shape"), err);
    if (rc < 0)
        return rc;
    int64_t begin, end, bytes;
    if (!cJSON_IsArray(off) || cJSON_GetArraySize(off) != 2 || !whole(cJSON_GetArrayItem(off, 0), &begin) ||
        !whole(cJSON_GetArrayItem(off, 1), &end) || begin > end || end > data_bytes)
        return dt_err_set(err, DT_EDATA, "%s: tensor '%s' has offsets outside the file", e->file, e->name);
    if (!size_of(e->dims, e->dtype, &bytes) || bytes != end - begin)
        return dt_err_set(err, DT_EDATA, "%s: tensor '%s' takes %lld bytes, but its shape asks for another number",
                          e->file, e->name, (long long)(end - begin));
    e->data = data + begin;
    e->bytes = (size_t)bytes;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const dt_st_entry *x = a, *y = b;
    if (x->data != y->data)
        return (const uint8_t *)x->data < (const uint8_t *)y->data ? -1 : 1;
    if (x->bytes != y->bytes)                       /* empty ones first */
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int check_tiling(const dt_st_entry *e, int64_t n, const uint8_t *data, int64_t data_bytes, const char *path,
                        dt_err *err)
{
    const uint8_t *at = data;
    for (int64_t i = 0; i < n; i++) {
        if ((const uint8_t *)e[i].data != at)
            return dt_err_set(err, DT_EDATA, "%s: tensor '%s' %s", path, e[i].name,
                              (const uint8_t *)e[i].data < at ? "overlaps another" : "leaves a gap before it");
        at += e[i].bytes;
    }
    if (at != data + data_bytes)
        return dt_err_set(err, DT_EDATA, "%s: %lld bytes after the last tensor", path,
                          (long long)(data + data_bytes - at));
    return 0;
}

static int check_meta(const cJSON *meta, const char *path, dt_err *err)
{
    if (!cJSON_IsObject(meta))
        return dt_err_set(err, DT_EDATA, "%s: __metadata__ is not an object", path);
    const cJSON *j;
    cJSON_ArrayForEach(j, meta)
        if (!cJSON_IsString(j))
            return dt_err_set(err, DT_EDATA, "%s: __metadata__ holds '%.64s', which is not a string", path, j->string);
    return 0;
}

static int parse_tensors(dt_st *st, cJSON *root, const char *path, const uint8_t *data, int64_t data_bytes, dt_err *err)
{
    int64_t first = st->n;
    for (cJSON *j = root->child; j; j = j->next) {
        if (!strcmp(j->string, "__metadata__")) {
            int rc = check_meta(j, path, err);
            if (rc < 0)
                return rc;
            continue;
        }
        if (!cJSON_IsObject(j))
            return dt_err_set(err, DT_EDATA, "%s: tensor '%.200s' is not described by an object", path, j->string);
        dt_grow(&st->e, &st->cap, st->n + 1, sizeof(*st->e));
        dt_st_entry *e = &st->e[st->n++];
        *e = (dt_st_entry){ .name = dt_strdup(j->string), .file = path };
        int rc = parse_entry(e, j, data, data_bytes, err);
        if (rc < 0)
            return rc;
    }
    if (st->n > first)
        qsort(st->e + first, (size_t)(st->n - first), sizeof(*st->e), by_offset);
    return check_tiling(st->n > first ? st->e + first : NULL, st->n - first, data, data_bytes, path, err);
}

/* Appends the tensors of one file. */
static int parse(dt_st *st, const char *path, const uint8_t *p, size_t bytes, dt_err *err)
{
    uint64_t len;
    if (bytes < 8)
        return dt_err_set(err, DT_EDATA, "%s: too short for a safetensors file", path);
    memcpy(&len, p, 8);
    len = le64toh(len);
    if (len > MAX_HEADER)
        return dt_err_set(err, DT_EDATA, "%s: not a safetensors file (its header would be %llu bytes long)", path,
                          (unsigned long long)len);
    if (len > bytes - 8)
        return dt_err_set(err, DT_EDATA, "%s: ends inside its header", path);
    if (!dt_is_utf8(p + 8, len))
        return dt_err_set(err, DT_EDATA, "%s: header is not valid UTF-8", path);
    const char *text = (const char *)p + 8, *end = text;
    cJSON *root = cJSON_ParseWithLengthOpts(text, len, &end, false);
    while (end < text + len && *end == ' ')
        end++;
    if (!cJSON_IsObject(root) || end != text + len) {
        cJSON_Delete(root);
        return dt_err_set(err, DT_EDATA, "%s: header is not a JSON object", path);
    }
    int rc = parse_tensors(st, root, path, p + 8 + len, (int64_t)(bytes - 8 - len), err);
    if (rc == 0 && st->nshard == 1)
        st->meta = cJSON_DetachItemFromObjectCaseSensitive(root, "__metadata__");
    cJSON_Delete(root);
    return rc;
}

/* --- opening --- */

static struct shard *add_shard(dt_st *st, const char *path)
{
    dt_grow(&st->shard, &st->cap_shard, st->nshard + 1, sizeof(*st->shard));
    struct shard *s = &st->shard[st->nshard++];
    *s = (struct shard){ .path = dt_strdup(path), .watch.fd = -1 };
    return s;
}

static int add_file(dt_st *st, const char *path, dt_err *err)
{
    struct shard *s = add_shard(st, path);
    int rc = dt_map_open_watched(&s->map, &s->watch, path, err);
    return rc < 0 ? rc : parse(st, s->path, s->map.data, s->map.bytes, err);
}

static int build_index(dt_st *st, dt_err *err)
{
    st->index = dt_strmap_new();
    for (int64_t i = 0; i < st->n; i++) {
        int64_t k = dt_strmap_add(st->index, st->e[i].name, i);
        if (k != i)
            return dt_err_set(err, DT_EDATA, "%s: tensor '%s' is there twice%s%s", st->e[i].file, st->e[i].name,
                              st->e[k].file != st->e[i].file ? ", also in " : "",
                              st->e[k].file != st->e[i].file ? st->e[k].file : "");
    }
    return 0;
}

/* Hands st over, or frees it. */
static int finish(dt_st **out, dt_st *st, int rc, dt_err *err)
{
    if (rc == 0)
        rc = build_index(st, err);
    if (rc < 0)
        dt_st_close(&st);
    else
        *out = st;
    return rc;
}

int dt_st_open(dt_st **out, const char *path, dt_err *err)
{
    dt_st *st = dt_alloc(sizeof(*st));
    return finish(out, st, add_file(st, path, err), err);
}

int dt_st_open_mem(dt_st **out, const void *data, size_t bytes, const char *what, dt_err *err)
{
    dt_st *st = dt_alloc(sizeof(*st));
    struct shard *s = add_shard(st, what);
    return finish(out, st, parse(st, s->path, data, bytes, err), err);
}

/* Opens the files that the index names, in order of name. */
static int open_shards(dt_st *st, const char *dir, const char *index, const cJSON *map, dt_err *err)
{
    dt_strs files = { 0 };
    dt_strmap *seen = dt_strmap_new();
    int rc = 0;
    const cJSON *j;
    cJSON_ArrayForEach(j, map) {
        const char *f = cJSON_IsString(j) ? j->valuestring : "";
        if (!*f || *f == '.' || strchr(f, '/')) {
            rc = dt_err_set(err, DT_EDATA, "%s: tensor '%.200s' is in no file of this folder", index, j->string);
            goto out;
        }
        if (dt_strmap_add(seen, f, files.n) == files.n)
            dt_strs_add(&files, f);
    }
    for (int64_t i = 0; i < files.n; i++) {
        char *path = dt_path_join(dir, files.v[i]);
        if (!dt_exists(path))
            rc = dt_err_set(err, DT_EDATA, "%s: missing, but named by %s", path, index);
        else
            rc = add_file(st, path, err);
        free(path);
        if (rc < 0)
            goto out;
    }
out:
    dt_strmap_free(&seen);
    dt_strs_release(&files);
    return rc;
}

static int open_index(dt_st **out, const char *dir, const char *index, dt_err *err)
{
    cJSON *root = NULL;
    int rc = dt_json_read(&root, index, MAX_HEADER, err);
    if (rc < 0)
        return rc;
    dt_st *st = dt_alloc(sizeof(*st));
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(root, "weight_map"), *j;
    if (!cJSON_IsObject(map) || !map->child)
        rc = dt_err_set(err, DT_EDATA, "%s: 'weight_map' must be an object that names tensors", index);
    else
        rc = open_shards(st, dir, index, map, err);
    rc = finish(&st, st, rc, err);
    if (rc == 0)
        cJSON_ArrayForEach(j, map) {
            const dt_st_entry *e = dt_st_find(st, j->string);
            if (!e || strcmp(dt_path_base(e->file), j->valuestring)) {
                rc = dt_err_set(err, DT_EDATA, "%s: tensor '%.200s' is not in %s, where the index says", index,
                                j->string, j->valuestring);
                dt_st_close(&st);
                break;
            }
        }
    if (rc == 0)
        *out = st;
    cJSON_Delete(root);
    return rc;
}

int dt_st_open_folder(dt_st **out, const char *dir, const char *const *stems, dt_err *err)
{
    for (const char *const *stem = stems; *stem; stem++) {
        char *index = dt_sprintf("%s/%s.safetensors.index.json", dir, *stem);
        char *file = dt_sprintf("%s/%s.safetensors", dir, *stem);
        int rc = 1;
        if (dt_exists(index))
            rc = open_index(out, dir, index, err);
        else if (dt_exists(file))
            rc = dt_st_open(out, file, err);
        free(index);
        free(file);
        if (rc <= 0)
            return rc;
    }
    return dt_err_set(err, DT_EDATA, "%s: holds neither %s.safetensors nor %s.safetensors.index.json", dir, stems[0],
                      stems[0]);
}

void dt_st_close(dt_st **st)
{
    dt_st *s = *st;
    if (!s)
        return;
    for (int64_t i = 0; i < s->n; i++)
        free((char *)s->e[i].name);
    for (int64_t i = 0; i < s->nshard; i++) {
        dt_map_close(&s->shard[i].map);
        dt_watch_close(&s->shard[i].watch);
        free(s->shard[i].path);
    }
    dt_strmap_free(&s->index);
    cJSON_Delete(s->meta);
    free(s->shard);
    free(s->e);
    free(s);
    *st = NULL;
}

int64_t dt_st_count(const dt_st *st) { return st->n; }

const dt_st_entry *dt_st_at(const dt_st *st, int64_t i) { return &st->e[i]; }

const dt_st_entry *dt_st_find(const dt_st *st, const char *name)
{
    int64_t i = dt_strmap_get(st->index, name);
    return i < 0 ? NULL : &st->e[i];
}

int dt_st_need(const dt_st *st, const char *name, dt_st_entry *out, dt_err *err)
{
    const dt_st_entry *e = dt_st_find(st, name);
    if (!e)
        return dt_err_set(err, DT_EDATA, "%s: no tensor '%s'", dt_st_path(st), name);
    *out = *e;
    return 0;
}

int dt_st_rows(dt_st_entry *e, int64_t first, int64_t n, dt_err *err)
{
    int64_t rows = e->dims.nd ? e->dims.d[0] : 0;
    if (first < 0 || n < 0 || first > rows || n > rows - first)
        return dt_err_set(err, DT_EDATA, "%s: tensor '%s' has %lld rows, not %lld beginning at %lld", e->file, e->name,
                          (long long)rows, (long long)n, (long long)first);
    size_t row = rows ? e->bytes / (size_t)rows : 0;
    e->data = (const uint8_t *)e->data + (size_t)first * row;
    e->bytes = (size_t)n * row;
    e->dims.d[0] = n;
    return 0;
}

/* The mapped file that p lies in, or NULL. */
static const struct shard *shard_of(const dt_st *st, const uint8_t *p)
{
    for (int64_t i = 0; i < st->nshard; i++) {
        const dt_map *m = &st->shard[i].map;
        if (p >= m->data && p < m->data + m->bytes)
            return &st->shard[i];
    }
    return NULL;
}

void dt_st_forget(const dt_st *st, const void *data, size_t bytes)
{
    const struct shard *s = shard_of(st, data);
    if (s)
        dt_map_forget(&s->map, data, bytes);
}

void dt_st_read(const dt_st *st, const void *data, size_t bytes, void *to)
{
    const struct shard *s = shard_of(st, data);
    ssize_t n = s ? pread(s->watch.fd, to, bytes, (const uint8_t *)data - s->map.data) : -1;
    if (n != (ssize_t)bytes)  /* as the mapping has it: a file that was cut ends the program there */
        memcpy(to, data, bytes);
}

int dt_st_check(const dt_st *st, dt_err *err)
{
    int rc = 0;
    for (int64_t i = 0; i < st->nshard && rc == 0; i++)
        rc = dt_watch_check(&st->shard[i].watch, st->shard[i].path, err);
    return rc;
}

const char *dt_st_path(const dt_st *st) { return st->shard[0].path; }

const char *dt_st_meta(const dt_st *st, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(st->meta, key));
}

const char *dt_st_meta_at(const dt_st *st, int64_t i, const char **key)
{
    const cJSON *j;
    cJSON_ArrayForEach(j, st->meta)
        if (cJSON_IsString(j) && !i--)
            return *key = j->string, j->valuestring;
    return NULL;
}

/* --- writing --- */

static int add_entry_json(cJSON *root, const dt_st_entry *e, int64_t *at, dt_err *err)
{
    int64_t bytes;
    if (!dt_is_utf8(e->name, strlen(e->name)) || !strcmp(e->name, "__metadata__"))
        return dt_err_set(err, DT_EFAIL, "tensor name '%.200s' cannot be written", e->name);
    if (!size_of(e->dims, e->dtype, &bytes))
        return dt_err_set(err, DT_EFAIL, "tensor '%s' is too large", e->name);
    cJSON *j = cJSON_AddObjectToObject(root, e->name);
    cJSON_AddStringToObject(j, "dtype", dt_dtype_name(e->dtype));
    cJSON *shape = cJSON_AddArrayToObject(j, "shape"), *off = cJSON_AddArrayToObject(j, "data_offsets");
    for (int i = 0; i < e->dims.nd; i++)
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)e->dims.d[i]));
    cJSON_AddItemToArray(off, cJSON_CreateNumber((double)*at));
    *at += bytes;
    cJSON_AddItemToArray(off, cJSON_CreateNumber((double)*at));
    return 0;
}

/* Length word and JSON, padded with blanks so that data starts on a 64-byte boundary.  Caller frees. */
static int make_header(char **out, size_t *len, size_t *data_bytes, const dt_st_entry *e, int64_t n,
                       const dt_st_kv *meta, dt_err *err)
{
    cJSON *root = cJSON_CreateObject();
    dt_strmap *seen = dt_strmap_new();
    char *text = NULL;
    int64_t at = 0;
    int rc = 0;
    if (meta && meta->key) {
        cJSON *m = cJSON_AddObjectToObject(root, "__metadata__");
        for (; meta->key; meta++)
            cJSON_AddStringToObject(m, meta->key, meta->value);
    }
    for (int64_t i = 0; i < n && rc == 0; i++) {
        if (dt_strmap_add(seen, e[i].name, i) != i)
            rc = dt_err_set(err, DT_EFAIL, "tensor '%s' is given twice", e[i].name);
        else
            rc = add_entry_json(root, &e[i], &at, err);
    }
    if (rc < 0)
        goto out;
    text = cJSON_PrintUnformatted(root);
    size_t used = text ? strlen(text) : 0, total = (8 + used + 63) / 64 * 64;
    if (!text || total - 8 > MAX_HEADER) {
        rc = dt_err_set(err, DT_EFAIL, "header of %zu bytes is too long for a safetensors file", used);
        goto out;
    }
    *out = dt_alloc(total);
    uint64_t le = htole64(total - 8);
    memcpy(*out, &le, 8);
    memset(*out + 8, ' ', total - 8);
    memcpy(*out + 8, text, used);
    *len = total;
    *data_bytes = (size_t)at;
out:
    cJSON_free(text);
    dt_strmap_free(&seen);
    cJSON_Delete(root);
    return rc;
}

static size_t entry_bytes(const dt_st_entry *e)
{
    return (size_t)dt_numel(e->dims) * dt_dtype_size(e->dtype);
}

static int put(FILE *f, const void *data, size_t bytes, const char *path, dt_err *err)
{
    if (bytes && fwrite(data, 1, bytes, f) != bytes)
        return dt_err_sys(err, DT_EIO, "cannot write '%s'", path);
    return 0;
}

int dt_st_write_from(const char *path, const dt_st_entry *e, int64_t n, const dt_st_kv *meta, dt_st_fetch_fn fetch,
                     void *ctx, dt_err *err)
{
    dt_out *o = NULL;
    char *header = NULL;
    size_t len, total;
    int rc = make_header(&header, &len, &total, e, n, meta, err);
    if (rc < 0) {
        dt_err_prefix(err, "%s", path);
        goto out;
    }
    if ((rc = dt_out_open(&o, path, err)) < 0 || (rc = put(dt_out_file(o), header, len, path, err)) < 0)
        goto out;
    for (int64_t i = 0; i < n; i++) {
        const void *data = NULL;
        if ((rc = fetch(ctx, i, &data, err)) < 0 ||
            (rc = put(dt_out_file(o), data, entry_bytes(&e[i]), path, err)) < 0)
            goto out;
    }
    rc = dt_out_commit(&o, err);
out:
    dt_out_abort(&o);
    free(header);
    return rc;
}

static int fetch_entry(void *ctx, int64_t i, const void **data, dt_err *err)
{
    (void)err;
    *data = ((const dt_st_entry *)ctx)[i].data;
    return 0;
}

int dt_st_write(const char *path, const dt_st_entry *e, int64_t n, const dt_st_kv *meta, dt_err *err)
{
    return dt_st_write_from(path, e, n, meta, fetch_entry, (void *)e, err);
}

int dt_st_pack(void **data, size_t *bytes, const dt_st_entry *e, int64_t n, const dt_st_kv *meta, dt_err *err)
{
    char *header = NULL;
    size_t len, total;
    int rc = make_header(&header, &len, &total, e, n, meta, err);
    if (rc < 0)
        return rc;
    char *p = dt_try_alloc(len + total);
    if (!p) {
        free(header);
        return dt_err_set(err, DT_ENOMEM, "no memory for %zu bytes of tensors", len + total);
    }
    memcpy(p, header, len);
    size_t at = len;
    for (int64_t i = 0; i < n; at += entry_bytes(&e[i++]))
        if (entry_bytes(&e[i]))
            memcpy(p + at, e[i].data, entry_bytes(&e[i]));
    free(header);
    *data = p;
    *bytes = at;
    return 0;
}
