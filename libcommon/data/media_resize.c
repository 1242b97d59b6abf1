/* media_resize.c - antialiased bilinear resize of 8-bit RGB.
 *
 *   out(i) = sum_j k(i, j) in(j),    k(i, j) = tri((j + 0.5 - c) / f) / sum,    c = (i + 0.5) s
 *   s = in / out,   f = max(s, 1),   tri(x) = max(0, 1 - |x|)
 *
 * with k in 22-bit fixed point and an 8-bit picture between the horizontal and the vertical pass, as
 * Pillow's Resample.c does it, so that the results are the same bytes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "data/media_int.h"

#define BITS 22

/* The horizontal pass takes four rows at once: a pixel of each, with a fourth byte that means nothing, is 16 lanes. */
enum { ROWS = 4, LANES = 4 * ROWS };
typedef int32_t v4 __attribute__((vector_size(16), may_alias));
typedef int32_t v8 __attribute__((vector_size(32)));
typedef uint8_t b16 __attribute__((vector_size(16)));
typedef struct px4 { v8 lo, hi; } px4;

/* Taps of output cells [first, first + n): cell i reads in[at[i]] … in[at[i] + len[i] - 1]. */
struct taps {
    int      n, most;           /* k is [n, most] */
    int     *at, *len;
    int32_t *k;
};

static void taps_release(struct taps *t)
{
    free(t->at);
    free(t->len);
    free(t->k);
}

static int taps_init(struct taps *t, int in, int out, int first, int n)
{
    double scale = (double)in / out, f = scale < 1 ? 1 : scale;

    t->n = n;
    t->most = (int)ceil(f) * 2 + 1;
    t->at = malloc(n * sizeof *t->at);
    t->len = malloc(n * sizeof *t->len);
    t->k = malloc((size_t)n * t->most * sizeof *t->k);
    double *w = malloc(t->most * sizeof *w);
    if (!t->at || !t->len || !t->k || !w) {
        free(w);
        return -1;
    }
    for (int i = 0; i < n; i++) {
        double c = (first + i + 0.5) * scale, sum = 0;
        int lo = (int)(c - f + 0.5), hi = (int)(c + f + 0.5);
        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        for (int j = lo; j < hi; j++) {
            double x = fabs((j - c + 0.5) * (1.0 / f));
            w[j - lo] = x < 1 ? 1 - x : 0;
            sum += w[j - lo];
        }
        t->at[i] = lo;
        t->len[i] = hi - lo;
        for (int j = 0; j < hi - lo; j++)
            t->k[(size_t)i * t->most + j] = (int)(0.5 + (sum != 0 ? w[j] / sum : w[j]) * (1 << BITS));
    }
    free(w);
    return 0;
}

/* Scratch of the horizontal pass, and its taps. */
struct across {
    struct taps taps;
    px4     *in, *sum;          /* [input width], [taps.n] */
    uint8_t *narrow;            /* [taps.n, LANES] */
};

/* A pixel's bytes as lanes; the fourth is whatever comes next. */
static inline v4 spread(const uint8_t *p, size_t bytes)
{
    uint32_t u = 0;
    memcpy(&u, p, bytes);
    b16 v = (b16)(v4){ (int32_t)u };
    return (v4)__builtin_shufflevector(v, (b16){ 0 }, 0, 16, 16, 16, 1, 16, 16, 16, 2, 16, 16, 16, 3, 16, 16, 16);
}

/* `n` <= ROWS rows src [n, w, 3] side by side. */
static void interleave(struct across *a, const uint8_t *src, int w, int n)
{
    const uint8_t *row[ROWS];
    v4 *v = (v4 *)a->in;
    for (int r = 0; r < ROWS; r++)
        row[r] = src + (size_t)(r < n ? r : 0) * w * 3;
    for (int x = 0; x < w - 1; x++)
        for (int r = 0; r < ROWS; r++)
            *v++ = spread(row[r] + 3 * x, 4);
    for (int r = 0; r < ROWS; r++)
        *v++ = spread(row[r] + 3 * (w - 1), 3);
}

/* The reverse: n rows dst [n, w, 3] of a->sum.  No clamping: the taps are not negative and sum up to 2^22, give or take
 * one for each. */
static void separate(uint8_t *dst, const struct across *a, int w, int n)
{
    const int32_t *v = (const int32_t *)a->sum;
    for (size_t i = 0; i < (size_t)LANES * w; i++)
        a->narrow[i] = v[i] >> BITS;
    for (int r = 0; r < n; r++, dst += (size_t)w * 3) {
        const uint8_t *q = a->narrow + 4 * r;
        for (int x = 0; x < w - 1; x++)
            memcpy(dst + 3 * x, q + (size_t)LANES * x, 4);
        memcpy(dst + 3 * (w - 1), q + (size_t)LANES * (w - 1), 3);
    }
}

