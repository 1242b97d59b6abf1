/* media_int.h - what the media_*.c files share. */
#ifndef DT_DATA_MEDIA_INT_H
#define DT_DATA_MEDIA_INT_H
#include <stdbool.h>
#include "data/media.h"

/* Decoders of whole files in memory.  out has been allocated with the size that the header gives
 * before rotation; they fill it or fail. */
int dt_jpeg_decode(dt_image *out, const uint8_t *data, size_t bytes, const char *name, dt_err *err);
int dt_png_decode(dt_image *out, const uint8_t *data, size_t bytes, const char *name, dt_err *err);
/* False: it is not for this one, whatever the reason; out's pixels are undefined. */
bool dt_png_decode_fast(dt_image *out, const uint8_t *data, size_t bytes);
int dt_webp_decode(dt_image *out, const uint8_t *data, size_t bytes, const char *name, dt_err *err);
int dt_av_decode(dt_image *out, enum dt_image_format fmt, const uint8_t *data, size_t bytes, const char *name,
                 dt_err *err);

static inline uint32_t dt_le16(const uint8_t *p) { return p[1] << 8 | p[0]; }
static inline uint32_t dt_le24(const uint8_t *p) { return p[2] << 16 | dt_le16(p); }
static inline uint32_t dt_le32(const uint8_t *p) { return (uint32_t)p[3] << 24 | dt_le24(p); }
static inline uint32_t dt_be16(const uint8_t *p) { return p[0] << 8 | p[1]; }
static inline uint32_t dt_be32(const uint8_t *p) { return dt_be16(p) << 16 | dt_be16(p + 2); }

/* One row of RGBA laid over white. */
void dt_rgba_over_white(uint8_t *rgb, const uint8_t *rgba, int w);

#endif
