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

typedef int32_t v4 __attribute__((vector_size(16)));

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

static inline uint8_t to_u8(int32_t v)
{
    v >>= BITS;
    return v < 0 ? 0 : v > 255 ? 255 : v;
}

/* One row: src [w, 3] -> dst [t->n, 3].  wide: scratch [w] of four lanes, so that a tap is one multiply-add. */
static void row_across(uint8_t *dst, const uint8_t *src, int w, const struct taps *t, v4 *wide)
{
    for (int x = 0; x < w; x++)
        wide[x] = (v4){ src[3 * x], src[3 * x + 1], src[3 * x + 2], 0 };
    for (int i = 0; i < t->n; i++) {
        const int32_t *k = t->k + (size_t)i * t->most;
        const v4 *p = wide + t->at[i];
        v4 acc = { 1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1), 0 };
        for (int j = 0; j < t->len[i]; j++)
            acc += p[j] * k[j];
        for (int c = 0; c < 3; c++)
            dst[3 * i + c] = to_u8(acc[c]);
    }
}

/* One output row from len input rows of n bytes. */
static void rows_down(uint8_t *dst, const uint8_t *src, size_t n, const int32_t *k, int len)
{
    enum { CHUNK = 512 };       /* accumulators that stay in the first-level cache */
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
            dst[x + i] = to_u8(acc[i]);
    }
}

static void window_copy(dt_image *out, const dt_image *in, int x, int y)
{
    for (int i = 0; i < out->h; i++)
        memcpy(out->rgb + (size_t)i * out->w * 3, in->rgb + ((size_t)(y + i) * in->w + x) * 3, (size_t)out->w * 3);
}

int dt_image_resize(dt_image *out, const dt_image *in, int rw, int rh, int x, int y, int w, int h, dt_err *err)
{
    struct taps across = { 0 }, down = { 0 };
    dt_image r = { 0 }, mid = { 0 };
    v4 *wide = NULL;
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
    if (taps_init(&across, in->w, rw, x, w) < 0 || taps_init(&down, in->h, rh, y, h) < 0 ||
        !(wide = dt_try_alloc(in->w * sizeof *wide))) {
        rc = dt_err_set(err, DT_ENOMEM, "no memory to resize %dx%d to %dx%d", in->w, in->h, rw, rh);
        goto out;
    }
    int top = down.at[0], rows = down.at[h - 1] + down.len[h - 1] - top;
    if ((rc = dt_image_alloc(&mid, w, rows, err)) < 0)
        goto out;
    if (rw == in->w)            /* Pillow skips a pass that changes nothing, and its rounding */
        window_copy(&mid, in, x, top);
    for (int i = 0; rw != in->w && i < rows; i++)
        row_across(mid.rgb + (size_t)i * w * 3, in->rgb + (size_t)(top + i) * in->w * 3, in->w, &across, wide);
    if (rh == in->h)
        window_copy(&r, &mid, 0, 0);
    for (int i = 0; rh != in->h && i < h; i++)
        rows_down(r.rgb + (size_t)i * w * 3, mid.rgb + (size_t)(down.at[i] - top) * w * 3, (size_t)w * 3,
                  down.k + (size_t)i * down.most, down.len[i]);
    *out = r;
    r.rgb = NULL;
out:
    taps_release(&across);
    taps_release(&down);
    dt_image_release(&mid);
    dt_image_release(&r);
    free(wide);
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
