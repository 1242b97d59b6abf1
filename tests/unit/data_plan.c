/* data_plan.c - properties of the plan: every picture once an epoch, the same bytes for any number of threads,
 * shards that add up, seeking, and readers that notice damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <malloc.h>
#include "base/file.h"
#include "data/plan.h"
#include "tests/unit/scratch.h"

enum { N = 203 };

static char *dir, *meta;

/* N pictures that exist in the metadata only: sizes are trusted. */
static int set_up(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    if (!(dir = scratch_new()))
        return -1;
    FILE *f = open_memstream(&text, &bytes);
    for (int i = 0; i < N; i++)
        fprintf(f, "{\"file_path\":\"%d.png\",\"text\":\"picture %d\",\"width\":%d,\"height\":%d,\"n\":%d}\n", i, i,
                200 + i * 7 % 300, 200 + i * 13 % 500, i);
    fclose(f);
    meta = dt_path_join(dir, "m.jsonl");
    int rc = dt_file_write(meta, text, bytes, NULL);
    free(text);
    return rc;
}

static int tear_down(void **state)
{
    (void)state;
    free(meta);
    return scratch_end(dir);
}

static struct dt_data_settings settings(void)
{
    return (struct dt_data_settings){
        .train_data_dir = "", .train_data_meta = meta, .train_batch_size = 4, .image_sample_size = 512,
        .enable_bucket = 1, .multiple = 16, .num_train_epochs = 5, .gradient_accumulation_steps = 1, .world_size = 1,
        .seed = 7, .random_flip = 1, .caption_dropout = 0.1, .trust_sizes = 1, .max_skipped_fraction = 0.5,
    };
}

/* The plan as text; caller frees. */
static char *plan(const struct dt_data_settings *s, struct dt_plan_report *report)
{
    struct dt_plan_report own;
    char *path = dt_path_join(dir, "w.ndjson"), *text = NULL;
    size_t bytes = 0;
    dt_err err = { 0 };
    FILE *f = fopen(path, "w");
    if (!f || dt_plan_make(f, s, report ? report : &own, &err) < 0)
        fail_msg("%s", err.msg);
    fclose(f);
    if (!report)
        dt_plan_report_release(&own);
    assert_int_equal(dt_file_read(&text, &bytes, path, 1 << 24, &err), 0);
    free(path);
    return text;
}

static dt_batches *open_text(const char *text)
{
    dt_batches *b = NULL;
    dt_err err = { 0 };
    char *path = dt_path_join(dir, "p.ndjson");
    assert_int_equal(dt_file_write(path, text, strlen(text), NULL), 0);
    if (dt_batches_open(&b, path, &err) < 0)
        fail_msg("%s", err.msg);
    free(path);
    return b;
}

static void check_coverage(const struct dt_data_settings *s)
{
    struct dt_plan_report r;
    char *text = plan(s, &r);
    dt_batches *b = open_text(text);
    dt_batch batch;
    dt_err err = { 0 };
    int64_t count[N] = { 0 }, k = 0, samples = 0, dropped = 0, flipped = 0, epoch = 0, rc;

    assert_int_equal(dt_batches_items(b), N);
    for (; (rc = dt_batches_next(b, &batch, &err)) > 0; k++) {
        assert_int_equal(batch.index, k);
        assert_true(batch.epoch >= epoch);
        epoch = batch.epoch;
        assert_int_equal(batch.is_short, batch.n < s->train_batch_size);
        assert_true(!batch.is_short || batch.epoch == s->num_train_epochs - 1);
        assert_true(batch.n <= s->train_batch_size && batch.w % s->multiple == 0 && batch.h % s->multiple == 0);
        for (int i = 0; i < batch.n; i++) {
            const dt_batch_item *it = &batch.item[i];
            count[it->item->id]++;
            dropped += it->drop;
            flipped += it->flip;
            if (!s->fix_sample_size.n) {        /* its own aspect, to a pixel: never that of its neighbour */
                double want = (double)it->item->w / it->item->h, got = (double)it->resize_w / it->resize_h;
                assert_true(got <= want * (1 + 1.0 / it->resize_h) && got >= want * (1 - 1.0 / it->resize_w));
            }
        }
        samples += batch.n;
    }
    if (rc < 0)
        fail_msg("%s", err.msg);
    for (int i = 0; i < N; i++)
        assert_int_equal(count[i], s->num_train_epochs);
    assert_int_equal(k, r.batches);
    assert_int_equal(k, dt_batches_info(b)->batches);
    assert_int_equal(samples, N * s->num_train_epochs);
    assert_true(dropped > samples / 20 && dropped < samples / 6);       /* 0.1 of 1015: 5 sigma */
    assert_true(flipped > samples * 2 / 5 && flipped < samples * 3 / 5);
    assert_int_equal(r.unreached, 0);
    dt_batches_close(&b);
    dt_plan_report_release(&r);
    free(text);
}

