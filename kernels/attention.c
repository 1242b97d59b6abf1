/* Attention.  Dao et al., "FlashAttention", 2022, alg. 1; Dao, "FlashAttention-2", 2023, alg. 2, with the online
 * softmax of Milakov and Gimelshein, 2018.  Per batch entry and head:
 *
 *   s = scale q k^T + bias         masked and (causal) later keys: -inf
 *   p = softmax(s)    y = p v      lse = log sum exp s
 *
 *   D  = rowsum(dy y)    dp = dy v^T    ds = p (dp - D)
 *   dv = p^T dy    dq = scale ds k    dk = scale ds^T q    dbias = sum_B ds
 *
 *   q, y [B, Sq, h*d]   k, v [B, Sk, g*d]   bias [h, Sq, Sk] fp32   mask [B, Sk] u8   lse [B, h, Sq] fp32
 *   g divides h: h/g query heads share a key head (grouped-query attention; g = h otherwise)
 *
 * All arithmetic is fp32.  A row with no key attended gives y = 0 and no gradient.  causal: query i sees key j
 * when j <= i.
 *
 * Work goes in groups of (batch entry, key head) pairs: the heads of a group are first packed for tile.h, then tiles
 * of queries (forward) or chunks of keys (backward) are shared out among threads.  Tiles, chunks and the order of
 * sums depend on the shape alone, so the bits do not depend on the number of threads. */
#include <omp.h>
#include "kernels/opdef.h"
#include "kernels/tile.h"
#include "kernels/vmath.h"

enum { Q_TILE = 64, K_TILE = 256, K_CHUNK = 1024, MAX_CHUNKS = 8, LDS = K_TILE + 16, GROUP_FLOATS = 1 << 20 };
enum { HEADS, CAUSAL, WANT_BIAS };              /* attr.i; attr.f[0] is the scale */
enum { Q, K, V, BIAS, MASK, Y, LSE, DY };       /* inputs; forward has the first five */

/* Shapes and strides of one attention, from its node. */
struct attn {
    int64_t  B, Sq, Sk, h, kv, d;   /* kv key heads */
    int64_t  sq, sk;                /* rows of packed q and k: padded to tiles */
    int64_t  dp, ld;                /* columns of packed rows; their distance: 16 more, to spread over cache sets */
    int64_t  chunks, chunk;         /* of keys: how many, how long */
    dt_dtype t;
    float    scale;
    bool     causal;
};

static struct attn attn_of(const dt_node *n)
{
    const dt_tensor *q = n->in[Q], *k = n->in[K];
    struct attn a = {
        .B = q->dims.d[0], .Sq = q->dims.d[1], .Sk = k->dims.d[1], .h = n->attr.i[HEADS],
        .t = q->dtype, .scale = (float)n->attr.f[0], .causal = n->attr.i[CAUSAL],
    };
    a.d = dt_last_dim(q) / a.h;
    a.kv = dt_last_dim(k) / a.d;
    a.sq = dt_tile_round(a.Sq, DT_TILE_M);
    a.sk = dt_tile_round(a.Sk, DT_TILE_N);
    a.dp = dt_tile_round(a.d, DT_TILE_N);
    a.ld = a.dp + 16;
    a.chunks = dt_min64(MAX_CHUNKS, dt_div_up(a.Sk, K_CHUNK));
    a.chunk = dt_tile_round(dt_div_up(a.Sk, a.chunks), K_TILE);
    a.chunks = dt_div_up(a.Sk, a.chunk);
    return a;
}

/* Pairs per group: enough tasks for the threads, and of small heads so many that threads do not meet too often. */
static int64_t group_pairs(const struct attn *a, int64_t tasks_per_pair, int64_t pair_floats,
                           int threads)
{
    int64_t busy = dt_div_up(3 * threads, tasks_per_pair), small = GROUP_FLOATS / pair_floats;
    return dt_min64(a->B * a->kv, dt_max64(busy, small));
}

/* --- packing --- */

/* Element `at` of p, of a's type. */
static char *element(const struct attn *a, const void *p, int64_t at)
{
    return (char *)p + at * (int64_t)dt_dtype_size(a->t);
}

/* Element where head `pair` of k and v begins. */
static int64_t key_head(const struct attn *a, int64_t pair)
{
    return (pair / a->kv * a->Sk * a->kv + pair % a->kv) * a->d;
}

