/* update.c: parameters updated during the backward pass end with the bits of those that wait for the whole
 * gradient, whose norm is the same too; nothing that is not finite gets into them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/unit/graph_net.h"
#include "train/optim.h"

enum { STEPS = 4 };
static const double lr = 1e-2;
static dt_device *cpu;

static int open_cpu(void **state) { return net_open(&cpu, state); }

static int close_cpu(void **state) { return net_close(&cpu, state); }

/* --- a parameter set in training --- */

typedef dt_graph *builder(dt_params *set, dt_dtype act, int flags);

typedef struct trained {
    dt_params *set;
    dt_optim   o;
    running    r;
} trained;

static void begin(trained *t, builder *build, dt_dtype act, int flags, bool fused)
{
    *t = (trained){ .set = dt_params_new("net") };
    dt_graph *g = build(t->set, act, 0);
    dt_graph_free(&g);
    for (int64_t i = 0; i < t->set->n; i++)
        t->set->v[i]->trainable = strcmp(t->set->v[i]->name, "frozen") != 0;
    t->o = (dt_optim){ .set = { t->set }, .nset = 1, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1,
                       .ema_decay = 0.9 };
    if (fused)
        dt_optim_fuse(&t->o);
    assert_true(dt_params_size(t->set, act,
                               DT_PARAMS_EMA).grads == (fused ? 0 : dt_params_size(t->set, act, DT_PARAMS_EMA).ema));
    assert_int_equal(dt_params_alloc(t->set, cpu, act, DT_PARAMS_EMA, NULL), 0);
    assert_true(!t->set->grad == fused);
    dt_params_init(t->set, 7, NULL);
    const char *bad = running_start(&t->r, cpu, build(t->set, act, flags | NET_BACKWARD));
    if (bad)
        fail_msg("%s", bad);
}

static void end(trained *t)
{
    running_stop(&t->r);
    dt_params_free(&t->set);
}

static double step(trained *t)
{
    dt_optim_begin(&t->o, lr);
    running_once(&t->r);
    double norm = dt_optim_norm(&t->o);
    dt_optim_step(&t->o, lr, norm);
    return norm;
}

static void same_bits(const trained *a, const trained *b)
{
    const dt_params *p = a->set, *q = b->set;
    size_t n = (size_t)p->n_train;
    assert_int_equal(p->n_train, q->n_train);
    assert_memory_equal(p->master, q->master, 4 * n);
    assert_memory_equal(p->m, q->m, 4 * n);
    assert_memory_equal(p->v2, q->v2, 4 * n);
    assert_memory_equal(p->ema, q->ema, 4 * n);
    assert_memory_equal(p->w_train, q->w_train, dt_dtype_size(p->dtype) * n);
}

/* A parameter is not read behind its update, and is updated once if it has a gradient, all of which is in one place. */
static void updates_are_last(const trained *t, int64_t updates)
{
    bool *done = dt_alloc((size_t)t->set->n);
    for (int64_t i = 0; i < t->r.plan->nitem; i++) {
        const dt_node *n = t->r.plan->item[i].node;
        for (int k = 0; k < n->nin; k++) {
            const dt_tensor *root = n->in[k] ? dt_root(n->in[k]) : NULL;
            if (root && root->kind == DT_PARAM && root->param->trainable)
                assert_false(done[root->param->index]);
        }
        for (int o = 0; o < n->nout; o++)
            assert_true(!n->out[o]->base || t->r.plan->slot_of[n->out[o]->id] < 0);
        if (n->op == &dt_op_update)
            done[n->in[1]->param->index] = true;
    }
    assert_int_equal(running_count(&t->r, &dt_op_update, false), updates);
    free(done);
}

