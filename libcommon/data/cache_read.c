/* cache_read.c - finding entries of a cache.  See cache.h. */
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "data/cache_tar.h"
#include "data/cache_write.h"
#include "tensor/safetensors.h"
#include "tensor/strmap.h"

enum { BLOCK = 512 };

struct shard { char *name; dt_map map; };

struct dt_cache {
    char   *dir;
    dt_cache_index *index;          /* newest first */
    int64_t n_index;
    const dt_cache_recipe *image, *text;    /* of the newest index that has such entries */
    dt_cache_book  images, texts;   /* requests */
    unsigned char *checked[2];      /* [images.n], [texts.n]: 1 once the sum was found right */
    int64_t largest[2];             /* bytes of an entry */
    dt_cache_paths paths;
    struct shard *shard;
    int64_t n_shard, shard_cap;
    dt_strmap *shards;              /* name -> shard */
};

/* --- opening --- */

/* The recipe that entries must have: the first seen, which is the newest. */
static bool fits(const dt_cache_recipe **want, const dt_cache_recipe *r, bool text)
{
    if (!*want)
        *want = r;
    return dt_cache_recipe_fits(*want, r, text);
}

/* Maps the shard of a record that is in use, and sees that it reaches that far. */
static int need_shard(dt_cache *c, const dt_cache_index *x, const dt_cache_rec *r, dt_err *err)
{
    const char *name = x->files.v[r->file];
    int64_t s = dt_strmap_get(c->shards, name);
    int rc = 0;
    if (s < 0) {
        struct shard one = { .name = dt_strdup(name) };
        char *path = dt_path_join(c->dir, name);
        if ((rc = dt_map_open(&one.map, path, err)) < 0) {
            dt_err_prefix(err, "%s names a shard that is of no use", x->name);
            free(one.name);
        } else {
            dt_grow(&c->shard, &c->shard_cap, c->n_shard + 1, sizeof(*c->shard));
            c->shard[c->n_shard] = one;
            s = dt_strmap_add(c->shards, one.name, c->n_shard++);
        }
        free(path);
    }
    if (rc == 0 && (r->off < BLOCK || r->off + r->bytes > (int64_t)c->shard[s].map.bytes))
        rc = dt_err_set(err, DT_EDATA, "%s/%s: cut off at byte %zu; run dt-cache-latents again", c->dir, name,
                        c->shard[s].map.bytes);
    return rc;
}

static int learn_rec(dt_cache *c, int64_t i, size_t pos, const dt_cache_rec *r, dt_err *err)
{
    const dt_cache_index *x = &c->index[i];
    bool text = r->kind == DT_CACHE_TEXT;
    if (r->kind != DT_CACHE_SKIP) {
        if (r->bytes > c->largest[text])
            c->largest[text] = r->bytes;
        if (r->file < 0 || !fits(text ? &c->text : &c->image, &x->recipe, text))
            return 0;
    }
    if (!text)
        dt_cache_paths_note(&c->paths, r);
    if (r->kind == DT_CACHE_SKIP || dt_cache_book_add(text ? &c->texts : &c->images, r->req, i, pos) < 0)
        return 0;
    return need_shard(c, x, r, err);
}

static int learn(dt_cache *c, int64_t i, dt_err *err)
{
    const dt_cache_index *x = &c->index[i];
    dt_cache_rec rec;
    size_t at = x->first, pos = at;
    int rc;
    while ((rc = dt_cache_index_next(x, &pos, &rec, err)) == 1) {
        rc = learn_rec(c, i, at, &rec, err);
        dt_cache_rec_release(&rec);
        if (rc < 0)
            break;
        at = pos;
    }
    return rc;
}

int dt_cache_open(dt_cache **out, const char *dir, dt_err *err)
{
    dt_cache *c = dt_alloc(sizeof(*c));
    c->dir = dt_strdup(dir);
    dt_cache_book_init(&c->images);
    dt_cache_book_init(&c->texts);
    c->shards = dt_strmap_new();
    int rc = dt_cache_indexes(&c->index, &c->n_index, dir, NULL, err);
    if (rc == 0 && !c->n_index)
        rc = dt_err_set(err, DT_EDATA, "'%s' is no cache, or not a finished one: it has no index; run dt-cache-latents",
                        dir);
    dt_cache_paths_init(&c->paths, c->index, c->n_index);
    for (int64_t i = 0; rc == 0 && i < c->n_index; i++)
        rc = learn(c, i, err);
    c->checked[0] = dt_alloc((size_t)c->images.n + 1);
    c->checked[1] = dt_alloc((size_t)c->texts.n + 1);
    if (rc < 0)
        dt_cache_close(&c);
    *out = c;
    return rc;
}

