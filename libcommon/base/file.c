/* file.c - files that appear whole or not at all, and bounded reading. */
#include "base/file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/mem.h"

#define NAME_KEEP 200           /* bytes of the name kept in a temporary name, below NAME_MAX = 255 */
#define FIRST_BYTES 65536       /* first buffer for inputs whose size is not known */

/* --- writing --- */
struct dt_out {
    FILE *f;
    char *path;                 /* as the caller named it, for messages */
    char *target;               /* where it ends up: path with its links followed; NULL: written in place */
    char *tmp;
};

static void out_free(dt_out **o)
{
    free((*o)->path);
    free((*o)->target);
    free((*o)->tmp);
    free(*o);
    *o = NULL;
}

/* Opens `name` for us alone: the lock on it says that its writer lives.  What a killed process has
 * left is taken over, so that it does not stay.  -1 if another process is at it, if it is not ours, or if locks
 * are not to be had here. */
static int take(const char *name)
{
    struct stat mine, there;
    int fd = open(name, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (fd < 0)
        return -1;
    /* the same file still, now that it is locked: its writer may have given it its real name in between */
    if (!flock(fd, LOCK_EX | LOCK_NB) && !fstat(fd, &mine) && !stat(name, &there) && mine.st_ino == there.st_ino &&
        mine.st_dev == there.st_dev && S_ISREG(mine.st_mode) && mine.st_uid == geteuid() && mine.st_nlink == 1 &&
        !ftruncate(fd, 0))
        return fd;
    close(fd);
    return -1;
}

/* Creates o->tmp, with the number of this process in its name only if the plain name is taken. */
static int tmp_open(dt_out *o)
{
    char *dir = dt_path_dir(o->target);
    const char *base = dt_path_base(o->target);
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    o->tmp = dt_sprintf("%s/.%.*s.tmp", dir, NAME_KEEP, base);
    int fd = take(o->tmp);
    if (fd < 0) {
        free(o->tmp);
        o->tmp = dt_sprintf("%s/.%.*s.%ld.tmp", dir, NAME_KEEP, base, (long)getpid());
        fd = open(o->tmp, flags, 0666);
        if (fd < 0 && errno == EEXIST && !unlink(o->tmp))
            fd = open(o->tmp, flags, 0666);
    }
    free(dir);
    return fd;
}

int dt_out_open(dt_out **out, const char *path, dt_err *err)
{
    dt_out *o = dt_alloc(sizeof *o);
    struct stat st;
    int fd = -1;
    o->path = dt_strdup(path);
    if (!strcmp(path, "-")) {
        o->f = stdout;
        *out = o;
        return 0;
    }
    bool there = !stat(path, &st);
    if (there && S_ISDIR(st.st_mode)) {
        errno = EISDIR;
    } else if (there && !S_ISREG(st.st_mode)) {     /* a device or FIFO must not be renamed away */
        fd = open(path, O_WRONLY | O_CLOEXEC);
    } else {
        char *real = there ? realpath(path, NULL) : NULL;   /* replace the file, not a link to it */
        o->target = real ? real : dt_strdup(path);
        fd = tmp_open(o);
        if (fd >= 0 && there && fchmod(fd, st.st_mode & 0777) < 0) {
            close(fd);
            unlink(o->tmp);
            fd = -1;
        }
    }
    if (fd < 0) {
        int rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", path);
        out_free(&o);
        return rc;
    }
    o->f = dt_must(fdopen(fd, "w"));
    *out = o;
    return 0;
}

FILE *dt_out_file(dt_out *o)
{
    return o->f;
}

/* Pipes and some file systems cannot sync; that is no failure to write. */
static int sync_fd(int fd)
{
    return fsync(fd) < 0 && errno != EINVAL && errno != EROFS && errno != ENOTSUP ? -1 : 0;
}

/* 0, or -1 with errno: everything handed to the stream is on the disk. */
static int flush(FILE *f)
{
    if (fflush(f) < 0)
        return -1;
    if (ferror(f)) {            /* an earlier write failed; its errno is gone */
        errno = EIO;
        return -1;
    }
    return sync_fd(fileno(f));
}

int dt_out_commit(dt_out **out, dt_err *err)
{
    dt_out *o = *out;
    int rc = 0;
    if (flush(o->f) < 0) {
        rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", o->path);
        dt_out_abort(out);
        return rc;
    }
    if (o->tmp && rename(o->tmp, o->target) < 0) {      /* locked up to here: nobody takes it over */
        rc = dt_err_sys(err, DT_EIO, "cannot rename '%s' to '%s'", o->tmp, o->target);
        unlink(o->tmp);
    } else if (o->tmp) {
        char *dir = dt_path_dir(o->target);
        rc = dt_fsync_dir(dir, err);
        free(dir);
    }
    if (o->f != stdout && fclose(o->f) && rc == 0)
        rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", o->path);
    out_free(out);
    return rc;
}

void dt_out_abort(dt_out **out)
{
    dt_out *o = *out;
    if (!o)
        return;
    if (o->tmp)
        unlink(o->tmp);
    if (o->f != stdout)
        fclose(o->f);
    out_free(out);
}

int dt_file_write(const char *path, const void *data, size_t bytes, dt_err *err)
{
    dt_out *o;
    int rc = dt_out_open(&o, path, err);
    if (rc < 0)
        return rc;
    if (bytes && fwrite(data, 1, bytes, dt_out_file(o)) != bytes) {
        rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", path);
        dt_out_abort(&o);
        return rc;
    }
    return dt_out_commit(&o, err);
}

int dt_fsync_dir(const char *dir, dt_err *err)
{
    int rc = 0, fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return dt_err_sys(err, DT_EIO, "cannot open '%s'", dir);
    if (sync_fd(fd) < 0)
        rc = dt_err_sys(err, DT_EIO, "cannot sync '%s'", dir);
    close(fd);
    return rc;
}

/* --- reading --- */

/* Reads fd to its end into *data (NUL-terminated); `hint` is the size it is thought to have. */
static int read_all(char **data, size_t *bytes, int fd, size_t hint, size_t max_bytes, const char *path, dt_err *err)
{
    char *buf = NULL;
    size_t n = 0, cap = 0;
    for (;;) {
        if (n + 2 > cap) {      /* room for a byte that shows there is more, and the NUL */
            size_t want = cap ? cap * 2 : hint + 2;
            want = want > max_bytes && max_bytes + 2 > max_bytes ? max_bytes + 2 : want;
            char *grown = realloc(buf, want);
            if (!grown) {
                free(buf);
                return dt_err_set(err, DT_ENOMEM, "'%s' does not fit in memory", path);
            }
            buf = grown, cap = want;
        }
        ssize_t got = read(fd, buf + n, cap - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            free(buf);
            return dt_err_sys(err, DT_EDATA, "cannot read '%s'", path);
        }
        if (!got)
            break;
        n += (size_t)got;
        if (n > max_bytes) {
            free(buf);
            return dt_err_set(err, DT_EDATA, "'%s' is larger than %zu bytes", path, max_bytes);
        }
    }
    buf[n] = '\0';
    *data = buf;
    *bytes = n;
    return 0;
}

int dt_fd_read(char **data, size_t *bytes, int fd, size_t max_bytes, const char *path, dt_err *err)
{
    struct stat st;
    size_t hint = FIRST_BYTES;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > 0)
        hint = (size_t)st.st_size;
    return read_all(data, bytes, fd, hint > max_bytes ? max_bytes : hint, max_bytes, path, err);
}

