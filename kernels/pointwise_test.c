/* Cases of pointwise.c.  Sizes: one element, less than a vector, more than a chunk of 1024, far more. */
#include "tests/checkop.h"

static dt_tensor *silu(dt_graph *g, dt_tensor **in) { return dt_silu(g, in[0]); }
static dt_tensor *quick_gelu(dt_graph *g, dt_tensor **in) { return dt_quick_gelu(g, in[0]); }
static dt_tensor *gelu_erf(dt_graph *g, dt_tensor **in) { return dt_gelu_erf(g, in[0]); }
static dt_tensor *gelu_tanh(dt_graph *g, dt_tensor **in) { return dt_gelu_tanh(g, in[0]); }
static dt_tensor *relu(dt_graph *g, dt_tensor **in) { return dt_relu(g, in[0]); }
static dt_tensor *exponential(dt_graph *g, dt_tensor **in) { return dt_exp(g, in[0]); }
static dt_tensor *clamp(dt_graph *g, dt_tensor **in) { return dt_clamp(g, in[0], -0.5, 0.75); }
static dt_tensor *affine(dt_graph *g, dt_tensor **in) { return dt_affine(g, in[0], -1.5, 0.25); }
static dt_tensor *add(dt_graph *g, dt_tensor **in) { return dt_add(g, in[0], in[1]); }
static dt_tensor *sub(dt_graph *g, dt_tensor **in) { return dt_sub(g, in[0], in[1]); }
static dt_tensor *mul(dt_graph *g, dt_tensor **in) { return dt_mul(g, in[0], in[1]); }
static dt_tensor *square(dt_graph *g, dt_tensor **in) { return dt_mul(g, in[0], in[0]); }
static dt_tensor *to_f32(dt_graph *g, dt_tensor **in) { return dt_cast(g, in[0], DT_F32); }
static dt_tensor *to_act(dt_graph *g, dt_tensor **in) { return dt_cast(g, in[0], dt_graph_dtype(g)); }
static dt_tensor *through_f32(dt_graph *g, dt_tensor **in)
{
    return dt_cast(g, dt_silu(g, dt_cast(g, in[0], DT_F32)), dt_graph_dtype(g));
}

const check_case pointwise_cases[] = {
    { "silu 1",             silu,        { ACT(1) } },
    { "silu 3x37",          silu,        { ACT(3, 37) } },
    { "silu 1025",          silu,        { ACT(1025) } },
    { "silu large",         silu,        { ACT(4096, 3072) }, .flags = CHECK_LARGE },
    { "quick_gelu 3x37",    quick_gelu,  { ACT(3, 37) } },
    { "quick_gelu 2x1025",  quick_gelu,  { ACT(2, 1025) } },
    { "gelu_erf 3x37",      gelu_erf,    { ACT(3, 37) } },
    { "gelu_erf wide",      gelu_erf,    { RANGE(ACT, -6, 6, 5, 300) } },
    { "gelu_erf large",     gelu_erf,    { ACT(1024, 3072) }, .flags = CHECK_LARGE },
    { "gelu_tanh 3x37",     gelu_tanh,   { ACT(3, 37) } },
    { "gelu_tanh wide",     gelu_tanh,   { RANGE(ACT, -6, 6, 5, 300) } },
    { "gelu_tanh large",    gelu_tanh,   { ACT(4096, 3072) }, .flags = CHECK_LARGE },
    { "relu 3x37",          relu,        { ACT(3, 37) }, .nkink = 1, .kink = { 0 } },
    { "exp 3x37",           exponential, { ACT(3, 37) }, .flags = CHECK_NO_HUGE },
    { "clamp 3x37",         clamp,       { ACT(3, 37) }, .nkink = 2, .kink = { -0.5, 0.75 } },
    { "affine 3x37",        affine,      { ACT(3, 37) } },
    { "affine 1030",        affine,      { ACT(1030) } },
    { "add 2x3x5",          add,         { ACT(2, 3, 5), ACT(2, 3, 5) } },
    { "add f32 to T",       add,         { ACT(2, 33), ACT_F32(2, 33) } },
    { "add weight",         add,         { ACT(2, 33), WEIGHT(2, 33) } },
    { "add large",          add,         { ACT(4096, 3072), ACT(4096, 3072) }, .flags = CHECK_LARGE },
    { "sub 2x1025",         sub,         { ACT(2, 1025), ACT(2, 1025) } },
    { "sub f32 from T",     sub,         { ACT(2, 33), ACT_F32(2, 33) } },
    { "mul 2x1025",         mul,         { ACT(2, 1025), ACT(2, 1025) } },
    { "mul weight",         mul,         { ACT(2, 33), WEIGHT(2, 33) } },
    { "mul frozen",         mul,         { ACT(2, 33), FROZEN(2, 33) } },
    { "mul by itself",      square,      { ACT(2, 33) } },
    { "cast to f32",        to_f32,      { ACT(3, 1100) } },
    { "cast from f32",      to_act,      { ACT_F32(3, 1100) } },
    { "cast there and back", through_f32, { ACT(3, 37) } },
    { 0 }
};
