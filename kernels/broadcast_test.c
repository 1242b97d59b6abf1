/* Cases of broadcast.c.  Blocks are 32 rows of 512 elements; sums split beyond 256 rows. */
#include "tests/checkop.h"

static dt_tensor *add_rows(dt_graph *g, dt_tensor **in) { return dt_add_rows(g, in[0], in[1]); }
static dt_tensor *modulate(dt_graph *g, dt_tensor **in) { return dt_modulate(g, in[0], in[1], in[2]); }
static dt_tensor *gated_add(dt_graph *g, dt_tensor **in) { return dt_gated_add(g, in[0], in[1], in[2]); }
static dt_tensor *gated_self(dt_graph *g, dt_tensor **in) { return dt_gated_add(g, in[0], in[1], in[0]); }

const check_case broadcast_cases[] = {
    { "add_rows [C]",         add_rows,  { ACT(2, 3, 5), WEIGHT(5) }, .k = 6 },
    { "add_rows [S,C]",       add_rows,  { ACT(2, 3, 5), WEIGHT(3, 5) }, .k = 2 },
    { "add_rows same",        add_rows,  { ACT(3, 5), ACT(3, 5) } },
    { "add_rows act 40x700",  add_rows,  { ACT(40, 700), ACT(700) }, .k = 40 },
    { "add_rows 600 rows",    add_rows,  { ACT(600, 7), WEIGHT(7) }, .k = 600 },
    { "add_rows frozen",      add_rows,  { ACT(2, 77, 64), FROZEN(77, 64) }, .k = 2 },
    { "add_rows large",       add_rows,  { ACT(8, 512, 3072), WEIGHT(3072) }, .k = 4096, .flags = CHECK_LARGE },
    { "modulate 1x1x1",       modulate,  { ACT(1, 1, 1), ACT(1, 1), ACT(1, 1) } },
    { "modulate 2x5x33",      modulate,  { ACT(2, 5, 33), ACT(2, 33), ACT(2, 33) }, .k = 5 },
    { "modulate 2x70x520",    modulate,  { ACT(2, 70, 520), ACT(2, 520), ACT(2, 520) }, .k = 70, .flags = CHECK_LARGE },
    { "modulate picture",     modulate,  { ACT(2, 3, 4, 6), ACT(2, 6), ACT(2, 6) }, .k = 12 },
    { "modulate 300 rows",    modulate,  { ACT(2, 300, 3), ACT(2, 3), ACT(2, 3) }, .k = 300 },
    { "modulate constants",   modulate,  { ACT(2, 5, 33), CONST(2, 33), CONST(2, 33) } },
    { "modulate weights",     modulate,  { CONST(2, 5, 33), WEIGHT(2, 33), WEIGHT(2, 33) }, .k = 5 },
    { "modulate large",       modulate,  { ACT(1, 4096, 3072), ACT(1, 3072), ACT(1, 3072) }, .k = 4096,
      .flags = CHECK_LARGE },
    { "gated_add 2x5x33",     gated_add, { ACT(2, 5, 33), ACT(2, 33), ACT(2, 5, 33) }, .k = 5 },
    { "gated_add 300 rows",   gated_add, { ACT(2, 300, 3), ACT(2, 3), ACT(2, 300, 3) }, .k = 300 },
    { "gated_add f32 gate",   gated_add, { ACT(2, 5, 33), ACT_F32(2, 33), ACT(2, 5, 33) }, .k = 5 },
    { "gated_add itself",     gated_self, { ACT(2, 5, 33), ACT(2, 33) }, .k = 5 },
    { "gated_add large",      gated_add, { ACT(1, 4096, 3072), ACT(1, 3072), ACT(1, 4096, 3072) }, .k = 4096,
      .flags = CHECK_LARGE },
    { 0 }
};
