/* gemm.c - see gemm.h.
 *
 *   c [m, n] = f(alpha a [m, k] op(b) + bias (+ c))
 *
 * A task is a panel of COLS columns of op(b) and some rows of c.  op(b) is packed DEPTH rows at a time as [k][COLS];
 * a tile of ROWS x COLS of c stays in registers for that depth, with rows of a broadcast from where they are.  While the
 * last tiles of a panel are computed, the lines of the next one are fetched into the second-level cache. */
#include <omp.h>
#include <string.h>
#include "kernels/gemm.h"
#include "kernels/opdef.h"
#include "kernels/tile.h"

enum {
    ROWS = 8, VECS = 3, COLS = VECS * DT_VEC,   /* ROWS * VECS sums, VECS vectors of b and a few of a: 32 registers */
    DEPTH = 1024,
    CHUNK = 8,                                  /* of depth, between two looks at what to fetch */
    LINE = 16,                                  /* floats of a cache line */
    FETCH_TILES = 32,                           /* as many tiles before it is packed, a panel is fetched */
    MIN_M = 32, MIN_N = 8,                      /* below, packing costs more than it gains */
    WORTH = 1 << 20,                            /* multiplications that another thread is started for */
};

#ifdef __AVX512F__

/* Lines still to be fetched: `lines` of them in each row of a matrix. */
struct ahead {
    const float *p;
    int64_t skip;                   /* from the end of one row's lines to the next row's first */
    int     line, lines;            /* left in this row; of a row */
    int64_t left;
};

/* What becomes of a tile's sums. */
struct result {
    float       *c;
    int64_t      ldc, cols;
    const float *bias;              /* NULL: none, or not yet */
    float        alpha;
    bool         add;               /* to what is in c */
    enum dt_epilogue f;
};

static inline __attribute__((always_inline)) void fetch(struct ahead *f)
{
    __builtin_prefetch(f->p, 0, 2);
    f->p += LINE;
    if (--f->line == 0) {
        f->line = f->lines;
        f->p += f->skip;
    }
}

/* A tile that is not as wide as its vectors. */
static void put_part(const float *sum, int rows, int64_t width, const struct result *r)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < r->cols; j++) {
            float *c = r->c + i * r->ldc + j;
            *c = r->alpha * sum[i * width + j] + (r->bias ? r->bias[j] : 0.0f) + (r->add ? *c : 0.0f);
        }
}

static inline __attribute__((always_inline)) dt_vec put(dt_vec sum, const float *c, const float *bias,
                                                        const struct result *r)
{
    sum *= r->alpha;
    if (bias)
        sum += *(const dt_vec *)bias;
    if (r->add)
        sum += *(const dt_vec *)c;
    return sum;
}

/* rows x vecs vectors of sums; a's rows are lda apart, b is packed [k][vecs * DT_VEC]. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vecs, const float *a, int64_t lda,
                                                       const float *b, int64_t k, const struct result *r,
                                                       struct ahead *next, int64_t nfetch)
{
    dt_vec sum[ROWS][VECS] = { 0 };
    const float *a4 = a + 4 * lda;
    struct ahead f = *next;
    int64_t each = nfetch * CHUNK / k + 1;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vecs; j++)
            __builtin_prefetch(r->c + i * r->ldc + j * DT_VEC, 1, 3);
    for (int64_t p = 0; p < k;) {
        int64_t end = dt_min64(k, p + CHUNK);
        for (int64_t i = 0; i < each && nfetch > 0; i++, nfetch--)
            fetch(&f);
        for (; p < end; p++, a++, a4++, b += vecs * DT_VEC) {
            dt_vec v[VECS];
            for (int j = 0; j < vecs; j++)
                v[j] = *(const dt_vec *)(b + j * DT_VEC);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) {
                dt_vec s = (i < 4 ? a[i * lda] : a4[(i - 4) * lda]) - (dt_vec){ 0 };
#pragma GCC unroll 3
                for (int j = 0; j < vecs; j++)
                    sum[i][j] += s * v[j];
                __asm__ volatile("");           /* else all of a is loaded first, and sums are spilled for it */
            }
        }
    }
    *next = f;
    if (r->cols == vecs * DT_VEC) {
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
            for (int j = 0; j < vecs; j++) {
                float *c = r->c + i * r->ldc + j * DT_VEC;
                *(dt_vec *)c = put(sum[i][j], c, r->bias ? r->bias + j * DT_VEC : NULL, r);
            }
    } else {
        float part[ROWS * COLS] DT_ALIGNED;
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
            for (int j = 0; j < vecs; j++)
                *(dt_vec *)(part + (i * vecs + j) * DT_VEC) = sum[i][j];
        put_part(part, rows, vecs * DT_VEC, r);
    }
    for (int i = 0; r->f && i < rows; i++)
        dt_epilogue_row(r->f, r->c + i * r->ldc, r->cols);
}

