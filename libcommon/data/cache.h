/* cache.h - encoded pictures and captions on disk, dt-cache(5): content-addressed, deduplicated, resumable.
 *
 *   CACHE/NAME.tar         uncompressed ustar shards; members KEY.safetensors (webdataset convention)
 *   CACHE/index-I.ndjson   which entry a request of the plan means; written last, so what it names is complete
 *
 * Entries.  A picture: "mean", "logvar" [C, h, w] (the posterior, not normalised; logvar clamped to [-30, 20]).  A caption:
 * "states" [T, D] and "pooled" [P].
 * Keys.  XXH3-128 of everything the content depends on: source bytes (or caption), transform, encoder config and weights, encoder
 * code version, storage dtype.  What is there under its key is right by construction; what changed has another key.
 * Requests.  What a plan can say without opening the source: an item with its transform, or a caption. */
#ifndef DT_DATA_CACHE_H
#define DT_DATA_CACHE_H
#include "data/plan.h"
#include "tensor/dtype.h"

typedef struct dt_cached_image {
    int64_t     C, h, w;
    dt_dtype    dtype;
    const void *mean, *logvar;      /* borrowed until the cache is closed */
} dt_cached_image;

typedef struct dt_cached_text {
    int64_t     T, D, P;
    dt_dtype    dtype;
    const void *states, *pooled;
} dt_cached_text;

typedef struct dt_cache dt_cache;   /* opaque; reading by any number of threads */

/* Maps all shards and reads all indexes of a folder.  DT_EDATA: no index, a shard that an index names is missing or cut. */
int  dt_cache_open(dt_cache **out, const char *dir, dt_err *err);
void dt_cache_close(dt_cache **c);
/* Spools a stream of `dt-cache-latents -o -` (one tar: plan.ndjson, entries, index.ndjson) into a cache folder that then also holds
 * plan.ndjson.  A stream that ends early is DT_EDATA. */
int  dt_cache_receive(FILE *in, const char *dir, dt_err *err);
/* DT_EDATA: not in the cache ("run dt-cache-latents for this plan"). */
int  dt_cache_image(const dt_cache *c, const dt_batch_item *it, int w, int h, dt_cached_image *out, dt_err *err);
int  dt_cache_text(const dt_cache *c, const char *caption, dt_cached_text *out, dt_err *err);
/* Was this picture found damaged when the cache was made?  Batches leave it out. */
bool dt_cache_skips(const dt_cache *c, int64_t item_id);
/* Hash of the encoder that made the entries ("vae", "text_encoder", "text_encoder_2"); NULL if there is none. */
const char *dt_cache_encoder(const dt_cache *c, const char *part);
/* Tokens of a caption's states, padding included. */
int64_t dt_cache_text_len(const dt_cache *c);

#endif