static void same_training(builder *build, dt_dtype act, int flags, int64_t updates)
{
    trained plain, fused;
    begin(&plain, build, act, flags, false);
    begin(&fused, build, act, flags, true);
    updates_are_last(&plain, 0);
    updates_are_last(&fused, updates);
    for (int i = 0; i < STEPS; i++) {
        double a = step(&plain), b = step(&fused);
        assert_true(a > 0 && a == b);
        same_bits(&plain, &fused);
    }
    const dt_tensor *from;
    assert_null(dt_plan_find_nan(fused.r.plan, &from));
    same_bits(&plain, &fused);          /* looking has changed nothing */
    end(&plain);
    end(&fused);
}

/* --- the same bits --- */

static void network(void **state)
{
    (void)state;
    dt_params *set = net_params(cpu, DT_F32);
    int64_t n = set->n;
    dt_params_free(&set);
    for (int t = 0; t < 2; t++)
        for (int flags = 0; flags <= NET_RECOMPUTE; flags += NET_RECOMPUTE) {
            same_training(net_build, t ? DT_BF16 : DT_F32, flags, n);
            setenv("DT_FUSE", "0", 1);
            same_training(net_build, t ? DT_BF16 : DT_F32, flags, n);
            unsetenv("DT_FUSE");
        }
}

/* Sizes that fill no vector; a weight with three parts of its gradient, one through a view; a factor with two
 * that a kernel cannot add; a weight that nothing reads; one that does not train. */
static dt_graph *odd(dt_params *set, dt_dtype act, int flags)
{
    dt_graph *g = dt_graph_new(act);
    dt_graph_use(g, set);
    dt_tensor *x = dt_input(g, "x", act, DT_DIMS(6, 7)), *target = dt_input(g, "t", DT_F32, DT_DIMS(6, 5));
    dt_tensor *w = dt_weight(g, "w", DT_DIMS(5, 7), DT_INIT_FAN_IN, 0),
        *b = dt_weight(g, "b", DT_DIMS(5), DT_INIT_NORMAL, 0.1);
    dt_tensor *f = dt_weight(g, "factor", DT_DIMS(6, 5), DT_INIT_ONE, 0);
    dt_weight(g, "idle", DT_DIMS(13), DT_INIT_ONE, 0);
    dt_tensor *y = dt_mul(g, dt_matmul_wt(g, x, w, b), f);
    y = dt_matmul_wt(g, dt_matmul_wt(g, y, dt_reshape(g, w, DT_DIMS(7, 5)), NULL), w, b);
    y = dt_layernorm(g, dt_mul(g, y, f), dt_weight(g, "norm", DT_DIMS(5), DT_INIT_ONE, 0), NULL, 1e-5);
    y = dt_matmul_wt(g, y, dt_weight(g, "frozen", DT_DIMS(5, 5), DT_INIT_FAN_IN, 0), NULL);
    dt_tensor *loss = dt_output(g, dt_mse_loss(g, y, target, NULL, 0, NULL), "loss");
    if (flags & NET_BACKWARD) {
        dt_backward(g, loss, NULL);
        dt_output(g, dt_affine(g, w, 2, 0), "seen");        /* as it was in this run */
    }
    return g;
}

/* The gradient through the view is made first and added last. */
static dt_graph *view_first(dt_params *set, dt_dtype act, int flags)
{
    dt_graph *g = dt_graph_new(act);
    dt_graph_use(g, set);
    dt_tensor *x = dt_input(g, "x", act, DT_DIMS(6, 7)), *target = dt_input(g, "t", DT_F32, DT_DIMS(6, 7));
    dt_tensor *w = dt_weight(g, "w", DT_DIMS(5, 7), DT_INIT_FAN_IN, 0), *v = dt_reshape(g, w, DT_DIMS(7, 5));
    dt_tensor *y = dt_matmul_wt(g, dt_matmul_wt(g, x, w, NULL), v, NULL);
    dt_tensor *loss = dt_output(g, dt_mse_loss(g, y, target, NULL, 0, NULL), "loss");
    if (flags & NET_BACKWARD)
        dt_backward(g, loss, NULL);
    return g;
}

