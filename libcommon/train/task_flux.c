/* task_flux.c - flow matching on FLUX latents.
 *
 *   x0 = (mean + exp(logvar / 2) eps - shift) * scaling
 *   x_sigma = (1 - sigma) x0 + sigma n,   v = n - x0,   loss = mean( w(sigma) 1[|v^ - v| <= 50] (v^ - v)^2 )
 *
 *   Lipman et al. 2023 (flow matching), Esser et al. 2024, sec. 3.1 (timestep densities)
 *   B batch   C latent channels   h, w latent cells   T text tokens
 *
 * With DT_PAD_NONE captions have as many states as tokens.  A batch is filled up to T with zero rows, which
 * nothing attends: what a sample gives depends neither on T nor on the others.
 *
 * All mixing is fp32; sigma is never rounded to the activation dtype before it is used.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "train/task_flux.h"

enum { B_LATENTS, B_NOISE, B_MIX, B_SCALAR, B_TXT, B_POOLED, B_IDS, B_LEN, B_EPS, B_MASK, NBUF };

struct flux_task {
    struct dt_flux_task_params p;
    double  *sigma;                 /* noise table of `tokens` image tokens, index 0 noisiest */
    int64_t  tokens;
    void    *buf[NBUF];             /* host staging, grown to the largest batch */
    size_t   cap[NBUF];
};

/* --- graph --- */

/* T text and S image tokens. */
static void text_inputs(dt_graph *g, const struct flux_task *t, int64_t B, int64_t T, int64_t S, dt_flux_in *in)
{
    const dt_flux_pipe *p = t->p.pipe;
    bool masked = p->text_padding == DT_PAD_NONE;
    in->mask = masked ? dt_input(g, "text_mask", DT_U8, DT_DIMS(B, T + S)) : NULL;
    if (!t->p.train_text) {
        in->txt = dt_input(g, "text_states", t->p.act, DT_DIMS(B, T, p->dit.joint_dim));
        in->pooled = dt_input(g, "pooled", t->p.act, DT_DIMS(B, p->dit.pooled_dim));
        return;
    }
    dt_tensor *clip = dt_input(g, "clip_ids", DT_I32, DT_DIMS(B, p->clip_len));
    dt_tensor *eos = dt_input(g, "clip_eos", DT_I32, DT_DIMS(B));
    dt_tensor *t5 = dt_input(g, "t5_ids", DT_I32, DT_DIMS(B, T));
    dt_tensor *t5_mask = masked ? dt_input(g, "t5_mask", DT_U8, DT_DIMS(B, T)) : NULL;
    dt_graph_use(g, p->part[DT_FLUX_CLIP]);
    in->pooled = dt_clip(g, &p->clip, clip, eos).pooled;
    dt_graph_use(g, p->part[DT_FLUX_T5]);
    in->txt = dt_t5(g, &p->t5, t5, t5_mask);
}

static dt_graph *build(void *ctx, const dt_shape_key *key)
{
    struct flux_task *t = ctx;
    const dt_flux_pipe *p = t->p.pipe;
    int64_t f = dt_vae_factor(&p->vae), B = key->v[0], w = key->v[1] / f, h = key->v[2] / f, C = p->vae.latent_channels;
    int64_t T = key->v[3];
    dt_graph *g = dt_graph_new(t->p.act);
    dt_graph_checkpoint(g, t->p.checkpoint);
    if (key->v[1] % (2 * f) || key->v[2] % (2 * f))
        dt_graph_fail(g, "pictures of %lldx%lld px: sides must be multiples of %lld for this model",
                      (long long)key->v[1], (long long)key->v[2], (long long)(2 * f));
    dt_tensor *x0 = dt_input(g, "latents", DT_F32, DT_DIMS(B, C, h, w));
    dt_tensor *noise = dt_input(g, "noise", DT_F32, DT_DIMS(B, C, h, w));
    dt_tensor *mix = t->p.input_perturbation > 0 ? dt_input(g, "noise_mixed", DT_F32, DT_DIMS(B, C, h, w)) : noise;
    dt_tensor *weight = dt_input(g, "loss_weight", DT_F32, DT_DIMS(B));
    dt_tensor *scale = dt_input(g, "loss_scale", DT_F32, DT_DIMS(1)), *per_sample;
    dt_flux_in in = { .sigma = dt_input(g, "sigma", DT_F32, DT_DIMS(B)) };
    if (p->dit.guidance)
        in.guidance = dt_input(g, "guidance", DT_F32, DT_DIMS(B));
    text_inputs(g, t, B, T, h / 2 * (w / 2), &in);
    in.img = dt_flux_pack(g, dt_flow_noise(g, x0, mix, in.sigma));
    dt_flux_rope_grid(g, &p->dit, T, h / 2, w / 2, &in.cos, &in.sin);

    dt_graph_use(g, p->part[DT_FLUX_DIT]);
    dt_tensor *v = dt_output(g, dt_flux(g, &p->dit, &in), "prediction");
    dt_graph_use(g, NULL);
    dt_tensor *loss = dt_mse_loss(g, v, dt_flux_pack(g, dt_sub(g, noise, x0)), weight, t->p.outlier_limit, &per_sample);
    dt_output(g, loss, "loss");
    dt_output(g, per_sample, "per_sample");
    if (t->p.backward)
        dt_backward(g, loss, scale);
    return g;
}

