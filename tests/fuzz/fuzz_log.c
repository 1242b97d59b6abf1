/* What a run left of itself: metrics.ndjson, which is cut where a resumed run goes on and read for charts, and run.json,
 * which gets one run more. */
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include "tests/fuzz/fuzz.h"
#include "train/manifest.h"
#include "train/metrics.h"

static void lines(const char *path)
{
    struct stat st = { 0 };
    dt_err err = { 0 };
    double *step = NULL, *value = NULL;
    int64_t n = 0, offset = -1;
    dt_metrics *m = NULL;
    stat(path, &st);
    if (dt_metrics_find(&offset, path, 3, &err) == 0) {
        fuzz_check(offset >= 0 && offset <= st.st_size);
        if (st.st_size)
            fuzz_check(dt_metrics_open(&m, path, offset, &err) == 0 && dt_metrics_offset(m) == offset);
        dt_metrics_close(&m, &err);
    }
    if (dt_metrics_read(&step, &value, &n, path, "loss", &err) == 0)
        for (int64_t i = 0; i < n; i++)
            fuzz_check(!isnan(step[i]));
    else
        fuzz_check(*err.msg);
    free(step);
    free(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "metrics.ndjson", "run.json" };
    dt_err err = { 0 };
    fuzz_files(name, 2, data, size);
    lines(fuzz_path("metrics.ndjson"));
    for (int i = 0; i < 2; i++) {
        dt_manifest *m = dt_manifest_new(fuzz_dir());
        char *text = cJSON_PrintUnformatted(dt_manifest_result(m));
        fuzz_check(dt_manifest_write(m, &err) == 0);
        free(text);
        dt_manifest_free(&m);
    }
    return 0;
}
