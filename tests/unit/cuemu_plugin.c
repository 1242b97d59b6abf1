/* kernels/cuda.cu and flat.cu under the emulation: opening, memory, flat loops against the CPU,
 * a plan with capture and replay, and the name of the op that failed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/rng.h"
#include "kernels/ops.h"

dt_device *dt_cuda_open(int ordinal, int abi, dt_err *err);

enum { N = 5000 };                  /* not a multiple of anything */

static dt_device *cpu, *gpu;

static int open_both(void **state)
{
    (void)state;
    dt_err err;
    gpu = dt_cuda_open(0, DT_DEVICE_ABI, &err);
    return dt_device_open(&cpu, "cpu", &err) < 0 || !gpu;
}

static int close_both(void **state)
{
    (void)state;
    dt_device_close(&cpu);
    dt_device_close(&gpu);
    return 0;
}

static float *draw(uint32_t item)
{
    float *x = malloc(N * sizeof(*x));
    dt_rng_fill_normal(x, N, 1, DT_RNG_TEST, 0, item);
    return x;
}

static void *to_device(dt_device *d, const void *x, int64_t bytes)
{
    void *p = d->alloc(d, bytes);
    d->upload(d, p, x, bytes);
    return p;
}

/* Downloads and frees. */
static void from_device(dt_device *d, void *x, void *p, int64_t bytes)
{
    d->download(d, x, p, bytes);
    d->free(d, p);
}

static void near(const float *a, const float *b, double tol)
{
    double diff = 0, size = 0;
    for (int i = 0; i < N; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    assert_true(sqrt(diff) <= tol * sqrt(size));
}

static void test_open(void **state)
{
    (void)state;
    dt_err err = { 0 };
    assert_null(dt_cuda_open(0, DT_DEVICE_ABI + 1, &err));
    assert_non_null(strstr(err.msg, "another version"));
    assert_null(dt_cuda_open(7, DT_DEVICE_ABI, &err));
    assert_non_null(strstr(err.msg, "invalid device"));
    assert_int_equal(gpu->kind, DT_CUDA);
    assert_null(gpu->alloc(gpu, (int64_t)1 << 60));
    assert_int_equal(gpu->sync(gpu, &err), 0);
}

static void test_zero_and_copy(void **state)
{
    (void)state;
    float *x = draw(1), y[N];
    void *p = to_device(gpu, x, sizeof(y));
    gpu->zero(gpu, (char *)p + 8, 8);
    from_device(gpu, y, p, sizeof(y));
    x[2] = x[3] = 0;
    assert_memory_equal(x, y, sizeof(y));
    free(x);
}

/* w, m, v after three steps, the last without a gradient */
static void adamw(dt_device *d, float *out[3])
{
    float *w = draw(1), *g = draw(2), *zero = calloc(N, sizeof(*zero));
    int64_t bytes = N * (int64_t)sizeof(float);
    void *pw = to_device(d, w, bytes), *pm = to_device(d, zero, bytes),
         *pv = to_device(d, zero, bytes), *pg = to_device(d, g, bytes);
    for (int k = 1; k <= 3; k++) {
        dt_adamw a = { .lr = 1e-2,
                       .beta1 = 0.9,
                       .beta2 = 0.999,
                       .eps = 1e-8,
                       .weight_decay = 0.1,
                       .grad_scale = 0.5,
                       .bias1 = 1 - pow(0.9, k),
                       .bias2 = 1 - pow(0.999, k) };
        d->flat->adamw(d, pw, pm, pv, k < 3 ? pg : NULL, N, &a);
    }
    d->free(d, pg);
    from_device(d, out[0], pw, bytes);
    from_device(d, out[1], pm, bytes);
    from_device(d, out[2], pv, bytes);
    free(w);
    free(g);
    free(zero);
}

static void test_adamw(void **state)
{
    (void)state;
    static float a[3][N], b[3][N];
    adamw(cpu, (float *[]){ a[0], a[1], a[2] });
    adamw(gpu, (float *[]){ b[0], b[1], b[2] });
    for (int i = 0; i < 3; i++)
        near(b[i], a[i], 1e-6);
}

static void test_sumsq(void **state)
{
    (void)state;
    float *x = draw(1);
    void *p = to_device(gpu, x, N * sizeof(*x));
    double want = cpu->flat->sumsq(cpu, x, N), got = gpu->flat->sumsq(gpu, p, N);
    assert_true(fabs(got - want) <= 1e-12 * want);
    assert_true(gpu->flat->sumsq(gpu, p, N) == got);
    assert_true(gpu->flat->sumsq(gpu, p, 0) == 0);
    x[N - 1] = NAN;
    gpu->upload(gpu, p, x, N * sizeof(*x));
    assert_true(isnan(gpu->flat->sumsq(gpu, p, N)));
    gpu->free(gpu, p);
    free(x);
}

static void ema(dt_device *d, float *out)
{
    float *e = draw(1), *w = draw(2);
    void *pe = to_device(d, e, N * sizeof(*e)), *pw = to_device(d, w, N * sizeof(*w));
    d->flat->ema(d, pe, pw, N, 0.99);
    d->free(d, pw);
    from_device(d, out, pe, N * sizeof(*e));
    free(e);
    free(w);
}

static void test_ema(void **state)
{
    (void)state;
    static float a[N], b[N];
    ema(cpu, a);
    ema(gpu, b);
    near(b, a, 1e-6);
}

static void test_convert(void **state)
{
    (void)state;
    static uint16_t want[N], got[N];
    float *x = draw(1);
    void *p = to_device(gpu, x, N * sizeof(*x)), *h = gpu->alloc(gpu, sizeof(got));
    dt_convert(want, DT_BF16, x, DT_F32, N);
    gpu->flat->convert(gpu, h, DT_BF16, p, DT_F32, N);
    gpu->download(gpu, got, h, sizeof(got));
    assert_memory_equal(got, want, sizeof(got));
    gpu->flat->convert(gpu, h, DT_F16, p, DT_F32, N);
    dt_err err;
    assert_int_equal(gpu->sync(gpu, &err), DT_EFAIL);
    assert_non_null(strstr(err.msg, "convert"));
    assert_int_equal(gpu->sync(gpu, &err), 0);      /* told once */
    gpu->free(gpu, p);
    gpu->free(gpu, h);
    free(x);
}

/* Three runs of y = x + silu(x) / 2 with other x each time: plain, captured, replayed. */
static void test_plan(void **state)
{
    (void)state;
    dt_err err = { 0 };
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(N));
    dt_tensor *y = dt_output(g, dt_add(g, x, dt_affine(g, dt_silu(g, x), 0.5, 0)), "y");
    dt_plan *p = NULL;
    assert_int_equal(dt_plan_new(&p, g, gpu, &err), 0);
    void *arena = gpu->alloc(gpu, dt_plan_bytes(p));
    dt_plan_bind(p, arena);
    for (uint32_t run = 0; run < 4; run++) {
        static float got[N], want[N];
        float *v = draw(run);
        dt_plan_write(p, x, v);
        assert_int_equal(dt_plan_run(p, &err), 0);
        dt_plan_read(p, y, got);
        for (int i = 0; i < N; i++)
            want[i] = v[i] + 0.5f * v[i] / (1.0f + expf(-v[i]));
        near(got, want, 1e-6);
        free(v);
    }
    dt_plan_free(&p);
    gpu->free(gpu, arena);
    dt_graph_free(&g);
}

