/* layout.c - offsets in the arena: greedy by size.  Pisarchyk & Lee, "Efficient memory management for deep
 * neural net inference", 2020, section 5.2: the largest slots first, each at the lowest offset where it
 * overlaps nothing that is alive at the same time. */
#include <stdlib.h>
#include "graph/plan.h"

static int by_size(const void *pa, const void *pb)
{
    const dt_slot *a = *(dt_slot *const *)pa, *b = *(dt_slot *const *)pb;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? 1 : -1;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    return a < b ? -1 : a > b;
}

/* placed[] is kept in order of offset, so the first gap that is wide enough is the lowest one. */
static int64_t lowest_gap(dt_slot *const *placed, int64_t n, const dt_slot *s, int64_t align)
{
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        const dt_slot *p = placed[i];
        if (p->last < s->first || s->last < p->first)
            continue;
        if (p->offset >= at + s->bytes)
            break;
        int64_t end = (p->offset + p->bytes + align - 1) / align * align;
        if (end > at)
            at = end;
    }
    return at;
}

int64_t dt_layout(dt_slot *slot, int64_t n, int64_t align)
{
    dt_slot **order = dt_alloc((size_t)(n + 1) * sizeof(*order));
    dt_slot **placed = dt_alloc((size_t)(n + 1) * sizeof(*placed));
    int64_t nplaced = 0, arena = 0;
    for (int64_t i = 0; i < n; i++)
        order[i] = &slot[i];
    qsort(order, (size_t)n, sizeof(*order), by_size);
    for (int64_t i = 0; i < n; i++) {
        dt_slot *s = order[i];
        s->offset = lowest_gap(placed, nplaced, s, align);
        if (!s->bytes)
            continue;
        int64_t j = nplaced++;
        for (; j > 0 && placed[j - 1]->offset > s->offset; j--)
            placed[j] = placed[j - 1];
        placed[j] = s;
        if (s->offset + s->bytes > arena)
            arena = s->offset + s->bytes;
    }
    free(order);
    free(placed);
    return (arena + align - 1) / align * align;
}
