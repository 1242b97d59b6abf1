/* Event files are read back with a wire-format walker of the test's own, so that writer and reader share nothing but
 * the format. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/mem.h"
#include "tfread.h"
#include "tests/unit/scratch.h"

/* RFC 3720, B.4, and the check value of the CRC catalogues. */
static void test_crc32c(void **state)
{
    (void)state;
    uint8_t b[32] = { 0 };
    assert_int_equal(dt_crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(dt_crc32c(b, 32), 0x8a9136aau);
    memset(b, 0xff, 32);
    assert_int_equal(dt_crc32c(b, 32), 0x62a8ab43u);
    assert_int_equal(dt_crc32c_masked("123456789", 9), 0xc78ab0e5u);
}

static void test_contents(void **state)
{
    dt_err err = { 0 };
    dt_events *e = NULL;
    char *data, *dir = dt_path_join(*state, "a/b"), *path;
    size_t bytes;

    assert_int_equal(dt_events_open(&e, dir, 41, &err), 0);
    path = dt_strdup(dt_events_path(e));
    assert_int_equal(dt_events_scalar(e, "Loss/train", 42, 0.25, &err), 0);
    assert_int_equal(dt_events_image(e, "samples", 300, "PNG\0bytes", 9, 640, 48, &err), 0);
    assert_int_equal(dt_events_close(&e, &err), 0);
    assert_null(e);
    assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, &err), 0);

    span file = { (uint8_t *)data, bytes }, ev = next_record(&file);
    double wall;
    memcpy(&wall, &(uint64_t){ get(ev, 1).value }, 8);
    assert_true(wall > 1.6e9 && wall < 1e11);
    assert_bytes(get(ev, 3).bytes, "brain.Event:2");

    ev = next_record(&file);                            /* session start: the first step to be forgotten */
    assert_int_equal(get(ev, 2).value, 42);
    assert_int_equal(get(get(ev, 7).bytes, 1).value, 1);

    ev = next_record(&file);
    span v = get(get(ev, 5).bytes, 1).bytes;
    assert_int_equal(get(ev, 2).value, 42);
    assert_bytes(get(v, 1).bytes, "Loss/train");
    assert_int_equal(get(v, 2).wire, 5);
    assert_int_equal(get(v, 2).value, 0x3e800000);      /* 0.25f */
    assert_false(has(v, 4));

    ev = next_record(&file);
    v = get(get(ev, 5).bytes, 1).bytes;
    assert_int_equal(get(ev, 2).value, 300);
    span im = get(v, 4).bytes;
    assert_int_equal(get(im, 1).value, 48);
    assert_int_equal(get(im, 2).value, 640);
    assert_int_equal(get(im, 3).value, 3);
    assert_int_equal(get(im, 4).bytes.n, 9);
    assert_memory_equal(get(im, 4).bytes.p, "PNG\0bytes", 9);

    assert_int_equal(file.n, 0);

    free(data);
    free(path);
    free(dir);
}

/* Names sort by time, and never clash within a second. */
static void test_names(void **state)
{
    dt_err err = { 0 };
    dt_events *a = NULL, *b = NULL;
    assert_int_equal(dt_events_open(&a, *state, 0, &err), 0);
    assert_int_equal(dt_events_open(&b, *state, 0, &err), 0);
    const char *base = dt_path_base(dt_events_path(a));
    assert_memory_equal(base, "events.out.tfevents.", 20);
    assert_int_equal(strspn(base + 20, "0123456789"), 10);
    assert_true(strcmp(dt_events_path(a), dt_events_path(b)) < 0);
    assert_int_equal(dt_events_close(&a, &err), 0);
    assert_int_equal(dt_events_close(&b, &err), 0);
    assert_int_equal(dt_events_close(&b, &err), 0);
}

static void test_bad_folder(void **state)
{
    dt_err err = { 0 };
    dt_events *e = NULL;
    char *file = dt_path_join(*state, "file"), *dir = dt_path_join(file, "logs");
    assert_int_equal(dt_file_write(file, "x", 1, &err), 0);
    assert_true(dt_events_open(&e, dir, 0, &err) < 0);
    assert_null(e);
    assert_non_null(strstr(err.msg, file));
    free(file);
    free(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32c),
        scratch_test(test_contents),
        scratch_test(test_names),
        scratch_test(test_bad_folder),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
