/* cache_store.c - a cache folder being filled, or a stream.  See cache_write.h.
 *
 * Shards are written by libarchive through dt_out, so a shard that has its name is complete.  What earlier
 * runs have left is found by walking the shards, not by believing indexes: a run that was killed wrote none. */
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
#include "base/spool.h"
#include "data/cache_tar.h"
#include "data/cache_write.h"

enum { BLOCK = 512, KEY_DIGITS = 32, LOCK_TRIES = 20, LOCK_WAIT_MS = 50 };

struct place {                      /* goes into a file as it is: all of it has a value */
    dt_hash key, sum;
    char    none[6];
    int64_t file, off, bytes;       /* file -1: in a stream, or not put yet */
};
_Static_assert(sizeof(struct place) == 2 * sizeof(dt_hash) + 6 + 3 * sizeof(int64_t), "without padding");

struct dt_cache_store {
    struct dt_cache_store_params p;
    char   *dir;
    int     lock;                   /* descriptor, -1: none */
    dt_cache_index *index;          /* newest first */
    int64_t n_index;
    dt_strs broken;
    dt_strs files;                  /* every shard, old and new */
    int64_t *file_bytes, file_cap;
    dt_spool *place;                /* [n] */
    int64_t n;
    dt_keymap *by_key;
    int64_t found;                  /* entries that were there on opening */
    int64_t serial, made;           /* of this run; shards it has begun */
    struct archive *a;              /* the shard or stream being written; NULL: none */
    dt_out *out;
    int64_t at;                     /* bytes written to it */
};

/* --- places --- */

int64_t dt_cache_store_find(const dt_cache_store *s, const dt_hash *key)
{
    return dt_keymap_get(s->by_key, key->hex, KEY_DIGITS);
}

int64_t dt_cache_store_claim(dt_cache_store *s, const dt_hash *key)
{
    dt_keymap_add(s->by_key, key->hex, KEY_DIGITS, s->n);
    return s->n++;
}

int64_t dt_cache_store_found(const dt_cache_store *s) { return s->found; }

int64_t dt_cache_store_places(const dt_cache_store *s) { return s->n; }

const char *dt_cache_store_file(const dt_cache_store *s, int64_t file) { return file < 0 ? "-" : s->files.v[file]; }

static int64_t add_file(dt_cache_store *s, const char *name, int64_t bytes)
{
    dt_strs_add(&s->files, name);
    dt_grow(&s->file_bytes, &s->file_cap, s->files.n, sizeof(*s->file_bytes));
    s->file_bytes[s->files.n - 1] = bytes;
    return s->files.n - 1;
}

/* --- taking stock --- */

bool dt_cache_member_key(const char *name, dt_hash *key)
{
    if (strspn(name, "0123456789abcdef") != KEY_DIGITS || strcmp(name + KEY_DIGITS, ".safetensors"))
        return false;
    memcpy(key->hex, name, KEY_DIGITS);
    key->hex[KEY_DIGITS] = '\0';
    return true;
}

/* Sums of entries that indexes know, so that their bytes need not be read: 1 and the record, owned. */
static int known(const dt_cache_store *s, const dt_cache_book *recs, const char *shard, const dt_hash *key,
                 const dt_tar_member *m, dt_cache_rec *rec, dt_err *err)
{
    const dt_cache_index *x;
    int64_t e = dt_cache_book_find(recs, key->hex);
    *rec = (dt_cache_rec){ 0 };
    if (e < 0)
        return 0;
    int rc = dt_cache_book_read(recs, e, s->index, rec, &x, err);
    if (rc < 0)
        return rc;
    return rec->kind != DT_CACHE_SKIP && rec->file >= 0 && !strcmp(x->files.v[rec->file], shard) &&
           rec->off == (int64_t)m->off && rec->bytes == (int64_t)m->bytes;
}

/* Walking through a shard touches each of its pages; those behind need not stay in memory. */
static void forget_behind(const dt_map *map, size_t pos, size_t *seen)
{
    enum { AT_ONCE = 1 << 20 };
    if (pos < *seen + AT_ONCE)
        return;
    dt_map_forget(map, map->data + *seen, pos - *seen);
    *seen = pos;
}

static int add_member(dt_cache_store *s, const dt_cache_book *recs, int64_t file, const dt_map *map,
                      const dt_tar_member *m, const dt_hash *key, dt_err *err)
{
    dt_cache_rec rec;
    struct place q = { .key = *key, .file = file, .off = (int64_t)m->off, .bytes = (int64_t)m->bytes };
    int rc = known(s, recs, s->files.v[file], key, m, &rec, err);
    if (rc >= 0)
        q.sum = rc ? rec.sum : dt_hash_bytes(map->data + m->off, m->bytes);
    dt_cache_rec_release(&rec);
    return rc < 0 ? rc : dt_spool_set(s->place, dt_cache_store_claim(s, key), &q, err);
}

