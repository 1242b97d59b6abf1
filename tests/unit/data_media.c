/* data_media.c - pictures against Pillow (tests/golden/data_images.py), damaged files, limits, PNG out. */
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <png.h>
#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "data/media.h"
#include "tests/unit/scratch.h"

#define DIR "tests/golden/data_images/"
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

struct golden { const char *name; enum dt_image_format format; double mean; };  /* mean |difference| allowed */

/* Exact but for: another build of the JPEG or WebP library, rounding of alpha and CMYK. */
static const struct golden all[] = {
    { "exif1.jpg", DT_IMAGE_JPEG, .5 }, { "exif2.jpg", DT_IMAGE_JPEG, .5 }, { "exif3.jpg", DT_IMAGE_JPEG, .5 },
    { "exif4.jpg", DT_IMAGE_JPEG, .5 }, { "exif5.jpg", DT_IMAGE_JPEG, .5 }, { "exif6.jpg", DT_IMAGE_JPEG, .5 },
    { "exif7.jpg", DT_IMAGE_JPEG, .5 }, { "exif8.jpg", DT_IMAGE_JPEG, .5 }, { "gray.jpg", DT_IMAGE_JPEG, .5 },
    { "progressive.jpg", DT_IMAGE_JPEG, .5 }, { "cmyk.jpg", DT_IMAGE_JPEG, 1 },
    { "ycck.jpg", DT_IMAGE_JPEG, 1 },
    { "rgb.png", DT_IMAGE_PNG, 0 }, { "rgba.png", DT_IMAGE_PNG, .5 }, { "exif6.png", DT_IMAGE_PNG, 0 },
    { "graya.png", DT_IMAGE_PNG, .5 }, { "bit1.png", DT_IMAGE_PNG, 0 }, { "palette.png", DT_IMAGE_PNG, 0 },
    { "gray16.png", DT_IMAGE_PNG, .01 }, { "rgb16.png", DT_IMAGE_PNG, 0 }, { "rgba16.png", DT_IMAGE_PNG, .5 },
    { "palettea.png", DT_IMAGE_PNG, .5 }, { "rgb16.tiff", DT_IMAGE_TIFF, 0 },
    { "lossy.webp", DT_IMAGE_WEBP, .5 }, { "lossless.webp", DT_IMAGE_WEBP, 0 }, { "alpha.webp", DT_IMAGE_WEBP, .5 },
    { "exif8.webp", DT_IMAGE_WEBP, 0 }, { "anim.webp", DT_IMAGE_WEBP, 0 },
    { "palette.gif", DT_IMAGE_GIF, 0 }, { "transparent.gif", DT_IMAGE_GIF, 0 }, { "anim.gif", DT_IMAGE_GIF, 0 },
    { "rgb.tiff", DT_IMAGE_TIFF, 0 }, { "lzw.tiff", DT_IMAGE_TIFF, .5 }, { "exif3.tiff", DT_IMAGE_TIFF, 0 },
    { "exif5.tiff", DT_IMAGE_TIFF, 0 }, { "cmyk.tiff", DT_IMAGE_TIFF, 1 },
    { "gray16.tiff", DT_IMAGE_TIFF, .01 }, { "fax.tiff", DT_IMAGE_TIFF, 0 }, { "rgba.bmp", DT_IMAGE_BMP, 0 },
    { "rgb.bmp", DT_IMAGE_BMP, 0 }, { "palette.bmp", DT_IMAGE_BMP, 0 }, { "bit1.bmp", DT_IMAGE_BMP, 0 },
};

static void read_ppm(dt_image *im, const char *name)
{
    char path[256], *data;
    size_t bytes;
    int at = 0;
    snprintf(path, sizeof path, DIR "%s", name);
    assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, NULL), 0);
    assert_int_equal(sscanf(data, "P6 %d %d 255%n", &im->w, &im->h, &at), 2);
    assert_int_equal(bytes - at - 1, im->w * im->h * 3);
    assert_int_equal(dt_image_alloc(im, im->w, im->h, NULL), 0);
    memcpy(im->rgb, data + at + 1, bytes - at - 1);
    free(data);
}

