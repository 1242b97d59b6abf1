/* bucket.h - sizes of training pictures: aspect-ratio tables and the rules of the reference workflows.
 *
 * A target is [h, w] in px, floored to a multiple.  A fit says how one picture becomes it: resize to (w, h), then
 * take the target's window at (x, y). */
#ifndef DT_DATA_BUCKET_H
#define DT_DATA_BUCKET_H
#include <stdint.h>
#include "base/err.h"
#include "base/rng.h"

struct dt_aspect { double key; int h, w; int weight; };     /* key: h/w to two decimals; px for base 512 */

#define DT_N_ASPECT 40
#define DT_N_ASPECT_CROP 15
extern const struct dt_aspect dt_aspect_512[DT_N_ASPECT];               /* ASPECT_RATIO_512 */
extern const struct dt_aspect dt_aspect_crop_512[DT_N_ASPECT_CROP];     /* ASPECT_RATIO_RANDOM_CROP_512, weights / 62 */

typedef struct dt_size { int w, h; } dt_size;               /* px */
typedef struct dt_fit { int w, h, x, y; } dt_fit;           /* resize to w x h, window at (x, y) */

/* argmin over the table of |key - h/w|, the first wins ties. */
int dt_bucket_closest(int w, int h);

/* Entry a for base size s/ratio: side = floor(side / 512 * s / ratio), to the multiple below. */
dt_size dt_bucket_size(const struct dt_aspect *a, int base_px, double ratio, int multiple);

/* random_ratio_crop: an entry of dt_aspect_crop_512 by its weight. */
int dt_bucket_draw_aspect(dt_rng *r);

/* random_hw_adapt: by how much to scale down from base_px.  1 with probability p0 = 0.90, else one of the list
 * for that size (1.25, 1.5, 2, 2.5, 3) with equal probability. */
double dt_bucket_draw_ratio(int base_px, dt_rng *r);
int    dt_bucket_ratios(double out[6], int base_px);        /* that list; returns its length */

/* Covers the target keeping the aspect, the longer side truncated; centre crop as torchvision rounds it. */
dt_fit dt_fit_cover(int w, int h, dt_size target);
dt_fit dt_fit_stretch(dt_size target);

/* --- the rules of kohya's sd-scripts (BucketManager, make_bucket_resolutions) and musubi-tuner (BucketSelector) --- */

/* All sizes of at most area's px with sides from min to max that are multiples of step, and the square: ascending by
 * width, then height.  musubi: sides from half of the square's to its own.  Caller frees *out; returns their number. */
int dt_bucket_list(dt_size **out, dt_size reso, int min_px, int max_px, int step);
int dt_bucket_list_musubi(dt_size **out, dt_size reso, int step);
/* The picture's own size if it is in the list, otherwise the first whose w/h is nearest. */
dt_size dt_bucket_choose(const dt_size *list, int n, int w, int h);
/* bucket_no_upscale: the picture is brought down to at most reso's area, or left alone; *resized is
 * that, and the bucket is it rounded down to multiples of step. */
dt_size dt_bucket_shrink(dt_size reso, int step, int w, int h, dt_size *resized);

/* As dt_fit_cover, with sides rounded to the nearest and the rest halved downwards. */
dt_fit dt_fit_cover_round(int w, int h, dt_size target);

#endif
