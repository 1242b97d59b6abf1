/* file.h - files that appear whole or not at all, and bounded reading.
 * A missing or unreadable input is DT_EDATA, a failed write DT_EIO. */
#ifndef DT_BASE_FILE_H
#define DT_BASE_FILE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "base/err.h"

/* --- writing --- */
typedef struct dt_out dt_out;
/* Opens a temporary file beside `path` (".NAME.tmp", locked while it is written).  "-" writes to stdout. */
int   dt_out_open(dt_out **out, const char *path, dt_err *err);
FILE *dt_out_file(dt_out *o);                       /* borrowed until commit or abort */
/* Flush, fsync, rename over path, fsync the folder.  Frees *o and sets it NULL also on failure. */
int   dt_out_commit(dt_out **o, dt_err *err);
void  dt_out_abort(dt_out **o);                     /* removes the temporary file; NULL is fine */
int   dt_file_write(const char *path, const void *data, size_t bytes, dt_err *err);  /* open+commit */
int   dt_file_copy(const char *from, const char *to, dt_err *err);      /* of any size, atomic; shares blocks
                                                                           where that works */
int   dt_fsync_dir(const char *dir, dt_err *err);

/* --- reading --- */
/* Whole file as a NUL-terminated buffer (caller frees).  Larger than max_bytes: DT_EDATA.  "-" is stdin.
 * FIFOs and files that grow or shrink meanwhile are read to their end, never past max_bytes. */
int   dt_file_read(char **data, size_t *bytes, const char *path, size_t max_bytes, dt_err *err);
/* The same of what is left of a descriptor; `path` stands in messages. */
int   dt_fd_read(char **data, size_t *bytes, int fd, size_t max_bytes, const char *path, dt_err *err);
int   dt_file_read_regular(char **data, size_t *bytes, const char *path, size_t max_bytes, dt_err *err);
/* dt_file_read of a file that a folder has to have: a FIFO in its place is DT_EDATA and holds nobody up. */
int   dt_file_read_member(char **data, size_t *bytes, const char *path, size_t max_bytes, dt_err *err);
/* Descriptor of a regular file and its size, or a DT_E code: a FIFO or a device is DT_EDATA and holds nobody up. */
int   dt_open_regular(int64_t *bytes, const char *path, dt_err *err);

/* Bytes [off, off + n) of a regular file; fewer there: DT_EDATA. */
int   dt_file_read_part(char **data, const char *path, int64_t off, int64_t n, dt_err *err);

typedef struct dt_map {             /* read-only, private mapping of a regular file */
    const uint8_t *data;
    size_t         bytes;
} dt_map;
int   dt_map_open(dt_map *m, const char *path, dt_err *err);
int   dt_map_fd(dt_map *m, int fd, const char *path, dt_err *err);  /* of an open file; `path` stands in messages */
/* As it was when it was mapped: what has not been read by then may still be another file's bytes. */
typedef struct dt_watch {
    int     fd;
    int64_t bytes, s, ns;           /* size, time of the last change */
} dt_watch;
int   dt_map_open_watched(dt_map *m, dt_watch *w, const char *path, dt_err *err);
/* DT_EDATA if it was written to since, or cut.  One that another was renamed over is as it was. */
int   dt_watch_check(const dt_watch *w, const char *path, dt_err *err);
void  dt_watch_close(dt_watch *w);
void  dt_map_close(dt_map *m);
/* The bytes at p take no memory of this process until they are read again, from the system's cache if it has them. */
void  dt_map_forget(const dt_map *m, const void *p, size_t bytes);

/* --- paths --- */
bool  dt_exists(const char *path);
bool  dt_is_dir(const char *path);
char *dt_path_join(const char *dir, const char *name);  /* name if absolute or dir empty; caller frees */
const char *dt_path_base(const char *path);             /* borrowed: part after the last '/' */
char *dt_path_dir(const char *path);                    /* part before the last '/', or "."; caller frees */
/* Is the folder there that the file `path` is to be written in?  DT_EIO: no. */
int   dt_path_check_dir(const char *path, dt_err *err);
const char *dt_path_ext(const char *path);              /* borrowed: ".png", or "" */
/* DT_EDATA "cannot open 'PATH': ..." by errno; where a part of it is not there, with the nearest name that is. */
int   dt_err_open(dt_err *err, const char *path);
int   dt_mkdirs(const char *dir, dt_err *err);          /* as mkdir -p */
int   dt_rmtree(const char *dir, dt_err *err);          /* a folder made by us, or none; follows no links */

#endif
