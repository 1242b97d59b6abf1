/* cache_stream.c - receiving a cache that comes as one tar stream.  See cache.h.
 *
 * plan.ndjson first, then entries, index.ndjson last.  Entries go into shards as they come; they mean
 * nothing until the index has come, has been compared with them, and is written. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/spool.h"
#include "data/cache_write.h"

#define MAX_MEMBER_BYTES ((int64_t)1 << 31)
#define MAX_TEXT_BYTES ((int64_t)4 << 30)
#define FIRST_BYTES ((size_t)4 << 20)   /* of a member get memory at once; for more, as many must have come */

struct receiver {
    struct archive *a;
    dt_cache_store *store;
    FILE   *plan, *index;           /* temporary copies */
    char   *data;                   /* of the current entry */
    size_t  bytes;
    char    name[101];
    int64_t size, members;          /* of the current member; how many there were */
};

static int ends_early(const struct receiver *r, dt_err *err)
{
    if (archive_errno(r->a) == ENOMEM)
        return dt_err_set(err, DT_ENOMEM, "no memory to read the cache stream");
    return dt_err_set(err, DT_EDATA, "the cache stream ends early, in '%s'", r->name);
}

/* r->data, r->bytes: what the current member holds. */
static int read_data(struct receiver *r, dt_err *err)
{
    size_t n = 0, room = 0, size = (size_t)r->size;
    free(r->data);
    r->data = NULL;
    r->bytes = size;
    do {
        room = !room ? FIRST_BYTES : 2 * room;
        room = room < size ? room : size;
        char *grown = realloc(r->data, room + 1);
        if (!grown)
            return dt_err_set(err, DT_ENOMEM, "no memory for %zu bytes of the cache stream", size);
        r->data = grown;
        while (n < room) {
            la_ssize_t k = archive_read_data(r->a, r->data + n, room - n);
            if (k <= 0)
                return ends_early(r, err);
            n += (size_t)k;
        }
    } while (n < size);
    return 0;
}

/* A temporary file of what the current member holds. */
static int copy_data(struct receiver *r, FILE **f, dt_err *err)
{
    char buf[1 << 14];
    int fd = dt_unnamed_file(NULL, err);
    if (fd < 0)
        return fd;
    *f = dt_must(fdopen(fd, "w+"));
    for (int64_t n = 0; n < r->size;) {
        la_ssize_t k = archive_read_data(r->a, buf, sizeof(buf));
        if (k <= 0)
            return ends_early(r, err);
        fwrite(buf, 1, (size_t)k, *f);
        n += k;
    }
    return fflush(*f) || ferror(*f) ? dt_err_sys(err, DT_EIO, "cannot write a temporary copy of %s", r->name) : 0;
}

/* 1 and the member's r->name and r->size; 0 at the end. */
static int next_member(struct receiver *r, dt_err *err)
{
    struct archive_entry *e;
    int got = archive_read_next_header(r->a, &e);
    if (got == ARCHIVE_EOF)
        return 0;
    if (got != ARCHIVE_OK)
        return dt_err_set(err, DT_EDATA, "the cache stream is damaged after %lld members: %s", (long long)r->members,
                          archive_error_string(r->a));
    const char *name = archive_entry_pathname(e);
    int64_t size = archive_entry_size(e);
    int64_t max = name && !strcmp(dt_path_ext(name), ".ndjson") ? MAX_TEXT_BYTES : MAX_MEMBER_BYTES;
    if (!name || strlen(name) > 100 || strchr(name, '/') || archive_entry_filetype(e) != AE_IFREG || size < 0 ||
        size > max)
        return dt_err_set(err, DT_EDATA, "the cache stream has a member that is none of a cache: '%.100s'",
                          name ? name : "");
    snprintf(r->name, sizeof(r->name), "%s", name);
    r->size = size;
    r->members++;
    return 1;
}

static int take_entry(struct receiver *r, dt_err *err)
{
    dt_hash key;
    if (!dt_cache_member_key(r->name, &key))
        return dt_err_set(err, DT_EDATA, "the cache stream has a member that is none of a cache: '%s'", r->name);
    int rc = read_data(r, err);
    if (rc < 0 || dt_cache_store_find(r->store, &key) >= 0)
        return rc;
    return dt_cache_store_put(r->store, dt_cache_store_claim(r->store, &key), &key, r->data, r->bytes, err);
}

/* Records of the index that came, in its order: each gets the place where its entry lies here; the bytes
 * must be those that were sent. */
struct settling {
    struct receiver *r;
    const dt_cache_index *x;
    size_t pos;
};

