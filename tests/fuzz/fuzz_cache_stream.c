/* A cache that comes as one tar stream (--latents -).  What was received whole can be opened. */
#include <string.h>
#include "base/file.h"
#include "data/cache_write.h"
#include "tests/fuzz/fuzz.h"

enum { BLOCK = 512, SIZE_AT = 124, SUM_AT = 148, MAGIC_AT = 257 };

/* Puts right the sum of every header that looks like one, so that mutations get past it. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, max_size);
    for (size_t at = 0; seed % 8 && at + BLOCK <= size; at += BLOCK) {
        uint8_t *h = data + at;
        unsigned sum = 0;
        if (memcmp(h + MAGIC_AT, "ustar", 5))
            continue;
        memset(h + SUM_AT, ' ', 8);
        for (int i = 0; i < BLOCK; i++)
            sum += h[i];
        snprintf((char *)h + SUM_AT, 8, "%06o", sum);
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dt_cache *c = NULL;
    dt_err err = { 0 };
    dt_rmtree(fuzz_path("cache"), NULL);
    fuzz_put("stream", data, size);
    FILE *f = fopen(fuzz_path("stream"), "r");
    fuzz_check(f);
    int rc = dt_cache_receive(f, fuzz_path("cache"), &err);
    fclose(f);
    fuzz_check(rc == 0 || *err.msg);
    if (rc == 0)
        fuzz_check(dt_cache_open(&c, fuzz_path("cache"), &err) == 0 && dt_exists(fuzz_path("cache/plan.ndjson")));
    dt_cache_close(&c);
    return 0;
}
