/* encode_check.c - is what a cache holds still what its pictures and encoders would give?  See encode.h.
 *
 * Files whose stat is that of the index are not read; the others are hashed.  What is not on this machine
 * cannot be compared: a cache may have come from another. */
#include <dirent.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "train/encode_int.h"

enum { MANY = 1000 };               /* pictures take long enough to say so */

struct check {
    const struct dt_check_params *p;
    dt_batches *plan;
    dt_keymap  *reqs, *captions;    /* seen */
    uint8_t    *seen;               /* [items] */
    dt_want_picture *want;          /* to be hashed */
    int64_t n, cap, requests, absent;
    char       *first_skipped;      /* of the paths that the cache could not use */
    int64_t     n_skipped;
};

static void say(const struct check *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(const struct check *k, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    k->p->say(k->p->ctx, line);
}

/* --- encoders --- */

static bool known(void *ctx, dt_cache_part *part)
{
    const dt_cache_part *q = ctx;
    if (strcmp(q->stat.hex, part->stat.hex))
        return false;
    part->hash = q->hash;
    return true;
}

static bool has_weights(const dt_flux_pipe *pipe, const struct dt_enc_part_kind *kind)
{
    if (kind->k < 0 || (pipe->weights[kind->k] && !dt_is_dir(pipe->weights[kind->k])))
        return true;
    char *dir = pipe->weights[kind->k] ? dt_strdup(pipe->weights[kind->k]) : dt_path_join(pipe->dir, kind->name);
    DIR *d = opendir(dir);
    bool found = false;
    for (struct dirent *e; d && !found && (e = readdir(d));)
        found = !strcmp(dt_path_ext(e->d_name), ".safetensors");
    if (d)
        closedir(d);
    free(dir);
    return found;
}

static int check_part(const struct check *k, const dt_cache_recipe *r, const struct dt_enc_part_kind *kind, dt_err *err)
{
    const dt_cache_part *q = dt_cache_recipe_part(r, kind->name);
    dt_cache_part now;
    if (!q)
        return dt_err_set(err, DT_EDATA, "the cache in '%s' was made without a %s; run dt-cache-latents again",
                          k->p->dir, kind->name);
    if (!has_weights(k->p->pipe, kind)) {
        say(k, "no weights of %s here: the cache in '%s' is taken without comparing them", kind->name, k->p->dir);
        return 0;
    }
    int rc = dt_enc_part(&now, k->p->pipe, kind, known, (void *)q, err);
    if (rc == 0 && strcmp(now.hash.hex, q->hash.hex))
        rc = dt_err_set(err, DT_EDATA, "the cache in '%s' was made with another %s than this run has (%.8s, now %.8s); "
                        "run dt-cache-latents again", k->p->dir, kind->name, q->hash.hex, now.hash.hex);
    return rc;
}

static int check_recipe(const struct check *k, bool text, dt_err *err)
{
    const dt_cache_recipe *r = dt_cache_recipe_of(k->p->cache, text);
    const dt_flux_pipe *pipe = k->p->pipe;
    int rc = 0;
    if (!r)
        return 0;                   /* then there is no such entry, and the first request says so */
    if (r->code != DT_ENC_CODE)
        return dt_err_set(err, DT_EDATA,
                          "the cache in '%s' was made by another version of dt; run dt-cache-latents again", k->p->dir);
    if (text && r->text_padding != pipe->text_padding)
        return dt_err_set(err, DT_EUSAGE,
                          "the cache in '%s' was made with --text_padding %s, this run has --text_padding %s",
                          k->p->dir, dt_padding_names[r->text_padding], dt_padding_names[pipe->text_padding]);
    if (text && r->text_len != pipe->t5_len)
        return dt_err_set(err, DT_EUSAGE,
                          "the cache in '%s' was made with --max_sequence_length %" PRId64 ", this run has %" PRId64,
                          k->p->dir, r->text_len, pipe->t5_len);
    for (const struct dt_enc_part_kind *kind = dt_enc_parts; kind->name && rc == 0; kind++)
        if (kind->text == text)
            rc = check_part(k, r, kind, err);
    return rc;
}

/* --- pictures --- */

enum { SKIPPED = 1, USABLE = 2, CAPTION = 4 };

/* Notes a picture whose file must be read to know.  Everything that the plan asks for must be there. */
static int note_picture(struct check *k, const dt_batch *b, const dt_batch_item *it, dt_err *err)
{
    dt_want_picture w = { .at = (int32_t)it->at, .resize_w = it->resize_w, .resize_h = it->resize_h,
                          .crop_x = it->crop_x, .crop_y = it->crop_y, .w = b->w, .h = b->h, .flip = it->flip };
    dt_batch_item full;
    dt_plan_item *own;
    dt_cache_rec rec;
    dt_cached_image none;
    int rc = dt_want_item(k->plan, &w, &full, &own, err);
    if (rc == 0 && (rc = dt_cache_image_rec(k->p->cache, &full, b->w, b->h, &rec, err)) == 0)
        rc = dt_cache_image(k->p->cache, &full, b->w, b->h, &none, err);
    if (rc < 0) {
        free(own);
        return rc;
    }
    const char *file = dt_plan_item_file(own);
    dt_hash stat = dt_hash_stat(file);
    bool absent = !*stat.hex && !dt_exists(file);
    k->absent += absent;
    if (!absent && (!*stat.hex || strcmp(stat.hex, rec.stat.hex))) {
        dt_grow(&k->want, &k->cap, k->n + 1, sizeof(*k->want));
        k->want[k->n++] = w;
    }
    dt_cache_rec_release(&rec);
    free(own);
    return 0;
}

static int note_caption(struct check *k, const char *text, dt_err *err)
{
    if (dt_keymap_get(k->captions, text, strlen(text)) >= 0)
        return 0;
    dt_keymap_add(k->captions, text, strlen(text), 0);
    int64_t T = dt_cache_text_len(k->p->cache, text, err);
    return T < 0 ? (int)T : 0;
}

/* Could the cache use the item's picture?  And the item's caption, if this place has it, noted. */
static int note_item(struct check *k, const dt_batch_item *it, dt_err *err)
{
    uint8_t *seen = &k->seen[it->at];
    bool text = k->p->texts && !it->text && !(*seen & (CAPTION | SKIPPED));
    dt_plan_item *own;
    if (*seen && !text)
        return 0;
    int rc = dt_batches_item(k->plan, it->at, &own, err);
    if (rc == 0 && !*seen) {
        *seen = dt_cache_skips(k->p->cache, own->path) ? SKIPPED : USABLE;
        if (*seen == SKIPPED && !k->n_skipped++)
            k->first_skipped = dt_strdup(own->path);
    }
    if (rc == 0 && text && *seen != SKIPPED) {
        rc = note_caption(k, own->text, err);
        *seen |= CAPTION;
    }
    free(own);
    return rc;
}

static int note_place(struct check *k, const dt_batch *b, const dt_batch_item *it, dt_err *err)
{
    const int32_t key[] = { (int32_t)it->at, it->resize_w, it->resize_h, it->crop_x, it->crop_y, b->w, b->h, it->flip };
    int64_t n = k->requests;
    int rc = note_item(k, it, err);
    if (rc < 0 || k->seen[it->at] & SKIPPED)
        return rc;
    if (dt_keymap_add(k->reqs, key, sizeof(key), n) == n) {
        k->requests++;
        if ((rc = note_picture(k, b, it, err)) < 0)
            return rc;
    }
    return it->text && k->p->texts ? note_caption(k, it->text, err) : 0;
}

static int go_through(struct check *k, dt_err *err)
{
    dt_batch b;
    int rc = dt_batches_open(&k->plan, k->p->plan, err);
    k->seen = rc < 0 ? NULL : dt_alloc((size_t)dt_batches_items(k->plan) + 1);
    while (rc == 0 && (rc = dt_batches_next_bare(k->plan, &b, err)) == 1) {
        rc = 0;
        for (int i = 0; i < b.n && rc == 0; i++)
            rc = note_place(k, &b, &b.item[i], err);
    }
    return rc;
}

/* Is what was read what the cache was made of?  1, 0. */
static int unchanged(const struct check *k, const dt_got_picture *got, dt_err *err)
{
    const dt_want_picture *w = &k->want[got->i];
    dt_batch_item it;
    dt_plan_item *own;
    dt_cache_rec rec = { 0 };
    int rc = dt_want_item(k->plan, w, &it, &own, err);
    if (rc == 0)
        rc = dt_cache_image_rec(k->p->cache, &it, w->w, w->h, &rec, err);
    if (rc == 1)
        rc = !strcmp(got->source.hex, rec.source.hex);
    dt_cache_rec_release(&rec);
    free(own);
    return rc;
}

/* Reads the pictures that were noted. */
static int compare(const struct check *k, dt_err *err)
{
    if (k->n >= MANY)
        say(k, "reading %" PRId64 " pictures, to see whether they are those of the cache", k->n);
    int64_t changed = 0, first = 0;
    dt_pictures *p = NULL;
    dt_got_picture got;
    int rc = k->n ? dt_pictures_open(&p, &(struct dt_pictures_params){ .plan = k->plan, .want = k->want, .n = k->n,
                                     .threads = k->p->threads, .hash_only = true }, err) : 0;
    while (rc == 0 && k->n && !(k->p->stop && *k->p->stop) && dt_pictures_next(p, &got) == 1) {
        int same = got.rc == 0 ? unchanged(k, &got, err) : 1;
        rc = same < 0 ? same : 0;
        if (same == 0 && !changed++)
            first = got.i;
    }
    if (rc == 0 && k->p->stop && *k->p->stop)
        rc = dt_err_set(err, DT_ESIGNAL, "stopped while comparing the pictures with the cache");
    dt_pictures_close(&p);
    dt_plan_item *item;
    if (rc == 0 && changed && (rc = dt_batches_item(k->plan, k->want[first].at, &item, err)) == 0) {
        rc = dt_err_set(err, DT_EDATA, "'%s' is not what it was when the cache in '%s' was made (%" PRId64 " such); "
                        "run dt-cache-latents again", item->path, k->p->dir, changed);
        free(item);
    }
    return rc;
}

int dt_encode_check(const struct dt_check_params *p, dt_err *err)
{
    struct check k = { .p = p, .reqs = dt_keymap_new(), .captions = dt_keymap_new() };
    int rc = check_recipe(&k, false, err);
    if (rc == 0 && p->texts)
        rc = check_recipe(&k, true, err);
    if (rc == 0)
        rc = go_through(&k, err);
    if (rc == 0)
        rc = compare(&k, err);
    if (rc == 0 && k.absent)
        say(&k, "%" PRId64 " pictures are not here: what the cache in '%s' has of them is taken without comparing",
            k.absent, p->dir);
    if (rc == 0 && k.n_skipped)
        say(&k, "%" PRId64 " pictures are left out, which dt-cache-latents could not use; the first: '%s'", k.n_skipped,
            k.first_skipped);
    dt_keymap_free(&k.reqs);
    dt_keymap_free(&k.captions);
    dt_batches_close(&k.plan);
    free(k.first_skipped);
    free(k.seen);
    free(k.want);
    return rc;
}