int dt_file_read(char **data, size_t *bytes, const char *path, size_t max_bytes, dt_err *err)
{
    bool in = !strcmp(path, "-");
    int fd = in ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return dt_err_open(err, path);
    int rc = dt_fd_read(data, bytes, fd, max_bytes, in ? "<stdin>" : path, err);
    if (!in)
        close(fd);
    return rc;
}

int dt_file_read_part(char **data, const char *path, int64_t off, int64_t n, dt_err *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = 0;
    char *p = NULL;
    *data = NULL;
    if (fd < 0)
        return dt_err_open(err, path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || off < 0 || n < 0 || off > st.st_size - n)
        rc = dt_err_set(err, DT_EDATA, "'%s' has no %lld bytes at %lld", path, (long long)n, (long long)off);
    else if (!(p = dt_try_alloc((size_t)n + 1)))
        rc = dt_err_set(err, DT_ENOMEM, "no memory for %lld bytes of '%s'", (long long)n, path);
    for (int64_t done = 0; rc == 0 && done < n; ) {
        ssize_t got = pread(fd, p + done, (size_t)(n - done), off + done);
        if (got > 0)
            done += got;
        else if (got == 0)
            rc = dt_err_set(err, DT_EDATA, "'%s' shrank while it was read", path);
        else if (errno != EINTR)
            rc = dt_err_sys(err, DT_EDATA, "cannot read '%s'", path);
    }
    close(fd);
    if (rc < 0) {
        free(p);
        return rc;
    }
    p[n] = '\0';
    *data = p;
    return 0;
}

