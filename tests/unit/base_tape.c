/* base_tape.c - records of many lengths: in order, at random, by several threads, in memory and from a file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <cmocka.h>
#include "base/mem.h"
#include "base/tape.h"

enum { MANY = 20000, LONG = 200000 };

/* Records under 3, 6, 9...: 0 to 99 bytes, some of them 200,000. */
static size_t bytes_of(int64_t key) { return key % 2001 ? (size_t)(key * 7 % 100) : LONG; }

static void fill(char *rec, int64_t key)
{
    for (size_t i = 0; i < bytes_of(key); i++)
        rec[i] = (char)(key + (int64_t)i);
}

static dt_tape *written(int64_t n)
{
    dt_tape *t = dt_tape_new();
    char *rec = dt_alloc(LONG);
    for (int64_t key = 3; key <= 3 * n; key += 3) {
        fill(rec, key);
        assert_int_equal(dt_tape_add(t, key, rec, bytes_of(key), NULL), 0);
    }
    free(rec);
    return t;
}

static int is_there(const dt_tape *t, dt_tape_reader *r, int64_t key, char *want)
{
    const void *rec = NULL;
    size_t n = 0;
    fill(want, key);
    return dt_tape_get(t, r, key, &rec, &n, NULL) == 0 && n == bytes_of(key) && !memcmp(rec, want, n);
}

static void *read_every_third(void *p)
{
    dt_tape_reader r = { 0 };
    char *want = dt_alloc(LONG);
    intptr_t good = 0;
    for (int64_t key = 3; key <= 3 * MANY; key += 9)
        good += is_there(p, &r, key, want);
    dt_tape_reader_release(&r);
    free(want);
    return (void *)good;
}

static void in_order_and_at_random(void **state)
{
    (void)state;
    static const int64_t count[] = { 1, 64, 65, 700, MANY };
    char *want = dt_alloc(LONG);
    for (size_t c = 0; c < sizeof count / sizeof *count; c++) {
        dt_tape *t = written(count[c]);
        dt_tape_reader r = { 0 };
        for (int64_t key = 3; key <= 3 * count[c]; key += 3)
            assert_true(is_there(t, &r, key, want));
        for (int64_t k = 0; k < 3000; k++)
            assert_true(is_there(t, &r, 3 * (1 + k * 7919 % count[c]), want));
        assert_true(is_there(t, &r, 3, want) && is_there(t, &r, 3, want));
        assert_int_equal(r.own != NULL, count[c] == MANY);
        dt_tape_reader_release(&r);
        dt_tape_free(&t);
        assert_null(t);
    }
    free(want);
}

static void what_is_not_there(void **state)
{
    (void)state;
    static const int64_t gone[] = { 0, 1, 2, 4, 191, 193, 3 * 700 - 1, 3 * 700 + 1, 1ll << 40 };
    dt_tape *t = written(700), *none = dt_tape_new();
    dt_tape_reader r = { 0 };
    const void *rec;
    size_t n;
    dt_err err = { 0 };
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
        assert_int_equal(dt_tape_get(t, &r, gone[i], &rec, &n, &err), DT_EFAIL);
        assert_int_equal(dt_tape_get(t, &r, 192, &rec, &n, &err), 0);
    }
    dt_tape_reader_release(&r);
    assert_int_equal(dt_tape_get(none, &r, 3, &rec, &n, &err), DT_EFAIL);
    assert_string_equal(err.msg, "no record 3");
    dt_tape_reader_release(&r);
    dt_tape_free(&t);
    dt_tape_free(&none);
    dt_tape_free(&none);
}

static void by_several_threads(void **state)
{
    (void)state;
    dt_tape *t = written(MANY);
    pthread_t thread[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, read_every_third, t), 0);
    for (int i = 0; i < 4; i++) {
        void *good;
        pthread_join(thread[i], &good);
        assert_int_equal((intptr_t)good, (MANY + 2) / 3);
    }
    dt_tape_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_order_and_at_random),
        cmocka_unit_test(what_is_not_there),
        cmocka_unit_test(by_several_threads),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
