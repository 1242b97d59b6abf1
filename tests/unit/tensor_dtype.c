/* dtype: all 65536 codes of both 16-bit floats, rounding, and the vector loops against the scalar ones. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "tensor/dtype.h"

static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* By the definition of the format. */
static double f16_value(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 0x3ff;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

static void f16_all_codes(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        double want = f16_value((uint16_t)h);
        float got = dt_f16_to_f32((uint16_t)h);
        if (isnan(want)) {
            assert_true(isnan(got) && isnan(f16_value(dt_f32_to_f16(got))));
            continue;
        }
        assert_true((double)got == want && !signbit(got) == !signbit(want));
        assert_int_equal(dt_f32_to_f16(got), h);
    }
}

static void bf16_all_codes(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = dt_bf16_to_f32((uint16_t)h);
        assert_int_equal(bits(f), h << 16);
        if (isnan(f))
            assert_true(isnan(dt_bf16_to_f32(dt_f32_to_bf16(f))));
        else
            assert_int_equal(dt_f32_to_bf16(f), h);
    }
}

/* Between every two neighbours: just below, at and just above the middle. */
static void rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double lo = f16_value((uint16_t)h), hi = h == 0x7bff ? 65536 : f16_value((uint16_t)(h + 1));
        float mid = (float)((lo + hi) / 2);
        assert_int_equal(dt_f32_to_f16(nextafterf(mid, 0)), h);
        assert_int_equal(dt_f32_to_f16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(dt_f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
        assert_int_equal(dt_f32_to_f16(-mid), 0x8000 | (h & 1 ? h + 1 : h));
    }
    for (uint32_t h = 0; h < 0x7f80; h++) {
        uint32_t mid = h << 16 | 0x8000;
        assert_int_equal(dt_f32_to_bf16(from_bits(mid - 1)), h);
        assert_int_equal(dt_f32_to_bf16(from_bits(mid)), h & 1 ? h + 1 : h);
        assert_int_equal(dt_f32_to_bf16(from_bits(mid + 1)), h + 1);
    }
}

/* dt_convert's rows, at every length up to 40 and over a spread of bit patterns, against the scalar functions. */
static void rows_agree_with_scalars(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    float *f = malloc(N * 4), *back = malloc(N * 4);
    uint16_t *h = malloc(N * 2);
    for (uint32_t i = 0; i < N; i++)
        f[i] = from_bits(i * 4099u + (i >> 7));
    for (int t = DT_BF16; t <= DT_F16; t++) {
        for (int64_t n = 0; n <= N; n = n < 40 ? n + 1 : n == 40 ? N : N + 1) {
            dt_convert(h, (dt_dtype)t, f, DT_F32, n);
            dt_convert(back, DT_F32, h, (dt_dtype)t, n);
            for (int64_t i = 0; i < n; i++) {
                assert_int_equal(h[i], t == DT_BF16 ? dt_f32_to_bf16(f[i]) : dt_f32_to_f16(f[i]));
                assert_int_equal(bits(back[i]), bits(t == DT_BF16 ? dt_bf16_to_f32(h[i]) : dt_f16_to_f32(h[i])));
            }
        }
    }
    free(f);
    free(back);
    free(h);
}

static void f64_rounds_once(void **state)
{
    (void)state;
    /* 1 + 2^-8 is the middle of two bf16; a little above it that fp32 cannot see. */
    double x[] = { 1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-8, -1 - 0x1p-8 - 0x1p-40, 1e300, -INFINITY };
    uint16_t want[] = { 0x3f81, 0x3f80, 0xbf81, 0x7f80, 0xff80 }, got[5];
    dt_convert(got, DT_BF16, x, DT_F64, 5);
    assert_memory_equal(got, want, sizeof(want));
    double y = 1 + 0x1p-11 + 0x1p-40;
    dt_convert(got, DT_F16, &y, DT_F64, 1);
    assert_int_equal(got[0], 0x3c01);
    /* Beside the middle of two numbers and beside its neighbours in fp32, by less than fp32 can see. */
    for (uint32_t h = 0x80; h < 0x7f00; h++)
        for (int ulp = -1; ulp <= 1; ulp++)
            for (int side = -1; side <= 1; side += 2) {
                double z = (double)from_bits((h << 16 | 0x8000) + (uint32_t)ulp) * (1 + side * 0x1p-30);
                dt_convert(got, DT_BF16, &z, DT_F64, 1);
                assert_int_equal(got[0], h + (ulp ? ulp > 0 : side > 0));
            }
}