static void test_coverage(void **state)
{
    (void)state;
    char *hw[] = { "256", "250" };
    struct dt_data_settings s = settings();
    check_coverage(&s);
    s.train_batch_size = 1;
    check_coverage(&s);
    s.train_batch_size = 300;           /* more than there is: short batches only at the end */
    check_coverage(&s);
    s.train_batch_size = 4;
    s.random_ratio_crop = 1;
    check_coverage(&s);
    s.image_sample_size = 1024;
    s.random_hw_adapt = 1;
    check_coverage(&s);
    s.random_ratio_crop = s.random_hw_adapt = s.enable_bucket = 0;
    check_coverage(&s);
    s.fix_sample_size = (dt_strs){ .v = hw, .n = 2 };
    check_coverage(&s);
}

static int drawn(const struct dt_data_settings *s, enum dt_stream stream, int64_t epoch, int64_t id, double below)
{
    dt_rng r = dt_rng_make((uint64_t)s->seed, stream, (uint32_t)epoch, (uint32_t)id);
    return dt_rng_uniform(&r) < below;
}

/* A picture has the draws of each epoch once, also where it waited for the next one's batches. */
static void test_draws(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    int flips[N] = { 0 }, drops[N] = { 0 };
    dt_batch batch;
    char *text = plan(&s, NULL);
    dt_batches *b = open_text(text);
    while (dt_batches_next(b, &batch, NULL) == 1)
        for (int i = 0; i < batch.n; i++) {
            flips[batch.item[i].item->id] += batch.item[i].flip;
            drops[batch.item[i].item->id] += batch.item[i].drop;
        }
    for (int id = 0; id < N; id++) {
        int flip = 0, drop = 0;
        for (int64_t e = 0; e < s.num_train_epochs; e++) {
            flip += drawn(&s, DT_RNG_FLIP, e, id, 0.5);
            drop += drawn(&s, DT_RNG_CAPTION_DROP, e, id, s.caption_dropout);
        }
        assert_int_equal(flips[id], flip);
        assert_int_equal(drops[id], drop);
    }
    dt_batches_close(&b);
    free(text);
}

static void test_same_bytes(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    s.dataloader_num_workers = 1;
    char *one = plan(&s, NULL);
    s.dataloader_num_workers = 8;
    char *eight = plan(&s, NULL);
    s.seed++;
    char *other = plan(&s, NULL);
    assert_string_equal(one, eight);
    assert_string_not_equal(one, other);
    free(one);
    free(eight);
    free(other);
}

/* What batch k of a longer run is does not depend on where the run ends. */
static void test_prefix(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    struct dt_plan_report r;
    s.max_train_steps = 30;
    s.gradient_accumulation_steps = 3;
    s.world_size = 2;
    char *shorter = plan(&s, &r);
    assert_int_equal(r.batches, 180);
    assert_int_equal(r.steps, 30);
    dt_plan_report_release(&r);
    s.max_train_steps = 60;
    char *longer = plan(&s, NULL), *a = strstr(shorter, "{\"batch\":0,"), *b = strstr(longer, "{\"batch\":0,");
    char *end = strstr(shorter, "{\"end\"");
    assert_true(a && b && end);
    assert_memory_equal(a, b, end - a);
    free(shorter);
    free(longer);
}

