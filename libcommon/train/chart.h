/* chart.h - curves over steps as a PNG: the loss of a run, faint, its running mean, and held-out losses as dots. */
#ifndef DT_TRAIN_CHART_H
#define DT_TRAIN_CHART_H
#include <stdint.h>
#include "base/err.h"

enum dt_series_kind {
    DT_SERIES_NOISY,        /* a faint line, and over it its running mean */
    DT_SERIES_LINE,
    DT_SERIES_POINTS,       /* dots joined by a thin line: something measured now and then */
};

typedef struct dt_series {
    const char   *label;            /* in the legend; borrowed, as are x and y */
    enum dt_series_kind kind;
    const double *x, *y;            /* x ascending; y that is not finite (log axis: not positive) leaves a gap */
    int64_t       n;
} dt_series;

/* auto: log when the running means span a factor of 20 */
enum dt_chart_axis { DT_AXIS_AUTO, DT_AXIS_LINEAR, DT_AXIS_LOG };

struct dt_chart_params {
    const char *title, *subtitle, *x_label, *y_label;       /* NULL = none */
    enum dt_chart_axis y_axis;
    double smooth;                  /* decay of the running mean in [0,1); default -1: 1 - 20/n, within [0, 0.995] */
    int    w_px, h_px;              /* default 1200 x 600 */
};
#define dt_chart_params(...) (&(struct dt_chart_params){ \
    .x_label = "step", .y_label = "loss", .smooth = -1, .w_px = 1200, .h_px = 600, __VA_ARGS__ })

/* Bytes that saving a chart takes, the series aside.  Text is set for that, so the fonts are in memory from then on. */
int dt_chart_bytes(const struct dt_chart_params *p, int64_t *bytes, dt_err *err);
int dt_chart_save(const char *file, const dt_series *s, int n, const struct dt_chart_params *p, dt_err *err);

/* Exponential running mean whose first values are not pulled towards zero: out_i = sum_j b^(i-j) y_j / sum_j b^(i-j)
 * over the finite y_j, j <= i, where gaps do not count as steps.  NaN until there is one. */
void dt_running_mean(double *out, const double *y, int64_t n, double decay);

/* Round tick values within [lo, hi], at most `max`; returns how many.  A log axis gets powers of ten,
 * or 1-2-5 or, where those would be too few, linear ticks. */
int  dt_ticks(double *out, int max, double lo, double hi, int log_axis);

#endif
