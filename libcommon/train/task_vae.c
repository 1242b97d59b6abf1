/* task_vae.c - training of a KL autoencoder.
 *
 *   z = mean + exp(logvar / 2) eps,   loss = mean |decode(z) - x| + kl_weight KL(q(z|x) || N(0, 1))
 *
 *   Kingma & Welling 2014; Rombach et al. 2022, app. G, without its perceptual and adversarial terms
 */
#include <stdlib.h>
#include "base/rng.h"
#include "train/task_vae.h"

struct vae_task {
    struct dt_vae_task_params p;
    float  *x, *eps;
    size_t  cap_x, cap_eps;
};

static dt_graph *build(void *ctx, const dt_shape_key *key)
{
    const struct vae_task *t = ctx;
    int64_t B = key->v[0], W = key->v[1], H = key->v[2], f = dt_vae_factor(t->p.config);
    dt_graph *g = dt_graph_new(t->p.act);
    dt_graph_checkpoint(g, t->p.checkpoint);
    if (W % f || H % f)
        dt_graph_fail(g, "pictures of %lldx%lld px: sides must be multiples of %lld for this vae", (long long)W,
                      (long long)H, (long long)f);
    dt_tensor *x = dt_cast(g, dt_input(g, "pictures", DT_F32, DT_DIMS(B, H, W, 3)), t->p.act);
    dt_tensor *eps = dt_input(g, "eps", DT_F32, DT_DIMS(B, H / f, W / f, t->p.config->latent_channels));
    dt_tensor *scale = dt_input(g, "loss_scale", DT_F32, DT_DIMS(1));
    dt_graph_use(g, t->p.params);
    dt_tensor *q = dt_vae_encode(g, t->p.config, x);
    dt_tensor *y = dt_vae_decode(g, t->p.config, dt_posterior_sample(g, q, eps));
    dt_graph_use(g, NULL);
    dt_tensor *part[2] = { dt_output(g, dt_l1_loss(g, y, x), "l1"), dt_output(g, dt_kl_loss(g, q), "kl") };
    dt_tensor *loss = dt_weighted_sum(g, 2, part, (const double[]){ 1.0, t->p.kl_weight });
    dt_backward(g, dt_output(g, loss, "loss"), scale);
    return g;
}

static dt_shape_key shape(void *ctx, int n, int64_t w_px, int64_t h_px, int64_t T)
{
    (void)ctx, (void)T;
    return (dt_shape_key){ { n, w_px, h_px } };
}

static int grow(float **buf, size_t *cap, size_t n, dt_err *err)
{
    if (n > *cap) {
        free(*buf);
        *buf = dt_try_alloc(n * sizeof(float));
        *cap = *buf ? n : 0;
    }
    return *buf ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for a batch of %zu numbers", n);
}

static int64_t reserve(void *ctx, const dt_shape_key *key, dt_err *err)
{
    struct vae_task *t = ctx;
    int64_t f = dt_vae_factor(t->p.config), n = key->v[0], px = key->v[1] * key->v[2] * 3;
    int64_t z = key->v[1] / f * (key->v[2] / f) * t->p.config->latent_channels;
    int rc = grow(&t->x, &t->cap_x, (size_t)(px * n), err);
    if (rc == 0)
        rc = grow(&t->eps, &t->cap_eps, (size_t)(z * n), err);
    return rc < 0 ? rc : (int64_t)((t->cap_x + t->cap_eps) * sizeof(float));
}

static int feed(void *ctx, dt_graph *g, dt_plan *p, const dt_micro *b, const dt_step_at *at, dt_err *err)
{
    struct vae_task *t = ctx;
    int64_t f = dt_vae_factor(t->p.config), px = b->w_px * b->h_px * 3;
    int64_t z = b->w_px / f * (b->h_px / f) * t->p.config->latent_channels;
    int64_t bytes = reserve(t, &(dt_shape_key){ { b->n, b->w_px, b->h_px } }, err);
    if (bytes < 0)
        return (int)bytes;
    for (int i = 0; i < b->n; i++) {
        for (int64_t k = 0; k < px; k++)
            t->x[i * px + k] = (float)b->s[i].rgb[k] / 127.5f - 1.0f;
        dt_rng_fill_normal(t->eps + i * z, z, at->seed, DT_RNG_POSTERIOR, (uint32_t)b->index, (uint32_t)i);
    }
    dt_plan_write(p, dt_find(g, "pictures"), t->x);
    dt_plan_write(p, dt_find(g, "eps"), t->eps);
    return 0;
}

static void free_task(void *ctx)
{
    struct vae_task *t = ctx;
    free(t->x);
    free(t->eps);
    free(t);
}

void dt_vae_task_new(dt_task *out, const struct dt_vae_task_params *p)
{
    struct vae_task *t = dt_alloc(sizeof(*t));
    t->p = *p;
    *out = (dt_task){ .ctx = t, .build = build, .shape = shape, .reserve = reserve, .feed = feed,
                      .free = free_task };
}
