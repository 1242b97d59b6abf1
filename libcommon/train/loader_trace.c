/* loader_trace.c - what a run has been trained on so far, from its plan and cache.  See loader.h.
 *
 * Every distinct picture and caption is looked up once, however many batches there are. */
#include <stdlib.h>
#include <string.h>
#include "base/keymap.h"
#include "data/cache_write.h"
#include "train/loader_int.h"
#include "train/pictures.h"

struct book { dt_keymap *map; dt_hash *hash; int64_t n, cap; };

struct tracer {
    const struct dt_loader_params *p;
    dt_batches *plan;
    struct dt_kept kept;
    struct book images, captions, drawn;    /* by place and transform; by place; by themselves */
    dt_hash    *source;                     /* [items of the plan] of their files, for DT_WANT_RGB */
};

static const dt_hash *find(const struct book *b, const void *key, size_t bytes)
{
    int64_t i = dt_keymap_get(b->map, key, bytes);
    return i < 0 ? NULL : &b->hash[i];
}

static const dt_hash *add(struct book *b, const void *key, size_t bytes, const dt_hash *h)
{
    dt_keymap_add(b->map, key, bytes, b->n);
    dt_grow(&b->hash, &b->cap, b->n + 1, sizeof(*b->hash));
    b->hash[b->n] = *h;
    return &b->hash[b->n++];
}

static int next_before(dt_batches *plan, int64_t k, dt_batch *b, dt_err *err)
{
    int rc = dt_batches_next_bare(plan, b, err);
    return rc == 1 && b->index >= k ? 0 : rc;
}

static dt_want_picture wanted(const dt_batch *b, const dt_batch_item *it)
{
    return (dt_want_picture){ .at = (int32_t)it->at, .resize_w = it->resize_w, .resize_h = it->resize_h,
                              .crop_x = it->crop_x, .crop_y = it->crop_y, .w = b->w, .h = b->h, .flip = it->flip };
}

/* --- files, where they are what is trained on --- */

static int read_sources(struct tracer *t, const dt_want_picture *want, int64_t n, int threads, const volatile int *stop,
                        dt_err *err)
{
    dt_pictures *p = NULL;
    dt_got_picture got;
    const struct dt_pictures_params params = { .plan = t->plan, .want = want, .n = n, .threads = threads,
                                               .hash_only = true };
    int rc = dt_pictures_open(&p, &params, err);
    while (rc == 0 && !(stop && *stop) && dt_pictures_next(p, &got) == 1) {
        t->source[want[got.i].at] = got.source;
        if (got.rc < 0)
            rc = dt_err_set(err, got.rc, "%s", got.err.msg);
    }
    if (rc == 0 && stop && *stop)
        rc = dt_err_set(err, DT_ESIGNAL, "stopped while comparing pictures with those of the checkpoint");
    dt_pictures_close(&p);
    return rc;
}

static int find_sources(struct tracer *t, int64_t k, int threads, const volatile int *stop, dt_err *err)
{
    dt_want_picture *want = NULL;
    int64_t n = 0, cap = 0;
    dt_batch b;
    int rc;
    t->source = dt_alloc((size_t)(dt_batches_items(t->plan) + 1) * sizeof(*t->source));
    while ((rc = next_before(t->plan, k, &b, err)) == 1)
        for (int i = 0; i < b.n; i++) {
            dt_hash *mine = &t->source[b.item[i].at];
            if (*mine->hex)
                continue;
            *mine = (dt_hash){ "?" };
            dt_grow(&want, &cap, n + 1, sizeof(*want));
            want[n++] = wanted(&b, &b.item[i]);
        }
    if (rc == 0 && n)
        rc = read_sources(t, want, n, threads, stop, err);
    if (rc == 0)
        rc = dt_batches_seek(t->plan, 0, err);
    free(want);
    return rc;
}

/* --- entries of the cache --- */

static int image_key(struct tracer *t, const dt_batch *b, const dt_batch_item *it, dt_hash *out, dt_err *err)
{
    const int32_t key[] = { (int32_t)it->at, it->resize_w, it->resize_h, it->crop_x, it->crop_y, b->w, b->h, it->flip };
    const dt_hash *known = find(&t->images, key, sizeof(key));
    const dt_want_picture w = wanted(b, it);
    dt_batch_item full;
    dt_plan_item *own = NULL;
    dt_cache_rec rec = { 0 };
    int rc = known ? 0 : dt_want_item(t->plan, &w, &full, &own, err);
    if (!known && rc == 0 && (rc = dt_cache_image_rec(t->p->cache, &full, b->w, b->h, &rec, err)) >= 0) {
        known = add(&t->images, key, sizeof(key), &rec.key);
        rc = 0;
    }
    if (rc == 0)
        *out = *known;
    dt_cache_rec_release(&rec);
    free(own);
    return rc;
}

