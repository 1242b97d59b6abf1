/* Cases of conv.c.  Channels that fill vectors and that do not, every side of the padding, strides that leave a rest. */
#include "tests/checkop.h"

static dt_tensor *same3(dt_graph *g, dt_tensor **in)
{
    return dt_conv2d_w(g, in[0], in[1], in[2], 1, (int[]){ 1, 1, 1, 1 });
}

/* As the VAE's encoder: zeros below and right only. */
static dt_tensor *down3(dt_graph *g, dt_tensor **in)
{
    return dt_conv2d_w(g, in[0], in[1], in[2], 2, (int[]){ 0, 0, 1, 1 });
}

static dt_tensor *skewed(dt_graph *g, dt_tensor **in)
{
    return dt_conv2d_w(g, in[0], in[1], NULL, 1, (int[]){ 2, 0, 1, 3 });
}

static dt_tensor *pointwise(dt_graph *g, dt_tensor **in)
{
    return dt_conv2d_w(g, in[0], in[1], in[2], 1, (int[]){ 0, 0, 0, 0 });
}

static dt_tensor *layer(dt_graph *g, dt_tensor **in)
{
    return dt_conv2d(g, "conv", in[0], 4, 3, 1, (int[]){ 1, 1, 1, 1 });
}

static dt_tensor *up(dt_graph *g, dt_tensor **in) { return dt_upsample2(g, in[0]); }

struct geometry { int64_t stride, pad[4]; };

static void reference(const check_case *c, const float *const *in, float *y, struct geometry v)
{
    const int64_t *x = c->in[0].d, *w = c->in[1].d;
    int64_t oh = (x[1] + v.pad[0] + v.pad[2] - w[2]) / v.stride + 1;
    int64_t ow = (x[2] + v.pad[1] + v.pad[3] - w[3]) / v.stride + 1;
    for (int64_t at = 0; at < x[0] * oh * ow * w[0]; at++) {
        int64_t o = at % w[0], j = at / w[0] % ow, i = at / w[0] / ow % oh, b = at / w[0] / ow / oh;
        double sum = c->in[2].kind ? in[2][o] : 0;
        for (int64_t tap = 0; tap < w[2] * w[3]; tap++) {
            int64_t h = i * v.stride + tap / w[3] - v.pad[0];
            int64_t l = j * v.stride + tap % w[3] - v.pad[1];
            if (h < 0 || h >= x[1] || l < 0 || l >= x[2])
                continue;
            for (int64_t k = 0; k < x[3]; k++)
                sum += (double)in[0][((b * x[1] + h) * x[2] + l) * x[3] + k] *
                       in[1][(o * w[1] + k) * w[2] * w[3] + tap];
        }
        y[at] = (float)sum;
    }
}

static void same3_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct geometry){ 1, { 1, 1, 1, 1 } });
}

static void down3_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct geometry){ 2, { 0, 0, 1, 1 } });
}

static void skewed_ref(const check_case *c, const float *const *in, float *y)
{
    reference(c, in, y, (struct geometry){ 1, { 2, 0, 1, 3 } });
}

static void up_ref(const check_case *c, const float *const *in, float *y)
{
    const int64_t *x = c->in[0].d;
    for (int64_t at = 0; at < 4 * check_numel(&c->in[0]); at++) {
        int64_t k = at % x[3], j = at / x[3] % (2 * x[2]), i = at / x[3] / (2 * x[2]);
        y[at] = in[0][(i / 2 * x[2] + j / 2) * x[3] + k];
    }
}

const check_case conv_cases[] = {
    { "3x3 same", same3, { ACT(2, 5, 4, 3), WEIGHT(6, 3, 3, 3), WEIGHT(6) }, .k = 54, .reference = same3_ref },
    { "3x3 same, 16 channels", same3, { ACT(1, 6, 7, 16), WEIGHT(32, 16, 3, 3), WEIGHT(32) },
      .k = 288, .reference = same3_ref },
    { "3x3 of one pixel", same3, { ACT(1, 1, 1, 2), WEIGHT(2, 2, 3, 3), WEIGHT(2) }, .k = 18, .reference = same3_ref },
    { "3x3 stride 2", down3, { ACT(1, 6, 8, 4), WEIGHT(5, 4, 3, 3), WEIGHT(5) }, .k = 45, .reference = down3_ref },
    { "3x3 stride 2, odd", down3, { ACT(1, 7, 5, 4), WEIGHT(5, 4, 3, 3), WEIGHT(5) }, .k = 45, .reference = down3_ref },
    { "2x5 skewed", skewed, { ACT(2, 4, 5, 3), WEIGHT(4, 3, 2, 5) }, .k = 40, .reference = skewed_ref },
    { "1x1", pointwise, { ACT(2, 3, 3, 8), WEIGHT(4, 8, 1, 1), WEIGHT(4) }, .k = 18 },
    { "frozen", same3, { ACT(1, 4, 4, 3), FROZEN(5, 3, 3, 3), FROZEN(5) }, .k = 45 },
    { "frozen input", same3, { CONST(1, 4, 4, 3), WEIGHT(5, 3, 3, 3), WEIGHT(5) }, .k = 27 },
    { "weight is an activation", same3, { ACT(1, 4, 4, 3), ACT(5, 3, 3, 3), ACT(5) }, .k = 45 },
    { "layer", layer, { ACT(1, 4, 3, 2) }, .k = 36 },
    { "upsample2", up, { ACT(2, 3, 5, 4) }, .k = 4, .reference = up_ref },
    { "upsample2, wide", up, { ACT(1, 2, 2, 1100) }, .k = 4, .reference = up_ref },
    { "64x64x128", same3, { ACT(1, 64, 64, 128), WEIGHT(128, 128, 3, 3), WEIGHT(128) },
      .k = 4096, .flags = CHECK_LARGE },
    { "32x32x512", same3, { ACT(1, 32, 32, 512), WEIGHT(512, 512, 3, 3), WEIGHT(512) },
      .k = 4608, .flags = CHECK_LARGE },
    { "128x128x3 to 128", same3, { ACT(1, 128, 128, 3), WEIGHT(128, 3, 3, 3), WEIGHT(128) },
      .k = 16384, .flags = CHECK_LARGE },
    { "128x128x128 to 3", same3, { ACT(1, 128, 128, 128), WEIGHT(3, 128, 3, 3), WEIGHT(3) }, .k = 16384,
      .flags = CHECK_LARGE },
    { "64x64x256 stride 2", down3, { ACT(1, 64, 64, 256), WEIGHT(256, 256, 3, 3), WEIGHT(256) },
      .k = 2304, .flags = CHECK_LARGE },
    { "upsample2 64x64x256", up, { ACT(1, 64, 64, 256) }, .k = 4, .flags = CHECK_LARGE },
    { 0 }
};
