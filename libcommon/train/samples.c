/* samples.c - the files of validation samples, and the sheet of them.  See samples.h. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "data/media.h"
#include "train/grid.h"
#include "train/samples.h"

enum { MAX_ROWS = 16 };

/* "step-N-prompt-I.png" exactly as it is written here. */
static bool parse_name(const char *name, int64_t *step, int64_t *prompt)
{
    char again[64];
    if (sscanf(name, "step-%" SCNd64 "-prompt-%" SCNd64 ".png", step, prompt) != 2)
        return false;
    snprintf(again, sizeof(again), "step-%" PRId64 "-prompt-%" PRId64 ".png", *step, *prompt);
    return !strcmp(name, again);
}

char *dt_samples_path(const dt_samples *s, int64_t step, int64_t prompt)
{
    return dt_sprintf("%s/step-%" PRId64 "-prompt-%" PRId64 ".png", s->dir, step, prompt);
}

int dt_samples_drop_later(const dt_samples *s, int64_t step, dt_err *err)
{
    int64_t at, i;
    int rc = dt_mkdirs(s->dir, err);
    DIR *d = rc == 0 ? opendir(s->dir) : NULL;
    if (rc == 0 && !d)
        rc = dt_err_sys(err, DT_EIO, "cannot open '%s'", s->dir);
    for (struct dirent *e; rc == 0 && (e = readdir(d));) {
        if (!parse_name(e->d_name, &at, &i) || at < step)
            continue;
        char *path = dt_path_join(s->dir, e->d_name);
        if (unlink(path) < 0)
            rc = dt_err_sys(err, DT_EIO, "cannot remove '%s'", path);
        free(path);
    }
    if (d)
        closedir(d);
    return rc;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Steps that have a sample of the first prompt, ascending; caller frees. */
static int64_t *sampled_steps(const dt_samples *s, int64_t *n)
{
    int64_t *steps = NULL, cap = 0, at, i;
    DIR *d = opendir(s->dir);
    *n = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        if (parse_name(e->d_name, &at, &i) && i == 0) {
            dt_grow(&steps, &cap, *n + 1, sizeof(*steps));
            steps[(*n)++] = at;
        }
    if (d)
        closedir(d);
    if (*n)
        qsort(steps, (size_t)*n, sizeof(*steps), by_value);
    return steps;
}

/* With a column for each prompt. */
static dt_grid *new_sheet(const dt_samples *s)
{
    const dt_train_opts *o = s->o;
    char *sub = dt_sprintf("seed %" PRId64 ", %" PRId64 " steps, guidance %g, %" PRId64 " px", s->seed,
                           o->validation_inference_steps, o->guidance, s->side_px);
    dt_grid *g = dt_grid_new(dt_grid_params(.title = "Samples during training", .subtitle = sub));
    for (int64_t i = 0; i < o->validation_prompts.n; i++)
        dt_grid_add_col(g, o->validation_prompts.v[i]);
    free(sub);
    return g;
}

static int put_row(const dt_samples *s, dt_grid *g, int64_t step, dt_err *err)
{
    char *title = step ? dt_sprintf("step %" PRId64, step) : dt_strdup("base");
    int row = dt_grid_add_row(g, title), rc = 0;
    free(title);
    for (int64_t i = 0; i < s->o->validation_prompts.n && rc == 0; i++) {
        char *path = dt_samples_path(s, step, i);
        dt_image im = { 0 };
        if (dt_exists(path) && (rc = dt_image_read(&im, path, NULL, err)) == 0)
            rc = dt_grid_put(g, row, (int)i, im.rgb, im.w, im.h, err);
        dt_image_release(&im);
        free(path);
    }
    return rc;
}

int dt_samples_draw(const dt_samples *s, dt_err *err)
{
    int64_t n, *steps = sampled_steps(s, &n), rows = n < MAX_ROWS ? n : MAX_ROWS;
    char *path = dt_path_join(s->o->output_dir, "samples.png");
    dt_grid *g = new_sheet(s);
    int rc = 0;
    for (int64_t k = 0; k < rows && rc == 0; k++)
        rc = put_row(s, g, steps[rows > 1 ? k * (n - 1) / (rows - 1) : 0], err);
    if (rc == 0)
        rc = dt_grid_save(g, path, err);
    dt_grid_free(&g);
    free(path);
    free(steps);
    return rc;
}

int dt_samples_bytes(const dt_samples *s, int64_t rows, int64_t *bytes, dt_err *err)
{
    int64_t tiles = 0, sheet = 0;
    dt_grid *g = new_sheet(s);
    for (int64_t i = 0; i < rows && i < MAX_ROWS; i++)
        dt_grid_add_row(g, "base");
    int rc = dt_grid_bytes(g, (int)s->side_px, (int)s->side_px, &tiles, &sheet, err);
    dt_grid_free(&g);
    *bytes = tiles + sheet + 3 * s->side_px * s->side_px;
    return rc;
}
