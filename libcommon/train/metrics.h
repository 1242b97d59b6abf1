/* metrics.h - metrics.ndjson: one object per optimiser step, the same bytes for the same run.
 *
 *   {"step":120,"loss":0.183402,"lr":0.0001,"grad_norm":0.0412}
 *
 * Nothing in it depends on the clock or the machine (that is what --progress is for), numbers are printed in
 * one way, and a run resumed from a checkpoint first cuts the file to the length it had then: stopped and resumed
 * ends with the file of an uninterrupted run.  A line is written in one piece: a reader that follows the file sees
 * whole lines only. */
#ifndef DT_TRAIN_METRICS_H
#define DT_TRAIN_METRICS_H
#include <stdint.h>
#include "base/err.h"

typedef struct dt_metrics dt_metrics;       /* opaque; one thread at a time */

/* offset: 0 starts afresh, otherwise dt_metrics_offset() as the checkpoint recorded it.  A file that is shorter,
 * or does not end a line there, is DT_EDATA. */
int  dt_metrics_open(dt_metrics **out, const char *path, int64_t offset, dt_err *err);

/* Fields of the line in progress, in order of the calls; names are words that need no escape.  NaN and infinity are
 * written as null: JSON has neither. */
void dt_metrics_num(dt_metrics *m, const char *name, double value);     /* nine significant digits */
void dt_metrics_int(dt_metrics *m, const char *name, int64_t value);
/* Appends the line to the file; a line that does not fit on the disk leaves no part of itself behind. */
int  dt_metrics_end(dt_metrics *m, dt_err *err);

int64_t dt_metrics_offset(const dt_metrics *m);     /* bytes of whole lines: goes into the checkpoint */
/* On disk for certain; before a checkpoint that records the offset becomes visible. */
int  dt_metrics_sync(dt_metrics *m, dt_err *err);
/* Frees *m and sets it NULL also on failure; NULL is fine.  A line in progress is dropped. */
int  dt_metrics_close(dt_metrics **m, dt_err *err);

/* Bytes of the whole lines before the first of `step` or a later one, for dt_metrics_open; 0 if there is no file. */
int  dt_metrics_find(int64_t *offset, const char *path, int64_t step, dt_err *err);

/* The values of one field against "step", for charts; lines without the field are passed over, null becomes NaN.
 * Caller frees *step and *value. */
int  dt_metrics_read(double **step, double **value, int64_t *n, const char *path, const char *name, dt_err *err);

#endif
