/* chart.c - see chart.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "train/chart.h"
#include "train/draw.h"

#define MAX_TICKS 16

/* Colours of the series in turn; chosen to differ for the colour-blind as well. */
static const uint32_t palette[] = { 0x2f5fd0, 0xe8710a, 0x1a936f, 0xc2255c, 0x6741d9, 0x0b7285 };
static uint32_t colour(int i)
{
    return palette[i % (int)(sizeof(palette) / sizeof(*palette))];
}

void dt_running_mean(double *out, const double *y, int64_t n, double decay)
{
    double sum = 0, weight = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isfinite(y[i])) {
            sum = decay * sum + (1 - decay) * y[i];
            weight = decay * weight + (1 - decay);
        }
        out[i] = weight > 0 ? sum / weight : NAN;
    }
}

/* --- axes --- */

static double round_step(double range, int want)
{
    double raw = range / want, unit = pow(10, floor(log10(raw))), f = raw / unit;
    return unit * (f <= 1 ? 1 : f <= 2 ? 2 : f <= 5 ? 5 : 10);
}

static int linear_ticks(double *out, int max, double lo, double hi)
{
    int n = 0;
    double step = round_step(hi - lo, max < 7 ? max - 1 : 6), first = ceil(lo / step - 1e-9);
    for (double k = first; k * step <= hi + 1e-9 * step && n < max; k++)
        out[n++] = k * step + 0.0;           /* + 0.0: no "-0" */
    return n;
}

/* Ticks of the form m * 10^k for the given m. */
static int log_ticks(double *out, int max, double lo, double hi, const int *m, int n_m)
{
    int n = 0;
    for (int k = (int)floor(log10(lo)); k <= (int)ceil(log10(hi)); k++)
        for (int i = 0; i < n_m; i++) {
            double v = m[i] * pow(10, k);
            if (v >= lo * (1 - 1e-9) && v <= hi * (1 + 1e-9) && n < max)
                out[n++] = v;
        }
    return n;
}

int dt_ticks(double *out, int max, double lo, double hi, int log_axis)
{
    if (!log_axis)
        return linear_ticks(out, max, lo, hi);
    int n = log_ticks(out, max, lo, hi, (const int[]){ 1 }, 1);
    if (n < 4)
        n = log_ticks(out, max, lo, hi, (const int[]){ 1, 2, 5 }, 3);
    return n < 4 ? linear_ticks(out, max, lo, hi) : n;
}

/* The number with the digits that tell it from its neighbours: 0.05, 2.5, 12,000, 1e-05. */
static void label(char *s, size_t bytes, double v, double step)
{
    if (v != 0 && (fabs(v) < 1e-4 || fabs(v) >= 1e9)) {
        snprintf(s, bytes, "%.3g", v);
    } else if (fabs(v) >= 10000 && v == floor(v)) {
        int i = (int)fabs(v);
        if (i >= 1000000)
            snprintf(s, bytes, "%s%d,%03d,%03d", v < 0 ? "-" : "", i / 1000000, i / 1000 % 1000, i % 1000);
        else
            snprintf(s, bytes, "%s%d,%03d", v < 0 ? "-" : "", i / 1000, i % 1000);
    } else {
        int digits = (int)fmax(0, -floor(log10(step) + 1e-9));
        snprintf(s, bytes, "%.*f", digits > 6 ? 6 : digits, v);
    }
}

/* --- data --- */

typedef struct chart {
    const struct dt_chart_params *p;
    const dt_series *s;
    double **mean;                      /* per series: its running mean, NULL unless noisy */
    int    n, log;
    double x0, x1, y0, y1;              /* ranges of the axes */
    double left, top, right, bottom;    /* the plot, px */
    dt_canvas *c;
    cairo_t   *cr;
} chart;

static double px(const chart *c, double x)
{
    return c->left + (x - c->x0) / (c->x1 - c->x0) * (c->right - c->left);
}

static double py(const chart *c, double y)
{
    double f = c->log ? log(y / c->y0) / log(c->y1 / c->y0) : (y - c->y0) / (c->y1 - c->y0);
    return c->bottom - f * (c->bottom - c->top);
}

