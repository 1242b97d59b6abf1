/* --text_padding none: what a sample gives depends neither on the rows that its batch is filled up
 * with nor on the other samples: loss and every gradient of a batch of two are those of two batches of one, and those
 * of no filling up at all. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <omp.h>
#include "base/rng.h"
#include "train/optim.h"
#include "train/task_flux.h"

enum { SIDE = 16, MAX_T = 64, T_SHORT = 5, T_LONG = 19 };
#define TOLERANCE 2e-5              /* fp32; sums in another order */

struct net {
    dt_device    *dev;
    dt_flux_pipe *pipe;
    dt_optim      all;              /* what is trained */
    int64_t       lat;              /* floats of the latents of a picture */
    dt_sample     s[2];             /* the short one, the long one */
    float        *noise;  /* [3][2][lat]: x0, noise, and the posterior's mean and log-variance, which are zero */
};

static const float sigmas[2] = { 0.3f, 0.8f };

static void use(struct net *n, enum dt_flux_part k)
{
    dt_params *p = n->pipe->part[k];
    for (int64_t i = 0; i < p->n; i++)
        p->v[i]->trainable = true;
    assert_int_equal(dt_flux_pipe_load(n->pipe, k, n->dev, DT_F32, 0, NULL), 0);
    n->all.set[n->all.nset++] = p;
}

static float *draw(int64_t count, uint32_t what)
{
    float *x = dt_alloc((size_t)count * sizeof(*x));
    dt_rng_fill_normal(x, count, 11, DT_RNG_SHUFFLE, 0, what);
    return x;
}

static void open_net(struct net *n, bool text)
{
    static const char *const caption[2] = { "a cat", "an orange cat on a red house" };
    *n = (struct net){ 0 };
    assert_int_equal(dt_device_open(&n->dev, "cpu", NULL), 0);
    assert_int_equal(dt_flux_pipe_open(&n->pipe, "tests/golden/tiny-flux", MAX_T, NULL), 0);
    assert_int_equal(dt_flux_pipe_tokenizers(n->pipe, NULL), 0);
    use(n, DT_FLUX_DIT);
    for (int k = DT_FLUX_CLIP; k <= DT_FLUX_T5 && text; k++)
        use(n, (enum dt_flux_part)k);
    int64_t f = dt_vae_factor(&n->pipe->vae), C = n->pipe->vae.latent_channels, D = n->pipe->dit.joint_dim,
        P = n->pipe->dit.pooled_dim;
    n->lat = C * (SIDE / f) * (SIDE / f);
    n->noise = draw(6 * n->lat, 0);
    memset(n->noise + 4 * n->lat, 0, (size_t)(2 * n->lat) * sizeof(float));
    for (int i = 0; i < 2; i++)
        n->s[i] = (dt_sample){ .item = i, .caption = caption[i], .C = C, .h = SIDE / f, .w = SIDE / f,
                               .mean = n->noise + 4 * n->lat,
                               .logvar = n->noise + 4 * n->lat, .T = i ? T_LONG : T_SHORT, .D = D, .P = P,
                               .states = draw(MAX_T * D, 1 + (uint32_t)i), .pooled = draw(P, 3 + (uint32_t)i) };
}

static void close_net(struct net *n)
{
    for (int i = 0; i < 2; i++) {
        free((void *)n->s[i].states);
        free((void *)n->s[i].pooled);
    }
    free(n->noise);
    dt_flux_pipe_close(&n->pipe);
    dt_device_close(&n->dev);
}

/* Rows that belong to no caption, set to something loud. */
static void shout(dt_graph *g, dt_plan *p, const dt_micro *b)
{
    dt_tensor *in = dt_find(g, "text_states");
    int64_t T = in->dims.d[1], D = in->dims.d[2];
    float *x = dt_alloc((size_t)(b->n * T * D) * sizeof(*x));
    dt_plan_read(p, in, x);
    for (int i = 0; i < b->n; i++)
        for (int64_t k = b->s[i].T * D; k < T * D; k++) {
            assert_true(x[i * T * D + k] == 0);
            x[i * T * D + k] = k % 2 ? 300.0f : -700.0f;
        }
    dt_plan_write(p, in, x);
    free(x);
}

