/* metrics.c - see metrics.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>
#include <cjson/cJSON.h>
#include "base/file.h"
#include "base/mem.h"
#include "train/metrics.h"

struct dt_metrics {
    int     fd;
    char   *path;
    int64_t offset;
    char   *line;
    int64_t len, cap;
};

static void put(dt_metrics *m, const char *s, size_t n)
{
    dt_grow(&m->line, &m->cap, m->len + (int64_t)n, 1);
    memcpy(m->line + m->len, s, n);
    m->len += (int64_t)n;
}

static void put_name(dt_metrics *m, const char *name)
{
    put(m, m->len ? ",\"" : "{\"", 2);
    put(m, name, strlen(name));
    put(m, "\":", 2);
}

void dt_metrics_num(dt_metrics *m, const char *name, double value)
{
    char s[32] = "null";
    if (isfinite(value))
        snprintf(s, sizeof(s), "%.9g", value);
    char *comma = strchr(s, ',');       /* a host program may have set LC_NUMERIC */
    if (comma)
        *comma = '.';
    put_name(m, name);
    put(m, s, strlen(s));
}

void dt_metrics_int(dt_metrics *m, const char *name, int64_t value)
{
    char s[32];
    put_name(m, name);
    put(m, s, (size_t)snprintf(s, sizeof(s), "%" PRId64, value));
}

int dt_metrics_end(dt_metrics *m, dt_err *err)
{
    put(m, m->len ? "}\n" : "{}\n", m->len ? 2 : 3);
    int64_t len = m->len, done = 0;
    m->len = 0;
    while (done < len) {
        ssize_t n = pwrite(m->fd, m->line + done, (size_t)(len - done), m->offset + done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", m->path);
            if (ftruncate(m->fd, m->offset) < 0)
                dt_err_prefix(err, "cannot cut the file back");
            return rc;
        }
        done += n;
    }
    m->offset += len;
    return 0;
}

int64_t dt_metrics_offset(const dt_metrics *m)
{
    return m->offset;
}

int dt_metrics_sync(dt_metrics *m, dt_err *err)
{
    return fsync(m->fd) == 0 ? 0 : dt_err_sys(err, DT_EIO, "cannot write '%s'", m->path);
}

/* The byte before the cut must end a line: an offset of another file would splice two runs. */
static int cut(dt_metrics *m, dt_err *err)
{
    struct stat st;
    char last = '\n';
    if (fstat(m->fd, &st) < 0)
        return dt_err_sys(err, DT_EIO, "cannot read '%s'", m->path);
    if (st.st_size < m->offset)
        return dt_err_set(err, DT_EDATA, "%s: has %" PRId64 " bytes, but the checkpoint was made at byte %" PRId64,
                          m->path, (int64_t)st.st_size, m->offset);
    if (m->offset > 0 && pread(m->fd, &last, 1, m->offset - 1) != 1)
        return dt_err_sys(err, DT_EIO, "cannot read '%s'", m->path);
    if (last != '\n')
        return dt_err_set(err, DT_EDATA, "%s: no line ends at byte %" PRId64 ", where the checkpoint was made",
                          m->path, m->offset);
    if (ftruncate(m->fd, m->offset) < 0)
        return dt_err_sys(err, DT_EIO, "cannot cut '%s'", m->path);
    return 0;
}

int dt_metrics_open(dt_metrics **out, const char *path, int64_t offset, dt_err *err)
{
    dt_metrics *m = dt_alloc(sizeof(*m));
    int rc = 0;
    m->path = dt_strdup(path);
    m->offset = offset;
    m->fd = open(path, O_RDWR | O_CLOEXEC | (offset > 0 ? 0 : O_CREAT), 0666);
    if (m->fd < 0)
        rc = dt_err_sys(err, offset > 0 ? DT_EDATA : DT_EIO, "cannot open '%s'", path);
    else
        rc = cut(m, err);
    if (rc < 0)
        dt_metrics_close(&m, NULL);
    else
        *out = m;
    return rc;
}

int dt_metrics_close(dt_metrics **pm, dt_err *err)
{
    dt_metrics *m = *pm;
    int rc = 0;
    if (!m)
        return 0;
    if (m->fd >= 0 && close(m->fd) < 0)
        rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", m->path);
    free(m->path);
    free(m->line);
    free(m);
    *pm = NULL;
    return rc;
}

/* 1 if the line has the field, 0 if not, -1 if it is no line of ours. */
static int parse_line(const char *line, const char *name, double *step, double *value)
{
    cJSON *o = cJSON_Parse(line);
    const cJSON *s = cJSON_GetObjectItemCaseSensitive(o, "step"), *v = cJSON_GetObjectItemCaseSensitive(o, name);
    int found = !cJSON_IsObject(o) ? -1 : cJSON_IsNumber(s) && (cJSON_IsNumber(v) || cJSON_IsNull(v));
    if (found == 1) {
        *step = s->valuedouble;
        *value = cJSON_IsNull(v) ? NAN : v->valuedouble;
    }
    cJSON_Delete(o);
    return found;
}

static int open_lines(FILE **f, const char *path, dt_err *err)
{
    int64_t bytes;
    int fd = dt_open_regular(&bytes, path, err);
    if (fd < 0)
        return fd;
    if ((*f = fdopen(fd, "r")))
        return 0;
    int rc = dt_err_sys(err, DT_EDATA, "%s: cannot open", path);
    close(fd);
    return rc;
}

int dt_metrics_find(int64_t *offset, const char *path, int64_t step, dt_err *err)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    double at = 0, same;
    *offset = 0;
    FILE *f;
    int rc = dt_exists(path) ? open_lines(&f, path, err) : 1;
    if (rc)
        return rc < 0 ? rc : 0;
    while ((len = getline(&line, &cap, f)) > 0 && line[len - 1] == '\n' && parse_line(line, "step", &at, &same) == 1 &&
           at < (double)step)
        *offset += len;
    rc = ferror(f) ? dt_err_sys(err, DT_EDATA, "cannot read '%s'", path) : 0;
    fclose(f);
    free(line);
    return rc;
}

int dt_metrics_read(double **step, double **value, int64_t *n, const char *path, const char *name, dt_err *err)
{
    double *x = NULL, *y = NULL;
    int64_t cap_x = 0, cap_y = 0, count = 0, number = 0;
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    int rc;
    FILE *f;
    if ((rc = open_lines(&f, path, err)) < 0)
        return rc;
    /* a last line that is being written is left alone */
    while (rc == 0 && (len = getline(&line, &cap, f)) > 0 && line[len - 1] == '\n') {
        number++;
        dt_grow(&x, &cap_x, count + 1, sizeof(*x));
        dt_grow(&y, &cap_y, count + 1, sizeof(*y));
        int found = parse_line(line, name, &x[count], &y[count]);
        if (found < 0)
            rc = dt_err_set(err, DT_EDATA, "%s: line %" PRId64 " is not a JSON object", path, number);
        else
            count += found;
    }
    if (rc == 0 && ferror(f))
        rc = dt_err_sys(err, DT_EDATA, "cannot read '%s'", path);
    fclose(f);
    free(line);
    if (rc < 0) {
        free(x);
        free(y);
        return rc;
    }
    *step = x;
    *value = y;
    *n = count;
    return 0;
}
