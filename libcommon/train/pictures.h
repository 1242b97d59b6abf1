/* pictures.h - pictures of a list of requests, read, hashed and made ready by threads, handed out in the order of the list
 * whatever the number of threads. */
#ifndef DT_TRAIN_PICTURES_H
#define DT_TRAIN_PICTURES_H
#include "base/hash.h"
#include "data/media.h"
#include "data/plan.h"

/* A picture with its transform, as a plan asks for it. */
typedef struct dt_want_picture {
    const dt_plan_item *item;       /* borrowed from the plan */
    dt_batch_item at;
    int     w, h;                   /* px, of the batch */
    char   *req;                    /* dt_cache_request(); owned by whoever made the list */
} dt_want_picture;

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
    const dt_want_picture *want;    /* borrowed */
    const int64_t *order;           /* [n] indices into want; borrowed */
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
void dt_picture_get(dt_got_picture *got, const dt_want_picture *want, bool hash_only);

#endif
