/* encode_int.h - what the encode*.c files share. */
#ifndef DT_TRAIN_ENCODE_INT_H
#define DT_TRAIN_ENCODE_INT_H
#include "base/progress.h"
#include "base/spool.h"
#include "data/cache_write.h"
#include "models/flux_run.h"
#include "tensor/strmap.h"
#include "train/encode.h"
#include "train/memory.h"
#include "train/pictures.h"

/* What is known of the file of a picture. */
struct dt_enc_file { dt_hash source, stat; };

enum {                              /* marks of a wanted picture */
    DT_ENC_FIRST = 1,               /* the first with its path */
    DT_ENC_SAME = 2,                /* its file is another's */
};

/* A caption of the plan: of an item, or the ~at-th of those that no item has. */
struct dt_enc_text {
    int32_t at, len;                /* len: T of its states */
    int32_t place;                  /* in the store; -1: none */
};

typedef struct dt_enc {
    const struct dt_encode_params *p;
    struct dt_encode_report *r;
    FILE   *plan_file;              /* rewindable copy of the plan */
    dt_batches *plan;
    dt_want_picture *want;          /* distinct requests in the order of the plan */
    int32_t *place;                 /* [n] in the store; -1: none (skipped, or not reached) */
    dt_spool *file;                 /* [n] struct dt_enc_file of what has a place */
    int64_t n, cap, place_cap;
    struct dt_enc_text *text;       /* distinct captions, likewise */
    int64_t texts, texts_cap;
    dt_strs drawn;                  /* captions that are not those of items */
    dt_strmap *bad;                 /* path -> index into r->skipped */
    dt_strs bad_paths;
    dt_cache_recipe recipe;
    dt_cache_store *store;
    int64_t missing_texts;
    dt_flux_run *text_run;          /* NULL: no caption is missing */
    struct dt_encoder *images;      /* encode_images.c */
    dt_mem_plan memory;
} dt_enc;

/* The i-th caption; caller frees. */
int  dt_enc_caption(const dt_enc *e, int64_t i, char **text, dt_err *err);
/* The i-th picture's request, as dt_cache_request() makes it, and its item; caller frees both. */
int  dt_enc_request(const dt_enc *e, int64_t i, char **req, dt_plan_item **item, dt_err *err);

/* Opens plan and store, collects requests, computes the recipe. */
int  dt_enc_open(dt_enc *e, const struct dt_encode_params *p, struct dt_encode_report *r, dt_err *err);
void dt_enc_close(dt_enc *e);
bool dt_enc_stopped(const dt_enc *e);
void dt_enc_say(const dt_enc *e, bool warning, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int  dt_enc_skip(dt_enc *e, int64_t i, const char *why, dt_err *err);
/* Packs two named arrays, given as fp32, in the storage dtype and puts them at `place`. */
int dt_enc_put(dt_enc *e, int64_t place, const dt_hash *key, const char *const name[2], const float *const v[2],
               const dt_dims dims[2], dt_err *err);

/* encode_recipe.c: what entries depend on */
enum { DT_ENC_CODE = 2 };  /* rises when entries made before would differ from new ones by more than rounding */
struct dt_enc_part_kind {
    const char *name;               /* folder of the model */
    int  k;                         /* enum dt_flux_part; < 0: a tokenizer, all of whose files count */
    bool text;
};
extern const struct dt_enc_part_kind dt_enc_parts[];    /* ends with a NULL name */
/* Fills a part from the files of `pipe`.  They are read only if known(ctx, part), given its name and stat,
 * does not fill in the hash. */
int  dt_enc_part(dt_cache_part *part, const dt_flux_pipe *pipe, const struct dt_enc_part_kind *kind,
                 bool (*known)(void *ctx, dt_cache_part *part), void *ctx, dt_err *err);

/* encode_collect.c: goes through the batches, for every distinct picture and caption. */
int  dt_enc_collect(dt_enc *e, dt_err *err);

/* encode_index.c: the index of all that the plan asks for, and what it adds up to. */
int  dt_enc_write_index(dt_enc *e, dt_err *err);
/* The plan as plan.ndjson: a stream begins with it; a folder gets it last, if it is a whole one. */
int  dt_enc_put_plan(dt_enc *e, dt_err *err);

/* dt_flux_pipe_place, as the options ask. */
int  dt_enc_place(dt_enc *e, enum dt_flux_part k, dt_err *err);
/* What is missing, then the shapes of the encoders that make it, up to `at_once` pictures together; then the work. */
int  dt_enc_find_texts(dt_enc *e, dt_err *err);
int  dt_enc_find_images(dt_enc *e, dt_err *err);
int  dt_enc_plan_images(dt_enc *e, int64_t at_once, dt_err *err);
int  dt_enc_texts(dt_enc *e, dt_err *err);
int  dt_enc_images(dt_enc *e, dt_err *err);
void dt_enc_close_images(dt_enc *e);
/* Reads a picture that is missing, so that what its decoder keeps is there before the process is measured. */
void dt_enc_rehearse_image(const dt_enc *e);
/* Arena, and host memory for pictures ahead, at work and in the group; 0 if no picture is missing. */
void dt_enc_images_bytes(const dt_enc *e, int64_t *arena, int64_t *host);
/* encode_memory.c: plans the encoders, says what they take, and holds it against the budget. */
int  dt_enc_memory(dt_enc *e, dt_err *err);

#endif
