/* data_dataset.c - dataset_config files of sd-scripts and musubi-tuner: sizes as those programs choose them,
 * values by scope, keys that are refused, captions.  The numbers are those of make_bucket_resolutions(),
 * BucketManager.select_bucket() and BucketSelector, run in Python. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/file.h"
#include "data/dataset.h"
#include "tests/unit/scratch.h"

static char *dir;

static int set_up(void **state)
{
    (void)state;
    return !(dir = scratch_new());
}

static int tear_down(void **state)
{
    (void)state;
    return scratch_end(dir);
}

static char *put(const char *name, const char *text)
{
    char *path = dt_path_join(dir, name);
    assert_int_equal(dt_file_write(path, text, strlen(text), NULL), 0);
    return path;
}

static void touch(const char *name)
{
    free(put(name, "x"));
}

static dt_datasets *opened(const char *text)
{
    dt_datasets *d = NULL;
    dt_err err = { 0 };
    char *path = put("c.toml", text);
    if (dt_datasets_open(&d, path, 16, &err) < 0)
        fail_msg("%s", err.msg);
    free(path);
    return d;
}

static void refused(const char *text, const char *why)
{
    dt_datasets *d = NULL;
    dt_err err = { 0 };
    char *path = put("c.toml", text);
    assert_int_equal(dt_datasets_open(&d, path, 16, &err), DT_EDATA);
    assert_null(d);
    if (!strstr(err.msg, why))
        fail_msg("'%s' is not about '%s'", err.msg, why);
    free(path);
}

#define KOHYA "[[datasets]]\nresolution = 512\nenable_bucket = true\n"
#define FOLDER "[[datasets.subsets]]\nimage_dir = 'a'\n"

/* --- sizes --- */

static void sizes_are_those_of_sd_scripts(void **state)
{
    (void)state;
    static const struct { int w, h, bw, bh, rw, rh, nw, nh; } want[] = {
        { 640, 480, 576, 448, 597, 448, 512, 384 }, { 480, 640, 448, 576, 448, 597, 384, 512 },
        { 1000, 1000, 512, 512, 512, 512, 512, 512 }, { 3000, 1000, 832, 256, 832, 277, 768, 256 },
        { 1920, 1080, 640, 384, 683, 384, 640, 384 }, { 333, 777, 320, 768, 329, 768, 320, 768 },
    };
    dt_datasets *d = opened(KOHYA FOLDER), *n = opened(KOHYA "bucket_no_upscale = true\n" FOLDER);
    assert_int_equal(d->set[0].n_size, 17);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        dt_size s = dt_dataset_size(d, &d->set[0], want[i].w, want[i].h),
            t = dt_dataset_size(n, &n->set[0], want[i].w, want[i].h);
        dt_fit f = dt_dataset_fit(d, &d->set[0], want[i].w, want[i].h, s);
        assert_int_equal(s.w, want[i].bw);
        assert_int_equal(s.h, want[i].bh);
        assert_int_equal(f.w, want[i].rw);
        assert_int_equal(f.h, want[i].rh);
        assert_int_equal(t.w, want[i].nw);
        assert_int_equal(t.h, want[i].nh);
    }
    dt_fit f = dt_dataset_fit(n, &n->set[0], 333, 777, (dt_size){ 320, 768 });      /* small enough: cut, not resized */
    assert_int_equal(f.w, 333);
    assert_int_equal(f.x, 6);
    dt_datasets_close(&d);
    dt_datasets_close(&n);
}

static void sizes_are_those_of_musubi(void **state)
{
    (void)state;
    static const int want[][4] = { { 640, 480, 832, 624 }, { 480, 640, 624, 832 }, { 1000, 1000, 720, 720 },
                                   { 3000, 1000, 1248, 416 }, { 512, 704, 608, 848 } };
    dt_datasets *d =
        opened("[general]\nresolution = [960, 544]\nenable_bucket = true\n[[datasets]]\nimage_directory = 'a'\n");
    assert_true(d->musubi);
    assert_int_equal(d->set[0].n_size, 47);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        dt_size s = dt_dataset_size(d, &d->set[0], want[i][0], want[i][1]);
        assert_int_equal(s.w, want[i][2]);
        assert_int_equal(s.h, want[i][3]);
    }
    d->set[0].no_upscale = 1;
    dt_size s = dt_dataset_size(d, &d->set[0], 333, 777);
    assert_int_equal(s.w * 10000 + s.h, 320 * 10000 + 768);
    dt_datasets_close(&d);
}

