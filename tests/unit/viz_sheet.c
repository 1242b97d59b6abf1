/* Sample sheets and charts, looked at as pictures: what must be there is found by its colour. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <cairo.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/mem.h"
#include "train/chart.h"
#include "train/grid.h"
#include "tests/unit/scratch.h"

typedef struct found {              /* the pixels of one colour */
    int64_t n;
    int     x0, y0, x1, y1;         /* bounds, inclusive */
    int     w, h;                   /* of the picture */
} found;

static found find(const char *path, uint32_t rgb)
{
    cairo_surface_t *s = cairo_image_surface_create_from_png(path);
    assert_int_equal(cairo_surface_status(s), CAIRO_STATUS_SUCCESS);
    found f = { 0, 1 << 20, 1 << 20, -1, -1, cairo_image_surface_get_width(s), cairo_image_surface_get_height(s) };
    for (int y = 0; y < f.h; y++) {
        const uint8_t *row = cairo_image_surface_get_data(s) + (size_t)y * (size_t)cairo_image_surface_get_stride(s);
        for (int x = 0; x < f.w; x++) {
            uint32_t px;
            memcpy(&px, row + 4 * x, 4);
            if ((px & 0xffffff) != rgb)
                continue;
            f.n++;
            f.x0 = x < f.x0 ? x : f.x0;
            f.x1 = x > f.x1 ? x : f.x1;
            f.y0 = y < f.y0 ? y : f.y0;
            f.y1 = y > f.y1 ? y : f.y1;
        }
    }
    cairo_surface_destroy(s);
    return f;
}

static uint8_t *plain(int w, int h, uint32_t rgb)
{
    uint8_t *p = dt_alloc((size_t)w * (size_t)h * 3);
    for (int i = 0; i < w * h; i++)
        for (int c = 0; c < 3; c++)
            p[3 * i + c] = (uint8_t)(rgb >> (16 - 8 * c));
    return p;
}

static void put(dt_grid *g, int row, int col, int w, int h, uint32_t rgb)
{
    dt_err err = { 0 };
    uint8_t *p = plain(w, h, rgb);
    assert_int_equal(dt_grid_put(g, row, col, p, w, h, &err), 0);
    free(p);
}

static void assert_rect(found f, int w, int h)
{
    assert_int_equal(f.x1 - f.x0 + 1, w);
    assert_int_equal(f.y1 - f.y0 + 1, h);
    assert_int_equal(f.n, (int64_t)w * h);
}

enum { RED = 0xff0000, GREEN = 0x00ff00, MAGENTA = 0xff00ff, EMPTY = 0xeceef2 };

static void test_grid(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "samples.png");
    dt_grid *g = dt_grid_new(dt_grid_params(.title = "What it learned"));
    assert_int_equal(dt_grid_add_col(g, "base"), 0);
    assert_int_equal(dt_grid_add_col(g, "LoRA"), 1);
    assert_int_equal(dt_grid_add_row(g, "a red apple"), 0);
    put(g, 0, 0, 64, 64, RED);
    put(g, 0, 1, 64, 64, MAGENTA);
    put(g, 0, 1, 64, 64, GREEN);                        /* replaces */
    assert_int_equal(dt_grid_save(g, path, &err), 0);
    found red = find(path, RED), green = find(path, GREEN);
    assert_rect(red, 192, 192);
    assert_rect(green, 192, 192);
    assert_int_equal(red.y0, green.y0);
    assert_true(green.x0 > red.x1 && red.x0 > 60);      /* beside each other, right of the caption */
    assert_int_equal(find(path, MAGENTA).n, 0);
    assert_int_equal(find(path, EMPTY).n, 0);

    /* One more validation: a row more, nothing else moves, and its second cell is empty. */
    assert_int_equal(dt_grid_add_row(g, "a pear"), 1);
    put(g, 1, 0, 64, 64, MAGENTA);
    assert_int_equal(dt_grid_save(g, path, &err), 0);
    found more = find(path, MAGENTA);
    assert_rect(more, 192, 192);
    assert_int_equal(more.x0, red.x0);
    assert_true(more.y0 > red.y1);
    assert_int_equal(find(path, GREEN).y0, green.y0);
    assert_int_equal(more.w, red.w);
    assert_int_equal(more.h - red.h, more.y0 - red.y0);
    assert_true(find(path, EMPTY).n > 190 * 190);
    dt_grid_free(&g);
    assert_null(g);
    free(path);
}