static dt_shape_key shape(void *ctx, int n, int64_t w_px, int64_t h_px, int64_t T)
{
    const struct flux_task *t = ctx;
    return (dt_shape_key){ { n, w_px, h_px, T ? T : t->p.pipe->t5_len } };
}

/* --- feeding --- */

/* Bytes of each buffer for a micro-batch of n. */
static void sizes(const struct flux_task *t, const dt_shape_key *key, size_t bytes[NBUF])
{
    const dt_flux_pipe *p = t->p.pipe;
    int64_t f = dt_vae_factor(&p->vae), w = key->v[1] / f, h = key->v[2] / f;
    size_t n = (size_t)key->v[0], T = (size_t)key->v[3], z = (size_t)(w * h * p->vae.latent_channels) * sizeof(float);
    size_t el = dt_dtype_size(t->p.act), S = (size_t)(h / 2 * (w / 2));
    memset(bytes, 0, NBUF * sizeof(*bytes));
    bytes[B_LATENTS] = bytes[B_NOISE] = n * z;
    bytes[B_MIX] = t->p.input_perturbation > 0 ? n * z : 0;
    bytes[B_EPS] = 2 * z;
    bytes[B_SCALAR] = 3 * n * sizeof(float);
    bytes[B_LEN] = n * sizeof(int64_t);
    bytes[B_MASK] = p->text_padding == DT_PAD_NONE ? n * (T + S) : 0;
    if (t->p.train_text) {
        bytes[B_IDS] = (n * ((size_t)p->clip_len + T + 1) + (size_t)p->t5_len) * sizeof(int32_t);
    } else {
        bytes[B_TXT] = n * T * (size_t)p->dit.joint_dim * el;
        bytes[B_POOLED] = n * (size_t)p->dit.pooled_dim * el;
    }
}

static int64_t reserve(void *ctx, const dt_shape_key *key, dt_err *err)
{
    struct flux_task *t = ctx;
    size_t bytes[NBUF];
    int64_t sum = 0;
    sizes(t, key, bytes);
    for (int k = 0; k < NBUF; k++) {
        if (bytes[k] > t->cap[k]) {
            free(t->buf[k]);
            t->buf[k] = dt_try_alloc(bytes[k]);
            t->cap[k] = t->buf[k] ? bytes[k] : 0;
            if (!t->buf[k])
                return dt_err_set(err, DT_ENOMEM, "no memory for a batch of %zu bytes", bytes[k]);
        }
        sum += (int64_t)t->cap[k];
    }
    return sum;
}

static void noise_table(struct flux_task *t, int64_t tokens)
{
    int64_t n = t->p.timesteps.steps;
    if (t->tokens == tokens)
        return;
    for (int64_t i = 0; i < n; i++)
        t->sigma[i] = n == 1 ? 1.0 : 1.0 + (1.0 / (double)n - 1.0) * (double)i / (double)(n - 1);
    dt_flow_shift(&t->p.pipe->flow, t->sigma, n, tokens);
    t->tokens = tokens;
}