/* In the kernel where it can, which may share the blocks; by hand where it cannot. */
static int copy_fd(int in, FILE *out, const char *from, const char *to, dt_err *err)
{
    char buf[1 << 16];
    bool some = false;              /* files of /proc end at once for copy_file_range */
    ssize_t n;
    while ((n = copy_file_range(in, NULL, fileno(out), NULL, (size_t)1 << 30, 0)) > 0 || (n < 0 && errno == EINTR))
        some |= n > 0;
    if (n == 0 && some)
        return 0;
    if (n < 0 && (errno == ENOSPC || errno == EIO || errno == EDQUOT))
        return dt_err_sys(err, DT_EIO, "cannot write '%s'", to);
    int rc = 0;
    while (rc == 0 && ((n = read(in, buf, sizeof(buf))) > 0 || (n < 0 && errno == EINTR)))
        if (n > 0 && fwrite(buf, 1, (size_t)n, out) != (size_t)n)
            rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", to);
    if (rc == 0 && n < 0)
        rc = dt_err_sys(err, DT_EDATA, "cannot read '%s'", from);
    return rc;
}

int dt_file_copy(const char *from, const char *to, dt_err *err)
{
    dt_out *o = NULL;
    int in = open(from, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (in < 0)
        return dt_err_open(err, from);
    int rc = dt_out_open(&o, to, err);
    if (rc == 0)
        rc = copy_fd(in, dt_out_file(o), from, to, err);
    if (rc == 0)
        rc = dt_out_commit(&o, err);
    dt_out_abort(&o);
    close(in);
    return rc;
}

int dt_open_regular(int64_t *bytes, const char *path, dt_err *err)
{
    struct stat st;
    int rc, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);     /* a FIFO must not hold us up */
    if (fd < 0)
        return dt_err_sys(err, DT_EDATA, "%s: cannot open", path);
    if (fstat(fd, &st) < 0)
        rc = dt_err_sys(err, DT_EDATA, "%s: cannot stat", path);
    else if (!S_ISREG(st.st_mode))
        rc = dt_err_set(err, DT_EDATA, "%s: not a regular file", path);
    else {
        *bytes = st.st_size;
        return fd;
    }
    close(fd);
    return rc;
}

int dt_file_read_regular(char **data, size_t *bytes, const char *path, size_t max_bytes, dt_err *err)
{
    int64_t size;
    int fd = dt_open_regular(&size, path, err);
    if (fd < 0)
        return fd;
    int rc = dt_fd_read(data, bytes, fd, max_bytes, path, err);
    close(fd);
    return rc;
}

int dt_file_read_member(char **data, size_t *bytes, const char *path, size_t max_bytes, dt_err *err)
{
    return dt_exists(path) ? dt_file_read_regular(data, bytes, path, max_bytes, err)
                           : dt_file_read(data, bytes, path, max_bytes, err);
}

