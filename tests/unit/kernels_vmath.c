/* vmath.h against libm in double, over floats of every exponent and sign. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kernels/vmath.h"

/* Error of got in units of the last place of want; 0 where want overflows and got is infinite. */
static double ulps(float got, double want)
{
    float w = (float)want;
    if (got == w)
        return 0;
    float a = fabsf(w), unit = nextafterf(a, INFINITY) - a;
    return fabs((double)got - want) / (double)unit;
}

static double worst(float (*f)(float), double (*ref)(double), uint32_t step)
{
    double most = 0;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += step) {
        float x = dt_f32_bits((uint32_t)u);
        double e = isnan(x) ? (isnan(f(x)) ? 0 : 1e9) : ulps(f(x), ref((double)x));
        if (!(e <= most))
            most = e;
    }
    return most;
}

/* Below -87 exp(-x) overflows and sigmoid is 0 instead of a denormal. */
static double sigmoid(double x) { return x < -87.0 ? 0.0 : 1.0 / (1.0 + exp(-x)); }
static float sigmoidf(float x) { return x < -87.0f ? 0.0f : dt_sigmoidf(x); }

static void test_accuracy(void **state)
{
    (void)state;
    assert_true(worst(dt_expf, exp, 1009) <= 2);
    assert_true(worst(dt_erff, erf, 1009) <= 2);
    assert_true(worst(sigmoidf, sigmoid, 1009) <= 4);    /* two roundings more */
}

static void test_special(void **state)
{
    (void)state;
    assert_true(dt_expf(0.0f) == 1.0f && dt_expf(-INFINITY) == 0.0f && isinf(dt_expf(INFINITY)) &&
                isinf(dt_expf(88.8f)));
    assert_true(dt_erff(INFINITY) == 1.0f && dt_erff(-INFINITY) == -1.0f &&
                signbit(dt_erff(-0.0f)));
    assert_true(dt_sigmoidf(-INFINITY) == 0.0f && dt_sigmoidf(INFINITY) == 1.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_accuracy),
                                        cmocka_unit_test(test_special) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
