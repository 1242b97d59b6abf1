/* bucket.c - tables and size rules of the reference workflows (VideoX-Fun's ASPECT_RATIO_512 and the collate
 * functions of its training scripts). */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include "base/mem.h"
#include "data/bucket.h"

const struct dt_aspect dt_aspect_512[DT_N_ASPECT] = {
    { 0.25, 256, 1024 }, { 0.26, 256, 992 }, { 0.27, 256, 960 }, { 0.28, 256, 928 }, { 0.32, 288, 896 },
    { 0.33, 288, 864 },  { 0.35, 288, 832 }, { 0.4, 320, 800 },  { 0.42, 320, 768 }, { 0.48, 352, 736 },
    { 0.5, 352, 704 },   { 0.52, 352, 672 }, { 0.57, 384, 672 }, { 0.6, 384, 640 },  { 0.68, 416, 608 },
    { 0.72, 416, 576 },  { 0.78, 448, 576 }, { 0.82, 448, 544 }, { 0.88, 480, 544 }, { 0.94, 480, 512 },
    { 1.0, 512, 512 },   { 1.07, 512, 480 }, { 1.13, 544, 480 }, { 1.21, 544, 448 }, { 1.29, 576, 448 },
    { 1.38, 576, 416 },  { 1.46, 608, 416 }, { 1.67, 640, 384 }, { 1.75, 672, 384 }, { 2.0, 704, 352 },
    { 2.09, 736, 352 },  { 2.4, 768, 320 },  { 2.5, 800, 320 },  { 2.89, 832, 288 }, { 3.0, 864, 288 },
    { 3.11, 896, 288 },  { 3.62, 928, 256 }, { 3.75, 960, 256 }, { 3.88, 992, 256 }, { 4.0, 1024, 256 },
};

const struct dt_aspect dt_aspect_crop_512[DT_N_ASPECT_CROP] = {
    { 0.42, 320, 768, 1 }, { 0.5, 352, 704, 2 },  { 0.57, 384, 672, 4 }, { 0.68, 416, 608, 4 }, { 0.78, 448, 576, 4 },
    { 0.88, 480, 544, 4 }, { 0.94, 480, 512, 8 }, { 1.0, 512, 512, 8 },  { 1.07, 512, 480, 8 }, { 1.13, 544, 480, 4 },
    { 1.29, 576, 448, 4 }, { 1.46, 608, 416, 4 }, { 1.75, 672, 384, 4 }, { 2.0, 704, 352, 2 },  { 2.4, 768, 320, 1 },
};

int dt_bucket_closest(int w, int h)
{
    double ratio = (double)h / w;
    int best = 0;
    for (int i = 1; i < DT_N_ASPECT; i++)
        if (fabs(dt_aspect_512[i].key - ratio) < fabs(dt_aspect_512[best].key - ratio))
            best = i;
    return best;
}

static int scaled(int side_px, int base_px, double ratio, int multiple)
{
    return (int)(side_px / 512.0 * base_px / ratio / multiple) * multiple;
}

dt_size dt_bucket_size(const struct dt_aspect *a, int base_px, double ratio, int multiple)
{
    return (dt_size){ .w = scaled(a->w, base_px, ratio, multiple), .h = scaled(a->h, base_px, ratio, multiple) };
}

int dt_bucket_draw_aspect(dt_rng *r)
{
    int total = 0, i = 0;
    for (int k = 0; k < DT_N_ASPECT_CROP; k++)
        total += dt_aspect_crop_512[k].weight;
    int64_t u = dt_rng_below(r, total);
    while (u >= dt_aspect_crop_512[i].weight)
        u -= dt_aspect_crop_512[i++].weight;
    return i;
}

int dt_bucket_ratios(double out[6], int base_px)
{
    static const double list[6] = { 1, 1.25, 1.5, 2, 2.5, 3 };
    int n = base_px >= 1536 ? 6 : base_px >= 1024 ? 4 : base_px >= 768 ? 3 : 1;
    for (int i = 0; i < n; i++)
        out[i] = list[i];
    return n;
}

double dt_bucket_draw_ratio(int base_px, dt_rng *r)
{
    double list[6];
    int n = dt_bucket_ratios(list, base_px);
    if (n == 1 || dt_rng_uniform(r) < 0.90)
        return 1;
    return list[1 + dt_rng_below(r, n - 1)];
}

/* round(d / 2), halves to even: torchvision's center_crop. */
static int centre(int d)
{
    return (d + (d >> 1 & 1)) >> 1;
}

