/* media_decode.c - a picture file to upright RGB: header, limits, decoder, rotation. */
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <unistd.h>
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
    int64_t bytes = 0, have = 0;
    ssize_t got = 1;
    int fd = dt_image_open_fd(path, &bytes, err);
    if (fd < 0)
        return fd;
    uint8_t *data = dt_try_alloc(bytes + 1);
    while (data && have < bytes && (got = read(fd, data + have, bytes - have)) > 0)
        have += got;
    int rc = !data ? dt_err_set(err, DT_ENOMEM, "%s: no memory for %lld bytes", path, (long long)bytes)
           : got < 0 ? dt_err_sys(err, DT_EDATA, "%s: cannot read", path)
           : dt_image_decode(out, data, have, path, lim, err);
    free(data);
    close(fd);
    return rc;
}
