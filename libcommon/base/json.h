/* json.h - cJSON with limits and error lines that name file and field. */
#ifndef DT_BASE_JSON_H
#define DT_BASE_JSON_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cjson/cJSON.h>
#include "base/err.h"

/* UTF-8 (Unicode table 3-7), and no NUL in it? */
bool dt_is_utf8(const void *s, size_t bytes);

/* Parses a file of at most max_bytes.  DT_EDATA: "FILE: not valid JSON at line L, column C", or not UTF-8. */
int dt_json_read(cJSON **out, const char *path, size_t max_bytes, dt_err *err);
/* The same for text in memory: `bytes` of it, then a NUL.  `what` names it in messages. */
int dt_json_parse(cJSON **out, const char *text, size_t bytes, const char *what, dt_err *err);

/* Typed members of an object; `what` names the file in messages ("FILE: 'num_layers' must be an integer
 * from 1 to 1000").  The _or forms return 0 and the default when the member is absent or null. */
int dt_json_int(int64_t *out, const cJSON *o, const char *key, int64_t min, int64_t max, const char *what, dt_err *err);
int dt_json_int_or(int64_t *out, const cJSON *o, const char *key, int64_t def, int64_t min, int64_t max,
                   const char *what, dt_err *err);
int dt_json_num_or(double *out, const cJSON *o, const char *key, double def, const char *what, dt_err *err);
int dt_json_bool_or(bool *out, const cJSON *o, const char *key, bool def, const char *what, dt_err *err);
/* Borrowed from o; NULL when absent (_or) */
int dt_json_str_or(const char **out, const cJSON *o, const char *key, const char *def, const char *what, dt_err *err);
/* Array of 1..max integers; *n gets the length, 0 when absent. */
int dt_json_ints_or(int64_t *out, int *n, int max, const cJSON *o, const char *key, const char *what, dt_err *err);

/* Writes o as one file, atomically; pretty when `pretty`. */
int dt_json_write(const char *path, const cJSON *o, bool pretty, dt_err *err);
/* One line, no trailing newline; caller frees.  Numbers print with the digits they need. */
char *dt_json_line(const cJSON *o);

#endif
