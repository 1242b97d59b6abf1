/* Cases of attention.c.  Tiles are of 64 queries and 256 keys; the backward pass goes by chunks of 1024 keys. */
#include <math.h>
#include <stdlib.h>
#include "tests/checkop.h"

static dt_tensor *plain(dt_graph *g, dt_tensor **in, int heads)
{
    return dt_attention(g, in[0], in[1], in[2], &(dt_attn){ .heads = heads });
}

static dt_tensor *plain1(dt_graph *g, dt_tensor **in) { return plain(g, in, 1); }
static dt_tensor *plain2(dt_graph *g, dt_tensor **in) { return plain(g, in, 2); }
static dt_tensor *plain8(dt_graph *g, dt_tensor **in) { return plain(g, in, 8); }

static dt_tensor *causal(dt_graph *g, dt_tensor **in)
{
    dt_attn a = { .heads = 2, .causal = true, .scale = 0.7 };
    return dt_attention(g, in[0], in[1], in[2], &a);
}

static dt_tensor *biased(dt_graph *g, dt_tensor **in)
{
    dt_attn a = { .heads = 2, .scale = 1, .bias = in[3] };
    return dt_attention(g, in[0], in[1], in[2], &a);
}

static dt_tensor *masked(dt_graph *g, dt_tensor **in)
{
    return dt_attention(g, in[0], in[1], in[2], &(dt_attn){ .heads = 2, .mask = in[3] });
}

static dt_tensor *everything(dt_graph *g, dt_tensor **in)
{
    dt_attn a = { .heads = 2, .causal = true, .bias = in[3], .mask = in[4] };
    return dt_attention(g, in[0], in[1], in[2], &a);
}

static dt_tensor *self2(dt_graph *g, dt_tensor **in)
{
    return dt_attention(g, in[0], in[0], in[0], &(dt_attn){ .heads = 2 });
}

static double usual(const check_case *c, int heads) { return 1 / sqrt((double)c->in[0].d[2] / heads); }

struct setting { int64_t heads; double scale; bool causal; const float *bias, *mask; };

static void row(const check_case *c, const float *const *in, const struct setting *s, int64_t b,
                int64_t h, int64_t i, float *y)
{
    int64_t Sk = c->in[1].d[1], d = c->in[0].d[2] / s->heads;
    int64_t kd = c->in[1].d[2], kh = h / (s->heads / (kd / d));
    const float *q = in[0] + ((b * c->in[0].d[1] + i) * s->heads + h) * d;
    double *p = malloc((size_t)Sk * sizeof(*p)), max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < Sk; j++) {
        p[j] = s->bias ? s->bias[(h * c->in[0].d[1] + i) * Sk + j] : 0;
        for (int64_t k = 0; k < d; k++)
            p[j] += s->scale * q[k] * in[1][(b * Sk + j) * kd + kh * d + k];
        if ((s->causal && j > i) || (s->mask && !s->mask[b * Sk + j]))
            p[j] = -INFINITY;
        max = fmax(max, p[j]);
    }
    for (int64_t j = 0; j < Sk; j++)
        sum += p[j] = max == -INFINITY ? 0 : exp(p[j] - max);
    for (int64_t k = 0; k < d; k++) {
        double o = 0;
        for (int64_t j = 0; j < Sk; j++)
            o += p[j] * in[2][(b * Sk + j) * kd + kh * d + k];
        y[((b * c->in[0].d[1] + i) * s->heads + h) * d + k] = (float)(sum > 0 ? o / sum : 0);
    }
    free(p);
}

static void reference(const check_case *c, const float *const *in, float *y, struct setting s)
{
    for (int64_t b = 0; b < c->in[0].d[0]; b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t i = 0; i < c->in[0].d[1]; i++)
                row(c, in, &s, b, h, i, y);
}

static void plain1_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct setting){ 1, usual(c, 1), false, NULL, NULL });
}

static void plain2_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct setting){ 2, usual(c, 2), false, NULL, NULL });
}