static void test_shards(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    char *whole = plan(&s, NULL);
    int64_t found = 0, batches = 0;
    static const char *const name[] = { "0/3", "1/3", "2/3" };
    for (int i = 0; i < 3; i++) {
        s.shard = name[i];
        char *text = plan(&s, NULL);
        dt_batches *b = open_text(text);
        dt_batch batch;
        assert_int_equal(dt_batches_info(b)->shard, i);
        batches = dt_batches_info(b)->batches;
        while (dt_batches_next(b, &batch, NULL) > 0) {
            char line[64];
            snprintf(line, sizeof line, "{\"batch\":%lld,", (long long)batch.index);
            const char *p = strstr(text, line), *q = strstr(whole, line);
            assert_true(batch.index % 3 == i && p && q);
            assert_memory_equal(p, q, strchr(p, '\n') - p);
            found++;
        }
        dt_batches_close(&b);
        free(text);
    }
    assert_int_equal(found, batches);
    free(whole);
}

static void test_seek(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    char *text = plan(&s, NULL);
    dt_batches *b = open_text(text);
    int64_t n = dt_batches_info(b)->batches;
    dt_batch batch;
    dt_err err = { 0 };
    const int64_t to[] = { 100, 200, 150, 3, 3, 0, n - 1 };
    for (int i = 0; i < 7; i++) {
        assert_int_equal(dt_batches_seek(b, to[i], &err), 0);
        assert_int_equal(dt_batches_next(b, &batch, &err), 1);
        assert_int_equal(batch.index, to[i]);
    }
    assert_int_equal(dt_batches_seek(b, 10, &err), 0);      /* twice, and back to what the first one went over */
    assert_int_equal(dt_batches_seek(b, 7, &err), 0);
    assert_int_equal(dt_batches_next(b, &batch, &err), 1);
    assert_int_equal(batch.index, 7);
    assert_int_equal(dt_batches_seek(b, n, &err), 0);
    assert_int_equal(dt_batches_next(b, &batch, &err), 0);
    assert_int_equal(dt_batches_next(b, &batch, &err), 0);
    assert_int_equal(dt_batches_seek(b, 0, &err), 0);
    assert_int_equal(dt_batches_next(b, &batch, &err), 1);
    dt_batches_close(&b);
    free(text);
}

/* Other programs put a space behind each colon and comma. */
static void test_spaces(void **state)
{
    (void)state;
    static const char spaced[] =
        "{ \"dt_plan\": 1, \"seed\": 1, \"items\": 1, \"epochs\": 3, \"batches\": 3, \"samples\": 3, \"steps\": 3, "
        "\"train_batch_size\": 1, \"gradient_accumulation_steps\": 1, \"world_size\": 1 }\n"
        "{ \"item\": 0, \"path\": \"a.png\", \"text\": \"\", \"size\": [16, 16] }\n"
#define SPACED(k) "{ \"batch\": " k ", \"epoch\": " k ", \"size\": [16, 16], \"items\": [{ \"item\": 0, " \
                  "\"resize\": [16, 16], \"crop\": [0, 0] }] }\n"
        SPACED("0") SPACED("1") SPACED("2") "{ \"end\": true, \"batches\": 3 }\n";
    dt_batches *b = open_text(spaced);
    dt_batch batch;
    for (int64_t k = 2; k >= 0; k--) {
        assert_int_equal(dt_batches_seek(b, k, NULL), 0);
        assert_int_equal(dt_batches_next(b, &batch, NULL), 1);
        assert_int_equal(batch.index, k);
    }
    dt_batches_close(&b);
}

