/* grid.c - see grid.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "train/draw.h"
#include "train/grid.h"

#define MAX_SHEET_PX 16384

typedef struct tile {
    int row, col;
    cairo_surface_t *px;
} tile;

struct dt_grid {
    char   *title, *subtitle;
    int     max_tile_px;
    dt_strs rows, cols;             /* titles, "" where there is none */
    tile   *tile;
    int64_t n, cap;
};

dt_grid *dt_grid_new(const struct dt_grid_params *p)
{
    dt_grid *g = dt_alloc(sizeof(*g));
    g->title = dt_strdup(p->title);
    g->subtitle = dt_strdup(p->subtitle);
    g->max_tile_px = p->max_tile_px;
    return g;
}

void dt_grid_free(dt_grid **pg)
{
    dt_grid *g = *pg;
    if (!g)
        return;
    for (int64_t i = 0; i < g->n; i++)
        cairo_surface_destroy(g->tile[i].px);
    free(g->tile);
    free(g->title);
    free(g->subtitle);
    dt_strs_release(&g->rows);
    dt_strs_release(&g->cols);
    free(g);
    *pg = NULL;
}

int dt_grid_add_row(dt_grid *g, const char *title)
{
    dt_strs_add(&g->rows, title ? title : "");
    return (int)g->rows.n - 1;
}

int dt_grid_add_col(dt_grid *g, const char *title)
{
    dt_strs_add(&g->cols, title ? title : "");
    return (int)g->cols.n - 1;
}

/* --- tiles --- */

static cairo_surface_t *surface_from_rgb(const uint8_t *rgb, int w, int h)
{
    cairo_surface_t *s = cairo_image_surface_create(CAIRO_FORMAT_RGB24, w, h);
    if (cairo_surface_status(s) != CAIRO_STATUS_SUCCESS)
        return s;
    uint8_t *dst = cairo_image_surface_get_data(s);
    int stride = cairo_image_surface_get_stride(s);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++, rgb += 3) {
            uint32_t px = (uint32_t)rgb[0] << 16 | (uint32_t)rgb[1] << 8 | rgb[2];
            memcpy(dst + (size_t)y * (size_t)stride + 4 * (size_t)x, &px, 4);
        }
    cairo_surface_mark_dirty(s);
    return s;
}

/* Draws s with its top left corner at (x, y). */
static void paint(cairo_t *cr, cairo_surface_t *s, double x, double y, double scale)
{
    cairo_save(cr);
    cairo_translate(cr, x, y);
    cairo_scale(cr, scale, scale);
    cairo_set_source_surface(cr, s, 0, 0);
    cairo_pattern_set_filter(cairo_get_source(cr), scale >= 1 ? CAIRO_FILTER_NEAREST : CAIRO_FILTER_GOOD);
    cairo_pattern_set_extend(cairo_get_source(cr), CAIRO_EXTEND_PAD);
    cairo_rectangle(cr, 0, 0, cairo_image_surface_get_width(s), cairo_image_surface_get_height(s));
    cairo_fill(cr);
    cairo_restore(cr);
}

/* A run may keep hundreds of tiles: larger ones than the sheet shows are reduced before they are stored. */
static bool reduce(int *w, int *h, int max_px)
{
    double scale = (double)max_px / (*w > *h ? *w : *h);
    if (scale >= 1)
        return false;
    *w = (int)fmax(1, round(*w * scale));
    *h = (int)fmax(1, round(*h * scale));
    return true;
}

static cairo_surface_t *reduced(cairo_surface_t *s, int w, int h, int max_px)
{
    double scale = (double)max_px / (w > h ? w : h);
    int rw = w, rh = h;
    if (cairo_surface_status(s) != CAIRO_STATUS_SUCCESS || !reduce(&rw, &rh, max_px))
        return s;
    cairo_surface_t *small = cairo_image_surface_create(CAIRO_FORMAT_RGB24, rw, rh);
    cairo_t *cr = cairo_create(small);
    paint(cr, s, 0, 0, scale);
    cairo_destroy(cr);
    cairo_surface_destroy(s);
    return small;
}

