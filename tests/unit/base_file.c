/* file.h and json.h. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "tests/unit/scratch.h"

/* Every test runs in a scratch folder of its own. */
static int enter(void **state)
{
    return scratch_setup(state) || chdir(*state);
}

static int leave(void **state)
{
    int rc = chdir("/") || dt_rmtree(*state, NULL) || dt_exists(*state);
    free(*state);
    return rc;
}

static int entries(const char *dir)
{
    char cmd[100];
    int n = -1;
    snprintf(cmd, sizeof cmd, "ls -A %s | wc -l", dir);
    FILE *p = popen(cmd, "r");
    assert_int_equal(fscanf(p, "%d", &n), 1);
    pclose(p);
    return n;
}

static void is_text(const char *path, const char *want)
{
    char *s;
    size_t n;
    assert_int_equal(dt_file_read(&s, &n, path, 1000, NULL), 0);
    assert_int_equal(n, strlen(want));
    assert_string_equal(s, want);
    free(s);
}

static void write_whole(void **state)
{
    (void)state;
    dt_out *o;
    dt_err e = { 0 };
    struct stat st;
    assert_int_equal(dt_file_write("f", "old", 3, &e), 0);
    assert_int_equal(chmod("f", 0600), 0);
    assert_int_equal(symlink("f", "link"), 0);
    assert_int_equal(dt_out_open(&o, "link", &e), 0);
    fputs("new!", dt_out_file(o));
    fflush(dt_out_file(o));
    is_text("f", "old");                        /* not yet */
    assert_int_equal(dt_out_commit(&o, &e), 0);
    assert_null(o);
    is_text("f", "new!");
    assert_int_equal(lstat("link", &st), 0);
    assert_true(S_ISLNK(st.st_mode));           /* the file was replaced, not the link */
    assert_int_equal(stat("f", &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(entries("."), 2);
}

static void write_abort(void **state)
{
    (void)state;
    dt_out *o = NULL;
    dt_err e = { 0 };
    dt_out_abort(&o);
    assert_int_equal(dt_out_open(&o, "g", &e), 0);
    fputs("half", dt_out_file(o));
    assert_int_equal(entries("."), 1);
    dt_out_abort(&o);
    assert_null(o);
    assert_int_equal(entries("."), 0);
    /* what a killed process has left is taken over */
    assert_int_equal(dt_file_write(".g.tmp", "longer", 6, &e), 0);
    assert_int_equal(dt_file_write("g", "x", 1, &e), 0);
    is_text("g", "x");
    assert_int_equal(entries("."), 1);
    /* what another one is writing is not, nor what has a second name; with our number it can only be ours of old */
    char *stale = dt_sprintf(".g.%ld.tmp", (long)getpid());
    assert_int_equal(dt_file_write("victim", "v", 1, &e), 0);
    assert_int_equal(link("victim", ".g.tmp"), 0);
    assert_int_equal(close(open(stale, O_CREAT | O_WRONLY, 0600)), 0);
    assert_int_equal(dt_file_write("g", "y", 1, &e), 0);
    is_text("victim", "v");
    is_text("g", "y");
    assert_int_equal(unlink(".g.tmp") | unlink("victim"), 0);
    assert_int_equal(entries("."), 1);
    free(stale);
    char name[256];
    memset(name, 'n', 250);
    name[250] = '\0';
    assert_int_equal(dt_file_write(name, "x", 1, &e), 0);
    is_text(name, "x");
}

/* Two at once: the last to commit wins, whole. */
static void write_twice(void **state)
{
    (void)state;
    dt_out *a, *b;
    dt_err e = { 0 };
    assert_int_equal(dt_out_open(&a, "g", &e), 0);
    fputs("first", dt_out_file(a));
    assert_int_equal(dt_out_open(&b, "g", &e), 0);
    fputs("2nd", dt_out_file(b));
    assert_int_equal(dt_out_commit(&b, &e), 0);
    is_text("g", "2nd");
    assert_int_equal(dt_out_commit(&a, &e), 0);
    is_text("g", "first");
    assert_int_equal(entries("."), 1);
}

static void write_failures(void **state)
{
    (void)state;
    dt_err e = { 0 };
    dt_out *o;
    assert_int_equal(dt_file_write("no/such/f", "x", 1, &e), DT_EIO);
    assert_non_null(strstr(e.msg, "cannot write 'no/such/f': No such file"));
    assert_int_equal(dt_file_write(".", "x", 1, &e), DT_EIO);
    assert_int_equal(dt_file_write("/dev/full", "x", 1, &e), DT_EIO);
    assert_non_null(strstr(e.msg, "No space left"));
    assert_int_equal(dt_file_write("/dev/null", "x", 1, &e), 0);
    struct stat st;
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    /* the target became a folder meanwhile: rename fails, nothing is left behind */
    assert_int_equal(dt_out_open(&o, "t", &e), 0);
    assert_int_equal(dt_mkdirs("t/u", &e), 0);
    assert_int_equal(dt_out_commit(&o, &e), DT_EIO);
    assert_null(o);
    assert_int_equal(entries("."), 1);
    assert_int_equal(dt_fsync_dir("nowhere", &e), DT_EIO);
}

static void read_bounded(void **state)
{
    (void)state;
    char *s = NULL;
    size_t n = 0;
    dt_err e = { 0 };
    assert_int_equal(dt_file_write("f", "0123456789", 10, &e), 0);
    assert_int_equal(dt_file_read(&s, &n, "f", 10, &e), 0);
    assert_int_equal(n, 10);
    assert_string_equal(s, "0123456789");
    free(s);
    assert_int_equal(dt_file_read(&s, &n, "f", 9, &e), DT_EDATA);
    assert_string_equal(e.msg, "'f' is larger than 9 bytes");
    assert_int_equal(dt_file_read(&s, &n, "/dev/zero", 100000, &e), DT_EDATA);
    assert_int_equal(dt_file_read(&s, &n, "gone", 10, &e), DT_EDATA);
    assert_string_equal(e.msg, "cannot open 'gone': No such file or directory");
    assert_int_equal(dt_file_read(&s, &n, ".", 10, &e), DT_EDATA);
    assert_int_equal(dt_file_read(&s, &n, "/dev/null", 0, &e), 0);
    assert_int_equal(n, 0);
    assert_string_equal(s, "");
    free(s);
}

static void read_fifo(void **state)
{
    (void)state;
    char *s;
    size_t n;
    assert_int_equal(mkfifo("p", 0600), 0);
    pid_t pid = fork();
    if (!pid) {
        FILE *f = fopen("p", "w");
        for (int i = 0; f && i < 100000; i++)
            fputs("abcd", f);
        _exit(f ? fclose(f) : 1);
    }
    assert_int_equal(dt_file_read(&s, &n, "p", 1 << 20, NULL), 0);
    waitpid(pid, NULL, 0);
    assert_int_equal(n, 400000);
    assert_memory_equal(s + 399996, "abcd", 5);
    free(s);
    dt_map m;
    dt_err e;
    assert_int_equal(dt_map_open(&m, "p", &e), DT_EDATA);   /* and does not wait for a writer */
    assert_string_equal(e.msg, "'p' is not a regular file");
}

static void read_parts(void **state)
{
    (void)state;
    static const struct { int64_t off, n; const char *want; } part[] = {
        { 0, 10, "0123456789" }, { 3, 4, "3456" }, { 9, 1, "9" }, { 10, 0, "" },
        { 9, 2, NULL }, { 11, 0, NULL }, { 0, 11, NULL }, { -1, 2, NULL }, { 3, -1, NULL }, { 1, INT64_MAX, NULL },
    };
    dt_err e = { 0 };
    assert_int_equal(dt_file_write("f", "0123456789", 10, &e), 0);
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        char *s = NULL;
        assert_int_equal(dt_file_read_part(&s, "f", part[i].off, part[i].n, &e), part[i].want ? 0 : DT_EDATA);
        if (part[i].want)
            assert_string_equal(s, part[i].want);
        else
            assert_null(s);
        free(s);
    }
    assert_string_equal(e.msg, "'f' has no 9223372036854775807 bytes at 1");
}

static void copies(void **state)
{
    (void)state;
    dt_err e = { 0 };
    struct stat st;
    assert_int_equal(dt_file_write("empty", "", 0, &e) | dt_file_write("f", "0123456789", 10, &e), 0);
    assert_int_equal(dt_file_copy("f", "g", &e) | dt_file_copy("empty", "h", &e), 0);
    is_text("g", "0123456789");
    is_text("h", "");
    assert_int_equal(dt_file_copy("/proc/version", "v", &e), 0);    /* which has no size */
    assert_int_equal(stat("v", &st), 0);
    assert_true(st.st_size > 10);
    assert_int_equal(dt_file_copy("gone", "g", &e), DT_EDATA);
    assert_int_equal(dt_file_copy("f", "/dev/full", &e), DT_EIO);
    is_text("g", "0123456789");
    assert_int_equal(entries("."), 5);
}

static void maps(void **state)
{
    (void)state;
    dt_map m;
    dt_err e = { 0 };
    assert_int_equal(dt_file_write("f", "0123456789", 10, &e), 0);
    assert_int_equal(dt_map_open(&m, "f", &e), 0);
    assert_int_equal(m.bytes, 10);
    assert_memory_equal(m.data, "0123456789", 10);
    dt_map_close(&m);
    assert_null(m.data);
    dt_map_close(&m);
    assert_int_equal(dt_file_write("empty", "", 0, &e), 0);
    assert_int_equal(dt_map_open(&m, "empty", &e), 0);
    assert_int_equal(m.bytes, 0);
    dt_map_close(&m);
    assert_int_equal(dt_map_open(&m, ".", &e), DT_EDATA);
    assert_int_equal(dt_map_open(&m, "/dev/zero", &e), DT_EDATA);
    assert_int_equal(dt_map_open(&m, "gone", &e), DT_EDATA);
}

static void join_is(const char *dir, const char *name, const char *want)
{
    char *p = dt_path_join(dir, name);
    assert_string_equal(p, want);
    free(p);
}

static void paths(void **state)
{
    (void)state;
    join_is("a", "b", "a/b");
    join_is("a/", "b", "a/b");
    join_is("a", "/b", "/b");
    join_is("", "b", "b");
    join_is(NULL, "b", "b");
    assert_string_equal(dt_path_base("a/b.c"), "b.c");
    assert_string_equal(dt_path_base("b.c"), "b.c");
    assert_string_equal(dt_path_ext("a.d/b.tar.gz"), ".gz");
    assert_string_equal(dt_path_ext("a.d/b"), "");
    assert_string_equal(dt_path_ext("a/.hidden"), "");
}

static void folders(void **state)
{
    (void)state;
    dt_err e = { 0 };
    assert_int_equal(dt_mkdirs("a/b//c/", &e), 0);
    assert_int_equal(dt_mkdirs("a/b/c", &e), 0);
    assert_true(dt_is_dir("a/b/c"));
    assert_int_equal(dt_file_write("a/f", "x", 1, &e), 0);
    assert_true(dt_exists("a/f"));
    assert_false(dt_is_dir("a/f"));
    assert_int_equal(dt_mkdirs("a/f/g", &e), DT_EIO);
    assert_int_equal(dt_mkdirs("keep", &e), 0);
    assert_int_equal(dt_file_write("keep/k", "x", 1, &e), 0);
    assert_int_equal(symlink("../keep", "a/link"), 0);
    assert_int_equal(dt_rmtree("a/link/", &e), 0);      /* the link goes, what it names stays */
    assert_false(dt_exists("a/link"));
    assert_int_equal(symlink("../keep", "a/link"), 0);
    assert_int_equal(dt_rmtree("a", &e), 0);
    assert_false(dt_exists("a"));
    assert_true(dt_exists("keep/k"));
    assert_int_equal(dt_rmtree("a", &e), 0);            /* gone is gone */
}

static cJSON *parse(const char *text)
{
    cJSON *o = NULL;
    dt_err e = { 0 };
    assert_int_equal(dt_file_write("j", text, strlen(text), &e), 0);
    if (dt_json_read(&o, "j", 10000, &e) < 0)
        print_error("%s\n", e.msg);
    assert_non_null(o);
    return o;
}

static void json_fields(void **state)
{
    (void)state;
    cJSON *o = parse(" {\"i\": 12, \"f\": 1.5, \"s\": \"x\", \"b\": true, "
                     "\"n\": null, \"a\": [1, 2], \"big\": 1e300, \"m\": [1, 0.5]} \n");
    dt_err e = { 0 };
    int64_t i = 0, a[3];
    double d = 0;
    bool b = false;
    const char *s = NULL;
    int n = 0;
    assert_int_equal(dt_json_int(&i, o, "i", 0, 12, "F", &e), 0);
    assert_int_equal(i, 12);
    assert_int_equal(dt_json_int(&i, o, "i", 0, 11, "F", &e), DT_EDATA);
    assert_string_equal(e.msg, "F: 'i' must be an integer from 0 to 11");
    assert_int_equal(dt_json_int(&i, o, "f", 0, 11, "F", &e), DT_EDATA);
    assert_int_equal(dt_json_int(&i, o, "big", INT64_MIN, INT64_MAX, "F", &e), DT_EDATA);
    assert_int_equal(dt_json_int(&i, o, "q", 0, 11, "F", &e), DT_EDATA);
    assert_string_equal(e.msg, "F: 'q' is missing");
    assert_int_equal(dt_json_int_or(&i, o, "n", 5, 0, 11, "F", &e), 0);
    assert_int_equal(i, 5);
    assert_int_equal(dt_json_int_or(&i, o, "s", 5, 0, 11, "F", &e), DT_EDATA);
    assert_int_equal(dt_json_num_or(&d, o, "f", 2, "F", &e), 0);
    assert_true(d == 1.5);
    assert_int_equal(dt_json_num_or(&d, o, "s", 2, "F", &e), DT_EDATA);
    assert_int_equal(dt_json_bool_or(&b, o, "b", false, "F", &e), 0);
    assert_true(b);
    assert_int_equal(dt_json_bool_or(&b, o, "i", false, "F", &e), DT_EDATA);
    assert_int_equal(dt_json_str_or(&s, o, "s", NULL, "F", &e), 0);
    assert_string_equal(s, "x");
    assert_int_equal(dt_json_str_or(&s, o, "q", NULL, "F", &e), 0);
    assert_null(s);
    assert_int_equal(dt_json_str_or(&s, o, "i", NULL, "F", &e), DT_EDATA);
    assert_int_equal(dt_json_ints_or(a, &n, 3, o, "a", "F", &e), 0);
    assert_true(n == 2 && a[0] == 1 && a[1] == 2);
    assert_int_equal(dt_json_ints_or(a, &n, 3, o, "q", "F", &e), 0);
    assert_int_equal(n, 0);
    assert_int_equal(dt_json_ints_or(a, &n, 1, o, "a", "F", &e), DT_EDATA);
    assert_int_equal(dt_json_ints_or(a, &n, 3, o, "m", "F", &e), DT_EDATA);
    assert_int_equal(dt_json_ints_or(a, &n, 3, o, "i", "F", &e), DT_EDATA);
    cJSON_Delete(o);
}

static void json_bad(void **state)
{
    (void)state;
    static const struct { const char *text; size_t n; const char *want; } bad[] = {
        { "{\n  \"a\": 1,\n  \"b\": }", 21, "j: not valid JSON at line 3, column 8" },
        { "", 0, "j: not valid JSON at line 1, column 1" },
        { "{} x", 4, "j: not valid JSON at line 1, column 4" },
        { "{}\0{}", 5, "j: not valid JSON at line 1, column 4" },
        { "[NaN]", 5, "j: not valid JSON at line 1, column 2" },
    };
    cJSON *o = NULL;
    dt_err e = { 0 };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(dt_file_write("j", bad[i].text, bad[i].n, &e), 0);
        assert_int_equal(dt_json_read(&o, "j", 1000, &e), DT_EDATA);
        assert_string_equal(e.msg, bad[i].want);
        assert_null(o);
    }
    assert_int_equal(dt_json_read(&o, "j", 2, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, "larger than 2 bytes"));
    char *deep = dt_alloc(20001);
    memset(deep, '[', 20000);
    assert_int_equal(dt_file_write("j", deep, 20000, &e), 0);
    assert_int_equal(dt_json_read(&o, "j", 30000, &e), DT_EDATA);
    free(deep);
}

