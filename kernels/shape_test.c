/* Cases of shape.c.  A part that nobody reads, parts of unlike size, every dim, every path of permute. */
#include "tests/checkop.h"

static dt_tensor *concat0(dt_graph *g, dt_tensor **in) { return dt_concat(g, 0, 2, in); }
static dt_tensor *concat1(dt_graph *g, dt_tensor **in) { return dt_concat(g, 1, 2, in); }
static dt_tensor *concat_last3(dt_graph *g, dt_tensor **in) { return dt_concat(g, 2, 3, in); }
static dt_tensor *concat_twice(dt_graph *g, dt_tensor **in)
{
    return dt_concat(g, 1, 3, (dt_tensor *[]){ in[0], in[1], in[0] });
}
static dt_tensor *slice0(dt_graph *g, dt_tensor **in) { return dt_slice(g, in[0], 0, 1, 2); }
static dt_tensor *slice1_head(dt_graph *g, dt_tensor **in) { return dt_slice(g, in[0], 1, 0, 3); }
static dt_tensor *slice1_tail(dt_graph *g, dt_tensor **in) { return dt_slice(g, in[0], 1, 3, 4); }
static dt_tensor *slice_last(dt_graph *g, dt_tensor **in) { return dt_slice(g, in[0], 2, 1, 3); }
static dt_tensor *slice_all(dt_graph *g, dt_tensor **in) { return dt_slice(g, in[0], 1, 0, 7); }

static dt_tensor *chunk2(dt_graph *g, dt_tensor **in)
{
    dt_tensor *c[2];
    dt_chunk(g, in[0], 2, c);
    return dt_mul(g, c[0], c[1]);
}

static dt_tensor *chunk6(dt_graph *g, dt_tensor **in)
{
    dt_tensor *c[6];
    dt_chunk(g, in[0], 6, c);                                       /* the fourth and last stay unread */
    return dt_sub(g, dt_mul(g, c[0], c[4]), dt_mul(g, c[2], dt_silu(g, c[1])));
}

static dt_tensor *transpose(dt_graph *g, dt_tensor **in) { return dt_permute(g, in[0], (int[]){ 1, 0 }); }
static dt_tensor *swap_middle(dt_graph *g, dt_tensor **in) { return dt_permute(g, in[0], (int[]){ 0, 2, 1, 3 }); }
static dt_tensor *last_first(dt_graph *g, dt_tensor **in) { return dt_permute(g, in[0], (int[]){ 0, 3, 1, 2 }); }
static dt_tensor *identity(dt_graph *g, dt_tensor **in) { return dt_permute(g, in[0], (int[]){ 0, 1, 2, 3 }); }
static dt_tensor *reversed(dt_graph *g, dt_tensor **in) { return dt_permute(g, in[0], (int[]){ 3, 2, 1, 0 }); }
/* FLUX's packing of 2x2 latent cells: [B, h, 2, w, 2, C] -> [B, h, w, C, 2, 2] */
static dt_tensor *pack(dt_graph *g, dt_tensor **in) { return dt_permute(g, in[0], (int[]){ 0, 1, 3, 5, 2, 4 }); }

const check_case shape_cases[] = {
    { "concat dim 0",         concat0,      { ACT(2, 3), ACT(1, 3) } },
    { "concat dim 1",         concat1,      { ACT(2, 3, 5), ACT(2, 4, 5) } },
    { "concat last of 3",     concat_last3, { ACT(2, 3, 5), ACT(2, 3, 1), ACT(2, 3, 4) } },
    { "concat one twice",     concat_twice, { ACT(2, 3, 5), ACT(2, 4, 5) } },
    { "concat weight",        concat1,      { ACT(2, 3), WEIGHT(2, 4) } },
    { "concat large",         concat1,      { ACT(1, 512, 3072), ACT(1, 4096, 3072) }, .flags = CHECK_LARGE },
    { "slice dim 0",          slice0,       { ACT(4, 3) } },
    { "slice head",           slice1_head,  { ACT(2, 7, 5) } },
    { "slice tail",           slice1_tail,  { ACT(2, 7, 5) } },
    { "slice last dim",       slice_last,   { ACT(2, 3, 5) } },
    { "slice all",            slice_all,    { ACT(2, 7, 5) } },
    { "slice weight",         slice0,       { WEIGHT(4, 3) } },
    { "slice tail large",     slice1_tail,  { ACT(512, 7, 3072) }, .flags = CHECK_LARGE },
    { "chunk 2",              chunk2,       { ACT(2, 3, 10) } },
    { "chunk 6, one unread",  chunk6,       { ACT(2, 18) } },
    { "permute transpose",    transpose,    { ACT(3, 5) } },
    { "permute 70x45",        transpose,    { ACT(70, 45) } },
    { "permute heads",        swap_middle,  { ACT(2, 3, 4, 5) } },
    { "permute last first",   last_first,   { ACT(2, 3, 4, 5) } },
    { "permute identity",     identity,     { ACT(2, 3, 4, 5) } },
    { "permute reversed",     reversed,     { ACT(2, 3, 4, 5) } },
    { "permute ones",         reversed,     { ACT(1, 3, 1, 1) } },
    { "permute pack",         pack,         { ACT(2, 3, 2, 4, 2, 5) } },
    { "permute heads large",  swap_middle,  { ACT(1, 4096, 24, 128) }, .flags = CHECK_LARGE },
    { "permute plane large",  transpose,    { ACT(4096, 3072) }, .flags = CHECK_LARGE },
    { 0 }
};
