/* progress.h - how far a long job is: a bar on a terminal, a line every ten seconds otherwise, and
 * NDJSON for machines (--progress FILE or a file descriptor number), one object per report:
 *     {"job":"train","step":12,"total":100,"unit":"step","elapsed_s":31.2,"rate":0.4,"eta_s":220,"loss":0.31,
 *      "of_peak":0.42}
 * total, rate (units per second) and eta_s are left out where unknown.  One thread at a time. */
#ifndef DT_BASE_PROGRESS_H
#define DT_BASE_PROGRESS_H
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_progress dt_progress;

/* `what` names the job ("encode", "train"), `unit` its items ("img", "step"); total < 0 if unknown.  `ndjson`:
 * path, "3" for a descriptor, or NULL.  quiet: no words on stderr. */
int  dt_progress_open(dt_progress **p, const char *what, const char *unit, int64_t total, const char *ndjson,
                      bool quiet, dt_err *err);
/* A number shown with the next step ("loss", "lr", "tflops"...).  Kept until set again; name is borrowed. */
void dt_progress_num(dt_progress *p, const char *name, double value);
/* The same for a part of a whole: NDJSON has the fraction, words have per cent. */
void dt_progress_share(dt_progress *p, const char *name, double value);
/* Reports position `done` of total.  The first report is the origin of rate and ETA, so that neither a resumed
 * job's earlier items nor the time to set up count: report the position once before starting. */
void dt_progress_step(dt_progress *p, int64_t done);
void dt_progress_close(dt_progress **p);

#endif