static void integers_by_value(void **state)
{
    (void)state;
    int64_t q[] = { 0, -1, 300, INT64_MIN, INT64_MAX };
    int8_t b[5];
    uint8_t u[5];
    float f[5];
    dt_convert(b, DT_I8, q, DT_I64, 5);
    assert_memory_equal(b, ((int8_t[]){ 0, -1, 127, -128, 127 }), 5);
    dt_convert(u, DT_U8, q, DT_I64, 5);
    assert_memory_equal(u, ((uint8_t[]){ 0, 0, 255, 0, 255 }), 5);
    dt_convert(u, DT_BOOL, q, DT_I64, 5);
    assert_memory_equal(u, ((uint8_t[]){ 0, 1, 1, 1, 1 }), 5);
    dt_convert(f, DT_F32, b, DT_I8, 5);
    assert_true(f[1] == -1 && f[2] == 127 && f[3] == -128);
    float g[] = { -1.9f, 2.9f, NAN, 1e30f, -1e30f };
    int32_t i[5];
    dt_convert(i, DT_I32, g, DT_F32, 5);
    assert_memory_equal(i, ((int32_t[]){ -1, 2, 0, INT32_MAX, INT32_MIN }), 20);
    uint16_t h[1];
    dt_convert(h, DT_BF16, q + 2, DT_I64, 1);
    assert_true(dt_bf16_to_f32(h[0]) == 300);
}

static void unaligned(void **state)
{
    (void)state;
    unsigned char buf[64];
    float f[3] = { 1.5f, -2, 3 }, back[3];
    uint16_t h[3];
    memcpy(buf + 1, f, 12);
    dt_convert(h, DT_BF16, buf + 1, DT_F32, 3);
    memcpy(buf + 17, h, 6);
    dt_convert(back, DT_F32, buf + 17, DT_BF16, 3);
    assert_memory_equal(back, f, 12);
}

static void names_and_sizes(void **state)
{
    (void)state;
    for (int t = 0; t < DT_NDTYPES; t++) {
        assert_int_equal(dt_dtype_parse(dt_dtype_name((dt_dtype)t)), t);
        assert_true(dt_dtype_size((dt_dtype)t) > 0);
    }
    assert_int_equal(dt_dtype_parse("F8_E4M3"), -1);
    assert_int_equal(dt_numel(DT_DIMS(2, 3, 4)), 24);
    assert_int_equal(dt_numel((dt_dims){ 0 }), 1);
}

static void finite_or_not(void **state)
{
    (void)state;
    static const dt_dtype type[] = { DT_F32, DT_BF16, DT_F16 };
    const float odd[] = { NAN, -NAN, INFINITY, -INFINITY };
    for (int t = 0; t < 3; t++) {
        float v[9] = { 0, -0.0f, 1e-7f, -65504, 60000, 1, 2, 3, 4 };
        char x[36];
        dt_convert(x, type[t], v, DT_F32, 9);
        assert_true(dt_finite(x, type[t], 9));
        for (int k = 0; k < 4; k++) {
            v[8] = odd[k];
            dt_convert(x, type[t], v, DT_F32, 9);
            assert_false(dt_finite(x, type[t], 9));
            assert_true(dt_finite(x, type[t], 8));
        }
    }
    const float beyond = 65520;
    uint16_t h;
    dt_convert(&h, DT_F16, &beyond, DT_F32, 1);
    assert_false(dt_finite(&h, DT_F16, 1));
    assert_true(dt_finite((const int32_t[]){ -1 }, DT_I32, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_all_codes), cmocka_unit_test(bf16_all_codes), cmocka_unit_test(rounds_to_nearest_even),
        cmocka_unit_test(rows_agree_with_scalars), cmocka_unit_test(f64_rounds_once),
        cmocka_unit_test(integers_by_value),
        cmocka_unit_test(unaligned), cmocka_unit_test(names_and_sizes), cmocka_unit_test(finite_or_not),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("tensor/dtype", tests, NULL, NULL);
}