int dt_map_fd(dt_map *m, int fd, const char *path, dt_err *err)
{
    struct stat st;
    *m = (dt_map){ 0 };
    if (fstat(fd, &st) < 0)
        return dt_err_sys(err, DT_EDATA, "cannot stat '%s'", path);
    if (!S_ISREG(st.st_mode))
        return dt_err_set(err, DT_EDATA, "'%s' is not a regular file", path);
    if (!st.st_size) {
        m->data = (const uint8_t *)"";
        return 0;
    }
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return dt_err_sys(err, errno == ENOMEM ? DT_ENOMEM : DT_EDATA, "cannot map '%s'", path);
    *m = (dt_map){ p, (size_t)st.st_size };
    return 0;
}

int dt_map_open_watched(dt_map *m, dt_watch *w, const char *path, dt_err *err)
{
    struct stat st = { 0 };
    *m = (dt_map){ 0 };
    *w = (dt_watch){ .fd = -1 };
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);     /* a FIFO must not hold us up */
    if (fd < 0)
        return dt_err_open(err, path);
    int rc = fstat(fd, &st) < 0 ? dt_err_sys(err, DT_EDATA, "cannot stat '%s'", path) : dt_map_fd(m, fd, path, err);
    if (rc < 0)
        close(fd);
    else
        *w = (dt_watch){ fd, (int64_t)st.st_size, (int64_t)st.st_mtim.tv_sec, (int64_t)st.st_mtim.tv_nsec };
    return rc;
}

int dt_map_open(dt_map *m, const char *path, dt_err *err)
{
    dt_watch w;
    int rc = dt_map_open_watched(m, &w, path, err);
    dt_watch_close(&w);
    return rc;
}

int dt_watch_check(const dt_watch *w, const char *path, dt_err *err)
{
    struct stat st;
    if (w->fd < 0)
        return 0;
    if (fstat(w->fd, &st) < 0)
        return dt_err_sys(err, DT_EDATA, "cannot stat '%s'", path);
    if (st.st_size == w->bytes && st.st_mtim.tv_sec == w->s && st.st_mtim.tv_nsec == w->ns)
        return 0;
    return dt_err_set(err, DT_EDATA, "'%s' was written to while it was in use", path);
}

