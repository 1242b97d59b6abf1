/* validate: the samples of a run, from a job that has just what they need. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/file.h"
#include "data/media.h"
#include "train/run_int.h"
#include "tests/unit/scratch.h"

static char *dir;
static volatile int stop;

static const dt_ui ui = { .stop = &stop };      /* says nothing */

/* --- a job: tiny-flux, its transformer in training --- */

static void open_job(dt_job *j, dt_train_opts *o)
{
    dt_err err = { 0 };
    dt_train_opts_init(o, DT_METHOD_FULL);
    o->output_dir = dir;
    o->model = "tests/golden/tiny-flux";
    o->validation_size = 39;            /* rounded down to 36 */
    o->validation_inference_steps = 2;
    dt_strs_add(&o->validation_prompts, "a red cat");
    dt_strs_add(&o->validation_prompts, "a dog");
    *j = (dt_job){ .o = o, .kind = dt_run_kind(DT_METHOD_FULL), .ui = &ui, .act = DT_F32,
                   .info = { .seed = 7, .train_batch_size = 1 } };
    assert_int_equal(dt_device_open(&j->dev, "cpu", NULL), 0);
    assert_int_equal(dt_flux_pipe_open(&j->pipe, o->model, 16, NULL), 0);
    dt_params *dit = j->pipe->part[DT_FLUX_DIT];
    for (int64_t i = 0; i < dit->n; i++)
        dit->v[i]->trainable = true;
    j->optim.set[j->optim.nset++] = dit;
    if (dt_validator_new(&j->val, j, &err) < 0)
        fail_msg("%s", err.msg);
    assert_int_equal(dt_flux_pipe_load(j->pipe, DT_FLUX_DIT, j->dev, DT_F32, DT_PARAMS_EMA, NULL), 0);
    dt_mem_plan plan = { 0 };
    dt_validator_memory(j->val, &plan, dt_mem_add(&plan, "training", 1));
    assert_int_equal(plan.n, 2);
    assert_true(plan.at[0].kind[DT_MEM_WEIGHTS] > 0 && plan.at[0].kind[DT_MEM_PICTURES] > 0 &&
                plan.at[1].kind[DT_MEM_WEIGHTS] > 0);
    assert_int_equal(plan.at[0].kind[DT_MEM_ACTIVATIONS], dt_validator_bytes(j->val));
    assert_int_equal(dt_validator_encode(j->val, NULL), 0);
    j->arena = j->dev->alloc(j->dev, dt_validator_bytes(j->val));
    assert_int_equal(dt_validator_ready(j->val, j->arena, NULL), 0);
}

static void close_job(dt_job *j, dt_train_opts *o)
{
    dt_validator_free(&j->val);
    j->dev->free(j->dev, j->arena);
    dt_flux_pipe_close(&j->pipe);
    dt_device_close(&j->dev);
    dt_train_opts_release(o);
}

/* As if a step had been done. */
static void train(dt_job *j)
{
    dt_params *dit = j->pipe->part[DT_FLUX_DIT];
    for (int64_t i = 0; i < dit->n_train; i++)
        dit->master[i] *= 1.1f;
    dt_params_sync(dit);
}

static void run(dt_job *j, int64_t step)
{
    dt_err err = { 0 };
    if (dt_validator_run(j, step, &err) < 0)
        fail_msg("%s", err.msg);
}

/* --- its files --- */

static bool has(int64_t step, int prompt)
{
    char *path = dt_sprintf("%s/samples/step-%lld-prompt-%d.png", dir, (long long)step, prompt);
    bool yes = dt_exists(path);
    free(path);
    return yes;
}

static dt_hash picture(int64_t step, int prompt)
{
    dt_hash h;
    dt_image im = { 0 };
    char *path = dt_sprintf("%s/samples/step-%lld-prompt-%d.png", dir, (long long)step, prompt);
    assert_int_equal(dt_image_read(&im, path, NULL, NULL), 0);
    assert_true(im.w == 36 && im.h == 36);
    h = dt_hash_bytes(im.rgb, (size_t)(im.w * im.h * 3));
    dt_image_release(&im);
    free(path);
    return h;
}