/* Samples [first, first + count) as one batch with T text rows; gradients are added to those of the parameters. */
static void run(struct net *n, int first, int count, int64_t T, bool text, bool loud, float *loss)
{
    dt_err err = { 0 };
    dt_task task;
    dt_graph *g;
    float one = 1;
    dt_micro b = { .n = count, .w_px = SIDE, .h_px = SIDE, .T = T, .s = n->s + first };
    assert_int_equal(dt_flux_task_new(&task,
                                      &(struct dt_flux_task_params){ .pipe = n->pipe, .act = DT_F32, .backward = true,
        .train_text = text, .timesteps = { .steps = 1000 }, .guidance = 3.5 }, NULL), 0);
    dt_shape_key key = task.shape(task.ctx, count, SIDE, SIDE, T);
    dt_session *s = dt_session_new(n->dev, task.build, task.ctx);
    if (dt_session_add(s, &key, &err) < 0 || dt_session_alloc(s, NULL, &err) < 0)
        fail_msg("%s", err.msg);
    dt_plan *p = dt_session_use(s, &key, &g);
    if (task.feed(task.ctx, g, p, &b, &(dt_step_at){ .nmicro = 1 }, &err) < 0)
        fail_msg("%s", err.msg);
    dt_plan_write(p, dt_find(g, "latents"), n->noise + first * n->lat);
    dt_plan_write(p, dt_find(g, "noise"), n->noise + (2 + first) * n->lat);
    dt_plan_write(p, dt_find(g, "sigma"), sigmas + first);
    dt_plan_write(p, dt_find(g, "loss_scale"), &one);
    if (loud)
        shout(g, p, &b);
    assert_int_equal(dt_plan_run(p, NULL), 0);
    dt_plan_read(p, dt_find(g, "per_sample"), loss);
    dt_session_free(&s);
    dt_task_release(&task);
}

/* The gradients so far, times f; they begin anew. */
static float *take_gradients(struct net *n, float f)
{
    int64_t count = 0;
    for (int k = 0; k < n->all.nset; k++)
        count += n->all.set[k]->n_train;
    float *g = dt_alloc((size_t)count * sizeof(*g)), *at = g;
    for (int k = 0; k < n->all.nset; k++)
        for (int64_t i = 0; i < n->all.set[k]->n_train; i++)
            *at++ = f * n->all.set[k]->grad[i];
    dt_optim_zero(&n->all);
    return g;
}

static double norm(const float *a, const float *b, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += ((double)a[i] - (b ? (double)b[i] : 0)) * ((double)a[i] - (b ? (double)b[i] : 0));
    return sqrt(sum);
}

/* Every parameter for itself, but for those whose gradient is rounding error. */
static void compare(const struct net *n, const float *a, const float *b, const char *what)
{
    for (int k = 0; k < n->all.nset; k++) {
        const dt_params *p = n->all.set[k];
        double whole = norm(b, NULL, p->n_train);
        assert_true(whole > 1e-3);
        for (int64_t i = 0; i < p->n; i++) {
            int64_t off = p->v[i]->off, count = p->v[i]->numel;
            double size = fmax(norm(b + off, NULL, count), 1e-3 * whole), d = norm(a + off, b + off, count);
            if (!(d <= TOLERANCE * size))
                fail_msg("%s: %s of %s is off by %g", what, p->v[i]->name, p->name, d / size);
        }
        a += p->n_train;
        b += p->n_train;
    }
}

