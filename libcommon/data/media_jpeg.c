/* media_jpeg.c - JPEG to RGB with libjpeg-turbo. */
#include <setjmp.h>
#include <stdbool.h>
#include <string.h>
#include <stdio.h>
#include <jpeglib.h>
#include <jerror.h>
#include "data/media_int.h"

#define MAX_SCANS 1000          /* a progressive file of empty scans must end */

struct trap {
    struct jpeg_error_mgr mgr;
    struct jpeg_progress_mgr progress;
    jmp_buf     jump;
    const char *name;
    dt_err     *err;
    int         code;
};

static void fail(j_common_ptr c)
{
    struct trap *t = (struct trap *)c->err;
    char text[JMSG_LENGTH_MAX];
    c->err->format_message(c, text);
    bool memory = c->err->msg_code == JERR_OUT_OF_MEMORY;
    t->code = memory ? DT_ENOMEM : DT_EDATA;
    dt_err_set(t->err, t->code, "%s: %s: %s", t->name, memory ? "no memory to decode it" : "damaged JPEG", text);
    longjmp(t->jump, 1);
}

/* libjpeg paints what is missing grey and warns; such a picture must not be trained on. */
static void warn(j_common_ptr c, int level)
{
    int code = c->err->msg_code;
    if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE))
        fail(c);
}

static void count_scans(j_common_ptr c)
{
    struct trap *t = (struct trap *)c->err;
    if (((j_decompress_ptr)c)->input_scan_number > MAX_SCANS) {
        dt_err_set(t->err, DT_EDATA, "%s: damaged JPEG: more than %d scans", t->name, MAX_SCANS);
        longjmp(t->jump, 1);
    }
}

/* Adobe's CMYK is stored inverted: 255 is no ink.  r = c * k / 255. */
static void cmyk_row(uint8_t *rgb, const uint8_t *cmyk, int w, bool inverted)
{
    uint8_t x = inverted ? 0 : 255;
    for (int i = 0; i < w; i++)
        for (int c = 0; c < 3; c++)
            rgb[3 * i + c] = ((cmyk[4 * i + c] ^ x) * (cmyk[4 * i + 3] ^ x) + 127) / 255;
}

int dt_jpeg_decode(dt_image *out, const uint8_t *data, size_t bytes, const char *name, dt_err *err)
{
    struct jpeg_decompress_struct d;
    struct trap t = { .name = name, .err = err, .code = DT_EDATA, .progress.progress_monitor = count_scans };
    JSAMPARRAY row = NULL;

    memset(&d, 0, sizeof d);
    d.err = jpeg_std_error(&t.mgr);
    t.mgr.error_exit = fail;
    t.mgr.emit_message = warn;
    if (setjmp(t.jump)) {
        jpeg_destroy_decompress(&d);
        return t.code;
    }
    jpeg_create_decompress(&d);
    d.progress = &t.progress;
    jpeg_mem_src(&d, data, bytes);
    jpeg_read_header(&d, TRUE);
    if ((int)d.image_width != out->w || (int)d.image_height != out->h) {
        jpeg_destroy_decompress(&d);
        return dt_err_set(err, DT_EDATA, "%s: damaged JPEG: two frame headers", name);
    }
    bool cmyk = d.jpeg_color_space == JCS_CMYK || d.jpeg_color_space == JCS_YCCK;
    d.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&d);
    if (cmyk)
        row = d.mem->alloc_sarray((j_common_ptr)&d, JPOOL_IMAGE, 4 * d.output_width, 1);
    while (d.output_scanline < d.output_height) {
        uint8_t *rgb = out->rgb + (size_t)d.output_scanline * out->w * 3;
        JSAMPROW p = rgb;
        jpeg_read_scanlines(&d, cmyk ? row : &p, 1);
        if (cmyk)
            cmyk_row(rgb, row[0], out->w, d.saw_Adobe_marker);
    }
    jpeg_finish_decompress(&d);
    jpeg_destroy_decompress(&d);
    return 0;
}