static int sheet_height(void)
{
    dt_image_info info;
    char *path = dt_path_join(dir, "samples.png");
    assert_int_equal(dt_image_probe(&info, path, NULL, NULL), 0);
    free(path);
    return info.h;
}

#define same(a, b) (!strcmp((a).hex, (b).hex))

/* --- */

static void steps(void **unused)
{
    (void)unused;
    dt_job j;
    dt_train_opts o;
    open_job(&j, &o);
    j.optim.nset = 0;                   /* no EMA */
    run(&j, 0);
    int height = sheet_height();
    dt_hash a = picture(0, 0), b = picture(0, 1);
    assert_false(same(a, b));
    run(&j, 3);                         /* nothing has changed: neither do the pictures */
    assert_true(same(picture(3, 0), a) && same(picture(3, 1), b));
    assert_true(sheet_height() > height);
    train(&j);
    run(&j, 5);
    assert_false(same(picture(5, 0), a));
    close_job(&j, &o);

    open_job(&j, &o);                   /* a run that goes on from before step 5 */
    j.optim.nset = 0;
    run(&j, 4);
    assert_true(has(0, 0) && has(3, 1) && has(4, 0) && !has(5, 0) && !has(5, 1));
    assert_true(same(picture(4, 1), b));
    close_job(&j, &o);

    open_job(&j, &o);                   /* and one that begins anew */
    run(&j, 0);
    assert_true(has(0, 0) && has(0, 1) && !has(3, 0) && !has(4, 0));
    assert_int_equal(sheet_height(), height);
    close_job(&j, &o);
}

static void running_mean(void **unused)
{
    (void)unused;
    dt_job j;
    dt_train_opts o;
    open_job(&j, &o);
    dt_params *dit = j.pipe->part[DT_FLUX_DIT];
    size_t bytes = (size_t)dit->n_train * sizeof(float);
    run(&j, 0);
    dt_hash a = picture(0, 0), ema = dt_hash_bytes(dit->ema, bytes);
    train(&j);
    dt_hash trained = dt_hash_bytes(dit->master, bytes);
    run(&j, 1);
    assert_true(same(picture(1, 0), a));
    assert_true(same(dt_hash_bytes(dit->master, bytes), trained));
    assert_true(same(dt_hash_bytes(dit->ema, bytes), ema));
    close_job(&j, &o);
}

static void stopping(void **unused)
{
    (void)unused;
    dt_job j;
    dt_train_opts o;
    dt_err err = { 0 };
    open_job(&j, &o);
    stop = 15;
    assert_int_equal(dt_validator_run(&j, 2, &err), DT_ESIGNAL);
    assert_false(has(2, 0));
    stop = 0;
    run(&j, 2);
    assert_true(has(2, 0));
    close_job(&j, &o);
}

/* Only plans, for the memory plan of a run that is not going to happen. */
static void planning(void **unused)
{
    (void)unused;
    dt_job j;
    dt_train_opts o;
    const double *x, *y;
    int64_t n = 1;
    open_job(&j, &o);
    int64_t bytes = dt_validator_bytes(j.val);
    dt_validator_free(&j.val);
    o.memory_plan = true;
    assert_int_equal(dt_validator_new(&j.val, &j, NULL), 0);
    assert_int_equal(dt_validator_bytes(j.val), bytes);
    dt_validator_held(NULL, &x, &y, &n);
    assert_int_equal(n, 0);
    close_job(&j, &o);
}

static int enter(void **unused)
{
    (void)unused;
    return !(dir = scratch_new());
}

static int leave(void **unused)
{
    (void)unused;
    return scratch_end(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps),
        cmocka_unit_test(running_mean),
        cmocka_unit_test(stopping),
        cmocka_unit_test(planning),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, enter, leave);
}