/* --- values --- */

static void a_value_stands_in_the_nearest_table(void **state)
{
    (void)state;
    dt_datasets *d = opened("[general]\nkeep_tokens = 1\nflip_aug = true\nbatch_size = 3\ncaption_dropout_rate = 0.25\n"
        "[[datasets]]\nresolution = [768, 512]\nkeep_tokens = 2\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 10\n"
        "[[datasets.subsets]]\nimage_dir = 'b'\nkeep_tokens = 3\nflip_aug = false\n"
        "[[datasets]]\nresolution = ' 640, 512 '\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = 'a'\n");
    assert_int_equal(d->n_set, 2);
    assert_int_equal(d->n_sub, 3);
    assert_int_equal(d->set[0].batch, 3);
    assert_int_equal(d->set[1].batch, 2);
    assert_int_equal(d->set[0].reso.w, 768);
    assert_int_equal(d->set[1].reso.h, 512);
    assert_int_equal(d->sub[0].keep, 2);
    assert_int_equal(d->sub[1].keep, 3);
    assert_int_equal(d->sub[2].keep, 1);
    assert_int_equal(d->sub[0].flip, 1);
    assert_int_equal(d->sub[1].flip, 0);
    assert_int_equal(d->sub[0].repeats, 10);
    assert_true(d->sub[2].drop == 0.25);
    dt_datasets_close(&d);
}

static void what_cannot_be_honoured_is_named(void **state)
{
    (void)state;
    refused("[[datasets]\n", "c.toml: line 1, column ");
    refused("[general]\n====\n", "c.toml: ");           /* where the parser itself gives up */
    refused("[general]\n", "no [[datasets]]");
    refused("[[datasets]]\nresolution = 512\n", "datasets[0]: no [[datasets.subsets]]");
    refused("[[datasets]]\n" FOLDER, "'resolution' is missing");
    refused("[[datasets]]\nresolution = 500\n" FOLDER, "must be multiples of 16");
    refused(KOHYA "[[datasets.subsets]]\nnum_repeats = 2\n", "'image_dir' is missing");
    refused(KOHYA FOLDER "num_repeat = 2\n",
            "datasets[0].subsets[0]: unknown key 'num_repeat' (did you mean 'num_repeats'?)");
    refused(KOHYA FOLDER "batch_size = 2\n", "'batch_size' belongs into [[datasets]]");
    refused("[[datasets]]\nresolution = '640x512'\n" FOLDER, "'resolution' must be a number or [width, height]");
    refused("[[datasets]]\nresolution = '640, 512, 3'\n" FOLDER, "'resolution' must be");
    refused(KOHYA FOLDER "num_repeats = 0\n", "'num_repeats' must be a whole number from 1 to 4095");
    refused(KOHYA FOLDER "flip_aug = 1\n", "'flip_aug' must be true or false");
    refused(KOHYA FOLDER "color_aug = true\n", "'color_aug': latents are cached");
    refused(KOHYA FOLDER "is_reg = true\n", "'is_reg': regularisation");
    refused(KOHYA "max_bucket_reso = 256\n" FOLDER, "'max_bucket_reso' is below 'resolution'");
    refused(KOHYA "bucket_reso_steps = 8\n" FOLDER, "'bucket_reso_steps' must be a multiple of 16");
    refused(KOHYA FOLDER "cache_directory = 'x'\n", "is a key of musubi-tuner; this file is one of sd-scripts");
    refused("[[datasets]]\nvideo_directory = 'v'\nresolution = 512\n", "'video_directory': only pictures");
    refused("[[datasets]]\nimage_directory = 'v'\nresolution = 512\ncontrol_directory = 'c'\n",
            "'control_directory': control pictures");
    refused(KOHYA FOLDER "[extra]\na = 1\n", "unknown table or key 'extra'");
}

