/* plan.h - private: what plan.c lays out and exec.c runs. */
#ifndef DT_GRAPH_PLAN_H
#define DT_GRAPH_PLAN_H
#include "graph/internal.h"
#include "kernels/oplist.h"

/* A stretch of the arena that is in use from node `first` to node `last` of the run (inclusive). */
typedef struct dt_slot {
    int64_t bytes, first, last;
    int64_t offset;                 /* -1 until placed */
} dt_slot;

typedef struct dt_item {            /* one launch */
    const dt_node   *node;
    const dt_kernel *kernel;
    void   *state;
    int64_t ws_slot;                /* index of a slot, -1 = none */
    int64_t ws_bytes;
    void   *in[DT_MAX_IN], *out[DT_MAX_OUT], *ws;   /* set by dt_plan_bind */
    bool    from_file;              /* likewise: reads a parameter where it lies in its file */
} dt_item;

struct dt_plan {
    dt_graph  *g;
    dt_device *dev;
    dt_item   *item;
    int64_t    nitem;
    dt_slot   *slot;
    int64_t    nslot, cap_slot;
    int64_t   *slot_of;             /* tensor id -> slot, -1 = none */
    char      *arena;
    void      *captured;            /* device graph of the launches, NULL until the second run */
    int64_t    runs;
    bool       looks;               /* a launch looks at results on the host: the list cannot be captured */
    dt_plan_stats stats;
};

/* exec.c: where a tensor lies (NULL: nowhere), one launch, the constants that launches read */
void *dt_plan_pointer(const dt_plan *p, const dt_tensor *t);
void  dt_plan_launch(const dt_plan *p, const dt_item *it);
void  dt_plan_consts(dt_plan *p);

/* Puts a node behind the last that has to do with a parameter (dt_param.update) that updates it; see update.c. */
void dt_place_updates(dt_graph *g);
extern const dt_op dt_op_update;

/* Lets live nodes do the work of their only readers, where their kernels can. */
void dt_fuse(dt_graph *g);

/* A kernel that takes single rows of such a parameter from the file itself (dt_param_row). */
static inline bool dt_reads_rows(const dt_node *n, int k) { return n->op == &dt_op_embedding && k == 0; }

/* Puts a node in front of every live reader of a fetched parameter that makes it an activation of that reader alone. */
void dt_materialise(dt_graph *g);

/* The smallest arena found for the slots; sets every offset (multiples of `align`). */
int64_t dt_layout(dt_slot *slot, int64_t n, int64_t align);

#endif
