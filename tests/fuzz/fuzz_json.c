/* JSON in memory: what is accepted prints as a line that reads back as the same. */
#include <string.h>
#include "base/json.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = fuzz_text(data, size), *line, *again;
    cJSON *o = NULL, *p = NULL;
    dt_err err = { 0 };
    int64_t i, v[3];
    double d;
    int n;
    if (dt_json_parse(&o, text, size, "input", &err) == 0) {
        line = dt_json_line(o);
        fuzz_check(dt_json_parse(&p, line, strlen(line), "line", &err) == 0);
        again = dt_json_line(p);
        fuzz_check(!strcmp(line, again));
        dt_json_int_or(&i, o, "i", 3, -5, 1 << 20, "input", &err);
        dt_json_num_or(&d, o, "d", 1, "input", &err);
        if (dt_json_ints_or(v, &n, 3, o, "v", "input", &err) == 0)
            fuzz_touch(v, (size_t)n * sizeof(*v));
        free(line);
        free(again);
    }
    cJSON_Delete(o);
    cJSON_Delete(p);
    free(text);
    return 0;
}
