/* media_probe.c - size, orientation and format of a picture from its header bytes.
 *
 * JPEG: ITU-T T.81 annex B.  PNG: W3C PNG 3rd ed.  WebP: RFC 9649.  TIFF 6.0; EXIF is a TIFF file inside
 * an APP1 segment, an eXIf chunk or an EXIF chunk.  GIF89a.  BMP: BITMAPCOREHEADER and later. */
#include <stdbool.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "data/media.h"
#include "data/media_int.h"

#define WINDOW 4096
#define MAX_SEGMENTS 65536      /* markers or chunks looked at: a file of empty segments must end */

struct src {
    const uint8_t *mem;         /* whole file, or NULL: then fd */
    int      fd;
    int64_t  base, bytes;       /* of fd: the picture is [base, base + bytes) */
    int64_t  at, have;          /* window [at, at + have) is in buf */
    uint8_t  buf[WINDOW];
};

/* n <= WINDOW bytes at off, or NULL when they are not all there. */
static const uint8_t *peek(struct src *s, int64_t off, int n)
{
    if (off < 0 || off > s->bytes - n)
        return NULL;
    if (s->mem)
        return s->mem + off;
    if (off < s->at || off + n > s->at + s->have) {
        ssize_t got = 0;
        s->at = off;
        s->have = 0;
        while (s->have < n && (got = pread(s->fd, s->buf + s->have, WINDOW - s->have, s->base + off + s->have)) > 0)
            s->have += got;
        if (s->have < n)
            return NULL;
    }
    return s->buf + (off - s->at);
}

static int64_t side(uint32_t v) { return v > INT32_MAX ? INT32_MAX : v; }

struct ifd { int64_t w, h, compression, format; int orientation; };     /* 0: absent */

/* First directory of the TIFF structure at `base`. */
static bool tiff_ifd(struct src *s, int64_t base, struct ifd *d)
{
    const uint8_t *p = peek(s, base, 8);
    if (!p || (memcmp(p, "II*\0", 4) && memcmp(p, "MM\0*", 4)))
        return false;
    bool big = p[0] == 'M';
    int64_t at = base + (big ? dt_be32(p + 4) : dt_le32(p + 4));
    if (!(p = peek(s, at, 2)))
        return false;
    int n = big ? dt_be16(p) : dt_le16(p);
    for (int i = 0; i < n; i++) {
        if (!(p = peek(s, at + 2 + 12ll * i, 12)))
            return false;
        uint32_t tag = big ? dt_be16(p) : dt_le16(p), type = big ? dt_be16(p + 2) : dt_le16(p + 2);
        uint32_t count = big ? dt_be32(p + 4) : dt_le32(p + 4), v = big ? dt_be32(p + 8) : dt_le32(p + 8);
        if (type == 3) {                        /* SHORT: here if at most two, else there */
            p = count > 2 ? peek(s, base + v, 2) : p + 8;
            v = !p ? 0 : big ? dt_be16(p) : dt_le16(p);
        }
        switch (type == 3 || type == 4 ? tag : 0) {
        case 256: d->w = side(v); break;
        case 257: d->h = side(v); break;
        case 259: d->compression = v; break;
        case 274: d->orientation = v <= 8 ? v : 0; break;
        case 339: d->format = v; break;
        }
    }
    return true;
}

/* Orientation in the EXIF data at `base`, 1 if there is none. */
static int exif(struct src *s, int64_t base)
{
    struct ifd d = { 0 };
    tiff_ifd(s, base, &d);
    return d.orientation ? d.orientation : 1;
}

static const char *tiff(struct src *s, int64_t wh[2], int *orientation)
{
    static const uint16_t known[] = { 0, 1, 2, 3, 4, 5, 8, 32773, 32946 };  /* raw, fax, LZW, deflate, packbits */
    struct ifd d = { 0 };
    bool ok = false;
    if (!tiff_ifd(s, 0, &d))
        return "damaged TIFF header";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        ok |= d.compression == known[i];
    if (!ok)
        return d.compression == 6 || d.compression == 7 ? "TIFF with JPEG inside is not read"
                                                        : "TIFF with a compression that is not read";
    if (d.format > 1)
        return "TIFF of numbers that are no unsigned integers";
    wh[0] = d.w;
    wh[1] = d.h;
    *orientation = d.orientation ? d.orientation : 1;
    return NULL;
}

