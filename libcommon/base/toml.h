/* toml.h - TOML files as cJSON, read by toml++: no C++ type and no exception gets out. */
#ifndef DT_BASE_TOML_H
#define DT_BASE_TOML_H
#include <stddef.h>
#include <cjson/cJSON.h>
#include "base/err.h"

/* Parses a file of at most max_bytes.  DT_EDATA: "FILE: line L, column C: ...".  Tables become objects; dates become
 * strings; numbers that are not finite become strings too. */
int dt_toml_read(cJSON **out, const char *path, size_t max_bytes, dt_err *err);

#endif
