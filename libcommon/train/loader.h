/* loader.h - micro-batches in the order of the plan, prepared ahead by threads.  What comes out does not depend on
 * the number of threads. */
#ifndef DT_TRAIN_LOADER_H
#define DT_TRAIN_LOADER_H
#include "data/cache.h"
#include "train/task.h"

enum dt_want { DT_WANT_LATENTS = 1, DT_WANT_STATES = 2, DT_WANT_RGB = 4 };

/* How many rows of text states a batch has: those of its longest caption, rounded up to a multiple of
 * 16, at most `most`.
 * Rounded, because every T is a plan of its own (34 MiB and 0.3 s for the graph of FLUX.1).  Without `len` T is 0. */
typedef struct dt_text_rows {
    int64_t (*len)(void *ctx, const char *caption, dt_err *err);    /* T of a caption; by any number of threads */
    void    *ctx;
    int64_t  most;
} dt_text_rows;

typedef struct dt_loader dt_loader;

struct dt_loader_params {
    const char     *plan;           /* path of a plan */
    const dt_cache *cache;          /* for DT_WANT_LATENTS and DT_WANT_STATES; borrowed */
    unsigned        want;
    dt_text_rows    rows;
    int             threads;        /* 0: prepare in the caller's thread */
    int64_t         first;          /* batch to begin with */
    dt_trace        trace;          /* of the batches before it */
};
int  dt_loader_open(dt_loader **out, const struct dt_loader_params *p, dt_err *err);
void dt_loader_close(dt_loader **l);
dt_source dt_loader_source(dt_loader *l);
/* Bytes that a loader holds when all its batches are n pictures of w x h px, the largest picture file being
 * source_w x source_h px. */
int64_t dt_loader_bytes(const struct dt_loader_params *p, int64_t n, int64_t w, int64_t h, int64_t source_w,
                        int64_t source_h);
/* Every distinct (batch size, width, height, T) of the plan once what the cache (may be NULL) skips is left
 * out, and how many batches there are; *shape is [n][4], caller frees. */
int  dt_plan_shapes(const char *plan, const dt_cache *cache, const dt_text_rows *rows, int64_t (**shape)[4], int *n,
                    int64_t *batches, dt_err *err);
/* The trace of the plan's batches before `k`.  *found: 1 + the number of the last of them, less than k if the
 * plan ends before.
 * Picture files (DT_WANT_RGB) are read by `threads`; 0: only t->plan, for which there need not be a cache. */
int  dt_plan_trace(dt_trace *t, int64_t *found, const struct dt_loader_params *p, int64_t k, int threads,
                   const volatile int *stop, dt_err *err);

#endif
