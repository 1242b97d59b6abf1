/* hash.h - XXH3-128 as 32 lower-case hex digits: content addresses of the cache, hashes in manifests. */
#ifndef DT_BASE_HASH_H
#define DT_BASE_HASH_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_hash { char hex[33]; } dt_hash;
typedef struct dt_hasher dt_hasher;                 /* opaque; one thread at a time */

dt_hasher *dt_hasher_new(void);
void       dt_hasher_add(dt_hasher *h, const void *data, size_t bytes);
void       dt_hasher_str(dt_hasher *h, const char *s);     /* length-prefixed: "ab","c" != "a","bc" */
dt_hash    dt_hasher_end(dt_hasher **h);                   /* frees */

dt_hash dt_hash_bytes(const void *data, size_t bytes);
int     dt_hash_file(dt_hash *out, const char *path, dt_err *err);
/* Of size, times, inode and device: while it is the same the contents are, without reading them.  Of a file that
 * has changed just now it waits until another change would show other times.  Empty string: there is no such file, or
 * it is from the future. */
dt_hash dt_hash_stat(const char *path);

#endif
