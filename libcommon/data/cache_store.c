/* cache_store.c - a cache folder being filled, or a stream.  See cache_write.h.
 *
 * Shards are written by libarchive through dt_out, so a shard that has its name is complete.  What earlier runs have left is
 * found by walking the shards, not by believing indexes: a run that was killed wrote none. */
#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "data/cache_tar.h"
#include "data/cache_write.h"
#include "tensor/strmap.h"

enum { BLOCK = 512, KEY_DIGITS = 32, LOCK_TRIES = 20, LOCK_WAIT_MS = 50 };

struct place {
    dt_hash key, sum;
    int64_t file, off, bytes;       /* file -1: in a stream, or not put yet */
    bool    put;
};

struct dt_cache_store {
    struct dt_cache_store_params p;
    char   *dir;
    int     lock;                   /* descriptor, -1: none */
    dt_cache_index *index;          /* newest first */
    int64_t n_index;
    dt_strs broken;
    dt_strs files;                  /* every shard, old and new */
    int64_t *file_bytes, file_cap;
    struct place **place;
    int64_t n, cap;
    dt_strmap *by_key;
    int64_t found;                  /* entries that were there on opening */
    int64_t serial, made;           /* of this run; shards it has begun */
    struct archive *a;              /* the shard or stream being written; NULL: none */
    dt_out *out;
    int64_t at;                     /* bytes written to it */
};

/* --- places --- */

int64_t dt_cache_store_find(const dt_cache_store *s, const dt_hash *key)
{
    return dt_strmap_get(s->by_key, key->hex);
}

int64_t dt_cache_store_claim(dt_cache_store *s, const dt_hash *key)
{
    struct place *q = dt_alloc(sizeof(*q));
    *q = (struct place){ .key = *key, .file = -1 };
    dt_grow(&s->place, &s->cap, s->n + 1, sizeof(*s->place));
    s->place[s->n] = q;
    dt_strmap_add(s->by_key, q->key.hex, s->n);
    return s->n++;
}

int64_t dt_cache_store_bytes(const dt_cache_store *s, int64_t place) { return s->place[place]->bytes; }

int64_t dt_cache_store_found(const dt_cache_store *s) { return s->found; }

const char *dt_cache_store_key(const dt_cache_store *s, int64_t place) { return s->place[place]->key.hex; }

const char *dt_cache_store_file(const dt_cache_store *s, int64_t place)
{
    return s->place[place]->file < 0 ? "-" : s->files.v[s->place[place]->file];
}

static int64_t add_file(dt_cache_store *s, const char *name, int64_t bytes)
{
    dt_strs_add(&s->files, name);
    dt_grow(&s->file_bytes, &s->file_cap, s->files.n, sizeof(*s->file_bytes));
    s->file_bytes[s->files.n - 1] = bytes;
    return s->files.n - 1;
}

/* --- taking stock --- */

/* The hash in "HASH.safetensors". */
static bool member_key(const char *name, dt_hash *key)
{
    if (strspn(name, "0123456789abcdef") != KEY_DIGITS || strcmp(name + KEY_DIGITS, ".safetensors"))
        return false;
    memcpy(key->hex, name, KEY_DIGITS);
    key->hex[KEY_DIGITS] = '\0';
    return true;
}

/* Sums of entries that indexes know, so that their bytes need not be read. */
static const dt_cache_rec *known(const dt_cache_store *s, const dt_strmap *recs, const char *shard,
                                 const dt_hash *key, const dt_tar_member *m)
{
    int64_t at = dt_strmap_get(recs, key->hex);
    if (at < 0)
        return NULL;
    const dt_cache_index *x = &s->index[at >> 32];
    const dt_cache_rec *r = &x->rec[at & 0xffffffff];
    bool same = r->file >= 0 && !strcmp(x->files.v[r->file], shard) && r->off == (int64_t)m->off &&
                r->bytes == (int64_t)m->bytes;
    return same ? r : NULL;
}

