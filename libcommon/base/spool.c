/* spool.c - records in a temporary file.  See spool.h. */
#include "base/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

struct dt_spool {
    int    fd;
    size_t size;
};

int dt_unnamed_file(const char *dir, dt_err *err)
{
    int fd = dir ? open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
    if (fd >= 0)
        return fd;
    FILE *f = tmpfile();                    /* the folder's file system has no such files */
    if (!f)
        return dt_err_sys(err, DT_EIO, "cannot make a temporary file");
    fd = fcntl(fileno(f), F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        fd = dt_err_sys(err, DT_EIO, "cannot make a temporary file");
    fclose(f);
    return fd;
}

int dt_spool_open(dt_spool **s, const char *dir, size_t size, dt_err *err)
{
    int fd = dt_unnamed_file(dir, err);
    *s = NULL;
    if (fd < 0)
        return fd;
    *s = dt_alloc(sizeof(**s));
    **s = (dt_spool){ fd, size };
    return 0;
}

void dt_spool_close(dt_spool **s)
{
    if (!*s)
        return;
    close((*s)->fd);
    free(*s);
    *s = NULL;
}

int dt_unnamed_put(int fd, int64_t at, const void *data, size_t bytes, dt_err *err)
{
    for (size_t n = 0; n < bytes;) {
        ssize_t k = pwrite(fd, (const char *)data + n, bytes - n, (off_t)(at + (int64_t)n));
        if (k < 0 && errno != EINTR)
            return dt_err_sys(err, DT_EIO, "cannot write a temporary file");
        n += k > 0 ? (size_t)k : 0;
    }
    return 0;
}

int64_t dt_unnamed_get(int fd, int64_t at, void *data, size_t bytes, dt_err *err)
{
    size_t n = 0;
    for (ssize_t k = 1; n < bytes && k;) {
        k = pread(fd, (char *)data + n, bytes - n, (off_t)(at + (int64_t)n));
        if (k < 0 && errno != EINTR)
            return dt_err_sys(err, DT_EIO, "cannot read a temporary file");
        n += k > 0 ? (size_t)k : 0;
    }
    return (int64_t)n;
}

int dt_spool_set(dt_spool *s, int64_t i, const void *rec, dt_err *err)
{
    return dt_unnamed_put(s->fd, i * (int64_t)s->size, rec, s->size, err);
}

int dt_spool_get(const dt_spool *s, int64_t i, void *rec, dt_err *err)
{
    int64_t n = dt_unnamed_get(s->fd, i * (int64_t)s->size, rec, s->size, err);
    if (n < 0)
        return (int)n;
    memset((char *)rec + n, 0, s->size - (size_t)n);
    return 0;
}
