/* window.h - a text file from its beginning to its end, with no more of it in memory than is looked at.  What cannot be
 * read twice, a FIFO or a terminal, is copied to a temporary file unless it is short. */
#ifndef DT_BASE_WINDOW_H
#define DT_BASE_WINDOW_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_window {
    char   *text;               /* [at, n) is there and not done with; then a NUL */
    int64_t at, n;
    bool    end;                /* nothing comes behind it */
    int64_t cap, next;          /* next: where in the file that comes */
    int64_t first;              /* where in the file the text begins: standard input may be open in the middle of one */
    size_t  max_bytes;
    int     fd;
    bool    mine, whole;        /* fd is to be closed; all there is has been in `text` from the first */
    const char *path;           /* borrowed */
} dt_window;

/* "-" is standard input.  More than max_bytes: DT_EDATA.  Close it also after a failure. */
int  dt_window_open(dt_window *w, const char *path, size_t max_bytes, dt_err *err);
/* Lets go of what is before `at`, which becomes 0, and reads on: n grows, or `end` is set. */
int  dt_window_more(dt_window *w, dt_err *err);
/* 1 and the next line, without its end, up to which all is done with then; 0: there is none. */
int  dt_window_line(dt_window *w, char **line, size_t *bytes, dt_err *err);
/* All of the file from its beginning on; caller frees. */
int  dt_window_all(const dt_window *w, char **text, size_t *bytes, dt_err *err);
void dt_window_close(dt_window *w);

#endif