static void same_alone_and_together(struct net *n, bool text)
{
    int64_t rows[2] = { T_SHORT, T_LONG };
    float together[2], alone[2], plain[2];
    n->pipe->text_padding = DT_PAD_NONE;
    for (int i = 0; i < 2 && text; i++)
        rows[i] = dt_flux_text_len(n->pipe, n->s[i].caption, NULL);
    assert_in_range(rows[0], 1, 15);
    assert_in_range(rows[1], 17, 31);
    dt_optim_zero(&n->all);
    run(n, 0, 2, 32, text, false, together);
    float *a = take_gradients(n, 1);
    run(n, 0, 1, 16, text, false, alone);
    run(n, 1, 1, 32, text, false, alone + 1);
    float *b = take_gradients(n, 0.5f);
    n->pipe->text_padding = DT_PAD_MAX;         /* as the reference, with states that need no padding */
    for (int i = 0; i < 2; i++) {
        n->pipe->t5_len = rows[i];
        run(n, i, 1, rows[i], text, false, plain + i);
    }
    float *c = take_gradients(n, 0.5f);
    for (int i = 0; i < 2; i++) {
        assert_true(fabsf(alone[i] - plain[i]) <= (float)TOLERANCE * plain[i]);
        assert_true(fabsf(together[i] - plain[i]) <= (float)TOLERANCE * plain[i]);
    }
    assert_true(fabsf(plain[0] - plain[1]) > 1e-3f);
    compare(n, b, c, "alone");
    compare(n, a, c, "together");
    free(a);
    free(b);
    free(c);
}

static void of_cached_states(void **unused)
{
    (void)unused;
    struct net n;
    open_net(&n, false);
    same_alone_and_together(&n, false);
    close_net(&n);
}

static void of_trained_encoders(void **unused)
{
    (void)unused;
    struct net n;
    open_net(&n, true);
    same_alone_and_together(&n, true);
    close_net(&n);
}

static void filling_is_never_seen(void **unused)
{
    (void)unused;
    struct net n;
    float quiet[2], loud[2];
    open_net(&n, false);
    n.pipe->text_padding = DT_PAD_NONE;
    dt_optim_zero(&n.all);
    run(&n, 0, 2, 48, false, false, quiet);
    float *a = take_gradients(&n, 1);
    run(&n, 0, 2, 48, false, true, loud);
    float *b = take_gradients(&n, 1);
    assert_memory_equal(quiet, loud, sizeof(quiet));
    assert_true(norm(a, b, n.all.set[0]->n_train) == 0);
    free(a);
    free(b);
    close_net(&n);
}

/* More states than the batch has room for, and with DT_PAD_MAX also fewer. */
static void other_lengths_are_refused(void **unused)
{
    (void)unused;
    struct net n;
    dt_err err = { 0 };
    open_net(&n, false);
    for (int padding = DT_PAD_MAX; padding <= DT_PAD_NONE; padding++)
        for (int64_t T = 16; T <= 32; T += 16) {
            dt_task task;
            dt_graph *g;
            n.pipe->text_padding = (enum dt_padding)padding;
            dt_micro b = { .n = 2, .w_px = SIDE, .h_px = SIDE, .T = T, .s = n.s };
            assert_int_equal(dt_flux_task_new(&task, &(struct dt_flux_task_params){ .pipe = n.pipe, .act = DT_F32,
                .timesteps = { .steps = 1000 } }, NULL), 0);
            dt_shape_key key = task.shape(task.ctx, 2, SIDE, SIDE, T);
            dt_session *s = dt_session_new(n.dev, task.build, task.ctx);
            assert_int_equal(dt_session_add(s, &key, NULL), 0);
            assert_int_equal(dt_session_alloc(s, NULL, NULL), 0);
            dt_plan *p = dt_session_use(s, &key, &g);
            int rc = task.feed(task.ctx, g, p, &b, &(dt_step_at){ .nmicro = 1 }, &err);
            assert_int_equal(rc, padding == DT_PAD_NONE && T == 32 ? 0 : DT_EDATA);
            assert_true(rc == 0 || strstr(err.msg, "text states are"));
            dt_session_free(&s);
            dt_task_release(&task);
        }
    close_net(&n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_cached_states),
        cmocka_unit_test(of_trained_encoders),
        cmocka_unit_test(filling_is_never_seen),
        cmocka_unit_test(other_lengths_are_refused),
    };
    omp_set_num_threads(1);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
