/* cache_tar.h - walks a mapped ustar file.  POSIX.1-1988 headers of 512 bytes, regular files only: what
 * cache shards are. */
#ifndef DT_DATA_CACHE_TAR_H
#define DT_DATA_CACHE_TAR_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_tar_member {
    char   name[101];
    size_t off, bytes;      /* of its data in the file */
} dt_tar_member;

/* 1 and the member whose header is at *pos, which moves on; 0 at the end mark.  DT_EDATA: not a tar
 * file, or cut off. */
int dt_tar_next(const uint8_t *data, size_t bytes, size_t *pos, dt_tar_member *m, const char *what, dt_err *err);

#endif
