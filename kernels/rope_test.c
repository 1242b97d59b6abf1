/* Cases of rope.c.  The tables need not be of unit length: rotation and scaling are checked alike. */
#include "tests/checkop.h"

static dt_tensor *rope(dt_graph *g, dt_tensor **in) { return dt_rope(g, in[0], in[1], in[2]); }

const check_case rope_cases[] = {
    { "rope 1x1x1x2",    rope, { ACT(1, 1, 1, 2), CONST_F32(1, 1), CONST_F32(1, 1) } },
    { "rope 2x5x3x16",   rope, { ACT(2, 5, 3, 16), CONST_F32(5, 8), CONST_F32(5, 8) } },
    { "rope odd half",   rope, { ACT(2, 5, 3, 22), CONST_F32(5, 11), CONST_F32(5, 11) } },
    { "rope many heads", rope, { ACT(1, 2, 12, 128), CONST_F32(2, 64), CONST_F32(2, 64) } },
    { "rope large",      rope, { ACT(1, 4608, 24, 128), CONST_F32(4608, 64), CONST_F32(4608, 64) },
      .flags = CHECK_LARGE },
    { 0 }
};
