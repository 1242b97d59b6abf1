/* image.c - see image.h. */
#include "data/media.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image.h"

void fuzz_image(const uint8_t *data, size_t size)
{
    const struct dt_image_limits *lim = dt_image_limits(.max_side_px = 4096, .max_px = 1 << 18);
    dt_image_info info, same;
    dt_image im = { 0 }, small = { 0 };
    dt_err err = { 0 };
    fuzz_put("picture", data, size);
    int rc = dt_image_probe_mem(&info, data, size, "input", lim, &err);
    fuzz_check(dt_image_probe(&same, fuzz_path("picture"), lim, NULL) == rc);
    if (rc == 0) {
        fuzz_check(same.w == info.w && same.h == info.h && same.orientation == info.orientation &&
                   same.format == info.format);
        fuzz_check(info.w > 0 && info.h > 0 && info.w <= 4096 && info.h <= 4096 && (int64_t)info.w * info.h <= 1 << 18);
    }
    if (dt_image_decode(&im, data, size, "input", lim, &err) < 0) {
        fuzz_check(!im.rgb && *err.msg);
        return;
    }
    fuzz_check(rc == 0 && im.w == info.w && im.h == info.h);
    fuzz_touch(im.rgb, (size_t)im.w * (size_t)im.h * 3);
    if (dt_image_resize(&small, &im, 24, 40, 4, 8, 16, 32, &err) == 0)
        fuzz_touch(small.rgb, 16 * 32 * 3);
    dt_image_release(&small);
    dt_image_release(&im);
}
