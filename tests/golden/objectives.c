/* objectives.c - losses, noise mixing and the posterior of an autoencoder, with their gradients. */
#include <stdlib.h>
#include <string.h>
#include "kernels/ops.h"
#include "tests/golden/gold.h"

static dt_tensor *input(dt_graph *g, const gold *f, const char *name)
{
    dt_dims d = gold_entry(f, "in.%s", name)->dims;
    if (d.nd == 4)
        d = DT_DIMS(d.d[0], d.d[2], d.d[3], d.d[1]);
    return dt_input(g, name, DT_F32, d);
}

/* The file's tensor, images as channels-last; caller frees. */
static float *values(const gold *f, const char *name)
{
    dt_dims d = gold_entry(f, "%s", name)->dims;
    float *v = gold_f32(f, name);
    if (d.nd != 4)
        return v;
    float *last = dt_alloc((size_t)dt_numel(d) * sizeof(*last));
    gold_channels_last(last, v, d, false);
    free(v);
    return last;
}

static void feed(job *j, const gold *f, const char *name)
{
    char *key = dt_sprintf("in.%s", name);
    float *v = values(f, key);
    job_write(j, name, v);
    free(v);
    free(key);
}

static void compare(job *j, const gold *f, tally *t, const char *ours, const char *key, double tol)
{
    int64_t n = dt_numel(gold_entry(f, "%s", key)->dims);
    float *ref = values(f, key), *a = dt_alloc((size_t)n * sizeof(*a));
    job_read(j, ours, a);
    tally_add(t, key, a, ref, n, 0, tol);
    free(a);
    free(ref);
}

enum kind { PLAIN, LIMIT, WEIGHTED, L1, SAMPLE, KL, NKIND };
static const char *const names[NKIND] = { "mse.plain", "mse.limit", "mse.weighted", "l1", "z", "kl" };

static dt_tensor *loss_of(dt_graph *g, const gold *f, enum kind k, dt_tensor *x)
{
    dt_tensor *per;
    if (k == KL)
        return dt_kl_loss(g, x);
    if (k == SAMPLE) {
        dt_tensor *z = dt_output(g, dt_posterior_sample(g, x, input(g, f, "eps")), "z");
        dt_dims row = DT_DIMS(1, dt_numel(z->dims));
        dt_tensor *dz = dt_reshape(g, input(g, f, "dz"), row);
        return dt_reshape(g, dt_matmul_wt(g, dt_reshape(g, z, row), dz, NULL), DT_DIMS(1));
    }
    dt_tensor *target = input(g, f, "target");
    if (k == L1)
        return dt_l1_loss(g, x, target);
    dt_tensor *w = k == WEIGHTED ? input(g, f, "weight") : NULL;
    dt_tensor *loss = dt_mse_loss(g, x, target, w, k == PLAIN ? 0.0 : 50.0, &per);
    dt_output(g, per, "per_sample");
    return loss;
}

static void one(const gold *f, dt_device *dev, enum kind k, tally *t)
{
    static const char *const inputs[] = { "pred", "target", "weight", "moments", "eps", "dz" };
    const char *what = k < SAMPLE ? "pred" : "moments";
    job j;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x = input(g, f, what);
    dt_require_grad(g, x);
    dt_tensor *loss = dt_output(g, loss_of(g, f, k, x), "loss");
    dt_backward(g, loss, NULL);
    dt_output(g, x->grad, "grad");
    job_start(&j, dev, g, names[k]);
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++)
        if (dt_find(g, inputs[i]))
            feed(&j, f, inputs[i]);
    job_run(&j);
    char *out = dt_sprintf("out.%s", names[k]), *grad = dt_sprintf("grad.in.%s.%s", what, names[k]);
    compare(&j, f, t, k == SAMPLE ? "z" : "loss", out, 1e-6);
    compare(&j, f, t, "grad", grad, 1e-6);
    if (k == LIMIT)
        compare(&j, f, t, "per_sample", "out.per_sample.limit", 1e-6);
    free(grad);
    free(out);
    job_stop(&j);
}

static void mixing(const gold *f, dt_device *dev, tally *t)
{
    job j;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *x0 = input(g, f, "target"), *noise = input(g, f, "pred"), *sigma = input(g, f, "sigma");
    dt_output(g, dt_flow_noise(g, x0, noise, sigma), "mix");
    job_start(&j, dev, g, "flow_noise");
    feed(&j, f, "target");
    feed(&j, f, "pred");
    feed(&j, f, "sigma");
    job_run(&j);
    compare(&j, f, t, "mix", "out.mix", 1e-6);
    job_stop(&j);
}

void golden_objectives(dt_device *dev)
{
    tally t = { 0 };
    gold f;
    gold_open(&f, "objective");
    for (int k = 0; k < NKIND; k++)
        one(&f, dev, (enum kind)k, &t);
    mixing(&f, dev, &t);
    tap(&t, "losses, noise mixing, posterior");
    gold_close(&f);
}
