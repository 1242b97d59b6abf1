/* Products of fp32 matrices: right for every kind of edge, and to the bit the same for any number of threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/gemm.h"

static float *filled(int64_t n, uint64_t seed)
{
    float *x = dt_alloc((size_t)n * sizeof(*x));
    dt_rng_fill_normal(x, n, seed, DT_RNG_TEST, 0, 0);
    return x;
}

/* Largest error against sums in double, in units of fp32's rounding of the sum of magnitudes. */
static double error(const struct dt_dnn_matmul *p, const float *a, const float *b, const float *bias, const float *c0,
                    const float *c)
{
    double worst = 0;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            double y = p->bias ? bias[j] : 0, z = p->add ? c0[i * p->n + j] : 0, sum = y + z, size = fabs(y) + fabs(z);
            for (int64_t k = 0; k < p->k; k++) {
                double x = p->alpha * a[i * p->k + k] * b[p->b_trans ? j * p->k + k : k * p->n + j];
                sum += x;
                size += fabs(x);
            }
            worst = fmax(worst, fabs(c[i * p->n + j] - sum) / (size * 0x1p-24));
        }
    return worst;
}

static void check(struct dt_dnn_matmul p)
{
    p.a = p.b = p.c = DT_F32;
    assert_true(dt_gemm_takes(&p));
    float *a = filled(p.m * p.k, 1), *b = filled(p.k * p.n, 2), *bias = filled(p.n, 3), *c0 = filled(p.m * p.n, 4);
    size_t bytes = (size_t)(p.m * p.n) * sizeof(float);
    float *one = dt_alloc(bytes), *many = dt_alloc(bytes);
    for (int threads = 1; threads <= 7; threads += 2) {
        void *ws = aligned_alloc(64, (size_t)dt_gemm_workspace(&p, threads));
        float *c = threads == 1 ? one : many;
        memcpy(c, c0, bytes);
        dt_gemm_run(&p, threads, a, b, p.bias ? bias : NULL, c, ws);
        free(ws);
        if (threads > 1)
            assert_memory_equal(one, many, bytes);
    }
    assert_true(error(&p, a, b, bias, c0, one) < 4 * sqrt((double)p.k));
    free(a);
    free(b);
    free(bias);
    free(c0);
    free(one);
    free(many);
}

static void test_edges(void **state)
{
    static const int64_t sizes[][3] = {         /* m, n, k */
        { 32, 8, 8 }, { 33, 49, 17 }, { 39, 31, 1025 }, { 300, 16, 64 }, { 77, 97, 130 }, { 257, 144, 48 },
        { 40, 1000, 24 }, { 35, 63, 2100 }, { 100, 490, 90 }, { 50, 96, 1 }, { 64, 24, 4 },
    };
    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        for (int how = 0; how < 8; how++)
            check((struct dt_dnn_matmul){ .m = sizes[i][0], .n = sizes[i][1], .k = sizes[i][2], .b_trans = how & 1,
                                          .bias = how & 2, .add = how & 4, .alpha = how & 2 ? 1 : 0.75 });
}

static void test_takes(void **state)
{
    struct dt_dnn_matmul p = { .m = 64, .n = 64, .k = 64, .a = DT_F32, .b = DT_F32, .c = DT_F32, .alpha = 1 };
    (void)state;
    if (!dt_gemm_takes(&p))
        return;
    p.b = DT_BF16;
    assert_false(dt_gemm_takes(&p));
    p.b = DT_F32, p.a_trans = true;
    assert_false(dt_gemm_takes(&p));
    p.a_trans = false, p.m = 1;
    assert_false(dt_gemm_takes(&p));
}

int main(void)
{
    const struct dt_dnn_matmul p = { .m = 64, .n = 64, .k = 64, .a = DT_F32, .b = DT_F32, .c = DT_F32, .alpha = 1 };
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_takes), cmocka_unit_test(test_edges) };
    const struct CMUnitTest without[] = { cmocka_unit_test(test_takes) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return dt_gemm_takes(&p) ? cmocka_run_group_tests(tests, NULL, NULL)        /* there is AVX-512 */
                             : cmocka_run_group_tests(without, NULL, NULL);
}
