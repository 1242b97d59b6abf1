/* media_png_fast.c - the common kinds of PNG (8-bit grey, RGB and RGBA, not interlaced, no transparent colour) with
 * libdeflate and reversed filters of our own.  W3C PNG 3rd ed., sections 5 and 9.
 *
 * A file that is of another kind, or in which anything is wrong or unusual, is left to libpng and its messages. */
#include <libdeflate.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "data/media_int.h"

#define INLINE static inline __attribute__((always_inline))      /* so that bpp is a constant */
#define PAD 4                   /* bytes after a row that may be read */
#define MAX_PX (1ll << 26)      /* the inflated rows are all in memory */

struct file {
    const uint8_t *at, *end;    /* what is left */
    uint8_t *packed;            /* all IDAT, if there is more than one; owned */
    const uint8_t *idat;
    size_t   n;                 /* bytes of idat */
    int      w, h, bpp;
};
struct chunk { const uint8_t *type, *data; uint32_t n; };

typedef int16_t v8 __attribute__((vector_size(16)));
typedef uint8_t b16 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));

static bool next(struct file *f, struct chunk *c)
{
    if (f->end - f->at < 12 || dt_be32(f->at) > (size_t)(f->end - f->at) - 12)
        return false;
    *c = (struct chunk){ f->at + 4, f->at + 8, dt_be32(f->at) };
    f->at += 12 + (size_t)c->n;
    bool critical = !(c->type[0] & 0x20);
    return !critical || libdeflate_crc32(0, c->type, 4 + (size_t)c->n) == dt_be32(c->data + c->n);
}

static bool is(const struct chunk *c, const char *type)
{
    return !memcmp(c->type, type, 4);
}

/* Leaves the first IDAT in c. */
static bool head(struct file *f, struct chunk *c)
{
    static const uint8_t bpp[7] = { [0] = 1, [2] = 3, [6] = 4 };    /* by colour type */
    f->at += 8;
    if (!next(f, c) || !is(c, "IHDR") || c->n != 13 || c->data[8] != 8 || c->data[9] > 6 || !bpp[c->data[9]]
        || c->data[10] || c->data[11] || c->data[12] || dt_be32(c->data) != (uint32_t)f->w
        || dt_be32(c->data + 4) != (uint32_t)f->h)
        return false;
    f->bpp = bpp[c->data[9]];
    while (next(f, c)) {
        if (is(c, "IDAT"))
            return true;
        if (is(c, "tRNS"))
            return false;
    }
    return false;
}

static bool join(struct file *f, struct chunk c)
{
    size_t room = f->end - c.data;
    f->idat = c.data;
    f->n = c.n;
    while (next(f, &c)) {
        if (is(&c, "IEND"))
            return true;
        if (!is(&c, "IDAT"))
            return false;
        if (!f->packed) {
            if (!(f->packed = dt_try_alloc(room)))
                return false;
            f->idat = memcpy(f->packed, f->idat, f->n);
        }
        memcpy(f->packed + f->n, c.data, c.n);
        f->n += c.n;
    }
    return false;
}

/* --- filters: out[i] = in[i] + prediction from a (left), b (above), c (above left).  out may be in. --- */

static inline v8 load(const uint8_t *p, int bpp)
{
    uint32_t u;
    if (bpp == 1)
        u = *p;
    else
        memcpy(&u, p, 4);       /* the fourth of three means nothing; PAD makes it readable */
    b16 v = (b16)(u4){ u };
    return (v8)__builtin_shufflevector(v, (b16){ 0 }, 0, 16, 1, 16, 2, 16, 3, 16, 16, 16, 16, 16, 16, 16, 16, 16);
}

static inline void store(uint8_t *p, v8 v, int bpp)
{
    b16 b = __builtin_shufflevector((b16)v, (b16)v, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6);
    uint32_t u = ((u4)b)[0];
    if (bpp == 1) {
        *p = u;
    } else if (bpp == 3) {
        memcpy(p, &u, 2);
        p[2] = u >> 16;
    } else {
        memcpy(p, &u, 4);
    }
}

static inline v8 magnitude(v8 v)
{
    v8 sign = v >> 15;
    return (v ^ sign) - sign;
}