static int feed_latents(struct flux_task *t, dt_graph *g, dt_plan *p, const dt_micro *b, const dt_step_at *at,
                        dt_err *err)
{
    const dt_vae_config *vae = &t->p.pipe->vae;
    const dt_tensor *in = dt_find(g, "latents");
    int64_t cells = in->dims.d[2] * in->dims.d[3], one = in->dims.d[1] * cells;
    float *x0 = t->buf[B_LATENTS], *noise = t->buf[B_NOISE], *mix = t->buf[B_MIX], *eps = t->buf[B_EPS],
        *logvar = eps + one;
    uint32_t when = (uint32_t)b->index;
    for (int i = 0; i < b->n; i++) {
        const dt_sample *s = &b->s[i];
        float *x = x0 + i * one, *n = noise + i * one;
        if (s->C != in->dims.d[1] || s->h != in->dims.d[2] || s->w != in->dims.d[3])
            return dt_err_set(err, DT_EDATA,
                              "cached latents of item %lld are [%lld, %lld, %lld], not what this model takes",
                              (long long)s->item, (long long)s->C, (long long)s->h, (long long)s->w);
        dt_rng_fill_normal(n, one, at->seed, DT_RNG_NOISE, when, (uint32_t)i);
        if (t->p.noise_offset > 0) {
            dt_rng r = dt_rng_make(at->seed, DT_RNG_NOISE_OFFSET, when, (uint32_t)i);
            for (int64_t c = 0; c < s->C; c++) {
                float o = (float)(t->p.noise_offset * dt_rng_normal(&r));
                for (int64_t k = 0; k < cells; k++)
                    n[c * cells + k] += o;
            }
        }
        dt_rng_fill_normal(eps, one, at->seed, DT_RNG_POSTERIOR, when, (uint32_t)i);
        dt_convert(x, DT_F32, s->mean, s->lat_dtype, one);
        dt_convert(logvar, DT_F32, s->logvar, s->lat_dtype, one);
        for (int64_t k = 0; k < one; k++)
            x[k] = (x[k] + expf(0.5f * logvar[k]) * eps[k] - (float)vae->shift) * (float)vae->scaling;
        if (t->p.input_perturbation > 0) {
            float *m = mix + i * one;
            dt_rng_fill_normal(m, one, at->seed, DT_RNG_PERTURB, when, (uint32_t)i);
            for (int64_t k = 0; k < one; k++)
                m[k] = n[k] + (float)t->p.input_perturbation * m[k];
        }
    }
    dt_plan_write(p, dt_find(g, "latents"), x0);
    dt_plan_write(p, dt_find(g, "noise"), noise);
    if (t->p.input_perturbation > 0)
        dt_plan_write(p, dt_find(g, "noise_mixed"), mix);
    return 0;
}

static void feed_times(struct flux_task *t, dt_graph *g, dt_plan *p, const dt_micro *b, const dt_step_at *at)
{
    const dt_timesteps *ts = &t->p.timesteps;
    float *sigma = t->buf[B_SCALAR], *weight = sigma + b->n, *guidance = weight + b->n;
    noise_table(t, b->s[0].h / 2 * (b->s[0].w / 2));
    for (int i = 0; i < b->n; i++) {
        int64_t slot = at->micro * b->n + i, nslot = at->nmicro * b->n;
        int64_t k = t->p.backward ? dt_timestep_index(ts, at->seed, at->step, slot, nslot)
                                  : (2 * slot + 1) * ts->steps / (2 * nslot);
        sigma[i] = (float)t->sigma[k];
        weight[i] = (float)dt_timestep_weight(ts, t->sigma[k]);
        guidance[i] = (float)t->p.guidance;
    }
    dt_plan_write(p, dt_find(g, "sigma"), sigma);
    dt_plan_write(p, dt_find(g, "loss_weight"), weight);
    if (t->p.pipe->dit.guidance)
        dt_plan_write(p, dt_find(g, "guidance"), guidance);
}

/* Which of its T text rows each of n captions has: columns [0, T) of the input `name` [n, cols]; the
 * others are attended. */
static void feed_mask(struct flux_task *t, dt_graph *g, dt_plan *p, const char *name, const int64_t *len, int64_t T)
{
    const dt_tensor *mask = dt_find(g, name);
    if (!mask)
        return;
    int64_t n = mask->dims.d[0], cols = mask->dims.d[1];
    uint8_t *m = t->buf[B_MASK];
    memset(m, 1, (size_t)(n * cols));
    for (int64_t i = 0; i < n; i++)
        memset(m + i * cols + len[i], 0, (size_t)(T - len[i]));
    dt_plan_write(p, mask, m);
}