static int drawable(const chart *c, double y)
{
    return isfinite(y) && (!c->log || y > 0);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Widens [lo, hi] by what is drawable of y, without the outermost 1 % at either end if `trim`: one bad step must not
 * flatten the curve. */
static void widen(const chart *c, double *lo, double *hi, const double *y, int64_t n, int trim)
{
    double *v = dt_alloc((size_t)(n + 1) * sizeof(*v));
    int64_t k = 0;
    for (int64_t i = 0; i < n; i++)
        if (drawable(c, y[i]))
            v[k++] = y[i];
    if (k) {
        qsort(v, (size_t)k, sizeof(*v), ascending);
        int64_t cut = trim ? k / 100 : 0;
        *lo = fmin(*lo, v[cut]);
        *hi = fmax(*hi, v[k - 1 - cut]);
    }
    free(v);
}

static void choose_y(chart *c)
{
    double lo = INFINITY, hi = -INFINITY;
    for (int i = 0; i < c->n; i++)
        widen(c, &lo, &hi, c->mean[i] ? c->mean[i] : c->s[i].y, c->s[i].n, 0);
    c->log = c->p->y_axis == DT_AXIS_LOG || (c->p->y_axis == DT_AXIS_AUTO && lo > 0 && hi / lo > 20);
    lo = INFINITY;
    hi = -INFINITY;
    for (int i = 0; i < c->n; i++) {
        if (c->mean[i])
            widen(c, &lo, &hi, c->mean[i], c->s[i].n, 0);
        widen(c, &lo, &hi, c->s[i].y, c->s[i].n, c->mean[i] != NULL);
    }
    if (!(lo <= hi))                            /* nothing to draw */
        lo = c->log ? 0.1 : 0, hi = 1;
    if (c->log) {
        double pad = fmax(pow(hi / lo, 0.05), 1.05);
        c->y0 = lo / pad;
        c->y1 = hi * pad;
    } else {
        double pad = fmax((hi - lo) * 0.06, fabs(hi) * 0.02 + 1e-12);
        c->y0 = lo >= 0 && lo < 0.35 * hi ? 0 : lo - pad;   /* zero is worth its room when it is near */
        c->y1 = hi + pad;
    }
}

static void choose_x(chart *c)
{
    c->x0 = INFINITY;
    c->x1 = -INFINITY;
    for (int i = 0; i < c->n; i++)
        if (c->s[i].n > 0) {
            c->x0 = fmin(c->x0, c->s[i].x[0]);
            c->x1 = fmax(c->x1, c->s[i].x[c->s[i].n - 1]);
        }
    if (!(c->x0 <= c->x1))
        c->x0 = c->x1 = 0;
    if (c->x0 > 0 && c->x0 <= 0.05 * c->x1)
        c->x0 = 0;
    c->x1 = fmax(c->x1, c->x0 + 5);             /* steps are whole numbers, and so are their ticks */
}

/* --- drawing --- */

static void rule(cairo_t *cr, double x0, double y0, double x1, double y1, uint32_t rgb)
{
    dt_set_rgb(cr, rgb, 1);
    cairo_set_line_width(cr, 1);
    cairo_move_to(cr, floor(x0) + 0.5, floor(y0) + 0.5);
    cairo_line_to(cr, floor(x1) + 0.5, floor(y1) + 0.5);
    cairo_stroke(cr);
}

static void draw_axes(chart *c)
{
    double t[MAX_TICKS];
    char s[48];
    int n = dt_ticks(t, MAX_TICKS, c->y0, c->y1, c->log);
    for (int i = 0; i < n; i++) {
        label(s, sizeof(s), t[i], c->log && n > 1 && t[1] > 1.9 * t[0] ? t[i] : n > 1 ? t[1] - t[0] : 1);
        rule(c->cr, c->left, py(c, t[i]), c->right, py(c, t[i]), DT_RULE);
        dt_draw_text(c->c, c->left - 10, py(c, t[i]) - 8, s,
                     dt_text(.size_px = 12, .rgb = DT_MUTED, .align = DT_RIGHT));
    }
    n = dt_ticks(t, 12, c->x0, c->x1, 0);
    for (int i = 0; i < n; i++) {
        label(s, sizeof(s), t[i], n > 1 ? t[1] - t[0] : 1);
        rule(c->cr, px(c, t[i]), c->bottom, px(c, t[i]), c->bottom + 5, DT_AXIS);
        dt_draw_text(c->c, px(c, t[i]), c->bottom + 9, s,
                     dt_text(.size_px = 12, .rgb = DT_MUTED, .align = DT_CENTER));
    }
    rule(c->cr, c->left, c->bottom, c->right, c->bottom, DT_AXIS);
    if (c->p->x_label)
        dt_draw_text(c->c, (c->left + c->right) / 2, c->bottom + 30, c->p->x_label,
                     dt_text(.size_px = 12, .rgb = DT_MUTED, .align = DT_CENTER));
    if (c->p->y_label) {
        char *y = dt_sprintf("%s%s", c->p->y_label, c->log ? " (log scale)" : "");
        dt_draw_text(c->c, c->left, c->top - 24, y, dt_text(.size_px = 12, .rgb = DT_MUTED));
        free(y);
    }
}

/* With many points to a pixel column, its lowest and highest look the same as all of them and are drawn in no time. */
static void path(chart *c, const double *x, const double *y, int64_t n)
{
    cairo_new_path(c->cr);
    for (int64_t i = 0; i < n; ) {
        if (!drawable(c, y[i])) {
            cairo_new_sub_path(c->cr);
            i++;
            continue;
        }
        double at = px(c, x[i]), lo = y[i], hi = y[i];
        int64_t first = i;
        for (i++; i < n && px(c, x[i]) < at + 0.5 && drawable(c, y[i]); i++) {
            lo = fmin(lo, y[i]);
            hi = fmax(hi, y[i]);
        }
        cairo_line_to(c->cr, at, py(c, y[first]));
        if (i - first > 2) {
            cairo_line_to(c->cr, at, py(c, lo));
            cairo_line_to(c->cr, at, py(c, hi));
        }
        cairo_line_to(c->cr, px(c, x[i - 1]), py(c, y[i - 1]));
    }
}

static void dot(cairo_t *cr, double x, double y, uint32_t rgb)
{
    cairo_new_path(cr);
    cairo_arc(cr, x, y, 4.5, 0, 2 * M_PI);
    dt_set_rgb(cr, DT_PAPER, 1);
    cairo_fill_preserve(cr);
    cairo_set_line_width(cr, 2.2);
    dt_set_rgb(cr, rgb, 1);
    cairo_stroke(cr);
}

static void stroke(chart *c, const double *x, const double *y, int64_t n, double width, uint32_t rgb, double alpha)
{
    path(c, x, y, n);
    cairo_set_line_width(c->cr, width);
    dt_set_rgb(c->cr, rgb, alpha);
    cairo_stroke(c->cr);
}

static void draw_series(chart *c)
{
    cairo_save(c->cr);
    cairo_rectangle(c->cr, c->left - 6, c->top - 6, c->right - c->left + 12, c->bottom - c->top + 6);   /* whole dots */
    cairo_clip(c->cr);
    cairo_set_line_join(c->cr, CAIRO_LINE_JOIN_ROUND);
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    for (int i = 0; i < c->n; i++)
        if (c->mean[i])
            stroke(c, c->s[i].x, c->s[i].y, c->s[i].n, 1, colour(i), 0.25);
    for (int i = 0; i < c->n; i++) {
        const dt_series *s = &c->s[i];
        int points = s->kind == DT_SERIES_POINTS || s->n == 1;
        stroke(c, s->x, c->mean[i] ? c->mean[i] : s->y, s->n, points ? 1.5 : 2.4, colour(i), points ? 0.6 : 1);
        for (int64_t k = 0; points && k < s->n; k++)
            if (drawable(c, s->y[k]))
                dot(c->cr, px(c, s->x[k]), py(c, s->y[k]), colour(i));
    }
    cairo_restore(c->cr);
}

/* The last value of every curve, at its end; labels that would touch are pushed apart. */
static void draw_last_values(chart *c)
{
    double above = -INFINITY;
    int *order = dt_alloc((size_t)(c->n + 1) * sizeof(*order)), m = 0;
    double *at = dt_alloc((size_t)(c->n + 1) * sizeof(*at)), *last = dt_alloc((size_t)(c->n + 1) * sizeof(*last));
    for (int i = 0; i < c->n; i++) {
        const double *y = c->mean[i] ? c->mean[i] : c->s[i].y;
        int64_t k = c->s[i].n - 1;
        while (k >= 0 && !drawable(c, y[k]))
            k--;
        if (k < 0)
            continue;
        last[i] = y[k];
        at[i] = fmin(c->bottom, fmax(c->top, py(c, y[k])));
        int j = m++;
        for (; j > 0 && at[order[j - 1]] > at[i]; j--)
            order[j] = order[j - 1];
        order[j] = i;
    }
    for (int j = 0; j < m; j++) {
        char s[32];
        double y = fmax(at[order[j]], above + 17);
        snprintf(s, sizeof(s), fabs(last[order[j]]) < 100 ? "%#.3g" : "%.4g", last[order[j]]);
        dt_draw_text(c->c, c->right + 12, y - 9, s, dt_text(.size_px = 13, .bold = true, .rgb = colour(order[j])));
        above = y;
    }
    free(order);
    free(at);
    free(last);
}

static double draw_key(chart *c, double x, double y, const char *text, int i, int faint)
{
    double w, h;
    const struct dt_text *t = dt_text(.size_px = 13, .rgb = DT_MUTED);
    dt_text_size(c->c, text, t, &w, &h);
    x -= w;
    dt_draw_text(c->c, x, y - h / 2, text, t);
    x -= 32;
    cairo_new_path(c->cr);
    cairo_move_to(c->cr, x, y);
    cairo_line_to(c->cr, x + 24, y);
    dt_set_rgb(c->cr, colour(i), faint ? 0.35 : 1);
    cairo_set_line_width(c->cr, faint ? 1.5 : c->s[i].kind == DT_SERIES_POINTS ? 1.5 : 2.4);
    cairo_stroke(c->cr);
    if (c->s[i].kind == DT_SERIES_POINTS)
        dot(c->cr, x + 12, y, colour(i));
    return x - 24;
}

/* One line, from right to left: the keys end where the plot ends. */
static void draw_legend(chart *c)
{
    double x = c->right, y = c->top - 16;
    for (int i = c->n - 1; i >= 0; i--) {
        if (c->mean[i]) {
            char *mean = dt_sprintf("%s, running mean", c->s[i].label);
            x = draw_key(c, x, y, mean, i, 0);
            free(mean);
        }
        x = draw_key(c, x, y, c->s[i].label, i, c->mean[i] != NULL);
    }
}

static void draw_chart(chart *c)
{
    const struct dt_chart_params *p = c->p;
    c->left = 74;
    c->right = p->w_px - 92;
    c->top = 60 + (p->title ? 34 : 0) + (p->subtitle ? 22 : 0);
    c->bottom = p->h_px - 66;
    if (p->title)
        dt_draw_text(c->c, c->left, 26, p->title, dt_text(.size_px = 20, .bold = true, .width_px = c->right - c->left));
    if (p->subtitle)
        dt_draw_text(c->c, c->left, p->title ? 58 : 26, p->subtitle,
                     dt_text(.rgb = DT_MUTED, .width_px = c->right - c->left));
    choose_y(c);
    choose_x(c);
    draw_axes(c);
    draw_series(c);
    draw_last_values(c);
    draw_legend(c);
}

int dt_chart_bytes(const struct dt_chart_params *p, int64_t *bytes, dt_err *err)
{
    dt_canvas *c = NULL;
    int rc = dt_canvas_new(&c, 1, 1, DT_PAPER, err);
    if (rc < 0)
        return rc;
    dt_draw_text(c, 0, 0, p->title, dt_text(.size_px = 20, .bold = true));
    dt_draw_text(c, 0, 0, p->x_label, dt_text(.rgb = DT_MUTED));
    dt_canvas_free(&c);
    *bytes = 4 * (int64_t)p->w_px * p->h_px;
    return 0;
}

int dt_chart_save(const char *file, const dt_series *s, int n, const struct dt_chart_params *p, dt_err *err)
{
    chart c = { .p = p, .s = s, .n = n };
    int rc = dt_canvas_new(&c.c, p->w_px, p->h_px, DT_PAPER, err);
    if (rc < 0)
        return rc;
    c.cr = dt_canvas_cairo(c.c);
    c.mean = dt_alloc((size_t)(n + 1) * sizeof(*c.mean));
    for (int i = 0; i < n; i++)
        if (s[i].kind == DT_SERIES_NOISY) {
            double decay = p->smooth >= 0 ? p->smooth : fmin(0.995, fmax(0, 1 - 20.0 / fmax(1, (double)s[i].n)));
            c.mean[i] = dt_alloc((size_t)(s[i].n + 1) * sizeof(**c.mean));
            dt_running_mean(c.mean[i], s[i].y, s[i].n, decay);
        }
    draw_chart(&c);
    rc = dt_canvas_save(c.c, file, err);
    for (int i = 0; i < n; i++)
        free(c.mean[i]);
    free(c.mean);
    dt_canvas_free(&c.c);
    return rc;
}
