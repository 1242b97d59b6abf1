/* layout.c and plan.c: no two things that live at once share bytes, and what need not live does not. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "graph/session.h"
#include "tests/unit/graph_net.h"

static dt_device *cpu;

static int open_cpu(void **state) { return net_open(&cpu, state); }

static int close_cpu(void **state) { return net_close(&cpu, state); }

static void start(running *r, dt_graph *g)
{
    const char *bad = running_start(r, cpu, g);
    if (bad)
        fail_msg("%s", bad);
}

/* --- layout --- */

enum { ALIGN = 256, SLOTS = 200, TIMES = 60 };

static void draw_slots(dt_slot *s, int n, dt_rng *r)
{
    for (int i = 0; i < n; i++) {
        int64_t first = (int64_t)dt_rng_below(r, TIMES);
        int64_t last = first + (int64_t)dt_rng_below(r, dt_rng_below(r, 4) ? 5 : TIMES);
        int64_t bytes = (int64_t)dt_rng_below(r, dt_rng_below(r, 8) ? 5000 : 200000);
        s[i] = (dt_slot){ .bytes = dt_rng_below(r, 10) ? bytes : 0, .first = first, .last = last, .offset = -1 };
    }
}

static int64_t live_bytes(const dt_slot *s, int n)      /* the least that any layout needs */
{
    int64_t most = 0;
    for (int t = 0; t < 2 * TIMES; t++) {
        int64_t sum = 0;
        for (int i = 0; i < n; i++)
            sum += s[i].first <= t && t <= s[i].last ? s[i].bytes : 0;
        most = sum > most ? sum : most;
    }
    return most;
}

static void no_overlap(const dt_slot *s, int n, int64_t arena)
{
    for (int i = 0; i < n; i++) {
        assert_true(s[i].offset >= 0 && s[i].offset % ALIGN == 0);
        assert_true(!s[i].bytes || s[i].offset + s[i].bytes <= arena);
        for (int j = 0; j < i; j++) {
            bool together = s[i].first <= s[j].last && s[j].first <= s[i].last;
            bool apart = s[i].offset + s[i].bytes <= s[j].offset || s[j].offset + s[j].bytes <= s[i].offset;
            if (together && !apart && s[i].bytes && s[j].bytes)
                fail_msg("slots %d and %d share bytes", i, j);
        }
    }
}

static void layout_random(void **state)
{
    (void)state;
    dt_slot s[SLOTS], again[SLOTS];
    for (uint32_t seed = 0; seed < 100; seed++) {
        dt_rng r = dt_rng_make(seed, DT_RNG_TEST, 0, 0);
        int n = (int)dt_rng_below(&r, SLOTS + 1);
        draw_slots(s, n, &r);
        memcpy(again, s, sizeof(s));
        int64_t arena = dt_layout(s, n, ALIGN);
        no_overlap(s, n, arena);
        assert_true(arena >= live_bytes(s, n));
        assert_int_equal(dt_layout(again, n, ALIGN), arena);
        assert_memory_equal(s, again, sizeof(*s) * (size_t)n);
    }
}

static void layout_reuses(void **state)
{
    (void)state;
    /* a chain: two at a time */
    dt_slot s[10];
    for (int i = 0; i < 10; i++)
        s[i] = (dt_slot){ .bytes = 1000, .first = i, .last = i + 1, .offset = -1 };
    assert_int_equal(dt_layout(s, 10, ALIGN), 2048);
    /* a gap below is found: the small one goes under the large one that is alive, where a dead one was */
    dt_slot g[3] = { { 4096, 0, 0, -1 }, { 2048, 0, 2, -1 }, { 1024, 1, 2, -1 } };
    assert_int_equal(dt_layout(g, 3, ALIGN), 4096 + 2048);
    assert_int_equal(g[2].offset, 0);
    assert_int_equal(dt_layout(NULL, 0, ALIGN), 0);
}

/* --- a whole plan: who owns each byte --- */

typedef struct shadow {
    const dt_plan *p;
    int64_t  n;                     /* pieces of ALIGN bytes */
    int     *owner;                 /* tensor id + 1; 0 = nobody's, -1 = a workspace's */
} shadow;

static int64_t offset_of(const dt_plan *p, dt_tensor *t)
{
    int64_t s = p->slot_of[dt_root(t)->id];
    return s < 0 ? -1 : p->slot[s].offset;
}

