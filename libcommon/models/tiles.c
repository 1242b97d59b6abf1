/* tiles.c - overlapping tiles.  See tiles.h; blend_v and blend_h of diffusers' AutoencoderKL. */
#include <string.h>
#include "models/tiles.h"

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

dt_tiles dt_tiles_make(int64_t w, int64_t h, int64_t tile)
{
    dt_tiles t = { .w = w, .h = h, .tile = tile, .stride = tile * 3 / 4 };
    t.nx = (w + t.stride - 1) / t.stride;
    t.ny = (h + t.stride - 1) / t.stride;
    return t;
}

dt_tile dt_tiles_at(const dt_tiles *t, int64_t i)
{
    dt_tile a = { .x = i % t->nx * t->stride, .y = i / t->nx * t->stride };
    a.w = min(t->tile, t->w - a.x);
    a.h = min(t->tile, t->h - a.y);
    return a;
}

void dt_tiles_cut(const dt_tiles *t, int64_t i, const float *src, int64_t planes, int64_t channels, int64_t scale,
                  float *tile)
{
    dt_tile a = dt_tiles_at(t, i);
    int64_t W = t->w / scale, H = t->h / scale, row = a.w / scale * channels;
    for (int64_t p = 0; p < planes; p++)
        for (int64_t y = 0; y < a.h / scale; y++, tile += row)
            memcpy(tile, src + ((p * H + a.y / scale + y) * W + a.x / scale) * channels, (size_t)row * sizeof(float));
}

/* A tile's cells: [planes, h, w, channels]. */
struct cells { float *v; int64_t planes, h, w, ch; };

static void blend_down(struct cells above, struct cells here, int64_t extent)
{
    extent = min(extent, min(above.h, here.h));
    for (int64_t p = 0; p < here.planes; p++)
        for (int64_t y = 0; y < extent; y++)
            for (int64_t k = 0; k < min(here.w, above.w) * here.ch; k++) {
                float b = (float)y / (float)extent;
                float *d = &here.v[(p * here.h + y) * here.w * here.ch + k];
                *d = above.v[(p * above.h + above.h - extent + y) * above.w * above.ch + k] * (1.0f - b) + *d * b;
            }
}

static void blend_right(struct cells left, struct cells here, int64_t extent)
{
    extent = min(extent, min(left.w, here.w));
    for (int64_t r = 0; r < here.planes * here.h; r++)
        for (int64_t x = 0; x < extent; x++)
            for (int64_t c = 0; c < here.ch; c++) {
                float b = (float)x / (float)extent;
                float *d = &here.v[(r * here.w + x) * here.ch + c];
                *d = left.v[(r * left.w + left.w - extent + x) * left.ch + c] * (1.0f - b) + *d * b;
            }
}

void dt_tiles_join(const dt_tiles *t, float *const *out, int64_t planes, int64_t channels, int64_t scale, float *dst)
{
    int64_t W = t->w / scale, H = t->h / scale, extent = (t->tile - t->stride) / scale, keep = t->stride / scale;
    for (int64_t i = 0; i < t->nx * t->ny; i++) {
        dt_tile a = dt_tiles_at(t, i);
        struct cells here = { out[i], planes, a.h / scale, a.w / scale, channels };
        if (i >= t->nx) {
            dt_tile u = dt_tiles_at(t, i - t->nx);
            blend_down((struct cells){ out[i - t->nx], planes, u.h / scale, u.w / scale, channels }, here, extent);
        }
        if (i % t->nx) {
            dt_tile l = dt_tiles_at(t, i - 1);
            blend_right((struct cells){ out[i - 1], planes, l.h / scale, l.w / scale, channels }, here, extent);
        }
        for (int64_t p = 0; p < planes; p++)
            for (int64_t y = 0; y < min(keep, here.h); y++)
                memcpy(dst + ((p * H + a.y / scale + y) * W + a.x / scale) * channels,
                       here.v + (p * here.h + y) * here.w * channels,
                       (size_t)(min(keep, here.w) * channels) * sizeof(float));
    }
}