/* Element where query `i` of a head of q, y, dy begins. */
static int64_t query_row(const struct attn *a, int64_t b, int64_t head, int64_t i)
{
    return ((b * a->Sq + i) * a->h + head) * a->d;
}

/* Rows [i0, i1) of one head of src [S, heads*d], times f, zero beyond S and d: dst [.][ld]. */
static void pack_rows(const struct attn *a, const void *src, int64_t S, int64_t stride, int64_t at,
                      int64_t i0, int64_t i1, float f, float *dst)
{
    for (int64_t i = i0; i < i1; i++) {
        float *row = dst + i * a->ld;
        int64_t n = i < S ? a->d : 0;
        if (n)
            dt_convert(row, DT_F32, element(a, src, at + i * stride), a->t, n);
        for (int64_t c = 0; f != 1.0f && c < n; c++)
            row[c] *= f;
        memset(row + n, 0, (size_t)(a->dp - n) * sizeof(*row));
    }
}

/* Keys [j0, j0 + K_TILE) of one head of src [Sk, kv*d], transposed in panels: dst [K_TILE/DT_TILE_N][d][DT_TILE_N]. */
static void pack_panels(const struct attn *a, const void *src, int64_t at, int64_t j0, float *dst)
{
    float tmp[DT_CHUNK];
    dst += j0 * a->d;
    for (int64_t j = 0; j < dt_min64(K_TILE, a->sk - j0); j++)
        for (int64_t c0 = 0; c0 < a->d; c0 += DT_CHUNK) {
            int64_t n = dt_min64(DT_CHUNK, a->d - c0);
            int64_t row = at + (j0 + j) * a->kv * a->d + c0;
            const float *x = j0 + j < a->Sk ? dt_row_in(src, a->t, row, n, tmp) : NULL;
            float *p = dst + (j / DT_TILE_N * a->d + c0) * DT_TILE_N + j % DT_TILE_N;
            for (int64_t c = 0; c < n; c++)
                p[c * DT_TILE_N] = x ? x[c] : 0.0f;
        }
}

/* --- one tile of scores --- */

struct tile {
    int64_t b, head;                /* batch entry, query head */
    int64_t q0, qn, k0, kn;         /* queries q0..q0+qn-1, keys k0..k0+kn-1 */
};

/* s[qn][LDS] = a b^T: rows of a (distance a.ld) times the panels of keys k0.. */
static void products(const struct attn *a, const struct tile *t, const float *rows,
                     const float *panels, float *s)
{
    int64_t m = dt_tile_round(t->qn, DT_TILE_M);
    for (int64_t j = 0; j < t->kn; j += DT_TILE_N)
        dt_tile_panel(m, a->d, (dt_mat_a){ rows, a->ld, 1 }, panels + (t->k0 + j) * a->d,
                      DT_TILE_N, s + j, LDS, false);
}

/* c [m, dp] += a b with b rows of distance ld, columns in panels. */
static void add_product(const struct attn *a, int64_t m, int64_t k, dt_mat_a x, const float *b,
                        float *c)
{
    for (int64_t col = 0; col < a->dp; col += DT_TILE_N)
        dt_tile_panel(m, k, x, b + col, a->ld, c + col, a->ld, true);
}

static void mask_row(const struct attn *a, const struct tile *t, int64_t i, const float *bias,
                     const uint8_t *mask, float *s)
{
    if (bias) {
        const float *b = bias + (t->head * a->Sq + t->q0 + i) * a->Sk + t->k0;
        for (int64_t j = 0; j < t->kn; j++)
            s[j] += b[j];
    }
    if (mask) {
        const uint8_t *m = mask + t->b * a->Sk + t->k0;
        for (int64_t j = 0; j < t->kn; j++)
            s[j] = m[j] ? s[j] : -INFINITY;
    }
    if (a->causal)
        for (int64_t j = dt_max64(0, t->q0 + i - t->k0 + 1); j < t->kn; j++)
            s[j] = -INFINITY;
}

static float row_max(const float *s, int64_t n, float m)
{
#pragma omp simd reduction(max : m)
    for (int64_t j = 0; j < n; j++)
        m = s[j] > m ? s[j] : m;
    return m;
}

