/* safetensors: round trips, shards, and every way a header can lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/mem.h"
#include "tensor/safetensors.h"
#include "tests/unit/scratch.h"

static int enter(void **state)
{
    return scratch_setup(state) || chdir(*state);
}

static int leave(void **state)
{
    return chdir("/") || scratch_teardown(state);
}

/* Length word, header, n bytes of data.  Caller frees. */
static uint8_t *make(const char *header, size_t header_bytes, size_t n, size_t *bytes)
{
    uint64_t len = header_bytes;
    uint8_t *p = calloc(1, 8 + header_bytes + n);
    memcpy(p, &len, 8);
    memcpy(p + 8, header, header_bytes);
    *bytes = 8 + header_bytes + n;
    return p;
}

static void refused(const void *p, size_t bytes, const char *why)
{
    dt_st *st = NULL;
    dt_err e = { 0 };
    assert_int_equal(dt_st_open_mem(&st, p, bytes, "mem.st", &e), DT_EDATA);
    assert_null(st);
    if (strncmp(e.msg, "mem.st: ", 8) || !strstr(e.msg, why))
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void round_trip(void **state)
{
    (void)state;
    float a[6] = { 1, 2, 3, 4, 5, 6 };
    uint16_t b[3] = { 7, 8, 9 };
    int64_t c = -5;
    const dt_st_entry e[] = {
        { .name = "layer.0 \"quoted\" \xc3\xa9", .dtype = DT_F32, .dims = DT_DIMS(2, 3), .data = a },
        { .name = "h", .dtype = DT_BF16, .dims = DT_DIMS(3), .data = b },
        { .name = "empty", .dtype = DT_F16, .dims = DT_DIMS(4, 0), .data = NULL },
        { .name = "scalar", .dtype = DT_I64, .dims = { 0 }, .data = &c },
    };
    const dt_st_kv meta[] = { { "format", "pt" }, { "note", "line\n\"two\"" }, { NULL, NULL } };
    assert_int_equal(dt_st_write("x.safetensors", e, 4, meta, NULL), 0);
    dt_st *st;
    dt_err err = { 0 };
    assert_int_equal(dt_st_open(&st, "x.safetensors", &err), 0);
    assert_int_equal(dt_st_count(st), 4);
    assert_string_equal(dt_st_meta(st, "note"), meta[1].value);
    assert_null(dt_st_meta(st, "absent"));
    for (int i = 0; i < 4; i++) {
        const dt_st_entry *g = dt_st_find(st, e[i].name);
        assert_non_null(g);
        assert_int_equal(g->dtype, e[i].dtype);
        assert_int_equal(g->dims.nd, e[i].dims.nd);
        assert_memory_equal(g->dims.d, e[i].dims.d, sizeof(int64_t) * (size_t)g->dims.nd);
        assert_int_equal(g->bytes, (size_t)dt_numel(g->dims) * dt_dtype_size(g->dtype));
        if (g->bytes)
            assert_memory_equal(g->data, e[i].data, g->bytes);
        assert_string_equal(g->file, "x.safetensors");
    }
    assert_string_equal(dt_st_at(st, 0)->name, e[0].name);
    assert_int_equal((uintptr_t)dt_st_at(st, 0)->data % 64, 0);
    assert_null(dt_st_find(st, "layer.0"));

    void *p;
    size_t n, m;
    char *q;
    assert_int_equal(dt_st_pack(&p, &n, e, 4, meta, NULL), 0);
    assert_int_equal(dt_file_read(&q, &m, "x.safetensors", 1 << 20, NULL), 0);
    assert_int_equal(n, m);
    assert_memory_equal(p, q, n);
    dt_st_close(&st);
    assert_null(st);
    dt_st_close(&st);
    free(p);
    free(q);
}

static void rows(void **state)
{
    (void)state;
    float a[6] = { 1, 2, 3, 4, 5, 6 };
    dt_st_entry e = { .name = "w", .dtype = DT_F32, .dims = DT_DIMS(3, 2), .data = a, .bytes = 24, .file = "f" };
    assert_int_equal(dt_st_rows(&e, 1, 2, NULL), 0);
    assert_true(e.data == a + 2 && e.bytes == 16 && e.dims.d[0] == 2);
    assert_int_equal(dt_st_rows(&e, 1, 2, NULL), DT_EDATA);
    assert_int_equal(dt_st_rows(&e, INT64_MAX, INT64_MAX, NULL), DT_EDATA);
    assert_int_equal(dt_st_rows(&e, -1, 1, NULL), DT_EDATA);
}

#define T(type, shape, off) "{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" off "}"

static void malformed(void **state)
{
    (void)state;
    static const struct { const char *header; size_t data; const char *why; } bad[] = {
        { "", 0, "not a JSON object" },
        { "[]", 0, "not a JSON object" },
        { "{\"a\":", 0, "not a JSON object" },
        { "{} {}", 0, "not a JSON object" },
        { "{\"a\":1}", 0, "'a' is not described" },
        { "{\"a\":{}}", 0, "'a' has no dtype" },
        { "{\"a\":" T("F8_E4M3", "[4]", "[0,4]") "}", 4, "'F8_E4M3', which is not supported" },
        { "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "'a' has no shape" },
        { "{\"a\":" T("U8", "[1.5]", "[0,1]") "}", 1, "not a whole number" },
        { "{\"a\":" T("U8", "[-1]", "[0,1]") "}", 1, "not a whole number" },
        { "{\"a\":" T("U8", "[\"1\"]", "[0,1]") "}", 1, "not a whole number" },
        { "{\"a\":" T("U8", "[1e300]", "[0,1]") "}", 1, "not a whole number" },
        { "{\"a\":" T("U8", "[1,1,1,1,1,1,1]", "[0,1]") "}", 1, "more than 6 dimensions" },
        { "{\"a\":" T("U8", "[4]", "[0]") "}", 4, "offsets outside" },
        { "{\"a\":" T("U8", "[4]", "{}") "}", 4, "offsets outside" },
        { "{\"a\":" T("U8", "[4]", "[0,5]") "}", 4, "offsets outside" },
        { "{\"a\":" T("U8", "[4]", "[-4,0]") "}", 4, "offsets outside" },
        { "{\"a\":" T("U8", "[4]", "[4,0]") "}", 4, "offsets outside" },
        { "{\"a\":" T("U8", "[4]", "[9007199254740992,9007199254740996]") "}", 4, "offsets outside" },
        { "{\"a\":" T("F32", "[4]", "[0,4]") "}", 4, "asks for another number" },
        { "{\"a\":" T("U8", "[3]", "[0,4]") "}", 4, "asks for another number" },
        /* 2^32 * 2^32 = 2^64, which is 0 to who does not look; the same behind a zero */
        { "{\"a\":" T("U8", "[4294967296,4294967296]", "[0,0]") "}", 0, "asks for another number" },
        { "{\"a\":" T("U8", "[4294967296,4294967296,0]", "[0,0]") "}", 0, "asks for another number" },
        { "{\"a\":" T("U8", "[2]", "[0,2]") ",\"b\":" T("U8", "[2]", "[1,3]") "}", 3, "'b' overlaps" },
        { "{\"a\":" T("U8", "[2]", "[0,2]") ",\"b\":" T("U8", "[2]", "[0,2]") "}", 2, "overlaps" },
        { "{\"a\":" T("U8", "[2]", "[0,2]") ",\"b\":" T("U8", "[1]", "[3,4]") "}", 4, "'b' leaves a gap" },
        { "{\"a\":" T("U8", "[2]", "[0,2]") "}", 5, "3 bytes after the last tensor" },
        { "{\"a\":" T("U8", "[1]", "[0,1]") ",\"a\":" T("U8", "[1]", "[1,2]") "}", 2, "'a' is there twice" },
        { "{\"__metadata__\":[]}", 0, "__metadata__ is not an object" },
        { "{\"__metadata__\":{\"k\":1}}", 0, "holds 'k', which is not a string" },
        { "{\"\xff\xfe\":" T("U8", "[1]", "[0,1]") "}", 1, "not valid UTF-8" },
        { "{\"\xc0\xaf\":" T("U8", "[1]", "[0,1]") "}", 1, "not valid UTF-8" },
        { "{\"\xed\xa0\x80\":" T("U8", "[1]", "[0,1]") "}", 1, "not valid UTF-8" },
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        size_t n;
        uint8_t *p = make(bad[i].header, strlen(bad[i].header), bad[i].data, &n);
        refused(p, n, bad[i].why);
        free(p);
    }
    size_t n;
    uint8_t *p = make("{\"a\0\":{}}", 9, 0, &n);
    refused(p, n, "not valid UTF-8");
    free(p);
}

static void truncated(void **state)
{
    (void)state;
    float a[6] = { 1, 2, 3, 4, 5, 6 };
    const dt_st_entry e = { .name = "a", .dtype = DT_F32, .dims = DT_DIMS(2, 3), .data = a };
    void *p;
    size_t n;
    assert_int_equal(dt_st_pack(&p, &n, &e, 1, NULL, NULL), 0);
    for (size_t k = 0; k < n; k++) {                /* in a block of its own size, for the sanitizer */
        uint8_t *q = malloc(k ? k : 1);
        memcpy(q, p, k);
        refused(q, k, "");
        free(q);
    }
    for (int bit = 0; bit < 64; bit++) {            /* header lengths from 1 byte off to 2^63 */
        uint8_t *q = malloc(n);
        memcpy(q, p, n);
        q[bit / 8] ^= (uint8_t)(1 << bit % 8);
        dt_st *st = NULL;
        dt_err err = { 0 };
        assert_int_equal(dt_st_open_mem(&st, q, n, "mem.st", &err), DT_EDATA);
        free(q);
    }
    uint64_t huge = 100000001;
    memcpy(p, &huge, 8);
    refused(p, n, "would be 100000001 bytes");
    free(p);
}

static void bad_writes(void **state)
{
    (void)state;
    float a = 1;
    dt_st_entry e[] = { { .name = "a", .dtype = DT_F32, .dims = DT_DIMS(1), .data = &a },
                        { .name = "a", .dtype = DT_F32, .dims = DT_DIMS(1), .data = &a } };
    dt_err err = { 0 };
    assert_int_equal(dt_st_write("y.safetensors", e, 2, NULL, &err), DT_EFAIL);
    assert_non_null(strstr(err.msg, "'a' is given twice"));
    e[1].name = "\xff";
    assert_int_equal(dt_st_write("y.safetensors", e, 2, NULL, &err), DT_EFAIL);
    assert_false(dt_exists("y.safetensors"));
    assert_int_equal(dt_st_write("no/such/y.safetensors", e, 1, NULL, &err), DT_EIO);
    if (dt_exists("/dev/full"))
        assert_int_equal(dt_st_open(&(dt_st *){ NULL }, "/dev/full", &err), DT_EDATA);
}

static void write_shard(const char *path, const char *n1, const char *n2)
{
    float a[2] = { 1, 2 };
    const dt_st_entry e[] = { { .name = n1, .dtype = DT_F32, .dims = DT_DIMS(2), .data = a },
                              { .name = n2, .dtype = DT_F32, .dims = DT_DIMS(1), .data = a } };
    assert_int_equal(dt_st_write(path, e, 2, NULL, NULL), 0);
}

static const char *const stems[] = { "diffusion_pytorch_model", "model", NULL };

static void index_is(const char *text)
{
    assert_int_equal(dt_file_write("d/model.safetensors.index.json", text, strlen(text), NULL), 0);
}

static void index_refused(const char *text, const char *why)
{
    dt_st *st = NULL;
    dt_err e = { 0 };
    index_is(text);
    assert_int_equal(dt_st_open_folder(&st, "d", stems, &e), DT_EDATA);
    assert_null(st);
    if (!strstr(e.msg, why))
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void shards(void **state)
{
    (void)state;
    dt_st *st = NULL;
    dt_err e = { 0 };
    assert_int_equal(dt_mkdirs("d", NULL), 0);
    assert_int_equal(dt_st_open_folder(&st, "d", stems, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, "d: holds neither diffusion_pytorch_model.safetensors"));
    write_shard("d/m1.safetensors", "a", "b");
    write_shard("d/m2.safetensors", "c", "e");
    index_is("{\"metadata\":{},\"weight_map\":{\"c\":\"m2.safetensors\",\"a\":\"m1.safetensors\",\"b\":\"m1.safetensors\"}}");
    assert_int_equal(dt_st_open_folder(&st, "d", stems, &e), 0);
    assert_int_equal(dt_st_count(st), 4);
    assert_string_equal(dt_st_find(st, "c")->file, "d/m2.safetensors");
    dt_st_close(&st);

    index_refused("{\"weight_map\":{\"a\":\"m1.safetensors\",\"c\":\"m3.safetensors\"}}",
                  "d/m3.safetensors: missing, but named by d/model");
    index_refused("{\"weight_map\":{\"a\":\"m1.safetensors\",\"z\":\"m2.safetensors\"}}",
                  "'z' is not in m2.safetensors");
    index_refused("{\"weight_map\":{\"a\":\"m1.safetensors\",\"b\":\"m2.safetensors\"}}",
                  "'b' is not in m2.safetensors");
    index_refused("{\"weight_map\":{\"a\":\"../d/m1.safetensors\"}}", "no file of this folder");
    index_refused("{\"weight_map\":{\"a\":7}}", "no file of this folder");
    index_refused("{\"weight_map\":{}}", "'weight_map' must be");
    index_refused("{}", "'weight_map' must be");
    index_refused("{", "not valid JSON");
    write_shard("d/m2.safetensors", "c", "a");
    index_refused("{\"weight_map\":{\"a\":\"m1.safetensors\",\"c\":\"m2.safetensors\"}}",
                  "'a' is there twice, also in d/m1");

    assert_int_equal(rename("d/m1.safetensors", "d/diffusion_pytorch_model.safetensors"), 0);
    assert_int_equal(dt_st_open_folder(&st, "d", stems, &e), 0);    /* the first stem wins */
    assert_int_equal(dt_st_count(st), 2);
    dt_st_close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(round_trip, enter, leave), cmocka_unit_test(rows), cmocka_unit_test(malformed),
        cmocka_unit_test(truncated), cmocka_unit_test_setup_teardown(bad_writes, enter, leave),
        cmocka_unit_test_setup_teardown(shards, enter, leave),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("tensor/safetensors", tests, NULL, NULL);
}