/* A prompt wraps and then ends in an ellipsis: however long it is, it moves nothing. */
static void test_long_caption(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "samples.png"), *prompt = dt_alloc(4001);
    int w[2], h[2];
    for (int i = 0; i < 4000; i++)
        prompt[i] = i % 6 == 5 ? ' ' : (char)('a' + i % 26);
    for (int i = 0; i < 2; i++) {
        dt_grid *g = dt_grid_new(dt_grid_params());
        dt_grid_add_col(g, NULL);
        dt_grid_add_row(g, i ? prompt : "a prompt of some forty letters, not so long");
        dt_grid_add_row(g, "not \xff UTF-8\nand a second line");
        put(g, 0, 0, 64, 64, RED);
        assert_int_equal(dt_grid_save(g, path, &err), 0);
        found f = find(path, RED);
        assert_rect(f, 192, 192);
        w[i] = f.w;
        h[i] = f.h;
        dt_grid_free(&g);
    }
    assert_true(abs(w[0] - w[1]) <= 30);
    assert_int_equal(h[0], h[1]);
    free(prompt);
    free(path);
}

static void test_large_tiles(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "samples.png");
    dt_grid *g = dt_grid_new(dt_grid_params());
    dt_grid_add_row(g, NULL);
    dt_grid_add_col(g, NULL);
    dt_grid_add_col(g, NULL);
    put(g, 0, 0, 1024, 1024, RED);
    put(g, 0, 1, 1216, 832, GREEN);                     /* another bucket: same scale, centred */
    assert_int_equal(dt_grid_save(g, path, &err), 0);
    found red = find(path, RED), green = find(path, GREEN);
    assert_rect(red, 512, 512);
    assert_rect(green, 512, 350);
    assert_int_equal(green.y0 - red.y0, 81);
    for (int i = 0; i < 80; i++)                        /* 82 columns of 512 would be 42000 px */
        dt_grid_add_col(g, NULL);
    assert_int_equal(dt_grid_save(g, path, &err), 0);
    assert_true(find(path, RED).w <= 16384);
    assert_true(find(path, RED).n > 100 * 100);
    dt_grid_free(&g);
    free(path);
}

static void test_grid_errors(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "none/samples.png");
    uint8_t px[3] = { 0 };
    dt_grid *g = dt_grid_new(dt_grid_params());
    assert_true(dt_grid_put(g, 0, 0, px, 1, 1, &err) < 0);
    dt_grid_add_row(g, "r");
    assert_true(dt_grid_put(g, 0, 0, px, 1, 1, &err) < 0);
    assert_int_equal(dt_grid_save(g, path, &err), DT_EIO);
    assert_non_null(strstr(err.msg, "samples.png"));
    dt_grid_free(&g);
    dt_grid_free(&g);
    free(path);
}

static void test_running_mean(void **state)
{
    (void)state;
    const double y[] = { NAN, 4, 2, NAN, 6 };
    double m[5];
    dt_running_mean(m, y, 5, 0.5);
    assert_true(isnan(m[0]));
    assert_float_equal(m[1], 4, 1e-12);                 /* no pull towards zero */
    assert_float_equal(m[2], (2 + 0.5 * 4) / 1.5, 1e-12);
    assert_float_equal(m[3], m[2], 1e-12);
    assert_float_equal(m[4], (6 + 0.5 * 2 + 0.25 * 4) / 1.75, 1e-12);
    dt_running_mean(m, y, 5, 0);
    assert_float_equal(m[2], 2, 1e-12);
}

