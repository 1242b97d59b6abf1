/* loader.c - micro-batches in the order of the plan.  See loader.h.
 *
 * A ring of slots.  Under the lock a worker reads the next batch line into the next free slot; outside it, it fills
 * the samples; the consumer takes slots in order.  Order and contents are the plan's, whoever did the work. */
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "base/keymap.h"
#include "data/media.h"
#include "train/loader_int.h"

enum { MAX_THREADS = 64, ROWS_MULTIPLE = 16 };

enum { KEPT = 1, LEFT_OUT };        /* states of dt_kept */

struct slot {
    enum { FREE, BUSY, READY } state;
    dt_micro micro;
    dt_batch_item *item;  /* copies, with items and captions of their own: the reader's are gone after its next call */
    dt_hash *sample, contents;      /* dt_sample_contents() of each; of all */
    int64_t  cap, sample_cap;
    int      rc;                    /* 1 batch, 0 end, < 0 error */
    dt_err   err;
};

struct dt_loader {
    struct dt_loader_params p;
    dt_batches *plan;
    struct dt_kept kept;
    struct slot *slot;
    int64_t nslot, head, tail;      /* next to hand out, next to read */
    bool ended, quit;
    dt_trace trace;                 /* plan: of what was read; data: of what was handed out */
    uint64_t *captions;             /* for dt_trace_plan() */
    pthread_t thread[MAX_THREADS];
    int nthread;
    pthread_mutex_t lock;
    pthread_cond_t  moved;
    dt_image_gate  *gate;           /* owned; workers see the rest of this as const */
};

/* --- filling --- */

static int load_rgb(const dt_loader *l, const dt_batch_item *it, const dt_micro *m, dt_sample *s, dt_hash *source,
                    dt_err *err)
{
    dt_image in = { 0 }, out = { 0 };
    char *data = NULL;
    size_t bytes = 0;
    int64_t entered = dt_image_gate_enter(l->gate, (int64_t)it->item->w * it->item->h, 0);
    int rc = dt_plan_item_read(&data, &bytes, it->item, err);
    if (rc == 0)
        rc = dt_image_decode(&in, data, bytes, it->item->path, NULL, err);
    if (rc == 0)
        *source = dt_hash_bytes(data, bytes);
    free(data);
    if (rc == 0)
        rc = dt_image_resize(&out, &in, it->resize_w, it->resize_h, it->crop_x, it->crop_y, (int)m->w_px, (int)m->h_px,
                             err);
    if (rc == 0 && it->flip)
        dt_image_flip(&out);
    dt_image_release(&in);
    dt_image_gate_leave(l->gate, entered);
    s->rgb = out.rgb;
    return rc;
}

static int fill_sample(const dt_loader *l, dt_batch_item *it, const dt_micro *m, dt_sample *s, dt_hash *contents,
                       dt_err *err)
{
    dt_plan_item *own;
    dt_hash image = { "" }, text = { "" }, source = { "" };
    int rc = dt_batches_item(l->plan, it->at, &own, err);
    if (rc < 0)
        return rc;
    it->item = own;
    *s = (dt_sample){ .item = own->id, .caption = it->text ? it->text : own->text };
    if (l->p.want & DT_WANT_LATENTS) {
        dt_cached_image c;
        if ((rc = dt_cache_image(l->p.cache, it, (int)m->w_px, (int)m->h_px, &c, err)) < 0)
            return rc;
        s->C = c.C, s->h = c.h, s->w = c.w, s->lat_dtype = c.dtype, s->mean = c.mean, s->logvar = c.logvar;
        image = c.key;
        if (!(l->p.want & DT_WANT_STATES))
            text = dt_hash_bytes(s->caption, strlen(s->caption));
    }
    if (l->p.want & DT_WANT_STATES) {
        dt_cached_text c;
        if ((rc = dt_cache_text(l->p.cache, s->caption, &c, err)) < 0)
            return rc;
        s->T = c.T, s->D = c.D, s->P = c.P, s->txt_dtype = c.dtype, s->states = c.states, s->pooled = c.pooled;
        text = c.key;
    }
    if (l->p.want & DT_WANT_RGB)
        rc = load_rgb(l, it, m, s, &source, err);
    *contents = dt_sample_contents(own->id, image.hex, text.hex, source.hex);
    return rc;
}

dt_hash dt_sample_contents(int64_t item, const char *image, const char *text, const char *source)
{
    char line[128];
    int n = snprintf(line, sizeof(line), "%lld %.32s %.32s %.32s", (long long)item, image, text, source);
    return dt_hash_bytes(line, (size_t)n);
}