static const char *jpeg(struct src *s, int64_t wh[2], int *orientation)
{
    int64_t off = 2;
    for (int i = 0; i < MAX_SEGMENTS; i++) {
        const uint8_t *p = peek(s, off, 4);
        if (!p)
            return "damaged JPEG header";
        uint8_t m = p[1];
        if (p[0] != 0xff) {                     /* libjpeg skips stray bytes too */
            off++;
            continue;
        }
        if (m == 0xff || m == 0x00 || m == 0x01 || (m >= 0xd0 && m <= 0xd8)) {     /* fill byte, or no length */
            off += m == 0xff ? 1 : 2;
            continue;
        }
        if (m == 0xd9 || m == 0xda)
            return "JPEG without a frame header";
        int64_t len = dt_be16(p + 2);
        if (len < 2)
            return "damaged JPEG header";
        if (m >= 0xc0 && m <= 0xcf && m != 0xc4 && m != 0xc8 && m != 0xcc) {
            if (!(p = peek(s, off, 9)))
                return "damaged JPEG header";
            wh[0] = dt_be16(p + 7);
            wh[1] = dt_be16(p + 5);
            return NULL;
        }
        if (m == 0xe1 && len >= 16 && (p = peek(s, off + 4, 6)) && !memcmp(p, "Exif\0\0", 6))
            *orientation = exif(s, off + 10);
        off += 2 + len;
    }
    return "damaged JPEG header";
}

static const char *png(struct src *s, int64_t wh[2], int *orientation)
{
    const uint8_t *p = peek(s, 8, 16);
    if (!p || memcmp(p + 4, "IHDR", 4))
        return "PNG without IHDR";
    wh[0] = side(dt_be32(p + 8));
    wh[1] = side(dt_be32(p + 12));
    int64_t off = 8;
    for (int i = 0; i < MAX_SEGMENTS && (p = peek(s, off, 8)); i++) {
        if (!memcmp(p + 4, "IDAT", 4) || !memcmp(p + 4, "IEND", 4))
            break;
        int64_t len = dt_be32(p);
        if (!memcmp(p + 4, "eXIf", 4))
            *orientation = exif(s, off + 8);
        off += 12 + len;
    }
    return NULL;
}

static const char *webp(struct src *s, int64_t wh[2], int *orientation)
{
    const uint8_t *p = peek(s, 12, 18);
    if (!p)
        return "damaged WebP header";
    if (!memcmp(p, "VP8 ", 4)) {
        if (memcmp(p + 11, "\x9d\x01\x2a", 3))
            return "damaged WebP header";
        wh[0] = dt_le16(p + 14) & 0x3fff;
        wh[1] = dt_le16(p + 16) & 0x3fff;
        return NULL;
    }
    if (!memcmp(p, "VP8L", 4)) {
        uint32_t v = dt_le32(p + 9);
        wh[0] = (v & 0x3fff) + 1;
        wh[1] = (v >> 14 & 0x3fff) + 1;
        return p[8] == 0x2f ? NULL : "damaged WebP header";
    }
    if (memcmp(p, "VP8X", 4))
        return "damaged WebP header";
    wh[0] = dt_le24(p + 12) + 1;
    wh[1] = dt_le24(p + 15) + 1;
    if (!(p[8] & 0x08))             /* no EXIF chunk */
        return NULL;
    int64_t off = 12;
    for (int i = 0; i < MAX_SEGMENTS && (p = peek(s, off, 8)); i++) {
        int64_t len = dt_le32(p + 4);
        if (!memcmp(p, "EXIF", 4)) {
            /* Some writers keep JPEG's prefix inside the chunk. */
            const uint8_t *q = peek(s, off + 8, 6);
            *orientation = exif(s, off + 8 + (q && !memcmp(q, "Exif\0\0", 6) ? 6 : 0));
            break;
        }
        off += 8 + len + (len & 1);
    }
    return NULL;
}

static const char *bmp(struct src *s, int64_t wh[2])
{
    const uint8_t *p = peek(s, 14, 12);
    if (!p)
        return "damaged BMP header";
    if (dt_le32(p) == 12) {
        wh[0] = dt_le16(p + 4);
        wh[1] = dt_le16(p + 6);
        return NULL;
    }
    int64_t h = (int32_t)dt_le32(p + 8);
    wh[0] = side(dt_le32(p + 4));
    wh[1] = h < 0 ? -h : h;         /* negative: rows from the top */
    return NULL;
}

