/* media_av.c - GIF, TIFF and BMP to RGB with FFmpeg's decoders.  A file of these is one packet. */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <libavcodec/avcodec.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include "base/mem.h"
#include "data/media_int.h"

static void quiet_once(void) { av_log_set_level(AV_LOG_QUIET); }    /* our line names the file; theirs do not */

/* Length of a GIF up to the end of its first picture, or 0 if that is not all there: FFmpeg decodes what it
 * finds and leaves the rest of the picture empty. */
static size_t gif_first_frame(const uint8_t *d, size_t bytes)
{
    size_t at = 13;
    if (bytes < at)
        return 0;
    at += d[10] & 0x80 ? (size_t)6 << (d[10] & 7) : 0;          /* colour table: 3 * 2^(n+1) bytes */
    while (at + 11 < bytes && (d[at] == 0x21 || d[at] == 0x2c)) {
        bool picture = d[at] == 0x2c;
        if (picture)
            at += 11 + (d[at + 9] & 0x80 ? (size_t)6 << (d[at + 9] & 7) : 0);
        else
            at += 2;
        while (at < bytes && d[at])                             /* sub-blocks, each with its length */
            at += 1 + d[at];
        if (at++ >= bytes)
            return 0;
        if (picture)
            return at;
    }
    return 0;
}

/* Leaves only those tags of a TIFF's first directory that describe the samples: told to be strict about damage,
 * FFmpeg is strict about tags that it does not know as well. */
static void tiff_prune(uint8_t *d, size_t bytes)
{
    static const uint16_t keep[] = {
        256, 257, 258, 259, 262, 266, 273, 277, 278, 279,   /* size, bits, compression, colours, strips */
        284, 292, 293, 317, 320, 322, 323, 324, 325,        /* planes, fax options, predictor, palette, tiles */
        529, 530, 532,                                      /* YCbCr */
    };
    bool big = d[0] == 'M';
    size_t at = big ? dt_be32(d + 4) : dt_le32(d + 4), n = 0;
    if (bytes < 10 || at > bytes - 2)
        return;
    size_t have = big ? dt_be16(d + at) : dt_le16(d + at);
    if (have * 12 > bytes - at - 2)
        return;
    for (size_t i = 0; i < have; i++) {
        const uint8_t *e = d + at + 2 + 12 * i;
        uint32_t tag = big ? dt_be16(e) : dt_le16(e);
        for (size_t k = 0; k < sizeof keep / sizeof *keep; k++)
            if (tag == keep[k])
                memmove(d + at + 2 + 12 * n++, e, 12);
    }
    d[at + big] = n;            /* fewer than 256 */
    d[at + !big] = 0;
    if (at + 2 + 12 * n + 4 <= bytes)
        memset(d + at + 2 + 12 * n, 0, 4);      /* no next directory */
}

/* Decodes one packet to a frame no larger than `room`; caller frees the frame. */
static int to_frame(AVFrame **frame, enum AVCodecID id, const uint8_t *data, size_t bytes, const dt_image *room,
                    const char *name, dt_err *err)
{
    const AVCodec *codec = avcodec_find_decoder(id);
    AVCodecContext *c = codec ? avcodec_alloc_context3(codec) : NULL;
    AVPacket *pkt = av_packet_alloc();
    AVFrame *f = av_frame_alloc();
    int rc = -1;

    if (!codec) {
        rc = dt_err_set(err, DT_EDATA, "%s: this FFmpeg has no decoder for %s", name, avcodec_get_name(id));
        goto out;
    }
    if (!c || !pkt || !f || bytes > INT32_MAX || av_new_packet(pkt, bytes) < 0) {
        rc = dt_err_set(err, DT_ENOMEM, "%s: no memory to decode %zu bytes", name, bytes);
        goto out;
    }
    memcpy(pkt->data, data, bytes);
    if (id == AV_CODEC_ID_TIFF)
        tiff_prune(pkt->data, bytes);
    pkt->flags |= AV_PKT_FLAG_KEY;
    c->thread_count = 1;
    c->max_pixels = (room->w + 64ll) * (room->h + 64ll);     /* FFmpeg counts its own alignment */
    c->err_recognition = AV_EF_EXPLODE;         /* or damaged parts would be left black */
    int bad = avcodec_open2(c, codec, NULL);
    if (bad >= 0 && (bad = avcodec_send_packet(c, pkt)) >= 0) {
        bad = avcodec_receive_frame(c, f);
        if (bad == AVERROR(EAGAIN) && avcodec_send_packet(c, NULL) >= 0)
            bad = avcodec_receive_frame(c, f);
    }
    if (bad < 0 || f->decode_error_flags) {
        rc = dt_err_set(err, bad == AVERROR(ENOMEM) ? DT_ENOMEM : DT_EDATA, "%s: damaged %s: %s", name,
                        codec->long_name, bad < 0 ? av_err2str(bad) : "decoding errors");
        goto out;
    }
    *frame = f;
    f = NULL;
    rc = 0;
out:
    av_frame_free(&f);
    av_packet_free(&pkt);
    avcodec_free_context(&c);
    return rc;
}