static void line_is(const char *text, const char *want)
{
    cJSON *o = parse(text);
    char *s = dt_json_line(o);
    assert_string_equal(s, want);
    free(s);
    cJSON_Delete(o);
}

static void json_print(void **state)
{
    (void)state;
    line_is(" { \"a\" : [ 1 , 2.5, -3e-7, 1e15, 0.1, 123456789012345678 ], \"\\\"k\" : { } } ",
            "{\"a\":[1,2.5,-3e-07,1000000000000000,0.1,1.2345678901234568e+17],\"\\\"k\":{}}");
    line_is("[\"\\u0001\\n\\t/\\\\ \\u00e9\", true, false, null, []]",
            "[\"\\u0001\\n\\t/\\\\ \xc3\xa9\",true,false,null,[]]");
    cJSON *n = cJSON_CreateNumber(NAN);
    char *s = dt_json_line(n);
    assert_string_equal(s, "null");
    free(s);
    uint64_t seed = 1;
    for (int i = 0; i < 2000; i++) {            /* every double reads back as itself */
        double d;
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        memcpy(&d, &seed, sizeof d);
        if (!isfinite(d))
            continue;
        cJSON_SetNumberValue(n, d);
        s = dt_json_line(n);
        assert_true(strtod(s, NULL) == d);
        free(s);
    }
    cJSON_Delete(n);
    cJSON *o = parse("{\"a\":[1,2],\"b\":{\"c\":[{\"d\":1},{}]},\"e\":[],\"f\":{}}");
    assert_int_equal(dt_json_write("out", o, true, NULL), 0);
    is_text("out", "{\n  \"a\": [1, 2],\n  \"b\": {\n    \"c\": [\n      {\n        \"d\": 1\n      }, {}]\n  },\n"
                   "  \"e\": [],\n  \"f\": {}\n}\n");
    cJSON_Delete(o);
}