dt_hash dt_batch_contents(const dt_hash *sample, int n) { return dt_hash_bytes(sample, (size_t)n * sizeof(*sample)); }

/* T of a batch whose longest caption has `longest` states. */
static int64_t round_rows(const dt_text_rows *r, int64_t longest)
{
    int64_t up = (longest + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
    return up < r->most ? up : r->most;
}

static int fill_rows(const dt_loader *l, dt_micro *m, dt_err *err)
{
    int64_t longest = 0;
    for (int i = 0; i < m->n; i++) {
        dt_sample *s = &m->s[i];
        int64_t T = l->p.want & DT_WANT_STATES ? s->T : l->p.rows.len(l->p.rows.ctx, s->caption, err);
        if (T < 0)
            return (int)T;
        longest = T > longest ? T : longest;
    }
    m->T = round_rows(&l->p.rows, longest);
    return 0;
}

static void fill(const dt_loader *l, struct slot *s)
{
    int rc = 0;
    for (int i = 0; s->rc == 1 && rc == 0 && i < s->micro.n; i++)
        rc = fill_sample(l, &s->item[i], &s->micro, &s->micro.s[i], &s->sample[i], &s->err);
    if (s->rc == 1 && rc == 0 && l->p.rows.len)
        rc = fill_rows(l, &s->micro, &s->err);
    if (s->rc == 1 && rc == 0)
        s->contents = dt_batch_contents(s->sample, s->micro.n);
    if (rc < 0)
        s->rc = rc;
}

/* Has the cache a picture of this item?  Paths are asked for once, and not at all where it has them all. */
static int is_kept(struct dt_kept *k, const dt_batches *plan, int64_t at, dt_err *err)
{
    dt_plan_item *it;
    if (!k->cache || !dt_cache_skipped(k->cache))
        return 1;
    if (!k->state)
        k->state = dt_alloc((size_t)dt_batches_items(plan) + 1);
    if (k->state[at])
        return k->state[at] == KEPT;
    int rc = dt_batches_item(plan, at, &it, err);
    if (rc < 0)
        return rc;
    k->state[at] = dt_cache_skips(k->cache, it->path) ? LEFT_OUT : KEPT;
    free(it);
    return k->state[at] == KEPT;
}

int dt_kept_leave_out(struct dt_kept *k, const dt_batches *plan, dt_batch *b, dt_err *err)
{
    int n = 0;
    for (int i = 0; i < b->n; i++) {
        int keep = is_kept(k, plan, b->item[i].at, err);
        if (keep < 0)
            return keep;
        if (keep)
            b->item[n++] = b->item[i];
    }
    b->n = n;
    return 0;
}

/* The next batch that still has items then; the trace of l (may be NULL) gets all that are read for it.  Bare. */
static int next_batch(dt_batches *plan, struct dt_kept *kept, dt_batch *b, dt_loader *l, dt_err *err)
{
    int rc;
    while ((rc = dt_batches_next_bare(plan, b, err)) == 1) {
        int bad = l ? dt_trace_plan(&l->trace, plan, l->captions, b, err) : 0;
        if (bad < 0 || (bad = dt_kept_leave_out(kept, plan, b, err)) < 0)
            return bad;
        if (b->n)
            break;
    }
    return rc;
}

/* Copies the next batch line into the slot at the tail. */
static void read_next(dt_loader *l, struct slot *s)
{
    dt_batch b;
    s->rc = next_batch(l->plan, &l->kept, &b, l, &s->err);
    if (s->rc != 1) {
        l->ended = true;
        return;
    }
    s->micro = (dt_micro){ .index = b.index, .epoch = b.epoch, .n = b.n, .w_px = b.w, .h_px = b.h, .trace = l->trace };
    s->micro.s = dt_alloc((size_t)b.n * sizeof(*s->micro.s));
    dt_grow(&s->item, &s->cap, b.n, sizeof(*s->item));
    dt_grow(&s->sample, &s->sample_cap, b.n, sizeof(*s->sample));
    memcpy(s->item, b.item, (size_t)b.n * sizeof(*s->item));
    for (int i = 0; i < b.n; i++)
        s->item[i].text = dt_strdup(b.item[i].text);
}

static void *worker(void *arg)
{
    dt_loader *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!l->quit) {
        struct slot *s = &l->slot[l->tail % l->nslot];
        if (l->ended || s->state != FREE) {
            pthread_cond_wait(&l->moved, &l->lock);
            continue;
        }
        s->state = BUSY;
        l->tail++;
        read_next(l, s);
        pthread_mutex_unlock(&l->lock);
        fill(l, s);
        pthread_mutex_lock(&l->lock);
        s->state = READY;
        pthread_cond_broadcast(&l->moved);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* --- handing out --- */

static int next(void *ctx, dt_micro **b, dt_err *err)
{
    dt_loader *l = ctx;
    pthread_mutex_lock(&l->lock);
    struct slot *s = &l->slot[l->head % l->nslot];
    if (!l->nthread) {
        read_next(l, s);
        fill(l, s);
        s->state = READY;
    }
    while (s->state != READY)
        pthread_cond_wait(&l->moved, &l->lock);
    int rc = s->rc;
    if (rc == 1) {
        l->head++;
        dt_trace_data(&l->trace, &s->contents);
        memcpy(s->micro.trace.data, l->trace.data, sizeof(l->trace.data));
        *b = &s->micro;
    } else if (rc < 0 && err) {
        *err = s->err;
    }
    pthread_mutex_unlock(&l->lock);
    return rc;
}

/* What came from the cache is in memory only while a batch that wants it is. */
static void release(const dt_cache *c, struct slot *slot)
{
    dt_micro *m = &slot->micro;
    for (int i = 0; m->s && i < m->n; i++) {
        const dt_sample *s = &m->s[i];
        int64_t z = s->C * s->h * s->w * (int64_t)dt_dtype_size(s->lat_dtype),
            el = (int64_t)dt_dtype_size(s->txt_dtype);
        free(s->rgb);
        free((void *)slot->item[i].item);
        free((void *)slot->item[i].text);
        if (s->mean) {
            dt_cache_forget(c, s->mean, z);
            dt_cache_forget(c, s->logvar, z);
        }
        if (s->states) {
            dt_cache_forget(c, s->states, s->T * s->D * el);
            dt_cache_forget(c, s->pooled, s->P * el);
        }
    }
    free(m->s);
    m->s = NULL;
}

static void done(void *ctx, dt_micro *b)
{
    dt_loader *l = ctx;
    struct slot *s = (struct slot *)((char *)b - offsetof(struct slot, micro));
    pthread_mutex_lock(&l->lock);
    release(l->p.cache, s);
    s->state = FREE;
    pthread_cond_broadcast(&l->moved);
    pthread_mutex_unlock(&l->lock);
}

dt_source dt_loader_source(dt_loader *l) { return (dt_source){ .ctx = l, .next = next, .done = done }; }

/* --- memory --- */

static int workers(const struct dt_loader_params *p) { return p->threads > MAX_THREADS ? MAX_THREADS : p->threads; }
static int64_t slots(const struct dt_loader_params *p) { return 2 * workers(p) + 1; }

int64_t dt_loader_bytes(const struct dt_loader_params *p, int64_t n, int64_t w, int64_t h, int64_t source_w,
                        int64_t source_h)
{
    enum { WINDOW = 64 << 10 };     /* pages of a mapped file come in such */
    int64_t each = 0, image, text, all, bytes = 0;
    if (p->want & (DT_WANT_LATENTS | DT_WANT_STATES) && p->cache) {
        dt_cache_sizes(p->cache, &image, &text, &all);
        each += p->want & DT_WANT_LATENTS ? image + WINDOW : 0;
        each += p->want & DT_WANT_STATES ? text + WINDOW : 0;
        bytes = slots(p) * n * each < all ? slots(p) * n * each : all;
    }
    if (p->want & DT_WANT_RGB)      /* and what a thread works on: the decoded file, and it in the new width */
        bytes += slots(p) * n * w * h * 3 + (p->threads ? workers(p) : 1) * (source_w + w) * source_h * 3;
    return bytes;
}

/* --- life --- */

int dt_loader_open(dt_loader **out, const struct dt_loader_params *p, dt_err *err)
{
    dt_loader *l = dt_alloc(sizeof(*l));
    *out = NULL;
    l->p = *p;
    l->kept.cache = p->cache;
    l->trace = p->trace;
    l->gate = dt_alloc(sizeof(*l->gate));
    dt_image_gate_init(l->gate);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->moved, NULL);
    l->nslot = slots(p);
    l->slot = dt_alloc((size_t)l->nslot * sizeof(*l->slot));
    int rc = dt_batches_open(&l->plan, p->plan, err);
    if (rc == 0 && p->want & DT_WANT_LATENTS)
        l->captions = dt_alloc((size_t)(dt_batches_items(l->plan) + 1) * sizeof(*l->captions));
    if (rc == 0 && p->first)
        rc = dt_batches_seek(l->plan, p->first, err);
    while (rc == 0 && l->nthread < workers(p) && pthread_create(&l->thread[l->nthread], NULL, worker, l) == 0)
        l->nthread++;                           /* fewer than asked for, or none, do the same */
    if (rc < 0)
        dt_loader_close(&l);
    *out = l;
    return rc;
}

void dt_loader_close(dt_loader **pl)
{
    dt_loader *l = *pl;
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->quit = true;
    pthread_cond_broadcast(&l->moved);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->nthread; i++)
        pthread_join(l->thread[i], NULL);
    for (int64_t i = 0; i < l->nslot; i++) {
        release(l->p.cache, &l->slot[i]);
        free(l->slot[i].item);
        free(l->slot[i].sample);
    }
    dt_batches_close(&l->plan);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->moved);
    dt_image_gate_release(l->gate);
    free(l->gate);
    free(l->kept.state);
    free(l->captions);
    free(l->slot);
    free(l);
    *pl = NULL;
}