static double mean_diff(const dt_image *a, const dt_image *b)
{
    double sum = 0;
    assert_int_equal(a->w, b->w);
    assert_int_equal(a->h, b->h);
    for (int i = 0; i < a->w * a->h * 3; i++)
        sum += abs(a->rgb[i] - b->rgb[i]);
    return sum / (a->w * a->h * 3);
}

static void test_decode(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT(all); i++) {
        char path[256], ppm[128];
        dt_err err = { 0 };
        dt_image im, want;
        dt_image_info info;
        snprintf(path, sizeof path, DIR "%s", all[i].name);
        snprintf(ppm, sizeof ppm, "%s.ppm", all[i].name);
        read_ppm(&want, ppm);
        if (dt_image_probe(&info, path, NULL, &err) < 0 || dt_image_read(&im, path, NULL, &err) < 0)
            fail_msg("%s", err.msg);
        assert_int_equal(info.format, all[i].format);
        assert_int_equal(info.w, want.w);
        assert_int_equal(info.h, want.h);
        double d = mean_diff(&im, &want);
        if (d > all[i].mean)
            fail_msg("%s: mean difference %g", path, d);
        dt_image_release(&im);
        dt_image_release(&want);
    }
}

/* No prefix of a file may crash; those that lose picture data must fail. */
static void test_truncated(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT(all); i++) {
        char path[256], *data;
        size_t bytes;
        snprintf(path, sizeof path, DIR "%s", all[i].name);
        assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, NULL), 0);
        for (size_t n = 0; n < bytes; n++) {
            dt_image im = { 0 };
            dt_err err = { 0 };
            uint8_t *part = malloc(n + 1);      /* exact size, so that the sanitizer sees an overrun */
            memcpy(part, data, n);
            part = realloc(part, n ? n : 1);
            int rc = dt_image_decode(&im, part, n, "t", NULL, &err);
            assert_true(rc == 0 || (rc == DT_EDATA && !strncmp(err.msg, "t: ", 3)));
            bool animated = strstr(path, "anim");
            if (rc == 0 && n < bytes * 3 / 4 && !animated)
                fail_msg("%s: %zu of %zu bytes were taken for a picture", path, n, bytes);
            dt_image_release(&im);
            free(part);
        }
        free(data);
    }
}

static void test_damaged(void **state)
{
    (void)state;
    dt_rng r = dt_rng_make(1, DT_RNG_TEST, 0, 0);
    for (int i = 0; i < COUNT(all); i++) {
        char path[256], *data;
        size_t bytes;
        snprintf(path, sizeof path, DIR "%s", all[i].name);
        assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, NULL), 0);
        for (int k = 0; k < 60; k++) {
            dt_image im = { 0 };
            dt_err err = { 0 };
            uint8_t *bad = malloc(bytes);
            memcpy(bad, data, bytes);
            for (int n = 0; n < 1 + k / 20; n++)
                bad[dt_rng_below(&r, bytes)] = dt_rng_u32(&r);
            int rc = dt_image_decode(&im, bad, bytes, "t", dt_image_limits(.max_px = 1 << 20), &err);
            assert_true(rc == 0 || (rc == DT_EDATA && !strncmp(err.msg, "t: ", 3)));
            dt_image_release(&im);
            free(bad);
        }
        free(data);
    }
}

static void refused(const char *what, const void *data, size_t bytes, const char *words)
{
    dt_image im = { 0 };
    dt_err err = { 0 };
    assert_int_equal(dt_image_decode(&im, data, bytes, what, NULL, &err), DT_EDATA);
    if (!strstr(err.msg, words) || strncmp(err.msg, what, strlen(what)))
        fail_msg("'%s' does not say '%s'", err.msg, words);
    assert_null(im.rgb);
}

