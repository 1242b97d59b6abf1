/* fuse.c: what is fused and what must not be, the same results within rounding, no larger arena. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/tolerance.h"
#include "tests/unit/graph_net.h"

static dt_device *cpu;

static int open_cpu(void **state) { return net_open(&cpu, state); }

static int close_cpu(void **state) { return net_close(&cpu, state); }

static void start(running *r, dt_graph *g, bool fuse)
{
    if (fuse)
        unsetenv("DT_FUSE");
    else
        setenv("DT_FUSE", "0", 1);
    const char *bad = running_start(r, cpu, g);
    if (bad)
        fail_msg("%s", bad);
}

static void near(const float *a, const float *b, int64_t n, double tol)
{
    double diff = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    if (!(size > 0 && sqrt(diff) <= tol * sqrt(size)))
        fail_msg("off by %.2g, allowed %.2g", sqrt(diff / size), tol);
}

/* --- epilogues --- */

typedef struct activation {
    const char *name;
    dt_tensor *(*fn)(dt_graph *g, dt_tensor *x);
    const dt_op *op;
} activation;

static const activation activations[] = {
    { "silu", dt_silu, &dt_op_silu },
    { "gelu_tanh", dt_gelu_tanh, &dt_op_gelu_tanh },
    { "gelu_erf", dt_gelu_erf, &dt_op_gelu_erf },
    { "quick_gelu", dt_quick_gelu, &dt_op_quick_gelu },
};
enum { NACT = sizeof(activations) / sizeof(*activations), K = 48 };

enum maker { PLAIN, BIAS, BRANCH, GROUPNORM, NMAKER };

/* [2, 9, K], standard normal or nearly so */
static dt_tensor *made(dt_graph *g, enum maker how)
{
    dt_dtype t = dt_graph_dtype(g);
    dt_tensor *x = dt_input(g, "x", t, DT_DIMS(2, 9, K)), *b = dt_input(g, "b", t, DT_DIMS(K));
    if (how == GROUPNORM)
        return dt_groupnorm(g, x, dt_input(g, "scale", t, DT_DIMS(K)), b, 4, 1e-6);
    dt_tensor *w = dt_affine(g, dt_input(g, "w", t, DT_DIMS(K, K)), 1 / sqrt(K), 0);
    dt_tensor *y = dt_matmul_wt(g, x, w, how == PLAIN ? NULL : b);
    if (how == BRANCH)
        y = dt_matmul_add(g, y, dt_input(g, "down", t, DT_DIMS(2, 9, 4)), dt_input(g, "up", t, DT_DIMS(K, 4)), 0.5);
    return y;
}

static void one_epilogue(enum maker how, const activation *a, dt_dtype t)
{
    running r[2];
    float *y[2];
    int64_t n;
    for (int fuse = 0; fuse < 2; fuse++) {
        dt_graph *g = dt_graph_new(t);
        dt_output(g, a->fn(g, made(g, how)), "y");
        start(&r[fuse], g, fuse);
        running_once(&r[fuse]);
        y[fuse] = running_read(&r[fuse], "y", &n);
        assert_int_equal(running_count(&r[fuse], a->op, false), !fuse);
    }
    assert_int_equal(dt_plan_stat(r[1].plan)->nodes, dt_plan_stat(r[0].plan)->nodes - 1);
    assert_true(dt_plan_bytes(r[1].plan) <= dt_plan_bytes(r[0].plan));
    near(y[1], y[0], n, tol_op(t, K));
    for (int fuse = 0; fuse < 2; fuse++) {
        free(y[fuse]);
        running_stop(&r[fuse]);
    }
}

static void epilogues(void **state)
{
    (void)state;
    for (int how = 0; how < GROUPNORM; how++)
        for (int a = 0; a < NACT; a++) {
            one_epilogue((enum maker)how, &activations[a], DT_F32);
            one_epilogue((enum maker)how, &activations[a], DT_BF16);
        }
    one_epilogue(GROUPNORM, &activations[0], DT_F32);
    one_epilogue(GROUPNORM, &activations[0], DT_BF16);
}

