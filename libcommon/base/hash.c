/* hash.c - XXH3-128 by libxxhash, in its canonical (big-endian) byte order. */
#include "base/file.h"
#include "base/hash.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>
#include "base/mem.h"

#define BUF_BYTES (1 << 20)

struct dt_hasher {
    XXH3_state_t *xxh;          /* allocated by libxxhash: wants 64-byte alignment */
};

static dt_hash hex(XXH128_hash_t h)
{
    static const char digit[] = "0123456789abcdef";
    XXH128_canonical_t c;
    dt_hash out = { "" };
    XXH128_canonicalFromHash(&c, h);
    for (int i = 0; i < 16; i++) {
        out.hex[2 * i] = digit[c.digest[i] >> 4];
        out.hex[2 * i + 1] = digit[c.digest[i] & 15];
    }
    return out;
}

dt_hasher *dt_hasher_new(void)
{
    dt_hasher *h = dt_alloc(sizeof *h);
    h->xxh = dt_must(XXH3_createState());
    XXH3_128bits_reset(h->xxh);
    return h;
}

void dt_hasher_add(dt_hasher *h, const void *data, size_t bytes)
{
    if (bytes)
        XXH3_128bits_update(h->xxh, data, bytes);
}

void dt_hasher_str(dt_hasher *h, const char *s)
{
    uint64_t n = strlen(s);
    unsigned char le[8];
    for (int i = 0; i < 8; i++)
        le[i] = (unsigned char)(n >> 8 * i);
    dt_hasher_add(h, le, sizeof le);
    dt_hasher_add(h, s, n);
}

dt_hash dt_hasher_end(dt_hasher **h)
{
    dt_hash out = hex(XXH3_128bits_digest((*h)->xxh));
    XXH3_freeState((*h)->xxh);
    free(*h);
    *h = NULL;
    return out;
}

dt_hash dt_hash_bytes(const void *data, size_t bytes)
{
    return hex(XXH3_128bits(data, bytes));
}

int dt_hash_file(dt_hash *out, const char *path, dt_err *err)
{
    int64_t size;
    int rc = 0, fd = dt_open_regular(&size, path, err);
    if (fd < 0)
        return fd;
    dt_hasher *h = dt_hasher_new();
    char *buf = dt_alloc(BUF_BYTES);
    for (;;) {
        ssize_t n = read(fd, buf, BUF_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = dt_err_sys(err, DT_EDATA, "cannot read '%s'", path);
        if (n <= 0)
            break;
        dt_hasher_add(h, buf, (size_t)n);
    }
    dt_hash sum = dt_hasher_end(&h);
    if (!rc)
        *out = sum;
    free(buf);
    close(fd);
    return rc;
}

/* Times of files move with the kernel's tick, or by seconds where the file system keeps no nanoseconds. */
static int64_t blur_ns(const struct timespec *t) { return t->tv_nsec ? 50000000 : 2000000000; }

static int64_t age_ns(const struct timespec *t)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (now.tv_sec - t->tv_sec) * 1000000000ll + now.tv_nsec - t->tv_nsec;
}

dt_hash dt_hash_stat(const char *path)
{
    struct stat st;
    char line[160];
    for (int tries = 0;; tries++) {
        if (stat(path, &st) < 0)
            return (dt_hash){ "" };
        int64_t age = age_ns(&st.st_ctim), left = blur_ns(&st.st_ctim) - age;
        if (left <= 0)
            break;
        if (age < 0 || tries == 8)
            return (dt_hash){ "" };
        nanosleep(&(struct timespec){ .tv_sec = left / 1000000000, .tv_nsec = left % 1000000000 }, NULL);
    }
    int n = snprintf(line, sizeof line, "%lld %lld.%09ld %lld.%09ld %llu %llu", (long long)st.st_size,
                     (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec,
                     (unsigned long long)st.st_ino, (unsigned long long)st.st_dev);
    return dt_hash_bytes(line, (size_t)n);
}
