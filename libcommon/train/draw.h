/* draw.h - what sample sheets and charts share: a picture to draw on with cairo, text set by pango, saved as PNG.
 * Text is UTF-8; what is not is shown as U+FFFD.  Coordinates are px, y downwards. */
#ifndef DT_TRAIN_DRAW_H
#define DT_TRAIN_DRAW_H
#include <stdbool.h>
#include <stdint.h>
#include <cairo.h>
#include "base/err.h"

/* The palette, 0xRRGGBB. */
enum {
    DT_INK = 0x1f2430, DT_MUTED = 0x6b7280, DT_RULE = 0xe3e6eb, DT_AXIS = 0xaab1bc,
    DT_PAPER = 0xffffff, DT_SHADE = 0xf6f7f9,
};

enum dt_align { DT_LEFT, DT_CENTER, DT_RIGHT };     /* of the text about x, or within its width if it has one */

struct dt_text {
    double   size_px;       /* height of the font, default 13 */
    bool     bold;
    uint32_t rgb;           /* default DT_INK */
    enum dt_align align;
    double   width_px;      /* wrap here; 0 = one line of any length */
    int      lines;         /* then end with an ellipsis, default 1 */
};
#define dt_text(...) (&(struct dt_text){ .size_px = 13, .rgb = DT_INK, .lines = 1, __VA_ARGS__ })

typedef struct dt_canvas dt_canvas;
/* DT_ENOMEM beyond cairo's 32767 px a side, or without memory. */
int      dt_canvas_new(dt_canvas **out, int w_px, int h_px, uint32_t rgb, dt_err *err);
void     dt_canvas_free(dt_canvas **c);
cairo_t *dt_canvas_cairo(dt_canvas *c);             /* borrowed until free */
void     dt_set_rgb(cairo_t *cr, uint32_t rgb, double alpha);

/* x: left edge, centre or right edge as aligned; y: top.  draw returns the height used. */
double   dt_draw_text(dt_canvas *c, double x, double y, const char *str, const struct dt_text *t);
void     dt_text_size(dt_canvas *c, const char *str, const struct dt_text *t, double *w_px, double *h_px);

/* As dt_out_open: whole or not at all, "-" is stdout. */
int      dt_canvas_save(dt_canvas *c, const char *path, dt_err *err);

#endif
