/* window.c - see window.h. */
#include "base/window.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/spool.h"

enum { FIRST_BYTES = 1 << 18 };

static int too_large(const dt_window *w, dt_err *err)
{
    return dt_err_set(err, DT_EDATA, "'%s' is larger than %zu bytes", w->path, w->max_bytes);
}

/* Room for one byte and the NUL. */
static int make_room(dt_window *w, dt_err *err)
{
    if (w->n + 2 <= w->cap)
        return 0;
    int64_t cap = w->cap ? 2 * w->cap : FIRST_BYTES;
    char *grown = realloc(w->text, (size_t)cap);
    if (!grown)
        return dt_err_set(err, DT_ENOMEM, "'%s' does not fit in memory", w->path);
    w->text = grown;
    w->cap = cap;
    return 0;
}

/* As much as there is room for, from where a pipe is. */
static int fill(dt_window *w, dt_err *err)
{
    while (w->n + 1 < w->cap) {
        ssize_t got = read(w->fd, w->text + w->n, (size_t)(w->cap - 1 - w->n));
        if (got < 0 && errno != EINTR)
            return dt_err_sys(err, DT_EDATA, "cannot read '%s'", w->path);
        if (got == 0) {
            w->end = true;
            break;
        }
        w->n += got > 0 ? got : 0;
    }
    w->text[w->n] = '\0';
    return 0;
}

/* The rest of a pipe, behind what is there of it. */
static int copy_pipe(dt_window *w, dt_err *err)
{
    int rc = 0, copy = dt_unnamed_file(NULL, err);
    if (copy < 0)
        return copy;
    for (; rc == 0 && w->n; w->n = 0, rc = rc < 0 ? rc : fill(w, err)) {
        rc = dt_unnamed_put(copy, w->next, w->text, (size_t)w->n, err);
        w->next += w->n;
        if (rc == 0 && (size_t)w->next > w->max_bytes)
            rc = too_large(w, err);
    }
    if (w->mine)
        close(w->fd);
    w->fd = copy;
    w->mine = true;
    w->end = false;
    w->next = 0;
    return rc < 0 ? rc : dt_window_more(w, err);
}

int dt_window_open(dt_window *w, const char *path, size_t max_bytes, dt_err *err)
{
    struct stat st;
    bool in = !strcmp(path, "-");
    *w = (dt_window){ .path = in ? "<stdin>" : path, .max_bytes = max_bytes, .mine = !in };
    w->fd = in ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (w->fd < 0)
        return dt_err_open(err, path);
    int rc = make_room(w, err);
    if (rc < 0)
        return rc;
    off_t at = lseek(w->fd, 0, SEEK_CUR);
    if (at >= 0 && fstat(w->fd, &st) == 0 && S_ISREG(st.st_mode)) {
        w->first = w->next = at;
        return st.st_size > at && (size_t)(st.st_size - at) > max_bytes ? too_large(w, err) : dt_window_more(w, err);
    }
    if ((rc = fill(w, err)) < 0)
        return rc;
    if ((size_t)w->n > max_bytes)
        return too_large(w, err);
    w->whole = w->end;
    w->next = w->end ? w->n : 0;
    return w->end ? 0 : copy_pipe(w, err);
}

int dt_window_more(dt_window *w, dt_err *err)
{
    if (w->end)
        return 0;
    if (w->at)
        memmove(w->text, w->text + w->at, (size_t)(w->n - w->at));
    w->n -= w->at;
    w->at = 0;
    int rc = make_room(w, err);
    if (rc < 0)
        return rc;
    ssize_t got;
    while ((got = pread(w->fd, w->text + w->n, (size_t)(w->cap - 1 - w->n), w->next)) < 0 && errno == EINTR)
        ;
    if (got < 0)
        return dt_err_sys(err, DT_EDATA, "cannot read '%s'", w->path);
    w->end = got == 0;
    w->n += got;
    w->next += got;
    w->text[w->n] = '\0';
    return (size_t)(w->next - w->first) > w->max_bytes ? too_large(w, err) : 0;
}

int dt_window_line(dt_window *w, char **line, size_t *bytes, dt_err *err)
{
    char *nl;
    for (int64_t seen = 0; ; ) {
        nl = memchr(w->text + w->at + seen, '\n', (size_t)(w->n - w->at - seen));
        if (nl || w->end)
            break;
        seen = w->n - w->at;
        int rc = dt_window_more(w, err);
        if (rc < 0)
            return rc;
    }
    *line = w->text + w->at;
    *bytes = (size_t)((nl ? nl : w->text + w->n) - *line);
    w->at += (int64_t)*bytes + (nl != NULL);
    return nl || *bytes;
}

int dt_window_all(const dt_window *w, char **text, size_t *bytes, dt_err *err)
{
    if (w->whole) {
        *bytes = (size_t)w->n;
        *text = malloc(*bytes + 1);
        if (*text)
            memcpy(*text, w->text, *bytes + 1);
        return *text ? 0 : dt_err_set(err, DT_ENOMEM, "'%s' does not fit in memory", w->path);
    }
    if (lseek(w->fd, w->first, SEEK_SET) < 0)
        return dt_err_sys(err, DT_EDATA, "cannot read '%s'", w->path);
    return dt_fd_read(text, bytes, w->fd, SIZE_MAX - 2, w->path, err);
}

void dt_window_close(dt_window *w)
{
    if (w->mine && w->fd >= 0)
        close(w->fd);
    free(w->text);
    *w = (dt_window){ .fd = -1 };
}
