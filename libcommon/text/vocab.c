/* vocab.c - two hash tables (open addressing, linear probing, XXH3): the vocabulary, and the words
 * that were split before. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "text/internal.h"

static struct dt_vocab_slot *vocab_slot(const dt_vocab *v, const char *s, int64_t n, uint64_t hash)
{
    for (int64_t i = hash & (v->cap - 1);; i = (i + 1) & (v->cap - 1)) {
        struct dt_vocab_slot *e = &v->slot[i];
        if (e->len < 0 || (e->hash == hash && e->len == n && (!n || !memcmp(v->text.v + e->off, s, n))))
            return e;
    }
}

static void vocab_resize(dt_vocab *v, int64_t cap)
{
    struct dt_vocab_slot *old = v->slot;
    int64_t n = v->cap;
    v->slot = dt_alloc(cap * sizeof *v->slot);
    v->cap = cap;
    for (int64_t i = 0; i < cap; i++)
        v->slot[i].len = -1;
    for (int64_t i = 0; i < n; i++)
        if (old[i].len >= 0)
            *vocab_slot(v, v->text.v + old[i].off, old[i].len, old[i].hash) = old[i];
    free(old);
}

void dt_vocab_put(dt_vocab *v, const char *s, int64_t n, int32_t id)
{
    if (2 * (v->n + 1) > v->cap)
        vocab_resize(v, v->cap ? 2 * v->cap : 1024);
    uint64_t hash = XXH3_64bits(s, n);
    struct dt_vocab_slot *e = vocab_slot(v, s, n, hash);
    if (e->len < 0) {
        dt_grow(&v->text.v, &v->text.cap, v->text.n + n + 1, 1);
        *e = (struct dt_vocab_slot){ .hash = hash, .off = v->text.n, .len = n };
        dt_text_add(&v->text, s, n);
        v->n++;
    }
    e->id = id;
    if (id >= v->top)
        v->top = id + 1;
}

int32_t dt_vocab_get(const dt_vocab *v, const char *s, int64_t n)
{
    if (!v->cap)
        return -1;
    const struct dt_vocab_slot *e = vocab_slot(v, s, n, XXH3_64bits(s, n));
    return e->len < 0 ? -1 : e->id;
}

void dt_vocab_release(dt_vocab *v)
{
    free(v->slot);
    free(v->text.v);
    *v = (dt_vocab){0};
}

/* --- words --- */
enum { WORD_SLOTS = 1 << 14, WORD_MAX = 64 };   /* at most 3/4 full: at worst 1 MB of keys, as much of ids */

uint64_t dt_words_hash(const char *s, int64_t n)
{
    return XXH3_64bits(s, n) | 1;               /* 0 marks a free slot */
}

static struct dt_word *word_slot(const dt_words *w, uint64_t hash, const char *s, int64_t n)
{
    for (uint64_t i = hash >> 1;; i++) {
        struct dt_word *e = &w->slot[i & (WORD_SLOTS - 1)];
        if (!e->hash || (e->hash == hash && e->len == n && !memcmp(w->keys.v + e->key, s, n)))
            return e;
    }
}

bool dt_words_get(const dt_words *w, uint64_t hash, const char *s, int64_t n, dt_ids *out)
{
    if (!w->slot || n > WORD_MAX)
        return false;
    const struct dt_word *e = word_slot(w, hash, s, n);
    if (!e->hash)
        return false;
    for (int32_t i = 0; i < e->n; i++)
        dt_ids_add(out, w->ids.v[e->ids + i]);
    return true;
}

void dt_words_put(dt_words *w, uint64_t hash, const char *s, int64_t n, const int32_t *ids, int64_t k)
{
    if (n > WORD_MAX)
        return;
    if (!w->slot)
        w->slot = dt_alloc(WORD_SLOTS * sizeof *w->slot);
    if (4 * w->used >= 3 * WORD_SLOTS) {
        memset(w->slot, 0, WORD_SLOTS * sizeof *w->slot);
        w->used = w->keys.n = w->ids.n = 0;
    }
    struct dt_word *e = word_slot(w, hash, s, n);
    if (e->hash)
        return;
    *e = (struct dt_word){ .hash = hash, .key = w->keys.n, .len = n, .ids = w->ids.n, .n = k };
    dt_text_add(&w->keys, s, n);
    for (int64_t i = 0; i < k; i++)
        dt_ids_add(&w->ids, ids[i]);
    w->used++;
}

void dt_words_release(dt_words *w)
{
    free(w->slot);
    free(w->keys.v);
    free(w->ids.v);
    *w = (dt_words){0};
}