static void test_not_ported(void **state)
{
    (void)state;
    dt_err err = { 0 };
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(4));
    dt_output(g, dt_cast(g, x, DT_F16), "y");
    dt_plan *p = NULL;
    assert_int_equal(dt_plan_new(&p, g, gpu, &err), DT_EFAIL);
    assert_non_null(strstr(err.msg, "cast"));
    assert_non_null(strstr(err.msg, "not ported"));
    dt_graph_free(&g);
}

/* With DT_SYNC=1 every op is waited for, so nothing is captured.  The first error is kept with
 * its place until dt_device.sync. */
static void test_sync_each(void **state)
{
    (void)state;
    dt_err err = { 0 };
    setenv("DT_SYNC", "1", 1);
    dt_device *d = dt_cuda_open(0, DT_DEVICE_ABI, &err);
    unsetenv("DT_SYNC");
    assert_non_null(d);
    assert_null(d->capture);
    dt_graph *g = dt_graph_new(DT_F32);
    const dt_node *silu = dt_silu(g, dt_input(g, "x", DT_F32, DT_DIMS(2, 300)))->node;
    void *px = d->alloc(d, 2400), *py = d->alloc(d, 2400);
    dt_kernel k = *d->kernel(d, silu->op);
    dt_prep prep = { .dev = d, .err = &err };
    assert_int_equal(k.prepare(silu, &prep), 0);
    dt_run r = { .dev = d, .in = (void *[]){ px }, .out = (void *[]){ py }, .state = prep.state };
    k.run(silu, &r);
    assert_int_equal(d->sync(d, &err), 0);
    d->free(d, px);
    d->free(d, px);                                 /* once too often */
    k.run(silu,
          &(dt_run){
              .dev = d, .in = (void *[]){ py }, .out = (void *[]){ py }, .state = prep.state });
    assert_int_equal(d->sync(d, &err), DT_EFAIL);
    assert_non_null(strstr(err.msg, "free"));
    d->free(d, py);
    dt_graph_free(&g);
    dt_device_close(&d);
}

/* As in graph/cuda_plugin.h, which is C++. */
struct dt_cuda_op {
    const char *name;
    void    (*launch)(const dt_node *n, const dt_run *r);
    int64_t (*workspace)(const dt_node *n);
};
extern const struct dt_cuda_op dt_cuda_pointwise[], dt_cuda_broadcast[], dt_cuda_norm[], dt_cuda_groupnorm[];

/* A kernel under a name that no op has is never run, and no comparison misses it. */
static void test_names(void **state)
{
    const struct dt_cuda_op *const families[] = { dt_cuda_pointwise, dt_cuda_broadcast, dt_cuda_norm, dt_cuda_groupnorm };
    (void)state;
    for (size_t f = 0; f < sizeof(families) / sizeof(families[0]); f++)
        for (const struct dt_cuda_op *op = families[f]; op->name; op++) {
            int k = 0;
            while (dt_ops[k] && strcmp(dt_ops[k]->name, op->name))
                k++;
            if (!dt_ops[k])
                fail_msg("no op is called '%s'", op->name);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),      cmocka_unit_test(test_zero_and_copy),
        cmocka_unit_test(test_adamw),     cmocka_unit_test(test_sumsq),
        cmocka_unit_test(test_ema),       cmocka_unit_test(test_convert),
        cmocka_unit_test(test_plan),      cmocka_unit_test(test_not_ported),
        cmocka_unit_test(test_sync_each), cmocka_unit_test(test_names),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_both, close_both);
}
