/* plan.h - the plan: which pictures, at which size, in which batches and order.  Format: dt-plan(5).
 *
 * A plan is NDJSON: a header, the items, the batches of all epochs, a footer.  It is the only place where data
 * randomness lives; whoever has the plan needs no seed.  Batch k of W ranks belongs to rank k mod W. */
#ifndef DT_DATA_PLAN_H
#define DT_DATA_PLAN_H
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <cjson/cJSON.h>
#include "base/err.h"
#include "base/mem.h"
#include "data/bucket.h"

/* --- settings.  Flags of the same names: data/data_opts.h. --- */

struct dt_data_settings {
    const char *train_data_dir;     /* put before relative paths; NULL: the folder of the metadata file */
    const char *train_data_meta;    /* .json .jsonl .csv, "-", or a folder; NULL: train_data_dir is one */
    const char *dataset_config;     /* dataset.h: says what the two above, sizes, batches, flips and
                                       dropout are; or NULL */
    int      folder_repeats;        /* folders named "10_words" are read as kohya's scripts do; default 1 */
    int64_t  train_batch_size;      /* default 16 */
    int64_t  image_sample_size;     /* px, default 512 */
    int      enable_bucket, random_ratio_crop, random_hw_adapt;
    dt_strs  fix_sample_size;       /* "H", "W" in px, or empty */
    int64_t  multiple;              /* px: sides of batches are multiples of this, default 16 */
    int64_t  num_train_epochs;      /* default 100 */
    int64_t  max_train_steps;       /* optimiser steps; 0: as many as the epochs give */
    int64_t  gradient_accumulation_steps;   /* default 1 */
    int64_t  world_size;            /* batches of this many processes make one step; default 1 */
    int64_t  seed;                  /* default 42 */
    int      random_flip;
    int64_t  max_train_samples;     /* 0: all; otherwise that many, chosen by seed */
    double   caption_dropout;       /* probability, default 0.1 */
    int64_t  dataloader_num_workers;    /* threads that read headers; 0: by the number of CPUs */
    int      trust_sizes;           /* take width and height from the metadata when both are there */
    int      verify_images;         /* decode every picture now instead of its header only */
    double   max_skipped_fraction;  /* more bad pictures than this: DT_EDATA; default 0.5 */
    const char *shard;              /* "i/n": only batches with index mod n = i; NULL: all */
    const volatile int *stop;       /* non-zero: give up with DT_ESIGNAL; may be NULL */
    struct dt_progress *progress;   /* told how many picture files have been read; may be NULL */
};
#define DT_DATA_DEFAULTS { \
    .folder_repeats = 1, .train_batch_size = 16, .image_sample_size = 512, .multiple = 16, .num_train_epochs = 100, \
    .gradient_accumulation_steps = 1, .world_size = 1, .seed = 42, .caption_dropout = 0.1, .max_skipped_fraction = 0.5 }

/* --- writing --- */

struct dt_bucket_count { int w, h; int64_t batches, samples, items; };  /* items: distinct pictures */

struct dt_plan_report {             /* filled also on failure, as far as it got; release it always */
    int64_t entries;                /* in the metadata or folder */
    int64_t items;                  /* good ones */
    int64_t used;                   /* of them, those in the plan: all but what --shard or max_train_steps leave out */
    int64_t unreached;              /* in no batch of any shard: max_train_steps ends before them */
    int64_t no_caption;
    int64_t size_differs;           /* metadata and file disagree; the file counts */
    int64_t epochs, batches, short_batches, samples, steps;
    dt_strs skipped;                /* one line each: "FILE: what is wrong" */
    dt_strs notes;                  /* how data was read, where that should be known */
    int64_t left_out;               /* by a rule of the dataset_config */
    struct dt_bucket_count *bucket; /* by area, then width */
    int     n_bucket;
};
void dt_plan_report_release(struct dt_plan_report *r);
/* Adds a line for each reason in report.skipped, the most frequent first: "2 skipped: damaged PNG: it ends early
 * (a.png, b.png)". */
void dt_plan_reasons(dt_strs *lines, const dt_strs *skipped);
#define DT_PLAN_FEW 20          /* skipped pictures that are named one by one; of more, each reason with the first names */

/* "I/N" of --shard, 0 <= I < N; NULL: 0 of 1. */
int dt_shard_parse(int64_t *shard, int64_t *shards, const char *text, dt_err *err);

