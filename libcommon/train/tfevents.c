/* tfevents.c - see tfevents.h.  The messages are in tfevents.proto. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>
#include "base/file.h"
#include "base/mem.h"
#include "train/tfevents.h"
#include "train/tfevents.pb-c.h"

struct dt_events {
    FILE *f;
    char *path;
    double last_s;              /* of the event before: a clock that goes backwards must not turn a curve back */
};

/* CRC-32C (Castagnoli), reflected polynomial 0x82f63b78, a nibble at a time. */
uint32_t dt_crc32c(const void *data, size_t bytes)
{
    static const uint32_t nibble[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    return ~crc;
}

/* A record may hold CRCs of its own; the rotation keeps a CRC of CRCs from degenerating. */
uint32_t dt_crc32c_masked(const void *data, size_t bytes)
{
    uint32_t crc = dt_crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void put_le(uint8_t *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

static int write_event(dt_events *e, Tfevents__Event *ev, dt_err *err)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double t = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    ev->wall_time = e->last_s = t > e->last_s ? t : e->last_s;

    size_t bytes = tfevents__event__get_packed_size(ev);
    uint8_t *data = dt_try_alloc(bytes + 4), head[12];
    if (!data)
        return dt_err_set(err, DT_ENOMEM, "%s: no memory for an event of %zu bytes", e->path, bytes);
    tfevents__event__pack(ev, data);
    put_le(data + bytes, dt_crc32c_masked(data, bytes), 4);
    put_le(head, bytes, 8);
    put_le(head + 8, dt_crc32c_masked(head, 8), 4);
    size_t ok = fwrite(head, sizeof(head), 1, e->f) + fwrite(data, bytes + 4, 1, e->f);
    free(data);
    return ok == 2 ? 0 : dt_err_sys(err, DT_EIO, "cannot write '%s'", e->path);
}

static int write_value(dt_events *e, Tfevents__Summary__Value *v, const char *tag, int64_t step, dt_err *err)
{
    Tfevents__Summary s = TFEVENTS__SUMMARY__INIT;
    Tfevents__Event ev = TFEVENTS__EVENT__INIT;
    v->tag = (char *)tag;
    s.n_value = 1;
    s.value = &v;
    ev.step = step;
    ev.what_case = TFEVENTS__EVENT__WHAT_SUMMARY;
    ev.summary = &s;
    return write_event(e, &ev, err);
}

int dt_events_scalar(dt_events *e, const char *tag, int64_t step, double value, dt_err *err)
{
    Tfevents__Summary__Value v = TFEVENTS__SUMMARY__VALUE__INIT;
    v.value_case = TFEVENTS__SUMMARY__VALUE__VALUE_SIMPLE_VALUE;
    v.simple_value = (float)value;
    return write_value(e, &v, tag, step, err);
}

int dt_events_image(dt_events *e, const char *tag, int64_t step, const void *png, size_t bytes,
                    int width_px, int height_px, dt_err *err)
{
    Tfevents__Summary__Image im = TFEVENTS__SUMMARY__IMAGE__INIT;
    Tfevents__Summary__Value v = TFEVENTS__SUMMARY__VALUE__INIT;
    im.width = width_px;
    im.height = height_px;
    im.colorspace = 3;
    im.encoded_image_string.data = (uint8_t *)png;
    im.encoded_image_string.len = bytes;
    v.value_case = TFEVENTS__SUMMARY__VALUE__VALUE_IMAGE;
    v.image = &im;
    return write_value(e, &v, tag, step, err);
}

/* Every TensorFlow event file begins with its version; only from version 2 on does a START purge. */
static int write_opening(dt_events *e, int64_t done_step, dt_err *err)
{
    Tfevents__Event version = TFEVENTS__EVENT__INIT, start = TFEVENTS__EVENT__INIT;
    Tfevents__SessionLog session = TFEVENTS__SESSION_LOG__INIT;
    version.what_case = TFEVENTS__EVENT__WHAT_FILE_VERSION;
    version.file_version = "brain.Event:2";
    session.status = TFEVENTS__SESSION_LOG__STATUS__START;
    start.step = done_step + 1;
    start.what_case = TFEVENTS__EVENT__WHAT_SESSION_LOG;
    start.session_log = &session;
    int rc = write_event(e, &version, err);
    if (rc == 0)
        rc = write_event(e, &start, err);
    return rc < 0 ? rc : dt_events_flush(e, err);
}

/* The time for a new file's name: readers take the files of a folder in the order of their names, so it is
 * not earlier than what is there, even if the clock was set back between two runs. */
static long long stamp(const char *logdir)
{
    long long t = time(NULL), other;
    DIR *d = opendir(logdir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (sscanf(e->d_name, "events.out.tfevents.%10lld.", &other) == 1 && other > t)
            t = other + 1;
    if (d)
        closedir(d);
    return t;
}

int dt_events_open(dt_events **out, const char *logdir, int64_t done_step, dt_err *err)
{
    dt_events *e = dt_alloc(sizeof(*e));
    char host[256] = "localhost";
    int fd = -1, rc = dt_mkdirs(logdir, err);
    if (rc < 0)
        goto out;
    long long t = stamp(logdir);
    gethostname(host, sizeof(host) - 1);
    for (int i = 0; i < 1000 && fd < 0; i++) {          /* runs that start within one second in one process */
        char *name = dt_sprintf("events.out.tfevents.%010lld.%s.%ld.%d", t, host,
                                (long)getpid(), i);
        free(e->path);
        e->path = dt_path_join(logdir, name);
        free(name);
        fd = open(e->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    e->f = fd < 0 ? NULL : fdopen(fd, "w");
    if (!e->f) {
        rc = dt_err_sys(err, DT_EIO, "cannot create '%s'", e->path);
        goto out;
    }
    rc = write_opening(e, done_step, err);
out:
    if (rc < 0)
        dt_events_close(&e, NULL);
    else
        *out = e;
    return rc;
}

int dt_events_flush(dt_events *e, dt_err *err)
{
    return fflush(e->f) == 0 ? 0 : dt_err_sys(err, DT_EIO, "cannot write '%s'", e->path);
}

const char *dt_events_path(const dt_events *e)
{
    return e->path;
}

int dt_events_close(dt_events **pe, dt_err *err)
{
    dt_events *e = *pe;
    int rc = 0;
    if (!e)
        return 0;
    if (e->f) {
        int bad = ferror(e->f);
        if (fclose(e->f) != 0 || bad)
            rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", e->path);
    }
    free(e->path);
    free(e);
    *pe = NULL;
    return rc;
}
