/* dataset.h - the dataset_config files of kohya's sd-scripts and of musubi-tuner: TOML, or JSON of the same structure.
 *
 *     [general]                 what holds for all
 *     [[datasets]]              a size, a batch size, rules for buckets
 *     [[datasets.subsets]]      a folder (kohya; in a musubi file the dataset itself names one)
 *
 * Every key is honoured, or refused with the reason when its value asks for something, or noted when it says nothing
 * here; one that neither program knows is an error.  Conventions: docs/config_README-en.md of sd-scripts,
 * docs/dataset_config.md of musubi-tuner. */
#ifndef DT_DATA_DATASET_H
#define DT_DATA_DATASET_H
#include <stdbool.h>
#include <stdint.h>
#include <cjson/cJSON.h>
#include "base/rng.h"
#include "data/bucket.h"
#include "data/meta.h"

typedef struct dt_dataset {         /* one [[datasets]] */
    dt_size reso;                   /* px */
    int64_t batch;
    int     bucket, no_upscale;     /* flags */
    int64_t step, min_px, max_px;   /* bucket_reso_steps, min_bucket_reso, max_bucket_reso; 0: not given */
    dt_size skip;                   /* pictures of this area or less are left out; 0 x 0: none are */
    dt_size *size;                  /* buckets, ascending; one without enable_bucket */
    int     n_size;
} dt_dataset;

enum { DT_MAX_REPEATS = 4095 };     /* a repeat's draws are told apart by 12 bits: dt_seat_when() */

typedef struct dt_subset {          /* one folder; strings are borrowed from the document */
    int     set;
    const char *dir, *meta, *jsonl;
    const char *ext, *class_tokens, *prefix, *suffix;
    const char *sep, *keep_sep, *second_sep;    /* between tags: caption_, keep_tokens_ and secondary_separator */
    int64_t repeats, keep, drop_every;
    double  drop, tag_drop;         /* probabilities */
    int     flip, shuffle;
} dt_subset;

typedef struct dt_datasets {
    bool        musubi;
    dt_dataset *set;
    dt_subset  *sub;
    int         n_set, n_sub;
    dt_strs     notes;              /* keys that have no effect here, one line each */
    cJSON      *doc;
    char       *path;
} dt_datasets;

/* `multiple`: sides of batches, px.  DT_EDATA names file, table and key. */
int  dt_datasets_open(dt_datasets **d, const char *path, int64_t multiple, dt_err *err);
/* All pictures of all subsets; their `sub` is set. */
int  dt_datasets_read(const dt_datasets *d, dt_meta *m, dt_err *err);
void dt_datasets_close(dt_datasets **d);

/* A path as it stands in the file `named_in`: as those programs take it, from the working folder; otherwise from
 * that file's folder.
 * Caller frees. */
char *dt_dataset_locate(const char *named_in, const char *path);

/* The size of a picture's batch, and how it gets there. */
dt_size dt_dataset_size(const dt_datasets *d, const dt_dataset *s, int w, int h);
dt_fit  dt_dataset_fit(const dt_datasets *d, const dt_dataset *s, int w, int h, dt_size target);

/* Does an epoch draw other captions from the same text? */
bool  dt_subset_draws(const dt_subset *s);
/* One such caption: tags shuffled and dropped, the first ones kept.  Caller frees. */
char *dt_subset_caption(const dt_subset *s, const char *text, dt_rng *shuffle);

#endif