static void own(shadow *s, int64_t at, int64_t bytes, int who)
{
    for (int64_t i = at / ALIGN; i < (at + bytes + ALIGN - 1) / ALIGN; i++) {
        assert_true(i < s->n);
        s->owner[i] = who;
    }
}

static void still_owned(const shadow *s, dt_tensor *t, const dt_node *by)
{
    dt_tensor *root = dt_root(t);
    int64_t at = offset_of(s->p, t);
    if (root->kind == DT_PARAM || root->kind == DT_GRAD)
        return;
    assert_true(at >= 0);
    for (int64_t i = at / ALIGN; i < (at + dt_bytes(root) + ALIGN - 1) / ALIGN; i++)
        if (s->owner[i] != root->id + 1)
            fail_msg("tensor %d is overwritten before %s of %s reads it", root->id, by ? by->op->name : "the caller",
                     by ? by->scope : "");
}

static bool may_lie_in(const dt_node *n, dt_tensor *in, int k)
{
    return n->op->inplace >> k & 1 && dt_bytes(in) == dt_bytes(n->out[0]) && in->dtype == n->out[0]->dtype;
}

/* Nothing is written over what its node still reads, unless the op allows it. */
static void outputs_apart(const dt_plan *p, const dt_node *n)
{
    for (int o = 0; o < n->nout; o++) {
        dt_tensor *y = n->out[o];
        int64_t a = y->kind == DT_ACT ? offset_of(p, y) : -1;
        for (int k = 0; k < n->nin && a >= 0; k++) {
            int64_t b = n->in[k] && dt_root(n->in[k])->kind == DT_ACT ? offset_of(p, n->in[k]) : -1;
            if (b >= 0 && a < b + dt_bytes(n->in[k]) && b < a + dt_bytes(y))
                assert_true(o == 0 && a == b && may_lie_in(n, n->in[k], k));
        }
    }
}

static void walk(const running *r)
{
    const dt_plan *p = r->plan;
    shadow s = { p, dt_plan_bytes(p) / ALIGN, dt_alloc((size_t)(dt_plan_bytes(p) / ALIGN + 1) * sizeof(int)) };
    for (int64_t i = 0; i < r->g->ntensor; i++) {
        dt_tensor *t = r->g->tensor[i];
        if ((t->kind == DT_INPUT || t->kind == DT_CONST) && p->slot_of[t->id] >= 0)
            own(&s, offset_of(p, t), dt_bytes(t), t->id + 1);
    }
    for (int64_t i = 0; i < p->nitem; i++) {
        const dt_node *n = p->item[i].node;
        for (int k = 0; k < n->nin; k++)
            if (n->in[k])
                still_owned(&s, n->in[k], n);
        outputs_apart(p, n);
        if (p->item[i].ws_slot >= 0) {
            own(&s, p->slot[p->item[i].ws_slot].offset, p->item[i].ws_bytes, -1);
            for (int k = 0; k < n->nin; k++)
                if (n->in[k])
                    still_owned(&s, n->in[k], n);
        }
        for (int o = 0; o < n->nout; o++)
            if (n->out[o]->kind == DT_ACT && p->slot_of[n->out[o]->id] >= 0)
                own(&s, offset_of(p, n->out[o]), dt_bytes(n->out[o]), n->out[o]->id + 1);
        for (int o = 0; o < n->nout; o++)
            if (n->out[o]->kind == DT_ACT && p->slot_of[n->out[o]->id] >= 0)
                still_owned(&s, n->out[o], n);
    }
    for (int64_t i = 0; i < r->g->ntensor; i++)
        if (r->g->tensor[i]->keep || r->g->tensor[i]->kind == DT_INPUT)
            still_owned(&s, r->g->tensor[i], NULL);
    free(s.owner);
}

static void bytes_are_owned(void **state)
{
    (void)state;
    static const int how[] = { 0, NET_BACKWARD, NET_BACKWARD | NET_RECOMPUTE };
    for (int t = 0; t < 2; t++) {
        dt_dtype act = t ? DT_BF16 : DT_F32;
        dt_params *set = net_params(cpu, act);
        for (int i = 0; i < 2 * 3; i++) {
            dt_update update = { .begun = false };
            for (int64_t k = 0; k < set->n; k++)
                set->v[k]->update = i < 3 ? NULL : &update;
            running r;
            start(&r, net_build(set, act, how[i % 3]));
            walk(&r);
            running_stop(&r);
        }
        dt_params_free(&set);
    }
}

