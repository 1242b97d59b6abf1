/* dump: what --dump_steps writes of a step is what the run did in it: its loss, learning rate and gradient norm as in
 * metrics.ndjson, and the weights of the checkpoint that was saved after it.  (tests/outsider.py computes the step again.) */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/mem.h"
#include "tensor/safetensors.h"
#include "tests/unit/scratch.h"
#include "train/metrics.h"

enum { STEPS = 2, MICROS = 2 };

static char *dir;

static int train(void **state)
{
    const char *b = getenv("B");
    (void)state;
    if (!(dir = scratch_new()))
        return -1;
    char *cmd =
        dt_sprintf("OMP_NUM_THREADS=1 %s/bin/dt-train lora --pretrained_model_name_or_path tests/golden/tiny-flux "
                   "--train_data_dir examples/pictures --train_data_meta examples/pictures/metadata.json --max_train_samples 8 "
                   "--image_sample_size 32 --train_batch_size 2 --gradient_accumulation_steps %d --max_train_steps %d --rank 2 "
                   "--report_to none --dump_steps %d --quiet --output_dir %s", b ? b : "build", MICROS, STEPS, STEPS,
                   dir);
    int rc = system(cmd);
    free(cmd);
    return rc;
}

static int clean(void **state)
{
    (void)state;
    return scratch_end(dir);
}

static dt_st *open_st(const char *name)
{
    dt_st *st = NULL;
    char *path = dt_path_join(dir, name);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    free(path);
    return st;
}

static double scalar(const dt_st *st, const char *name)
{
    const dt_st_entry *e = dt_st_find(st, name);
    double x = 0;
    float f;
    assert_non_null(e);
    if (e->dtype == DT_F64) {
        memcpy(&x, e->data, sizeof(x));
        return x;
    }
    assert_true(e->dtype == DT_F32 && e->bytes == sizeof(f));
    memcpy(&f, e->data, sizeof(f));
    return (double)f;
}

/* Of step STEPS, the last line. */
static double logged(const char *name)
{
    double *step, *value;
    int64_t n;
    char *path = dt_path_join(dir, "metrics.ndjson");
    assert_int_equal(dt_metrics_read(&step, &value, &n, path, name, NULL), 0);
    assert_int_equal(n, STEPS);
    double x = value[n - 1];
    free(step);
    free(value);
    free(path);
    return x;
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-6 * fabs(b); }

static void scalars(void **unused)
{
    (void)unused;
    dt_st *st = open_st("dump/step-000002.safetensors");
    double loss = 0;
    for (int m = 0; m < MICROS; m++) {
        char name[32];
        snprintf(name, sizeof(name), "micro.%d.loss", m);
        loss += scalar(st, name) / MICROS;
        snprintf(name, sizeof(name), "micro.%d.latents", m);
        assert_non_null(dt_st_find(st, name));
    }
    assert_true(near(loss, logged("loss")));
    assert_true(near(scalar(st, "lr"), logged("lr")));
    assert_true(near(scalar(st, "grad_norm"), logged("grad_norm")));
    dt_st_close(&st);
}

/* Every weight of the checkpoint, bit for bit; and its gradient, of which all together have the norm. */
static void gradients_and_weights(void **unused)
{
    (void)unused;
    dt_st *st = open_st("dump/step-000002.safetensors"), *saved = open_st("checkpoint-2/lora.master.safetensors");
    double sum = 0;
    assert_true(dt_st_count(saved) > 0);
    for (int64_t i = 0; i < dt_st_count(saved); i++) {
        const dt_st_entry *w = dt_st_at(saved, i), *e;
        char *weight = dt_sprintf("weight.lora.%s", w->name), *grad = dt_sprintf("grad.lora.%s", w->name);
        e = dt_st_find(st, weight);
        assert_non_null(e);
        assert_int_equal(e->bytes, w->bytes);
        assert_memory_equal(e->data, w->data, w->bytes);
        e = dt_st_find(st, grad);
        assert_non_null(e);
        assert_int_equal(e->bytes, w->bytes);
        for (size_t k = 0; k < e->bytes / sizeof(float); k++)
            sum += (double)((const float *)e->data)[k] * ((const float *)e->data)[k];
        free(weight);
        free(grad);
    }
    assert_true(near(sqrt(sum), logged("grad_norm")));
    dt_st_close(&saved);
    dt_st_close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(scalars), cmocka_unit_test(gradients_and_weights) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, train, clean);
}