static void what_asks_for_nothing_is_let_through(void **state)
{
    (void)state;
    dt_datasets *d = opened(KOHYA FOLDER "color_aug = false\nrandom_crop = false\nface_crop_aug_range = []\n" FOLDER);
    assert_int_equal(d->n_sub, 1);          /* the same folder twice */
    assert_int_equal(d->notes.n, 1);
    assert_non_null(strstr(d->notes.v[0], "datasets[0].subsets[1]: left out: the dataset has 'a' already"));
    dt_datasets_close(&d);
    d = opened(KOHYA "min_bucket_reso = 512\nmax_bucket_reso = 512\n" FOLDER);       /* as far as they go */
    assert_int_equal(d->set[0].n_size, 1);
    dt_datasets_close(&d);
    d = opened("[[datasets]]\nimage_directory = 'a'\nresolution = 512\ncache_directory = 'c'\n");
    assert_int_equal(d->notes.n, 1);
    assert_non_null(strstr(d->notes.v[0], "'cache_directory' has no effect: the cache is where"));
    dt_datasets_close(&d);
}

/* Every key of docs/config_README-en.md and docs/dataset_config.md, with the value of their example where it asks for
 * something. */
enum { HONOURED, REFUSED, NOTED };
struct documented {
    const char *key, *value;
    int what;
};

static void is_treated(const struct documented *k, const char *before, const char *after)
{
    dt_datasets *d = NULL;
    dt_err err = { 0 };
    char *text = dt_sprintf("%s%s = %s\n%s", before, k->key, k->value, after), *path = put("c.toml", text),
         *quoted = dt_sprintf("'%s'", k->key);
    int rc = dt_datasets_open(&d, path, 16, &err);
    bool named = strstr(rc < 0 ? err.msg : d->notes.n ? d->notes.v[0] : "", quoted);
    if ((rc < 0) != (k->what == REFUSED) || named != (k->what != HONOURED) || (rc == 0 && d->notes.n > 1))
        fail_msg("%s: %s", text, rc < 0 ? err.msg : d->notes.n ? d->notes.v[0] : "passed over in silence");
    dt_datasets_close(&d);
    free(quoted);
    free(path);
    free(text);
}