/* Walking through a shard touches each of its pages; those behind need not stay in memory. */
static void forget_behind(const dt_map *map, size_t pos, size_t *seen)
{
    enum { AT_ONCE = 16 << 20 };
    if (pos < *seen + AT_ONCE)
        return;
    dt_map_forget(map, map->data + *seen, pos - *seen);
    *seen = pos;
}

static void add_members(dt_cache_store *s, const dt_strmap *recs, const char *shard, const dt_map *map)
{
    dt_tar_member m;
    size_t pos = 0, seen = 0;
    int64_t file = add_file(s, shard, (int64_t)map->bytes);
    while (dt_tar_next(map->data, map->bytes, &pos, &m, shard, NULL) == 1) {
        dt_hash key;
        if (!member_key(m.name, &key) || dt_cache_store_find(s, &key) >= 0)
            continue;
        const dt_cache_rec *r = known(s, recs, shard, &key, &m);
        int64_t at = dt_cache_store_claim(s, &key);
        struct place *q = s->place[at];
        q->sum = r ? r->sum : dt_hash_bytes(map->data + m.off, m.bytes);
        q->file = file, q->off = (int64_t)m.off, q->bytes = (int64_t)m.bytes, q->put = true;
        forget_behind(map, pos, &seen);
    }
}

