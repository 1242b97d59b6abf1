/* media_decode.c - a picture file to upright RGB: header, limits, decoder, rotation. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/mem.h"
#include "data/media_int.h"

int dt_image_alloc(dt_image *im, int w, int h, dt_err *err)
{
    uint8_t *p = dt_try_alloc((size_t)w * h * 3);
    if (!p)
        return dt_err_set(err, DT_ENOMEM, "no memory for a picture of %dx%d", w, h);
    *im = (dt_image){ .w = w, .h = h, .rgb = p };
    return 0;
}

void dt_image_release(dt_image *im)
{
    free(im->rgb);
    *im = (dt_image){ 0 };
}

/* EXIF orientation o of a w x h picture: where output pixel (x, y) comes from is x0 + x*dx + y*dy, in pixels
 * of the input.  2 mirrored, 3 by 180, 4 upside down, 5 transposed, 6 needs 90 clockwise, 7 transverse, 8 needs 90
 * counter-clockwise. */
static int upright(dt_image *im, int o, dt_err *err)
{
    int64_t w = im->w, h = im->h, last = w * h - 1;
    const int64_t from[9][3] = {        /* x0, dx, dy */
        [2] = { w - 1, -1, w },         [3] = { last, -1, -w },         [4] = { w * (h - 1), 1, -w },
        [5] = { 0, w, 1 },              [6] = { w * (h - 1), -w, 1 },   [7] = { last, -w, -1 },
        [8] = { w - 1, w, -1 },
    };
    dt_image r;

    if (o < 2 || o > 8)
        return 0;
    int rc = o < 5 ? dt_image_alloc(&r, w, h, err) : dt_image_alloc(&r, h, w, err);
    if (rc < 0)
        return rc;
    for (int64_t y = 0; y < r.h; y++)
        for (int64_t x = 0; x < r.w; x++)
            memcpy(r.rgb + (y * r.w + x) * 3, im->rgb + (from[o][0] + x * from[o][1] + y * from[o][2]) * 3, 3);
    dt_image_release(im);
    *im = r;
    return 0;
}

int dt_image_decode(dt_image *out, const void *data, size_t bytes, const char *name,
                    const struct dt_image_limits *lim, dt_err *err)
{
    dt_image_info info;
    dt_image im = { 0 };
    int rc = dt_image_probe_mem(&info, data, bytes, name, lim, err);
    if (rc < 0)
        return rc;
    int turned = info.orientation >= 5;
    if ((rc = dt_image_alloc(&im, turned ? info.h : info.w, turned ? info.w : info.h, err)) < 0) {
        dt_err_prefix(err, "%s", name);
        return rc;
    }
    switch (info.format) {
    case DT_IMAGE_JPEG: rc = dt_jpeg_decode(&im, data, bytes, name, err); break;
    case DT_IMAGE_PNG:  rc = dt_png_decode(&im, data, bytes, name, err); break;
    case DT_IMAGE_WEBP: rc = dt_webp_decode(&im, data, bytes, name, err); break;
    default:            rc = dt_av_decode(&im, info.format, data, bytes, name, err); break;
    }
    if (rc < 0 || (rc = upright(&im, info.orientation, err)) < 0) {
        dt_image_release(&im);
        return rc;
    }
    *out = im;
    return 0;
}

int dt_image_read(dt_image *out, const char *path, const struct dt_image_limits *lim, dt_err *err)
{
    size_t bytes = 0;
    char *data = NULL;
    int rc = dt_file_read_regular(&data, &bytes, path, DT_IMAGE_MAX_BYTES, err);
    if (rc == 0)
        rc = dt_image_decode(out, data, bytes, path, lim, err);
    free(data);
    return rc;
}

/* --- several at once --- */

void dt_image_gate_init(dt_image_gate *g)
{
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->moved, NULL);
    g->left = DT_IMAGE_GATE_BYTES;
}

void dt_image_gate_release(dt_image_gate *g)
{
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->moved);
}

int64_t dt_image_gate_enter(dt_image_gate *g, int64_t px, int64_t file_bytes)
{
    int64_t want = px * DT_IMAGE_PEAK_BYTES + 2 * file_bytes;
    want = want > DT_IMAGE_GATE_BYTES ? DT_IMAGE_GATE_BYTES : want;    /* the largest goes alone */
    pthread_mutex_lock(&g->lock);
    while (g->left < want)
        pthread_cond_wait(&g->moved, &g->lock);
    g->left -= want;
    pthread_mutex_unlock(&g->lock);
    return want;
}

void dt_image_gate_leave(dt_image_gate *g, int64_t entered)
{
    pthread_mutex_lock(&g->lock);
    g->left += entered;
    pthread_cond_broadcast(&g->moved);
    pthread_mutex_unlock(&g->lock);
}