static void every_documented_key_counts_or_is_named(void **state)
{
    (void)state;
    static const struct documented of_set[] = {
        { "batch_size", "4", HONOURED }, { "bucket_no_upscale", "true", HONOURED }, { "bucket_reso_steps", "64", HONOURED },
        { "max_bucket_reso", "1024", HONOURED }, { "min_bucket_reso", "128", HONOURED },
        { "skip_image_resolution", "[512, 768]", HONOURED }, { "color_aug", "true", REFUSED },
        { "face_crop_aug_range", "[1.0, 3.0]", REFUSED }, { "flip_aug", "true", HONOURED }, { "keep_tokens", "2", HONOURED },
        { "num_repeats", "10", HONOURED }, { "random_crop", "true", REFUSED }, { "shuffle_caption", "true", HONOURED },
        { "caption_prefix", "'masterpiece, '", HONOURED }, { "caption_suffix", "', from side'", HONOURED },
        { "caption_separator", "';'", HONOURED }, { "keep_tokens_separator", "'|||'", HONOURED },
        { "secondary_separator", "';;;'", HONOURED }, { "enable_wildcard", "true", REFUSED },
        { "resize_interpolation", "'lanczos'", REFUSED }, { "caption_extension", "'.txt'", HONOURED },
        { "cache_info", "true", NOTED }, { "caption_dropout_every_n_epochs", "3", HONOURED },
        { "caption_dropout_rate", "0.5", HONOURED }, { "caption_tag_dropout_rate", "0.1", HONOURED },
    }, of_sub[] = {
        { "class_tokens", "'sks girl'", HONOURED }, { "is_reg", "true", REFUSED }, { "metadata_file", "'m.json'", HONOURED },
        { "image_dirs", "'b'", REFUSED },
    }, of_metadata[] = {
        { "class_tokens", "'sks girl'", NOTED }, { "caption_extension", "'.txt'", NOTED }, { "image_dir", "'a'", HONOURED },
    }, of_square[] = {
        { "bucket_no_upscale", "true", NOTED }, { "bucket_reso_steps", "64", NOTED }, { "min_bucket_reso", "128", NOTED },
        { "max_bucket_reso", "1024", NOTED }, { "enable_bucket", "true", HONOURED },
    }, of_musubi[] = {
        { "resolution", "[960, 544]", HONOURED }, { "caption_extension", "'.txt'", HONOURED }, { "batch_size", "4", HONOURED },
        { "num_repeats", "2", HONOURED }, { "enable_bucket", "true", HONOURED }, { "bucket_no_upscale", "true", NOTED },
        { "cache_directory", "'c'", NOTED }, { "control_directory", "'c'", REFUSED }, { "multiple_target", "true", REFUSED },
        { "no_resize_control", "true", REFUSED }, { "control_resolution", "[1024, 1024]", REFUSED },
        { "flux_kontext_no_resize_control", "true", REFUSED }, { "qwen_image_edit_control_resolution", "[64, 64]", REFUSED },
        { "target_frames", "[1, 25]", REFUSED }, { "frame_extraction", "'head'", REFUSED }, { "frame_stride", "10", REFUSED },
        { "frame_sample", "4", REFUSED }, { "max_frames", "129", REFUSED }, { "source_fps", "30.0", REFUSED },
        { "fp_latent_window_size", "9", REFUSED }, { "fp_1f_clean_indices", "[0]", REFUSED },
        { "fp_1f_target_index", "9", REFUSED }, { "fp_1f_no_post", "true", REFUSED },
        { "image_lance_dataset", "'x'", REFUSED },
    };
#define EACH(t, before, after) \
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) \
        is_treated(&t[i], before, after)
    EACH(of_set, "[general]\n", KOHYA FOLDER);
    EACH(of_set, KOHYA, FOLDER);
    EACH(of_sub, KOHYA FOLDER, "");
    EACH(of_metadata, KOHYA "[[datasets.subsets]]\nmetadata_file = 'm.json'\n", "");
    EACH(of_square, "[[datasets]]\nresolution = 512\n", FOLDER);
    EACH(of_musubi, "[[datasets]]\nimage_directory = 'a'\n", "");
    is_treated(&(struct documented){ "max_bucket_reso", "1536", NOTED }, KOHYA "bucket_no_upscale = true\n", FOLDER);
    is_treated(&(struct documented){ "caption_extension", "'.txt'", NOTED }, "[[datasets]]\nimage_jsonl_file = 'l'\n", "");

    dt_datasets *d = opened("[[datasets]]\nimage_directory = 'a'\n");
    assert_int_equal(d->set[0].reso.w * 1000 + d->set[0].reso.h, 960544);       /* musubi-tuner's default */
    dt_datasets_close(&d);
}

/* --- pictures and captions --- */

static dt_meta read_all(const char *config)
{
    dt_meta m;
    dt_err err = { 0 };
    dt_datasets *d = opened(config);
    if (dt_datasets_read(d, &m, &err) < 0)
        fail_msg("%s", err.msg);
    dt_datasets_close(&d);
    return m;
}

static dt_meta_item item(const dt_meta *m, int64_t k)
{
    dt_tape_reader r = { 0 };
    dt_meta_item it;
    assert_int_equal(dt_meta_get(m, k, &r, &it, NULL), 0);
    assert_null(r.own);                     /* strings are good until m is released */
    return it;
}

