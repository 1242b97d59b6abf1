/* Cases of embed.c.  Few ids over many places, so that gradients of equal ids meet. */
#include "tests/checkop.h"

static dt_tensor *embedding(dt_graph *g, dt_tensor **in) { return dt_embedding(g, in[0], in[1]); }
static dt_tensor *gather(dt_graph *g, dt_tensor **in) { return dt_gather_rows(g, in[0], in[1]); }
static dt_tensor *bias5(dt_graph *g, dt_tensor **in) { return dt_t5_bias(g, in[0], 5, 20); }
static dt_tensor *bias40(dt_graph *g, dt_tensor **in) { return dt_t5_bias(g, in[0], 40, 20); }
static dt_tensor *bias512(dt_graph *g, dt_tensor **in) { return dt_t5_bias(g, in[0], 512, 128); }
static dt_tensor *cos_first(dt_graph *g, dt_tensor **in) { return dt_timestep_embed(g, in[0], 256, true, 0, 1); }
static dt_tensor *sin_first(dt_graph *g, dt_tensor **in) { return dt_timestep_embed(g, in[0], 10, false, 1, 1000); }

const check_case embed_cases[] = {
    { "embedding 3 rows",    embedding, { WEIGHT(3, 5), INTS(3, 2, 7) }, .k = 14 },
    { "embedding 70 wide",   embedding, { WEIGHT(11, 70), INTS(11, 9) }, .k = 9 },
    { "embedding frozen",    embedding, { FROZEN(11, 70), INTS(11, 9) }, .flags = CHECK_NO_GRAD },
    { "embedding large",     embedding, { WEIGHT(32128, 512), INTS(32128, 8, 512) }, .k = 4096, .flags = CHECK_LARGE },
    { "gather_rows 3x4x5",   gather,    { ACT(3, 4, 5), INTS(4, 3) } },
    { "t5_bias 5",           bias5,     { WEIGHT(8, 2) }, .k = 25 },
    { "t5_bias 40",          bias40,    { WEIGHT(8, 3) }, .k = 1600 },
    { "t5_bias 512",         bias512,   { WEIGHT(32, 64) }, .k = 262144, .flags = CHECK_LARGE },
    { "timestep cos first",  cos_first, { RANGE(CONST_F32, 0, 1000, 5) }, .flags = CHECK_NO_GRAD },
    { "timestep sin first",  sin_first, { RANGE(CONST_F32, 0, 1, 3) }, .flags = CHECK_NO_GRAD },
    { 0 }
};
