/* The emulation of CUDA itself: right kernels give right results, and each classic slip is
 * noticed. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "tests/cuemu/broken.h"

enum { N = 128, ORDERS = 3 };       /* threads run in one of three orders, in turn */

static float out[N];
static char message[256];

static int try(int slip) { return cuemu_try(slip, out, message, sizeof(message)); }

static bool all_equal(float v)
{
    for (int i = 0; i < N; i++)
        if (out[i] != v)
            return false;
    return true;
}

static void test_right(void **state)
{
    (void)state;
    for (int i = 0; i < ORDERS; i++) {
        assert_int_equal(try(CUEMU_RIGHT), 0);
        assert_true(all_equal(3.0f * N * (N - 1) / 2));
    }
    assert_int_equal(try(CUEMU_HALF_WARPS), 0);
    for (int i = 0; i < N; i++)
        assert_true(out[i] == (float)(i + (i ^ 1)));
    assert_int_equal(try(CUEMU_ATOMIC), 0);
    assert_true(out[0] == 5 * 3 * 2 * 4 * 8 * 2);
}

/* A race has no single wrong result: in at least one of the orders it must show. */
static void finds_race(int slip)
{
    int wrong = 0;
    for (int i = 0; i < ORDERS; i++)
        wrong += try(slip) < 0 || !all_equal(3.0f * N * (N - 1) / 2);
    assert_true(wrong > 0);
}

static void test_missing_barrier(void **state)
{
    (void)state;
    finds_race(CUEMU_NO_BARRIER_BEFORE);
    finds_race(CUEMU_NO_BARRIER_AFTER);
}

static void test_uninitialised(void **state)
{
    (void)state;
    assert_int_equal(try(CUEMU_UNINITIALISED), 0);
    assert_true(isnan(out[0]) && out[1] == 1.0f);
}

static void fails(int slip, const char *words)
{
    assert_int_equal(try(slip), -1);
    assert_non_null(strstr(message, words));
    assert_int_equal(try(CUEMU_RIGHT), 0);          /* and the next launch is not harmed */
}

static void test_masks(void **state)
{
    (void)state;
    fails(CUEMU_MASK_LACKS_CALLER, "which calls");
    fails(CUEMU_MASK_NAMES_ABSENT, "not all lanes of mask ffffffff");
    fails(CUEMU_SOURCE_OUTSIDE_MASK, "which is not in mask 0000ffff");
}

static void test_barriers(void **state)
{
    (void)state;
    fails(CUEMU_DIVERGENT_BARRIER, "come to this barrier");
    fails(CUEMU_TWO_BARRIERS, "come to this barrier");
}

static void test_limits(void **state)
{
    (void)state;
    fails(CUEMU_BLOCK_TOO_LARGE, "blocks 1025 x 1 x 1");
}

static void test_host_access(void **state)
{
    (void)state;
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(cuemu_read_from_host() > 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),         cmocka_unit_test(test_missing_barrier),
        cmocka_unit_test(test_uninitialised), cmocka_unit_test(test_masks),
        cmocka_unit_test(test_barriers),      cmocka_unit_test(test_limits),
        cmocka_unit_test(test_host_access),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
