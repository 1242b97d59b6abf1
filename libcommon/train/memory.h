/* memory.h - the memory plan: every byte that a program will need, before it needs the first; and what it did need.
 *
 * A program goes through moments (captions are encoded, then it trains): what one needs is gone before the next
 * begins, or counted in both.  The peak is that of the largest moment. */
#ifndef DT_TRAIN_MEMORY_H
#define DT_TRAIN_MEMORY_H
#include <stdio.h>
#include "graph/device.h"
#include "tensor/params.h"

enum dt_mem_kind {
    DT_MEM_PROCESS,  /* resident when everything is planned and nothing allocated: program, libraries, primitives */
    DT_MEM_WEIGHTS,                 /* working copies, frozen and trained */
    DT_MEM_GRADS, DT_MEM_MASTER, DT_MEM_MOMENTS, DT_MEM_EMA,    /* of what trains */
    DT_MEM_ACTIVATIONS,             /* the arena: inputs, activations, workspaces of the largest shape */
    DT_MEM_BATCHES,                 /* host copies of batches: read ahead, and staged for the device */
    DT_MEM_DUMP,                    /* --dump_steps: tensors of a step until they are written */
    DT_MEM_PICTURES,                /* text states and pictures of samples, sheets and charts while they are drawn */
    DT_MEM_NKIND
};

typedef struct dt_mem_moment {
    const char *name;               /* borrowed */
    int64_t     kind[DT_MEM_NKIND]; /* bytes */
} dt_mem_moment;

enum { DT_MEM_MOST = 4 };
typedef struct dt_mem_plan {
    dt_mem_moment at[DT_MEM_MOST];
    int n;
} dt_mem_plan;

/* A new moment in which the process takes `process` bytes. */
dt_mem_moment *dt_mem_add(dt_mem_plan *p, const char *name, int64_t process);
/* If the program has taken more until now than any moment will, that is a moment too: "start". */
void    dt_mem_add_start(dt_mem_plan *p);
void    dt_mem_add_params(dt_mem_moment *m, dt_params_bytes b);
const dt_mem_moment *dt_mem_largest(const dt_mem_plan *p);
int64_t dt_mem_total(const dt_mem_moment *m);

/* A column for each moment, a row for each kind that any of them needs, and a last row "total". */
void    dt_mem_table(FILE *f, const dt_mem_plan *p);
/* "memory plan: 1.0 MiB peak (…)"; caller frees. */
char   *dt_mem_line(const dt_mem_plan *p);
/* A budget must leave a reserve for what no plan knows: code is read in when it runs first, stacks and the
 * heap grow by pages. 0: there is none, and everything fits. */
enum { DT_MEM_RESERVE = 2 << 20 };
/* The smallest budget that is named must do the next time, when the process may be larger than now: how much of
 * program and libraries is mapped depends on the page cache, where pages of 2 MiB come and go. */
enum { DT_MEM_VARIES = 4 << 20 };
/* What is said where weights are given back (tensor/params.h) to keep it. */
#define DT_MEM_GIVEN_BACK "weights are read from their file anew each time they are used, so that the budget is kept"
bool    dt_mem_fits(const dt_mem_plan *p, int64_t budget);
/* DT_ENOMEM: it does not fit (the message has the smallest budget that would do), or the device has less. */
int     dt_mem_accept(const dt_mem_plan *p, int64_t budget, const dt_device *dev, dt_err *err);

/* Bytes of this process in memory, now and at most until now; 0 if the system does not say. */
int64_t dt_mem_resident(void);
int64_t dt_mem_peak(void);
/* "peak memory 1.0 MiB, planned 1.0 MiB"; caller frees; NULL if the system does not say. */
char   *dt_mem_report(const dt_mem_plan *p);

#endif
