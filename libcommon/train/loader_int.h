/* loader_int.h - what loader.c and loader_trace.c share. */
#ifndef DT_TRAIN_LOADER_INT_H
#define DT_TRAIN_LOADER_INT_H
#include "train/loader.h"

/* Items whose pictures a cache could not use. */
struct dt_kept {
    const dt_cache *cache;          /* may be NULL */
    uint8_t *state;                 /* [items]; 0: not asked; NULL: none was.  Owned */
};
/* Leaves them out of a bare batch. */
int dt_kept_leave_out(struct dt_kept *k, const dt_batches *plan, dt_batch *b, dt_err *err);

/* What a sample is, beyond what the plan's batches say: cache keys of its picture and of its caption,
 * or that one's hash where the encoders are trained, the hash of the picture's file where that is read.  What is
 * not wanted is "". */
dt_hash dt_sample_contents(int64_t item, const char *image, const char *text, const char *source);
dt_hash dt_batch_contents(const dt_hash *sample, int n);

#endif
