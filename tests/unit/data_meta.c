/* data_meta.c - metadata in its four forms, and what is said about bad ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/file.h"
#include "data/meta.h"
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

static dt_meta read_as(const char *name, const char *text, const char *root)
{
    dt_meta m;
    dt_err err = { 0 };
    char *path = put(name, text);
    if (dt_meta_read(&m, path, root, &err) < 0)
        fail_msg("%s", err.msg);
    free(path);
    return m;
}

static void refused(const char *name, const char *text, const char *words)
{
    dt_meta m;
    dt_err err = { 0 };
    char *path = put(name, text);
    assert_int_equal(dt_meta_read(&m, path, NULL, &err), DT_EDATA);
    if (strncmp(err.msg, path, strlen(path)) || !strstr(err.msg, words))
        fail_msg("'%s' does not say '%s'", err.msg, words);
    dt_meta_release(&m);
    free(path);
}

/* Strings are good until m is released: there are too few for a file. */
static dt_meta_item item(const dt_meta *m, int64_t k)
{
    dt_tape_reader r = { 0 };
    dt_meta_item it;
    assert_int_equal(dt_meta_get(m, k, &r, &it, NULL), 0);
    assert_null(r.own);
    return it;
}

static void is(const dt_meta *m, int64_t k, int64_t id, const char *path, const char *text, int w, int h)
{
    dt_meta_item it = item(m, k);
    assert_int_equal(m->v[k].id, id);
    assert_string_equal(it.path, path);
    assert_string_equal(it.text, text);
    assert_int_equal(it.w, w);
    assert_int_equal(it.h, h);
}

static void says(const dt_meta *m, int64_t i, const char *words)
{
    assert_true(i < m->skipped.n);
    if (!strstr(m->skipped.v[i], words))
        fail_msg("'%s' does not say '%s'", m->skipped.v[i], words);
}

static void test_json(void **state)
{
    (void)state;
    dt_meta m = read_as("m.json",
        "\xef\xbb\xbf[{\"file_path\":\"a.png\",\"text\":\"A\",\"type\":\"image\",\"width\":\"640\",\"height\":480.0,\"tag\":[1]},\n"
        "{\"file_path\":\"/abs/b.jpg\",\"text\":null,\"width\":\"\",\"height\":null},\n"
        "{\"text\":\"no path\"}, {\"file_path\":7}, {\"file_path\":\"v.mp4\",\"type\":\"video\"},"
        "{\"file_path\":\"c\",\"width\":\"wide\"}, 5, {\"file_path\":\"d\",\"text\":[]}, {\"file_path\":\"e\",\"width\":3}]", "/root");
    assert_int_equal(m.entries, 9);
    assert_int_equal(m.n, 3);
    is(&m, 0, 0, "/root/a.png", "A", 640, 480);
    assert_string_equal(item(&m, 0).extra, "{\"tag\":[1]}");
    is(&m, 1, 1, "/abs/b.jpg", "", 0, 0);
    assert_null(item(&m, 1).extra);
    is(&m, 2, 8, "/root/e", "", 0, 0);        /* one side alone is no size */
    assert_int_equal(m.skipped.n, 6);
    says(&m, 0, "m.json: entry 3: 'file_path' is missing");
    says(&m, 1, "entry 4: 'file_path' must be a string");
    says(&m, 2, "entry 5: 'type' is video");
    says(&m, 3, "entry 6: 'width' and 'height'");
    says(&m, 4, "entry 7: must be an object");
    says(&m, 5, "entry 8: 'text' must be a string");
    dt_meta_release(&m);
    refused("x.json", "[{\"file_path\": \"a.png\"},\n {\"file_path\": }]", "not valid JSON at line 2");
    refused("x.json", "[{\"file_path\": \"a.png\"}", "not valid JSON");
    refused("x.json", "\"a.png\"", "must be a list of objects");
    refused("x.json", "  \n", "empty");
}