static void assert_ticks(double lo, double hi, int log_axis, int n, const double *want)
{
    double t[16];
    assert_int_equal(dt_ticks(t, 16, lo, hi, log_axis), n);
    for (int i = 0; i < n; i++)
        assert_float_equal(t[i], want[i], 1e-9 * fabs(want[i]) + 1e-15);
}

static void test_ticks(void **state)
{
    (void)state;
    assert_ticks(0, 600, 0, 7, (double[]){ 0, 100, 200, 300, 400, 500, 600 });
    assert_ticks(0.13, 0.31, 0, 4, (double[]){ 0.15, 0.2, 0.25, 0.3 });
    assert_ticks(-0.02, 1, 0, 6, (double[]){ 0, 0.2, 0.4, 0.6, 0.8, 1 });
    assert_ticks(3e-5, 2, 1, 5, (double[]){ 1e-4, 1e-3, 1e-2, 0.1, 1 });
    assert_ticks(0.04, 1.5, 1, 5, (double[]){ 0.05, 0.1, 0.2, 0.5, 1 });
    assert_ticks(0.4, 0.6, 1, 5, (double[]){ 0.4, 0.45, 0.5, 0.55, 0.6 });
}

/* Straight lines are where the axes put them: the legend's sample of the colour lies above the plot. */
static void test_chart(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "loss.png");
    const double x[] = { 0, 100 }, high[] = { 1, 1 }, low[] = { 0.01, 0.01 };
    const dt_series s[] = { { "high", DT_SERIES_LINE, x, high, 2 }, { "low", DT_SERIES_LINE, x, low, 2 } };
    found f[2][2];
    for (int i = 0; i < 2; i++) {
        enum dt_chart_axis axis = i ? DT_AXIS_LOG : DT_AXIS_LINEAR;
        assert_int_equal(dt_chart_save(path, s, 2, dt_chart_params(.y_axis = axis), &err), 0);
        f[i][0] = find(path, 0x2f5fd0);
        f[i][1] = find(path, 0xe8710a);
        assert_int_equal(f[i][0].w, 1200);
        assert_int_equal(f[i][0].h, 600);
        for (int k = 0; k < 2; k++)
            assert_true(f[i][k].x0 < 100 && f[i][k].x1 > 1100 && f[i][k].n > 1000);
        assert_true(f[i][1].y1 > 480);
        assert_true(f[i][0].y1 < 130);
    }
    free(path);
}

/* NaN, one point, none, and losses that are not positive on a log axis: always a picture. */
static void test_chart_odd(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "loss.png");
    const double x[] = { 1, 2, 3, 4 }, odd[] = { NAN, 0.5, INFINITY, -1 }, nan4[] = { NAN, NAN, NAN, NAN };
    const int64_t n[] = { 4, 4, 1, 0 };
    for (int i = 0; i < 4; i++)
        for (int axis = DT_AXIS_AUTO; axis <= DT_AXIS_LOG; axis++) {
            const dt_series s[] = {
                { "loss", DT_SERIES_NOISY, x, i == 1 ? nan4 : odd + (i == 2), n[i] },
                { "held-out", DT_SERIES_POINTS, x, i == 1 ? nan4 : odd, n[i] },
            };
            assert_int_equal(dt_chart_save(path, s, 2, dt_chart_params(.title = "odd", .y_axis = axis), &err), 0);
            assert_int_equal(find(path, 0xffffff).w, 1200);
        }
    assert_int_equal(dt_chart_save("/nonexistent/loss.png", NULL, 0, dt_chart_params(), &err), DT_EIO);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scratch_test(test_grid),
        scratch_test(test_long_caption),
        scratch_test(test_large_tiles),
        scratch_test(test_grid_errors),
        cmocka_unit_test(test_running_mean),
        cmocka_unit_test(test_ticks),
        scratch_test(test_chart),
        scratch_test(test_chart_odd),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
