/* media_png.c - PNG in and out with libpng. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <png.h>
#include "base/file.h"
#include "data/media_int.h"

struct trap {
    const char *name;           /* file */
    int         code;           /* DT_EDATA reading, DT_EIO writing */
    dt_err     *err;
    const uint8_t *at;          /* reading: [at, end) is left */
    const uint8_t *end;
    FILE       *f;              /* writing */
    bool        no_memory;      /* libpng's words do not tell that from damage */
};

static png_voidp reserve(png_structp png, png_alloc_size_t bytes)
{
    struct trap *t = png_get_mem_ptr(png);
    void *p = malloc(bytes);
    t->no_memory |= !p;
    return p;
}

static void release(png_structp png, png_voidp p)
{
    (void)png;
    free(p);
}

static void fail(png_structp png, png_const_charp msg)
{
    struct trap *t = png_get_error_ptr(png);
    if (t->no_memory)
        t->code = dt_err_set(t->err, DT_ENOMEM, "%s: no memory for a PNG: %s", t->name, msg);
    else
        dt_err_set(t->err, t->code, t->code == DT_EIO ? "%s: cannot write PNG: %s" : "%s: damaged PNG: %s",
                   t->name, msg);
    png_longjmp(png, 1);
}

static void hush(png_structp png, png_const_charp msg)
{
    (void)png;
    (void)msg;
}

static void take(png_structp png, png_bytep dst, png_size_t n)
{
    struct trap *t = png_get_io_ptr(png);
    if ((size_t)(t->end - t->at) < n)
        png_error(png, "it ends early");
    memcpy(dst, t->at, n);
    t->at += n;
}

void dt_rgba_over_white(uint8_t *rgb, const uint8_t *rgba, int w)
{
    for (int i = 0; i < w; i++)
        for (int c = 0; c < 3; c++) {
            int a = rgba[4 * i + 3];
            rgb[3 * i + c] = (rgba[4 * i + c] * a + 255 * (255 - a) + 127) / 255;
        }
}

/* Any colour type to RGB or RGBA, 8 bits; returns 4 when there is alpha, else 3. */
static int normalise(png_structp png, png_infop info)
{
    png_set_expand(png);
    png_set_scale_16(png);
    png_set_gray_to_rgb(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    return png_get_channels(png, info);
}

int dt_png_decode(dt_image *out, const uint8_t *data, size_t bytes, const char *name, dt_err *err)
{
    if (dt_png_decode_fast(out, data, bytes))
        return 0;
    struct trap t = { .name = name, .code = DT_EDATA, .err = err, .at = data, .end = data + bytes };
    png_infop info = NULL;
    uint8_t *volatile buf = NULL;
    png_bytep *volatile rows = NULL;
    volatile int rc = 0;

    png_structp png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &t, fail, hush, &t, reserve, release);
    if (!png || !(info = png_create_info_struct(png))) {
        rc = dt_err_set(err, DT_ENOMEM, "%s: out of memory", name);
        goto out;
    }
    if (setjmp(png_jmpbuf(png))) {
        rc = t.code;
        goto out;
    }
    png_set_user_limits(png, out->w, out->h);
    /* Text, profiles and the like are passed over: of some, libpng 1.6.39 allocates the length they claim. */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_read_fn(png, &t, take);
    png_read_info(png, info);
    int ch = normalise(png, info);
    size_t stride = (size_t)out->w * ch;
    if (png_get_rowbytes(png, info) != stride || (int)png_get_image_height(png, info) != out->h)
        png_error(png, "odd row size");
    rows = malloc(out->h * sizeof *rows);
    buf = ch == 4 ? malloc(stride * out->h) : NULL;
    if (!rows || (ch == 4 && !buf)) {
        rc = dt_err_set(err, DT_ENOMEM, "%s: no memory to decode %dx%d", name, out->w, out->h);
        goto out;
    }
    for (int y = 0; y < out->h; y++)
        rows[y] = (ch == 4 ? buf : out->rgb) + stride * y;
    png_read_image(png, rows);
    png_read_end(png, NULL);
    for (int y = 0; ch == 4 && y < out->h; y++)
        dt_rgba_over_white(out->rgb + (size_t)out->w * 3 * y, rows[y], out->w);
out:
    free(buf);
    free(rows);
    png_destroy_read_struct(&png, &info, NULL);
    return rc;
}

static void give(png_structp png, png_bytep src, png_size_t n)
{
    struct trap *t = png_get_io_ptr(png);
    if (fwrite(src, 1, n, t->f) != n)
        png_error(png, "the disk is full or gone");
}

static void drain(png_structp png)
{
    struct trap *t = png_get_io_ptr(png);
    if (fflush(t->f))
        png_error(png, "the disk is full or gone");
}

static void put_text(png_structp png, png_infop info, const dt_png_text *text, int n)
{
    for (int i = 0; i < n; i++) {
        int ascii = 1;
        for (const char *p = text[i].value; *p; p++)
            ascii &= (unsigned char)*p < 128;
        png_text x = {
            .compression = ascii ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE,
            .key = (char *)text[i].key, .text = (char *)text[i].value, .text_length = strlen(text[i].value),
            .lang = "", .lang_key = "",
        };
        png_set_text(png, info, &x, 1);
    }
}

static int put(FILE *f, const char *name, const dt_image *im, const dt_png_text *text, int n_text, dt_err *err)
{
    struct trap t = { .name = name, .code = DT_EIO, .err = err, .f = f };
    png_infop info = NULL;
    volatile int rc = 0;

    png_structp png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &t, fail, hush, &t, reserve, release);
    if (!png || !(info = png_create_info_struct(png))) {
        rc = dt_err_set(err, DT_ENOMEM, "%s: out of memory", name);
        goto out;
    }
    if (setjmp(png_jmpbuf(png))) {
        rc = t.code;
        goto out;
    }
    png_set_write_fn(png, &t, give, drain);
    png_set_IHDR(png, info, im->w, im->h, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    put_text(png, info, text, n_text);
    png_write_info(png, info);
    for (int y = 0; y < im->h; y++)
        png_write_row(png, im->rgb + (size_t)im->w * 3 * y);
    png_write_end(png, info);
    png_write_flush(png);
    if (t.no_memory)            /* for the text, which libpng then leaves out */
        png_error(png, "no memory for its text");
out:
    png_destroy_write_struct(&png, &info);
    return rc;
}

int dt_png_put(FILE *f, const dt_image *im, const dt_png_text *text, int n_text, dt_err *err)
{
    return put(f, "PNG", im, text, n_text, err);
}

int dt_png_write(const char *path, const dt_image *im, const dt_png_text *text, int n_text, dt_err *err)
{
    dt_out *o = NULL;
    int rc = dt_out_open(&o, path, err);
    if (rc < 0)
        return rc;
    rc = put(dt_out_file(o), path, im, text, n_text, err);
    if (rc < 0) {
        dt_out_abort(&o);
        return rc;
    }
    return dt_out_commit(&o, err);
}