/* A plan that comes through a pipe, and only once, has the items that a file has; text comes and goes with the line. */
static void test_pipe(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    char *text = plan(&s, NULL), *cmd;
    dt_batches *a = open_text(text), *b = NULL;
    dt_batch x, y;
    dt_plan_item *it;
    cmd = dt_path_join(dir, "p.ndjson");
    char *cat = dt_sprintf("cat %s", cmd);
    FILE *f = popen(cat, "r");
    assert_int_equal(dt_batches_open_file(&b, f, "pipe", NULL), 0);
    assert_memory_equal(dt_batches_info(a), dt_batches_info(b), sizeof(dt_plan_info));
    for (int rc; (rc = dt_batches_next(a, &x, NULL)) >= 0;) {
        assert_int_equal(dt_batches_next(b, &y, NULL), rc);
        if (!rc)
            break;
        for (int i = 0; i < x.n; i++) {
            assert_int_equal(x.item[i].at, y.item[i].at);
            assert_string_equal(x.item[i].item->path, y.item[i].item->path);
            assert_string_equal(x.item[i].text, y.item[i].text);
        }
    }
    assert_int_equal(dt_batches_item(b, N - 1, &it, NULL), 0);
    assert_string_equal(it->text, "picture 202");
    free(it);
    dt_batches_close(&a);
    dt_batches_close(&b);
    free(cat);
    free(cmd);
    free(text);
}

/* A file that is another one when an item is read again. */
static void test_changed(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    char *text = plan(&s, NULL), *path = dt_path_join(dir, "p.ndjson");
    dt_batches *b = open_text(text);
    dt_plan_item *it = NULL;
    dt_err err = { 0 };
    const char *const now[] = { "", "{\"item\":0}\n", "[1]\n" };
    for (int i = 0; i < 3; i++) {
        FILE *f = fopen(path, "w");             /* the same inode */
        for (int k = 0; *now[i] && k < 5000; k++)
            fputs(now[i], f);
        fclose(f);
        assert_int_equal(dt_batches_item(b, 5, &it, &err), DT_EDATA);
        assert_null(it);
        assert_non_null(strstr(err.msg, "changed while it is in use"));
    }
    dt_batches_close(&b);
    free(path);
    free(text);
}

/* Of an item some bytes are kept, however long its line is. */
static void test_memory(void **state)
{
    (void)state;
    enum { MANY = 20000 };
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    fprintf(f,
            "{\"dt_plan\":1,\"seed\":1,\"items\":%d,\"epochs\":0,\"batches\":0,\"samples\":0,\"steps\":0,\"train_batch_size\":1,"
            "\"gradient_accumulation_steps\":1,\"world_size\":1}\n", MANY);
    for (int i = 0; i < MANY; i++)
        fprintf(f, "{\"item\":%d,\"path\":\"%0300d.png\",\"text\":\"%0300d\",\"size\":[64,64]}\n", i, i, i);
    fprintf(f, "{\"end\":true,\"batches\":0}\n");
    fclose(f);
    struct mallinfo2 m = mallinfo2();
    size_t before = m.uordblks + m.hblkhd;
    dt_batches *b = open_text(text);
    m = mallinfo2();
    assert_in_range(m.uordblks + m.hblkhd - before, 0, 20 * MANY);
    dt_batches_close(&b);
    free(text);
}

/* Reads all; the message of the first error must hold the words. */
static void damaged(const char *text, const char *words)
{
    dt_batches *b = NULL;
    dt_batch batch;
    dt_err err = { 0 };
    char *path = dt_path_join(dir, "bad.ndjson");
    assert_int_equal(dt_file_write(path, text, strlen(text), NULL), 0);
    int rc = dt_batches_open(&b, path, &err);
    while (rc >= 0 && (rc = dt_batches_next(b, &batch, &err)) > 0)
        ;
    assert_int_equal(rc, DT_EDATA);
    if (!strstr(err.msg, path) || !strstr(err.msg, words))
        fail_msg("'%s' does not say '%s'", err.msg, words);
    dt_batches_close(&b);
    free(path);
}