/* --- shapes --- */

struct lengths {
    const dt_text_rows *rows;
    const dt_batches *plan;
    int32_t   *of_item;             /* [items] T of their captions + 1; 0: not asked */
    dt_keymap *of_text;
};

static int64_t length_of_text(struct lengths *k, const char *caption, dt_err *err)
{
    const dt_text_rows *r = k->rows;
    int64_t T = dt_keymap_get(k->of_text, caption, strlen(caption));
    if (T < 0 && (T = r->len(r->ctx, caption, err)) < 0)
        return T;
    if (T > r->most)
        return dt_err_set(err, DT_EUSAGE, "caption '%.60s' has %lld text states, --max_sequence_length is %lld",
                          caption, (long long)T, (long long)r->most);
    return dt_keymap_add(k->of_text, caption, strlen(caption), T);
}

static int64_t length_of(struct lengths *k, const dt_batch_item *it, dt_err *err)
{
    dt_plan_item *own;
    if (it->text)
        return length_of_text(k, it->text, err);
    if (k->of_item[it->at])
        return k->of_item[it->at] - 1;
    int rc = dt_batches_item(k->plan, it->at, &own, err);
    int64_t T = rc < 0 ? rc : length_of_text(k, own->text, err);
    if (T >= 0)
        k->of_item[it->at] = (int32_t)T + 1;
    free(own);
    return T;
}

