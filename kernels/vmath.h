/* vmath.h - exp, erf and sigmoid without branches or calls, so that loops over them vectorise.  Within 2 ulp of the
 * exact value over the whole range (tests/unit/kernels_vmath.c), sigmoid within 4 and 0 below -87, where exp(-x)
 * overflows; infinities and NaN as in libm. */
#ifndef DT_KERNELS_VMATH_H
#define DT_KERNELS_VMATH_H
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float dt_f32_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t dt_bits_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* exp(x) = 2^n exp(r), |r| <= ln2/2, n rounded by adding 1.5 * 2^23; exp(r) is a minimax
 * polynomial.  2^n is applied in two factors so that results run into infinity and the denormals
 * smoothly. */
static inline float dt_expf(float x)
{
    const float magic = 12582912.0f;
    float c = x > 89.0f ? 89.0f : x;
    c = c < -104.0f ? -104.0f : c;              /* NaN fails both tests and stays */
    float t = c * 1.44269504f + magic;
    float n = t - magic;
    float r = c - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    int32_t k = (int32_t)(dt_bits_f32(t) - dt_bits_f32(magic));
    int32_t h = k >> 1;
    return p * dt_f32_bits((uint32_t)(h + 127) << 23) * dt_f32_bits((uint32_t)(k - h + 127) << 23);
}

static inline float dt_sigmoidf(float x)
{
    return 1.0f / (1.0f + dt_expf(-x));
}

/* Odd polynomial below 0.92, 1 - exp(polynomial) above. */
static inline float dt_erff(float x)
{
    float a = fabsf(x), s = x * x;
    float t = a > 4.0f ? 4.0f : a;              /* erf(4) rounds to 1 */
    float q = t * t;
    float r = -1.72853470e-5f * t + 3.83197126e-4f;
    float u = -3.88396438e-3f * t + 2.42546219e-2f;
    r = r * q + u;
    r = r * t - 1.06777877e-1f;
    r = r * t - 6.34846687e-1f;
    r = r * t - 1.28717512e-1f;
    r = r * t - t;
    float large = copysignf(1.0f - dt_expf(r), x);
    float p = -5.96761703e-4f;
    p = p * s + 4.99119423e-3f;
    p = p * s - 2.67681349e-2f;
    p = p * s + 1.12819925e-1f;
    p = p * s - 3.76125336e-1f;
    p = p * s + 1.28379166e-1f;
    float small = p * x + x;
    return a > 0.921875f ? large : small;
}

#endif