int dt_grid_put(dt_grid *g, int row, int col, const uint8_t *rgb, int w_px, int h_px, dt_err *err)
{
    if (row < 0 || row >= g->rows.n || col < 0 || col >= g->cols.n)
        return dt_err_set(err, DT_EFAIL, "sample sheet: no cell at row %d, column %d", row, col);
    cairo_surface_t *s = reduced(surface_from_rgb(rgb, w_px, h_px), w_px, h_px, g->max_tile_px);
    if (cairo_surface_status(s) != CAIRO_STATUS_SUCCESS) {
        cairo_surface_destroy(s);
        return dt_err_set(err, DT_ENOMEM, "sample sheet: no memory for a tile of %d x %d pixels", w_px, h_px);
    }
    for (int64_t i = 0; i < g->n; i++)
        if (g->tile[i].row == row && g->tile[i].col == col) {
            cairo_surface_destroy(g->tile[i].px);
            g->tile[i].px = s;
            return 0;
        }
    dt_grow(&g->tile, &g->cap, g->n + 1, sizeof(*g->tile));
    g->tile[g->n++] = (tile){ row, col, s };
    return 0;
}

/* --- layout and drawing --- */

typedef struct sheet {              /* all in px of the sheet */
    double ui;                      /* text and gaps grow with the tiles, 1 to 2 */
    double scale;                   /* tile px to sheet px */
    double cell_w, cell_h, gap, margin;
    double left, top;               /* of the first tile */
    double w, h;
} sheet;

static double heading_height(const dt_grid *g, double ui)
{
    return (g->title ? 30 * ui : 0) + (g->subtitle ? 20 * ui : 0) + (g->title || g->subtitle ? 14 * ui : 0);
}

static struct dt_text row_text(const sheet *s)
{
    double size = 14 * s->ui;
    return *dt_text(.size_px = size, .width_px = 190 * s->ui, .lines = (int)fmax(1, s->cell_h / (size * 1.5)));
}

static struct dt_text col_text(const sheet *s)
{
    return *dt_text(.size_px = 14 * s->ui, .bold = true, .align = DT_CENTER, .width_px = s->cell_w, .lines = 3);
}

/* Largest extent of any title that is not empty. */
static void largest(const dt_strs *titles, dt_canvas *c, const struct dt_text t, double *w, double *h)
{
    *w = *h = 0;
    for (int64_t i = 0; i < titles->n; i++) {
        double tw = 0, th = 0;
        if (*titles->v[i])
            dt_text_size(c, titles->v[i], &t, &tw, &th);
        *w = fmax(*w, ceil(tw));
        *h = fmax(*h, ceil(th));
    }
}

/* w x h: the largest tile, px.  c: any canvas, to measure text with. */
static sheet arrange(const dt_grid *g, int w, int h, dt_canvas *c)
{
    int larger = w > h ? w : h;
    sheet s = { .scale = larger > 128 ? 1 : fmin(4, floor(256.0 / larger)) };
    if (larger > 42 && larger <= 85)
        s.scale = 3;                            /* 64 px: 192 reads as well as 256 and keeps the sheet small */
    double nc = fmax(1, (double)g->cols.n), nr = fmax(1, (double)g->rows.n);
    double most = fmin(MAX_SHEET_PX * 0.9 / nc / w, MAX_SHEET_PX * 0.9 / nr / h);
    if (s.scale > most)
        s.scale = most >= 1 ? floor(most) : most;
    s.cell_w = ceil(w * s.scale);
    s.cell_h = ceil(h * s.scale);
    s.ui = fmin(2, fmax(1, s.cell_w / 256));
    s.gap = round(10 * s.ui);
    s.margin = round(28 * s.ui);
    double rw, rh, cw, ch;
    largest(&g->rows, c, row_text(&s), &rw, &rh);
    largest(&g->cols, c, col_text(&s), &cw, &ch);
    s.left = s.margin + (rw > 0 ? rw + round(18 * s.ui) : 0);
    s.top = s.margin + round(heading_height(g, s.ui)) + (ch > 0 ? ch + round(9 * s.ui) : 0);
    s.w = s.left + nc * s.cell_w + (nc - 1) * s.gap + s.margin;
    s.h = s.top + nr * s.cell_h + (nr - 1) * s.gap + s.margin;
    return s;
}

static double cell_x(const sheet *s, int col)
{
    return s->left + col * (s->cell_w + s->gap);
}

static double cell_y(const sheet *s, int row)
{
    return s->top + row * (s->cell_h + s->gap);
}

