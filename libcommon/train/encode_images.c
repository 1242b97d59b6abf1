/* encode_images.c - the pictures of a plan through the autoencoder.  See encode.h.
 *
 * If the cache has entries already, all files are hashed first and only what is missing goes on.  Pictures are encoded
 * size by size, each size in the order of the plan, in groups; an entry's bits depend neither on its group nor on
 * threads. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "train/encode_int.h"

enum { MAX_GROUP = 1024 };
#define GROUP_PX ((int64_t)1 << 20)

struct size { int w, h; int64_t n, whole, rest; };  /* pictures to encode; those of a whole group, of the last one */

struct group {                      /* waiting to be encoded, all of one size */
    int64_t n;
    dt_image im[MAX_GROUP];
    int64_t  place[MAX_GROUP];
    dt_hash  key[MAX_GROUP];
};

struct dt_encoder {
    dt_enc      *e;
    int32_t     *order;             /* pictures to encode, size by size */
    int64_t      missing;
    int64_t      at_once;
    dt_flux_run *run;
    dt_progress *bar;
    struct size *size;
    int64_t      n_size, size_cap;
    struct group group;
    int64_t      latents, group_bytes;      /* floats and bytes of the largest group */
    float       *mean, *logvar;
    int64_t      done;
};

/* --- what is missing --- */

/* The key of a picture, and whether the store has it: 1, 0. */
static int find(dt_enc *e, const dt_got_picture *got, dt_hash *key, dt_err *err)
{
    const struct dt_enc_file file = { got->source, got->stat };
    dt_plan_item *item;
    char *req;
    int rc = dt_enc_request(e, got->i, &req, &item, err);
    free(item);
    if (rc == 0)
        rc = dt_spool_set(e->file, got->i, &file, err);
    if (rc == 0) {
        *key = dt_cache_image_key(&e->recipe, req, &got->source);
        e->place[got->i] = (int32_t)dt_cache_store_find(e->store, key);
    }
    free(req);
    return rc < 0 ? rc : e->place[got->i] >= 0;
}

/* Reads and hashes n pictures, all of them if order is NULL.  Files that cannot be read are left to the
 * pass that decodes. */
static int find_there(dt_enc *e, const int32_t *order, int64_t n, dt_err *err)
{
    dt_pictures *p = NULL;
    dt_progress *bar = NULL;
    dt_got_picture got;
    dt_hash key;
    int64_t done = 0;
    int rc = dt_progress_open(&bar, "hash", "file", n, e->p->progress, e->p->quiet, err);
    if (rc == 0)
        rc = dt_pictures_open(&p,
                              &(struct dt_pictures_params){ .plan = e->plan, .want = e->want, .order = order, .n = n,
                              .threads = e->p->workers, .hash_only = true }, err);
    if (rc == 0)
        dt_progress_step(bar, 0);
    while (rc == 0 && !dt_enc_stopped(e) && dt_pictures_next(p, &got) == 1) {
        int there = got.rc == 0 ? find(e, &got, &key, err) : 0;
        rc = there < 0 ? there : 0;
        e->r->images.there += there == 1;
        dt_progress_step(bar, ++done);
    }
    dt_pictures_close(&p);
    dt_progress_close(&bar);
    return rc;
}

/* What pictures must share, beside their bytes, to share an entry. */
struct alike {
    int32_t resize_w, resize_h, crop_x, crop_y, w, h, flip;
    int64_t bytes;                  /* of the file */
    dt_hash source;
};

static struct alike alike(const dt_want_picture *w)
{
    struct alike a;
    memset(&a, 0, sizeof(a));
    a.resize_w = w->resize_w, a.resize_h = w->resize_h, a.crop_x = w->crop_x, a.crop_y = w->crop_y;
    a.w = w->w, a.h = w->h, a.flip = w->flip;
    return a;
}