void dt_cache_close(dt_cache **pc)
{
    dt_cache *c = *pc;
    *pc = NULL;
    if (!c)
        return;
    for (int64_t i = 0; i < c->n_index; i++)
        dt_cache_index_release(&c->index[i]);
    for (int64_t i = 0; i < c->n_shard; i++) {
        dt_map_close(&c->shard[i].map);
        free(c->shard[i].name);
    }
    dt_cache_book_release(&c->images);
    dt_cache_book_release(&c->texts);
    dt_cache_paths_release(&c->paths);
    dt_strmap_free(&c->shards);
    free(c->checked[0]);
    free(c->checked[1]);
    free(c->shard);
    free(c->index);
    free(c->dir);
    free(c);
}

/* --- entries --- */

/* What the index says of a request: its record, owned, and the bytes of its entry. */
struct entry {
    dt_cache_rec rec;
    const dt_cache_index *x;
    const uint8_t *data;
};

/* 1 and the entry, which the caller releases by its record; 0: there is none. */
static int find_entry(const dt_cache *c, bool text, const char *req, struct entry *e, int64_t *at, dt_err *err)
{
    const dt_cache_book *b = text ? &c->texts : &c->images;
    if ((*at = dt_cache_book_find(b, req)) < 0)
        return 0;
    int rc = dt_cache_book_read(b, *at, c->index, &e->rec, &e->x, err);
    if (rc < 0)
        return rc;
    if ((e->rec.kind == DT_CACHE_TEXT) != text || strcmp(e->rec.req, req) || e->rec.file < 0) {
        dt_cache_rec_release(&e->rec);
        return dt_err_set(err, DT_EDATA, "%s: has changed while it is in use", e->x->name);
    }
    e->data = c->shard[dt_strmap_get(c->shards, e->x->files.v[e->rec.file])].map.data + e->rec.off;
    return 1;
}

static int damaged(const dt_cache *c, const struct entry *e, dt_err *err)
{
    return dt_err_set(err, DT_EDATA, "%s/%s: entry %s is damaged; remove that file and run dt-cache-latents again",
                      c->dir, e->x->files.v[e->rec.file], e->rec.key.hex);
}

/* The entry as an open file over the mapping, its sum compared the first time; data stays valid after dt_st_close. */
static int open_entry(const dt_cache *c, const struct entry *e, int64_t at, dt_st **st, dt_err *err)
{
    unsigned char *checked = &c->checked[e->rec.kind == DT_CACHE_TEXT][at];
    if (!__atomic_load_n(checked, __ATOMIC_RELAXED)) {
        dt_hash sum = dt_hash_bytes(e->data, (size_t)e->rec.bytes);
        if (strcmp(sum.hex, e->rec.sum.hex))
            return damaged(c, e, err);
        __atomic_store_n(checked, 1, __ATOMIC_RELAXED);
    }
    return dt_st_open_mem(st, e->data, (size_t)e->rec.bytes, e->rec.key.hex, err);
}

int dt_cache_image(const dt_cache *c, const dt_batch_item *it, int w, int h, dt_cached_image *out, dt_err *err)
{
    char *req = dt_cache_request(it, w, h);
    struct entry e = { 0 };
    int64_t at;
    dt_st *st = NULL;
    dt_st_entry mean, logvar;
    int rc = find_entry(c, false, req, &e, &at, err);
    free(req);
    if (rc == 0)
        return dt_err_set(err, DT_EDATA, "'%s' at %dx%d px is not in cache '%s'; run dt-cache-latents for this plan",
                          it->item->path, w, h, c->dir);
    if (rc == 1 && (rc = open_entry(c, &e, at, &st, err)) == 0 && (rc = dt_st_need(st, "mean", &mean, err)) == 0 &&
        (rc = dt_st_need(st, "logvar", &logvar, err)) == 0) {
        *out = (dt_cached_image){ .C = mean.dims.d[0], .h = mean.dims.d[1], .w = mean.dims.d[2], .dtype = mean.dtype,
                                  .mean = mean.data, .logvar = logvar.data, .key = e.rec.key };
        if (mean.dims.nd != 3 || logvar.dtype != mean.dtype || logvar.bytes != mean.bytes)
            rc = damaged(c, &e, err);
    }
    dt_st_close(&st);
    dt_cache_rec_release(&e.rec);
    return rc;
}