/* T of a batch; lengths of captions are asked for once. */
static int64_t rows_of(struct lengths *k, const dt_batch *b, dt_err *err)
{
    int64_t longest = 0;
    for (int i = 0; i < b->n; i++) {
        int64_t T = length_of(k, &b->item[i], err);
        if (T < 0)
            return T;
        longest = T > longest ? T : longest;
    }
    return round_rows(k->rows, longest);
}

int dt_plan_shapes(const char *plan, const dt_cache *cache, const dt_text_rows *rows, int64_t (**shape)[4], int *n,
                   int64_t *batches, dt_err *err)
{
    dt_batches *b = NULL;
    dt_batch line;
    struct dt_kept kept = { .cache = cache };
    int64_t cap = 0, T = 0;
    *shape = NULL;
    *n = 0;
    *batches = 0;
    int rc = dt_batches_open(&b, plan, err);
    struct lengths k = { .rows = rows, .plan = b, .of_text = dt_keymap_new() };
    k.of_item = rc < 0 ? NULL : dt_alloc((size_t)(dt_batches_items(b) + 1) * sizeof(*k.of_item));
    while (rc == 0 && (rc = next_batch(b, &kept, &line, NULL, err)) == 1 &&
           (T = rows->len ? rows_of(&k, &line, err) : 0) >= 0) {
        int64_t key[4] = { line.n, line.w, line.h, T };
        int i = 0;
        while (i < *n && memcmp((*shape)[i], key, sizeof(key)))
            i++;
        if (i == *n) {
            dt_grow(shape, &cap, *n + 1, sizeof(**shape));
            memcpy((*shape)[(*n)++], key, sizeof(key));
        }
        ++*batches;
        rc = 0;
    }
    dt_keymap_free(&k.of_text);
    dt_batches_close(&b);
    free(k.of_item);
    free(kept.state);
    return T < 0 ? (int)T : rc;
}