/* A maximum passes NaNs over: a row of nothing else has none. */
static bool has_nan(const float *s, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        if (s[j] != s[j])
            return true;
    return false;
}

/* s = exp(s - m), returns the sum. */
static float row_exp(float *s, int64_t n, float m)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        s[j] = dt_expf(s[j] - m);
        sum += s[j];
    }
    return sum;
}

/* --- forward --- */

static const char *attn_shape(dt_node *n)
{
    const dt_tensor *q = n->in[Q], *k = n->in[K], *v = n->in[V];
    const dt_tensor *bias = n->in[BIAS], *mask = n->in[MASK];
    int64_t h = n->attr.i[HEADS];
    if (q->dims.nd != 3 || k->dims.nd != 3 || !dt_dims_same(k->dims, v->dims) ||
        q->dims.d[0] != k->dims.d[0])
        return "attention: q must be [B, Sq, h*d], k and v [B, Sk, h*d]";
    if (!dt_is_float(q) || k->dtype != q->dtype || v->dtype != q->dtype)
        return "attention: q, k and v must be of one float type";
    int64_t d = h > 0 ? dt_last_dim(q) / h : 0;
    if (d < 1 || dt_last_dim(q) % h || dt_last_dim(k) % d || h % (dt_last_dim(k) / d))
        return "attention: heads must divide the features, key heads the heads";
    dt_dims scores = DT_DIMS(h, q->dims.d[1], k->dims.d[1]);
    dt_dims keys = DT_DIMS(q->dims.d[0], k->dims.d[1]);
    if (bias && (bias->dtype != DT_F32 || !dt_dims_same(bias->dims, scores)))
        return "attention: bias must be [heads, Sq, Sk] fp32";
    if (mask && (mask->dtype != DT_U8 || !dt_dims_same(mask->dims, keys)))
        return "attention: mask must be [B, Sk] u8";
    dt_node_out(n, 0, q->dtype, q->dims);
    dt_node_out(n, 1, DT_F32, DT_DIMS(q->dims.d[0], h, q->dims.d[1]));
    return NULL;
}

static void attn_grad(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx)
{
    dt_attr a = n->attr;
    if (!dy[0])
        return;
    a.i[WANT_BIAS] = dt_wants(n, BIAS);
    dt_node *b = dt_apply(g, &dt_op_attention_bwd, &a,
                          DT_IN(n->in[Q], n->in[K], n->in[V], n->in[BIAS], n->in[MASK],
                                n->out[0], n->out[1], dy[0]));
    for (int i = 0; i < 3; i++)
        dx[i] = b->out[i];
    if (a.i[WANT_BIAS])
        dx[BIAS] = b->out[BIAS];
}

static void cost(const dt_node *n, dt_cost *c, double products_done)
{
    struct attn a = attn_of(n);
    double pairs = (double)(a.B * a.h * a.Sq) * (double)a.Sk * (a.causal ? 0.5 : 1.0);
    c->flops = products_done * 2 * pairs * (double)a.d;
}

static void attn_cost(const dt_node *n, dt_cost *c) { cost(n, c, 2); }

/* A thread's tile, and the packed key head of a pair. */
struct fwd_scratch {
    float *q, *s, *o;               /* [Q_TILE][ld], [Q_TILE][LDS], [Q_TILE][ld] */
    float  m[Q_TILE], l[Q_TILE];
};

static int64_t fwd_thread_floats(const struct attn *a) { return Q_TILE * (2 * a->ld + LDS); }
static int64_t fwd_pair_floats(const struct attn *a) { return a->sk * (a->d + a->ld); }

static int64_t fwd_group(const struct attn *a, int threads)
{
    int64_t tasks = a->h / a->kv * dt_div_up(a->Sq, Q_TILE);
    return group_pairs(a, tasks, fwd_pair_floats(a), threads);
}

static int attn_prepare(const dt_node *n, dt_prep *p)
{
    struct attn a = attn_of(n);
    int t = p->dev->threads;
    p->workspace = (t * fwd_thread_floats(&a) + fwd_group(&a, t) * fwd_pair_floats(&a)) * (int64_t)sizeof(float);
    return 0;
}

