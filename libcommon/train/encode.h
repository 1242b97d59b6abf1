/* encode.h - fills a cache with what a plan asks for: every distinct picture by the autoencoder, every distinct caption
 * by CLIP and T5.  See dt-cache-latents(1) and data/cache.h. */
#ifndef DT_TRAIN_ENCODE_H
#define DT_TRAIN_ENCODE_H
#include <stdio.h>
#include "data/cache.h"
#include "graph/device.h"
#include "models/flux_pipe.h"

struct dt_encode_params {
    dt_flux_pipe *pipe;             /* opened, not loaded; borrowed */
    dt_device    *dev;
    const char   *plan;             /* path, "-" is stdin */
    const char   *dir;              /* cache folder; NULL: one tar stream to `out` */
    FILE         *out;
    dt_dtype      compute, store;   /* of activations and weights; of what is kept */
    int64_t       vae_mini_batch;   /* pictures encoded at once, at most, and no more than one megapixel together */
    int64_t       tile_px;          /* 0: never in tiles */
    bool          pictures_only;    /* no captions: the run trains the text encoders */
    int64_t       max_shard_bytes;
    int64_t       shard, shards;    /* only what the hash of a path or caption gives to `shard` */
    int           workers;          /* threads that read pictures */
    double        max_skipped_fraction;
    int64_t       memory_budget;    /* bytes: fewer pictures at once if that is needed, otherwise DT_ENOMEM; 0: none */
    bool          memory_plan;      /* only this, to `table` */
    bool          low_vram;         /* matrices stay in their files, and their pages are given back */
    void        (*table)(void *ctx, const char *text);
    const char   *progress;         /* NDJSON, or NULL */
    bool          quiet;
    const volatile int *stop;
    void        (*say)(void *ctx, bool warning, const char *line);     /* may be NULL */
    void         *ctx;
};

/* wanted = made + there + shared, skipped ones aside */
struct dt_encode_count { int64_t wanted, made, there, shared; };

struct dt_encode_report {           /* filled also on failure, as far as it got; release always */
    struct dt_encode_count images, texts;
    dt_strs skipped;                /* one line per path */
    int64_t paths;                  /* distinct pictures of the plan */
    int64_t bytes;                  /* that this plan's entries take in shards */
    int64_t files, naive_bytes;     /* of a file for each picture's latents and one for its caption's states, padded */
    int64_t text_len;               /* to so many tokens; 0: no captions */
    bool    wrote_index;
};
void dt_encode_report_release(struct dt_encode_report *r);

/* DT_ESIGNAL: stopped, what was made is in the cache. */
int dt_encode_run(const struct dt_encode_params *p, struct dt_encode_report *r, dt_err *err);

/* Says on `out` for a picture of the plan and its caption whether their entries would be reused, and if not, which part
 * of their keys is another.  Encodes nothing.  DT_EDATA: not in the plan. */
int dt_encode_explain(const struct dt_encode_params *p, const char *file, FILE *out, dt_err *err);

/* --- before training on a cache that was there --- */

struct dt_check_params {
    const dt_cache *cache;
    const char     *dir;            /* of the cache, for messages */
    const char     *plan;           /* path */
    const dt_flux_pipe *pipe;       /* opened, not loaded, with its tokenizers */
    bool            texts;          /* states of captions are used, too */
    int             threads;        /* that read pictures */
    const volatile int *stop;
    void          (*say)(void *ctx, const char *line);
    void           *ctx;
};

/* DT_EDATA or DT_EUSAGE if the cache has not all that the plan asks for, or if a picture, an encoder, a
 * tokenizer or the limit or padding of captions is not what it was made with. */
int dt_encode_check(const struct dt_check_params *p, dt_err *err);

#endif
