/* rng.h - counter-based random numbers.  Philox4x32-10: Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3", SC 2011.  A stream is a 64-bit key and a 128-bit counter; nothing else is state, so
 * a draw can be named by what it is for: key = seed, counter = (purpose, epoch or step, item, index). */
#ifndef DT_BASE_RNG_H
#define DT_BASE_RNG_H
#include <stdint.h>

/* Names of streams, so that no two uses share draws.  Part of the file formats: never renumber. */
enum dt_stream {
    DT_RNG_SHUFFLE = 1, DT_RNG_CROP, DT_RNG_FLIP, DT_RNG_SIZE, DT_RNG_CAPTION_DROP, DT_RNG_NOISE,
    DT_RNG_TIMESTEP, DT_RNG_POSTERIOR, DT_RNG_INIT, DT_RNG_SAMPLE, DT_RNG_VALIDATION, DT_RNG_PERTURB,
    DT_RNG_NOISE_OFFSET, DT_RNG_CAPTION_TAGS, DT_RNG_TEST = 1000,
};

typedef struct dt_rng {
    uint64_t key;
    uint32_t ctr[4];    /* ctr[0] runs; ctr[1..3] = item, epoch or step, stream */
    uint32_t buf[4];
    int      left;      /* unread words of buf */
} dt_rng;

/* A stream of draws for one purpose.  `when` is an epoch or step, `item` a sample or tensor. */
dt_rng   dt_rng_make(uint64_t seed, enum dt_stream stream, uint32_t when, uint32_t item);
uint32_t dt_rng_u32(dt_rng *r);
double   dt_rng_uniform(dt_rng *r);                 /* [0, 1), 53 bits */
double   dt_rng_normal(dt_rng *r);                  /* N(0, 1), Box-Muller on two uniforms */
uint64_t dt_rng_below(dt_rng *r, uint64_t n);       /* [0, n), unbiased; n > 0 */

/* n draws of N(0, 1).  The i-th value depends only on (seed, stream, when, item, i), so any part may be
 * made by any thread or device. */
void dt_rng_fill_normal(float *dst, int64_t n, uint64_t seed, enum dt_stream stream, uint32_t when,
                        uint32_t item);

/* Fisher-Yates: perm[0..n) becomes a permutation of 0..n-1, n <= 2^32. */
void dt_rng_permute(uint32_t *perm, int64_t n, dt_rng *r);

#endif
