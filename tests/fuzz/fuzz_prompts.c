/* A file of prompts for dt-sample. */
#include <string.h>
#include "data/prompts.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dt_prompts p = { 0 };
    dt_err err = { 0 };
    fuzz_put("prompts", data, size);
    if (dt_prompts_read(&p, fuzz_path("prompts"), &err) < 0)
        fuzz_check(*err.msg);
    for (int64_t i = 0; i < p.n; i++) {
        fuzz_touch(p.v[i].text, strlen(p.v[i].text));
        fuzz_check(p.v[i].seed >= -1 && p.v[i].w_px >= 0 && p.v[i].h_px >= 0);
    }
    dt_prompts_release(&p);
    return 0;
}
