/* media.h - pictures: header probing, decoding to RGB, resizing, PNG writing.
 *
 * Formats: JPEG, PNG, WebP, GIF, TIFF, BMP, known by their first bytes, never by the file name.  EXIF
 * orientation is honoured everywhere: a size is always the size after rotation.  Transparency is laid
 * over white, CMYK and 16-bit are brought to 8-bit RGB, animations give their first frame, colour
 * profiles are ignored (as PIL does).  A picture that is truncated or damaged is DT_EDATA, never grey.
 * Everything here may be called by any number of threads at once. */
#ifndef DT_DATA_MEDIA_H
#define DT_DATA_MEDIA_H
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "base/err.h"

enum dt_image_format {
    DT_IMAGE_JPEG = 1, DT_IMAGE_PNG, DT_IMAGE_WEBP, DT_IMAGE_GIF, DT_IMAGE_TIFF, DT_IMAGE_BMP,
};

typedef struct dt_image {
    int      w, h;      /* px */
    uint8_t *rgb;       /* [h, w, 3], rows without padding; owned */
} dt_image;

typedef struct dt_image_info {
    int w, h;           /* px, after rotation */
    int orientation;    /* EXIF: 1 upright … 8 */
    enum dt_image_format format;
    int64_t file_bytes;
} dt_image_info;

struct dt_image_limits {
    int     max_side_px;    /* default 65536 */
    int64_t max_px;         /* w * h, default 2^28; both are checked before anything is allocated */
};
#define dt_image_limits(...) (&(struct dt_image_limits){ \
    .max_side_px = 1 << 16, .max_px = 1ll << 28, __VA_ARGS__ })

/* --- reading.  lim = NULL means the defaults; `name` stands in messages. --- */

/* Reads header bytes only.  Not a regular file, not a picture, out of limits: DT_EDATA. */
int  dt_image_probe(dt_image_info *info, const char *path, const struct dt_image_limits *lim, dt_err *err);
int  dt_image_probe_mem(dt_image_info *info, const void *data, size_t bytes, const char *name,
                        const struct dt_image_limits *lim, dt_err *err);

/* The same for a picture that is [off, off + bytes) of a file; `name` stands in messages. */
int  dt_image_probe_part(dt_image_info *info, const char *path, int64_t off, int64_t bytes, const char *name,
                         const struct dt_image_limits *lim, dt_err *err);

/* Decodes.  *out is overwritten (not released first) and set only on success; DT_ENOMEM if it does
 * not fit.  dt_image_decode is for callers that hash the file's bytes as well. */
int  dt_image_decode(dt_image *out, const void *data, size_t bytes, const char *name,
                     const struct dt_image_limits *lim, dt_err *err);
int  dt_image_read(dt_image *out, const char *path, const struct dt_image_limits *lim, dt_err *err);

/* Threads that decode at once share this much memory: each waits until there is room for its picture.  A decoder holds
 * at most DT_IMAGE_PEAK_BYTES for a pixel (TIFF of 16-bit RGBA, progressive CMYK JPEG; 3 for a baseline JPEG and a PNG
 * without alpha) and the file, FFmpeg's twice; so all of them stay below the gate's bytes, the size of the largest
 * picture that the limits let in. */
#define DT_IMAGE_MAX_BYTES ((size_t)2 << 30)        /* of a file */
#define DT_IMAGE_PEAK_BYTES 12
#define DT_IMAGE_GATE_BYTES ((int64_t)DT_IMAGE_PEAK_BYTES << 28)
typedef struct dt_image_gate {
    pthread_mutex_t lock;
    pthread_cond_t  moved;
    int64_t         left;       /* bytes */
} dt_image_gate;
void    dt_image_gate_init(dt_image_gate *g);
void    dt_image_gate_release(dt_image_gate *g);
int64_t dt_image_gate_enter(dt_image_gate *g, int64_t px, int64_t file_bytes);     /* returns what leave takes */
void    dt_image_gate_leave(dt_image_gate *g, int64_t entered);

int  dt_image_alloc(dt_image *im, int w, int h, dt_err *err);   /* contents undefined */
void dt_image_release(dt_image *im);                            /* leaves it empty; empty is fine */

/* --- transforms --- */

/* out = the window (x, y, w, h) of `in` resized to rw x rh.  Antialiased bilinear: a triangle filter whose
 * support grows with the reduction, horizontal pass first, 8-bit between passes, 22-bit coefficients:
 * the same bytes as PIL's Image.resize(BILINEAR).  Only the window is computed. */
int  dt_image_resize(dt_image *out, const dt_image *in, int rw, int rh, int x, int y, int w, int h,
                     dt_err *err);
void dt_image_flip(dt_image *im);                               /* left-right, in place */

/* --- writing --- */

typedef struct dt_png_text { const char *key, *value; } dt_png_text;    /* key: 1-79 Latin letters */

/* Writes a PNG whole or not at all ("-" is stdout).  Text becomes tEXt, or iTXt when it is not ASCII. */
int  dt_png_write(const char *path, const dt_image *im, const dt_png_text *text, int n_text, dt_err *err);
int  dt_png_put(FILE *f, const dt_image *im, const dt_png_text *text, int n_text, dt_err *err);

#endif