/* The key of a caption's states, or its own hash if they are not cached. */
static int text_key(const struct tracer *t, const char *caption, dt_hash *out, dt_err *err)
{
    dt_cache_rec rec = { 0 };
    if (!(t->p->want & DT_WANT_STATES)) {
        *out = dt_hash_bytes(caption, strlen(caption));
        return 0;
    }
    int rc = dt_cache_text_rec(t->p->cache, caption, &rec, err);
    *out = rec.key;
    dt_cache_rec_release(&rec);
    return rc < 0 ? rc : 0;
}

static int caption_key(struct tracer *t, const dt_batch_item *it, dt_hash *out, dt_err *err)
{
    const void *key = it->text ? (const void *)it->text : &it->at;
    size_t bytes = it->text ? strlen(it->text) : sizeof(it->at);
    struct book *book = it->text ? &t->drawn : &t->captions;
    const dt_hash *known = find(book, key, bytes);
    dt_plan_item *own = NULL;
    if (known) {
        *out = *known;
        return 0;
    }
    int rc = it->text ? 0 : dt_batches_item(t->plan, it->at, &own, err);
    if (rc == 0)
        rc = text_key(t, it->text ? it->text : own->text, out, err);
    if (rc == 0)
        add(book, key, bytes, out);
    free(own);
    return rc;
}

/* --- batches --- */

static int sample_of(struct tracer *t, const dt_batch *b, const dt_batch_item *it, dt_hash *out, dt_err *err)
{
    unsigned want = t->p->want;
    dt_hash image = { "" }, text = { "" };
    int rc = want & DT_WANT_LATENTS ? image_key(t, b, it, &image, err) : 0;
    if (rc == 0 && want & DT_WANT_LATENTS)
        rc = caption_key(t, it, &text, err);
    *out = dt_sample_contents(dt_batches_id(t->plan, it->at), image.hex, text.hex,
                              want & DT_WANT_RGB ? t->source[it->at].hex : "");
    return rc;
}

static int add_contents(dt_trace *trace, struct tracer *t, dt_batch *b, dt_err *err)
{
    int rc = dt_kept_leave_out(&t->kept, t->plan, b, err);
    if (rc < 0 || !b->n)
        return rc;
    dt_hash *sample = dt_alloc((size_t)b->n * sizeof(*sample));
    for (int i = 0; i < b->n && rc == 0; i++)
        rc = sample_of(t, b, &b->item[i], &sample[i], err);
    const dt_hash all = dt_batch_contents(sample, b->n);
    dt_trace_data(trace, &all);
    free(sample);
    return rc;
}

static void release(struct tracer *t)
{
    struct book *book[] = { &t->images, &t->captions, &t->drawn };
    for (int i = 0; i < 3; i++) {
        dt_keymap_free(&book[i]->map);
        free(book[i]->hash);
    }
    dt_batches_close(&t->plan);
    free(t->kept.state);
    free(t->source);
}

int dt_plan_trace(dt_trace *trace, int64_t *found, const struct dt_loader_params *p, int64_t k, int threads,
                  const volatile int *stop, dt_err *err)
{
    struct tracer t = { .p = p, .kept = { .cache = p->cache }, .images = { dt_keymap_new() },
                        .captions = { dt_keymap_new() }, .drawn = { dt_keymap_new() } };
    dt_batch b;
    *trace = (dt_trace){ "" };
    *found = 0;
    int rc = dt_batches_open(&t.plan, p->plan, err);
    uint64_t *captions = rc == 0 && p->want & DT_WANT_LATENTS
        ? dt_alloc((size_t)(dt_batches_items(t.plan) + 1) * sizeof(*captions)) : NULL;
    if (rc == 0 && threads && p->want & DT_WANT_RGB)
        rc = find_sources(&t, k, threads, stop, err);
    while (rc == 0 && (rc = next_before(t.plan, k, &b, err)) == 1) {
        *found = b.index + 1;
        rc = dt_trace_plan(trace, t.plan, captions, &b, err);
        if (rc == 0 && threads)
            rc = add_contents(trace, &t, &b, err);
    }
    free(captions);
    release(&t);
    return rc;
}
