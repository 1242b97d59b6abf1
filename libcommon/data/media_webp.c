/* media_webp.c - WebP to RGB with libwebp.  RFC 9649.
 *
 * libwebp decodes still pictures; the first frame of an animation is made into one.  It is asked for all pixels
 * also where few are wanted: with its scaling, or without its smooth chroma, it takes as long, for entropy and
 * transform are what it does, and the result is up to 3 of 255 off Pillow's. */
#include <stdlib.h>
#include <string.h>
#include <webp/decode.h>
#include "base/mem.h"
#include "data/media_int.h"

static void put_le(uint8_t *p, uint32_t v, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = v >> 8 * i;
}

/* The first ANMF chunk of a file and its length, or NULL if it is a still picture. */
static const uint8_t *first_anmf(const uint8_t *d, size_t bytes, uint32_t *len)
{
    for (size_t off = 12; off + 8 <= bytes; ) {
        uint32_t n = dt_le32(d + off + 4);
        if (n > bytes - off - 8)
            return NULL;
        if (!memcmp(d + off, "ANMF", 4) && n >= 16) {
            *len = n;
            return d + off + 8;
        }
        off += 8 + (size_t)n + (n & 1);
    }
    return NULL;
}

static int damaged(VP8StatusCode status, const char *name, dt_err *err)
{
    static const char *const words[] = {
        [VP8_STATUS_INVALID_PARAM] = "wrong size", [VP8_STATUS_BITSTREAM_ERROR] = "its data make no sense",
        [VP8_STATUS_UNSUPPORTED_FEATURE] = "it uses a feature that is not known",
        [VP8_STATUS_SUSPENDED] = "it ends early", [VP8_STATUS_NOT_ENOUGH_DATA] = "it ends early",
    };
    if (status == VP8_STATUS_OUT_OF_MEMORY)
        return dt_err_set(err, DT_ENOMEM, "%s: no memory to decode WebP", name);
    const char *why = status < sizeof words / sizeof *words ? words[status] : NULL;
    return dt_err_set(err, DT_EDATA, "%s: damaged WebP: %s", name, why ? why : "decoding errors");
}

/* A still picture to RGB over white at (x, y) of out, whose rest becomes white. */
static int place(dt_image *out, int x, int y, const uint8_t *data, size_t bytes, const char *name, dt_err *err)
{
    WebPDecoderConfig c;
    uint8_t *rgba = NULL;
    if (!WebPInitDecoderConfig(&c))
        return dt_err_set(err, DT_EFAIL, "libwebp is of another version than its headers");
    VP8StatusCode bad = WebPGetFeatures(data, bytes, &c.input);
    if (bad != VP8_STATUS_OK)
        return damaged(bad, name, err);
    int w = c.input.width, h = c.input.height, ch = c.input.has_alpha ? 4 : 3;
    if (w > out->w - x || h > out->h - y)
        return dt_err_set(err, DT_EDATA, "%s: a frame of %dx%d+%d+%d does not fit %dx%d", name, w, h, x, y, out->w,
                          out->h);
    if (ch == 4 && !(rgba = dt_try_alloc((size_t)w * h * 4)))
        return dt_err_set(err, DT_ENOMEM, "%s: no memory to decode %dx%d", name, w, h);
    if (w < out->w || h < out->h)
        memset(out->rgb, 255, (size_t)out->w * out->h * 3);
    uint8_t *rgb = out->rgb + ((size_t)y * out->w + x) * 3;
    size_t stride = ch == 4 ? (size_t)w * 4 : (size_t)out->w * 3;
    c.output.colorspace = ch == 4 ? MODE_RGBA : MODE_RGB;
    c.output.is_external_memory = 1;
    c.output.u.RGBA = (WebPRGBABuffer){ .rgba = rgba ? rgba : rgb, .stride = stride,
                                        .size = stride * (h - 1) + (size_t)w * ch };
    bad = WebPDecode(data, bytes, &c);
    for (int i = 0; rgba && bad == VP8_STATUS_OK && i < h; i++)
        dt_rgba_over_white(rgb + (size_t)out->w * 3 * i, rgba + stride * i, w);
    WebPFreeDecBuffer(&c.output);
    free(rgba);
    return bad == VP8_STATUS_OK ? 0 : damaged(bad, name, err);
}

/* ANMF payload: x/2, y/2, w-1, h-1, duration (24 bits each), flags, then the chunks of a still picture. */
static int decode_anmf(dt_image *out, const uint8_t *a, uint32_t len, const char *name, dt_err *err)
{
    uint32_t body = len - 16, n = 12 + 18 + body;
    uint8_t *still = dt_try_alloc(n);
    if (!still)
        return dt_err_set(err, DT_ENOMEM, "%s: no memory to decode %u bytes", name, len);
    memcpy(still, "RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0", 24);
    put_le(still + 4, n - 8, 4);
    memcpy(still + 24, a + 6, 6);
    memcpy(still + 30, a + 16, body);
    int rc = place(out, 2 * dt_le24(a), 2 * dt_le24(a + 3), still, n, name, err);
    free(still);
    return rc;
}

int dt_webp_decode(dt_image *out, const uint8_t *data, size_t bytes, const char *name, dt_err *err)
{
    uint32_t len = 0;
    const uint8_t *anmf = first_anmf(data, bytes, &len);
    return anmf ? decode_anmf(out, anmf, len, name, err) : place(out, 0, 0, data, bytes, name, err);
}
