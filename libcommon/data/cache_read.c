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
    dt_strmap *images, *texts;      /* request -> index << 32 | record */
    dt_strmap *paths;               /* path -> kind of the newest record: image or skip */
    struct shard *shard;
    int64_t n_shard, shard_cap;
    dt_strmap *shards;              /* name -> shard */
    unsigned char **checked;        /* [n_index][records]: 1 once the sum was found right */
};

/* --- opening --- */

/* The recipe that entries must have: the first seen, which is the newest. */
static bool fits(const dt_cache_recipe **want, const dt_cache_recipe *r, bool text)
{
    if (!*want)
        *want = r;
    return dt_cache_recipe_fits(*want, r, text);
}

static void learn(dt_cache *c, int64_t i)
{
    const dt_cache_index *x = &c->index[i];
    for (int64_t k = 0; k < x->n; k++) {
        const dt_cache_rec *r = &x->rec[k];
        bool text = r->kind == DT_CACHE_TEXT;
        if (r->kind == DT_CACHE_SKIP)
            dt_strmap_add(c->paths, r->req, r->kind);
        else if (r->file < 0 || !fits(text ? &c->text : &c->image, &x->recipe, text))
            continue;
        else
            dt_strmap_add(text ? c->texts : c->images, r->req, i << 32 | k);
        if (r->kind == DT_CACHE_IMAGE)
            dt_strmap_add(c->paths, dt_cache_request_path(r->req), r->kind);
    }
}

/* Maps the shard of a record that is in use, and sees that it reaches that far. */
static int need_shard(dt_cache *c, const dt_cache_index *x, const dt_cache_rec *r, dt_err *err)
{
    const char *name = x->files.v[r->file];
    int64_t s = dt_strmap_get(c->shards, name);
    char *path = dt_path_join(c->dir, name);
    int rc = 0;
    if (s < 0) {
        struct shard one = { .name = dt_strdup(name) };
        if ((rc = dt_map_open(&one.map, path, err)) < 0) {
            dt_err_prefix(err, "%s names a shard that is of no use", x->name);
            free(one.name);
        } else {
            dt_grow(&c->shard, &c->shard_cap, c->n_shard + 1, sizeof(*c->shard));
            c->shard[c->n_shard] = one;
            s = dt_strmap_add(c->shards, one.name, c->n_shard++);
        }
    }
    if (rc == 0 && (r->off < BLOCK || r->off + r->bytes > (int64_t)c->shard[s].map.bytes))
        rc = dt_err_set(err, DT_EDATA, "%s: cut off at byte %zu; run dt-cache-latents again", path,
                        c->shard[s].map.bytes);
    free(path);
    return rc;
}

static int map_shards(dt_cache *c, dt_err *err)
{
    for (int64_t i = 0; i < c->n_index; i++)
        for (int64_t k = 0; k < c->index[i].n; k++) {
            const dt_cache_rec *r = &c->index[i].rec[k];
            const dt_strmap *m = r->kind == DT_CACHE_TEXT ? c->texts : c->images;
            if (r->kind == DT_CACHE_SKIP || dt_strmap_get(m, r->req) != (i << 32 | k))
                continue;
            int rc = need_shard(c, &c->index[i], r, err);
            if (rc < 0)
                return rc;
        }
    return 0;
}