static void deterministic(void **state)
{
    (void)state;
    dt_params *set = net_params(cpu, DT_F32);
    running a, b;
    start(&a, net_build(set, DT_F32, NET_BACKWARD | NET_RECOMPUTE));
    start(&b, net_build(set, DT_F32, NET_BACKWARD | NET_RECOMPUTE));
    assert_int_equal(a.plan->nslot, b.plan->nslot);
    assert_int_equal(a.plan->nitem, b.plan->nitem);
    assert_memory_equal(a.plan->slot, b.plan->slot, (size_t)a.plan->nslot * sizeof(dt_slot));
    for (int64_t i = 0; i < a.plan->nitem; i++) {
        assert_ptr_equal(a.plan->item[i].node->op, b.plan->item[i].node->op);
        assert_int_equal(a.plan->item[i].ws_slot, b.plan->item[i].ws_slot);
    }
    running_stop(&a);
    running_stop(&b);
    dt_params_free(&set);
}

/* --- recompute --- */

static double run_for_grad(running *r, dt_params *set, float *grad)
{
    int64_t n;
    memset(set->grad, 0, (size_t)set->n_train * sizeof(float));
    running_once(r);
    memcpy(grad, set->grad, (size_t)set->n_train * sizeof(float));
    float *v = running_read(r, "loss", &n), loss = v[0];
    free(v);
    return (double)loss;
}

static void recompute_is_smaller(void **state)
{
    (void)state;
    dt_params *set = net_params(cpu, DT_F32);
    running plain, again;
    start(&plain, net_build(set, DT_F32, NET_BACKWARD));
    start(&again, net_build(set, DT_F32, NET_BACKWARD | NET_RECOMPUTE));
    const dt_plan_stats *a = dt_plan_stat(plain.plan), *b = dt_plan_stat(again.plan);
    assert_true(b->activations < a->activations / 2);    /* one block at a time, and the inputs of all */
    assert_true(a->flops_recompute == 0 && b->flops_recompute > 0);
    assert_true(fabs(b->flops - b->flops_recompute - a->flops) < 1e-9 * a->flops);
    size_t n = (size_t)set->n_train;
    float *ga = dt_alloc(n * sizeof(*ga)), *gb = dt_alloc(n * sizeof(*gb));
    double la = run_for_grad(&plain, set, ga), lb = run_for_grad(&again, set, gb), diff = 0, size = 0;
    assert_true(fabs(la - lb) < 1e-6 * la);
    for (size_t i = 0; i < n; i++) {
        diff += ((double)ga[i] - gb[i]) * ((double)ga[i] - gb[i]);
        size += (double)ga[i] * ga[i];
    }
    assert_true(size > 0 && diff < 1e-12 * size);
    free(ga);
    free(gb);
    running_stop(&plain);
    running_stop(&again);
    dt_params_free(&set);
}

/* --- live --- */

static void dead_nodes(void **state)
{
    (void)state;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(64));
    dt_output(g, dt_silu(g, x), "y");
    dt_tensor *unread = dt_relu(g, dt_affine(g, x, 2, 1));
    dt_add(g, unread, x);
    running r;
    start(&r, g);
    assert_int_equal(dt_plan_stat(r.plan)->nodes, 1);
    assert_int_equal(running_count(&r, &dt_op_relu, false), 0);
    assert_int_equal(r.plan->slot_of[unread->id], -1);
    running_stop(&r);
}

static void unread_outputs(void **state)
{
    (void)state;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(4, 64)), *part[4];
    dt_chunk(g, x, 4, part);
    dt_output(g, dt_silu(g, part[2]), "y");
    running r;
    start(&r, g);
    assert_int_equal(r.plan->slot_of[part[0]->id], -1);
    assert_true(r.plan->slot_of[part[2]->id] >= 0);
    running_once(&r);               /* the chunks without a place are not written */
    running_stop(&r);
}

/* --- in place --- */

/* True if a and b have one slot. */
static bool same_slot(const running *r, dt_tensor *a, dt_tensor *b)
{
    assert_true(r->plan->slot_of[a->id] >= 0 && r->plan->slot_of[b->id] >= 0);
    return r->plan->slot_of[a->id] == r->plan->slot_of[b->id];
}