/* Can these settings work together?  DT_EUSAGE names the flag. */
int dt_data_settings_check(const struct dt_data_settings *s, dt_err *err);

/* Reads metadata and picture headers and writes the plan.  Nothing is written before every picture is
 * known.  The same settings and files give the same bytes for any number of threads. */
int dt_plan_make(FILE *out, const struct dt_data_settings *s, struct dt_plan_report *report, dt_err *err);

/* --- reading --- */

typedef struct dt_plan_item {
    int64_t     id;                 /* entry of the metadata, from 0; ids may have gaps */
    const char *path, *text;        /* as given; text is "" when there is no caption */
    int         w, h;               /* px, upright */
    const char *tar;                /* the file that it is a part of, [off, off + bytes); NULL: path is its own */
    int64_t     off, bytes;
} dt_plan_item;

static inline const char *dt_plan_item_file(const dt_plan_item *it) { return it->tar ? it->tar : it->path; }
/* The picture's file as it is; caller frees. */
int  dt_plan_item_read(char **data, size_t *bytes, const dt_plan_item *it, dt_err *err);

typedef struct dt_batch_item {
    int64_t at;                     /* of the plan's items: see dt_batches_item() */
    const dt_plan_item *item;
    int  resize_w, resize_h;        /* px: resize the upright picture to this, */
    int  crop_x, crop_y;            /* then take the batch's w x h from here, */
    bool flip;                      /* then mirror left-right */
    bool drop;                      /* train this one with an empty caption */
    const char *text;               /* the caption to train on: "", one drawn for this place, or the item's */
} dt_batch_item;

typedef struct dt_batch {
    int64_t index, epoch;           /* from 0; index counts over all epochs */
    int     w, h;                   /* px */
    bool    is_short;               /* fewer than train_batch_size items: leftovers at the end of the last epoch */
    int     n;
    dt_batch_item *item;            /* [n]; with all it points to borrowed until the next call on the reader */
} dt_batch;

typedef struct dt_plan_info {
    int64_t seed, items, epochs, batches, samples, steps, train_batch_size, gradient_accumulation_steps, world_size;
    int64_t shard, shards;          /* 0, 1 when whole */
    int64_t image_sample_size, multiple;    /* px; of its settings, or their defaults */
    int64_t fix[2];                 /* px: height and width; 0 when pictures are not stretched */
    bool    enable_bucket;
    int64_t largest[2];             /* px: width and height of its largest picture */
} dt_plan_info;

typedef struct dt_batches dt_batches;   /* opaque; one thread at a time */

/* Reads the header and the items; "-" is stdin.  DT_EDATA names line and field. */
int  dt_batches_open(dt_batches **b, const char *path, dt_err *err);
/* The same for an open file, which it takes (also on failure); `name` stands in messages. */
int  dt_batches_open_file(dt_batches **b, FILE *f, const char *name, dt_err *err);
const dt_plan_info *dt_batches_info(const dt_batches *b);
const cJSON *dt_batches_header(const dt_batches *b);    /* all of it; borrowed until close */
int64_t dt_batches_items(const dt_batches *b);
int64_t dt_batches_id(const dt_batches *b, int64_t k);  /* of the k-th item */
/* A metadata file that the plan was made from, which is here and has changed since; NULL: none.
 * Borrowed until close. */
const char *dt_batches_stale(const dt_batches *b);
#define DT_PLAN_STALE "%s has changed since the plan was made; run dt-bucket again if the plan should follow it"
/* The k-th of the file, in one block that the caller frees; by any number of threads. */
int  dt_batches_item(const dt_batches *b, int64_t k, dt_plan_item **out, dt_err *err);
/* 1 and the next batch; 0 at the end.  A plan without its footer is DT_EDATA: it was cut off. */
int  dt_batches_next(dt_batches *b, dt_batch *batch, dt_err *err);
/* The same without reading items again: `item` is NULL, and so is `text` where it is the item's. */
int  dt_batches_next_bare(dt_batches *b, dt_batch *batch, dt_err *err);
/* Goes on at the first batch with index >= k.  Forwards works on a pipe, backwards needs a file. */
int  dt_batches_seek(dt_batches *b, int64_t k, dt_err *err);
void dt_batches_close(dt_batches **b);

#endif
