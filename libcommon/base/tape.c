/* tape.c - records in blocks, blocks in a temporary file.  See tape.h. */
#include "base/tape.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/spool.h"

enum { BLOCK_RECORDS = 64, BLOCK_BYTES = 1 << 16, MEMORY_BYTES = 1 << 18 };

struct head { int64_t key, bytes; };        /* before each record */
struct block { int64_t at, key; };          /* where it begins; of its first record */

struct dt_tape {
    int     fd;                             /* -1: all is in memory yet */
    char   *tail;                           /* from `done` on */
    int64_t done, n, cap;                   /* bytes in the file, bytes behind them */
    struct block *block;
    int64_t blocks, block_cap;
    int64_t records;                        /* of the last block */
};

dt_tape *dt_tape_new(void)
{
    dt_tape *t = dt_alloc(sizeof(*t));
    t->fd = -1;
    return t;
}

void dt_tape_free(dt_tape **t)
{
    if (!*t)
        return;
    if ((*t)->fd >= 0)
        close((*t)->fd);
    free((*t)->tail);
    free((*t)->block);
    free(*t);
    *t = NULL;
}

/* Whole blocks only, so that each is in one place. */
static int flush(dt_tape *t, dt_err *err)
{
    if (t->fd < 0 && (t->fd = dt_unnamed_file(NULL, err)) < 0) {
        int rc = t->fd;
        t->fd = -1;
        return rc;
    }
    int rc = dt_unnamed_put(t->fd, t->done, t->tail, (size_t)t->n, err);
    if (rc < 0)
        return rc;
    t->done += t->n;
    t->n = 0;
    return 0;
}

static int begin_block(dt_tape *t, int64_t key, dt_err *err)
{
    int rc = t->n >= MEMORY_BYTES ? flush(t, err) : 0;
    if (rc < 0)
        return rc;
    dt_grow(&t->block, &t->block_cap, t->blocks + 1, sizeof *t->block);
    t->block[t->blocks++] = (struct block){ t->done + t->n, key };
    t->records = 0;
    return 0;
}

int dt_tape_add(dt_tape *t, int64_t key, const void *rec, size_t bytes, dt_err *err)
{
    const struct head h = { key, (int64_t)bytes };
    bool full = !t->blocks || t->records == BLOCK_RECORDS ||
                t->done + t->n - t->block[t->blocks - 1].at >= BLOCK_BYTES;
    int rc = full ? begin_block(t, key, err) : 0;
    if (rc < 0)
        return rc;
    dt_grow(&t->tail, &t->cap, t->n + (int64_t)(sizeof h + bytes), 1);
    memcpy(t->tail + t->n, &h, sizeof h);
    memcpy(t->tail + t->n + sizeof h, rec, bytes);
    t->n += (int64_t)(sizeof h + bytes);
    t->records++;
    return 0;
}

/* The last block that begins at or before key; 0 if none does. */
static int64_t block_of(const dt_tape *t, int64_t key)
{
    int64_t a = 0, b = t->blocks;
    while (b - a > 1) {
        int64_t mid = a + (b - a) / 2;
        if (t->block[mid].key <= key)
            a = mid;
        else
            b = mid;
    }
    return a;
}

static int read_block(const dt_tape *t, dt_tape_reader *r, int64_t k, dt_err *err)
{
    int64_t at = t->block[k].at, end = k + 1 < t->blocks ? t->block[k + 1].at : t->done + t->n;
    r->number = r->at = 0;
    r->bytes = end - at;
    if (at >= t->done) {
        r->block = t->tail + (at - t->done);
    } else {
        dt_grow(&r->own, &r->cap, r->bytes, 1);
        int64_t got = dt_unnamed_get(t->fd, at, r->own, (size_t)r->bytes, err);
        if (got < 0)
            return (int)got;
        if (got < r->bytes)
            return dt_err_set(err, DT_EIO, "cannot read a temporary file: it has been cut");
        r->block = r->own;
    }
    r->number = k + 1;
    return 0;
}

int dt_tape_get(const dt_tape *t, dt_tape_reader *r, int64_t key, const void **rec, size_t *bytes, dt_err *err)
{
    int64_t k = r->number - 1;
    if (k < 0 || key < t->block[k].key || (k + 1 < t->blocks && key >= t->block[k + 1].key)) {
        k = block_of(t, key);
        int rc = t->blocks ? read_block(t, r, k, err) : 0;
        if (rc < 0)
            return rc;
    }
    for (bool again = r->at > 0; ; r->at = 0, again = false) {     /* from the last one on, then from the first */
        while (r->number && r->at < r->bytes) {
            struct head h;
            memcpy(&h, r->block + r->at, sizeof h);
            if (h.key > key)
                break;
            *rec = r->block + r->at + sizeof h;
            *bytes = (size_t)h.bytes;
            r->at += (int64_t)sizeof h + h.bytes;
            if (h.key == key)
                return 0;
        }
        if (!again)
            return dt_err_set(err, DT_EFAIL, "no record %lld", (long long)key);
    }
}

void dt_tape_reader_release(dt_tape_reader *r)
{
    free(r->own);
    *r = (dt_tape_reader){ 0 };
}