static void inplace_rules(void **state)
{
    (void)state;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(8, 64));
    dt_tensor *a = dt_affine(g, x, 2, 0);           /* not over an input */
    dt_tensor *b = dt_silu(g, a);                   /* over a */
    dt_tensor *c = dt_silu(g, dt_reshape(g, b, DT_DIMS(4, 128)));   /* not over b, which d reads; through a view */
    dt_tensor *d = dt_relu(g, b);                    /* over b */
    dt_tensor *e = dt_add(g, d, d);                 /* not over d: read twice */
    dt_tensor *f = dt_add(g, c, dt_reshape(g, e, DT_DIMS(4, 128)));     /* over c, the first that dies */
    dt_tensor *h = dt_output(g, dt_silu(g, f), "h");                    /* over f */
    dt_tensor *k = dt_silu(g, h);                   /* not over h: kept */
    dt_tensor *m = dt_cast(g, k, DT_BF16);          /* not over k: another size */
    dt_output(g, m, "m");
    running r;
    start(&r, g);
    assert_false(same_slot(&r, a, x));
    assert_true(same_slot(&r, b, a));
    assert_false(same_slot(&r, c, b));
    assert_true(same_slot(&r, d, b));
    assert_false(same_slot(&r, e, d));
    assert_true(same_slot(&r, f, c));
    assert_false(same_slot(&r, f, e));
    assert_true(same_slot(&r, h, f));
    assert_false(same_slot(&r, k, h));
    assert_false(same_slot(&r, m, k));
    walk(&r);
    running_once(&r);
    int64_t n;
    float *v = running_read(&r, "x", &n), *y = running_read(&r, "h", &n);
    for (int64_t i = 0; i < n; i++) {
        double t = 2.0 * v[i], s = t / (1 + exp(-t)), z = s / (1 + exp(-s)) + 2 * fmax(s, 0);
        assert_true(fabs(y[i] - z / (1 + exp(-z))) < 1e-5 * (1 + fabs(z)));
    }
    free(v);
    free(y);
    running_stop(&r);
}

/* --- what cannot be planned --- */

static const char *odd_shape(dt_node *n)
{
    dt_node_out(n, 0, DT_F32, n->in[0]->dims);
    return NULL;
}

static void complaints(void **state)
{
    (void)state;
    static const dt_op odd = { .name = "odd", .shape = odd_shape };
    dt_err err = { 0 };
    dt_plan *plan = NULL, *second = NULL;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(4));
    dt_output(g, dt_apply(g, &odd, NULL, 1, &x)->out[0], "y");
    assert_int_equal(dt_plan_new(&plan, g, cpu, &err), DT_EFAIL);
    assert_non_null(strstr(err.msg, "odd"));
    assert_null(plan);
    dt_graph_free(&g);

    g = dt_graph_new(DT_F32);
    dt_output(g, dt_silu(g, dt_input(g, "x", DT_F32, DT_DIMS(4))), "y");
    assert_int_equal(dt_plan_new(&plan, g, cpu, &err), 0);
    assert_int_equal(dt_plan_new(&second, g, cpu, &err), DT_EFAIL);
    dt_plan_free(&plan);
    dt_graph_free(&g);

    g = dt_graph_new(DT_F32);
    dt_add(g, dt_input(g, "x", DT_F32, DT_DIMS(4)), dt_input(g, "z", DT_F32, DT_DIMS(5)));
    assert_int_equal(dt_plan_new(&plan, g, cpu, &err), DT_EDATA);
    dt_graph_free(&g);
}

/* The first complaint of a builder sticks, and what comes behind it does no harm. */
static void add_unequal(dt_graph *g, dt_tensor *x) { dt_add(g, x, dt_input(g, "z", DT_F32, DT_DIMS(5))); }
static void take_name(dt_graph *g, dt_tensor *x) { (void)x, dt_input(g, "x", DT_F32, DT_DIMS(4)); }
static void empty_input(dt_graph *g, dt_tensor *x) { (void)x, dt_input(g, "z", DT_F32, DT_DIMS(4, 0)); }
static void reshape_unequal(dt_graph *g, dt_tensor *x) { dt_reshape(g, x, DT_DIMS(3, -1)); }
static void weight_of_no_set(dt_graph *g, dt_tensor *x) { (void)x, dt_weight(g, "w", DT_DIMS(4), DT_INIT_ONE, 0); }
static void end_scope(dt_graph *g, dt_tensor *x) { (void)x, dt_scope_end(g); }
static void nest_blocks(dt_graph *g, dt_tensor *x) { (void)x, dt_block(g), dt_block(g); }
static void require_late(dt_graph *g, dt_tensor *x) { dt_silu(g, x), dt_require_grad(g, x); }
static void loss_of_four(dt_graph *g, dt_tensor *x) { dt_require_grad(g, x), dt_backward(g, dt_silu(g, x), NULL); }
static void nest_scopes(dt_graph *g, dt_tensor *x)
{
    (void)x;
    for (int i = 0; i < 17; i++)
        dt_scope(g, "s");
}
static void long_scope(dt_graph *g, dt_tensor *x)
{
    (void)x;
    dt_scope(g, "%600s", "s");
}
static void nothing_trains(dt_graph *g, dt_tensor *x)
{
    dt_backward(g, dt_mse_loss(g, x, dt_input(g, "z", DT_F32, DT_DIMS(4)), NULL, 0, NULL), NULL);
}