/* Rescales what is summed so far to the new maxima and adds this tile's part. */
static void online_softmax(const struct attn *a, const struct tile *t, const float *bias,
                           const uint8_t *mask, struct fwd_scratch *w)
{
    for (int64_t i = 0; i < t->qn; i++) {
        float *s = w->s + i * LDS, *o = w->o + i * a->ld;
        mask_row(a, t, i, bias, mask, s);
        float m = row_max(s, t->kn, w->m[i]);
        if (m == -INFINITY && !has_nan(s, t->kn)) {     /* nothing attended yet */
            memset(s, 0, (size_t)t->kn * sizeof(*s));
            continue;
        }
        m = m == -INFINITY ? 0 : m;
        float f = dt_expf(w->m[i] - m);
        w->l[i] = w->l[i] * f + row_exp(s, t->kn, m);
        w->m[i] = m;
        for (int64_t c = 0; c < a->dp && f != 1.0f; c++)
            o[c] *= f;
    }
}

static void put_row(const struct attn *a, void *dst, int64_t at, const float *row)
{
    dt_convert(element(a, dst, at), a->t, row, DT_F32, a->d);
}

static void fwd_store(const struct attn *a, const struct tile *t, struct fwd_scratch *w,
                      const dt_run *r)
{
    float *lse = r->out[1];
    for (int64_t i = 0; i < t->qn; i++) {
        float *o = w->o + i * a->ld, inv = w->l[i] > 0 ? 1.0f / w->l[i] : 0.0f;
        for (int64_t c = 0; c < a->d; c++)
            o[c] *= inv;
        put_row(a, r->out[0], query_row(a, t->b, t->head, t->q0 + i), o);
        float l = w->l[i] > 0 ? w->m[i] + logf(w->l[i]) : 0.0f;
        if (lse)
            lse[(t->b * a->h + t->head) * a->Sq + t->q0 + i] = l;
    }
}

static void fwd_tile(const struct attn *a, struct tile t, const float *panels, const float *v,
                     struct fwd_scratch *w, const dt_run *r, const float *bias, const uint8_t *mask)
{
    int64_t m = dt_tile_round(t.qn, DT_TILE_M), at = query_row(a, t.b, t.head, t.q0);
    int64_t end = a->causal ? dt_min64(a->Sk, t.q0 + t.qn) : a->Sk;
    pack_rows(a, r->in[Q], t.qn, a->h * a->d, at, 0, m, a->scale, w->q);
    memset(w->o, 0, (size_t)(m * a->ld) * sizeof(float));
    for (int64_t i = 0; i < Q_TILE; i++) {
        w->m[i] = -INFINITY;
        w->l[i] = 0;
    }
    for (t.k0 = 0; t.k0 < end; t.k0 += K_TILE) {
        t.kn = dt_min64(K_TILE, end - t.k0);
        products(a, &t, w->q, panels, w->s);
        online_softmax(a, &t, bias, mask, w);
        add_product(a, m, t.kn, (dt_mat_a){ w->s, LDS, 1 }, v + t.k0 * a->ld, w->o);
    }
    fwd_store(a, &t, w, r);
}

static void fwd_pack(const struct attn *a, int64_t pair, int64_t j, const dt_run *r, float *packed)
{
    int64_t at = key_head(a, pair), end = dt_min64(a->sk, j + K_TILE);
    pack_panels(a, r->in[K], at, j, packed);
    pack_rows(a, r->in[V], a->Sk, a->kv * a->d, at, j, end, 1, packed + a->sk * a->d);
}

static void attn_run(const dt_node *n, const dt_run *r)
{
    struct attn a = attn_of(n);
    const float *bias = r->in[BIAS];
    const uint8_t *mask = r->in[MASK];
    int threads = r->dev->threads;
    int64_t group = fwd_group(&a, threads), pairs = a.B * a.kv;
    int64_t per = a.h / a.kv, size = fwd_pair_floats(&a);
    int64_t nk = dt_div_up(a.sk, K_TILE), nq = dt_div_up(a.Sq, Q_TILE);
    float *packed = (float *)r->workspace + threads * fwd_thread_floats(&a);
#pragma omp parallel num_threads(threads)
    {
        struct fwd_scratch w;
        w.q = (float *)r->workspace + omp_get_thread_num() * fwd_thread_floats(&a);
        w.o = w.q + Q_TILE * a.ld;
        w.s = w.o + Q_TILE * a.ld;
        for (int64_t p0 = 0; p0 < pairs; p0 += group) {
            int64_t np = dt_min64(group, pairs - p0);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < np * nk; i++)
                fwd_pack(&a, p0 + i / nk, i % nk * K_TILE, r, packed + i / nk * size);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < np * per * nq; i++) {
                int64_t p = i / (per * nq), pair = p0 + p;
                struct tile t = { .b = pair / a.kv };
                t.head = pair % a.kv * per + i / nq % per;
                t.q0 = i % nq * Q_TILE;
                t.qn = dt_min64(Q_TILE, a.Sq - t.q0);
                const float *panels = packed + p * size;
                fwd_tile(&a, t, panels, panels + a.sk * a.d, &w, r, bias, mask);
            }
        }
    }
}