static int get_settled(void *ctx, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    struct settling *s = ctx;
    s->pos = i ? s->pos : 0;
    int rc = dt_cache_index_next(s->x, &s->pos, rec, err);
    if (rc < 1 || rec->kind == DT_CACHE_SKIP)
        return rc;
    dt_hash sum = rec->sum;
    int64_t place = dt_cache_store_find(s->r->store, &rec->key);
    if (place < 0)
        rc = dt_err_set(err, DT_EDATA, "the cache stream lacks entry %s", rec->key.hex);
    else if ((rc = dt_cache_store_fill(s->r->store, rec, place, err)) == 0 && strcmp(rec->sum.hex, sum.hex))
        rc = dt_err_set(err, DT_EDATA, "entry %s of the cache stream is not what was sent, or what the folder has",
                        rec->key.hex);
    if (rc < 0)
        dt_cache_rec_release(rec);
    return rc < 0 ? rc : 1;
}

/* Writes the index that came with the places of its entries here. */
static int settle(struct receiver *r, dt_err *err)
{
    dt_cache_index x = { 0 };
    dt_map map = { 0 };
    bool wrote;
    int rc = dt_map_fd(&map, fileno(r->index), "index.ndjson of the cache stream", err);
    if (rc == 0)
        rc = dt_cache_index_read(&x, (const char *)map.data, map.bytes, "index.ndjson of the cache stream", err);
    struct settling s = { r, &x, 0 };
    struct dt_cache_lines lines = { .get = get_settled, .ctx = &s };
    if (rc == 0) {
        x.map = map;
        map = (dt_map){ 0 };
        for (dt_cache_rec rec; (rc = get_settled(&s, lines.n, &rec, err)) == 1; lines.n++)
            dt_cache_rec_release(&rec);
    }
    if (rc == 0)
        rc = dt_cache_store_commit(r->store, &x.recipe, &lines, &wrote, err);
    dt_cache_index_release(&x);
    dt_map_close(&map);
    return rc;
}

static int write_plan(FILE *plan, const char *dir, dt_err *err)
{
    char *path = dt_path_join(dir, "plan.ndjson"), buf[1 << 14];
    dt_out *out = NULL;
    int rc = dt_out_open(&out, path, err);
    rewind(plan);
    for (size_t n; rc == 0 && (n = fread(buf, 1, sizeof(buf), plan)) > 0;)
        if (fwrite(buf, 1, n, dt_out_file(out)) != n)
            rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", path);
    if (rc == 0 && ferror(plan))
        rc = dt_err_sys(err, DT_EIO, "cannot read the temporary copy of the plan");
    if (rc == 0)
        rc = dt_out_commit(&out, err);
    dt_out_abort(&out);
    free(path);
    return rc;
}

static int receive(struct receiver *r, const char *dir, dt_err *err)
{
    bool done = false;
    int rc;
    if ((rc = dt_cache_store_open(&r->store, &(struct dt_cache_store_params){ .dir = dir }, err)) < 0)
        return rc;
    while ((rc = next_member(r, err)) == 1) {
        if (done)
            return dt_err_set(err, DT_EDATA, "the cache stream goes on after its index, with '%s'", r->name);
        if (r->members == 1 && !strcmp(r->name, "plan.ndjson")) {
            rc = copy_data(r, &r->plan, err);
        } else if ((done = !strcmp(r->name, "index.ndjson"))) {
            rc = copy_data(r, &r->index, err);
        } else {
            rc = take_entry(r, err);
        }
        if (rc < 0)
            return rc;
    }
    if (rc < 0)
        return rc;
    if (!r->members)
        return dt_err_set(err, DT_EDATA, "no cache stream came; did dt-cache-latents fail?");
    if (!done || !r->plan)
        return dt_err_set(err, DT_EDATA, "the cache stream ends early, without %s",
                          done ? "plan.ndjson" : "index.ndjson");
    if ((rc = settle(r, err)) < 0)
        return rc;
    return write_plan(r->plan, dir, err);
}

int dt_cache_receive(FILE *in, const char *dir, dt_err *err)
{
    struct receiver r = { .a = archive_read_new() };
    int rc = r.a ? 0 : dt_err_set(err, DT_ENOMEM, "no memory to read the cache stream");
    if (rc == 0) {
        archive_read_support_format_tar(r.a);
        archive_read_support_format_empty(r.a);
        if (archive_read_open_FILE(r.a, in) != ARCHIVE_OK)
            rc = dt_err_set(err, DT_EDATA, "cannot read the cache stream: %s", archive_error_string(r.a));
    }
    if (rc == 0)
        rc = receive(&r, dir, err);
    if (r.a)
        archive_read_free(r.a);
    dt_cache_store_close(&r.store);
    if (r.plan)
        fclose(r.plan);
    if (r.index)
        fclose(r.index);
    free(r.data);
    return rc;
}