static void test_lines(void **state)
{
    (void)state;
    dt_meta m = read_as("m.jsonl",
                        "{\"file_path\":\"a.png\",\"text\":\"A\"}\r\n\n{\"file_path\":\"b.png\",\"text\":\"\xff\"}\n"
                        "{\"file_path\":\"c.png\"}", NULL);
    assert_int_equal(m.entries, 3);
    assert_int_equal(m.n, 2);
    char *a = dt_path_join(dir, "a.png");       /* no root: the metadata's own folder */
    is(&m, 0, 0, a, "A", 0, 0);
    assert_int_equal(m.v[1].id, 2);
    says(&m, 0, "line 3: 'text' is not UTF-8");
    dt_meta_release(&m);
    free(a);
    refused("x.jsonl", "{\"file_path\":\"a.png\"}\n{\"file_path\":\n", "line 2 is not valid JSON");
}

static void test_csv(void **state)
{
    (void)state;
    dt_meta m = read_as("m.csv",
        "text,file_path,width,height,artist\r\n"
        "\"a \"\"red\"\" house,\nby the sea\",a.png,640,480,Ann\r\n"
        "short,row\n"
        "\n"
        ",b c.png,,,\n"
        "last,c.png,1e2,50,\"\"", "");
    assert_int_equal(m.entries, 4);
    assert_int_equal(m.n, 3);
    is(&m, 0, 0, "a.png", "a \"red\" house,\nby the sea", 640, 480);
    assert_string_equal(item(&m, 0).extra, "{\"artist\":\"Ann\"}");
    is(&m, 1, 2, "b c.png", "", 0, 0);
    is(&m, 2, 3, "c.png", "last", 100, 50);
    assert_int_equal(m.skipped.n, 1);
    says(&m, 0, "m.csv: line 4: 2 fields, the header has 5");
    dt_meta_release(&m);
    refused("x.csv", "path,text\na,b\n", "line 1: the header has no column 'file_path'");
    refused("x.csv", "file_path,text\na,b\nc,\"open\n\n", "line 3: a quote is not closed");
    refused("x.csv", "file_path,text\na,\"b\"c\n", "line 2: text after a closing quote");
}

static void test_folder(void **state)
{
    (void)state;
    static const char *const file[] = {
        "b.png", "", "b.txt", "  a bee \r\n", "a.JPG", "", "notes.md", "x", "sub/c.webp", "", "sub/c.txt",
        ("\xef\xbb\xbf" "sea"), ".hidden/d.png", "", "e.png", "", "e.txt", "\xff\xfe",
    };
    char *sub = dt_path_join(dir, "sub"), *hidden = dt_path_join(dir, ".hidden"), *loop = dt_path_join(dir, "sub/up");
    mkdir(sub, 0777);
    mkdir(hidden, 0777);
    assert_int_equal(symlink("..", loop), 0);
    for (size_t i = 0; i < sizeof file / sizeof *file; i += 2)
        free(put(file[i], file[i + 1]));
    dt_meta m;
    dt_err err = { 0 };
    char *wide = dt_path_join(dir, "f.txt");            /* UTF-16 without a mark: "a bee" would be "a" */
    assert_int_equal(dt_file_write(wide, "a\0 \0b\0e\0e", 10, NULL), 0);
    free(wide);
    free(put("f.png", ""));
    assert_int_equal(dt_meta_read(&m, dir, NULL, &err), 0);
    assert_int_equal(m.entries, 5);
    assert_int_equal(m.n, 3);
    assert_string_equal(dt_path_base(item(&m, 0).path), "a.JPG");
    assert_string_equal(item(&m, 0).text, "");
    assert_string_equal(dt_path_base(item(&m, 1).path), "b.png");
    assert_string_equal(item(&m, 1).text, "a bee");
    assert_string_equal(dt_path_base(item(&m, 2).path), "c.webp");
    assert_string_equal(item(&m, 2).text, "sea");
    assert_int_equal(m.v[2].id, 4);
    says(&m, 0, "e.txt: not UTF-8");
    says(&m, 1, "f.txt: holds a NUL byte");
    dt_meta_release(&m);
    unlink(loop);
    free(loop);
    free(sub);
    free(hidden);
    assert_int_equal(dt_meta_read(&m, "/nowhere/at/all", NULL, &err), DT_EDATA);
    dt_meta_release(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_json, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lines, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_csv, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_folder, set_up, tear_down),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
