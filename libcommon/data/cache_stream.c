/* cache_stream.c - receiving a cache that comes as one tar stream.  See cache.h.
 *
 * plan.ndjson first, then entries, index.ndjson last.  Entries go into shards as they come; they mean nothing until the index
 * has come, has been compared with them, and is written. */
#include <archive.h>
#include <archive_entry.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "data/cache_write.h"

enum { KEY_DIGITS = 32 };
#define MAX_MEMBER_BYTES ((int64_t)1 << 31)
#define MAX_TEXT_BYTES ((int64_t)4 << 30)
#define FIRST_BYTES ((size_t)4 << 20)   /* of a member get memory at once; for more, as many must have come */

struct receiver {
    struct archive *a;
    dt_cache_store *store;
    dt_cache_index  index;
    char   *plan, *data;            /* data: of the current member */
    size_t  plan_bytes, bytes;
    char    name[101];
    int64_t members;
};

/* r->data, r->bytes: what the current member holds, and a NUL. */
static int read_data(struct receiver *r, size_t size, dt_err *err)
{
    size_t n = 0, room = 0;
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
                return dt_err_set(err, DT_EDATA, "the cache stream ends early, in '%s'", r->name);
            n += (size_t)k;
        }
    } while (n < size);
    r->data[size] = '\0';
    return 0;
}

/* 1 and the member in r->name, r->data; 0 at the end. */
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
    int rc = read_data(r, (size_t)size, err);
    r->members += rc == 0;
    return rc < 0 ? rc : 1;
}

static int take_entry(struct receiver *r, dt_err *err)
{
    dt_hash key;
    if (strspn(r->name, "0123456789abcdef") != KEY_DIGITS || strcmp(r->name + KEY_DIGITS, ".safetensors"))
        return dt_err_set(err, DT_EDATA, "the cache stream has a member that is none of a cache: '%s'", r->name);
    memcpy(key.hex, r->name, KEY_DIGITS);
    key.hex[KEY_DIGITS] = '\0';
    if (dt_cache_store_find(r->store, &key) >= 0)
        return 0;
    return dt_cache_store_put(r->store, dt_cache_store_claim(r->store, &key), r->data, r->bytes, err);
}

/* Every record of the index gets the place where its entry lies here; the bytes must be those that were sent. */
static int settle(struct receiver *r, dt_err *err)
{
    for (int64_t i = 0; i < r->index.n; i++) {
        dt_cache_rec *rec = &r->index.rec[i];
        dt_hash sum = rec->sum;
        if (rec->kind == DT_CACHE_SKIP)
            continue;
        int64_t place = dt_cache_store_find(r->store, &rec->key);
        if (place < 0)
            return dt_err_set(err, DT_EDATA, "the cache stream lacks entry %s", rec->key.hex);
        dt_cache_store_fill(r->store, rec, place);
        if (strcmp(rec->sum.hex, sum.hex))
            return dt_err_set(err, DT_EDATA, "entry %s of the cache stream is not what was sent, or what the folder has",
                              rec->key.hex);
    }
    dt_strs_release(&r->index.files);
    free(r->index.file_bytes);
    r->index.file_bytes = NULL;
    return 0;
}

static int receive(struct receiver *r, const char *dir, dt_err *err)
{
    bool wrote, done = false;
    int rc;
    if ((rc = dt_cache_store_open(&r->store, &(struct dt_cache_store_params){ .dir = dir }, err)) < 0)
        return rc;
    while ((rc = next_member(r, err)) == 1) {
        if (done)
            return dt_err_set(err, DT_EDATA, "the cache stream goes on after its index, with '%s'", r->name);
        if (r->members == 1 && !strcmp(r->name, "plan.ndjson")) {
            r->plan = r->data, r->plan_bytes = r->bytes, r->data = NULL;
        } else if ((done = !strcmp(r->name, "index.ndjson"))) {
            rc = dt_cache_index_read(&r->index, r->data, r->bytes, "index.ndjson of the cache stream", err);
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
    if ((rc = settle(r, err)) < 0 || (rc = dt_cache_store_commit(r->store, &r->index, &wrote, err)) < 0)
        return rc;
    char *path = dt_path_join(dir, "plan.ndjson");
    rc = dt_file_write(path, r->plan, r->plan_bytes, err);
    free(path);
    return rc;
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
    dt_cache_index_release(&r.index);
    free(r.plan);
    free(r.data);
    return rc;
}