static void builders_complain(void **state)
{
    (void)state;
    static const struct { void (*build)(dt_graph *g, dt_tensor *x); const char *says; } c[] = {
        { add_unequal, "(got add: [4] F32, [5] F32)" },
        { take_name, "'x' has an empty shape or a name that is taken" },
        { empty_input, "'z' has an empty shape or a name that is taken" },
        { reshape_unequal, "reshape must keep the number of elements" },
        { weight_of_no_set, "weight 'w' without a parameter set" },
        { end_scope, "scope ended that was not begun" },
        { nest_blocks, "recompute units do not nest" },
        { require_late, "dt_require_grad comes before the first op" },
        { loss_of_four, "the loss must be one fp32 number" },
        { nest_scopes, "scopes nest too deeply" },
        { long_scope, "scope name is too long" },
        { nothing_trains, "nothing that is trained reaches the loss" },
    };
    for (size_t i = 0; i < sizeof(c) / sizeof(*c); i++) {
        dt_graph *g = dt_graph_new(DT_F32);
        dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(4));
        dt_plan *plan = NULL;
        dt_err err = { 0 };
        c[i].build(g, x);
        if (!dt_graph_error(g) || !strstr(dt_graph_error(g), c[i].says))
            fail_msg("'%s' does not say '%s'", dt_graph_error(g) ? dt_graph_error(g) : "", c[i].says);
        dt_graph_fail(g, "another");
        dt_output(g, dt_add(g, dt_linear(g, "w", x, 4, true), x), "y");
        assert_int_equal(dt_plan_new(&plan, g, cpu, &err), DT_EDATA);
        assert_non_null(strstr(err.msg, c[i].says));
        dt_graph_free(&g);
    }
}

/* --- plans by shape over one arena --- */

static dt_graph *build_sized(void *ctx, const dt_shape_key *shape)
{
    (void)ctx;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_output(g, dt_affine(g, dt_input(g, "x", DT_F32, DT_DIMS(shape->v[0])), 2, 1), "y");
    return g;
}

static void sessions(void **state)
{
    (void)state;
    static const int64_t size[] = { 1000, 1500, 700, 1000 };
    dt_session *s = dt_session_new(cpu, build_sized, NULL);
    int64_t most = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(dt_session_add(s, &(dt_shape_key){ { size[i] } }, NULL), 0);
    for (int i = 0; i < 3; i++) {
        dt_shape_key k;
        int64_t bytes = dt_session_stats(s, i, &k)->arena;
        assert_int_equal(k.v[0], size[i]);
        most = bytes > most ? bytes : most;
    }
    assert_null(dt_session_stats(s, 3, NULL));          /* the last was there already */
    assert_int_equal(dt_session_bytes(s), most);
    assert_int_equal(dt_session_alloc(s, NULL, NULL), 0);
    for (int i = 0; i < 3; i++) {
        dt_graph *g;
        dt_plan *p = dt_session_use(s, &(dt_shape_key){ { size[i] } }, &g);
        float *v = dt_alloc((size_t)size[i] * sizeof(*v));
        v[size[i] - 1] = 3;
        dt_plan_write(p, dt_find(g, "x"), v);
        assert_int_equal(dt_plan_run(p, NULL), 0);
        dt_plan_read(p, dt_find(g, "y"), v);
        assert_true(v[0] == 1 && v[size[i] - 1] == 7);
        free(v);
    }
    assert_null(dt_session_use(s, &(dt_shape_key){ { 1 } }, NULL));
    dt_session_free(&s);
    assert_null(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_random),        cmocka_unit_test(layout_reuses),
        cmocka_unit_test(bytes_are_owned),      cmocka_unit_test(deterministic),
        cmocka_unit_test(recompute_is_smaller), cmocka_unit_test(dead_nodes),
        cmocka_unit_test(unread_outputs),       cmocka_unit_test(inplace_rules),
        cmocka_unit_test(complaints),           cmocka_unit_test(builders_complain),
        cmocka_unit_test(sessions),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