static void causal_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct setting){ 2, 0.7, true, NULL, NULL });
}

static void biased_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct setting){ 2, 1, false, in[3], NULL });
}

static void masked_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct setting){ 2, usual(c, 2), false, NULL, in[3] });
}

static void everything_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct setting){ 2, usual(c, 2), true, in[3], in[4] });
}

#define QKV(B, Sq, Sk, n) ACT(B, Sq, n), ACT(B, Sk, n), ACT(B, Sk, n)

const check_case attention_cases[] = {
    { "1x1", plain1, { QKV(1, 1, 1, 1) }, .reference = plain1_ref },
    { "5x7, 2 heads of 3", plain2, { QKV(2, 5, 7, 6) }, .k = 7, .reference = plain2_ref },
    { "1 head of 33", plain1, { QKV(2, 3, 4, 33) }, .k = 33, .reference = plain1_ref },
    { "tiles and a rest", plain2, { QKV(1, 70, 150, 16) }, .k = 150, .reference = plain2_ref },
    { "chunks", plain1, { QKV(1, 9, 2100, 4) }, .k = 2100, .reference = plain1_ref },
    { "head of 512", plain1, { QKV(1, 6, 5, 512) }, .k = 512, .reference = plain1_ref },
    { "head of 1100", plain1, { QKV(1, 2, 3, 1100) }, .k = 1100, .reference = plain1_ref },
    { "causal", causal, { QKV(2, 6, 6, 8) }, .k = 6, .reference = causal_ref },
    { "causal, tiles", causal, { QKV(1, 140, 140, 8) }, .k = 140, .reference = causal_ref },
    { "causal, more keys", causal, { QKV(1, 4, 9, 8) }, .k = 9, .reference = causal_ref },
    { "causal, fewer keys", causal, { QKV(1, 9, 4, 8) }, .k = 9, .reference = causal_ref },
    { "bias", biased, { QKV(3, 5, 6, 8), ACT_F32(2, 5, 6) }, .k = 6, .reference = biased_ref },
    { "bias, tiles", biased, { QKV(2, 67, 131, 8), ACT_F32(2, 67, 131) }, .k = 131, .reference = biased_ref },
    { "bias without gradient", biased, { QKV(2, 5, 6, 8), CONST_F32(2, 5, 6) }, .k = 6, .reference = biased_ref },
    { "mask, one row all masked", masked, { QKV(3, 5, 9, 8), MASK(3, 9) }, .k = 9, .reference = masked_ref },
    { "mask, tiles", masked, { QKV(2, 5, 300, 8), MASK(2, 300) }, .k = 300, .reference = masked_ref },
    { "causal, bias, mask", everything, { QKV(2, 66, 130, 6), ACT_F32(2, 66, 130), MASK(2, 130) }, .k = 130,
      .reference = everything_ref },
    { "grouped queries", plain2, { ACT(2, 5, 8), ACT(2, 7, 4), ACT(2, 7, 4) }, .k = 10, .reference = plain2_ref },
    { "self, one tensor", self2, { ACT(1, 6, 8) }, .k = 6 },
    { "frozen keys", plain2, { ACT(1, 5, 8), CONST(1, 7, 8), CONST(1, 7, 8) }, .k = 7, .reference = plain2_ref },
    { "8 x 1024 x 1024 x 128", plain8, { QKV(1, 1024, 1024, 1024) }, .k = 1024, .flags = CHECK_LARGE },
    { "8 x 2304 x 2304 x 64", plain8, { QKV(1, 2304, 2304, 512) }, .k = 2304, .flags = CHECK_LARGE },
    { "1 x 1024 x 1024 x 512", plain1, { QKV(1, 1024, 1024, 512) }, .k = 1024, .flags = CHECK_LARGE },
    { "8 x 77 x 77 x 64, B 4", plain8, { QKV(4, 77, 77, 512) }, .k = 77, .flags = CHECK_LARGE },
    { 0 }
};
