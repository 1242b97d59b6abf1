/* tile.h - small matrix products out of cache, for kernels that fuse more than one (attention.c).
 *
 *   c [m, n] (+)= a [m, k] b [k, n]      all fp32, m padded to DT_TILE_M, n to DT_TILE_N by the caller's buffers
 *
 * The micro-kernel keeps a DT_TILE_M x DT_TILE_N block of c in registers: two vectors of the machine's width a row. */
#ifndef DT_KERNELS_TILE_H
#define DT_KERNELS_TILE_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { DT_VEC = 16, DT_TILE_M = 8 };
#elif defined(__AVX__)
enum { DT_VEC = 8, DT_TILE_M = 4 };
#else
enum { DT_VEC = 4, DT_TILE_M = 4 };
#endif
enum { DT_TILE_N = 2 * DT_VEC };

typedef float dt_vec __attribute__((vector_size(4 * DT_VEC), aligned(4), may_alias));

/* Element (i, p) of a is a[i * rs + p * cs]; row p of b begins at b + p * ldb. */
typedef struct dt_mat_a { const float *p; int64_t rs, cs; } dt_mat_a;

static inline __attribute__((always_inline)) void dt_tile_block(const float *a, int64_t rs,
                                                                int64_t cs, const float *b,
                                                                int64_t ldb, int64_t k, float *c,
                                                                int64_t ldc, bool add)
{
    dt_vec acc[DT_TILE_M][2] = { 0 };
    for (int64_t p = 0; p < k; p++) {
        dt_vec b0 = *(const dt_vec *)(b + p * ldb), b1 = *(const dt_vec *)(b + p * ldb + DT_VEC);
        const float *ap = a + p * cs;
#pragma GCC unroll 8
        for (int i = 0; i < DT_TILE_M; i++) {
            acc[i][0] += ap[i * rs] * b0;
            acc[i][1] += ap[i * rs] * b1;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < DT_TILE_M; i++) {
        dt_vec *c0 = (dt_vec *)(c + i * ldc), *c1 = (dt_vec *)(c + i * ldc + DT_VEC);
        if (add) {
            acc[i][0] += *c0;
            acc[i][1] += *c1;
        }
        *c0 = acc[i][0];
        *c1 = acc[i][1];
    }
}

/* One panel of n = DT_TILE_N columns. */
static inline __attribute__((always_inline)) void dt_tile_panel(int64_t m, int64_t k, dt_mat_a a,
                                                                const float *b, int64_t ldb,
                                                                float *c, int64_t ldc, bool add)
{
    for (int64_t i = 0; i < m; i += DT_TILE_M)
        dt_tile_block(a.p + i * a.rs, a.rs, a.cs, b, ldb, k, c + i * ldc, ldc, add);
}

static inline int64_t dt_tile_round(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#endif
