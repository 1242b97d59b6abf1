/* rng.h and hash.h. */
#include <fcntl.h>
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "tests/unit/scratch.h"

/* Random123's kat_vectors, philox4x32 10 rounds: counter, key, result. */
static void known_answers(void **state)
{
    (void)state;
    static const uint32_t kat[3][10] = {
        { 0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
        { ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
        { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
          0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 },
    };
    for (int i = 0; i < 3; i++) {
        dt_rng r = { .key = kat[i][4] | (uint64_t)kat[i][5] << 32 };
        memcpy(r.ctr, kat[i], sizeof r.ctr);
        for (int j = 0; j < 4; j++)
            assert_int_equal(dt_rng_u32(&r), kat[i][6 + j]);
    }
}

static void streams_differ(void **state)
{
    (void)state;
    dt_rng a = dt_rng_make(7, DT_RNG_CROP, 1, 2);
    assert_int_equal(a.ctr[1], 2);
    assert_int_equal(a.ctr[2], 1);
    assert_int_equal(a.ctr[3], DT_RNG_CROP);
    uint32_t x = dt_rng_u32(&a);
    dt_rng o[] = { dt_rng_make(8, DT_RNG_CROP, 1, 2), dt_rng_make(7, DT_RNG_FLIP, 1, 2),
                   dt_rng_make(7, DT_RNG_CROP, 2, 2), dt_rng_make(7, DT_RNG_CROP, 1, 3) };
    for (int i = 0; i < 4; i++)
        assert_int_not_equal(dt_rng_u32(&o[i]), x);
    /* the index runs on beyond 2^32 blocks and into no other stream */
    dt_rng w = dt_rng_make(7, DT_RNG_CROP, 1, 2);
    w.ctr[0] = UINT32_MAX;
    for (int i = 0; i < 5; i++)
        dt_rng_u32(&w);
    assert_int_equal(w.ctr[0], 1);
    assert_int_equal(w.ctr[3], DT_RNG_CROP + (1 << 16));
}

static void moments(const double *z, int n)
{
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0;
    for (int i = 0; i < n; i++)
        m1 += z[i], m2 += z[i] * z[i], m3 += pow(z[i], 3), m4 += pow(z[i], 4);
    double sd = 1 / sqrt(n);
    assert_true(fabs(m1 / n) < 5 * sd);
    assert_true(fabs(m2 / n - 1) < 5 * sqrt(2) * sd);
    assert_true(fabs(m3 / n) < 5 * sqrt(15) * sd);
    assert_true(fabs(m4 / n - 3) < 5 * sqrt(96) * sd);
}

static void distributions(void **state)
{
    (void)state;
    enum { N = 200000 };
    double *z = dt_alloc(N * sizeof *z), u1 = 0;
    dt_rng r = dt_rng_make(1, DT_RNG_TEST, 0, 0);
    for (int i = 0; i < N; i++)
        z[i] = dt_rng_normal(&r);
    moments(z, N);
    for (int i = 0; i < N; i++) {
        double u = dt_rng_uniform(&r);
        assert_true(u >= 0 && u < 1);
        u1 += u;
    }
    assert_true(fabs(u1 / N - 0.5) < 5 * sqrt(1.0 / 12 / N));
    int seen[7] = { 0 };
    for (int i = 0; i < 70000; i++)
        seen[dt_rng_below(&r, 7)]++;
    for (int i = 0; i < 7; i++)
        assert_true(abs(seen[i] - 10000) < 500);
    assert_int_equal(dt_rng_below(&r, 1), 0);
    int low = 0;
    for (int i = 0; i < 9000; i++)              /* a plain remainder gives half of them, not a third */
        low += dt_rng_below(&r, 3ull << 62) < 1ull << 62;
    assert_true(abs(low - 3000) < 250);
    free(z);
}

/* Box-Muller in double on the words of the stream, u rounded to float as the definition says. */
static double exact(const uint32_t *w, int i)
{
    double u = ((float)w[i & ~1] + 1.0f) * 0x1p-32, v = w[i | 1] * 0x1p-32;
    return sqrt(-2 * log(u)) * (i & 1 ? sin(2 * M_PI * v) : cos(2 * M_PI * v));
}

static void fill_is_box_muller(void **state)
{
    (void)state;
    enum { N = 200000 };
    float *f = dt_alloc(N * sizeof *f);
    double *z = dt_alloc(N * sizeof *z), worst = 0;
    dt_rng_fill_normal(f, N, 42, DT_RNG_NOISE, 3, 5);
    dt_rng r = dt_rng_make(42, DT_RNG_NOISE, 3, 5);
    for (int i = 0; i < N; i += 4) {
        uint32_t w[4];
        for (int j = 0; j < 4; j++)
            w[j] = dt_rng_u32(&r);
        for (int j = 0; j < 4; j++) {
            z[i + j] = f[i + j];
            worst = fmax(worst, fabs(f[i + j] - exact(w, j)));
        }
    }
    assert_true(worst < 1.5e-6);
    moments(z, N);
    free(f);
    free(z);
}

static void fill_is_addressable(void **state)
{
    (void)state;
    enum { N = 100003 };
    float *a = dt_alloc(N * sizeof *a), *b = dt_alloc(N * sizeof *b);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    dt_rng_fill_normal(a, N, 42, DT_RNG_NOISE, 0, 0);
    for (int t = 2; t <= 5; t++) {
        omp_set_num_threads(t);
        memset(b, 0, N * sizeof *b);
        dt_rng_fill_normal(b, N, 42, DT_RNG_NOISE, 0, 0);
        assert_memory_equal(a, b, N * sizeof *a);
    }
    omp_set_num_threads(threads);
    for (int n = 0; n < 70; n++) {      /* a prefix is the same, and nothing is written behind it */
        b[n] = 123;
        dt_rng_fill_normal(b, n, 42, DT_RNG_NOISE, 0, 0);
        assert_memory_equal(a, b, (size_t)n * sizeof *a);
        assert_true(b[n] == 123);
    }
    /* part of the file formats: the same numbers on every machine */
    static const uint32_t first[] = { 0x3fee8ba4, 0x3faab40f, 0xbf1e7f02, 0x3f9f24f4,
                                      0xbfc31171, 0xbf70d06d, 0x3f5d1d55, 0xbe793685 };
    assert_memory_equal(a, first, sizeof first);
    free(a);
    free(b);
}

static void permutations(void **state)
{
    (void)state;
    uint32_t p[100];
    int64_t first[5] = { 0 };
    for (int t = 0; t < 1000; t++) {
        dt_rng r = dt_rng_make(3, DT_RNG_SHUFFLE, (uint32_t)t, 0);
        char seen[100] = { 0 };
        dt_rng_permute(p, 100, &r);
        for (int i = 0; i < 100; i++) {
            assert_in_range(p[i], 0, 99);
            assert_int_equal(seen[p[i]]++, 0);
        }
        first[p[0] / 20]++;
    }
    for (int i = 0; i < 5; i++)
        assert_true(llabs(first[i] - 200) < 80);
    dt_rng r = dt_rng_make(3, DT_RNG_SHUFFLE, 0, 0);
    dt_rng_permute(p, 0, &r);
}

static void hashes(void **state)
{
    (void)state;
    char *dir = scratch_new(), *path = dt_path_join(dir, "f"), *big = dt_alloc(3000001);
    dt_err e = { 0 };
    dt_hash a, b;
    /* xxh128sum of nothing, and of "abc" */
    assert_string_equal(dt_hash_bytes("", 0).hex, "99aa06d3014798d86001c324468d497f");
    assert_string_equal(dt_hash_bytes("abc", 3).hex, "06b05ab6733a618578af5f94892f3950");
    assert_int_equal(dt_hash_file(&a, path, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, "/f: cannot open: No such file"));
    assert_int_equal(dt_hash_file(&a, dir, &e), DT_EDATA);
    FILE *f = fopen(path, "w");
    for (int i = 0; i < 3000001; i++)
        big[i] = (char)(i * 7 + i / 1000);
    assert_int_equal(fwrite(big, 1, 3000001, f), 3000001);
    fclose(f);
    assert_int_equal(dt_hash_file(&a, path, &e), 0);
    b = dt_hash_bytes(big, 3000001);
    assert_string_equal(a.hex, b.hex);
    scratch_end(dir);
    free(path);
    free(big);
}

/* Written over with as much, and its time set back: that is seen; reading it is not. */
static void hash_of_stat(void **state)
{
    char *path = dt_path_join(*state, "f");
    struct stat st;
    assert_int_equal(dt_file_write(path, "one", 3, NULL), 0);
    dt_hash a = dt_hash_stat(path), b = dt_hash_stat(path);
    assert_string_equal(a.hex, b.hex);
    assert_int_equal(strlen(a.hex), 32);
    assert_int_equal(stat(path, &st), 0);
    FILE *f = fopen(path, "r+");
    fputs("two", f);
    fclose(f);
    assert_int_equal(utimensat(AT_FDCWD, path, (struct timespec[]){ st.st_atim, st.st_mtim }, 0), 0);
    b = dt_hash_stat(path);
    assert_string_not_equal(a.hex, b.hex);
    assert_int_equal(unlink(path), 0);
    assert_string_equal(dt_hash_stat(path).hex, "");
    free(path);
}

static void hash_strings(void **state)
{
    (void)state;
    dt_hasher *x = dt_hasher_new(), *y = dt_hasher_new();
    dt_hasher_str(x, "ab"), dt_hasher_str(x, "c");
    dt_hasher_str(y, "a"), dt_hasher_str(y, "bc");
    dt_hash a = dt_hasher_end(&x), b = dt_hasher_end(&y);
    assert_null(x);
    assert_string_not_equal(a.hex, b.hex);
    char text[308] = { 300 & 255, 300 >> 8 };       /* a string is its length, little-endian, and its bytes */
    memset(text + 8, 'x', 300);
    char *s = dt_sprintf("%.300s", text + 8);
    x = dt_hasher_new();
    dt_hasher_str(x, s);
    assert_string_equal(dt_hasher_end(&x).hex, dt_hash_bytes(text, sizeof text).hex);
    free(s);
    x = dt_hasher_new();
    dt_hasher_add(x, "ab", 2), dt_hasher_add(x, NULL, 0), dt_hasher_add(x, "c", 1);
    assert_string_equal(dt_hasher_end(&x).hex, dt_hash_bytes("abc", 3).hex);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(known_answers), cmocka_unit_test(streams_differ), cmocka_unit_test(distributions),
        cmocka_unit_test(fill_is_box_muller), cmocka_unit_test(fill_is_addressable),
        cmocka_unit_test(permutations), cmocka_unit_test(hashes), scratch_test(hash_of_stat),
        cmocka_unit_test(hash_strings),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("base_rng", t, NULL, NULL);
}