/* A NaN and infinities come out as they do unfused: dt_plan_find_nan and the loss rely on it. */
static void not_finite(void **state)
{
    (void)state;
    static const float odd[3] = { NAN, INFINITY, -INFINITY };
    for (int a = 0; a < NACT; a++) {
        float y[2][3];
        for (int fuse = 0; fuse < 2; fuse++) {
            running r;
            int64_t n;
            dt_graph *g = dt_graph_new(DT_F32);
            dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(3, 1)), *w = dt_input(g, "w", DT_F32, DT_DIMS(1, 1));
            dt_output(g, activations[a].fn(g, dt_matmul_wt(g, x, w, NULL)), "y");
            start(&r, g, fuse);
            dt_plan_write(r.plan, x, odd);
            dt_plan_write(r.plan, w, (const float[]){ 1 });
            dt_plan_run(r.plan, NULL);
            float *v = running_read(&r, "y", &n);
            memcpy(y[fuse], v, sizeof(y[fuse]));
            free(v);
            running_stop(&r);
        }
        for (int i = 0; i < 3; i++)
            if (isnan(y[0][i]) ? !isnan(y[1][i]) : y[0][i] != y[1][i])
                fail_msg("%s(%g) is %g, fused %g", activations[a].name, (double)odd[i], (double)y[0][i],
                         (double)y[1][i]);
    }
}

/* --- where it must not happen --- */

static dt_tensor *kept(dt_graph *g) { return dt_silu(g, dt_output(g, made(g, BIAS), "pre")); }
static dt_tensor *silu_alone(dt_graph *g) { return dt_silu(g, dt_relu(g, made(g, BIAS))); }
static dt_tensor *kept_view(dt_graph *g)
{
    dt_tensor *x = made(g, BIAS);
    dt_output(g, dt_reshape(g, x, DT_DIMS(18, K)), "pre");
    return dt_silu(g, x);
}
static dt_tensor *read_twice(dt_graph *g)
{
    dt_tensor *x = made(g, BIAS);
    return dt_add(g, dt_silu(g, x), x);
}
static dt_tensor *two_functions(dt_graph *g)
{
    dt_tensor *x = made(g, BIAS);
    return dt_add(g, dt_silu(g, x), dt_reshape(g, dt_silu(g, dt_reshape(g, x, DT_DIMS(18, K))), DT_DIMS(2, 9, K)));
}
static dt_tensor *not_its_kind(dt_graph *g) { return dt_relu(g, made(g, BIAS)); }
static dt_tensor *gelu_of_norm(dt_graph *g) { return dt_gelu_erf(g, made(g, GROUPNORM)); }

static void left_alone(void **state)
{
    (void)state;
    static dt_tensor *(*const build[])(dt_graph *g) = {
        kept, silu_alone, kept_view, read_twice, two_functions, not_its_kind, gelu_of_norm,
    };
    for (size_t i = 0; i < sizeof(build) / sizeof(*build); i++) {
        running r[2];
        float *y[2];
        int64_t n;
        for (int fuse = 0; fuse < 2; fuse++) {
            dt_graph *g = dt_graph_new(DT_F32);
            dt_output(g, build[i](g), "y");
            start(&r[fuse], g, fuse);
            running_once(&r[fuse]);
            y[fuse] = running_read(&r[fuse], "y", &n);
        }
        if (dt_plan_stat(r[1].plan)->nodes != dt_plan_stat(r[0].plan)->nodes)
            fail_msg("graph %zu is fused", i);
        assert_memory_equal(y[0], y[1], (size_t)n * sizeof(float));
        for (int fuse = 0; fuse < 2; fuse++) {
            free(y[fuse]);
            running_stop(&r[fuse]);
        }
    }
}

/* A second activation of the first is one more launch, not a second epilogue. */
static void only_one(void **state)
{
    (void)state;
    running r;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_output(g, dt_gelu_erf(g, dt_silu(g, made(g, BIAS))), "y");
    start(&r, g, true);
    assert_int_equal(running_count(&r, &dt_op_silu, false), 0);
    assert_int_equal(running_count(&r, &dt_op_gelu_erf, false), 1);
    running_stop(&r);
}

/* --- training --- */

static float *grad_of(running *r, dt_params *set)
{
    float *grad = dt_alloc((size_t)set->n_train * sizeof(*grad));
    memset(set->grad, 0, (size_t)set->n_train * sizeof(*grad));
    running_once(r);
    memcpy(grad, set->grad, (size_t)set->n_train * sizeof(*grad));
    return grad;
}