/* `n` rows [w, 3] -> dst [n, taps.n, 3]. */
static void rows_across(uint8_t *dst, const uint8_t *src, int w, int n, struct across *a)
{
    const struct taps *t = &a->taps;
    interleave(a, src, w, n);
    for (int i = 0; i < t->n; i++) {
        const int32_t *k = t->k + (size_t)i * t->most;
        const px4 *p = a->in + t->at[i];
        v8 lo = (v8){ 0 } + (1 << (BITS - 1)), hi = lo;
        for (int j = 0; j < t->len[i]; j++) {
            lo += p[j].lo * k[j];
            hi += p[j].hi * k[j];
        }
        a->sum[i] = (px4){ lo, hi };
    }
    separate(dst, a, t->n, n);
}

/* One output row from len input rows of n bytes. */
static void rows_down(uint8_t *dst, const uint8_t *src, size_t n, const int32_t *k, int len)
{
    enum { CHUNK = 512 };       /* sums that stay in the first-level cache */
    for (size_t x = 0; x < n; x += CHUNK) {
        int32_t acc[CHUNK];
        int m = n - x < CHUNK ? (int)(n - x) : CHUNK;
        for (int i = 0; i < m; i++)
            acc[i] = 1 << (BITS - 1);
        for (int j = 0; j < len; j++) {
            const uint8_t *p = src + n * j + x;
            int32_t kj = k[j];
            for (int i = 0; i < m; i++)
                acc[i] += p[i] * kj;
        }
        for (int i = 0; i < m; i++)
            dst[x + i] = acc[i] >> BITS;
    }
}

static void window_copy(dt_image *out, const dt_image *in, int x, int y)
{
    for (int i = 0; i < out->h; i++)
        memcpy(out->rgb + (size_t)i * out->w * 3, in->rgb + ((size_t)(y + i) * in->w + x) * 3, (size_t)out->w * 3);
}

int dt_image_resize(dt_image *out, const dt_image *in, int rw, int rh, int x, int y, int w, int h, dt_err *err)
{
    struct across across = { 0 };
    struct taps down = { 0 };
    dt_image r = { 0 }, mid = { 0 };
    int rc;

    if (rw < 1 || rh < 1 || x < 0 || y < 0 || w < 1 || h < 1 || x > rw - w || y > rh - h)
        return dt_err_set(err, DT_EFAIL, "resize: window %dx%d+%d+%d is outside %dx%d", w, h, x, y, rw, rh);
    if ((rc = dt_image_alloc(&r, w, h, err)) < 0)
        return rc;
    if (rw == in->w && rh == in->h) {
        window_copy(&r, in, x, y);
        *out = r;
        return 0;
    }
    across.in = dt_try_alloc(in->w * sizeof *across.in);
    across.sum = dt_try_alloc(w * sizeof *across.sum);
    across.narrow = dt_try_alloc((size_t)LANES * w);
    if (!across.in || !across.sum || !across.narrow || taps_init(&across.taps, in->w, rw, x, w) < 0 ||
        taps_init(&down, in->h, rh, y, h) < 0) {
        rc = dt_err_set(err, DT_ENOMEM, "no memory to resize %dx%d to %dx%d", in->w, in->h, rw, rh);
        goto out;
    }
    int top = down.at[0], rows = down.at[h - 1] + down.len[h - 1] - top;
    if ((rc = dt_image_alloc(&mid, w, rows, err)) < 0)
        goto out;
    if (rw == in->w)            /* Pillow skips a pass that changes nothing, and its rounding */
        window_copy(&mid, in, x, top);
    for (int i = 0; rw != in->w && i < rows; i += ROWS)
        rows_across(mid.rgb + (size_t)i * w * 3, in->rgb + (size_t)(top + i) * in->w * 3, in->w,
                    rows - i < ROWS ? rows - i : ROWS, &across);
    if (rh == in->h)
        window_copy(&r, &mid, 0, 0);
    for (int i = 0; rh != in->h && i < h; i++)
        rows_down(r.rgb + (size_t)i * w * 3, mid.rgb + (size_t)(down.at[i] - top) * w * 3, (size_t)w * 3,
                  down.k + (size_t)i * down.most, down.len[i]);
    *out = r;
    r.rgb = NULL;
out:
    taps_release(&across.taps);
    free(across.in);
    free(across.sum);
    free(across.narrow);
    taps_release(&down);
    dt_image_release(&mid);
    dt_image_release(&r);
    return rc;
}

void dt_image_flip(dt_image *im)
{
    for (int y = 0; y < im->h; y++) {
        uint8_t *p = im->rgb + (size_t)y * im->w * 3, t[3];
        for (int a = 0, b = im->w - 1; a < b; a++, b--) {
            memcpy(t, p + 3 * a, 3);
            memcpy(p + 3 * a, p + 3 * b, 3);
            memcpy(p + 3 * b, t, 3);
        }
    }
}