static inline v8 pick(v8 mask, v8 yes, v8 no)
{
    return (mask & yes) | (~mask & no);
}

INLINE void paeth(uint8_t *out, const uint8_t *in, const uint8_t *up, size_t n, int bpp)
{
    v8 a = { 0 }, c = { 0 };
    for (size_t i = 0; i < n; i += bpp) {
        v8 b = load(up + i, bpp), from_a = b - c, from_b = a - c;
        v8 pa = magnitude(from_a), pb = magnitude(from_b), pc = magnitude(from_a + from_b);
        v8 best = pick((pa <= pb) & (pa <= pc), a, pick(pb <= pc, b, c));
        a = (best + load(in + i, bpp)) & 255;
        store(out + i, a, bpp);
        c = b;
    }
}

INLINE void average(uint8_t *out, const uint8_t *in, const uint8_t *up, size_t n, int bpp)
{
    v8 a = { 0 };
    for (size_t i = 0; i < n; i += bpp) {
        a = (((a + load(up + i, bpp)) >> 1) + load(in + i, bpp)) & 255;
        store(out + i, a, bpp);
    }
}

INLINE void sub(uint8_t *out, const uint8_t *in, size_t n, int bpp)
{
    v8 a = { 0 };
    for (size_t i = 0; i < n; i += bpp) {
        a = (a + load(in + i, bpp)) & 255;
        store(out + i, a, bpp);
    }
}

INLINE bool unfilter(uint8_t *out, const uint8_t *in, const uint8_t *up, size_t n, int filter,
                     int bpp)
{
    switch (filter) {
    case 0: memmove(out, in, n); return true;
    case 1: sub(out, in, n, bpp); return true;
    case 2:
        for (size_t i = 0; i < n; i++)
            out[i] = in[i] + up[i];
        return true;
    case 3: average(out, in, up, n, bpp); return true;
    case 4: paeth(out, in, up, n, bpp); return true;
    }
    return false;
}

/* raw: rows of a filter byte and w * bpp bytes.  Those of RGB move together and are the picture then: what
 * is written never gets ahead of what is read.  The others are reversed in their place. */
static bool rows(dt_image *im, uint8_t *raw, const struct file *f)
{
    size_t n = (size_t)f->w * f->bpp;
    uint8_t *zero = calloc(n + PAD, 1), *up = zero;
    bool ok = zero;
    for (int y = 0; ok && y < im->h; y++) {
        uint8_t *in = raw + (1 + n) * y, *to = f->bpp == 3 ? raw + n * y : in + 1,
            *rgb = im->rgb + (size_t)im->w * 3 * y;
        ok = f->bpp == 1 ? unfilter(to, in + 1, up, n, *in, 1)
           : f->bpp == 3 ? unfilter(to, in + 1, up, n, *in, 3) : unfilter(to, in + 1, up, n, *in, 4);
        up = to;
        for (int x = 0; f->bpp == 1 && x < im->w; x++)
            rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = to[x];
        if (f->bpp == 4)
            dt_rgba_over_white(rgb, to, im->w);
    }
    free(zero);
    return ok;
}

bool dt_png_decode_fast(dt_image *out, const uint8_t *data, size_t bytes)
{
    struct file f = { .at = data, .end = data + bytes, .w = out->w, .h = out->h };
    struct libdeflate_decompressor *z = NULL;
    struct chunk c;
    uint8_t *raw = NULL;
    bool ok = (int64_t)out->w * out->h <= MAX_PX && bytes > 8 && head(&f, &c) && join(&f, c);
    if (ok) {
        size_t n = (1 + (size_t)f.w * f.bpp) * f.h;
        ok = (raw = dt_try_alloc(n + PAD)) && (z = libdeflate_alloc_decompressor())
            && libdeflate_zlib_decompress(z, f.idat, f.n, raw, n, NULL) == LIBDEFLATE_SUCCESS && rows(out, raw, &f);
    }
    if (z)
        libdeflate_free_decompressor(z);
    if (ok && f.bpp == 3) {             /* the other one was never touched, and takes no memory */
        free(out->rgb);
        out->rgb = raw;
        raw = NULL;
    }
    free(raw);
    free(f.packed);
    return ok;
}
