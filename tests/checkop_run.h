/* checkop_run.h - checkop's own executor: one node at a time, each buffer between guards, so that a kernel is seen
 * alone, without the plan's reuse of memory. */
#ifndef DT_TESTS_CHECKOP_RUN_H
#define DT_TESTS_CHECKOP_RUN_H
#include "base/rng.h"
#include "graph/internal.h"
#include "tests/checkop.h"

enum check_fill { FILL_RANDOM, FILL_EQUAL, FILL_TINY, FILL_HUGE, FILL_ONE_HOT, NFILL };

/* A case's leaves by name: inputs "in0".., parameters, the seed of the gradient.  Values are
 * multiples of bf16's step. */
struct check_data {
    struct check_leaf { char *name; float *v; int64_t n; } *leaf;
    int64_t n, cap;
};

struct check_graph {
    const check_case *c;
    dt_graph  *g;
    dt_params *set;
    dt_tensor *in[DT_MAX_IN];
    int        nin;
    dt_tensor *y, *seed, *loss;     /* loss = sum y seed; NULL for CHECK_NO_GRAD */
    void     **host;                /* values by tensor id, of the tensors that own bytes; NULL until set */
};

void check_data_init(struct check_data *d, const check_case *c, enum check_fill fill, uint64_t seed);
void check_data_release(struct check_data *d);
struct check_leaf *check_leaf_of(const struct check_data *d, const char *name);

/* The graph of a case with its gradient.  Returns NULL or what is wrong. */
const char *check_graph_init(struct check_graph *x, const check_case *c, dt_dtype t);
void check_graph_release(struct check_graph *x);
void check_graph_load(struct check_graph *x, const struct check_data *d);   /* leaves from d, parameter gradients 0 */
void *check_host(const struct check_graph *x, const dt_tensor *t);

/* How to run a node. */
struct check_how {
    int      inplace;               /* out[0] lies in in[inplace]; -1 = apart */
    bool     acc;                   /* out[0] begins with what is in out_host[0] */
    unsigned drop;                  /* outputs given as NULL */
    int      times;                 /* > 0: measure; the best of this many runs is put in seconds */
    double   seconds;
};
/* Reads in_host, writes out_host.  Returns NULL or what is wrong: no kernel is "not ported". */
const char *check_node(const dt_node *n, dt_device *dev, void *const *in_host,
                       void *const *out_host, struct check_how *how);
extern const char check_not_ported[];

/* All nodes in order, or the forward ones only. */
const char *check_run(struct check_graph *x, dt_device *dev, bool backward);
/* in_host and out_host of a node of x. */
void check_pointers(const struct check_graph *x, const dt_node *n, void **in, void **out);
bool check_skips(const dt_node *n);     /* views and checkop's own ops */

float *check_floats(const dt_tensor *t, const void *host);  /* as fp32; caller frees */

/* --- checkop_nan.c --- */
/* NULL: passed on, else what was lost */
const char *check_nan(const check_case *c, dt_device *cpu, dt_dtype type, uint64_t seed);

/* --- checkop_ops.c --- */
enum { CHECK_MAX_OPS = 256 };
struct check_ops {
    bool seen[CHECK_MAX_OPS];       /* of dt_ops, in the graph of a case */
    const dt_op *unlisted;          /* one that is in a graph and not in dt_ops */
    char says[100];
};
void check_ops_note(struct check_ops *s, const check_case *c);
const char *check_ops_missing(struct check_ops *s);     /* after all cases: NULL, or what is missing */

/* --- checkop_bench.c --- */
struct check_peak { double flops, bytes; };         /* per second */

/* Prints and keeps the rates of a large product and of a large sum. */
void check_peaks(dt_device *dev, struct check_peak *peak);
/* Prints time and rates of each node of a case. */
void check_bench(dt_device *dev, const check_case *c, dt_dtype t, uint64_t seed,
                 const struct check_peak *peak);

#endif
