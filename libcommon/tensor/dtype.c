/* dtype.c - element types and conversion.
 *
 * Rounding is to nearest even, once: fp64 goes to 16-bit floats through fp32 rounded to odd (Boldo and
 * Melquiond 2008), which cannot round twice.  The pairs of {fp32, bf16, fp16} have loops of their own, which the
 * compiler vectorises; everything else goes through int64 or fp64, element by element. */
#include "tensor/dtype.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

static const struct { const char *name; size_t size; } types[DT_NDTYPES] = {
    [DT_F32] = { "F32", 4 }, [DT_BF16] = { "BF16", 2 }, [DT_F16] = { "F16", 2 }, [DT_F64] = { "F64", 8 },
    [DT_I64] = { "I64", 8 }, [DT_I32]  = { "I32", 4 },  [DT_I16] = { "I16", 2 }, [DT_I8]  = { "I8", 1 },
    [DT_U8]  = { "U8", 1 },  [DT_BOOL] = { "BOOL", 1 },
};

int64_t dt_numel(dt_dims s)
{
    int64_t n = 1;
    for (int i = 0; i < s.nd; i++)
        n *= s.d[i];
    return n;
}

void dt_dims_text(dt_dims d, char *buf, size_t bytes)
{
    size_t at = (size_t)snprintf(buf, bytes, "[");
    for (int i = 0; i < d.nd && at < bytes; i++)
        at += (size_t)snprintf(buf + at, bytes - at, "%s%lld", i ? ", " : "", (long long)d.d[i]);
    if (at < bytes)
        snprintf(buf + at, bytes - at, "]");
}

size_t dt_dtype_size(dt_dtype t) { return types[t].size; }

const char *dt_dtype_name(dt_dtype t) { return types[t].name; }

int dt_dtype_parse(const char *name)
{
    for (int t = 0; t < DT_NDTYPES; t++)
        if (!strcmp(types[t].name, name))
            return t;
    return -1;
}

/* --- fp16, by bits --- */

static inline uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float dt_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;
    if (e == 31)                                    /* Inf; NaN becomes quiet, as in hardware */
        return from_bits(sign | 0x7f800000 | m << 13 | (m ? 0x400000 : 0));
    if (e == 0) {                                   /* m 2^-24, exact in fp32 */
        float f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    return from_bits(sign | (e + 112) << 23 | m << 13);
}

uint16_t dt_f32_to_f16(float f)
{
    uint32_t u = bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000)                            /* 65520: halfway to 2^16 */
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) {                           /* below 2^-14: subnormal.  Adding 0.5 rounds at 2^-24 */
        uint32_t r = bits(from_bits(a) + 0.5f) - 0x3f000000;
        return (uint16_t)(sign | r);
    }
    uint32_t r = a - 0x38000000 + 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | r >> 13);
}

/* --- rows of {fp32, bf16, fp16} --- */

static void bf16_to_f32_row(float *restrict d, const uint16_t *restrict s, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        d[i] = from_bits((uint32_t)s[i] << 16);
}

/* As dt_f32_to_bf16, without a branch. */
static void f32_to_bf16_row(uint16_t *restrict d, const uint32_t *restrict s, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = s[i], r = (u + 0x7fff + (u >> 16 & 1)) >> 16, q = u >> 16 | 0x40;
        d[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? q : r);
    }
}

#if defined(__F16C__)
static int64_t f16_to_f32_vec(float *d, const uint16_t *s, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(d + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + i))));
    return i;
}

static int64_t f32_to_f16_vec(uint16_t *d, const float *s, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(d + i), _mm256_cvtps_ph(_mm256_loadu_ps(s + i), _MM_FROUND_TO_NEAREST_INT));
    return i;
}
#else
static int64_t f16_to_f32_vec(float *d, const uint16_t *s, int64_t n) { (void)d, (void)s, (void)n; return 0; }
static int64_t f32_to_f16_vec(uint16_t *d, const float *s, int64_t n) { (void)d, (void)s, (void)n; return 0; }
#endif

static void f16_to_f32_row(float *d, const uint16_t *s, int64_t n)
{
    for (int64_t i = f16_to_f32_vec(d, s, n); i < n; i++)
        d[i] = dt_f16_to_f32(s[i]);
}

static void f32_to_f16_row(uint16_t *d, const float *s, int64_t n)
{
    for (int64_t i = f32_to_f16_vec(d, s, n); i < n; i++)
        d[i] = dt_f32_to_f16(s[i]);
}

/* Any alignment: data mapped from a file starts where its header ends. */
static bool aligned(const void *p, dt_dtype t) { return (uintptr_t)p % types[t].size == 0; }