const dt_op dt_op_attention = {
    .name = "attention", .shape = attn_shape, .grad = attn_grad, .cost = attn_cost,
    .optional_out = 2, .cpu = { attn_prepare, attn_run, NULL },
};

/* --- backward --- */

static const char *bwd_shape(dt_node *n)
{
    for (int i = 0; i < 3; i++)
        dt_node_out(n, i, n->in[i]->dtype, n->in[i]->dims);
    if (n->attr.i[WANT_BIAS])
        dt_node_out(n, BIAS, DT_F32, n->in[BIAS]->dims);
    return NULL;
}

static void bwd_cost(const dt_node *n, dt_cost *c) { cost(n, c, 5); }

struct bwd_scratch {                /* of a thread */
    float *s, *ds;                  /* [Q_TILE][LDS] */
    float *dk, *dv;                 /* [K_TILE][ld] */
};

/* A packed pair: its key head, then per query head q (scaled), dy, rowsum(dy y) and the parts of dq, one per chunk. */
struct bwd_head { float *q, *dy, *delta, *dq; };

static int64_t bwd_thread_floats(const struct attn *a)
{
    return 2 * Q_TILE * LDS + 2 * K_TILE * a->ld;
}

static int64_t bwd_head_floats(const struct attn *a)
{
    return dt_tile_round(a->sq * (a->ld * (2 + a->chunks) + 1), 16);
}

static int64_t bwd_pair_floats(const struct attn *a)
{
    return a->sk * (2 * a->d + a->ld) + a->h / a->kv * bwd_head_floats(a);
}

static int64_t bwd_group(const struct attn *a, int threads)
{
    return group_pairs(a, a->chunks, bwd_pair_floats(a), threads);
}

static int bwd_prepare(const dt_node *n, dt_prep *p)
{
    struct attn a = attn_of(n);
    int t = p->dev->threads;
    p->workspace = (t * bwd_thread_floats(&a) + bwd_group(&a, t) * bwd_pair_floats(&a)) * (int64_t)sizeof(float);
    return 0;
}

static struct bwd_head head_of(const struct attn *a, float *packed, int64_t i)
{
    struct bwd_head w = { .q = packed + a->sk * (2 * a->d + a->ld) + i * bwd_head_floats(a) };
    w.dy = w.q + a->sq * a->ld;
    w.dq = w.dy + a->sq * a->ld;
    w.delta = w.dq + a->chunks * a->sq * a->ld;
    return w;
}

static void bwd_pack_keys(const struct attn *a, int64_t pair, int64_t j, const dt_run *r,
                          float *packed)
{
    int64_t at = key_head(a, pair), end = dt_min64(a->sk, j + K_TILE);
    pack_panels(a, r->in[K], at, j, packed);
    pack_panels(a, r->in[V], at, j, packed + a->sk * a->d);
    pack_rows(a, r->in[K], a->Sk, a->kv * a->d, at, j, end, 1, packed + 2 * a->sk * a->d);
}

static void bwd_pack_queries(const struct attn *a, int64_t b, int64_t head, int64_t q0,
                             const dt_run *r, struct bwd_head w)
{
    int64_t q1 = dt_min64(a->sq, q0 + Q_TILE), at = query_row(a, b, head, 0);
    float tmp[DT_CHUNK];
    pack_rows(a, r->in[Q], a->Sq, a->h * a->d, at, q0, q1, a->scale, w.q);
    pack_rows(a, r->in[DY], a->Sq, a->h * a->d, at, q0, q1, 1, w.dy);
    for (int64_t i = q0; i < dt_min64(a->Sq, q1); i++) {
        float sum = 0;
        for (int64_t c0 = 0; c0 < a->d; c0 += DT_CHUNK) {
            int64_t n = dt_min64(DT_CHUNK, a->d - c0);
            const float *y = dt_row_in(r->in[Y], a->t, query_row(a, b, head, i) + c0, n, tmp);
            const float *dy = w.dy + i * a->ld + c0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < n; c++)
                sum += y[c] * dy[c];
        }
        w.delta[i] = sum;
    }
}