int dt_cache_open(dt_cache **out, const char *dir, dt_err *err)
{
    dt_cache *c = dt_alloc(sizeof(*c));
    c->dir = dt_strdup(dir);
    c->images = dt_strmap_new();
    c->texts = dt_strmap_new();
    c->paths = dt_strmap_new();
    c->shards = dt_strmap_new();
    int rc = dt_cache_indexes(&c->index, &c->n_index, dir, NULL, err);
    if (rc == 0 && !c->n_index)
        rc = dt_err_set(err, DT_EDATA, "'%s' is no cache, or not a finished one: it has no index; run dt-cache-latents",
                        dir);
    c->checked = dt_alloc((size_t)(c->n_index + 1) * sizeof(*c->checked));
    for (int64_t i = 0; rc == 0 && i < c->n_index; i++) {
        c->checked[i] = dt_alloc((size_t)c->index[i].n + 1);
        learn(c, i);
    }
    if (rc == 0)
        rc = map_shards(c, err);
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
    for (int64_t i = 0; i < c->n_index; i++) {
        dt_cache_index_release(&c->index[i]);
        if (c->checked)
            free(c->checked[i]);
    }
    for (int64_t i = 0; i < c->n_shard; i++) {
        dt_map_close(&c->shard[i].map);
        free(c->shard[i].name);
    }
    dt_strmap_free(&c->images);
    dt_strmap_free(&c->texts);
    dt_strmap_free(&c->paths);
    dt_strmap_free(&c->shards);
    free(c->checked);
    free(c->shard);
    free(c->index);
    free(c->dir);
    free(c);
}

/* --- entries --- */

static int damaged(const dt_cache *c, const dt_cache_index *x, const dt_cache_rec *r, dt_err *err)
{
    return dt_err_set(err, DT_EDATA, "%s/%s: entry %s is damaged; remove that file and run dt-cache-latents again",
                      c->dir, x->files.v[r->file], r->key.hex);
}

static const uint8_t *entry_data(const dt_cache *c, const dt_cache_index *x, const dt_cache_rec *r)
{
    return c->shard[dt_strmap_get(c->shards, x->files.v[r->file])].map.data + r->off;
}

/* The entry of a request as an open file over the mapping; data stays valid after dt_st_close. */
static int open_entry(const dt_cache *c, int64_t at, dt_st **st, dt_err *err)
{
    const dt_cache_index *x = &c->index[at >> 32];
    const dt_cache_rec *r = &x->rec[at & 0xffffffff];
    unsigned char *checked = &c->checked[at >> 32][at & 0xffffffff];
    const uint8_t *data = entry_data(c, x, r);
    if (!__atomic_load_n(checked, __ATOMIC_RELAXED)) {
        dt_hash sum = dt_hash_bytes(data, (size_t)r->bytes);
        if (strcmp(sum.hex, r->sum.hex))
            return damaged(c, x, r, err);
        __atomic_store_n(checked, 1, __ATOMIC_RELAXED);
    }
    return dt_st_open_mem(st, data, (size_t)r->bytes, r->key.hex, err);
}

int dt_cache_image(const dt_cache *c, const dt_batch_item *it, int w, int h, dt_cached_image *out, dt_err *err)
{
    char *req = dt_cache_request(it, w, h);
    int64_t at = dt_strmap_get(c->images, req);
    dt_st *st = NULL;
    dt_st_entry mean, logvar;
    free(req);
    if (at < 0)
        return dt_err_set(err, DT_EDATA, "'%s' at %dx%d px is not in cache '%s'; run dt-cache-latents for this plan",
                          it->item->path, w, h, c->dir);
    int rc = open_entry(c, at, &st, err);
    if (rc == 0 && (rc = dt_st_need(st, "mean", &mean, err)) == 0 &&
        (rc = dt_st_need(st, "logvar", &logvar, err)) == 0) {
        *out = (dt_cached_image){ .C = mean.dims.d[0], .h = mean.dims.d[1], .w = mean.dims.d[2], .dtype = mean.dtype,
                                  .mean = mean.data, .logvar = logvar.data };
        if (mean.dims.nd != 3 || logvar.dtype != mean.dtype || logvar.bytes != mean.bytes)
            rc = damaged(c, &c->index[at >> 32], &c->index[at >> 32].rec[at & 0xffffffff], err);
    }
    dt_st_close(&st);
    return rc;
}

static int no_text(const dt_cache *c, const char *caption, dt_err *err)
{
    return dt_err_set(err, DT_EDATA, "caption '%.80s' is not in cache '%s'; run dt-cache-latents for this plan", caption,
                      c->dir);
}

