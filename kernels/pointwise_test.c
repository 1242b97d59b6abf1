/* Cases of pointwise.c.  Sizes: one element, less than a vector, more than a chunk of 1024, far more. */
#include <math.h>
#include "tests/checkop.h"

static dt_tensor *silu(dt_graph *g, dt_tensor **in) { return dt_silu(g, in[0]); }
static dt_tensor *quick_gelu(dt_graph *g, dt_tensor **in) { return dt_quick_gelu(g, in[0]); }
static dt_tensor *gelu_erf(dt_graph *g, dt_tensor **in) { return dt_gelu_erf(g, in[0]); }
static dt_tensor *gelu_tanh(dt_graph *g, dt_tensor **in) { return dt_gelu_tanh(g, in[0]); }
static dt_tensor *relu(dt_graph *g, dt_tensor **in) { return dt_relu(g, in[0]); }
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

#define REFERENCE(NAME, OF_X) \
    static void NAME##_ref(const check_case *c, const float *const *in, float *y) \
    { \
        for (int64_t i = 0; i < check_numel(&c->in[0]); i++) { \
            double x = in[0][i]; \
            y[i] = (float)(OF_X); \
        } \
    }
REFERENCE(silu, check_epilogue(DT_EPI_SILU, x))
REFERENCE(quick_gelu, check_epilogue(DT_EPI_QUICK_GELU, x))
REFERENCE(gelu_erf, check_epilogue(DT_EPI_GELU_ERF, x))
REFERENCE(gelu_tanh, check_epilogue(DT_EPI_GELU_TANH, x))
REFERENCE(relu, fmax(x, 0))
REFERENCE(affine, 0.25 - 1.5 * x)

const check_case pointwise_cases[] = {
    { "silu 1",             silu,        { ACT(1) }, .reference = silu_ref },
    { "silu 3x37",          silu,        { ACT(3, 37) }, .reference = silu_ref },
    { "silu 1025",          silu,        { ACT(1025) } },
    { "silu large",         silu,        { ACT(4096, 3072) }, .flags = CHECK_LARGE },
    { "quick_gelu 3x37",    quick_gelu,  { ACT(3, 37) }, .reference = quick_gelu_ref },
    { "quick_gelu 2x1025",  quick_gelu,  { ACT(2, 1025) } },
    { "gelu_erf 3x37",      gelu_erf,    { ACT(3, 37) } },
    { "gelu_erf wide",      gelu_erf,    { RANGE(ACT, -6, 6, 5, 300) }, .reference = gelu_erf_ref },
    { "gelu_erf large",     gelu_erf,    { ACT(1024, 3072) }, .flags = CHECK_LARGE },
    { "gelu_tanh 3x37",     gelu_tanh,   { ACT(3, 37) } },
    { "gelu_tanh wide",     gelu_tanh,   { RANGE(ACT, -6, 6, 5, 300) }, .reference = gelu_tanh_ref },
    { "gelu_tanh large",    gelu_tanh,   { ACT(4096, 3072) }, .flags = CHECK_LARGE },
    { "relu 3x37",          relu,        { ACT(3, 37) }, .nkink = 1, .kink = { 0 }, .reference = relu_ref },
    { "affine 3x37",        affine,      { ACT(3, 37) }, .reference = affine_ref },
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
