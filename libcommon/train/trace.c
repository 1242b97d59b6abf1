/* trace.c - see trace.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "train/trace.h"

static void chain(char run[33], const dt_hash *next)
{
    char both[66];
    int n = snprintf(both, sizeof(both), "%s%s", run, next->hex);
    dt_hash h = dt_hash_bytes(both, (size_t)n);
    memcpy(run, h.hex, sizeof(h.hex));
}

/* 64 bits of a caption's hash, never 0; it is read once for all places that it has. */
static int caption_of(uint64_t *hash, const dt_batches *plan, uint64_t *captions, const dt_batch_item *it, dt_err *err)
{
    dt_plan_item *own = NULL;
    if (it->text || !captions[it->at]) {
        int rc = it->text ? 0 : dt_batches_item(plan, it->at, &own, err);
        if (rc < 0)
            return rc;
        const char *text = own ? own->text : it->text;
        dt_hash h = dt_hash_bytes(text, strlen(text));
        h.hex[16] = '\0';
        *hash = strtoull(h.hex, NULL, 16) | 1;
        if (own)
            captions[it->at] = *hash;
        free(own);
    } else {
        *hash = captions[it->at];
    }
    return 0;
}

int dt_trace_plan(dt_trace *t, const dt_batches *plan, uint64_t *captions, const dt_batch *b, dt_err *err)
{
    char line[160];
    int rc = 0;
    dt_hasher *h = dt_hasher_new();
    snprintf(line, sizeof(line), "%" PRId64 " %dx%d", b->index, b->w, b->h);
    dt_hasher_str(h, line);
    for (int i = 0; i < b->n && rc == 0; i++) {
        const dt_batch_item *it = &b->item[i];
        uint64_t caption = 0;
        rc = captions ? caption_of(&caption, plan, captions, it, err) : 0;
        snprintf(line, sizeof(line), "%" PRId64 " %d %d %d %d %d %" PRIx64, dt_batches_id(plan, it->at), it->resize_w,
                 it->resize_h, it->crop_x, it->crop_y, it->flip, caption);
        dt_hasher_str(h, line);
    }
    dt_hash one = dt_hasher_end(&h);
    chain(t->plan, &one);
    return rc;
}

void dt_trace_data(dt_trace *t, const dt_hash *contents) { chain(t->data, contents); }