/* Missing pictures whose files are as long as another's, with the same transform, into `order`. */
static int64_t may_be_same(const dt_enc *e, int32_t *order)
{
    dt_keymap *lengths = dt_keymap_new();
    unsigned char *maybe = dt_alloc((size_t)e->n + 1);
    int64_t n = 0;
    for (int64_t i = 0; i < e->n; i++) {
        dt_plan_item *it;
        struct stat st;
        struct alike a = alike(&e->want[i]);
        if (e->place[i] >= 0 || dt_batches_item(e->plan, e->want[i].at, &it, NULL) < 0)
            continue;
        a.bytes = it->tar ? it->bytes : stat(it->path, &st) ? -1 : st.st_size;
        free(it);
        int64_t first = a.bytes < 0 ? i : dt_keymap_add(lengths, &a, sizeof(a), i);
        if (first != i)
            maybe[first] = maybe[i] = 1;
    }
    for (int64_t i = 0; i < e->n; i++)
        if (maybe[i])
            order[n++] = (int32_t)i;
    free(maybe);
    dt_keymap_free(&lengths);
    return n;
}

/* Marks missing pictures that are one that comes before them: they are not encoded, and the memory plan knows. */
static int find_same(dt_enc *e, bool hashed, int32_t *order, dt_err *err)
{
    int64_t n = may_be_same(e, order);
    int rc = n && !hashed ? find_there(e, order, n, err) : 0;
    dt_keymap *seen = dt_keymap_new();
    for (int64_t k = 0; k < n && rc == 0; k++) {
        int64_t i = order[k];
        struct dt_enc_file file;
        struct alike a = alike(&e->want[i]);
        if ((rc = dt_spool_get(e->file, i, &file, err)) < 0 || !*file.source.hex)
            continue;
        a.source = file.source;
        if (dt_keymap_add(seen, &a, sizeof(a), i) != i)
            e->want[i].mark |= DT_ENC_SAME;
    }
    dt_keymap_free(&seen);
    return rc;
}

/* Entries of pictures that are the same as others.  Those whose other has none after all remain, in c->order. */
static int share(struct dt_encoder *c, dt_err *err)
{
    dt_enc *e = c->e;
    int rc = 0;
    c->missing = 0;
    for (int64_t i = 0; i < e->n && rc == 0; i++) {
        struct dt_enc_file file;
        dt_plan_item *item;
        char *req;
        if (!(e->want[i].mark & DT_ENC_SAME) || (rc = dt_spool_get(e->file, i, &file, err)) < 0 ||
            (rc = dt_enc_request(e, i, &req, &item, err)) < 0)
            continue;
        dt_hash key = dt_cache_image_key(&e->recipe, req, &file.source);
        e->place[i] = (int32_t)dt_cache_store_find(e->store, &key);
        if (e->place[i] >= 0)
            e->r->images.shared++;
        else
            c->order[c->missing++] = (int32_t)i;
        free(item);
        free(req);
    }
    return rc;
}

static struct size *size_of(struct dt_encoder *c, int w, int h)
{
    for (int64_t i = 0; i < c->n_size; i++)
        if (c->size[i].w == w && c->size[i].h == h)
            return &c->size[i];
    dt_grow(&c->size, &c->size_cap, c->n_size + 1, sizeof(*c->size));
    c->size[c->n_size] = (struct size){ .w = w, .h = h };
    return &c->size[c->n_size++];
}

static bool is_missing(const dt_enc *e, int64_t i) { return e->place[i] < 0 && !(e->want[i].mark & DT_ENC_SAME); }

/* Missing pictures, size by size.  Returns how many. */
static int64_t put_in_order(struct dt_encoder *c)
{
    dt_enc *e = c->e;
    int64_t n = 0;
    for (int64_t i = 0; i < e->n; i++)
        if (is_missing(e, i))
            size_of(c, e->want[i].w, e->want[i].h)->n++;
    for (int64_t s = 0; s < c->n_size; s++)
        for (int64_t i = 0; i < e->n; i++)
            if (is_missing(e, i) && e->want[i].w == c->size[s].w && e->want[i].h == c->size[s].h)
                c->order[n++] = (int32_t)i;
    return n;
}

/* --- the encoder --- */

static int64_t group_of(const struct dt_encoder *c, int w, int h)
{
    const struct dt_encode_params *p = c->e->p;
    int64_t most = GROUP_PX / ((int64_t)w * h), n = c->at_once < most ? c->at_once : most;
    bool tiled = p->tile_px && (w > p->tile_px || h > p->tile_px);
    return n < 1 || tiled ? 1 : n > MAX_GROUP ? MAX_GROUP : n;
}

