/* plan_int.h - what the plan_*.c files share: the pictures, and the batches of one epoch at a time. */
#ifndef DT_DATA_PLAN_INT_H
#define DT_DATA_PLAN_INT_H
#include "data/dataset.h"
#include "data/meta.h"
#include "data/plan.h"

/* Settings as numbers. */
struct dt_rules {
    const struct dt_data_settings *s;
    dt_size fix;                /* w = 0: none */
    int64_t shard, shards;
    int     group[DT_N_ASPECT]; /* aspects that have the same sizes share one queue */
    dt_datasets *sets;          /* --dataset_config, or NULL */
    struct dt_queue_of { int set; dt_size size; } *queue;   /* with sets: what the pictures of a queue have in common */
    int64_t n_queue, cap;
};
int  dt_rules_init(struct dt_rules *r, const struct dt_data_settings *s, dt_err *err);
void dt_rules_release(struct dt_rules *r);
/* The queue of every picture.  Those that the dataset_config rules out are taken away. */
int  dt_rules_assign(struct dt_rules *r, dt_meta *m, struct dt_plan_report *report, dt_err *err);
/* The subset that a picture is from, or NULL. */
static inline const dt_subset *dt_rules_subset(const struct dt_rules *r, const dt_meta *m, int64_t k)
{
    return r->sets ? &r->sets->sub[m->from[m->v[k].from].sub] : NULL;
}

/* The metadata files, for the header: [{"path", "bytes", "xxh3_128"}].  Caller deletes. */
cJSON *dt_plan_sources(const struct dt_rules *r);

/* Reads metadata and headers: m->v keeps the good pictures with their true sizes. */
int dt_pictures_read(dt_meta *m, const struct dt_rules *r, struct dt_plan_report *report, dt_err *err);
/* Takes away those whose queue is < 0. */
void dt_pictures_keep(dt_meta *m);
static inline dt_size dt_picture_size(const dt_meta_key *k) { return (dt_size){ k->w1 + 1, k->h1 + 1 }; }

struct dt_seat {
    int64_t item;                               /* index into m->v */
    int64_t epoch;                              /* whose draws it carries */
    int     repeat;                             /* of its item in that epoch, from 0 */
};
/* Streams of DT_RNG_SHUFFLE by `item`: the pictures of an epoch, its batches; of the run: --max_train_samples. */
enum { DT_SHUFFLE_ITEMS, DT_SHUFFLE_BATCHES, DT_SHUFFLE_CHOICE };

/* `when` of a seat's draws: repeats of one epoch differ. */
static inline uint32_t dt_seat_when(struct dt_seat s)
{
    return (uint32_t)s.epoch + ((uint32_t)s.repeat << 20);
}

struct dt_made {                                /* one batch */
    dt_size size;
    int64_t at;                                 /* its seats: [at, at + n) */
    int     n;
    bool    is_short;
};

/* A place is one repeat of one picture; they are numbered by picture.  A seat of the epoch made last is 4 bytes: the
 * number of a place, or DT_KEPT and an index into `kept`. */
#define DT_KEPT (1u << 31)
#define DT_MAX_PLACES INT32_MAX

struct dt_gen {
    const struct dt_rules *rules;
    const dt_meta *m;
    int64_t epoch;                              /* the next one */
    struct dt_waiting { uint32_t *v; int64_t n, cap; } *queue;
    int64_t n_queue;
    struct dt_stretch { int64_t item, place, repeats; } *stretch;   /* neighbours that are drawn equally often */
    int64_t n_stretch, stretch_cap, places;
    struct dt_seat *kept;                       /* those that waited when the epoch began */
    int64_t n_kept;
    uint32_t *seat, *order;                     /* order: of the batches but the short ones at the end, shuffled */
    uint32_t *at;                               /* [n]: where the seats of a batch begin, as they were made */
    int64_t seats, n, n_full, at_cap;           /* n: batches */
};

/* DT_EDATA: more than DT_MAX_PLACES places. */
int  dt_gen_init(struct dt_gen *g, const struct dt_rules *r, const dt_meta *m, dt_err *err);
/* Makes the batches of the next epoch.  last: those that are left waiting form short batches at the end. */
void dt_gen_epoch(struct dt_gen *g, bool last);
/* Of the epoch made last. */
struct dt_made dt_gen_batch(const struct dt_gen *g, int64_t k);
struct dt_seat dt_gen_seat(const struct dt_gen *g, int64_t at);
void dt_gen_release(struct dt_gen *g);

#endif