#define TILE(R, V)                                                                                                   \
    static void tile_##R##_##V(const float *a, int64_t lda, const float *b, int64_t k, const struct result *r,      \
                               struct ahead *next, int64_t nfetch)                                                   \
    {                                                                                                                \
        tile(R, V, a, lda, b, k, r, next, nfetch);                                                                   \
    }
TILE(8, 1) TILE(8, 2) TILE(8, 3) TILE(4, 1) TILE(4, 2) TILE(4, 3)
TILE(2, 1) TILE(2, 2) TILE(2, 3) TILE(1, 1) TILE(1, 2) TILE(1, 3)
typedef void tile_fn(const float *, int64_t, const float *, int64_t, const struct result *, struct ahead *, int64_t);
static tile_fn *const tiles[][VECS] = {         /* of 1, 2, 4, 8 rows */
    { tile_1_1, tile_1_2, tile_1_3 }, { tile_2_1, tile_2_2, tile_2_3 },
    { tile_4_1, tile_4_2, tile_4_3 }, { tile_8_1, tile_8_2, tile_8_3 },
};

/* --- packing --- */

typedef double pair __attribute__((vector_size(64)));
typedef int    mask32 __attribute__((vector_size(64)));
typedef long long mask64 __attribute__((vector_size(64)));

#ifdef __clang__
#define SHUFFLE(mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(mask, a, b, ...) __builtin_shuffle(a, b, (mask){ __VA_ARGS__ })
#endif
#define PAIRS(a, b, ...) (dt_vec)SHUFFLE(mask64, (pair)(a), (pair)(b), __VA_ARGS__)