static void test_refused(void **state)
{
    (void)state;
    static const uint8_t bomb[] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\2\0\0\0abcd";
    static const uint8_t tall[] = "GIF89a\1\0\0\0\0\0\0";
    refused("bomb.png", bomb, sizeof bomb, "65535x65535 is beyond the limit");
    refused("flat.gif", tall, sizeof tall, "header gives a size of 1x0");
    refused("empty.jpg", "", 0, "empty file");
    refused("jpeg.tiff", "II*\0\10\0\0\0\1\0\3\1\3\0\1\0\0\0\7\0\0\0", 22, "TIFF with JPEG inside");
    refused("text.jpg", "this is not a picture", 21, "not a picture of a known kind");

    dt_image_info info;
    dt_err err = { 0 };
    assert_int_equal(dt_image_probe(&info, DIR "none.png", NULL, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "none.png"));
    assert_int_equal(dt_image_probe(&info, "tests", NULL, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "not a regular file"));
    assert_int_equal(dt_image_probe(&info, DIR "rgb.png", dt_image_limits(.max_side_px = 19), &err), DT_EDATA);
    assert_int_equal(dt_image_probe(&info, DIR "rgb.png", dt_image_limits(.max_px = 239), &err), DT_EDATA);
    assert_int_equal(dt_image_probe(&info, DIR "rgb.png", dt_image_limits(.max_px = 240), &err), 0);
}

static void test_resize(void **state)
{
    (void)state;
    static const int size[][2] = { { 20, 15 }, { 31, 47 }, { 61, 20 }, { 90, 70 }, { 7, 64 }, { 1, 1 } };
    dt_image src, same, part, want;
    read_ppm(&src, "resize_src.ppm");
    for (int i = 0; i < COUNT(size); i++) {
        int w = size[i][0], h = size[i][1];
        char name[64];
        snprintf(name, sizeof name, "resize_%dx%d.ppm", w, h);
        read_ppm(&want, name);
        assert_int_equal(dt_image_resize(&same, &src, w, h, 0, 0, w, h, NULL), 0);
        assert_int_equal(same.w, w);
        assert_int_equal(same.h, h);
        assert_memory_equal(same.rgb, want.rgb, w * h * 3);
        int x = w / 3, y = h / 4, cw = w - 2 * x, ch = h - 2 * y;       /* a window is a crop of the whole */
        assert_int_equal(dt_image_resize(&part, &src, w, h, x, y, cw, ch, NULL), 0);
        for (int r = 0; r < ch; r++)
            assert_memory_equal(part.rgb + r * cw * 3, want.rgb + ((y + r) * w + x) * 3, cw * 3);
        dt_image_release(&part);
        dt_image_release(&same);
        dt_image_release(&want);
    }
    assert_int_equal(dt_image_resize(&same, &src, 61, 47, 0, 0, 61, 47, NULL), 0);
    assert_memory_equal(same.rgb, src.rgb, 61 * 47 * 3);
    dt_image_flip(&same);
    assert_memory_equal(same.rgb, src.rgb + 60 * 3, 3);
    assert_int_equal(dt_image_resize(&part, &src, 10, 10, 5, 0, 6, 10, NULL), DT_EFAIL);
    dt_image_release(&same);
    dt_image_release(&src);
}

/* The way of a training picture, against Pillow: another build of a library may round otherwise. */
static void test_file_to_bucket(void **state)
{
    (void)state;
    static const struct { const char *name; double mean; } fit[] = {
        { DIR "fit.jpg", .5 }, { DIR "fit.png", 0 }, { DIR "fit.webp", .5 },
    };
    for (int i = 0; i < COUNT(fit); i++) {
        char ppm[64];
        dt_image im, out, want;
        snprintf(ppm, sizeof ppm, "%s.ppm", dt_path_base(fit[i].name));
        read_ppm(&want, ppm);
        assert_int_equal(dt_image_read(&im, fit[i].name, NULL, NULL), 0);
        assert_int_equal(dt_image_resize(&out, &im, 85, 64, 10, 0, 64, 64, NULL), 0);
        double d = mean_diff(&out, &want);
        if (d > fit[i].mean)
            fail_msg("%s: mean difference %g", fit[i].name, d);
        dt_image_release(&im);
        dt_image_release(&out);
        dt_image_release(&want);
    }
}

