/* train_manifest.c - run.json over several runs of a folder: ends, runs without one, files that are something else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "train/manifest.h"
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

static void begin(dt_manifest **m, const char *word)
{
    char *argv[] = { "dt-train", (char *)word };
    dt_err err = { 0 };
    *m = dt_manifest_new(dir);
    dt_manifest_command(*m, 2, argv);
    if (dt_manifest_write(*m, &err) < 0)
        fail_msg("%s", err.msg);
}

static cJSON *read_back(int runs)
{
    cJSON *root = NULL;
    char *path = dt_path_join(dir, "run.json");
    assert_int_equal(dt_json_read(&root, path, 1 << 20, NULL), 0);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(root, "runs")), runs);
    free(path);
    return root;
}

static const char *field(const cJSON *root, int run, const char *name)
{
    return cJSON_GetStringValue(cJSON_GetObjectItem(cJSON_GetArrayItem(cJSON_GetObjectItem(root, "runs"), run), name));
}

static void each_run_has_its_end(void **state)
{
    (void)state;
    static const struct { int rc; const char *status; } end[] = {
        { 0, "done" }, { 1, "done" }, { DT_ESIGNAL, "stopped" }, { DT_ENAN, "failed" },
    };
    dt_manifest *m;
    for (int i = 0; i < 4; i++) {
        begin(&m, "lora");
        cJSON *root = read_back(i + 1);
        assert_string_equal(field(root, i, "status"), "running");
        cJSON_Delete(root);
        assert_int_equal(dt_manifest_end(m, end[i].rc, end[i].rc < 0 ? "the reason" : "", NULL), 0);
        dt_manifest_free(&m);
        assert_null(m);
    }
    cJSON *root = read_back(4);
    for (int i = 0; i < 4; i++) {
        assert_string_equal(field(root, i, "status"), end[i].status);
        assert_int_equal(strlen(field(root, i, "ended")), strlen("2026-05-04T03:02:01Z"));
        if (end[i].rc < 0)
            assert_string_equal(field(root, i, "message"), "the reason");
        else
            assert_null(field(root, i, "message"));
    }
    cJSON_Delete(root);
}

static void a_run_without_end_was_broken_off(void **state)
{
    (void)state;
    dt_manifest *m;
    begin(&m, "killed");
    dt_manifest_free(&m);
    begin(&m, "next");
    dt_manifest_free(&m);
    cJSON *root = read_back(2);
    assert_string_equal(field(root, 0, "status"), "broken off");
    assert_string_equal(field(root, 1, "status"), "running");
    cJSON_Delete(root);
}

static void another_file_is_set_aside(void **state)
{
    (void)state;
    dt_manifest *m;
    char *path = dt_path_join(dir, "run.json"), *old = dt_path_join(dir, "run.json.old");
    assert_int_equal(dt_file_write(path, "[1", 2, NULL), 0);
    begin(&m, "lora");
    dt_manifest_free(&m);
    assert_true(dt_exists(old));
    cJSON_Delete(read_back(1));
    free(path);
    free(old);
}

static void the_oldest_are_forgotten(void **state)
{
    (void)state;
    dt_manifest *m;
    for (int i = 0; i < 103; i++) {
        m = dt_manifest_new(dir);
        cJSON_AddNumberToObject(dt_manifest_run(m), "n", i);
        assert_int_equal(dt_manifest_end(m, 0, NULL, NULL), 0);
        dt_manifest_free(&m);
    }
    cJSON *root = read_back(100);
    assert_int_equal(cJSON_GetObjectItem(cJSON_GetArrayItem(cJSON_GetObjectItem(root, "runs"), 0), "n")->valueint, 3);
    cJSON_Delete(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(each_run_has_its_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_run_without_end_was_broken_off, set_up, tear_down),
        cmocka_unit_test_setup_teardown(another_file_is_set_aside, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_oldest_are_forgotten, set_up, tear_down),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
