/* draw.c - see draw.h. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <pango/pangocairo.h>
#include "base/file.h"
#include "base/mem.h"
#include "train/draw.h"

struct dt_canvas {
    cairo_surface_t *surface;
    cairo_t         *cr;
    PangoFontMap    *fonts;         /* of this canvas alone: pango's default one belongs to a thread */
    PangoContext    *pango;
};

/* Asked by LeakSanitizer where it is linked in: fontconfig 2.14 loses one block when it parses its configuration. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libfontconfig\n";
}

int dt_canvas_new(dt_canvas **out, int w_px, int h_px, uint32_t rgb, dt_err *err)
{
    dt_canvas *c = dt_alloc(sizeof(*c));
    c->surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, w_px, h_px);
    if (cairo_surface_status(c->surface) != CAIRO_STATUS_SUCCESS) {
        dt_canvas_free(&c);
        return dt_err_set(err, DT_ENOMEM, "cannot make a picture of %d x %d pixels", w_px, h_px);
    }
    c->cr = cairo_create(c->surface);
    c->fonts = pango_cairo_font_map_new();
    pango_cairo_font_map_set_resolution(PANGO_CAIRO_FONT_MAP(c->fonts), 96);
    c->pango = pango_font_map_create_context(c->fonts);
    dt_set_rgb(c->cr, rgb, 1);
    cairo_paint(c->cr);
    *out = c;
    return 0;
}

void dt_canvas_free(dt_canvas **pc)
{
    dt_canvas *c = *pc;
    if (!c)
        return;
    if (c->pango)
        g_object_unref(c->pango);
    if (c->fonts)
        g_object_unref(c->fonts);
    cairo_destroy(c->cr);
    cairo_surface_destroy(c->surface);
    free(c);
    *pc = NULL;
}

cairo_t *dt_canvas_cairo(dt_canvas *c)
{
    return c->cr;
}

void dt_set_rgb(cairo_t *cr, uint32_t rgb, double alpha)
{
    cairo_set_source_rgba(cr, (rgb >> 16 & 255) / 255.0, (rgb >> 8 & 255) / 255.0, (rgb & 255) / 255.0, alpha);
}

static PangoLayout *layout(dt_canvas *c, const char *str, const struct dt_text *t)
{
    static const PangoAlignment align[] = { PANGO_ALIGN_LEFT, PANGO_ALIGN_CENTER, PANGO_ALIGN_RIGHT };
    PangoLayout *l = pango_layout_new(c->pango);
    PangoFontDescription *font = pango_font_description_new();
    char *valid = g_utf8_make_valid(str, -1);

    pango_font_description_set_family(font, "Inter, Noto Sans, DejaVu Sans, sans-serif");
    pango_font_description_set_weight(font, t->bold ? PANGO_WEIGHT_BOLD : PANGO_WEIGHT_NORMAL);
    pango_font_description_set_absolute_size(font, t->size_px * PANGO_SCALE);
    pango_layout_set_font_description(l, font);
    pango_layout_set_single_paragraph_mode(l, TRUE);
    pango_layout_set_text(l, valid, -1);
    pango_layout_set_alignment(l, align[t->align]);
    if (t->width_px > 0) {
        pango_layout_set_width(l, (int)(t->width_px * PANGO_SCALE));
        pango_layout_set_height(l, -t->lines);          /* negative: lines, not units */
        pango_layout_set_wrap(l, PANGO_WRAP_WORD_CHAR);
        pango_layout_set_ellipsize(l, PANGO_ELLIPSIZE_END);
        pango_layout_set_line_spacing(l, 1.25f);
    }
    pango_font_description_free(font);
    g_free(valid);
    return l;
}

static void extent(PangoLayout *l, double *w, double *h)
{
    PangoRectangle logical;
    pango_layout_get_extents(l, NULL, &logical);
    *w = (double)logical.width / PANGO_SCALE;
    *h = (double)logical.height / PANGO_SCALE;
}

double dt_draw_text(dt_canvas *c, double x, double y, const char *str, const struct dt_text *t)
{
    PangoLayout *l = layout(c, str, t);
    double w, h;
    extent(l, &w, &h);
    if (t->width_px > 0)
        w = t->width_px;
    dt_set_rgb(c->cr, t->rgb, 1);
    cairo_move_to(c->cr, x - (t->align == DT_CENTER ? w / 2 : t->align == DT_RIGHT ? w : 0), y);
    pango_cairo_show_layout(c->cr, l);
    g_object_unref(l);
    return h;
}

void dt_text_size(dt_canvas *c, const char *str, const struct dt_text *t, double *w_px, double *h_px)
{
    PangoLayout *l = layout(c, str, t);
    extent(l, w_px, h_px);
    g_object_unref(l);
}

static cairo_status_t write_to(void *file, const unsigned char *data, unsigned int bytes)
{
    return fwrite(data, 1, bytes, file) == bytes ? CAIRO_STATUS_SUCCESS : CAIRO_STATUS_WRITE_ERROR;
}

int dt_canvas_save(dt_canvas *c, const char *path, dt_err *err)
{
    dt_out *o = NULL;
    int rc = dt_out_open(&o, path, err);
    if (rc < 0)
        return rc;
    cairo_status_t s = cairo_surface_write_to_png_stream(c->surface, write_to, dt_out_file(o));
    if (s == CAIRO_STATUS_SUCCESS)
        return dt_out_commit(&o, err);
    rc = s == CAIRO_STATUS_WRITE_ERROR ? dt_err_sys(err, DT_EIO, "cannot write '%s'", path)
                                       : dt_err_set(err, DT_ENOMEM, "no memory for '%s': %s", path,
                                                    cairo_status_to_string(s));
    dt_out_abort(&o);
    return rc;
}
