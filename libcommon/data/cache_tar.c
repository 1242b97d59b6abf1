/* cache_tar.c - walks a mapped ustar file.  See cache_tar.h. */
#include <stdbool.h>
#include <string.h>
#include "data/cache_tar.h"

enum { BLOCK = 512, NAME = 100, SIZE_AT = 124, SIZE = 12, SUM_AT = 148, SUM = 8, TYPE_AT = 156, MAGIC_AT = 257 };

/* Octal digits up to a space or NUL. */
static bool octal(const uint8_t *p, int n, uint64_t *v)
{
    int i = 0;
    *v = 0;
    while (i < n && p[i] == ' ')
        i++;
    for (; i < n && p[i] >= '0' && p[i] <= '7'; i++)
        *v = *v << 3 | (uint64_t)(p[i] - '0');
    return i == n || p[i] == ' ' || p[i] == '\0';
}

static bool zeros(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

/* The sum of the header's bytes, its own field taken as spaces. */
static bool sum_is_right(const uint8_t *h)
{
    uint64_t want, sum = 0;
    for (int i = 0; i < BLOCK; i++)
        sum += i >= SUM_AT && i < SUM_AT + SUM ? ' ' : h[i];
    return octal(h + SUM_AT, SUM, &want) && want == sum;
}

int dt_tar_next(const uint8_t *data, size_t bytes, size_t *pos, dt_tar_member *m, const char *what, dt_err *err)
{
    uint64_t size;
    if (*pos > bytes || bytes - *pos < 2 * BLOCK)       /* at least the end mark */
        return dt_err_set(err, DT_EDATA, "%s: cut off at byte %zu", what, bytes);
    const uint8_t *h = data + *pos;
    if (zeros(h, BLOCK))
        return zeros(h + BLOCK, BLOCK) ? 0 : dt_err_set(err, DT_EDATA, "%s: damaged at byte %zu", what, *pos);
    if (memcmp(h + MAGIC_AT, "ustar", 5) || !sum_is_right(h) || !octal(h + SIZE_AT, SIZE, &size) ||
        (h[TYPE_AT] != '0' && h[TYPE_AT]))
        return dt_err_set(err, DT_EDATA, "%s: no tar header of a regular file at byte %zu", what, *pos);
    if (size > bytes - *pos - BLOCK)
        return dt_err_set(err, DT_EDATA, "%s: cut off at byte %zu", what, bytes);
    memcpy(m->name, h, NAME);
    m->name[NAME] = '\0';
    m->off = *pos + BLOCK;
    m->bytes = (size_t)size;
    *pos = m->off + (m->bytes + BLOCK - 1) / BLOCK * BLOCK;
    return 1;
}
