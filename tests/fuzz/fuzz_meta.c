/* Metadata as dt-bucket reads it.  The first byte chooses the file's name: c .csv, j .json, l .jsonl, t .tar, d and k a
 * dataset_config in TOML and JSON, else none.  A plan that is made of it is one that the plan's reader
 * takes, batch by batch. */
#include <string.h>
#include <unistd.h>
#include "data/media.h"
#include "data/meta.h"
#include "data/plan.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    dt_image im;
    fuzz_check(dt_image_alloc(&im, 24, 16, NULL) == 0);
    memset(im.rgb, 77, 24 * 16 * 3);
    fuzz_check(dt_png_write(fuzz_path("a.png"), &im, NULL, 0, NULL) == 0);
    dt_image_release(&im);
    fuzz_put("a.txt", "a, b, c", 7);
    return 0;
}

static const char *name_of(uint8_t kind)
{
    switch (kind) {
    case 'c': return "m.csv";
    case 'j': return "m.json";
    case 'l': return "m.jsonl";
    case 't': return "m.tar";
    case 'd': return "m.toml";
    case 'k': return "d.json";
    default:  return "m";
    }
}

static void read_back(char *text, size_t bytes, const struct dt_plan_report *r)
{
    dt_batches *b = NULL;
    dt_batch batch;
    dt_err err = { 0 };
    int64_t n = 0;
    int rc;
    FILE *f = fmemopen(text, bytes, "r");
    fuzz_check(f && dt_batches_open_file(&b, f, "plan", &err) == 0);
    fuzz_check(dt_batches_items(b) == r->items);
    while ((rc = dt_batches_next(b, &batch, &err)) == 1) {
        n++;
        for (int i = 0; i < batch.n; i++) {
            fuzz_check(batch.item[i].crop_x + batch.w <= batch.item[i].resize_w);
            fuzz_check(batch.item[i].crop_y + batch.h <= batch.item[i].resize_h);
        }
    }
    fuzz_check(rc == 0 && n == r->batches);
    dt_batches_close(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dt_data_settings s = DT_DATA_DEFAULTS;
    struct dt_plan_report r = { 0 };
    dt_err err = { 0 };
    char *plan = NULL;
    size_t bytes = 0;
    if (!size)
        return 0;
    const char *name = name_of(*data);
    fuzz_put(name, data + 1, size - 1);
    s.num_train_epochs = 2;
    if (*data == 'd' || *data == 'k') {
        s.dataset_config = fuzz_path(name);
    } else {
        s.train_data_dir = fuzz_dir();
        s.train_data_meta = fuzz_path(name);
        s.train_batch_size = 3;
        s.image_sample_size = 32;
        s.enable_bucket = 1;
        s.trust_sizes = 1;
    }
    s.max_skipped_fraction = 1;
    s.dataloader_num_workers = 1;
    fuzz_check(chdir(fuzz_dir()) == 0);         /* folders of a dataset_config are relative to here */
    FILE *out = open_memstream(&plan, &bytes);
    int rc = dt_plan_make(out, &s, &r, &err);
    fuzz_check(fclose(out) == 0 && (rc == 0 || *err.msg));
    if (rc == 0)
        read_back(plan, bytes, &r);
    dt_plan_report_release(&r);
    free(plan);
    return 0;
}