dt_fit dt_fit_cover(int w, int h, dt_size t)
{
    dt_fit f = { .w = t.w, .h = t.h };
    if ((int64_t)t.h * w > (int64_t)t.w * h)
        f.w = (int64_t)w * t.h / h;
    else
        f.h = (int64_t)h * t.w / w;
    f.x = centre(f.w - t.w);
    f.y = centre(f.h - t.h);
    return f;
}

dt_fit dt_fit_stretch(dt_size t)
{
    return (dt_fit){ .w = t.w, .h = t.h };
}

/* --- kohya and musubi --- */

static int by_width(const void *a, const void *b)
{
    const dt_size *x = a, *y = b;
    return x->w != y->w ? (x->w < y->w ? -1 : 1) : x->h < y->h ? -1 : x->h > y->h;
}

/* Both ways round, sorted, each once. */
static int ordered(dt_size *v, int n)
{
    int m = 0;
    for (int i = 0, all = n; i < all; i++)
        v[n++] = (dt_size){ v[i].h, v[i].w };
    qsort(v, (size_t)n, sizeof *v, by_width);
    for (int i = 0; i < n; i++)
        if (!m || by_width(&v[m - 1], &v[i]))
            v[m++] = v[i];
    return m;
}

int dt_bucket_list(dt_size **out, dt_size reso, int min_px, int max_px, int step)
{
    int64_t area = (int64_t)reso.w * reso.h;
    int n = 0, side = (int)(sqrt((double)area) / step) * step;
    dt_size *v = dt_alloc((size_t)(2 * (max_px / step + 3)) * sizeof *v);
    v[n++] = (dt_size){ side, side };
    for (int w = min_px; w <= max_px; w += step) {
        int h = (int)(area / w / step * step);
        h = h < max_px ? h : max_px;
        if (h >= min_px)
            v[n++] = (dt_size){ w, h };
    }
    *out = v;
    return ordered(v, n);
}

int dt_bucket_list_musubi(dt_size **out, dt_size reso, int step)
{
    int64_t area = (int64_t)reso.w * reso.h;
    int n = 0, side = (int)sqrt((double)area), least = side / 2 / step * step;
    dt_size *v = dt_alloc((size_t)(2 * (side / step + 3)) * sizeof *v);
    for (int w = least > step ? least : step; w < side + step; w += step)
        if (area / w >= step)
            v[n++] = (dt_size){ w, (int)(area / w / step * step) };
    *out = v;
    return ordered(v, n);
}

dt_size dt_bucket_choose(const dt_size *list, int n, int w, int h)
{
    double ratio = (double)w / h;
    int best = 0;
    for (int i = 0; i < n; i++)
        if (list[i].w == w && list[i].h == h)
            return list[i];
    for (int i = 1; i < n; i++)
        if (fabs((double)list[i].w / list[i].h - ratio) < fabs((double)list[best].w / list[best].h - ratio))
            best = i;
    return list[best];
}

static int nearest_step(double px, int step)
{
    return (int)(px + 0.5) / step * step;
}

dt_size dt_bucket_shrink(dt_size reso, int step, int w, int h, dt_size *resized)
{
    double area = (double)reso.w * reso.h, ratio = (double)w / h;
    *resized = (dt_size){ w, h };
    if ((double)w * h > area) {
        double rw = sqrt(area * ratio);
        int w1 = nearest_step(rw, step), h1 = nearest_step(w1 / ratio, step);           /* width first */
        int h2 = nearest_step(area / rw, step), w2 = nearest_step(h2 * ratio, step);    /* height first */
        double off1 = h1 ? fabs((double)w1 / h1 - ratio) : INFINITY,
            off2 = h2 ? fabs((double)w2 / h2 - ratio) : INFINITY;
        *resized = off1 < off2 ? (dt_size){ w1, (int)(w1 / ratio + 0.5) } : (dt_size){ (int)(h2 * ratio + 0.5), h2 };
    }
    return (dt_size){ resized->w / step * step, resized->h / step * step };
}

dt_fit dt_fit_cover_round(int w, int h, dt_size t)
{
    bool wide = (int64_t)w * t.h > (int64_t)t.w * h;
    double scale = wide ? (double)t.h / h : (double)t.w / w;
    dt_fit f = { .w = (int)(w * scale + 0.5), .h = (int)(h * scale + 0.5) };
    f.w = f.w < t.w ? t.w : f.w;
    f.h = f.h < t.h ? t.h : f.h;
    f.x = (f.w - t.w) / 2;
    f.y = (f.h - t.h) / 2;
    return f;
}
