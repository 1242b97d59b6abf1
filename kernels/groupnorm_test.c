/* Cases of groupnorm.c.  Blocks hold 8192 elements of a sample. */
#include "tests/checkop.h"

static dt_tensor *one_group(dt_graph *g, dt_tensor **in) { return dt_groupnorm(g, in[0], in[1], in[2], 1, 1e-6); }
static dt_tensor *groups4(dt_graph *g, dt_tensor **in) { return dt_groupnorm(g, in[0], in[1], in[2], 4, 1e-6); }
static dt_tensor *groups4_plain(dt_graph *g, dt_tensor **in) { return dt_groupnorm(g, in[0], NULL, NULL, 4, 1e-6); }
static dt_tensor *groups32(dt_graph *g, dt_tensor **in) { return dt_groupnorm(g, in[0], in[1], in[2], 32, 1e-6); }

const check_case groupnorm_cases[] = {
    { "groupnorm 1 group",      one_group,     { ACT(2, 3, 5), WEIGHT(5), WEIGHT(5) }, .k = 15 },
    { "groupnorm 2x3x4x8",      groups4,       { ACT(2, 3, 4, 8), WEIGHT(8), WEIGHT(8) }, .k = 24 },
    { "groupnorm no weights",   groups4_plain, { ACT(2, 3, 4, 8) }, .k = 24 },
    { "groupnorm frozen",       groups4,       { ACT(2, 3, 4, 8), FROZEN(8), FROZEN(8) }, .k = 24 },
    { "groupnorm weights only", groups4,       { CONST(2, 3, 4, 8), WEIGHT(8), WEIGHT(8) }, .k = 24 },
    { "groupnorm mean 5",       groups4,       { RANGE(ACT, 4, 6, 2, 3, 4, 8), WEIGHT(8), WEIGHT(8) }, .k = 24 },
    { "groupnorm 3 blocks",     groups32,      { ACT(1, 17, 9, 160), WEIGHT(160), WEIGHT(160) }, .k = 765,
      .flags = CHECK_LARGE },
    { "groupnorm large",        groups32,      { ACT(1, 128, 128, 512), WEIGHT(512), WEIGHT(512) }, .k = 262144,
      .flags = CHECK_LARGE },
    { 0 }
};