static void draw_titles(const dt_grid *g, const sheet *s, dt_canvas *c)
{
    double y = s->margin, width = s->w - 2 * s->margin;
    const struct dt_text head = col_text(s), side = row_text(s);
    if (g->title) {
        dt_draw_text(c, s->margin, y, g->title, dt_text(.size_px = 20 * s->ui, .bold = true, .width_px = width));
        y += 30 * s->ui;
    }
    if (g->subtitle)
        dt_draw_text(c, s->margin, y, g->subtitle, dt_text(.size_px = 13 * s->ui, .rgb = DT_MUTED, .width_px = width));
    for (int i = 0; i < g->cols.n; i++) {
        double w, h;
        dt_text_size(c, g->cols.v[i], &head, &w, &h);
        dt_draw_text(c, cell_x(s, i) + s->cell_w / 2, s->top - 9 * s->ui - h, g->cols.v[i], &head);
    }
    for (int i = 0; i < g->rows.n; i++) {
        double w, h;
        dt_text_size(c, g->rows.v[i], &side, &w, &h);
        dt_draw_text(c, s->margin, round(cell_y(s, i) + (s->cell_h - h) / 2), g->rows.v[i], &side);
    }
}

/* A frame one pixel wide keeps a white picture apart from the paper. */
static void frame(cairo_t *cr, double x, double y, double w, double h)
{
    cairo_set_line_width(cr, 1);
    dt_set_rgb(cr, 0x000000, 0.12);
    cairo_rectangle(cr, x - 0.5, y - 0.5, w + 1, h + 1);
    cairo_stroke(cr);
}

static void draw_tiles(const dt_grid *g, const sheet *s, cairo_t *cr)
{
    for (int r = 0; r < g->rows.n; r++)
        for (int k = 0; k < g->cols.n; k++) {
            dt_set_rgb(cr, 0xeceef2, 1);
            cairo_rectangle(cr, cell_x(s, k), cell_y(s, r), s->cell_w, s->cell_h);
            cairo_fill(cr);
        }
    for (int64_t i = 0; i < g->n; i++) {
        const tile *t = &g->tile[i];
        double w = round(cairo_image_surface_get_width(t->px) * s->scale);
        double h = round(cairo_image_surface_get_height(t->px) * s->scale);
        double x = cell_x(s, t->col) + floor((s->cell_w - w) / 2);
        double y = cell_y(s, t->row) + floor((s->cell_h - h) / 2);
        paint(cr, t->px, x, y, s->scale);
        frame(cr, x, y, w, h);
    }
}

int dt_grid_bytes(const dt_grid *g, int w_px, int h_px, int64_t *tiles, int64_t *sheet_bytes, dt_err *err)
{
    dt_canvas *c = NULL;
    int64_t whole = 4 * (int64_t)w_px * h_px;
    int rc = dt_canvas_new(&c, 1, 1, DT_SHADE, err);
    if (rc < 0)
        return rc;
    bool less = reduce(&w_px, &h_px, g->max_tile_px);
    sheet s = arrange(g, w_px, h_px, c);
    draw_titles(g, &s, c);
    dt_canvas_free(&c);
    *tiles = 4 * g->rows.n * g->cols.n * w_px * h_px + (less ? whole : 0);     /* one more while it is being reduced */
    *sheet_bytes = 4 * (int64_t)s.w * (int64_t)s.h;
    return 0;
}

int dt_grid_save(const dt_grid *g, const char *path, dt_err *err)
{
    dt_canvas *c = NULL;
    int rc = dt_canvas_new(&c, 1, 1, DT_SHADE, err);
    if (rc < 0)
        return rc;
    int w = 1, h = 1;
    for (int64_t i = 0; i < g->n; i++) {
        int tw = cairo_image_surface_get_width(g->tile[i].px), th = cairo_image_surface_get_height(g->tile[i].px);
        w = tw > w ? tw : w;
        h = th > h ? th : h;
    }
    sheet s = arrange(g, w, h, c);
    dt_canvas_free(&c);
    if ((rc = dt_canvas_new(&c, (int)s.w, (int)s.h, DT_SHADE, err)) < 0)
        return rc;
    draw_titles(g, &s, c);
    draw_tiles(g, &s, dt_canvas_cairo(c));
    rc = dt_canvas_save(c, path, err);
    dt_canvas_free(&c);
    return rc;
}
