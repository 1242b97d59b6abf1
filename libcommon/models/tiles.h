/* tiles.h - large pictures through an autoencoder in overlapping tiles, as diffusers' AutoencoderKL does it:
 * tiles of `tile` px every 3/4 tile, neighbours cross-faded linearly over the overlap, first with the tile
 * above, then with the tile to the left. */
#ifndef DT_MODELS_TILES_H
#define DT_MODELS_TILES_H
#include <stdint.h>

typedef struct dt_tiles { int64_t w, h, tile, stride, nx, ny; } dt_tiles;      /* px */
typedef struct dt_tile { int64_t x, y, w, h; } dt_tile;                        /* px; smaller at the right and bottom */

dt_tiles dt_tiles_make(int64_t w_px, int64_t h_px, int64_t tile_px);
dt_tile  dt_tiles_at(const dt_tiles *t, int64_t i);                             /* row-major */
/* Tile i of src, [planes, h, w, channels] where h, w = px / scale. */
void     dt_tiles_cut(const dt_tiles *t, int64_t i, const float *src, int64_t planes, int64_t channels, int64_t scale,
                      float *tile);
/* Joins tiles into one of that shape; out[i] is [planes, tile h, tile w, channels].  The tiles are changed (blended in
 * place). */
void     dt_tiles_join(const dt_tiles *t, float *const *out, int64_t planes, int64_t channels, int64_t scale,
                       float *dst);

#endif