static void test_damaged(void **state)
{
    (void)state;
#define HEAD "{\"dt_plan\":1,\"seed\":1,\"items\":1,\"epochs\":1,\"batches\":1,\"samples\":1,\"steps\":1," \
             "\"train_batch_size\":1,\"gradient_accumulation_steps\":1,\"world_size\":1}\n"
#define ITEM "{\"item\":4,\"path\":\"a.png\",\"text\":\"\",\"size\":[64,64]}\n"
#define BATCH(item, crop) "{\"batch\":0,\"epoch\":0,\"size\":[16,16],\"items\":[" \
                          "{\"item\":" item ",\"resize\":[20,16],\"crop\":" crop "}]}\n"
    damaged("", "empty");
    damaged("{}\n", "not a plan");
    damaged("{\"dt_plan\":2}\n", "line 1: 'dt_plan'");
    damaged(HEAD, "cut off: 1 items announced, 0 there");
    damaged(HEAD "{\"item\":4,\"path\":\"a\",\"size\":[0,3]}\n", "line 2: 'size' must be two integers");
    damaged(HEAD ITEM BATCH("4", "[4,0]"), "cut off: the footer is missing after line 3");
    damaged(HEAD ITEM BATCH("5", "[4,0]"), "line 3: item 5 is not in the plan");
    damaged(HEAD ITEM BATCH("4", "[5,0]"), "line 3: 'crop' of item 4 reaches outside");
    damaged(HEAD ITEM "{\"batch\":0,", "line 3: not a JSON object");
    damaged(HEAD ITEM BATCH("4", "[4,0]") BATCH("4", "[4,0]"), "line 4: 'batch'");
    damaged(HEAD ITEM "{\"end\":true,\"batches\":1}\n", "line 3: the plan has 1 batches, 0 are here");

    struct dt_data_settings s = settings();
    s.num_train_epochs = 1;
    char *text = plan(&s, NULL);
    size_t n = strlen(text);
    for (size_t cut = n - 2; cut > 0; cut = cut * 9 / 10) {
        text[cut] = 0;
        damaged(text, ".ndjson");
    }
    free(text);
}

static void test_settings(void **state)
{
    (void)state;
    struct dt_data_settings s = settings();
    struct dt_plan_report r;
    dt_err err = { 0 };
    char *text;

    s.max_train_samples = 10;
    text = plan(&s, &r);
    assert_int_equal(r.used, 10);
    dt_plan_report_release(&r);
    free(text);

    s = settings();
    s.max_train_steps = 2;
    text = plan(&s, &r);
    assert_int_equal(r.batches, 2);
    assert_int_equal(r.unreached, N - 8);
    dt_plan_report_release(&r);
    free(text);

    s = settings();
    s.trust_sizes = 0;                  /* now the files must be there */
    FILE *f = fopen("/dev/null", "w");
    assert_int_equal(dt_plan_make(f, &s, &r, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "none of its 203 pictures can be used"));
    assert_int_equal(r.skipped.n, N);
    dt_plan_report_release(&r);
    fclose(f);

    s = settings();
    s.shard = "3/3";
    assert_int_equal(dt_data_settings_check(&s, &err), DT_EUSAGE);
    s.shard = NULL;
    s.random_hw_adapt = 1;
    assert_int_equal(dt_data_settings_check(&s, &err), DT_EUSAGE);      /* 512 has no smaller size */
    s.image_sample_size = 1024;
    assert_int_equal(dt_data_settings_check(&s, &err), 0);
    s.image_sample_size = 31;
    s.random_hw_adapt = 0;
    assert_int_equal(dt_data_settings_check(&s, &err), DT_EUSAGE);
    s.image_sample_size = 32;
    assert_int_equal(dt_data_settings_check(&s, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coverage), cmocka_unit_test(test_draws), cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_shards), cmocka_unit_test(test_seek), cmocka_unit_test(test_spaces), cmocka_unit_test(test_pipe),
        cmocka_unit_test(test_changed), cmocka_unit_test(test_memory), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_settings),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