/* Row y of a palette picture: an entry is 0xAARRGGBB in native byte order. */
static void unpack_palette(uint8_t *rgba, const AVFrame *f, int y)
{
    const uint32_t *entry = (const uint32_t *)f->data[1];
    for (int x = 0; x < f->width; x++, rgba += 4) {
        uint32_t v = entry[f->data[0][(ptrdiff_t)y * f->linesize[0] + x]];
        rgba[0] = v >> 16;
        rgba[1] = v >> 8;
        rgba[2] = v;
        rgba[3] = v >> 24;
    }
}

/* Row y of an RGB or grey picture of any depth, component by component, scaled to 8 bits exactly. */
static void unpack(uint8_t *rgba, uint16_t *line, const AVFrame *f, const AVPixFmtDescriptor *d, int y)
{
    bool grey = d->nb_components < 3;
    int flip = f->format == AV_PIX_FMT_MONOWHITE ? 255 : 0;

    for (int ch = 0; ch < 4; ch++) {
        uint8_t *p = rgba + ch;
        int c = !grey ? ch : ch == 3, max = (1 << d->comp[c].depth) - 1;    /* grey may come with alpha */
        if (ch == 3 && !(d->flags & AV_PIX_FMT_FLAG_ALPHA)) {
            for (int x = 0; x < f->width; x++)
                p[4 * x] = 255;
            continue;
        }
        av_read_image_line2(line, (const uint8_t **)f->data, f->linesize, d, 0, y, c, f->width, 0, 2);
        for (int x = 0; x < f->width; x++)
            p[4 * x] = ((line[x] * 255 + max / 2) / max) ^ (ch < 3 ? flip : 0);
    }
}

/* YUV pictures (in TIFF) go through swscale, at full chroma precision. */
static int convert(uint8_t *rgba, const AVFrame *f)
{
    enum AVPixelFormat fmt = f->format;
    int full = f->color_range == AVCOL_RANGE_JPEG;
    switch (fmt) {              /* the J formats say "full range" in a way that swscale warns about */
    case AV_PIX_FMT_YUVJ420P: fmt = AV_PIX_FMT_YUV420P; full = 1; break;
    case AV_PIX_FMT_YUVJ422P: fmt = AV_PIX_FMT_YUV422P; full = 1; break;
    case AV_PIX_FMT_YUVJ444P: fmt = AV_PIX_FMT_YUV444P; full = 1; break;
    case AV_PIX_FMT_YUVJ440P: fmt = AV_PIX_FMT_YUV440P; full = 1; break;
    default: break;
    }
    struct SwsContext *s = sws_getContext(f->width, f->height, fmt, f->width, f->height, AV_PIX_FMT_RGBA,
                                          SWS_BICUBIC | SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND | SWS_BITEXACT,
                                          NULL, NULL, NULL);
    if (!s)
        return DT_ENOMEM;
    const int *bt601 = sws_getCoefficients(SWS_CS_ITU601);
    sws_setColorspaceDetails(s, bt601, full, bt601, 1, 0, 1 << 16, 1 << 16);
    uint8_t *dst[4] = { rgba };
    int stride[4] = { f->width * 4 };
    int rows = sws_scale(s, (const uint8_t *const *)f->data, f->linesize, 0, f->height, dst, stride);
    sws_freeContext(s);
    return rows == f->height ? 0 : DT_EDATA;
}

