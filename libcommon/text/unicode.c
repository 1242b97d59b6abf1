/* unicode.c - UTF-8 in and out, and the one class of characters that libraries disagree on. */
#include <string.h>
#include "text/internal.h"

void dt_text_add(dt_text *b, const char *s, int64_t n)
{
    if (n <= 0)
        return;
    dt_grow(&b->v, &b->cap, b->n + n, 1);
    memcpy(b->v + b->n, s, n);
    b->n += n;
}

void dt_text_cp(dt_text *b, int32_t cp)
{
    char u[4];
    int n;
    if (cp < 0x80) {
        u[0] = cp;
        n = 1;
    } else if (cp < 0x800) {
        u[0] = 0xc0 | cp >> 6;
        u[1] = 0x80 | (cp & 63);
        n = 2;
    } else if (cp < 0x10000) {
        u[0] = 0xe0 | cp >> 12;
        u[1] = 0x80 | (cp >> 6 & 63);
        u[2] = 0x80 | (cp & 63);
        n = 3;
    } else {
        u[0] = 0xf0 | cp >> 18;
        u[1] = 0x80 | (cp >> 12 & 63);
        u[2] = 0x80 | (cp >> 6 & 63);
        u[3] = 0x80 | (cp & 63);
        n = 4;
    }
    dt_text_add(b, u, n);
}

void dt_ids_add(dt_ids *b, int32_t id)
{
    if (b->n == b->cap)
        dt_grow(&b->v, &b->cap, b->n + 1, sizeof *b->v);
    b->v[b->n++] = id;
}

bool dt_uni_space(int32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == ' ' || cp == 0x85 || cp == 0xa0 || cp == 0x1680
        || (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
        cp == 0x3000;
}

int dt_uni_len(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

int dt_uni_get(const char *s, int32_t *cp)
{
    const unsigned char *u = (const unsigned char *)s;
    int n = dt_uni_len(u[0]);
    switch (n) {
    case 1:  *cp = u[0]; break;
    case 2:  *cp = (u[0] & 31) << 6 | (u[1] & 63); break;
    case 3:  *cp = (u[0] & 15) << 12 | (u[1] & 63) << 6 | (u[2] & 63); break;
    default: *cp = (u[0] & 7) << 18 | (u[1] & 63) << 12 | (u[2] & 63) << 6 | (u[3] & 63);
    }
    return n;
}

/* Bytes of the well-formed character at u (Unicode table 3-7), or minus the length of the longest
 * prefix of one: what Python replaces by a single U+FFFD. */
static int well_formed(const unsigned char *u)
{
    unsigned char lo = 0x80, hi = 0xbf;
    int n = u[0] < 0x80 ? 1 : u[0] < 0xc2 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : u[0] < 0xf5 ? 4 : 0;
    if (n < 2)
        return n ? 1 : -1;
    if (u[0] == 0xe0) lo = 0xa0;
    if (u[0] == 0xed) hi = 0x9f;
    if (u[0] == 0xf0) lo = 0x90;
    if (u[0] == 0xf4) hi = 0x8f;
    for (int i = 1; i < n; i++, lo = 0x80, hi = 0xbf)
        if (u[i] < lo || u[i] > hi)
            return -i;
    return n;
}

void dt_uni_clean(dt_text *out, const char *s)
{
    const unsigned char *u = (const unsigned char *)s;
    while (*u) {
        const unsigned char *a = u;
        int n = 1;
        while (*u && (n = well_formed(u)) > 0)
            u += n;
        dt_text_add(out, (const char *)a, u - a);
        if (*u) {
            dt_text_cp(out, 0xfffd);
            u += -n;
        }
    }
}