/* s becomes p = exp(s - lse), ds becomes p (dp - D); adds ds to dbias, or sets it for the first batch entry. */
static void bwd_softmax(const struct attn *a, const struct tile *t, const dt_run *r,
                        const float *delta, float *dbias, const struct bwd_scratch *w)
{
    const float *lse = (const float *)r->in[LSE] + (t->b * a->h + t->head) * a->Sq + t->q0;
    for (int64_t i = 0; i < t->qn; i++) {
        float *s = w->s + i * LDS, *ds = w->ds + i * LDS, l = lse[i], D = delta[t->q0 + i];
        mask_row(a, t, i, r->in[BIAS], r->in[MASK], s);
        for (int64_t j = 0; j < t->kn; j++) {
            s[j] = dt_expf(s[j] - l);
            ds[j] = s[j] * (ds[j] - D);
        }
        if (!dbias)
            continue;
        float *db = dbias + (t->head * a->Sq + t->q0 + i) * a->Sk + t->k0;
        for (int64_t j = 0; j < t->kn; j++)
            db[j] = ds[j] + (t->b ? db[j] : 0.0f);
    }
}

static void bwd_tile(const struct attn *a, const struct tile *t, const dt_run *r,
                     const float *packed, struct bwd_head h, float *dq, const struct bwd_scratch *w)
{
    const float *q = h.q + t->q0 * a->ld, *dy = h.dy + t->q0 * a->ld;
    const float *k = packed + 2 * a->sk * a->d;
    int64_t mq = dt_tile_round(t->qn, DT_TILE_M), mk = dt_tile_round(t->kn, DT_TILE_M);
    products(a, t, q, packed, w->s);
    products(a, t, dy, packed + a->sk * a->d, w->ds);
    bwd_softmax(a, t, r, h.delta, r->out[BIAS], w);
    add_product(a, mk, t->qn, (dt_mat_a){ w->s, 1, LDS }, dy, w->dv);
    add_product(a, mk, t->qn, (dt_mat_a){ w->ds, 1, LDS }, q, w->dk);
    add_product(a, mq, t->kn, (dt_mat_a){ w->ds, LDS, 1 }, k + t->k0 * a->ld, dq + t->q0 * a->ld);
}

/* The keys of one chunk against all queries of the heads that share them. */
static void bwd_chunk(const struct attn *a, int64_t pair, int64_t chunk, const dt_run *r,
                      float *packed, const struct bwd_scratch *w)
{
    int64_t per = a->h / a->kv, end = dt_min64(a->Sk, (chunk + 1) * a->chunk);
    int64_t stride = a->kv * a->d, part = a->sq * a->ld;
    struct tile t = { .b = pair / a->kv };
    for (int64_t i = 0; i < per; i++)
        memset(head_of(a, packed, i).dq + chunk * part, 0, (size_t)part * sizeof(float));
    for (t.k0 = chunk * a->chunk; t.k0 < end; t.k0 += K_TILE) {
        t.kn = dt_min64(K_TILE, end - t.k0);
        size_t used = (size_t)(dt_tile_round(t.kn, DT_TILE_M) * a->ld) * sizeof(float);
        memset(w->dk, 0, used);
        memset(w->dv, 0, used);
        /* Where no query sees the keys there is nothing to add, but zeros of dbias to write. */
        int64_t first = a->causal && !r->out[BIAS] ? t.k0 / Q_TILE * Q_TILE : 0;
        for (int64_t i = 0; i < per; i++) {
            struct bwd_head h = head_of(a, packed, i);
            t.head = pair % a->kv * per + i;
            for (t.q0 = first; t.q0 < a->Sq; t.q0 += Q_TILE) {
                t.qn = dt_min64(Q_TILE, a->Sq - t.q0);
                bwd_tile(a, &t, r, packed, h, h.dq + chunk * part, w);
            }
        }
        for (int64_t j = 0; j < t.kn; j++) {
            int64_t at = key_head(a, pair) + (t.k0 + j) * stride;
            if (r->out[K])
                put_row(a, r->out[K], at, w->dk + j * a->ld);
            if (r->out[V])
                put_row(a, r->out[V], at, w->dv + j * a->ld);
        }
    }
}