static void captions_come_from_files_class_tokens_and_metadata(void **state)
{
    (void)state;
    char *sub = dt_path_join(dir, "a/b");
    assert_int_equal(dt_mkdirs(sub, NULL), 0);
    free(sub);
    touch("a/1.png");
    touch("a/2.jpg");
    touch("a/b/3.png");
    free(put("a/1.txt", "  first line \nsecond\n"));
    free(put("m.json",
             "{\"1\": {\"caption\": \"c\", \"tags\": \"t, u\"}, \"2.jpg\": {\"tags\": \"v\"}, \"none\": {}}"));
    free(put("l.jsonl",
             "{\"image_path\": \"a/2.jpg\", \"caption\": \"two\\nlines\"}\n\n{\"image_path\": 3, \"caption\": \"\"}\n"
             "{\"image_path\": \"a/2.jpg\", \"control_path_0\": \"a/1.png\", \"caption\": \"\"}\n"));

    dt_meta m =
        read_all(KOHYA FOLDER "class_tokens = 'sks cat'\ncaption_extension = '.txt'\ncaption_prefix = 'p,'\nnum_repeats = 4\n"
                         "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'a'\nmetadata_file = 'm.json'\n");
    assert_int_equal(m.n, 4);               /* flat: not a/b/3.png */
    assert_string_equal(item(&m, 0).text, "p, first line");
    assert_string_equal(item(&m, 1).text, "p, sks cat");
    assert_int_equal(item(&m, 0).repeats, 4);
    assert_string_equal(item(&m, 2).text, "c, t, u");
    assert_string_equal(item(&m, 3).text, "v");
    assert_int_equal(item(&m, 3).sub, 1);
    assert_int_equal(item(&m, 3).repeats, 1);
    assert_int_equal(m.skipped.n, 1);
    assert_non_null(strstr(m.skipped.v[0], "m.json: 'none': no such picture"));
    dt_meta_release(&m);

    m = read_all("[general]\nresolution = 512\n[[datasets]]\nimage_directory = 'a'\n[[datasets]]\nimage_jsonl_file = 'l.jsonl'\n");
    assert_int_equal(m.n, 3);
    assert_string_equal(item(&m, 0).text, "first line \nsecond");
    assert_string_equal(item(&m, 1).text, "");
    assert_string_equal(item(&m, 2).text, "two\nlines");
    assert_non_null(strstr(item(&m, 2).path, "a/2.jpg"));
    assert_non_null(strstr(m.skipped.v[0], "l.jsonl: line 3: 'image_path' must be a string"));
    assert_non_null(strstr(m.skipped.v[1], "l.jsonl: line 4: control pictures are not offered"));
    dt_meta_release(&m);
}

static void tags_are_shuffled_behind_those_that_are_kept(void **state)
{
    (void)state;
    dt_subset s = { .shuffle = 1, .keep = 2, .sep = "," };
    int seen = 0;
    for (uint32_t i = 0; i < 60; i++) {
        dt_rng r = dt_rng_make(1, DT_RNG_TEST, i, 0);
        char *t = dt_subset_caption(&s, "a, b ,c,d,e", &r);
        assert_memory_equal(t, "a, b, ", 6);
        assert_int_equal(strlen(t), 13);
        assert_true(strchr(t, 'c') && strchr(t, 'd') && strchr(t, 'e'));
        seen |= 1 << (t[6] - 'c');
        free(t);
    }
    assert_int_equal(seen, 7);

    s = (dt_subset){ .shuffle = 1, .sep = ",", .keep_sep = "|||", .second_sep = ";;;" };
    dt_rng r = dt_rng_make(1, DT_RNG_TEST, 0, 0);
    char *t = dt_subset_caption(&s, "x, y ||| c;;;d ||| z", &r);
    assert_string_equal(t, "x, y, c,d, z");
    free(t);

    s = (dt_subset){ .tag_drop = 1, .keep = 1, .sep = "," };
    t = dt_subset_caption(&s, "a, b, c", &r);
    assert_string_equal(t, "a");
    free(t);
    s = (dt_subset){ .sep = ",", .second_sep = ";;;" };
    t = dt_subset_caption(&s, "c;;;d, e", NULL);
    assert_string_equal(t, "c,d, e");
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(sizes_are_those_of_sd_scripts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(sizes_are_those_of_musubi, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_value_stands_in_the_nearest_table, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_cannot_be_honoured_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_asks_for_nothing_is_let_through, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_documented_key_counts_or_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(captions_come_from_files_class_tokens_and_metadata, set_up, tear_down),
        cmocka_unit_test_setup_teardown(tags_are_shuffled_behind_those_that_are_kept, set_up, tear_down),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