static bool convert_fast(void *d, dt_dtype dt, const void *s, dt_dtype st, int64_t n)
{
    if (!aligned(d, dt) || !aligned(s, st))
        return false;
    if (dt == DT_F32 && st == DT_BF16)
        bf16_to_f32_row(d, s, n);
    else if (dt == DT_BF16 && st == DT_F32)
        f32_to_bf16_row(d, s, n);
    else if (dt == DT_F32 && st == DT_F16)
        f16_to_f32_row(d, s, n);
    else if (dt == DT_F16 && st == DT_F32)
        f32_to_f16_row(d, s, n);
    else
        return false;
    return true;
}

/* --- any pair, through a value --- */

static bool is_int(dt_dtype t) { return t >= DT_I64; }

static int64_t get_int(const unsigned char *p, dt_dtype t)
{
    int64_t q;
    int32_t l;
    int16_t s;
    switch (t) {
    case DT_I64: memcpy(&q, p, 8); return q;
    case DT_I32: memcpy(&l, p, 4); return l;
    case DT_I16: memcpy(&s, p, 2); return s;
    case DT_I8:  return (int8_t)*p;
    default:     return *p;
    }
}

static double get_float(const unsigned char *p, dt_dtype t)
{
    double x;
    float f;
    uint16_t h;
    switch (t) {
    case DT_F64:  memcpy(&x, p, 8); return x;
    case DT_F32:  memcpy(&f, p, 4); return f;
    case DT_BF16: memcpy(&h, p, 2); return dt_bf16_to_f32(h);
    default:      memcpy(&h, p, 2); return dt_f16_to_f32(h);
    }
}

/* Integers out of range stop at the nearest end. */
static void put_int(unsigned char *p, dt_dtype t, int64_t v)
{
    static const struct { int64_t lo, hi; } range[DT_NDTYPES] = {
        [DT_I64] = { INT64_MIN, INT64_MAX }, [DT_I32] = { INT32_MIN, INT32_MAX },
        [DT_I16] = { INT16_MIN, INT16_MAX }, [DT_I8] = { INT8_MIN, INT8_MAX }, [DT_U8] = { 0, UINT8_MAX },
    };
    if (t == DT_BOOL)
        v = v != 0;
    else
        v = v < range[t].lo ? range[t].lo : v > range[t].hi ? range[t].hi : v;
    memcpy(p, &v, types[t].size);                   /* little-endian, as the file format */
}

static float round_to_odd(double x)
{
    float f = (float)x;
    if (isnan(x) || (double)f == x || (bits(f) & 1))
        return f;
    return nextafterf(f, x > (double)f ? INFINITY : -INFINITY);
}

static void put_float(unsigned char *p, dt_dtype t, double x)
{
    float f = (float)x;
    uint16_t h;
    switch (t) {
    case DT_F64:  memcpy(p, &x, 8); break;
    case DT_F32:  memcpy(p, &f, 4); break;
    case DT_BF16: h = dt_f32_to_bf16(round_to_odd(x)); memcpy(p, &h, 2); break;
    default:      h = dt_f32_to_f16(round_to_odd(x)); memcpy(p, &h, 2); break;
    }
}

/* Towards zero; NaN is 0. */
static int64_t truncate_to_int(double x)
{
    if (isnan(x))
        return 0;
    return x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : (int64_t)x;
}

void dt_convert(void *dst, dt_dtype dt, const void *src, dt_dtype st, int64_t n)
{
    if (dt == st) {
        if (dst != src)
            memcpy(dst, src, (size_t)n * types[dt].size);
        return;
    }
    if (convert_fast(dst, dt, src, st, n))
        return;
    unsigned char *d = dst;
    const unsigned char *s = src;
    size_t dn = types[dt].size, sn = types[st].size;
    for (int64_t i = 0; i < n; i++, d += dn, s += sn) {
        if (is_int(st) && is_int(dt))
            put_int(d, dt, get_int(s, st));
        else if (is_int(st))
            put_float(d, dt, (double)get_int(s, st));
        else if (dt == DT_BOOL)
            *d = get_float(s, st) != 0;
        else if (is_int(dt))
            put_int(d, dt, truncate_to_int(get_float(s, st)));
        else
            put_float(d, dt, get_float(s, st));
    }
}

/* All bits of the exponent are set in what is not finite, and in nothing else. */
bool dt_finite(const void *x, dt_dtype t, int64_t n)
{
    const uint16_t *half = x, mask = t == DT_F16 ? 0x7c00 : 0x7f80;
    const float *single = x;
    bool ok = true;
    if (t == DT_F32)
        for (int64_t i = 0; i < n; i++)
            ok &= isfinite(single[i]) != 0;
    else if (t == DT_F16 || t == DT_BF16)
        for (int64_t i = 0; i < n; i++)
            ok &= (half[i] & mask) != mask;
    return ok;
}
