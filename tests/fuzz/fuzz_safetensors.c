/* A safetensors file in memory: tensors lie inside it, and what was read can be written and read again. */
#include <string.h>
#include "base/mem.h"
#include "tensor/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void copy_of(const dt_st *st)
{
    dt_err err = { 0 };
    dt_st *again = NULL;
    void *data = NULL;
    size_t bytes = 0;
    int64_t n = dt_st_count(st);
    dt_st_entry *e = dt_alloc((size_t)(n + 1) * sizeof(*e));
    for (int64_t i = 0; i < n; i++)
        e[i] = *dt_st_at(st, i);
    if (dt_st_pack(&data, &bytes, e, n, NULL, &err) == 0) {
        fuzz_check(dt_st_open_mem(&again, data, bytes, "copy", &err) == 0);
        fuzz_check(dt_st_count(again) == n);
        for (int64_t i = 0; i < n; i++) {
            const dt_st_entry *f = dt_st_find(again, e[i].name);
            fuzz_check(f && f->bytes == e[i].bytes && f->dims.nd == e[i].dims.nd);
            fuzz_check(!f->bytes || !memcmp(f->data, e[i].data, f->bytes));
        }
        dt_st_close(&again);
    }
    free(data);
    free(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dt_st *st = NULL;
    dt_err err = { 0 };
    if (dt_st_open_mem(&st, data, size, "input", &err) < 0) {
        fuzz_check(!st && err.code && *err.msg);
        return 0;
    }
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        dt_st_entry e = *dt_st_at(st, i);
        fuzz_check(dt_st_find(st, e.name) == dt_st_at(st, i));
        fuzz_check((const uint8_t *)e.data >= data && (const uint8_t *)e.data + e.bytes <= data + size);
        fuzz_touch(e.data, e.bytes);
        if (dt_st_rows(&e, 1, 1, &err) == 0)
            fuzz_touch(e.data, e.bytes);
    }
    dt_st_meta(st, "format");
    copy_of(st);
    dt_st_close(&st);
    return 0;
}
