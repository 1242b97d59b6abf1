/* dtype.h - element types and conversion. */
#ifndef DT_TENSOR_DTYPE_H
#define DT_TENSOR_DTYPE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DT_MAX_DIMS 6

typedef enum dt_dtype {
    DT_F32, DT_BF16, DT_F16, DT_F64, DT_I64, DT_I32, DT_I16, DT_I8, DT_U8, DT_BOOL, DT_NDTYPES
} dt_dtype;

typedef struct dt_dims {            /* a shape, row-major, outermost first */
    int     nd;
    int64_t d[DT_MAX_DIMS];
} dt_dims;
#define DT_DIMS(...) ((dt_dims){ (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), { __VA_ARGS__ } })

int64_t     dt_numel(dt_dims s);
static inline bool dt_dims_same(dt_dims a, dt_dims b)
{
    return a.nd == b.nd && !memcmp(a.d, b.d, (size_t)a.nd * sizeof(a.d[0]));
}
void        dt_dims_text(dt_dims d, char *buf, size_t bytes);      /* "[4096, 3072]", cut off where buf ends */
size_t      dt_dtype_size(dt_dtype t);              /* bytes */
const char *dt_dtype_name(dt_dtype t);              /* safetensors': "F32", "BF16", ... */
int         dt_dtype_parse(const char *name);       /* -1 if unknown */

/* Converts n elements; floats round to nearest even, integers convert to floats and back by value.
 * dst and src must not overlap unless they are equal and of the same size. */
void dt_convert(void *dst, dt_dtype dst_type, const void *src, dt_dtype src_type, int64_t n);
/* No NaN and no infinity among n numbers in fp32, bf16 or fp16; true for other types. */
bool dt_finite(const void *x, dt_dtype t, int64_t n);

static inline float dt_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint16_t dt_f32_to_bf16(float f)      /* nearest even; NaN stays NaN */
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float    dt_f16_to_f32(uint16_t h);
uint16_t dt_f32_to_f16(float f);

#endif
