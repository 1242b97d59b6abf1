/* train_events.c - what TensorBoard is given by a run of dt-train: every curve at every step, samples of every
 * validation, whole files with right checksums.  (tests/tensorboard_check.py reads the same with
 * TensorBoard itself.) */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/file.h"
#include "base/mem.h"
#include "data/media.h"
#include "tfread.h"
#include "tests/unit/scratch.h"

enum { STEPS = 4, PROMPTS = 2 };

static char *dir;

static int train(void **state)
{
    const char *b = getenv("B");
    (void)state;
    if (!(dir = scratch_new()))
        return -1;
    char *cmd =
        dt_sprintf("OMP_NUM_THREADS=1 %s/bin/dt-train lora --pretrained_model_name_or_path tests/golden/tiny-flux "
                           "--train_data_dir examples/concept --image_sample_size 32 --train_batch_size 2 --rank 2 --max_train_steps %d "
                           "--validation_prompts cat dog --validation_steps 2 --validation_inference_steps 1 "
                           "--validation_data_dir examples/concept --quiet --output_dir %s", b ? b : "build", STEPS,
                           dir);
    int rc = system(cmd);
    free(cmd);
    return rc;
}

static int clean(void **state)
{
    (void)state;
    return scratch_end(dir);
}

/* The one event file of the run. */
static char *events(size_t *bytes)
{
    char *folder = dt_path_join(dir, "logs/text2image-fine-tune"), *data = NULL;
    DIR *d = opendir(folder);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d)); )
        if (!strncmp(e->d_name, "events.out.tfevents.", 20)) {
            char *path = dt_path_join(folder, e->d_name);
            assert_int_equal(dt_file_read(&data, bytes, path, 1 << 24, NULL), 0);
            free(path);
            n++;
        }
    assert_non_null(d);
    closedir(d);
    free(folder);
    assert_int_equal(n, 1);
    return data;
}

struct curve { const char *tag; int points; double last; };

static void curves_and_pictures(void **state)
{
    (void)state;
    struct curve c[] = { { "train/loss" }, { "train/lr" }, { "train/grad_norm" }, { "performance/img_per_s" },
                         { "performance/memory_MiB" },
                         { "performance/TFLOP_per_s" }, { "performance/of_peak" }, { "validation/loss" },
                         { "samples/0" }, { "samples/1" } };
    enum { N = sizeof(c) / sizeof(c[0]), HELD = 7, SAMPLES = 8 };
    size_t bytes;
    char *data = events(&bytes);
    span file = { (const uint8_t *)data, bytes };
    while (file.n) {
        span event = next_record(&file);                        /* both checksums */
        if (!has(event, 5))
            continue;
        int64_t step = has(event, 2) ? (int64_t)get(event, 2).value : 0;    /* proto3 leaves out a zero */
        span value = get(get(event, 5).bytes, 1).bytes, tag = get(value, 1).bytes;
        int i = 0;
        while (i < N && (strlen(c[i].tag) != tag.n || memcmp(c[i].tag, tag.p, tag.n)))
            i++;
        assert_true(i < N);
        c[i].points++;
        if (i < SAMPLES) {
            union { uint32_t u; float f; } v = { .u = (uint32_t)get(value, 2).value };
            assert_true(isfinite(v.f));
            c[i].last = v.f;
            assert_int_equal(step, i == HELD ? 2 * (c[i].points - 1) : c[i].points);
        } else {
            span image = get(value, 4).bytes, png = get(image, 4).bytes;
            dt_image_info info;
            assert_int_equal(dt_image_probe_mem(&info, png.p, png.n, "sample", NULL, NULL), 0);
            assert_int_equal(info.w, get(image, 2).value);
            assert_int_equal(info.h, get(image, 1).value);
            assert_int_equal(step, 2 * (c[i].points - 1));
        }
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(c[i].points, i < HELD ? STEPS : STEPS / 2 + 1);
    assert_true(c[0].last > 0 && fabs(c[1].last - 1e-4) < 1e-9 && c[2].last > 0 && c[3].last > 0 && c[4].last > 1);
    assert_true(c[5].last > 0 && c[6].last > 0 && c[6].last < 1);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(curves_and_pictures) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, train, clean);
}
