/* sampler.c - see sampler.h. */
#include <stdlib.h>
#include "tensor/strmap.h"
#include "train/sampler.h"

struct dt_sampler {
    struct dt_sampler_params p;
    dt_flux_run *text;              /* gone once the prompts are encoded */
    dt_flux_run *plain, *adapted;   /* transformer without and with the LoRA; plain has the vae as well.
                                       NULL if not wanted */
    dt_strs      prompts;
    dt_strmap   *index;
    int64_t     *at, cap;           /* [prompts + 1] rows of states before those of a prompt */
    float       *states, *pooled;   /* [at[prompts]][joint_dim], [prompts][pooled_dim] */
    void        *arena;
};

/* Floats of the states of the first n prompts. */
static int64_t states_len(const dt_sampler *s, int64_t n) { return n ? s->at[n] * s->p.pipe->dit.joint_dim : 0; }

static dt_params_bytes weights(const dt_sampler *s, const dt_params *p)
{
    return dt_params_size(p, s->p.act, DT_PARAMS_NO_OPTIM);
}

static dt_flux_run *new_run(const dt_sampler *s)
{
    return dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = s->p.pipe, .dev = s->p.dev, .act = s->p.act,
                                                         .tile_px = s->p.tile_px });
}

int dt_sampler_new(dt_sampler **out, const struct dt_sampler_params *p, dt_err *err)
{
    dt_sampler *s = dt_alloc(sizeof(*s));
    *out = s;
    *s = (dt_sampler){ .p = *p, .index = dt_strmap_new() };
    int rc = dt_flux_pipe_tokenizers(p->pipe, err);
    for (int64_t i = 0; p->lora && i < p->lora->params->n; i++)
        p->lora->params->v[i]->trainable = false;
    s->text = new_run(s);
    s->plain = new_run(s);
    s->adapted = p->lora ? new_run(s) : NULL;
    if (rc < 0)
        dt_sampler_free(out);
    return rc;
}

void dt_sampler_free(dt_sampler **ps)
{
    dt_sampler *s = *ps;
    if (!s)
        return;
    dt_flux_run_free(&s->text);
    dt_flux_run_free(&s->plain);
    dt_flux_run_free(&s->adapted);
    s->p.pipe->part[DT_FLUX_DIT]->lora = NULL;
    if (s->arena)
        s->p.dev->free(s->p.dev, s->arena);
    dt_strmap_free(&s->index);
    dt_strs_release(&s->prompts);
    free(s->at);
    free(s->states);
    free(s->pooled);
    free(s);
    *ps = NULL;
}

int64_t dt_sampler_add_prompt(dt_sampler *s, const char *text, dt_err *err)
{
    int64_t i = dt_strmap_get(s->index, text), T;
    if (i >= 0)
        return i;
    if ((T = dt_flux_text_len(s->p.pipe, text, err)) < 0)
        return T;
    int rc = dt_flux_run_plan_text(s->text, T, err);
    if (rc < 0)
        return rc;
    i = s->prompts.n;
    dt_grow(&s->at, &s->cap, i + 2, sizeof(*s->at));
    s->at[0] = 0;
    s->at[i + 1] = s->at[i] + T;
    dt_strs_add(&s->prompts, text);
    return dt_strmap_add(s->index, s->prompts.v[i], i);
}

/* A graph has the branches of the LoRA that is set while it is built. */
int dt_sampler_add_size(dt_sampler *s, int64_t prompt, int64_t w, int64_t h, dt_err *err)
{
    dt_params *dit = s->p.pipe->part[DT_FLUX_DIT];
    int64_t T = s->at[prompt + 1] - s->at[prompt];
    int rc = 0;
    dit->lora = NULL;
    if (!s->adapted || s->p.base)
        rc = dt_flux_run_plan_sample(s->plain, w, h, T, err);
    dit->lora = s->p.lora;
    if (rc == 0 && s->adapted)
        rc = dt_flux_run_plan_sample(s->adapted, w, h, T, err);
    return rc == 0 ? dt_flux_run_plan_decode(s->plain, w, h, err) : rc;
}

static int64_t arena_bytes(const dt_sampler *s)
{
    int64_t a = dt_flux_run_bytes(s->plain), b = s->adapted ? dt_flux_run_bytes(s->adapted) : 0;
    return a > b ? a : b;
}