int dt_enc_plan_images(dt_enc *e, int64_t at_once, dt_err *err)
{
    struct dt_encoder *c = e->images;
    const struct dt_encode_params *p = e->p;
    int64_t f = dt_vae_factor(&p->pipe->vae);
    int rc = 0;
    dt_flux_run_free(&c->run);
    c->run = dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = p->pipe, .dev = p->dev, .act = p->compute,
                                                           .tile_px = p->tile_px });
    c->at_once = at_once;
    c->latents = c->group_bytes = 0;
    for (int64_t i = 0; i < c->n_size && rc == 0; i++) {
        struct size *s = &c->size[i];
        s->whole = group_of(c, s->w, s->h);
        s->rest = s->n % s->whole;
        if ((rc = dt_flux_run_plan_encode(c->run, 1, s->w, s->h, err)) == 0 && s->n >= s->whole && s->whole > 1)
            rc = dt_flux_run_plan_encode(c->run, s->whole, s->w, s->h, err);
        if (rc == 0 && s->rest > 1)
            rc = dt_flux_run_plan_encode(c->run, s->rest, s->w, s->h, err);
        int64_t n = s->n < s->whole ? s->n : s->whole, len = n * p->pipe->vae.latent_channels * (s->h / f) * (s->w / f);
        c->latents = len > c->latents ? len : c->latents;
        c->group_bytes = 3 * n * s->w * s->h > c->group_bytes ? 3 * n * s->w * s->h : c->group_bytes;
    }
    return rc;
}

static struct dt_pictures_params reader(const struct dt_encoder *c)
{
    return (struct dt_pictures_params){ .plan = c->e->plan, .want = c->e->want, .order = c->order, .n = c->missing,
                                        .threads = c->e->p->workers };
}

void dt_enc_rehearse_image(const dt_enc *e)
{
    const struct dt_encoder *c = e->images;
    dt_got_picture got;
    if (!c->missing)
        return;
    dt_picture_get(&got, e->plan, &e->want[c->order[0]], false);
    dt_image_release(&got.im);
}

void dt_enc_images_bytes(const dt_enc *e, int64_t *arena, int64_t *host)
{
    const struct dt_encoder *c = e->images;
    *arena = *host = 0;
    if (!c->missing)
        return;
    const struct dt_pictures_params read = reader(c);
    int64_t entry = 2 * c->latents * (int64_t)dt_dtype_size(e->p->store);
    *arena = dt_flux_run_bytes(c->run);
    *host = dt_pictures_bytes(&read) + c->group_bytes + 2 * c->latents * (int64_t)sizeof(float) +
            dt_flux_run_host(c->run) + 2 * entry;
}

static int open_encoder(struct dt_encoder *c, dt_err *err)
{
    const struct dt_encode_params *p = c->e->p;
    int rc = dt_flux_pipe_load(p->pipe, DT_FLUX_VAE, p->dev, p->compute, 0, err);
    if (rc == 0)
        rc = dt_flux_run_alloc(c->run, NULL, err);
    c->mean = rc == 0 ? dt_try_alloc((size_t)c->latents * sizeof(float)) : NULL;
    c->logvar = rc == 0 ? dt_try_alloc((size_t)c->latents * sizeof(float)) : NULL;
    if (rc == 0 && (!c->mean || !c->logvar))
        rc = dt_err_set(err, DT_ENOMEM, "no memory for latents");
    return rc == 0 ? dt_progress_open(&c->bar, "encode", "img", c->missing, p->progress, p->quiet, err) : rc;
}

static void release_group(struct group *g)
{
    for (int64_t i = 0; i < g->n; i++)
        dt_image_release(&g->im[i]);
    g->n = 0;
}

void dt_enc_close_images(dt_enc *e)
{
    struct dt_encoder *c = e->images;
    if (!c)
        return;
    release_group(&c->group);
    dt_progress_close(&c->bar);
    dt_flux_run_free(&c->run);
    dt_flux_pipe_unload(e->p->pipe, DT_FLUX_VAE);
    free(c->order);
    free(c->size);
    free(c->mean);
    free(c->logvar);
    free(c);
    e->images = NULL;
}

