/* cache.h - encoded pictures and captions on disk, dt-cache(5): content-addressed, deduplicated, resumable.
 *
 *   CACHE/shard-S-IofN-K.tar      uncompressed ustar; members KEY.safetensors (webdataset convention)
 *   CACHE/index-S-IofN.ndjson     which entry a request of the plan means; written last, so what it names is complete
 *   CACHE/plan.ndjson             the plan it was made for
 *
 * Entries.  A picture: "mean", "logvar" [C, h, w] (the posterior, not normalised; logvar clamped to [-30,
 * 20]).  A caption:
 * "states" [T, D] and "pooled" [P]; T is the caption's own with DT_PAD_NONE.
 * Keys.  XXH3-128 of everything the content depends on: source bytes (or caption), transform, encoder config and
 * weights, encoder code version, storage dtype, T and padding.  What is there under its key is right by construction;
 * what changed has another key.
 * Requests.  What a plan can say without opening the source: an item with its transform, or a caption.  Where
 * indexes disagree about a request the newest is right; entries of another recipe (encoders, precision, ...) than the
 * newest's are not seen. */
#ifndef DT_DATA_CACHE_H
#define DT_DATA_CACHE_H
#include <stdio.h>
#include "base/hash.h"
#include "data/plan.h"
#include "tensor/dtype.h"
#include "text/tokenizer.h"

typedef struct dt_cached_image {
    int64_t     C, h, w;
    dt_dtype    dtype;
    const void *mean, *logvar;      /* borrowed until the cache is closed */
    dt_hash     key;                /* of the entry */
} dt_cached_image;

typedef struct dt_cached_text {
    int64_t     T, D, P;
    dt_dtype    dtype;
    const void *states, *pooled;
    dt_hash     key;
} dt_cached_text;

typedef struct dt_cache dt_cache;   /* opaque; reading by any number of threads */

/* Reads all indexes of a folder and maps the shards they name.  DT_EDATA: no index, a shard that is missing or cut. */
int  dt_cache_open(dt_cache **out, const char *dir, dt_err *err);
void dt_cache_close(dt_cache **c);
/* DT_EDATA: not in the cache ("run dt-cache-latents for this plan"), or damaged: an entry's hash is
 * checked on its first use. */
int  dt_cache_image(const dt_cache *c, const dt_batch_item *it, int w, int h, dt_cached_image *out, dt_err *err);
int  dt_cache_text(const dt_cache *c, const char *caption, dt_cached_text *out, dt_err *err);
/* An entry's bytes are not read again soon: they take no memory until they are. */
void dt_cache_forget(const dt_cache *c, const void *data, int64_t bytes);
/* Bytes of the largest entry of each kind, and of all that is mapped. */
void dt_cache_sizes(const dt_cache *c, int64_t *image, int64_t *text, int64_t *all);
/* Was the picture of this path unusable when the cache was made?  Batches leave it out. */
bool dt_cache_skips(const dt_cache *c, const char *path);
/* How many such paths its indexes name; 0: dt_cache_skips() is never true. */
int64_t dt_cache_skipped(const dt_cache *c);
/* T of a caption, without reading its states; the cost of a look-up.  DT_EDATA: not in the cache, or damaged. */
int64_t dt_cache_text_len(const dt_cache *c, const char *caption, dt_err *err);

/* Spools what `dt-cache-latents -o -` writes into folder `dir`, entries and plan.ndjson, checking every
 * hash.  It takes part in the cache when all of it has come; what was there already is not written again. */
int  dt_cache_receive(FILE *in, const char *dir, dt_err *err);

#endif
