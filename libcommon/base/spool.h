/* spool.h - an array of records of one size in a temporary file that has no name: for what is needed again,
 * but not at once. */
#ifndef DT_BASE_SPOOL_H
#define DT_BASE_SPOOL_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_spool dt_spool;

/* Of records of `size` bytes, in folder `dir`; NULL: where temporary files are. */
int  dt_spool_open(dt_spool **s, const char *dir, size_t size, dt_err *err);
void dt_spool_close(dt_spool **s);
int  dt_spool_set(dt_spool *s, int64_t i, const void *rec, dt_err *err);
/* A record that was never set is zeros. */
int  dt_spool_get(const dt_spool *s, int64_t i, void *rec, dt_err *err);

/* Descriptor of a temporary file without a name, or a DT_E code. */
int  dt_unnamed_file(const char *dir, dt_err *err);
int  dt_unnamed_put(int fd, int64_t at, const void *data, size_t bytes, dt_err *err);
/* The bytes there were: fewer at its end. */
int64_t dt_unnamed_get(int fd, int64_t at, void *data, size_t bytes, dt_err *err);

#endif