/* A random picture of `ch` channels with all its rows filtered by `filter`, in IDAT chunks of 100 bytes. */
static void filtered_png(const char *path, const uint8_t *px, int w, int h, int ch, int filter)
{
    static const int type[] = { [1] = PNG_COLOR_TYPE_GRAY, [3] = PNG_COLOR_TYPE_RGB, [4] = PNG_COLOR_TYPE_RGBA };
    FILE *f = fopen(path, "wb");
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    assert_false(setjmp(png_jmpbuf(png)));
    png_init_io(png, f);
    png_set_compression_buffer_size(png, 100);
    png_set_IHDR(png, info, w, h, 8, type[ch], PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_set_filter(png, 0, filter);
    png_write_info(png, info);
    for (int y = 0; y < h; y++)
        png_write_row(png, px + (size_t)w * ch * y);
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    fclose(f);
}

static void test_png_filters(void **state)
{
    (void)state;
    static const int filter[] = { PNG_FILTER_NONE, PNG_FILTER_SUB, PNG_FILTER_UP, PNG_FILTER_AVG, PNG_FILTER_PAETH,
                                  PNG_ALL_FILTERS };
    enum { W = 37, H = 23 };
    uint8_t px[W * H * 4];
    dt_rng r = dt_rng_make(1, DT_RNG_TEST, 0, 1);
    char *dir = scratch_new(), *file = dt_path_join(dir, "a.png");
    for (int ch = 1; ch <= 4; ch += ch == 1 ? 2 : 1)
        for (int i = 0; i < COUNT(filter); i++) {
            for (int k = 0; k < W * H * ch; k++)    /* near and far from the neighbours; opaque */
                px[k] = ch == 4 && k % 4 == 3 ? 255 : k % 3 ? (int)dt_rng_below(&r, 256) : k / 7;
            filtered_png(file, px, W, H, ch, filter[i]);
            dt_image im;
            assert_int_equal(dt_image_read(&im, file, NULL, NULL), 0);
            for (int k = 0; k < W * H * 3; k++)
                if (im.rgb[k] != px[k / 3 * ch + (ch == 1 ? 0 : k % 3)])
                    fail_msg("%d channels, filter %d: byte %d", ch, i, k);
            dt_image_release(&im);
        }
    assert_int_equal(scratch_end(dir), 0);
    free(file);
}

static void test_png_write(void **state)
{
    (void)state;
    static const dt_png_text text[] = { { "prompt", "a red house" }, { "Title", "caf\xc3\xa9" } };
    dt_image src, back;
    dt_err err = { 0 };
    char *dir = scratch_new(), *file = dt_path_join(dir, "a.png"), *data;
    size_t bytes;
    read_ppm(&src, "resize_src.ppm");
    assert_int_equal(dt_png_write(file, &src, text, 2, &err), 0);
    assert_int_equal(dt_image_read(&back, file, NULL, &err), 0);
    assert_true(mean_diff(&src, &back) == 0);
    assert_int_equal(dt_file_read(&data, &bytes, file, 1 << 20, NULL), 0);
    assert_non_null(memmem(data, bytes, "tEXtprompt\0a red house", 22));
    assert_non_null(memmem(data, bytes, "iTXtTitle\0\0\0\0\0caf\xc3\xa9", 19));
    if (access("/dev/full", W_OK) == 0) {
        FILE *full = fopen("/dev/full", "w");
        assert_int_equal(dt_png_put(full, &src, NULL, 0, &err), DT_EIO);
        fclose(full);
    }
    assert_int_equal(dt_png_write("/nowhere/at/all.png", &src, NULL, 0, &err), DT_EIO);
    assert_int_equal(scratch_end(dir), 0);
    free(file);
    free(data);
    dt_image_release(&src);
    dt_image_release(&back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode), cmocka_unit_test(test_truncated), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_resize), cmocka_unit_test(test_png_write),
        cmocka_unit_test(test_png_filters), cmocka_unit_test(test_file_to_bucket),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
