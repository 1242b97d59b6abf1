/* Cases of matmul.c.  In fp32 products of at least 32 rows and 8 columns are gemm.c's, others oneDNN's. */
#include "tests/checkop.h"

static dt_tensor *plain(dt_graph *g, dt_tensor **in) { return dt_matmul_wt(g, in[0], in[1], NULL); }
static dt_tensor *biased(dt_graph *g, dt_tensor **in) { return dt_matmul_wt(g, in[0], in[1], in[2]); }
static dt_tensor *added(dt_graph *g, dt_tensor **in) { return dt_matmul_add(g, in[0], in[1], in[2], 0.5); }
static dt_tensor *zeroed(dt_graph *g, dt_tensor **in) { return dt_matmul_add(g, in[0], in[1], in[2], 0); }

/* A LoRA branch as dt_linear makes it: c is y of a frozen layer. */
static dt_tensor *branch(dt_graph *g, dt_tensor **in)
{
    dt_tensor *y = dt_matmul_wt(g, in[0], in[1], NULL);
    return dt_matmul_add(g, y, dt_matmul_wt(g, in[0], in[2], NULL), in[3], 2);
}

/* One weight in two places. */
static dt_tensor *tied(dt_graph *g, dt_tensor **in)
{
    return dt_matmul_wt(g, dt_matmul_wt(g, in[0], in[1], NULL), in[1], NULL);
}

static dt_tensor *layers(dt_graph *g, dt_tensor **in)
{
    return dt_linear(g, "b", dt_linear(g, "a", in[0], 6, true), 3, false);
}

static void reference(const check_case *c, const float *const *in, float *y)
{
    int64_t n = c->in[1].d[0], k = c->in[1].d[1], m = check_numel(&c->in[0]) / k;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = c->in[2].kind ? in[2][j] : 0;
            for (int64_t p = 0; p < k; p++)
                sum += (double)in[0][i * k + p] * in[1][j * k + p];
            y[i * n + j] = (float)sum;
        }
}

const check_case matmul_cases[] = {
    { "1x1x1", plain, { ACT(1, 1), WEIGHT(1, 1) }, .reference = reference },
    { "3x5x7", plain, { ACT(3, 7), WEIGHT(5, 7) }, .k = 7, .reference = reference },
    { "bias, leading dims", biased, { ACT(2, 3, 4, 9), WEIGHT(8, 9), WEIGHT(8) }, .k = 24, .reference = reference },
    { "33x65x17", biased, { ACT(33, 17), WEIGHT(65, 17), WEIGHT(65) }, .k = 65, .reference = reference },
    { "frozen", biased, { ACT(6, 10), FROZEN(12, 10), FROZEN(12) }, .k = 12 },
    { "frozen input", biased, { CONST(6, 10), WEIGHT(12, 10), FROZEN(12) }, .k = 10 },
    { "product of activations", plain, { ACT(4, 6), ACT(5, 6) }, .k = 6 },
    { "tied weight", tied, { ACT(3, 8), WEIGHT(8, 8) }, .k = 16 },
    { "add", added, { ACT(2, 5, 12), ACT(2, 5, 4), WEIGHT(12, 4) }, .k = 12 },
    { "add nothing", zeroed, { ACT(4, 6), ACT(4, 3), FROZEN(6, 3) }, .k = 6 },
    { "LoRA branch", branch, { ACT(7, 10), FROZEN(9, 10), WEIGHT(2, 10), WEIGHT(9, 2) }, .k = 10 },
    { "layers", layers, { ACT(4, 5) }, .k = 6 },
    { "47x101x1100", biased, { ACT(47, 1100), WEIGHT(101, 1100), WEIGHT(101) }, .k = 1100 },
    { "301x70x33", biased, { ACT(301, 33), WEIGHT(70, 33), WEIGHT(70) }, .k = 301 },
    { "add, 47x101x1100", added, { ACT(47, 101), ACT(47, 1100), WEIGHT(101, 1100) }, .k = 1100 },
    { "256x3072x768", biased, { ACT(256, 768), WEIGHT(3072, 768), WEIGHT(3072) }, .k = 3072, .flags = CHECK_LARGE },
    { "96x192x768", biased, { ACT(96, 768), WEIGHT(192, 768), WEIGHT(192) }, .k = 768, .flags = CHECK_LARGE },
    { "1024x3072x3072", biased, { ACT(1024, 3072), FROZEN(3072, 3072), FROZEN(3072) },
      .k = 3072, .flags = CHECK_LARGE },
    { "LoRA 1024x3072, rank 16", branch, { ACT(1024, 3072), FROZEN(3072, 3072), WEIGHT(16, 3072), WEIGHT(3072, 16) },
      .k = 3072, .flags = CHECK_LARGE },
    { 0 }
};
