/* strmap.c - open addressing with linear probing, at most half full. */
#include "tensor/strmap.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"

struct slot {
    const char *key;        /* NULL: free */
    int64_t     value;
};

struct dt_strmap {
    struct slot *slot;
    uint64_t     mask;      /* slots - 1, a power of two less one */
    uint64_t     n;
};

static struct slot *probe(const dt_strmap *m, const char *key)
{
    uint64_t i = XXH3_64bits(key, strlen(key)) & m->mask;
    while (m->slot[i].key && strcmp(m->slot[i].key, key))
        i = (i + 1) & m->mask;
    return &m->slot[i];
}

dt_strmap *dt_strmap_new(void)
{
    dt_strmap *m = dt_alloc(sizeof(*m));
    m->mask = 15;
    m->slot = dt_alloc((m->mask + 1) * sizeof(*m->slot));
    return m;
}

void dt_strmap_free(dt_strmap **m)
{
    if (!*m)
        return;
    free((*m)->slot);
    free(*m);
    *m = NULL;
}

static void grow(dt_strmap *m)
{
    struct slot *old = m->slot;
    uint64_t n = m->mask + 1;
    m->mask = 2 * n - 1;
    m->slot = dt_alloc(2 * n * sizeof(*m->slot));
    for (uint64_t i = 0; i < n; i++)
        if (old[i].key)
            *probe(m, old[i].key) = old[i];
    free(old);
}

int64_t dt_strmap_add(dt_strmap *m, const char *key, int64_t value)
{
    if (2 * (m->n + 1) > m->mask + 1)
        grow(m);
    struct slot *s = probe(m, key);
    if (!s->key) {
        *s = (struct slot){ key, value };
        m->n++;
    }
    return s->value;
}

int64_t dt_strmap_get(const dt_strmap *m, const char *key)
{
    if (!m)
        return -1;
    const struct slot *s = probe(m, key);
    return s->key ? s->value : -1;
}