static void odd_parameters(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        same_training(odd, t ? DT_BF16 : DT_F32, 0, 4);
        setenv("DT_FUSE", "0", 1);
        same_training(odd, t ? DT_BF16 : DT_F32, 0, 4);
        unsetenv("DT_FUSE");
        same_training(view_first, t ? DT_BF16 : DT_F32, 0, 1);
    }
}

/* --- numbers that are none --- */

/* y = x w1' w2' */
static dt_graph *two_layers(dt_params *set, dt_dtype act, int flags)
{
    dt_graph *g = dt_graph_new(act);
    dt_graph_use(g, set);
    dt_tensor *x = dt_input(g, "x", act, DT_DIMS(2, 4)), *target = dt_input(g, "t", DT_F32, DT_DIMS(2, 4));
    dt_tensor *y = dt_matmul_wt(g, x, dt_weight(g, "w1", DT_DIMS(4, 4), DT_INIT_FAN_IN, 0), NULL);
    y = dt_matmul_wt(g, y, dt_weight(g, "w2", DT_DIMS(4, 4), DT_INIT_FAN_IN, 0), NULL);
    dt_tensor *loss = dt_output(g, dt_mse_loss(g, y, target, NULL, 0, NULL), "loss");
    if (flags & NET_BACKWARD)
        dt_backward(g, loss, NULL);
    return g;
}

static void run_with(trained *t, float x, float target)
{
    float v[2][8];
    for (int i = 0; i < 8; i++)
        v[0][i] = x, v[1][i] = target;
    dt_optim_begin(&t->o, lr);
    dt_plan_write(t->r.plan, dt_find(t->r.g, "x"), v[0]);
    dt_plan_write(t->r.plan, dt_find(t->r.g, "t"), v[1]);
    dt_plan_run(t->r.plan, NULL);
}

/* With 1e20 the gradients are finite. */
static void loss_not_finite(void **state)
{
    (void)state;
    trained t, before;
    begin(&t, two_layers, DT_F32, 0, true);
    begin(&before, two_layers, DT_F32, 0, true);
    for (int i = 0; i < 2; i++) {
        run_with(&t, 1, i ? INFINITY : 1e20f);
        assert_false(isfinite(dt_optim_norm(&t.o)));
        same_bits(&t, &before);
    }
    end(&t);
    end(&before);
}

/* dy w2 overflows: w2 has a gradient and is updated, w1 has none and stays; finding the node changes neither. */
static void gradient_not_finite(void **state)
{
    (void)state;
    const float huge[16] = { 1e38f, 1e38f, 1e38f, 1e38f, 1e38f, 1e38f, 1e38f, 1e38f };
    float w1[16], w2[16];
    const dt_tensor *from;
    trained t;
    begin(&t, two_layers, DT_F32, 0, true);
    dt_param *a = dt_params_find(t.set, "w1"), *b = dt_params_find(t.set, "w2");
    dt_params_write(t.set, b, huge, NULL);
    memcpy(w1, a->master, sizeof(w1));
    run_with(&t, 0, -1e3f);
    float loss;
    dt_plan_read(t.r.plan, dt_find(t.r.g, "loss"), &loss);
    assert_true(isfinite(loss));
    assert_false(isfinite(dt_optim_norm(&t.o)));
    assert_memory_equal(a->master, w1, sizeof(w1));
    assert_true(b->master[0] < huge[0] && isfinite(b->sumsq));
    memcpy(w2, b->master, sizeof(w2));
    const dt_node *n = dt_plan_find_nan(t.r.plan, &from);
    assert_true(n && n->op == &dt_op_matmul_dx);
    assert_memory_equal(a->master, w1, sizeof(w1));
    assert_memory_equal(b->master, w2, sizeof(w2));
    end(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(network),         cmocka_unit_test(odd_parameters),
        cmocka_unit_test(loss_not_finite), cmocka_unit_test(gradient_not_finite),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
