/* A plan, dt-plan(5): read to its end, then from the middle, then the shapes that dt-train prepares for. */
#include <string.h>
#include "data/plan.h"
#include "tests/fuzz/fuzz.h"
#include "train/loader.h"

static void use(const dt_batch *b)
{
    fuzz_check(b->n > 0 && b->w > 0 && b->h > 0);
    for (int i = 0; i < b->n; i++) {
        const dt_batch_item *s = &b->item[i];
        fuzz_check(s->crop_x >= 0 && s->crop_x + b->w <= s->resize_w && s->crop_y + b->h <= s->resize_h);
        fuzz_touch(s->item->path, strlen(s->item->path));
        fuzz_touch(s->item->text, strlen(s->item->text));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dt_batches *b = NULL;
    dt_batch batch;
    dt_err err = { 0 };
    fuzz_put("plan", data, size);
    if (dt_batches_open(&b, fuzz_path("plan"), &err) < 0) {
        fuzz_check(*err.msg);
        return 0;
    }
    int64_t last = -1;
    int rc;
    while ((rc = dt_batches_next(b, &batch, &err)) == 1) {
        fuzz_check(batch.index > last);
        last = batch.index;
        use(&batch);
    }
    fuzz_check(rc == 0 || *err.msg);
    if (dt_batches_seek(b, last / 2, &err) == 0 && dt_batches_next(b, &batch, &err) == 1)
        use(&batch);
    dt_batches_close(&b);

    int64_t (*shape)[4] = NULL, batches = 0;
    int n = 0;
    dt_plan_shapes(fuzz_path("plan"), NULL, &(dt_text_rows){ 0 }, &shape, &n, &batches, &err);
    free(shape);
    return 0;
}
