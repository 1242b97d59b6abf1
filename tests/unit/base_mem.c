/* err.h and mem.h. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/err.h"
#include "base/keymap.h"
#include "base/mem.h"
#include "base/spool.h"

static void err_messages(void **state)
{
    (void)state;
    dt_err e = { 0 };
    assert_int_equal(dt_err_set(&e, DT_EDATA, "%s: no '%s'", "a", "b\nc"), DT_EDATA);
    assert_int_equal(e.code, DT_EDATA);
    assert_string_equal(e.msg, "a: no 'b?c'");
    dt_err_prefix(&e, "row %d", 7);
    dt_err_prefix(NULL, "x");
    assert_int_equal(e.code, DT_EDATA);
    assert_string_equal(e.msg, "row 7: a: no 'b?c'");
    errno = ENOSPC;
    assert_int_equal(dt_err_sys(&e, DT_EIO, "cannot write '%s'", "x"), DT_EIO);
    assert_string_equal(e.msg, "cannot write 'x': No space left on device");
    assert_int_equal(dt_err_set(NULL, DT_ENAN, "x"), DT_ENAN);
    assert_int_equal(dt_err_sys(NULL, DT_EIO, "x"), DT_EIO);
}

static void err_overlong(void **state)
{
    (void)state;
    dt_err e = { 0 };
    char big[3000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    dt_err_set(&e, DT_EDATA, "%s", big);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
    dt_err_prefix(&e, "front");
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
    assert_memory_equal(e.msg, "front: xxx", 10);
    dt_err_sys(&e, DT_EIO, "%s", big);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
}

static void allocations(void **state)
{
    (void)state;
    char *p = dt_alloc(1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(p[i], 0);
    p = dt_realloc(p, 2000);
    free(p);
    free(dt_alloc(0));
    assert_null(dt_strdup(NULL));
    char *s = dt_sprintf("%s-%d", "ab", 12);
    assert_string_equal(s, "ab-12");
    free(s);
    for (size_t n = 0; n < 200; n += 13) {
        p = dt_try_alloc(n);
        assert_int_equal((uintptr_t)p % 64, 0);
        memset(p, 1, n);
        free(p);
    }
    assert_null(dt_try_alloc(SIZE_MAX));
    assert_null(dt_try_alloc(SIZE_MAX - 10));
}

static void growth(void **state)
{
    (void)state;
    double *v = NULL;
    int64_t cap = 0;
    for (int64_t n = 0; n < 1000; n++) {
        dt_grow(&v, &cap, n + 1, sizeof *v);
        assert_true(cap > n);
        v[n] = (double)n;
    }
    assert_int_equal(cap, 1024);
    assert_true(v[0] == 0 && v[999] == 999);
    free(v);
}

/* A size that cannot be ends the process with status 5, in a child here. */
static void out_of_memory(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (!pid) {
        close(STDERR_FILENO);
        int64_t cap = 0;
        void *v = NULL;
        dt_grow(&v, &cap, INT64_MAX / 2, 16);
        _exit(0);
    }
    int st;
    assert_int_equal(waitpid(pid, &st, 0), pid);
    assert_true(WIFEXITED(st));
    assert_int_equal(WEXITSTATUS(st), 5);
}

static void strings(void **state)
{
    (void)state;
    dt_strs s = { 0 };
    dt_strs_split(&s, " a, b c ,,\td", ',');
    dt_strs_add(&s, "");
    assert_int_equal(s.n, 4);
    assert_string_equal(s.v[0], "a");
    assert_string_equal(s.v[1], "b c");
    assert_string_equal(s.v[2], "d");
    assert_string_equal(s.v[3], "");
    dt_strs_release(&s);
    assert_null(s.v);
    dt_strs_split(&s, "", ',');
    assert_int_equal(s.n, 0);
    dt_strs_release(&s);
}

static void nearest(void **state)
{
    (void)state;
    const char *const c[] = { "rank", "learning_rate", "seed", "network_alpha" };
    assert_int_equal(dt_nearest("learnign_rate", c, 4), 1);
    assert_int_equal(dt_nearest("learning_rates", c, 4), 1);
    assert_int_equal(dt_nearest("sed", c, 4), 2);
    assert_int_equal(dt_nearest("rnak", c, 4), 0);
    assert_int_equal(dt_nearest("netwrk_alfa", c, 4), 3);
    assert_int_equal(dt_nearest("completely_else", c, 4), -1);
    assert_int_equal(dt_nearest("xy", c, 4), -1);
    assert_int_equal(dt_nearest("help", c, 4), -1);         /* three of four letters are others */
    assert_int_equal(dt_nearest("", c, 4), -1);
    assert_int_equal(dt_nearest("a", c, 0), -1);
}

/* What was added is found, the first of two, and nothing else; a key may hold any bytes. */
static void keys(void **state)
{
    (void)state;
    enum { N = 100000 };
    dt_keymap *m = dt_keymap_new();
    for (int i = 0; i < N; i++)
        assert_int_equal(dt_keymap_add(m, &i, sizeof i, i / 2), i / 2);
    for (int i = 0; i < N; i++) {
        assert_int_equal(dt_keymap_add(m, &i, sizeof i, 7), i / 2);
        assert_int_equal(dt_keymap_get(m, &i, sizeof i), i / 2);
    }
    for (int i = N; i < 2 * N; i++)
        assert_int_equal(dt_keymap_get(m, &i, sizeof i), -1);
    assert_int_equal(dt_keymap_get(m, "", 0), -1);
    assert_in_range(dt_keymap_bytes(N), N * 16, N * 48);
    dt_keymap_free(&m);
    assert_null(m);
    dt_keymap_free(&m);
}

static void spooled(void **state)
{
    (void)state;
    const char *const dirs[] = { NULL, "/tmp", "/proc" };       /* the last has no temporary files */
    for (int d = 0; d < 3; d++) {
        dt_spool *s = NULL;
        int64_t rec[3];
        assert_int_equal(dt_spool_open(&s, dirs[d], sizeof rec, NULL), 0);
        for (int64_t i = 99; i >= 0; i -= 3)
            assert_int_equal(dt_spool_set(s, i, (int64_t[3]){ i, -i, 1 }, NULL), 0);
        for (int64_t i = 0; i < 200; i++) {
            assert_int_equal(dt_spool_get(s, i, rec, NULL), 0);
            int set = i < 100 && i % 3 == 0;
            assert_true(rec[0] == (set ? i : 0) && rec[1] == (set ? -i : 0) && rec[2] == set);
        }
        dt_spool_close(&s);
        assert_null(s);
    }
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(err_messages), cmocka_unit_test(err_overlong), cmocka_unit_test(allocations),
        cmocka_unit_test(growth), cmocka_unit_test(out_of_memory), cmocka_unit_test(strings),
        cmocka_unit_test(nearest), cmocka_unit_test(keys), cmocka_unit_test(spooled),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("base_mem", t, NULL, NULL);
}