void dt_watch_close(dt_watch *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

void dt_map_forget(const dt_map *m, const void *p, size_t bytes)
{
    const uintptr_t around = 2 << 20;           /* Linux maps the neighbours of a page too, up to a huge page of them */
    uintptr_t from = (uintptr_t)p / around * around, to = ((uintptr_t)p + bytes + around - 1) / around * around;
    uintptr_t first = (uintptr_t)m->data, end = first + m->bytes;
    from = from > first ? from : first;
    to = to < end ? to : end;
    if (bytes && from < to)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

void dt_map_close(dt_map *m)
{
    if (m->bytes)
        munmap((void *)m->data, m->bytes);
    *m = (dt_map){ 0 };
}

/* --- paths --- */
bool dt_exists(const char *path)
{
    struct stat st;
    return !stat(path, &st);
}

bool dt_is_dir(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

char *dt_path_join(const char *dir, const char *name)
{
    if (!dir || !*dir || *name == '/')
        return dt_strdup(name);
    return dt_sprintf("%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", name);
}

const char *dt_path_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *dt_path_dir(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return dt_strdup(".");
    return slash == path ? dt_strdup("/") : dt_sprintf("%.*s", (int)(slash - path), path);
}

int dt_path_check_dir(const char *path, dt_err *err)
{
    char *dir = dt_path_dir(path);
    int rc = dt_is_dir(dir) ? 0 : dt_err_set(err, DT_EIO, "cannot write '%s': there is no folder '%s'", path, dir);
    free(dir);
    return rc;
}

const char *dt_path_ext(const char *path)
{
    const char *base = dt_path_base(path), *dot = strrchr(base, '.');
    return dot && dot > base ? dot : "";        /* ".profile" has none */
}

int dt_mkdirs(const char *dir, dt_err *err)
{
    char *p = dt_strdup(dir);
    int rc = 0;
    for (char *s = p; ; s++) {
        if (*s && *s != '/')
            continue;
        char c = *s;
        *s = '\0';
        int e = !*p ? EEXIST : mkdir(p, 0777) < 0 ? errno : 0;
        if (!e) {                   /* what is saved in it is lost with its name */
            char *parent = dt_path_dir(p);
            rc = dt_fsync_dir(parent, err);
            free(parent);
        } else if (*p && !dt_is_dir(p)) {
            errno = e;              /* not that of looking */
            rc = dt_err_sys(err, DT_EIO, "cannot make folder '%s'", p);
        }
        if (!c || rc < 0)
            break;
        *s = c;
    }
    free(p);
    return rc;
}

int dt_rmtree(const char *dir, dt_err *err)
{
    char *p = dt_strdup(dir);
    size_t n = strlen(p);
    while (n > 1 && p[n - 1] == '/')            /* "link/" would be followed */
        p[--n] = '\0';
    char *roots[] = { p, NULL };
    int rc = 0;
    FTS *t = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    FTSENT *e;
    while (t && !rc && (e = fts_read(t))) {
        switch (e->fts_info) {
        case FTS_D:
            continue;
        case FTS_DP:
            if (!rmdir(e->fts_accpath))
                continue;
            break;
        case FTS_DNR: case FTS_ERR: case FTS_NS:
            errno = e->fts_errno;
            break;
        default:
            if (!unlink(e->fts_accpath))
                continue;
        }
        if (errno != ENOENT)
            rc = dt_err_sys(err, DT_EIO, "cannot remove '%s'", e->fts_path);
    }
    if (!rc && errno && errno != ENOENT)        /* 0 at the end; else the walk was broken off, or never begun */
        rc = dt_err_sys(err, DT_EIO, "cannot remove '%s'", dir);
    if (t)
        fts_close(t);
    free(p);
    return rc;
}

/* The path with its first missing part replaced by the nearest name beside it.  Caller frees; NULL: nothing is near. */
static char *path_near(const char *path)
{
    size_t n = 0, len;          /* path[0, n) is there */
    struct dirent **e = NULL;
    char *dir, *near = NULL;
    for (;;) {
        len = strcspn(path + n, "/");
        if (!path[n])
            return NULL;
        char *part = dt_sprintf("%.*s", (int)(n + len), path);
        bool there = !len || dt_exists(part);
        free(part);
        if (!there)
            break;
        n += len + (path[n + len] == '/');
    }
    dir = n ? dt_sprintf("%.*s", (int)n, path) : dt_strdup(".");
    int k = scandir(dir, &e, NULL, alphasort);
    const char **name = dt_alloc((size_t)(k > 0 ? k : 1) * sizeof(*name));
    for (int i = 0; i < k; i++)
        name[i] = e[i]->d_name[0] == '.' ? "" : e[i]->d_name;
    char *word = dt_sprintf("%.*s", (int)len, path + n);
    int best = dt_nearest(word, name, k);
    if (best >= 0)
        near = dt_sprintf("%.*s%s%s", (int)n, path, name[best], path + n + len);
    for (int i = 0; i < k; i++)
        free(e[i]);
    free(e);
    free(name);
    free(word);
    free(dir);
    return near;
}

int dt_err_open(dt_err *err, const char *path)
{
    int e = errno;
    char *near = err && (e == ENOENT || e == ENOTDIR) ? path_near(path) : NULL;
    if (near)
        dt_err_set(err, DT_EDATA, "cannot open '%s': %s (did you mean '%s'?)", path, strerror(e), near);
    errno = e;
    int rc = near ? DT_EDATA : dt_err_sys(err, DT_EDATA, "cannot open '%s'", path);
    free(near);
    return rc;
}