static void a_path_that_is_not_there_has_a_near_one(void **state)
{
    (void)state;
    dt_err err = { 0 };
    char *dir = scratch_new(), *deep = dt_path_join(dir, "photos/cats"), *typo = dt_path_join(dir, "photo/cats/a.png"),
        *far = dt_path_join(dir, "xyz");
    char *want = dt_sprintf("did you mean '%s/a.png'?", deep);
    assert_int_equal(dt_mkdirs(deep, NULL), 0);
    errno = ENOENT;
    assert_int_equal(dt_err_open(&err, typo), DT_EDATA);
    assert_non_null(strstr(err.msg, "No such file or directory"));
    assert_non_null(strstr(err.msg, want));
    errno = ENOENT;
    dt_err_open(&err, far);
    assert_null(strstr(err.msg, "did you mean"));
    errno = EACCES;
    dt_err_open(&err, typo);
    assert_null(strstr(err.msg, "did you mean"));
    char *odd = dt_path_join(dir, "bl\nack"), *plain = dt_path_join(dir, "black");
    assert_int_equal(dt_mkdirs(odd, NULL), 0);
    errno = ENOENT;
    dt_err_open(&err, plain);
    assert_non_null(strstr(err.msg, "/bl?ack'?"));          /* one line, whatever names there are */
    free(odd);
    free(plain);
    assert_int_equal(scratch_end(dir), 0);
    free(deep);
    free(typo);
    free(far);
    free(want);
}

#define T(f) cmocka_unit_test_setup_teardown(f, enter, leave)
int main(void)
{
    const struct CMUnitTest t[] = {
        T(write_whole), T(write_abort), T(write_twice), T(write_failures), T(read_bounded), T(read_fifo),
        T(read_parts), T(copies), T(maps), T(paths), T(folders), T(a_path_that_is_not_there_has_a_near_one),
        T(json_fields), T(json_bad), T(json_print),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("base_file", t, NULL, NULL);
}
