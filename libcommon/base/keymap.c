/* keymap.c - open addressing with linear probing, at most 7/8 full. */
#include "base/keymap.h"

#include <stdlib.h>
#include <xxhash.h>

#include "base/mem.h"

#define FREE UINT32_MAX
enum { FIRST = 16 };

struct slot {
    uint64_t low;
    uint32_t high, value;
};

struct dt_keymap {
    struct slot *slot;
    uint64_t     mask, n;           /* slots - 1, a power of two less one; keys */
};

static struct slot *make(uint64_t n)
{
    struct slot *s = dt_alloc(n * sizeof(*s));
    for (uint64_t i = 0; i < n; i++)
        s[i].value = FREE;
    return s;
}

static struct slot of(const void *key, size_t bytes, uint32_t value)
{
    XXH128_hash_t h = XXH3_128bits(key, bytes);
    return (struct slot){ h.low64, (uint32_t)h.high64, value };
}

/* Where `want` is, or the free slot where it belongs. */
static struct slot *probe(const dt_keymap *m, const struct slot *want)
{
    uint64_t i = want->low & m->mask;
    while (m->slot[i].value != FREE && (m->slot[i].low != want->low || m->slot[i].high != want->high))
        i = (i + 1) & m->mask;
    return &m->slot[i];
}

dt_keymap *dt_keymap_new(void)
{
    dt_keymap *m = dt_alloc(sizeof(*m));
    m->mask = FIRST - 1;
    m->slot = make(FIRST);
    return m;
}

void dt_keymap_free(dt_keymap **m)
{
    if (!*m)
        return;
    free((*m)->slot);
    free(*m);
    *m = NULL;
}

static void grow(dt_keymap *m)
{
    struct slot *old = m->slot;
    uint64_t n = m->mask + 1;
    m->mask = 2 * n - 1;
    m->slot = make(2 * n);
    for (uint64_t i = 0; i < n; i++)
        if (old[i].value != FREE)
            *probe(m, &old[i]) = old[i];
    free(old);
}

int64_t dt_keymap_add(dt_keymap *m, const void *key, size_t bytes, int64_t value)
{
    if (8 * (m->n + 1) > 7 * (m->mask + 1))
        grow(m);
    struct slot want = of(key, bytes, (uint32_t)value), *s = probe(m, &want);
    if (s->value == FREE) {
        *s = want;
        m->n++;
    }
    return s->value;
}

int64_t dt_keymap_get(const dt_keymap *m, const void *key, size_t bytes)
{
    struct slot want = of(key, bytes, 0);
    const struct slot *s = probe(m, &want);
    return s->value == FREE ? -1 : (int64_t)s->value;
}

int64_t dt_keymap_bytes(int64_t n)
{
    int64_t slots = FIRST;
    while (8 * n > 7 * slots)
        slots *= 2;
    return (slots + slots / 2) * (int64_t)sizeof(struct slot);
}