static int check_shard(const dt_map *map, const char *path, dt_err *err)
{
    dt_tar_member m;
    size_t pos = 0, seen = 0;
    int rc;
    while ((rc = dt_tar_next(map->data, map->bytes, &pos, &m, path, err)) == 1)
        forget_behind(map, pos, &seen);
    return rc;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Names of complete shards, sorted; removes what a killed run of our shard/shards has left half-written. */
static int list_shards(dt_cache_store *s, dt_strs *names, dt_err *err)
{
    char *mine = dt_sprintf(".*-%lldof%lld[-.]*.tmp", (long long)s->p.shard, (long long)s->p.shards);
    DIR *d = opendir(s->dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        long long serial;
        if (e->d_name[0] != '.' && !strcmp(dt_path_ext(e->d_name), ".tar"))
            dt_strs_add(names, e->d_name);
        if (sscanf(e->d_name, "shard-%lld-", &serial) == 1 && serial > s->serial)
            s->serial = serial;
        if (!fnmatch(mine, e->d_name, 0))
            unlinkat(dirfd(d), e->d_name, 0);
    }
    free(mine);
    if (!d)
        return dt_err_sys(err, DT_EDATA, "cannot open cache folder '%s'", s->dir);
    closedir(d);
    if (names->n)
        qsort(names->v, (size_t)names->n, sizeof(*names->v), by_name);
    return 0;
}

static int take_stock(dt_cache_store *s, dt_err *err)
{
    dt_strs names = { 0 };
    dt_strmap *recs = dt_strmap_new();
    int rc = dt_cache_indexes(&s->index, &s->n_index, s->dir, &s->broken, err);
    for (int64_t i = 0; i < s->n_index; i++) {
        s->serial = s->index[i].serial > s->serial ? s->index[i].serial : s->serial;
        for (int64_t k = 0; k < s->index[i].n; k++)
            if (s->index[i].rec[k].kind != DT_CACHE_SKIP)
                dt_strmap_add(recs, s->index[i].rec[k].key.hex, i << 32 | k);
    }
    if (rc == 0)
        rc = list_shards(s, &names, err);
    for (int64_t i = 0; rc == 0 && i < names.n; i++) {
        dt_map map = { 0 };
        dt_err bad = { 0 };
        char *path = dt_path_join(s->dir, names.v[i]);
        if (dt_map_open(&map, path, &bad) < 0 || check_shard(&map, path, &bad) < 0)
            dt_strs_add(&s->broken, bad.msg);
        else
            add_members(s, recs, names.v[i], &map);
        dt_map_close(&map);
        free(path);
    }
    s->serial++;
    s->found = s->n;
    dt_strmap_free(&recs);
    dt_strs_release(&names);
    return rc;
}

/* One process at a time for each shard/shards: two would give their files the same names.  One that was killed may take a
 * moment to go. */
static int take_lock(dt_cache_store *s, dt_err *err)
{
    char *path = dt_sprintf("%s/.lock-%lldof%lld", s->dir, (long long)s->p.shard, (long long)s->p.shards);
    int busy = -1, rc = 0;
    s->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (s->lock < 0)
        rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", path);
    for (int i = 0; rc == 0 && i < LOCK_TRIES && (busy = flock(s->lock, LOCK_EX | LOCK_NB)) < 0 && errno == EWOULDBLOCK; i++)
        nanosleep(&(struct timespec){ .tv_nsec = LOCK_WAIT_MS * 1000000 }, NULL);
    if (rc == 0 && busy < 0 && errno == EWOULDBLOCK)
        rc = dt_err_set(err, DT_EFAIL, "'%s' is being filled by another process", s->dir);
    free(path);
    return rc;
}

int dt_cache_store_open(dt_cache_store **out, const struct dt_cache_store_params *p, dt_err *err)
{
    dt_cache_store *s = dt_alloc(sizeof(*s));
    int rc = 0;
    s->p = *p;
    s->lock = -1;
    s->by_key = dt_strmap_new();
    s->p.shards = p->shards ? p->shards : 1;
    s->p.max_bytes = p->max_bytes ? p->max_bytes : (int64_t)256 << 20;
    if (p->dir) {
        s->dir = dt_strdup(p->dir);
        if ((rc = dt_mkdirs(s->dir, err)) == 0 && (rc = take_lock(s, err)) == 0)
            rc = take_stock(s, err);
    }
    if (rc < 0)
        dt_cache_store_close(&s);
    *out = s;
    return rc;
}

void dt_cache_store_close(dt_cache_store **ps)
{
    dt_cache_store *s = *ps;
    *ps = NULL;
    if (!s)
        return;
    if (s->a)
        archive_write_free(s->a);
    dt_out_abort(&s->out);
    for (int64_t i = 0; i < s->n_index; i++)
        dt_cache_index_release(&s->index[i]);
    for (int64_t i = 0; i < s->n; i++)
        free(s->place[i]);
    if (s->lock >= 0)
        close(s->lock);
    dt_strmap_free(&s->by_key);
    dt_strs_release(&s->broken);
    dt_strs_release(&s->files);
    free(s->file_bytes);
    free(s->index);
    free(s->place);
    free(s->dir);
    free(s);
}

const dt_strs *dt_cache_store_broken(const dt_cache_store *s) { return &s->broken; }

const dt_cache_index *dt_cache_store_index(const dt_cache_store *s, int64_t i)
{
    return i >= 0 && i < s->n_index ? &s->index[i] : NULL;
}

/* --- writing --- */

static int archive_failed(const dt_cache_store *s, dt_err *err)
{
    const char *what = s->dir ? s->files.v[s->files.n - 1] : "the stream";
    int e = archive_errno(s->a);
    const char *words = e > 0 ? strerror(e) : archive_error_string(s->a);
    return dt_err_set(err, e == ENOMEM || !words ? DT_ENOMEM : DT_EIO, "cannot write %s: %s", what, words ? words : "no memory");
}

static int begin(dt_cache_store *s, dt_err *err)
{
    FILE *f = s->p.out;
    if (s->dir) {
        char *name = dt_sprintf("shard-%06lld-%lldof%lld-%04lld.tar", (long long)s->serial, (long long)s->p.shard,
                                (long long)s->p.shards, (long long)s->made++);
        char *path = dt_path_join(s->dir, name);
        int rc = dt_out_open(&s->out, path, err);
        if (rc == 0)
            add_file(s, name, 0);
        free(path);
        free(name);
        if (rc < 0)
            return rc;
        f = dt_out_file(s->out);
    }
    s->at = 0;
    s->a = dt_must(archive_write_new());
    archive_write_set_format_ustar(s->a);
    archive_write_set_bytes_per_block(s->a, 0);
    archive_write_set_bytes_in_last_block(s->a, 1);
    return archive_write_open_FILE(s->a, f) == ARCHIVE_OK ? 0 : archive_failed(s, err);
}

/* Appends a member; *off is where its data begins. */
static int append(dt_cache_store *s, const char *name, const void *data, size_t bytes, int64_t *off, dt_err *err)
{
    int rc = s->a ? 0 : begin(s, err);
    if (rc < 0)
        return rc;
    struct archive_entry *e = dt_must(archive_entry_new());
    archive_entry_set_pathname(e, name);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_size(e, (la_int64_t)bytes);
    archive_entry_set_mtime(e, 0, 0);           /* the same entries give the same bytes */
    bool ok = archive_write_header(s->a, e) == ARCHIVE_OK &&
              (!bytes || archive_write_data(s->a, data, bytes) == (la_ssize_t)bytes) &&
              archive_write_finish_entry(s->a) == ARCHIVE_OK;
    archive_entry_free(e);
    if (!ok)
        return archive_failed(s, err);
    *off = s->at + BLOCK;
    s->at = *off + (int64_t)(bytes + BLOCK - 1) / BLOCK * BLOCK;
    return 0;
}

int dt_cache_store_finish(dt_cache_store *s, dt_err *err)
{
    int rc = 0;
    if (!s->a)
        return 0;
    if (archive_write_close(s->a) != ARCHIVE_OK)
        rc = archive_failed(s, err);
    archive_write_free(s->a);
    s->a = NULL;
    if (!s->dir)
        return rc;
    s->file_bytes[s->files.n - 1] = s->at + 2 * BLOCK;
    if (rc == 0)
        rc = dt_out_commit(&s->out, err);
    dt_out_abort(&s->out);
    return rc;
}

int dt_cache_store_member(dt_cache_store *s, const char *name, const void *data, size_t bytes, dt_err *err)
{
    int64_t off;
    return append(s, name, data, bytes, &off, err);
}

int dt_cache_store_put(dt_cache_store *s, int64_t place, const void *data, size_t bytes, dt_err *err)
{
    struct place *q = s->place[place];
    char *name = dt_sprintf("%s.safetensors", q->key.hex);
    int64_t off = 0;
    int rc = append(s, name, data, bytes, &off, err);
    free(name);
    if (rc < 0)
        return rc;
    q->sum = dt_hash_bytes(data, bytes);
    q->file = s->dir ? s->files.n - 1 : -1;
    q->off = s->dir ? off : 0;
    q->bytes = (int64_t)bytes;
    q->put = true;
    return s->dir && s->at >= s->p.max_bytes ? dt_cache_store_finish(s, err) : 0;
}

/* --- committing --- */

void dt_cache_store_fill(const dt_cache_store *s, dt_cache_rec *rec, int64_t place)
{
    const struct place *q = s->place[place];
    rec->key = q->key;
    rec->sum = q->sum;
    rec->file = q->file;                        /* of the store; dt_cache_store_commit makes it the index's */
    rec->off = q->off;
    rec->bytes = q->bytes;
}

/* Lists the shards that records are in, each once, in the store's order. */
static void list_files(const dt_cache_store *s, dt_cache_index *x)
{
    int64_t *to = dt_alloc((size_t)(s->files.n + 1) * sizeof(*to));
    x->file_bytes = dt_alloc((size_t)(s->files.n + 1) * sizeof(*x->file_bytes));
    for (int64_t i = 0; i < x->n; i++)
        if (x->rec[i].kind != DT_CACHE_SKIP && x->rec[i].file >= 0)
            to[x->rec[i].file] = 1;
    for (int64_t f = 0; f < s->files.n; f++)
        if (to[f]) {
            to[f] = x->files.n;
            x->file_bytes[x->files.n] = s->file_bytes[f];
            dt_strs_add(&x->files, s->files.v[f]);
        }
    for (int64_t i = 0; i < x->n; i++)
        if (x->rec[i].kind != DT_CACHE_SKIP && x->rec[i].file >= 0)
            x->rec[i].file = to[x->rec[i].file];
    free(to);
}

/* What the folder's newest indexes say about a request, or NULL. */
static const dt_cache_rec *said(const dt_cache_store *s, const dt_strmap *const map[3], const dt_cache_rec *r,
                                const char **file)
{
    int64_t at = dt_strmap_get(map[r->kind], r->req);
    if (at < 0)
        return NULL;
    const dt_cache_index *x = &s->index[at >> 32];
    const dt_cache_rec *q = &x->rec[at & 0xffffffff];
    *file = q->kind == DT_CACHE_SKIP || q->file < 0 ? "" : x->files.v[q->file];
    return q;
}

/* Does the folder say all of it already?  A path that is an image here and a skip there is news, as is the reverse. */
static bool says_all(const dt_cache_store *s, const dt_cache_index *x)
{
    dt_strmap *map[3] = { dt_strmap_new(), dt_strmap_new(), dt_strmap_new() }, *paths = dt_strmap_new();
    bool same = s->n_index && dt_cache_recipe_same(&x->recipe, &s->index[0].recipe);
    for (int64_t i = 0; same && i < s->n_index; i++)
        for (int64_t k = 0; k < s->index[i].n; k++) {
            const dt_cache_rec *r = &s->index[i].rec[k];
            dt_strmap_add(map[r->kind], r->req, i << 32 | k);
            if (r->kind != DT_CACHE_TEXT)
                dt_strmap_add(paths, r->kind == DT_CACHE_SKIP ? r->req : dt_cache_request_path(r->req), r->kind);
        }
    for (int64_t i = 0; same && i < x->n; i++) {
        const dt_cache_rec *r = &x->rec[i];
        const char *file, *path = r->kind == DT_CACHE_SKIP ? r->req : dt_cache_request_path(r->req);
        const dt_cache_rec *q = said(s, (const dt_strmap *const *)map, r, &file);
        same = q && (r->kind == DT_CACHE_TEXT || dt_strmap_get(paths, path) == (int64_t)r->kind) &&
               (r->kind == DT_CACHE_SKIP
                    ? !strcmp(q->why, r->why)
                    : !strcmp(q->key.hex, r->key.hex) && !strcmp(q->stat.hex, r->stat.hex) && q->off == r->off &&
                          !strcmp(file, x->files.v[r->file]));
    }
    for (int i = 0; i < 3; i++)
        dt_strmap_free(&map[i]);
    dt_strmap_free(&paths);
    return same;
}

static int write_index(dt_cache_store *s, const dt_cache_index *x, dt_err *err)
{
    dt_out *out = NULL;
    char *path = dt_sprintf("%s/index-%06lld-%lldof%lld.ndjson", s->dir, (long long)x->serial, (long long)x->shard,
                            (long long)x->shards);
    int rc = dt_out_open(&out, path, err);
    if (rc == 0)
        rc = dt_cache_index_write(x, dt_out_file(out), err);
    if (rc == 0)
        rc = dt_out_commit(&out, err);
    dt_out_abort(&out);
    free(path);
    return rc;
}

static int stream_index(dt_cache_store *s, const dt_cache_index *x, dt_err *err)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    int rc = f ? dt_cache_index_write(x, f, err) : dt_err_set(err, DT_ENOMEM, "no memory for the index");
    if (f)
        fclose(f);
    if (rc == 0)
        rc = dt_cache_store_member(s, "index.ndjson", text, bytes, err);
    if (rc == 0)
        rc = dt_cache_store_finish(s, err);
    free(text);
    return rc;
}

int dt_cache_store_commit(dt_cache_store *s, dt_cache_index *x, bool *wrote, dt_err *err)
{
    *wrote = false;
    x->serial = s->serial;
    x->shard = s->p.shard;
    x->shards = s->p.shards;
    if (!s->dir) {
        *wrote = true;
        return stream_index(s, x, err);
    }
    int rc = dt_cache_store_finish(s, err);
    if (rc < 0)
        return rc;
    list_files(s, x);
    if (says_all(s, x))
        return 0;
    *wrote = true;
    return write_index(s, x, err);
}
