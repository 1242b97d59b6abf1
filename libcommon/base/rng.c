/* rng.c - Philox4x32-10 and what is drawn from it.
 *
 *   block(key, ctr) : 10 rounds of   (hi0, lo0) = M0 * c0,  (hi1, lo1) = M1 * c2,
 *                                    c = (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0),   k += W
 *   normal          : z = sqrt(-2 ln u) * (cos 2 pi v, sin 2 pi v),   words (0, 1) and (2, 3) of a block
 *
 * The stream number takes 16 bits of ctr[3]; the other 16 extend the running index ctr[0] to 48 bits.
 *
 * fill_normal writes its logarithm, sine and cosine out with explicit fmaf, so that every compiler,
 * vector width and device gives the same bits (the system's libm differs from machine to machine). */
#include "base/rng.h"
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

static inline void philox(uint32_t out[4], const uint32_t ctr[4], uint64_t key)
{
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int r = 0; r < 10; r++) {
        uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

dt_rng dt_rng_make(uint64_t seed, enum dt_stream stream, uint32_t when, uint32_t item)
{
    assert(stream > 0 && stream < 1 << 16);
    return (dt_rng){ .key = seed, .ctr = { 0, item, when, stream } };
}

uint32_t dt_rng_u32(dt_rng *r)
{
    if (!r->left) {
        philox(r->buf, r->ctr, r->key);
        if (!++r->ctr[0])
            r->ctr[3] += 1 << 16;
        r->left = 4;
    }
    return r->buf[4 - r->left--];
}

static uint64_t u64(dt_rng *r)
{
    uint64_t lo = dt_rng_u32(r);
    return lo | (uint64_t)dt_rng_u32(r) << 32;
}

double dt_rng_uniform(dt_rng *r)
{
    return (double)(u64(r) >> 11) * 0x1p-53;
}

double dt_rng_normal(dt_rng *r)
{
    double u = 1.0 - dt_rng_uniform(r);         /* (0, 1]: the logarithm is finite */
    double v = dt_rng_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(2.0 * M_PI * v);
}

uint64_t dt_rng_below(dt_rng *r, uint64_t n)
{
    assert(n > 0);
    uint64_t first = -n % n;                    /* 2^64 mod n: the draws below it would be too many */
    uint64_t x;
    do
        x = u64(r);
    while (x < first);
    return x % n;
}

void dt_rng_permute(uint32_t *perm, int64_t n, dt_rng *r)
{
    for (int64_t i = 0; i < n; i++)
        perm[i] = (uint32_t)i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)dt_rng_below(r, (uint64_t)i + 1);
        uint32_t t = perm[i];
        perm[i] = perm[j], perm[j] = t;
    }
}

/* ln u for normal u > 0, to about an ulp.  Polynomial of Cephes logf (Moshier 1984). */
static inline float ln(float u)
{
    uint32_t bits;
    memcpy(&bits, &u, 4);
    int32_t e = (int32_t)((bits - 0x3f3504f3u) >> 23);      /* mantissa in [sqrt(1/2), sqrt(2)) */
    e = (int32_t)((uint32_t)e << 23) >> 23;                 /* 9 bits, signed */
    bits -= (uint32_t)e << 23;
    float m;
    memcpy(&m, &bits, 4);
    float x = m - 1.0f, z = x * x, k = (float)e;
    float p = 7.0376836292e-2f;
    p = fmaf(p, x, -1.1514610310e-1f);
    p = fmaf(p, x, 1.1676998740e-1f);
    p = fmaf(p, x, -1.2420140846e-1f);
    p = fmaf(p, x, 1.4249322787e-1f);
    p = fmaf(p, x, -1.6668057665e-1f);
    p = fmaf(p, x, 2.0000714765e-1f);
    p = fmaf(p, x, -2.4999993993e-1f);
    p = fmaf(p, x, 3.3333331174e-1f);
    float xz = x * z, y = p * xz;
    y = fmaf(k, -2.12194440e-4f, y);                        /* ln 2 in two parts: exact + rest */
    y = fmaf(-0.5f, z, y);
    return fmaf(k, 0.693359375f, x + y);
}

/* cos and sin of 2 pi v / 2^32, |error| < 1e-7.  Polynomials of Cephes sinf, cosf on [-pi/4, pi/4]. */
static inline void cos_sin(uint32_t v, float *c, float *s)
{
    uint32_t q = (v + (1u << 29)) >> 30;                    /* nearest quarter turn; 4 is 0 again */
    float t = (float)(int32_t)(v - (q << 30)) * 1.4629180792671596e-9f;     /* pi / 2^31 */
    float z = t * t;
    float ps = fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f);
    ps = fmaf(ps, z, -1.6666654611e-1f);
    float tz = t * z;
    ps = fmaf(ps, tz, t);
    float pc = fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f);
    pc = fmaf(pc, z, 4.166664568298827e-2f);
    float zz = z * z;
    pc = fmaf(pc, zz, fmaf(-0.5f, z, 1.0f));
    float a = q & 1 ? ps : pc, b = q & 1 ? pc : ps;
    *c = (q + 1) & 2 ? -a : a;
    *s = q & 2 ? -b : b;
}

/* Values 4 i .. 4 i + 3 of a stream. */
static inline void normal4(float z[4], uint64_t i, uint64_t seed, enum dt_stream stream, uint32_t when, uint32_t item)
{
    uint32_t ctr[4] = { (uint32_t)i, item, when, (uint32_t)stream + (uint32_t)(i >> 32 << 16) }, w[4];
    philox(w, ctr, seed);
    for (int h = 0; h < 4; h += 2) {
        float u = ((float)w[h] + 1.0f) * 0x1p-32f;          /* (0, 1] */
        float r = sqrtf(-2.0f * ln(u)), c, s;
        cos_sin(w[h + 1], &c, &s);
        z[h] = r * c;
        z[h + 1] = r * s;
    }
}

void dt_rng_fill_normal(float *dst, int64_t n, uint64_t seed, enum dt_stream stream, uint32_t when,
                        uint32_t item)
{
    assert(stream > 0 && stream < 1 << 16);
    int64_t blocks = n / 4;
    #pragma omp parallel for schedule(static) if (blocks > 4096)
    for (int64_t i = 0; i < blocks; i++)
        normal4(dst + 4 * i, (uint64_t)i, seed, stream, when, item);
    if (n % 4) {
        float z[4];
        normal4(z, (uint64_t)blocks, seed, stream, when, item);
        memcpy(dst + 4 * blocks, z, (size_t)(n % 4) * sizeof *z);
    }
}
