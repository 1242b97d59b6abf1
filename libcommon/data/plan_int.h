/* plan_int.h - what the plan_*.c files share: the pictures, and the batches of one epoch at a time. */
#ifndef DT_DATA_PLAN_INT_H
#define DT_DATA_PLAN_INT_H
#include "data/meta.h"
#include "data/plan.h"

/* Settings as numbers. */
struct dt_rules {
    const struct dt_data_settings *s;
    dt_size fix;                /* w = 0: none */
    int64_t shard, shards;
    int     group[DT_N_ASPECT]; /* aspects that have the same sizes share one queue */
};
int dt_rules_init(struct dt_rules *r, const struct dt_data_settings *s, dt_err *err);

/* Reads metadata and headers: m->v keeps the good pictures with their true sizes. */
int dt_pictures_read(dt_meta *m, const struct dt_data_settings *s, struct dt_plan_report *report, dt_err *err);

struct dt_seat { int64_t item, epoch; };        /* index into m->v; the epoch whose draws it carries */

struct dt_made {                                /* one batch */
    dt_size size;
    int64_t at;                                 /* its seats: gen->seat[at .. at + n) */
    int     n;
};

struct dt_gen {
    const struct dt_rules *rules;
    const dt_meta *m;
    int64_t epoch;                              /* the next one */
    struct { struct dt_seat *v; int64_t n, cap; } queue[DT_N_ASPECT];
    struct dt_seat *seat;                       /* of the epoch made last */
    struct dt_made *made;
    int64_t seats, seat_cap, n, made_cap;
};

/* Makes the batches of the next epoch.  last: those that are left waiting form short batches at the end. */
void dt_gen_epoch(struct dt_gen *g, bool last);
void dt_gen_release(struct dt_gen *g);

#endif
