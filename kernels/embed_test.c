/* Cases of embed.c.  Few ids over many places, so that gradients of equal ids meet. */
#include <math.h>
#include <string.h>
#include "tests/checkop.h"

static dt_tensor *embedding(dt_graph *g, dt_tensor **in) { return dt_embedding(g, in[0], in[1]); }
static dt_tensor *gather(dt_graph *g, dt_tensor **in) { return dt_gather_rows(g, in[0], in[1]); }
static dt_tensor *bias5(dt_graph *g, dt_tensor **in) { return dt_t5_bias(g, in[0], 5, 20); }
static dt_tensor *bias40(dt_graph *g, dt_tensor **in) { return dt_t5_bias(g, in[0], 40, 20); }
static dt_tensor *bias512(dt_graph *g, dt_tensor **in) { return dt_t5_bias(g, in[0], 512, 128); }
static dt_tensor *cos_first(dt_graph *g, dt_tensor **in) { return dt_timestep_embed(g, in[0], 256, true, 0, 1); }
static dt_tensor *sin_first(dt_graph *g, dt_tensor **in) { return dt_timestep_embed(g, in[0], 10, false, 1, 1000); }

static void embedding_ref(const check_case *c, const float *const *in, float *y)
{
    int64_t V = c->in[0].d[0], C = c->in[0].d[1];
    for (int64_t i = 0; i < check_numel(&c->in[1]); i++) {
        int64_t id = (int64_t)in[1][i];
        memcpy(y + i * C, in[0] + (id >= 0 && id < V ? id : 0) * C, (size_t)C * sizeof(*y));
    }
}

static void gather_ref(const check_case *c, const float *const *in, float *y)
{
    int64_t S = c->in[0].d[1], C = c->in[0].d[2];
    for (int64_t b = 0; b < c->in[1].d[0]; b++)
        memcpy(y + b * C, in[0] + (b * S + (int64_t)in[1][b]) * C, (size_t)C * sizeof(*y));
}

/* Angles rounded to fp32 after each step: the networks were trained with them. */
static void sinusoids(const check_case *c, const float *t, float *y, int n, bool cosine_first, float shift, float scale)
{
    int half = n / 2;
    for (int64_t b = 0; b < c->in[0].d[0]; b++, y += n)
        for (int i = 0; i < half; i++) {
            float f = (float)exp((double)((float)-log(10000) * (float)i / ((float)half - shift)));
            double angle = (double)(scale * (t[b] * f));
            y[i] = (float)(cosine_first ? cos(angle) : sin(angle));
            y[half + i] = (float)(cosine_first ? sin(angle) : cos(angle));
        }
}

static void cos_first_ref(const check_case *c, const float *const *in, float *y)
{
    sinusoids(c, in[0], y, 256, true, 0, 1);
}

static void sin_first_ref(const check_case *c, const float *const *in, float *y)
{
    sinusoids(c, in[0], y, 10, false, 1, 1000);
}

const check_case embed_cases[] = {
    { "embedding 3 rows",    embedding, { WEIGHT(3, 5), INTS(3, 2, 7) }, .k = 14, .reference = embedding_ref },
    { "embedding, ids outside", embedding, { WEIGHT(3, 5), RANGE(INT, -2, 6, 2, 7) }, .k = 14, .reference = embedding_ref },
    { "embedding 70 wide",   embedding, { WEIGHT(11, 70), INTS(11, 9) }, .k = 9 },
    { "embedding frozen",    embedding, { FROZEN(11, 70), INTS(11, 9) }, .flags = CHECK_NO_GRAD },
    { "embedding large",     embedding, { WEIGHT(32128, 512), INTS(32128, 8, 512) }, .k = 4096, .flags = CHECK_LARGE },
    { "gather_rows 3x4x5",   gather,    { ACT(3, 4, 5), INTS(4, 3) }, .reference = gather_ref },
    { "t5_bias 5",           bias5,     { WEIGHT(8, 2) }, .k = 25 },
    { "t5_bias 40",          bias40,    { WEIGHT(8, 3) }, .k = 1600 },
    { "t5_bias 512",         bias512,   { WEIGHT(32, 64) }, .k = 262144, .flags = CHECK_LARGE },
    { "timestep cos first",  cos_first, { RANGE(CONST_F32, 0, 1000, 5) }, .flags = CHECK_NO_GRAD, .reference = cos_first_ref },
    { "timestep sin first",  sin_first, { RANGE(CONST_F32, 0, 1, 3) }, .flags = CHECK_NO_GRAD, .reference = sin_first_ref },
    { 0 }
};
