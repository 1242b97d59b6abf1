/* grid.h - a sheet of samples: tiles in rows and columns, captions drawn beside the rows and over the columns.
 *
 * The sheet of a finished run has a row per prompt and a column per model (base, LoRA); the sheet that grows during
 * training gets one more row or column per validation and is drawn anew from the tiles it holds.  Cells may stay empty.
 *
 * Small tiles are enlarged by a whole factor (64 px: 3, up to 128 px: 2), pixels staying square; large ones are
 * reduced to max_tile_px, and all of them further where the sheet would pass 16384 px. */
#ifndef DT_TRAIN_GRID_H
#define DT_TRAIN_GRID_H
#include <stdint.h>
#include "base/err.h"

typedef struct dt_grid dt_grid;

struct dt_grid_params {
    const char *title, *subtitle;   /* over the sheet; NULL = none.  Copied */
    int         max_tile_px;        /* default 512 */
};
#define dt_grid_params(...) (&(struct dt_grid_params){ .max_tile_px = 512, __VA_ARGS__ })

dt_grid *dt_grid_new(const struct dt_grid_params *p);
void     dt_grid_free(dt_grid **g);

/* Return the index of the new row or column.  Titles are copied; NULL = none. */
int dt_grid_add_row(dt_grid *g, const char *title);
int dt_grid_add_col(dt_grid *g, const char *title);

/* rgb: [h, w, 3], copied; replaces what is there.  Tiles may differ in size. */
int dt_grid_put(dt_grid *g, int row, int col, const uint8_t *rgb, int w_px, int h_px, dt_err *err);

/* Bytes that a tile of w x h px in every cell takes, and beside them the sheet while it is saved.  The titles are
 * set for that, so the fonts are in memory from then on. */
int dt_grid_bytes(const dt_grid *g, int w_px, int h_px, int64_t *tiles, int64_t *sheet, dt_err *err);

int dt_grid_save(const dt_grid *g, const char *path, dt_err *err);     /* PNG, whole or not at all */

#endif