int dt_cache_text(const dt_cache *c, const char *caption, dt_cached_text *out, dt_err *err)
{
    int64_t at = dt_strmap_get(c->texts, caption);
    dt_st *st = NULL;
    dt_st_entry states, pooled;
    if (at < 0)
        return no_text(c, caption, err);
    int rc = open_entry(c, at, &st, err);
    if (rc == 0 && (rc = dt_st_need(st, "states", &states, err)) == 0 &&
        (rc = dt_st_need(st, "pooled", &pooled, err)) == 0) {
        *out = (dt_cached_text){ .T = states.dims.d[0], .D = states.dims.d[1], .P = pooled.dims.d[0],
                                 .dtype = states.dtype, .states = states.data, .pooled = pooled.data };
        if (states.dims.nd != 2 || pooled.dims.nd != 1 || pooled.dtype != states.dtype)
            rc = damaged(c, &c->index[at >> 32], &c->index[at >> 32].rec[at & 0xffffffff], err);
    }
    dt_st_close(&st);
    return rc;
}

void dt_cache_sizes(const dt_cache *c, int64_t *image, int64_t *text, int64_t *all)
{
    *image = *text = *all = 0;
    for (int64_t i = 0; i < c->n_shard; i++)
        *all += (int64_t)c->shard[i].map.bytes;
    for (int64_t i = 0; i < c->n_index; i++)
        for (int64_t k = 0; k < c->index[i].n; k++) {
            const dt_cache_rec *r = &c->index[i].rec[k];
            int64_t *most = r->kind == DT_CACHE_TEXT ? text : image;
            if (r->kind != DT_CACHE_SKIP && r->bytes > *most)
                *most = r->bytes;
        }
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

const dt_cache_rec *dt_cache_image_rec(const dt_cache *c, const dt_batch_item *it, int w, int h)
{
    char *req = dt_cache_request(it, w, h);
    int64_t at = dt_strmap_get(c->images, req);
    free(req);
    return at < 0 ? NULL : &c->index[at >> 32].rec[at & 0xffffffff];
}

const dt_cache_recipe *dt_cache_recipe_of(const dt_cache *c, bool text) { return text ? c->text : c->image; }

bool dt_cache_skips(const dt_cache *c, const char *path) { return dt_strmap_get(c->paths, path) == DT_CACHE_SKIP; }

const char *dt_cache_encoder(const dt_cache *c, const char *part)
{
    const dt_cache_part *p = c->image ? dt_cache_recipe_part(c->image, part) : NULL;
    if (p && p->text)
        p = NULL;
    if (!p && c->text)
        p = dt_cache_recipe_part(c->text, part);
    return p && (p->text || c->image) ? p->hash.hex : NULL;
}

int dt_cache_text_padding(const dt_cache *c) { return c->text ? (int)c->text->text_padding : -1; }

int64_t dt_cache_text_len(const dt_cache *c, const char *caption, dt_err *err)
{
    int64_t at = dt_strmap_get(c->texts, caption);
    dt_st *st = NULL;
    dt_st_entry states;
    if (at < 0)
        return no_text(c, caption, err);
    if (c->text->text_padding == DT_PAD_MAX)
        return c->text->text_len;
    const dt_cache_index *x = &c->index[at >> 32];
    const dt_cache_rec *r = &x->rec[at & 0xffffffff];
    int rc = dt_st_open_mem(&st, entry_data(c, x, r), (size_t)r->bytes, r->key.hex, NULL);
    if (rc == 0)
        rc = dt_st_need(st, "states", &states, NULL);
    if (rc == 0 && (states.dims.nd != 2 || states.dims.d[0] < 1))
        rc = DT_EDATA;
    dt_st_close(&st);
    return rc == 0 ? states.dims.d[0] : damaged(c, x, r, err);
}