static int feed_states(struct flux_task *t, dt_graph *g, dt_plan *p, const dt_micro *b, dt_err *err)
{
    const dt_tensor *in = dt_find(g, "text_states");
    bool masked = dt_find(g, "text_mask") != NULL;
    int64_t T = in->dims.d[1], D = in->dims.d[2], P = t->p.pipe->dit.pooled_dim;
    size_t el = dt_dtype_size(t->p.act), row = (size_t)D * el;
    int64_t *len = t->buf[B_LEN];
    char *txt = t->buf[B_TXT], *pooled = t->buf[B_POOLED];
    for (int i = 0; i < b->n; i++) {
        const dt_sample *s = &b->s[i];
        if ((masked ? s->T > T : s->T != T) || s->D != D || s->P != P)
            return dt_err_set(err, DT_EDATA,
                              "cached text states are [%lld, %lld] and [%lld], this run takes [%lld, %lld] and [%lld]",
                              (long long)s->T, (long long)s->D, (long long)s->P, (long long)T, (long long)D,
                              (long long)P);
        dt_convert(txt + (size_t)(i * T) * row, t->p.act, s->states, s->txt_dtype, s->T * D);
        memset(txt + (size_t)(i * T + s->T) * row, 0, (size_t)(T - s->T) * row);
        len[i] = s->T;
        dt_convert(pooled + (size_t)(i * P) * el, t->p.act, s->pooled, s->txt_dtype, P);
    }
    dt_plan_write(p, in, txt);
    dt_plan_write(p, dt_find(g, "pooled"), pooled);
    feed_mask(t, g, p, "text_mask", len, T);
    return 0;
}

static int feed_ids(struct flux_task *t, dt_graph *g, dt_plan *p, const dt_micro *b, dt_err *err)
{
    const dt_flux_pipe *pipe = t->p.pipe;
    const dt_tensor *in = dt_find(g, "t5_ids");
    int64_t n = b->n, nc = pipe->clip_len, T = in->dims.d[1];
    int64_t *len = t->buf[B_LEN];
    int32_t *clip = t->buf[B_IDS], *t5 = clip + n * nc, *eos = t5 + n * T, *one = eos + n;
    for (int64_t i = 0; i < n; i++) {
        len[i] = dt_flux_tokenize(pipe, b->s[i].caption, clip + i * nc, eos + i, one, err);
        if (len[i] < 0)
            return (int)len[i];
        if (len[i] > T)
            return dt_err_set(err, DT_EFAIL, "caption of item %lld has %lld text states, its batch %lld",
                              (long long)b->s[i].item, (long long)len[i], (long long)T);
        memcpy(t5 + i * T, one, (size_t)T * sizeof(*t5));
    }
    dt_plan_write(p, dt_find(g, "clip_ids"), clip);
    dt_plan_write(p, dt_find(g, "clip_eos"), eos);
    dt_plan_write(p, in, t5);
    feed_mask(t, g, p, "t5_mask", len, T);
    feed_mask(t, g, p, "text_mask", len, T);
    return 0;
}

static int feed(void *ctx, dt_graph *g, dt_plan *p, const dt_micro *b, const dt_step_at *at, dt_err *err)
{
    struct flux_task *t = ctx;
    const dt_tensor *text = dt_find(g, t->p.train_text ? "t5_ids" : "text_states");
    int64_t bytes = reserve(t, &(dt_shape_key){ { b->n, b->w_px, b->h_px, text->dims.d[1] } }, err);
    int rc = bytes < 0 ? (int)bytes : feed_latents(t, g, p, b, at, err);
    if (rc == 0)
        feed_times(t, g, p, b, at);
    if (rc == 0)
        rc = t->p.train_text ? feed_ids(t, g, p, b, err) : feed_states(t, g, p, b, err);
    return rc;
}

static void free_task(void *ctx)
{
    struct flux_task *t = ctx;
    for (int i = 0; i < NBUF; i++)
        free(t->buf[i]);
    free(t->sigma);
    free(t);
}

int dt_flux_task_new(dt_task *out, const struct dt_flux_task_params *p, dt_err *err)
{
    if (p->timesteps.steps < 1)
        return dt_err_set(err, DT_EUSAGE, "the noise table needs at least one step");
    struct flux_task *t = dt_alloc(sizeof(*t));
    t->p = *p;
    t->sigma = dt_alloc((size_t)p->timesteps.steps * sizeof(*t->sigma));
    t->tokens = -1;
    *out = (dt_task){ .ctx = t, .build = build, .shape = shape, .reserve = reserve, .feed = feed,
                      .free = free_task };
    return 0;
}
