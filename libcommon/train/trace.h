/* trace.h - what a run has been trained on, as two running hashes over the batches behind it.
 *
 *   plan    what the plan says of them: order, items, sizes, transforms, captions; known before anything is encoded
 *   data    what was in them: keys of cache entries (source bytes, transform, encoders, precision) or hashes of picture files
 *
 * Each is XXH3-128 of itself before the batch and the batch, so that a checkpoint's can be held against the
 * first batches of a plan, and what comes after those may be another. */
#ifndef DT_TRAIN_TRACE_H
#define DT_TRAIN_TRACE_H
#include "base/hash.h"
#include "data/plan.h"

typedef struct dt_trace { char plan[33], data[33]; } dt_trace;      /* "": no batch so far */

/* A bare batch of the plan, all its items: those that a cache leaves out too.  captions: [items of the plan] of
 * 0, for what is found out about them; NULL if they are not trained on. */
int  dt_trace_plan(dt_trace *t, const dt_batches *plan, uint64_t *captions, const dt_batch *b, dt_err *err);
/* The contents of a batch that was trained on. */
void dt_trace_data(dt_trace *t, const dt_hash *contents);

#endif