/* d [16, 16] = s^T; exchanges ever larger blocks: 1, 2, 4, 8. */
static inline __attribute__((always_inline)) void transpose16(const float *s, int64_t lds, float *d, int64_t ldd)
{
    dt_vec r[16], t[16];
    for (int i = 0; i < 16; i++)
        r[i] = *(const dt_vec *)(s + i * lds);
    for (int i = 0; i < 16; i += 2) {
        t[i] = SHUFFLE(mask32, r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        t[i + 1] = SHUFFLE(mask32, r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = PAIRS(t[i], t[i + 2], 0, 8, 2, 10, 4, 12, 6, 14);
        r[i + 1] = PAIRS(t[i], t[i + 2], 1, 9, 3, 11, 5, 13, 7, 15);
        r[i + 2] = PAIRS(t[i + 1], t[i + 3], 0, 8, 2, 10, 4, 12, 6, 14);
        r[i + 3] = PAIRS(t[i + 1], t[i + 3], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = PAIRS(r[i], r[i + 4], 0, 1, 4, 5, 8, 9, 12, 13);
        t[i + 4] = PAIRS(r[i], r[i + 4], 2, 3, 6, 7, 10, 11, 14, 15);
        t[i + 8] = PAIRS(r[i + 8], r[i + 12], 0, 1, 4, 5, 8, 9, 12, 13);
        t[i + 12] = PAIRS(r[i + 8], r[i + 12], 2, 3, 6, 7, 10, 11, 14, 15);
    }
    for (int i = 0; i < 8; i++) {
        *(dt_vec *)(d + i * ldd) = PAIRS(t[i], t[i + 8], 0, 1, 4, 5, 8, 9, 12, 13);
        *(dt_vec *)(d + (i + 8) * ldd) = PAIRS(t[i], t[i + 8], 2, 3, 6, 7, 10, 11, 14, 15);
    }
}

/* d [k][width] = the transpose of `rows` rows of s; the columns from `rows` on are 0. */
static void pack_rows(float *d, int64_t width, const float *s, int64_t lds, int64_t rows, int64_t k)
{
    for (int64_t i = 0; i < width; i += 16) {
        int64_t p = 0;
        for (; i + 16 <= rows && p + 16 <= k; p += 16)
            transpose16(s + i * lds + p, lds, d + p * width + i, width);
        for (; p < k; p++)
            for (int64_t j = i; j < i + 16; j++)
                d[p * width + j] = j < rows ? s[j * lds + p] : 0.0f;
    }
}

/* d [k][width] = `cols` columns of s; those from `cols` on are 0. */
static void pack_columns(float *d, int64_t width, const float *s, int64_t lds, int64_t cols, int64_t k)
{
    for (int64_t p = 0; p < k; p++, d += width, s += lds) {
        int64_t j = 0;
        for (; j + DT_VEC <= cols; j += DT_VEC)
            *(dt_vec *)(d + j) = *(const dt_vec *)(s + j);
        for (; j < width; j++)
            d[j] = j < cols ? s[j] : 0.0f;
    }
}

/* --- tasks --- */

struct gemm {
    const struct dt_dnn_matmul *p;
    const float *a, *b, *bias;
    float  *c;
    int64_t depth;                  /* rows of a packed panel, the last may have less */
    int64_t whole, split, tasks;    /* panels that are a task each, parts of each of the last, tasks of all */
    int     threads;
};

static struct gemm plan(const struct dt_dnn_matmul *p, int threads)
{
    struct gemm g = { .p = p };
    int64_t panels = dt_div_up(p->n, COLS), blocks = dt_div_up(p->k, DEPTH);
    g.depth = dt_tile_round(dt_div_up(p->k, blocks), LINE);
    g.threads = (int)dt_min64(threads, 1 + p->m * p->n * p->k / WORTH);
    /* the last panels, one for each thread, in parts: threads end together then, and parts are packed once more each */
    g.whole = g.threads > 1 ? dt_max64(0, panels - g.threads) : panels;
    g.split = dt_min64(dt_div_up(p->m, MIN_M), dt_div_up(2 * g.threads, dt_max64(1, panels - g.whole)));
    g.tasks = g.whole + (panels - g.whole) * g.split;
    return g;
}

/* What is to be packed for a task from depth k0 on. */
struct panel { int64_t n0, cols, k0, k; };

static struct panel panel_of(const struct gemm *g, int64_t task, int64_t k0)
{
    int64_t n0 = (task < g->whole ? task : g->whole + (task - g->whole) / g->split) * COLS;
    return (struct panel){ n0, dt_min64(COLS, g->p->n - n0), k0, dt_min64(g->depth, g->p->k - k0) };
}

static struct ahead ahead_of(const struct gemm *g, struct panel s)
{
    const struct dt_dnn_matmul *p = g->p;
    int64_t ld = p->b_trans ? p->k : p->n, rows = p->b_trans ? s.cols : s.k;
    int lines = (int)dt_div_up(p->b_trans ? s.k : s.cols, LINE);
    return (struct ahead){ g->b + (p->b_trans ? s.n0 * ld + s.k0 : s.k0 * ld + s.n0), ld - lines * LINE, lines, lines,
                           lines * rows };
}

static void pack(const struct gemm *g, struct panel s, float *d)
{
    const struct dt_dnn_matmul *p = g->p;
    int64_t width = dt_tile_round(s.cols, DT_VEC);
    if (p->b_trans)
        pack_rows(d, width, g->b + s.n0 * p->k + s.k0, p->k, s.cols, s.k);
    else
        pack_columns(d, width, g->b + s.k0 * p->n + s.n0, p->n, s.cols, s.k);
}

/* The tiles of rows m0 to m1 of a panel, while `next` is fetched. */
static void multiply(const struct gemm *g, struct panel s, const float *packed, int64_t m0, int64_t m1,
                     struct ahead *next)
{
    const struct dt_dnn_matmul *p = g->p;
    bool last = s.k0 + s.k == p->k;
    struct result r = { .ldc = p->n, .cols = s.cols, .alpha = (float)p->alpha, .add = p->add || s.k0 > 0,
                        .bias = last && p->bias ? g->bias + s.n0 : NULL, .f = last ? p->epilogue : DT_EPI_NONE };
    int64_t each = dt_div_up(next->left, dt_min64(FETCH_TILES, dt_div_up(m1 - m0, ROWS)));
    for (int64_t m = m0, rows; m < m1; m += rows) {
        int size_log2 = m1 - m >= 8 ? 3 : m1 - m >= 4 ? 2 : m1 - m >= 2 ? 1 : 0;
        rows = 1 << size_log2;
        int64_t nfetch = m1 - m > FETCH_TILES * ROWS ? 0 : dt_min64(each, next->left);
        r.c = g->c + m * p->n + s.n0;
        tiles[size_log2][dt_div_up(s.cols, DT_VEC) - 1](g->a + m * p->k + s.k0, p->k, packed, s.k, &r, next, nfetch);
        next->left -= nfetch;
    }
}

static void run_task(const struct gemm *g, int64_t task, int64_t task_after, float *packed)
{
    int64_t split = task < g->whole ? 1 : g->split, part = (task - g->whole) % split;
    int64_t m = g->p->m, per = dt_tile_round(dt_div_up(m, split), ROWS);
    int64_t m0 = dt_min64(m, part * per), m1 = dt_min64(m, m0 + per);
    for (int64_t k0 = 0; k0 < g->p->k && m0 < m1; k0 += g->depth) {
        struct panel s = panel_of(g, task, k0);
        struct ahead next = { .lines = 0 };
        if (k0 + s.k < g->p->k)
            next = ahead_of(g, panel_of(g, task, k0 + s.k));
        else if (task_after < g->tasks)
            next = ahead_of(g, panel_of(g, task_after, 0));
        pack(g, s, packed);
        multiply(g, s, packed, m0, m1, &next);
    }
}

bool dt_gemm_takes(const struct dt_dnn_matmul *p)
{
    return p->a == DT_F32 && p->b == DT_F32 && p->c == DT_F32 && !p->a_trans && p->m >= MIN_M && p->n >= MIN_N;
}

int64_t dt_gemm_workspace(const struct dt_dnn_matmul *p, int threads)
{
    struct gemm g = plan(p, threads);
    return g.depth * COLS * (int64_t)sizeof(float) * g.threads;
}

void dt_gemm_run(const struct dt_dnn_matmul *p, int threads, const float *a, const float *b, const float *bias,
                 float *c, void *ws)
{
    struct gemm g = plan(p, threads);
    g.a = a, g.b = b, g.bias = bias, g.c = c;
    int64_t taken = 0;
#pragma omp parallel num_threads(g.threads)
    {
        float *packed = (float *)ws + omp_get_thread_num() * g.depth * COLS;
        int64_t task, after;        /* known one ahead, to be fetched */
#pragma omp atomic capture
        task = taken++;
        for (; task < g.tasks; task = after) {
#pragma omp atomic capture
            after = taken++;
            run_task(&g, task, after, packed);
        }
    }
}

#else

bool dt_gemm_takes(const struct dt_dnn_matmul *p)
{
    (void)p;
    return false;
}

int64_t dt_gemm_workspace(const struct dt_dnn_matmul *p, int threads)
{
    (void)p, (void)threads;
    return 0;
}

void dt_gemm_run(const struct dt_dnn_matmul *p, int threads, const float *a, const float *b, const float *bias,
                 float *c, void *ws)
{
    (void)p, (void)threads, (void)a, (void)b, (void)bias, (void)c, (void)ws;
}

#endif