static int add_members(dt_cache_store *s, const dt_cache_book *recs, const char *shard, const dt_map *map, dt_err *err)
{
    dt_tar_member m;
    size_t pos = 0, seen = 0;
    int64_t file = add_file(s, shard, (int64_t)map->bytes);
    int rc = 0;
    while (rc == 0 && dt_tar_next(map->data, map->bytes, &pos, &m, shard, NULL) == 1) {
        dt_hash key;
        if (!dt_cache_member_key(m.name, &key) || dt_cache_store_find(s, &key) >= 0)
            continue;
        rc = add_member(s, recs, file, map, &m, &key, err);
        forget_behind(map, pos, &seen);
    }
    return rc;
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

/* Keys that indexes speak of. */
static int note_keys(const dt_cache_store *s, dt_cache_book *recs, dt_err *err)
{
    int rc = 0;
    for (int64_t i = 0; i < s->n_index && rc == 0; i++) {
        size_t at = s->index[i].first, pos = at;
        dt_cache_rec rec;
        while ((rc = dt_cache_index_next(&s->index[i], &pos, &rec, err)) == 1) {
            if (rec.kind != DT_CACHE_SKIP)
                dt_cache_book_add(recs, rec.key.hex, i, at);
            dt_cache_rec_release(&rec);
            at = pos;
        }
    }
    return rc;
}

static int take_stock(dt_cache_store *s, dt_err *err)
{
    dt_strs names = { 0 };
    dt_cache_book recs;
    dt_cache_book_init(&recs);
    int rc = dt_cache_indexes(&s->index, &s->n_index, s->dir, &s->broken, err);
    for (int64_t i = 0; i < s->n_index; i++)
        s->serial = s->index[i].serial > s->serial ? s->index[i].serial : s->serial;
    if (rc == 0)
        rc = note_keys(s, &recs, err);
    if (rc == 0)
        rc = list_shards(s, &names, err);
    for (int64_t i = 0; rc == 0 && i < names.n; i++) {
        dt_map map = { 0 };
        dt_err bad = { 0 };
        char *path = dt_path_join(s->dir, names.v[i]);
        if (dt_map_open(&map, path, &bad) < 0 || check_shard(&map, path, &bad) < 0)
            dt_strs_add(&s->broken, bad.msg);
        else
            rc = add_members(s, &recs, names.v[i], &map, err);
        dt_map_close(&map);
        free(path);
    }
    s->serial++;
    s->found = s->n;
    dt_cache_book_release(&recs);
    dt_strs_release(&names);
    return rc;
}

/* One process at a time for each shard/shards: two would give their files the same names.  One that was
 * killed may take a moment to go. */
static int take_lock(dt_cache_store *s, dt_err *err)
{
    char *path = dt_sprintf("%s/.lock-%lldof%lld", s->dir, (long long)s->p.shard, (long long)s->p.shards);
    int busy = -1, rc = 0;
    s->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (s->lock < 0)
        rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", path);
    for (int i = 0; rc == 0 && i < LOCK_TRIES && (busy = flock(s->lock, LOCK_EX | LOCK_NB)) < 0 && errno == EWOULDBLOCK;
         i++)
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
    s->by_key = dt_keymap_new();
    s->p.shards = p->shards ? p->shards : 1;
    s->p.max_bytes = p->max_bytes ? p->max_bytes : (int64_t)256 << 20;
    if (p->dir) {
        s->dir = dt_strdup(p->dir);
        if ((rc = dt_mkdirs(s->dir, err)) == 0)
            rc = take_lock(s, err);
    }
    if (rc == 0)
        rc = dt_spool_open(&s->place, s->dir, sizeof(struct place), err);
    if (rc == 0 && s->dir)
        rc = take_stock(s, err);
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
    dt_spool_close(&s->place);
    if (s->lock >= 0)
        close(s->lock);
    dt_keymap_free(&s->by_key);
    dt_strs_release(&s->broken);
    dt_strs_release(&s->files);
    free(s->file_bytes);
    free(s->index);
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
    return dt_err_set(err, e == ENOMEM || !words ? DT_ENOMEM : DT_EIO, "cannot write %s: %s", what,
                      words ? words : "no memory");
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

/* Appends a member; *off is where its data begins.  The data, or if it is NULL the contents of `file`
 * from its beginning. */
static int append(dt_cache_store *s, const char *name, const void *data, FILE *file, size_t bytes, int64_t *off,
                  dt_err *err)
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
    bool ok = archive_write_header(s->a, e) == ARCHIVE_OK;
    archive_entry_free(e);
    char buf[1 << 14];
    for (size_t done = 0, n = 0; ok && done < bytes; done += n) {
        n = data ? bytes - done : bytes - done < sizeof(buf) ? bytes - done : sizeof(buf);
        if (!data && pread(fileno(file), buf, n, (off_t)done) != (ssize_t)n)
            return dt_err_sys(err, DT_EIO, "cannot read %s again", name);
        ok = archive_write_data(s->a, data ? data : buf, n) == (la_ssize_t)n;
    }
    if (!ok || archive_write_finish_entry(s->a) != ARCHIVE_OK)
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

int dt_cache_store_member(dt_cache_store *s, const char *name, FILE *file, dt_err *err)
{
    struct stat st;
    int64_t off;
    if (fstat(fileno(file), &st) < 0)
        return dt_err_sys(err, DT_EIO, "cannot read %s again", name);
    return append(s, name, NULL, file, (size_t)st.st_size, &off, err);
}

int dt_cache_store_put(dt_cache_store *s, int64_t place, const dt_hash *key, const void *data, size_t bytes,
                       dt_err *err)
{
    char *name = dt_sprintf("%s.safetensors", key->hex);
    int64_t off = 0;
    int rc = append(s, name, data, NULL, bytes, &off, err);
    free(name);
    if (rc < 0)
        return rc;
    struct place q = { .key = *key, .sum = dt_hash_bytes(data, bytes), .file = s->dir ? s->files.n - 1 : -1,
                       .off = s->dir ? off : 0, .bytes = (int64_t)bytes };
    if ((rc = dt_spool_set(s->place, place, &q, err)) < 0)
        return rc;
    return s->dir && s->at >= s->p.max_bytes ? dt_cache_store_finish(s, err) : 0;
}

/* --- committing --- */

int dt_cache_store_fill(const dt_cache_store *s, dt_cache_rec *rec, int64_t place, dt_err *err)
{
    struct place q;
    int rc = dt_spool_get(s->place, place, &q, err);
    if (rc < 0)
        return rc;
    rec->key = q.key;
    rec->sum = q.sum;
    rec->file = q.file;                         /* of the store; dt_cache_store_commit makes it the index's */
    rec->off = q.off;
    rec->bytes = q.bytes;
    return 0;
}

/* Records of an index: those of the store with numbers of the index's files. */
struct of_index {
    const struct dt_cache_lines *lines;
    const int64_t *file;            /* [files of the store] number in the index */
};

static int get_line(void *ctx, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    const struct of_index *o = ctx;
    int rc = o->lines->get(o->lines->ctx, i, rec, err);
    if (rc == 1 && rec->kind != DT_CACHE_SKIP && rec->file >= 0)
        rec->file = o->file[rec->file];
    return rc;
}

/* Lists the shards that records are in, each once, in the store's order; file[f]: which the store's f-th is. */
static int list_files(const dt_cache_store *s, const struct dt_cache_lines *lines, dt_cache_index *x, int64_t *file,
                      dt_err *err)
{
    int rc = 0;
    x->file_bytes = dt_alloc((size_t)(s->files.n + 1) * sizeof(*x->file_bytes));
    for (int64_t i = 0; i < lines->n && rc >= 0; i++) {
        dt_cache_rec rec = { 0 };
        if ((rc = lines->get(lines->ctx, i, &rec, err)) == 1 && rec.kind != DT_CACHE_SKIP && rec.file >= 0)
            file[rec.file] = 1;
        dt_cache_rec_release(&rec);
    }
    for (int64_t f = 0; f < s->files.n; f++)
        if (file[f]) {
            file[f] = x->files.n;
            x->file_bytes[x->files.n] = s->file_bytes[f];
            dt_strs_add(&x->files, s->files.v[f]);
        }
    return rc < 0 ? rc : 0;
}

/* What the folder's newest indexes say. */
struct said {
    dt_cache_book  book[3];         /* by kind */
    dt_cache_paths paths;
};

static int listen(const dt_cache_store *s, struct said *d, dt_err *err)
{
    int rc = 0;
    dt_cache_paths_init(&d->paths, s->index, s->n_index);
    for (int k = 0; k < 3; k++)
        dt_cache_book_init(&d->book[k]);
    for (int64_t i = 0; rc == 0 && i < s->n_index; i++) {
        size_t at = s->index[i].first, pos = at;
        dt_cache_rec rec;
        while ((rc = dt_cache_index_next(&s->index[i], &pos, &rec, err)) == 1) {
            dt_cache_book_add(&d->book[rec.kind], rec.req, i, at);
            if (rec.kind != DT_CACHE_TEXT)
                dt_cache_paths_note(&d->paths, &rec);
            dt_cache_rec_release(&rec);
            at = pos;
        }
    }
    return rc;
}

/* Is a record what they say of its request?  1, 0. */
static int says(const dt_cache_store *s, const struct said *d, const dt_cache_index *x, const dt_cache_rec *r,
                dt_err *err)
{
    const dt_cache_index *y;
    dt_cache_rec q;
    int64_t e = dt_cache_book_find(&d->book[r->kind], r->req);
    const char *path = r->kind == DT_CACHE_SKIP ? r->req : dt_cache_request_path(r->req);
    if (e < 0 || (r->kind != DT_CACHE_TEXT && dt_cache_paths_skip(&d->paths, path) != (r->kind == DT_CACHE_SKIP)))
        return 0;
    int rc = dt_cache_book_read(&d->book[r->kind], e, s->index, &q, &y, err);
    if (rc < 0)
        return rc;
    bool same = r->kind == DT_CACHE_SKIP
                    ? !strcmp(q.why, r->why)
                    : q.file >= 0 && r->file >= 0 && !strcmp(q.key.hex, r->key.hex) &&
                          !strcmp(q.stat.hex, r->stat.hex) && q.off == r->off &&
                          !strcmp(y->files.v[q.file], x->files.v[r->file]);
    dt_cache_rec_release(&q);
    return same;
}

/* Does the folder say all of it already?  A path that is an image here and a skip there is news, as is the reverse. */
static int says_all(const dt_cache_store *s, const dt_cache_index *x, const struct dt_cache_lines *lines, dt_err *err)
{
    struct said d;
    int same = 1;
    if (!s->n_index || !dt_cache_recipe_same(&x->recipe, &s->index[0].recipe))
        return 0;
    int rc = listen(s, &d, err);
    for (int64_t i = 0; rc >= 0 && same == 1 && i < lines->n; i++) {
        dt_cache_rec rec = { 0 };
        if ((rc = lines->get(lines->ctx, i, &rec, err)) == 1)
            same = says(s, &d, x, &rec, err);
        dt_cache_rec_release(&rec);
    }
    for (int k = 0; k < 3; k++)
        dt_cache_book_release(&d.book[k]);
    dt_cache_paths_release(&d.paths);
    return rc < 0 ? rc : same;
}

static int write_index(dt_cache_store *s, const dt_cache_index *x, const struct dt_cache_lines *lines, dt_err *err)
{
    dt_out *out = NULL;
    char *path = dt_sprintf("%s/index-%06lld-%lldof%lld.ndjson", s->dir, (long long)x->serial, (long long)x->shard,
                            (long long)x->shards);
    int rc = dt_out_open(&out, path, err);
    if (rc == 0)
        rc = dt_cache_index_write(x, lines, dt_out_file(out), err);
    if (rc == 0)
        rc = dt_out_commit(&out, err);
    dt_out_abort(&out);
    free(path);
    return rc;
}

static int stream_index(dt_cache_store *s, const dt_cache_index *x, const struct dt_cache_lines *lines, dt_err *err)
{
    int fd = dt_unnamed_file(NULL, err), rc;
    if (fd < 0)
        return fd;
    FILE *f = dt_must(fdopen(fd, "w+"));
    rc = dt_cache_index_write(x, lines, f, err);
    if (rc == 0 && fflush(f))
        rc = dt_err_sys(err, DT_EIO, "cannot write a temporary file");
    if (rc == 0)
        rc = dt_cache_store_member(s, "index.ndjson", f, err);
    if (rc == 0)
        rc = dt_cache_store_finish(s, err);
    fclose(f);
    return rc;
}

static int commit_folder(dt_cache_store *s, dt_cache_index *x, const struct dt_cache_lines *lines, bool *wrote,
                         dt_err *err)
{
    int64_t *file = dt_alloc((size_t)(s->files.n + 1) * sizeof(*file));
    struct of_index o = { lines, file };
    const struct dt_cache_lines mapped = { .n = lines->n, .get = get_line, .ctx = &o };
    int rc = list_files(s, lines, x, file, err);
    int same = rc < 0 ? rc : says_all(s, x, &mapped, err);
    rc = same < 0 ? same : 0;
    *wrote = same == 0;
    if (*wrote)
        rc = write_index(s, x, &mapped, err);
    free(file);
    return rc;
}

int dt_cache_store_commit(dt_cache_store *s, const dt_cache_recipe *recipe, const struct dt_cache_lines *lines,
                          bool *wrote, dt_err *err)
{
    dt_cache_index x = { .serial = s->serial, .shard = s->p.shard, .shards = s->p.shards, .recipe = *recipe };
    int rc;
    *wrote = !s->dir;
    if (!s->dir)
        rc = stream_index(s, &x, lines, err);
    else if ((rc = dt_cache_store_finish(s, err)) == 0)
        rc = commit_folder(s, &x, lines, wrote, err);
    dt_cache_index_release(&x);
    return rc;
}
