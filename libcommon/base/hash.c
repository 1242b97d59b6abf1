/* hash.c - XXH3-128 by libxxhash, in its canonical (big-endian) byte order. */
#include "base/hash.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
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
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return dt_err_sys(err, DT_EDATA, "cannot open '%s'", path);
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