/* Frame to RGB over white; out's rest becomes white. */
static int place(dt_image *out, const AVFrame *f, const char *name, dt_err *err)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f->format);
    if (!d || f->width > out->w || f->height > out->h)
        return dt_err_set(err, DT_EDATA, "%s: a frame of %dx%d does not fit %dx%d", name, f->width, f->height, out->w,
                          out->h);
    bool palette = d->flags & AV_PIX_FMT_FLAG_PAL, yuv = !palette && !(d->flags & AV_PIX_FMT_FLAG_RGB) &&
                   d->nb_components >= 3;
    uint8_t *rgba = dt_try_alloc((size_t)f->width * (yuv ? f->height : 1) * 4);    /* only swscale wants all of it */
    uint16_t *line = dt_try_alloc(f->width * sizeof *line);
    int rc = 0;
    if (!rgba || !line)
        rc = dt_err_set(err, DT_ENOMEM, "%s: no memory to decode %dx%d", name, f->width, f->height);
    else if (yuv && (rc = convert(rgba, f)) < 0)
        dt_err_set(err, rc, "%s: cannot convert %s to RGB", name, d->name);
    if (rc == 0 && (f->width < out->w || f->height < out->h))
        memset(out->rgb, 255, (size_t)out->w * out->h * 3);
    for (int i = 0; rc == 0 && i < f->height; i++) {
        if (palette)
            unpack_palette(rgba, f, i);
        else if (!yuv)
            unpack(rgba, line, f, d, i);
        dt_rgba_over_white(out->rgb + (size_t)i * out->w * 3, rgba + (yuv ? (size_t)i * f->width * 4 : 0), f->width);
    }
    free(rgba);
    free(line);
    return rc;
}

/* A BITMAPINFOHEADER has no alpha: the fourth byte of its pixels means nothing, unless BI_ALPHABITFIELDS says so. */
static bool bmp_is_opaque(const uint8_t *d, size_t bytes, enum dt_image_format fmt)
{
    return fmt == DT_IMAGE_BMP && bytes >= 34 && dt_le32(d + 14) <= 40 && dt_le32(d + 30) != 6;
}

int dt_av_decode(dt_image *out, enum dt_image_format fmt, const uint8_t *data, size_t bytes, const char *name,
                 dt_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static const enum AVCodecID id[] = {
        [DT_IMAGE_GIF] = AV_CODEC_ID_GIF, [DT_IMAGE_TIFF] = AV_CODEC_ID_TIFF, [DT_IMAGE_BMP] = AV_CODEC_ID_BMP,
    };
    AVFrame *f = NULL;

    pthread_once(&once, quiet_once);
    if (fmt == DT_IMAGE_GIF && !(bytes = gif_first_frame(data, bytes)))
        return dt_err_set(err, DT_EDATA, "%s: damaged GIF: it ends early", name);
    int rc = to_frame(&f, id[fmt], data, bytes, out, name, err);
    if (rc == 0 && (f->width != out->w || f->height != out->h))
        rc = dt_err_set(err, DT_EDATA, "%s: header says %dx%d, the picture is %dx%d", name, out->w, out->h,
                        f->width, f->height);
    if (rc == 0 && f->format == AV_PIX_FMT_BGRA && bmp_is_opaque(data, bytes, fmt))
        f->format = AV_PIX_FMT_BGR0;
    if (rc == 0)
        rc = place(out, f, name, err);
    av_frame_free(&f);
    return rc;
}
