#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include "base/file.h"
#include "base/mem.h"
#include "train/metrics.h"
#include "tests/unit/scratch.h"

static void assert_file(const char *path, const char *want)
{
    char *data;
    size_t bytes;
    dt_err err = { 0 };
    assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, &err), 0);
    assert_string_equal(data, want);
    free(data);
}

static void steps(dt_metrics *m, int from, int to)
{
    dt_err err = { 0 };
    for (int i = from; i <= to; i++) {
        dt_metrics_int(m, "step", i);
        dt_metrics_num(m, "loss", 1.0 / i);
        assert_int_equal(dt_metrics_end(m, &err), 0);
    }
}

static void test_format(void **state)
{
    dt_err err = { 0 };
    dt_metrics *m = NULL;
    char *path = dt_path_join(*state, "m");
    assert_int_equal(dt_metrics_open(&m, path, 0, &err), 0);
    dt_metrics_int(m, "step", 12345678901);
    dt_metrics_num(m, "third", 1.0 / 3);
    dt_metrics_num(m, "lr", 1e-4);
    dt_metrics_num(m, "bad", NAN);
    dt_metrics_num(m, "worse", -INFINITY);
    assert_int_equal(dt_metrics_offset(m), 0);          /* not a whole line yet */
    assert_int_equal(dt_metrics_end(m, &err), 0);
    assert_int_equal(dt_metrics_end(m, &err), 0);
    dt_metrics_int(m, "dropped", 1);
    int64_t at = dt_metrics_offset(m);
    assert_int_equal(dt_metrics_sync(m, &err), 0);
    assert_int_equal(dt_metrics_close(&m, &err), 0);
    assert_null(m);
    const char *want = "{\"step\":12345678901,\"third\":0.333333333,\"lr\":0.0001,\"bad\":null,\"worse\":null}\n{}\n";
    assert_int_equal(at, strlen(want));
    assert_file(path, want);
    free(path);
}

/* Stopped after step 5, two steps beyond its checkpoint, and resumed: the same bytes as in one go. */
static void test_resume(void **state)
{
    dt_err err = { 0 };
    dt_metrics *m = NULL;
    char *one = dt_path_join(*state, "one"), *two = dt_path_join(*state, "two"), *want;
    size_t bytes;
    assert_int_equal(dt_metrics_open(&m, one, 0, &err), 0);
    steps(m, 1, 9);
    assert_int_equal(dt_metrics_close(&m, &err), 0);

    assert_int_equal(dt_metrics_open(&m, two, 0, &err), 0);
    steps(m, 1, 3);
    int64_t checkpoint = dt_metrics_offset(m);
    steps(m, 4, 5);
    assert_int_equal(dt_metrics_close(&m, &err), 0);
    assert_int_equal(dt_metrics_open(&m, two, checkpoint, &err), 0);
    assert_int_equal(dt_metrics_offset(m), checkpoint);
    steps(m, 4, 9);
    assert_int_equal(dt_metrics_close(&m, &err), 0);

    assert_int_equal(dt_file_read(&want, &bytes, one, 1 << 20, &err), 0);
    assert_file(two, want);
    free(want);

    assert_int_equal(dt_metrics_open(&m, two, 0, &err), 0);     /* afresh: nothing is left of the former run */
    assert_int_equal(dt_metrics_close(&m, &err), 0);
    assert_file(two, "");
    free(one);
    free(two);
}

static void test_misfit(void **state)
{
    dt_err err = { 0 };
    dt_metrics *m = NULL;
    char *path = dt_path_join(*state, "m"), *none = dt_path_join(*state, "none");
    assert_int_equal(dt_file_write(path, "{}\n{}\n", 6, &err), 0);
    assert_int_equal(dt_metrics_open(&m, path, 7, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, path));
    assert_int_equal(dt_metrics_open(&m, path, 4, &err), DT_EDATA);
    assert_int_equal(dt_metrics_open(&m, none, 3, &err), DT_EDATA);
    assert_false(dt_exists(none));
    assert_null(m);
    assert_file(path, "{}\n{}\n");                      /* refused, hence untouched */
    free(path);
    free(none);
}

/* A limit on the file's size stands in for a full disk: the line that does not fit leaves no part of itself. */
static void test_full_disk(void **state)
{
    dt_err err = { 0 };
    dt_metrics *m = NULL;
    char *path = dt_path_join(*state, "m");
    struct rlimit old, tight;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    tight = (struct rlimit){ 50, old.rlim_max };
    assert_int_equal(dt_metrics_open(&m, path, 0, &err), 0);
    steps(m, 1, 2);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    dt_metrics_num(m, "a_name_that_makes_the_line_longer_than_the_limit", 1);
    int rc = dt_metrics_end(m, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, DT_EIO);
    assert_non_null(strstr(err.msg, path));
    assert_file(path, "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":0.5}\n");
    steps(m, 3, 3);
    assert_int_equal(dt_metrics_close(&m, &err), 0);
    assert_file(path, "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":0.5}\n{\"step\":3,\"loss\":0.333333333}\n");
    free(path);
}

static void test_read(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "m");
    double *x, *y;
    int64_t n;
    const char *text = "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":null}\n{\"step\":2,\"heldout\":7}\n"
                       "{\"step\":3,\"loss\":0.25}\n{\"step\":4,\"lo";
    assert_int_equal(dt_file_write(path, text, strlen(text), &err), 0);
    assert_int_equal(dt_metrics_read(&x, &y, &n, path, "loss", &err), 0);
    assert_int_equal(n, 3);
    assert_true(x[0] == 1 && x[1] == 2 && x[2] == 3 && y[0] == 0.5 && isnan(y[1]) && y[2] == 0.25);
    free(x);
    free(y);
    assert_int_equal(dt_metrics_read(&x, &y, &n, path, "absent", &err), 0);
    assert_int_equal(n, 0);
    free(x);
    free(y);
    assert_int_equal(dt_file_write(path, "{}\n[1]\n", 7, &err), 0);
    assert_int_equal(dt_metrics_read(&x, &y, &n, path, "loss", &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "line 2"));
    free(path);
}

/* Where a run that goes on at a step cuts the file: before the first line of it or of a later one. */
static void test_find(void **state)
{
    dt_err err = { 0 };
    char *path = dt_path_join(*state, "m");
    int64_t at;
    const char *text = "{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"heldout\":7}\n"
                       "{\"step\":4}\n{\"step\":5,\"lo";
    static const struct { int64_t step, at; } want[] = { { 0, 0 }, { 1, 0 }, { 2, 11 }, { 3, 45 }, { 4, 45 }, { 9, 56 } };
    assert_int_equal(dt_metrics_find(&at, path, 1, &err), 0);
    assert_int_equal(at, 0);                            /* there is no file */
    assert_int_equal(dt_file_write(path, text, strlen(text), &err), 0);
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        assert_int_equal(dt_metrics_find(&at, path, want[i].step, &err), 0);
        assert_int_equal(at, want[i].at);
    }
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scratch_test(test_format),
        scratch_test(test_resume),
        scratch_test(test_misfit),
        scratch_test(test_full_disk),
        scratch_test(test_read),
        scratch_test(test_find),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