/* Encodes the group; one by one if it has a size that was not announced, because pictures of it were left out. */
static int flush(struct dt_encoder *c, dt_err *err)
{
    static const char *const name[2] = { "mean", "logvar" };
    struct group *g = &c->group;
    if (!g->n)
        return 0;
    const dt_flux_pipe *pipe = c->e->p->pipe;
    int w = g->im[0].w, h = g->im[0].h, rc = 0;
    const struct size *s = size_of(c, w, h);
    int64_t f = dt_vae_factor(&pipe->vae), step = g->n == s->whole || g->n == s->rest ? g->n : 1;
    dt_dims dims = DT_DIMS(pipe->vae.latent_channels, h / f, w / f);
    for (int64_t i = 0; i < g->n && rc == 0; i += step) {
        const uint8_t *rgb[MAX_GROUP];
        for (int64_t k = 0; k < step; k++)
            rgb[k] = g->im[i + k].rgb;
        rc = dt_flux_run_encode(c->run, rgb, step, w, h, c->mean, c->logvar, err);
        for (int64_t k = 0; k < step && rc == 0; k++) {
            int64_t at = k * dt_numel(dims);
            rc = dt_enc_put(c->e, g->place[i + k], &g->key[i + k], name,
                            (const float *const[]){ c->mean + at, c->logvar + at },
                            (const dt_dims[]){ dims, dims }, err);
        }
    }
    if (rc == 0) {
        c->e->r->images.made += g->n;
        c->done += g->n;
        dt_progress_step(c->bar, c->done);
    }
    release_group(g);
    return rc;
}

/* Takes one picture: skipped, found, or into the group. */
static int take(struct dt_encoder *c, dt_got_picture *got, dt_err *err)
{
    dt_enc *e = c->e;
    struct group *g = &c->group;
    int rc = 0;
    if (got->rc < 0) {
        if (got->rc != DT_EDATA) {
            if (err)
                *err = got->err;
            return got->rc;
        }
        c->done++;
        return dt_enc_skip(e, got->i, got->err.msg, err);
    }
    dt_hash key;
    int there = find(e, got, &key, err);
    if (there < 0) {
        dt_image_release(&got->im);
        return there;
    }
    if (there) {
        e->r->images.shared++;
        c->done++;
        dt_image_release(&got->im);
        return 0;
    }
    if (g->n && (g->im[0].w != got->im.w || g->im[0].h != got->im.h))
        rc = flush(c, err);
    if (rc < 0) {
        dt_image_release(&got->im);
        return rc;
    }
    g->key[g->n] = key;
    g->place[g->n] = dt_cache_store_claim(e->store, &key);
    e->place[got->i] = (int32_t)g->place[g->n];
    g->im[g->n++] = got->im;
    return g->n == size_of(c, got->im.w, got->im.h)->whole ? flush(c, err) : 0;
}

int dt_enc_find_images(dt_enc *e, dt_err *err)
{
    struct dt_encoder *c = e->images = dt_alloc(sizeof(*c));
    c->e = e;
    c->order = dt_alloc((size_t)(e->n + 1) * sizeof(*c->order));
    bool found = dt_cache_store_found(e->store) > 0;
    int rc = found ? find_there(e, NULL, e->n, err) : 0;
    if (rc == 0)
        rc = find_same(e, found, c->order, err);
    c->missing = rc == 0 ? put_in_order(c) : 0;
    return c->missing ? dt_enc_place(e, DT_FLUX_VAE, err) : rc;
}

static int encode(struct dt_encoder *c, dt_err *err)
{
    const struct dt_pictures_params read = reader(c);
    dt_pictures *p = NULL;
    dt_got_picture got;
    int rc = dt_pictures_open(&p, &read, err);
    while (rc == 0 && !dt_enc_stopped(c->e) && dt_pictures_next(p, &got) == 1)
        rc = take(c, &got, err);
    if (rc == 0)
        rc = flush(c, err);
    dt_pictures_close(&p);
    return rc;
}

int dt_enc_images(dt_enc *e, dt_err *err)
{
    struct dt_encoder *c = e->images;
    if (!c->missing || dt_enc_stopped(e))
        return 0;
    int rc = open_encoder(c, err);
    if (rc < 0)
        return rc;
    dt_progress_step(c->bar, 0);
    if ((rc = encode(c, err)) == 0 && (rc = share(c, err)) == 0 && c->missing)
        rc = encode(c, err);
    return rc;
}