void dt_sampler_memory(const dt_sampler *s, dt_mem_plan *p, int64_t process)
{
    dt_params *const *part = s->p.pipe->part;
    int64_t states = (states_len(s, s->prompts.n) + s->prompts.n * s->p.pipe->dit.pooled_dim) * (int64_t)sizeof(float);
    dt_mem_moment *m = dt_mem_add(p, "captions", process);
    dt_mem_add_params(m, weights(s, part[DT_FLUX_CLIP]));
    dt_mem_add_params(m, weights(s, part[DT_FLUX_T5]));
    m->kind[DT_MEM_ACTIVATIONS] = dt_flux_run_bytes(s->text);
    m->kind[DT_MEM_PICTURES] = states;
    m = dt_mem_add(p, "pictures", process);
    dt_mem_add_params(m, weights(s, part[DT_FLUX_DIT]));
    dt_mem_add_params(m, weights(s, part[DT_FLUX_VAE]));
    if (s->p.lora)
        dt_mem_add_params(m, weights(s, s->p.lora->params));
    m->kind[DT_MEM_ACTIVATIONS] = arena_bytes(s);
    m->kind[DT_MEM_PICTURES] = states + dt_flux_run_host(s->plain);
}

int64_t dt_sampler_latents(const dt_sampler *s, int64_t w_px, int64_t h_px)
{
    int64_t f = dt_vae_factor(&s->p.pipe->vae);
    return s->p.pipe->vae.latent_channels * (w_px / f) * (h_px / f);
}

static int load_part(dt_sampler *s, enum dt_flux_part k, dt_err *err)
{
    return dt_flux_pipe_load(s->p.pipe, k, s->p.dev, s->p.act, DT_PARAMS_NO_OPTIM, err);
}

static int encode(dt_sampler *s, const volatile int *stop, dt_err *err)
{
    dt_flux_pipe *p = s->p.pipe;
    s->states = dt_try_alloc((size_t)states_len(s, s->prompts.n) * sizeof(float));
    s->pooled = dt_try_alloc((size_t)(s->prompts.n * p->dit.pooled_dim) * sizeof(float));
    if (!s->states || !s->pooled)
        return dt_err_set(err, DT_ENOMEM, "no memory for %lld prompts", (long long)s->prompts.n);
    int rc = load_part(s, DT_FLUX_CLIP, err);
    if (rc == 0)
        rc = load_part(s, DT_FLUX_T5, err);
    if (rc == 0)
        rc = dt_flux_run_alloc(s->text, NULL, err);
    for (int64_t i = 0; i < s->prompts.n && rc == 0; i++)
        rc = stop && *stop ? dt_err_set(err, DT_ESIGNAL, "stopped on request")
                           : dt_flux_run_text(s->text, s->prompts.v[i], s->states + states_len(s, i),
                                              s->pooled + i * p->dit.pooled_dim, err);
    dt_flux_run_free(&s->text);
    dt_flux_pipe_unload(p, DT_FLUX_CLIP);
    dt_flux_pipe_unload(p, DT_FLUX_T5);
    return rc;
}

int dt_sampler_load(dt_sampler *s, const volatile int *stop, dt_err *err)
{
    dt_device *dev = s->p.dev;
    int rc = encode(s, stop, err);
    if (rc == 0)
        rc = load_part(s, DT_FLUX_DIT, err);
    if (rc == 0)
        rc = load_part(s, DT_FLUX_VAE, err);
    if (rc == 0 && s->p.lora && (rc = dt_params_alloc(s->p.lora->params, dev, s->p.act, DT_PARAMS_NO_OPTIM, err)) == 0)
        rc = dt_lora_fill(s->p.lora, err);
    if (rc == 0 && !(s->arena = dev->alloc(dev, arena_bytes(s))))
        rc = dt_err_set(err, DT_ENOMEM, "cannot allocate %.1f MiB for activations on %s",
                        (double)arena_bytes(s) / 1048576.0, dev->name);
    if (rc == 0)
        rc = dt_flux_run_alloc(s->plain, s->arena, err);
    return rc == 0 && s->adapted ? dt_flux_run_alloc(s->adapted, s->arena, err) : rc;
}

int dt_sampler_run(dt_sampler *s, const dt_sampler_shot *q, uint8_t *rgb, dt_err *err)
{
    const dt_flux_pipe *p = s->p.pipe;
    const dt_flux_sample f = { .w_px = q->w_px, .h_px = q->h_px, .steps = q->steps, .guidance = q->guidance,
                               .T = s->at[q->prompt + 1] - s->at[q->prompt],
                               .states = s->states + states_len(s, q->prompt),
                               .pooled = s->pooled + q->prompt * p->dit.pooled_dim, .latents = q->latents,
                               .on_step = q->on_step, .ctx = q->ctx };
    int rc = dt_flux_run_sample(s->adapted && !q->base ? s->adapted : s->plain, &f, err);
    return rc == 0 ? dt_flux_run_decode(s->plain, q->latents, q->w_px, q->h_px, rgb, err) : rc;
}