static const char *parse(struct src *s, dt_image_info *info, int64_t wh[2])
{
    const uint8_t *p = peek(s, 0, 12);
    if (!p)
        return s->bytes ? "too short to be a picture" : "empty file";
    if (p[0] == 0xff && p[1] == 0xd8 && p[2] == 0xff) {
        info->format = DT_IMAGE_JPEG;
        return jpeg(s, wh, &info->orientation);
    }
    if (!memcmp(p, "\x89PNG\r\n\x1a\n", 8)) {
        info->format = DT_IMAGE_PNG;
        return png(s, wh, &info->orientation);
    }
    if (!memcmp(p, "RIFF", 4) && !memcmp(p + 8, "WEBP", 4)) {
        info->format = DT_IMAGE_WEBP;
        return webp(s, wh, &info->orientation);
    }
    if (!memcmp(p, "GIF87a", 6) || !memcmp(p, "GIF89a", 6)) {
        info->format = DT_IMAGE_GIF;
        wh[0] = dt_le16(p + 6);
        wh[1] = dt_le16(p + 8);
        return NULL;
    }
    if (!memcmp(p, "II*\0", 4) || !memcmp(p, "MM\0*", 4)) {
        info->format = DT_IMAGE_TIFF;
        return tiff(s, wh, &info->orientation);
    }
    if (!memcmp(p, "BM", 2)) {
        info->format = DT_IMAGE_BMP;
        return bmp(s, wh);
    }
    return "not a picture of a known kind (JPEG, PNG, WebP, GIF, TIFF, BMP)";
}

static int probe(struct src *s, dt_image_info *info, const char *name,
                 const struct dt_image_limits *lim, dt_err *err)
{
    dt_image_info r = { .orientation = 1, .file_bytes = s->bytes };
    int64_t wh[2] = { 0, 0 };

    lim = lim ? lim : dt_image_limits();
    const char *wrong = parse(s, &r, wh);
    if (wrong)
        return dt_err_set(err, DT_EDATA, "%s: %s", name, wrong);
    if (wh[0] < 1 || wh[1] < 1)
        return dt_err_set(err, DT_EDATA, "%s: header gives a size of %lldx%lld", name,
                          (long long)wh[0], (long long)wh[1]);
    if (wh[0] > lim->max_side_px || wh[1] > lim->max_side_px || wh[0] * wh[1] > lim->max_px)
        return dt_err_set(err, DT_EDATA, "%s: %lldx%lld is beyond the limit of %d px a side and %lld px",
                          name, (long long)wh[0], (long long)wh[1], lim->max_side_px, (long long)lim->max_px);
    bool turned = r.orientation >= 5;
    r.w = wh[turned];
    r.h = wh[!turned];
    *info = r;
    return 0;
}

int dt_image_probe_mem(dt_image_info *info, const void *data, size_t bytes, const char *name,
                       const struct dt_image_limits *lim, dt_err *err)
{
    static const uint8_t nothing[1];
    struct src s = { .mem = data ? data : nothing, .fd = -1, .bytes = data ? (int64_t)bytes : 0 };
    return probe(&s, info, name, lim, err);
}

int dt_image_probe(dt_image_info *info, const char *path, const struct dt_image_limits *lim, dt_err *err)
{
    int64_t bytes = 0;
    int fd = dt_open_regular(&bytes, path, err);
    if (fd < 0)
        return fd;
    struct src s = { .fd = fd, .bytes = bytes };
    int rc = probe(&s, info, path, lim, err);
    close(fd);
    return rc;
}

int dt_image_probe_part(dt_image_info *info, const char *path, int64_t off, int64_t bytes, const char *name,
                        const struct dt_image_limits *lim, dt_err *err)
{
    int64_t all = 0;
    int fd = dt_open_regular(&all, path, err);
    if (fd < 0)
        return fd;
    struct src s = { .fd = fd, .base = off, .bytes = bytes };
    int rc = off < 0 || bytes < 0 || off > all - bytes ? dt_err_set(err, DT_EDATA, "%s: reaches beyond the end of %s",
                                                                    name, path)
                                                       : probe(&s, info, name, lim, err);
    close(fd);
    return rc;
}
