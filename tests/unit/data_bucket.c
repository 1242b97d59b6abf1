/* data_bucket.c - shapes and sizes against the reference (tests/golden/data_buckets.py), and the draws. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <math.h>
#include <cmocka.h>
#include "data/bucket.h"

static void test_golden(void **state)
{
    (void)state;
    FILE *f = fopen("tests/golden/data_buckets.txt", "r");
    char line[256];
    int rows = 0;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        int w, h, base, key, bw, bh;
        double ratio;
        dt_fit want;
        if (line[0] == '#')
            continue;
        assert_int_equal(sscanf(line, "%d %d %d %lf %d %d %d %d %d %d %d", &w, &h, &base, &ratio, &key, &bw, &bh,
                                &want.w, &want.h, &want.x, &want.y), 11);
        int a = dt_bucket_closest(w, h);
        dt_size s = dt_bucket_size(&dt_aspect_512[a], base, ratio, 16);
        dt_fit fit = dt_fit_cover(w, h, s);
        if (a != key || s.w != bw || s.h != bh || fit.w != want.w || fit.h != want.h || fit.x != want.x ||
            fit.y != want.y)
            fail_msg("got key %d, %dx%d, resize %dx%d, crop %d,%d for: %s", a, s.w, s.h, fit.w, fit.h, fit.x, fit.y,
                     line);
        rows++;
    }
    fclose(f);
    assert_int_equal(rows, 3 * 13 * 13);
}

/* The first of two equally near keys wins: halfway between 0.25 and 0.26 in doubles, or as near as it gets. */
static void test_ties(void **state)
{
    (void)state;
    assert_int_equal(dt_bucket_closest(200, 150), 15);          /* 0.75: |0.72 - 0.75| against |0.78 - 0.75| */
    assert_int_equal(dt_bucket_closest(4, 13), 35);             /* 3.25: 3.11 is nearer than 3.62 */
    assert_int_equal(dt_bucket_closest(65536, 1), 0);
    assert_int_equal(dt_bucket_closest(1, 65536), DT_N_ASPECT - 1);
}

static void test_cover(void **state)
{
    (void)state;
    for (int w = 1; w < 3000; w += 37)
        for (int h = 1; h < 3000; h += 41) {
            dt_size s = dt_bucket_size(&dt_aspect_512[dt_bucket_closest(w, h)], 512, 1, 16);
            dt_fit f = dt_fit_cover(w, h, s);
            assert_true(f.w == s.w || f.h == s.h);
            assert_true(f.x >= 0 && f.y >= 0 && f.x + s.w <= f.w && f.y + s.h <= f.h);
        }
}

static void test_draw_aspect(void **state)
{
    (void)state;
    dt_rng r = dt_rng_make(1, DT_RNG_TEST, 0, 0);
    enum { N = 62000 };
    int seen[DT_N_ASPECT_CROP] = { 0 }, weight = 0;
    double chi2 = 0;
    for (int i = 0; i < N; i++)
        seen[dt_bucket_draw_aspect(&r)]++;
    for (int i = 0; i < DT_N_ASPECT_CROP; i++) {
        double want = N * dt_aspect_crop_512[i].weight / 62.0;
        weight += dt_aspect_crop_512[i].weight;
        chi2 += (seen[i] - want) * (seen[i] - want) / want;
    }
    assert_int_equal(weight, 62);
    assert_true(chi2 < 36.1);           /* 14 degrees of freedom, p = 0.001 */
}

static void test_draw_ratio(void **state)
{
    (void)state;
    static const struct { int base, n; } list[] = { { 64, 1 }, { 512, 1 }, { 767, 1 }, { 768, 3 }, { 1024, 4 },
                                                    { 1536, 6 } };
    double ratio[6];
    for (int i = 0; i < 6; i++)
        assert_int_equal(dt_bucket_ratios(ratio, list[i].base), list[i].n);
    dt_rng r = dt_rng_make(2, DT_RNG_TEST, 0, 0);
    enum { N = 40000 };
    int seen[6] = { 0 };
    for (int i = 0; i < N; i++) {
        double x = dt_bucket_draw_ratio(1024, &r);
        int k = 0;
        while (k < 3 && ratio[k] != x)
            k++;
        seen[k]++;
        assert_true(ratio[k] == x);
    }
    assert_true(fabs(seen[0] / (double)N - 0.90) < 0.006);      /* 4 sigma */
    for (int k = 1; k < 4; k++)
        assert_true(fabs(seen[k] / (double)N - 0.10 / 3) < 0.004);
    assert_true(dt_bucket_draw_ratio(512, &r) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden), cmocka_unit_test(test_ties), cmocka_unit_test(test_cover),
        cmocka_unit_test(test_draw_aspect), cmocka_unit_test(test_draw_ratio),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