static int no_text(const dt_cache *c, const char *caption, dt_err *err)
{
    return dt_err_set(err, DT_EDATA, "caption '%.80s' is not in cache '%s'; run dt-cache-latents for this plan",
                      caption, c->dir);
}

int dt_cache_text(const dt_cache *c, const char *caption, dt_cached_text *out, dt_err *err)
{
    struct entry e = { 0 };
    int64_t at;
    dt_st *st = NULL;
    dt_st_entry states, pooled;
    int rc = find_entry(c, true, caption, &e, &at, err);
    if (rc == 0)
        return no_text(c, caption, err);
    if (rc == 1 && (rc = open_entry(c, &e, at, &st, err)) == 0 && (rc = dt_st_need(st, "states", &states, err)) == 0 &&
        (rc = dt_st_need(st, "pooled", &pooled, err)) == 0) {
        *out = (dt_cached_text){ .T = states.dims.d[0], .D = states.dims.d[1], .P = pooled.dims.d[0],
                                 .dtype = states.dtype, .states = states.data, .pooled = pooled.data,
                                 .key = e.rec.key };
        if (states.dims.nd != 2 || pooled.dims.nd != 1 || pooled.dtype != states.dtype)
            rc = damaged(c, &e, err);
    }
    dt_st_close(&st);
    dt_cache_rec_release(&e.rec);
    return rc;
}

void dt_cache_sizes(const dt_cache *c, int64_t *image, int64_t *text, int64_t *all)
{
    *image = c->largest[0];
    *text = c->largest[1];
    *all = 0;
    for (int64_t i = 0; i < c->n_shard; i++)
        *all += (int64_t)c->shard[i].map.bytes;
}

void dt_cache_forget(const dt_cache *c, const void *data, int64_t bytes)
{
    const uint8_t *p = data;
    for (int64_t i = 0; i < c->n_shard; i++) {
        const dt_map *m = &c->shard[i].map;
        if (p >= m->data && p < m->data + m->bytes)
            dt_map_forget(m, p, (size_t)bytes);
    }
}

int dt_cache_image_rec(const dt_cache *c, const dt_batch_item *it, int w, int h, dt_cache_rec *rec, dt_err *err)
{
    char *req = dt_cache_request(it, w, h);
    struct entry e = { 0 };
    int64_t at;
    int rc = find_entry(c, false, req, &e, &at, err);
    free(req);
    *rec = e.rec;
    return rc;
}

int dt_cache_text_rec(const dt_cache *c, const char *caption, dt_cache_rec *rec, dt_err *err)
{
    struct entry e = { 0 };
    int64_t at;
    int rc = find_entry(c, true, caption, &e, &at, err);
    *rec = e.rec;
    return rc;
}

const dt_cache_recipe *dt_cache_recipe_of(const dt_cache *c, bool text) { return text ? c->text : c->image; }

bool dt_cache_skips(const dt_cache *c, const char *path) { return dt_cache_paths_skip(&c->paths, path); }

int64_t dt_cache_skipped(const dt_cache *c) { return c->paths.n; }

int64_t dt_cache_text_len(const dt_cache *c, const char *caption, dt_err *err)
{
    struct entry e = { 0 };
    int64_t at = dt_cache_book_find(&c->texts, caption);
    dt_st *st = NULL;
    dt_st_entry states;
    if (at < 0)
        return no_text(c, caption, err);
    if (c->text->text_padding == DT_PAD_MAX)
        return c->text->text_len;
    int rc = find_entry(c, true, caption, &e, &at, err);
    if (rc < 0)
        return rc;
    rc = dt_st_open_mem(&st, e.data, (size_t)e.rec.bytes, e.rec.key.hex, NULL);
    if (rc == 0)
        rc = dt_st_need(st, "states", &states, NULL);
    if (rc == 0 && (states.dims.nd != 2 || states.dims.d[0] < 1))
        rc = DT_EDATA;
    dt_st_close(&st);
    int64_t T = rc == 0 ? states.dims.d[0] : damaged(c, &e, err);
    dt_cache_forget(c, e.data, e.rec.bytes);        /* lengths of all captions are asked for before the first is used */
    dt_cache_rec_release(&e.rec);
    return T;
}