/* dq of a tile of queries: the chunks' parts in order. */
static void bwd_sum_dq(const struct attn *a, int64_t b, int64_t head, int64_t q0, const dt_run *r,
                       struct bwd_head h)
{
    for (int64_t i = q0; i < dt_min64(a->Sq, q0 + Q_TILE); i++) {
        float *sum = h.dq + i * a->ld;
        for (int64_t k = 1; k < a->chunks; k++)
            for (int64_t c = 0; c < a->d; c++)
                sum[c] += sum[k * a->sq * a->ld + c];
        for (int64_t c = 0; c < a->d; c++)
            sum[c] *= a->scale;
        put_row(a, r->out[Q], query_row(a, b, head, i), sum);
    }
}

/* One group of pairs, by all threads. */
static void bwd_group_run(const struct attn *a, const dt_run *r, int64_t p0, int64_t np,
                          float *packed, const struct bwd_scratch *w)
{
    int64_t per = a->h / a->kv, size = bwd_pair_floats(a);
    int64_t nk = dt_div_up(a->sk, K_TILE), nq = dt_div_up(a->Sq, Q_TILE);
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < np * nk; i++)
        bwd_pack_keys(a, p0 + i / nk, i % nk * K_TILE, r, packed + i / nk * size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < np * per * nq; i++) {
        int64_t p = i / (per * nq), k = i / nq % per, pair = p0 + p;
        bwd_pack_queries(a, pair / a->kv, pair % a->kv * per + k, i % nq * Q_TILE, r,
                         head_of(a, packed + p * size, k));
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < np * a->chunks; i++)
        bwd_chunk(a, p0 + i / a->chunks, i % a->chunks, r, packed + i / a->chunks * size, w);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (r->out[Q] ? np * per * nq : 0); i++) {
        int64_t p = i / (per * nq), k = i / nq % per, pair = p0 + p;
        bwd_sum_dq(a, pair / a->kv, pair % a->kv * per + k, i % nq * Q_TILE, r,
                   head_of(a, packed + p * size, k));
    }
}

static void bwd_run(const dt_node *n, const dt_run *r)
{
    struct attn a = attn_of(n);
    int threads = r->dev->threads;
    int64_t group = bwd_group(&a, threads), pairs = a.B * a.kv;
    float *packed = (float *)r->workspace + threads * bwd_thread_floats(&a);
#pragma omp parallel num_threads(threads)
    {
        struct bwd_scratch w;
        w.s = (float *)r->workspace + omp_get_thread_num() * bwd_thread_floats(&a);
        w.ds = w.s + Q_TILE * LDS;
        w.dk = w.ds + Q_TILE * LDS;
        w.dv = w.dk + K_TILE * a.ld;
        for (int64_t p0 = 0, np; p0 < pairs; p0 += np) {
            np = dt_min64(group, pairs - p0);
            if (r->out[BIAS])           /* dbias sums over batch entries in order: no group holds two */
                np = dt_min64(np, a.kv - p0 % a.kv);
            bwd_group_run(&a, r, p0, np, packed, &w);
        }
    }
}

const dt_op dt_op_attention_bwd = {
    .name = "attention_bwd", .shape = bwd_shape, .cost = bwd_cost, .optional_out = 0xf,
    .cpu = { bwd_prepare, bwd_run, NULL },
};

/* --- builder --- */

dt_tensor *dt_attention(dt_graph *g, dt_tensor *q, dt_tensor *k, dt_tensor *v, const dt_attn *a)
{
    double d = a->heads > 0 ? (double)(dt_last_dim(q) / a->heads) : 1;
    dt_attr attr = { .i = { a->heads, a->causal }, .f = { a->scale ? a->scale : 1 / sqrt(d) } };
    return dt_apply(g, &dt_op_attention, &attr, DT_IN(q, k, v, a->bias, a->mask))->out[0];
}
