/* encode_collect.c - what a plan asks for: every distinct picture and caption, once.  See encode_int.h.
 *
 * Batches name items by number; the strings of an item are read the first time that it is met. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "train/encode_int.h"

enum { UNKNOWN, NOT_MINE = -1 };

struct collector {
    dt_enc  *e;
    int32_t *path_of, *text_of;     /* [items] 1 + the first item with that path; 1 + its caption; UNKNOWN, NOT_MINE */
    uint8_t *used;                  /* [items] a picture of this path was wanted */
    dt_keymap *paths, *reqs, *captions;
};

static bool mine(const dt_enc *e, const char *name)
{
    if (e->p->shards <= 1)
        return true;
    char first[16] = { 0 };
    dt_hash h = dt_hash_bytes(name, strlen(name));
    memcpy(first, h.hex, sizeof(first) - 1);
    return (int64_t)(strtoull(first, NULL, 16) % (uint64_t)e->p->shards) == e->p->shard;
}

/* 1 + the index of a caption, which is item `at`'s, or nobody's: -1; NOT_MINE. */
static int32_t caption_of(struct collector *c, const char *text, int64_t at)
{
    dt_enc *e = c->e;
    int64_t i = dt_keymap_get(c->captions, text, strlen(text));
    if (i >= 0)
        return (int32_t)i + 1;
    if (!mine(e, text))
        return NOT_MINE;
    if (at < 0) {
        at = ~e->drawn.n;
        dt_strs_add(&e->drawn, text);
    }
    dt_grow(&e->text, &e->texts_cap, e->texts + 1, sizeof(*e->text));
    e->text[e->texts] = (struct dt_enc_text){ .at = (int32_t)at, .place = -1 };
    dt_keymap_add(c->captions, text, strlen(text), e->texts++);
    return (int32_t)e->texts;
}

/* Path and caption of an item, as far as a place in a batch wants them. */
static int meet(struct collector *c, const dt_batch_item *it, dt_err *err)
{
    bool wants_text = !c->e->p->pictures_only && !it->text;
    dt_plan_item *own;
    if (c->path_of[it->at] && (!wants_text || c->text_of[it->at]))
        return 0;
    int rc = dt_batches_item(c->e->plan, it->at, &own, err);
    if (rc < 0)
        return rc;
    if (!c->path_of[it->at])
        c->path_of[it->at] = mine(c->e, own->path) ? (int32_t)dt_keymap_add(c->paths, own->path, strlen(own->path),
                                                                            it->at) + 1
                                                   : NOT_MINE;
    if (wants_text && !c->text_of[it->at])
        c->text_of[it->at] = caption_of(c, own->text, it->at);
    free(own);
    return 0;
}

static void want_picture(struct collector *c, const dt_batch *b, const dt_batch_item *it)
{
    dt_enc *e = c->e;
    int32_t at = c->path_of[it->at] - 1;
    if (at < 0)
        return;
    int32_t key[] = { at, it->resize_w, it->resize_h, it->crop_x, it->crop_y, b->w, b->h, it->flip };
    if (dt_keymap_add(c->reqs, key, sizeof(key), e->n) != e->n)
        return;
    dt_grow(&e->want, &e->cap, e->n + 1, sizeof(*e->want));
    dt_grow(&e->place, &e->place_cap, e->n + 1, sizeof(*e->place));
    e->want[e->n] = (dt_want_picture){ .at = at, .resize_w = it->resize_w, .resize_h = it->resize_h,
                                       .crop_x = it->crop_x, .crop_y = it->crop_y, .w = b->w, .h = b->h,
                                       .flip = it->flip, .mark = c->used[at] ? 0 : DT_ENC_FIRST };
    e->place[e->n++] = -1;
    e->r->paths += !c->used[at];
    c->used[at] = 1;
}

static int collect(struct collector *c, dt_err *err)
{
    dt_enc *e = c->e;
    dt_batch b;
    int rc;
    while ((rc = dt_batches_next_bare(e->plan, &b, err)) == 1)
        for (int i = 0; i < b.n; i++) {
            int bad = meet(c, &b.item[i], err);
            if (bad < 0)
                return bad;
            want_picture(c, &b, &b.item[i]);
            if (b.item[i].text && !e->p->pictures_only)
                caption_of(c, b.item[i].text, -1);
        }
    return rc;
}

int dt_enc_collect(dt_enc *e, dt_err *err)
{
    bool in = !strcmp(e->p->plan, "-");
    int fd = dup(fileno(e->plan_file)), rc;
    if (fd < 0)
        return dt_err_sys(err, DT_EFAIL, "cannot read the plan");
    FILE *f = dt_must(fdopen(fd, "r"));
    if ((rc = dt_batches_open_file(&e->plan, f, in ? "<stdin>" : e->p->plan, err)) < 0)
        return rc;
    const char *stale = dt_batches_stale(e->plan);
    if (stale)
        dt_enc_say(e, true, DT_PLAN_STALE, stale);
    size_t items = (size_t)dt_batches_items(e->plan) + 1;
    struct collector c = { .e = e, .path_of = dt_alloc(items * sizeof(*c.path_of)),
                           .text_of = dt_alloc(items * sizeof(*c.text_of)),
                           .used = dt_alloc(items), .paths = dt_keymap_new(), .reqs = dt_keymap_new(),
                           .captions = dt_keymap_new() };
    rc = collect(&c, err);
    dt_keymap_free(&c.paths);
    dt_keymap_free(&c.reqs);
    dt_keymap_free(&c.captions);
    free(c.path_of);
    free(c.text_of);
    free(c.used);
    e->r->images.wanted = e->n;
    e->r->texts.wanted = e->texts;
    return rc;
}
