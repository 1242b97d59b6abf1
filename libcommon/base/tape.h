/* tape.h - records of any length under ascending keys: written one after another, then read from the first to the
 * last, or any one alone.  The first few hundred KB stay in memory; what is more goes to a temporary file without a
 * name, and of every 64 records 16 bytes stay. */
#ifndef DT_BASE_TAPE_H
#define DT_BASE_TAPE_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_tape dt_tape;

dt_tape *dt_tape_new(void);
void dt_tape_free(dt_tape **t);
/* `key` is larger than that of the record before. */
int  dt_tape_add(dt_tape *t, int64_t key, const void *rec, size_t bytes, dt_err *err);

/* One for each thread that reads; all zeros at first.  Nothing may be added meanwhile. */
typedef struct dt_tape_reader {
    const char *block;          /* up to 64 records */
    char   *own;                /* the block, unless it is in the tape's memory */
    int64_t cap, bytes;
    int64_t number, at;         /* 1 + which block; where the record that comes next begins in it */
} dt_tape_reader;
/* The record under `key`, borrowed until the next call; DT_EFAIL: there is none. */
int  dt_tape_get(const dt_tape *t, dt_tape_reader *r, int64_t key, const void **rec, size_t *bytes, dt_err *err);
void dt_tape_reader_release(dt_tape_reader *r);

#endif