static void training(void **state)
{
    (void)state;
    for (int recompute = 0; recompute < 2; recompute++) {
        int flags = NET_BACKWARD | (recompute ? NET_RECOMPUTE : 0);
        dt_params *set = net_params(cpu, DT_F32);
        running plain, fused;
        start(&plain, net_build(set, DT_F32, flags), false);
        start(&fused, net_build(set, DT_F32, flags), true);
        /* gelu_tanh_bwd reads what gelu_tanh reads, so only a forward that is run again can do without */
        assert_int_equal(running_count(&plain, &dt_op_gelu_tanh, true), NET_BLOCKS);
        assert_int_equal(running_count(&fused, &dt_op_gelu_tanh, true), recompute ? 0 : NET_BLOCKS);
        assert_int_equal(running_count(&fused, &dt_op_gelu_tanh, false), NET_BLOCKS);
        assert_true(running_count(&plain, &dt_op_accumulate, false) == set->n);
        assert_int_equal(running_count(&fused, &dt_op_accumulate, false), 0);
        assert_true(dt_plan_bytes(fused.plan) <= dt_plan_bytes(plain.plan));
        float *a = grad_of(&plain, set), *b = grad_of(&fused, set);
        near(b, a, set->n_train, tol_gradient(DT_F32));
        free(a);
        free(b);
        running_stop(&plain);
        running_stop(&fused);
        dt_params_free(&set);
    }
}

static void forward(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        dt_dtype act = t ? DT_BF16 : DT_F32;
        dt_params *set = net_params(cpu, act);
        running plain, fused;
        int64_t n;
        start(&plain, net_build(set, act, 0), false);
        start(&fused, net_build(set, act, 0), true);
        assert_int_equal(running_count(&fused, &dt_op_gelu_tanh, false), 0);
        assert_int_equal(running_count(&fused, &dt_op_silu, false), 0);
        assert_true(dt_plan_bytes(fused.plan) <= dt_plan_bytes(plain.plan));
        running_once(&plain);
        running_once(&fused);
        float *a = running_read(&plain, "y", &n), *b = running_read(&fused, "y", &n);
        near(b, a, n, tol_forward(act));
        free(a);
        free(b);
        running_stop(&plain);
        running_stop(&fused);
        dt_params_free(&set);
    }
}

/* One parameter, read as it is and through a reshape: each kernel adds to its gradient. */
static void shared_parameter(void **state)
{
    (void)state;
    dt_params *set = dt_params_new("shared");
    float *grad[2];
    for (int fuse = -1; fuse < 2; fuse++) {
        running r;
        dt_graph *g = dt_graph_new(DT_F32);
        dt_graph_use(g, set);
        dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(6, 8)), *target = dt_input(g, "t", DT_F32, DT_DIMS(6, 4));
        dt_tensor *w = dt_weight(g, "w", DT_DIMS(4, 8), DT_INIT_FAN_IN, 0);
        if (fuse < 0) {                 /* declared only */
            set->v[0]->trainable = true;
            assert_int_equal(dt_params_alloc(set, cpu, DT_F32, DT_PARAMS_NO_OPTIM, NULL), 0);
            dt_params_init(set, 1, NULL);
            dt_graph_free(&g);
            continue;
        }
        dt_tensor *y = dt_matmul_wt(g, x, w, NULL);
        y = dt_matmul_wt(g, dt_matmul_wt(g, y, dt_reshape(g, w, DT_DIMS(8, 4)), NULL), w, NULL);
        dt_backward(g, dt_mse_loss(g, y, target, NULL, 0, NULL), NULL);
        start(&r, g, fuse);
        assert_int_equal(running_count(&r, &dt_op_accumulate, false), fuse ? 0 : 3);
        grad[fuse] = grad_of(&r, set);
        running_stop(&r);
    }
    near(grad[1], grad[0], set->n_train, tol_gradient(DT_F32));
    free(grad[0]);
    free(grad[1]);
    dt_params_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epilogues), cmocka_unit_test(not_finite), cmocka_unit_test(left_alone),
        cmocka_unit_test(only_one),  cmocka_unit_test(training),   cmocka_unit_test(forward),
        cmocka_unit_test(shared_parameter),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
