/* model.h - put before every file that is analysed: what the analysers cannot see from a prototype.
 *   - dt_err_set and its kin return the code that they are given, which is never 0
 *   - what mem.h says is never NULL is not (running out of memory for small things ends the process) */
#ifndef DT_LINT_MODEL_H
#define DT_LINT_MODEL_H
#include "base/err.h"
#include "base/mem.h"

#define dt_err_set(err, code, ...) ((void)dt_err_set(err, code, __VA_ARGS__), (code))
#define dt_err_sys(err, code, ...) ((void)dt_err_sys(err, code, __VA_ARGS__), (code))

void *dt_alloc(size_t bytes) __attribute__((returns_nonnull));
void *dt_realloc(void *p, size_t bytes) __attribute__((returns_nonnull));
char *dt_sprintf(const char *fmt, ...) __attribute__((returns_nonnull));

#endif
