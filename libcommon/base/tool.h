/* tool.h - for the mains in tools/ only: words on stderr, exit codes, signals.  The library never
 * prints and never exits. */
#ifndef DT_BASE_TOOL_H
#define DT_BASE_TOOL_H
#include <stdbool.h>
#include "base/err.h"

extern const char *dt_argv0;        /* set first thing in main; prefixes every line */
extern bool dt_quiet;               /* --quiet: dt_info says nothing */

/* In all three a format ending in ':' appends strerror(errno). */
void dt_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void dt_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void dt_die(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
/* What the library calls back with, for words and for text on standard output. */
void dt_tool_say(void *ctx, bool warning, const char *line);
void dt_tool_out(void *ctx, const char *text);
/* Prints err and returns its exit status (1 if it has none). */
int  dt_die_err(const dt_err *err);
/* Exit status of main: flushes stdout; a full disk turns 0 into 7. */
int  dt_finish(int status);

/* Memory that is given back goes back to the system: large blocks are mappings of their own however large they
 * were before, and threads share one heap.  What a memory plan counts is then what the system sees. */
void dt_malloc_install(void);

/* Signals.  First SIGINT/SIGTERM: dt_stop becomes the signal's number and the program goes on until it looks;
 * a second one, not at the same moment, kills.  SIGUSR1 sets dt_save.  SIGPIPE ends quietly.  SIGBUS in a
 * mapped file that was cut short ends with exit status 4 and the file's name. */
extern volatile int dt_stop, dt_save;
void dt_signals_install(void);

#endif
