/* pictures.h - pictures of a list of requests, read, hashed and made ready by threads, handed out in the
 * order of the list whatever the number of threads. */
#ifndef DT_TRAIN_PICTURES_H
#define DT_TRAIN_PICTURES_H
#include "base/hash.h"
#include "data/media.h"
#include "data/plan.h"

/* A picture with its transform, as a plan asks for it. */
typedef struct dt_want_picture {
    int32_t  at;                    /* of the plan's items */
    int32_t  resize_w, resize_h, crop_x, crop_y, w, h;      /* px; w, h: of the batch */
    unsigned flip : 1, mark : 3;    /* mark: for whoever made the list */
} dt_want_picture;

/* The request of a picture of a list, and its item, which the caller frees. */
int dt_want_item(const dt_batches *plan, const dt_want_picture *w, dt_batch_item *it, dt_plan_item **own, dt_err *err);

typedef struct dt_got_picture {
    int64_t  i;                     /* of the list */
    int      rc;                    /* DT_EDATA: the file cannot be used; err says why */
    dt_err   err;
    dt_hash  stat;                  /* dt_hash_stat(), from before the file was read */
    dt_hash  source;                /* of the file's bytes */
    dt_image im;                    /* w x h; empty if the file was only hashed */
} dt_got_picture;

typedef struct dt_pictures dt_pictures;

struct dt_pictures_params {
    const dt_batches *plan;         /* borrowed */
    const dt_want_picture *want;    /* borrowed */
    const int32_t *order;           /* [n] indices into want; NULL: all in their order; borrowed */
    int64_t n;
    int     threads;                /* at least 1 */
    bool    hash_only;
};
int  dt_pictures_open(dt_pictures **out, const struct dt_pictures_params *p, dt_err *err);
/* 1 and the next one, whose picture the caller releases; 0 at the end. */
int  dt_pictures_next(dt_pictures *p, dt_got_picture *got);
void dt_pictures_close(dt_pictures **p);
/* Memory that it takes while its largest pictures are all under way. */
int64_t dt_pictures_bytes(const struct dt_pictures_params *p);
/* The same for one picture, in the caller's thread. */
void dt_picture_get(dt_got_picture *got, const dt_batches *plan, const dt_want_picture *want, bool hash_only);

#endif
