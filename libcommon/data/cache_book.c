/* cache_book.c - where indexes say what of many requests, and which paths are skipped.  See cache_write.h. */
#include <stdlib.h>
#include <string.h>
#include "data/cache_write.h"

enum { POS_BITS = 40, FORGET_BYTES = 1 << 20, WINDOW_BYTES = 64 << 10 };

/* --- paths --- */

/* A record begins with what it is, dt-cache(5): only those that matter are parsed. */
static void note_ever(dt_cache_paths *p, const dt_cache_index *x)
{
    static const char begins[] = "{\"skip\"";
    for (size_t pos = x->first, from = pos; pos < x->bytes;) {
        const char *line = x->text + pos, *nl = memchr(line, '\n', x->bytes - pos);
        size_t next = nl ? (size_t)(nl - x->text) + 1 : x->bytes;
        dt_cache_rec rec;
        if (next - pos > sizeof(begins) && !memcmp(line, begins, sizeof(begins) - 1) &&
            dt_cache_index_next(x, &pos, &rec, NULL) == 1) {
            p->n = dt_keymap_add(p->ever, rec.req, strlen(rec.req), p->n) == p->n ? p->n + 1 : p->n;
            dt_cache_rec_release(&rec);
        }
        pos = next;
        if (x->map.bytes && (pos - from >= FORGET_BYTES || pos == x->bytes)) {
            dt_map_forget(&x->map, x->text + from, pos - from);
            from = pos;
        }
    }
}

void dt_cache_paths_init(dt_cache_paths *p, const dt_cache_index *x, int64_t n)
{
    *p = (dt_cache_paths){ .ever = dt_keymap_new(), .now = dt_keymap_new() };
    for (int64_t i = 0; i < n; i++)
        note_ever(p, &x[i]);
}

void dt_cache_paths_release(dt_cache_paths *p)
{
    dt_keymap_free(&p->ever);
    dt_keymap_free(&p->now);
}

void dt_cache_paths_note(dt_cache_paths *p, const dt_cache_rec *rec)
{
    const char *path = rec->kind == DT_CACHE_SKIP ? rec->req : dt_cache_request_path(rec->req);
    if (rec->kind == DT_CACHE_SKIP || (p->n && dt_keymap_get(p->ever, path, strlen(path)) >= 0))
        dt_keymap_add(p->now, path, strlen(path), rec->kind);
}

bool dt_cache_paths_skip(const dt_cache_paths *p, const char *path)
{
    return dt_keymap_get(p->now, path, strlen(path)) == DT_CACHE_SKIP;
}

/* --- books --- */

void dt_cache_book_init(dt_cache_book *b) { *b = (dt_cache_book){ .map = dt_keymap_new() }; }

void dt_cache_book_release(dt_cache_book *b)
{
    dt_keymap_free(&b->map);
    free(b->at);
    *b = (dt_cache_book){ 0 };
}

int64_t dt_cache_book_add(dt_cache_book *b, const char *req, int64_t i, size_t pos)
{
    if (dt_keymap_add(b->map, req, strlen(req), b->n) != b->n)
        return -1;
    dt_grow(&b->at, &b->cap, b->n + 1, sizeof(*b->at));
    b->at[b->n] = (uint64_t)i << POS_BITS | pos;
    return b->n++;
}

int64_t dt_cache_book_find(const dt_cache_book *b, const char *req) { return dt_keymap_get(b->map, req, strlen(req)); }

static size_t pos_of(uint64_t at) { return (size_t)(at & (((uint64_t)1 << POS_BITS) - 1)); }

/* Only what is around the line that was read last stays in memory. */
static void remember(const dt_cache_book *b, const dt_cache_index *index, uint64_t at)
{
    uint64_t last = __atomic_exchange_n((uint64_t *)&b->last, at, __ATOMIC_RELAXED);
    const dt_cache_index *x = &index[last >> POS_BITS];
    if (last / WINDOW_BYTES != at / WINDOW_BYTES && x->map.bytes)
        dt_map_forget(&x->map, x->text + pos_of(last) / WINDOW_BYTES * WINDOW_BYTES, 2 * WINDOW_BYTES);
}

int dt_cache_book_read(const dt_cache_book *b, int64_t e, const dt_cache_index *index, dt_cache_rec *rec,
                       const dt_cache_index **x, dt_err *err)
{
    size_t pos = pos_of(b->at[e]);
    *x = &index[b->at[e] >> POS_BITS];
    int rc = dt_cache_index_next(*x, &pos, rec, err);
    remember(b, index, b->at[e]);
    return rc == 0 ? dt_err_set(err, DT_EDATA, "%s: has changed while it is in use", (*x)->name) : rc < 0 ? rc : 0;
}
