/* sampler.c - see sampler.h. */
#include <stdlib.h>
#include "tensor/strmap.h"
#include "train/sampler.h"

enum { ASKED, BASE, NTEXT };        /* with the LoRA if there is one, without it */

struct text {
    dt_flux_run *run;               /* gone once the prompts are encoded; NULL: nothing of it is its own */
    bool         own_states;        /* T5's; else the other's serve */
    float       *states, *pooled;   /* [at[prompts]][joint_dim], [prompts][pooled_dim] */
};

struct dt_sampler {
    struct dt_sampler_params p;
    dt_lora     *lora[DT_FLUX_NPART];
    struct text  text[NTEXT];
    dt_flux_run *plain, *adapted;   /* transformer without and with the LoRA; plain has the vae as well.
                                       NULL if not wanted */
    dt_strs      prompts;
    dt_strmap   *index;
    int64_t     *at, cap;           /* [prompts + 1] rows of states before those of a prompt */
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

/* A graph has the branches of the LoRA that is set while it is built. */
static void set_lora(const dt_sampler *s, bool on)
{
    for (int k = 0; k < DT_FLUX_NPART; k++)
        s->p.pipe->part[k]->lora = on ? s->lora[k] : NULL;
}

int dt_sampler_new(dt_sampler **out, const struct dt_sampler_params *p, dt_err *err)
{
    dt_sampler *s = dt_alloc(sizeof(*s));
    *out = s;
    *s = (dt_sampler){ .p = *p, .index = dt_strmap_new() };
    int rc = dt_flux_pipe_tokenizers(p->pipe, err);
    for (int k = 0; p->lora && k < DT_FLUX_NPART; k++) {
        s->lora[k] = p->lora[k];
        p->lora[k] = NULL;
        for (int64_t i = 0; s->lora[k] && i < s->lora[k]->params->n; i++)
            s->lora[k]->params->v[i]->trainable = false;
    }
    s->text[ASKED].run = new_run(s);
    s->text[ASKED].own_states = true;
    if (p->base && (s->lora[DT_FLUX_CLIP] || s->lora[DT_FLUX_T5])) {
        s->text[BASE].run = new_run(s);
        s->text[BASE].own_states = s->lora[DT_FLUX_T5] != NULL;
    }
    s->plain = new_run(s);
    s->adapted = s->lora[DT_FLUX_DIT] ? new_run(s) : NULL;
    if (rc < 0)
        dt_sampler_free(out);
    return rc;
}

void dt_sampler_free(dt_sampler **ps)
{
    dt_sampler *s = *ps;
    if (!s)
        return;
    dt_flux_run_free(&s->plain);
    dt_flux_run_free(&s->adapted);
    for (int i = 0; i < NTEXT; i++)
        dt_flux_run_free(&s->text[i].run);
    set_lora(s, false);
    for (int k = 0; k < DT_FLUX_NPART; k++)
        dt_lora_free(&s->lora[k]);
    if (s->arena)
        s->p.dev->free(s->p.dev, s->arena);
    dt_strmap_free(&s->index);
    dt_strs_release(&s->prompts);
    free(s->at);
    free(s->text[ASKED].states);
    free(s->text[ASKED].pooled);
    if (s->text[BASE].states != s->text[ASKED].states)
        free(s->text[BASE].states);
    if (s->text[BASE].pooled != s->text[ASKED].pooled)
        free(s->text[BASE].pooled);
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
    int rc = 0;
    for (int k = 0; k < NTEXT && rc == 0; k++) {
        set_lora(s, k == ASKED);
        if (s->text[k].run)
            rc = dt_flux_run_plan_text(s->text[k].run, s->text[k].own_states ? T : 0, err);
    }
    if (rc < 0)
        return rc;
    i = s->prompts.n;
    dt_grow(&s->at, &s->cap, i + 2, sizeof(*s->at));
    s->at[0] = 0;
    s->at[i + 1] = s->at[i] + T;
    dt_strs_add(&s->prompts, text);
    return dt_strmap_add(s->index, s->prompts.v[i], i);
}

int dt_sampler_add_size(dt_sampler *s, int64_t prompt, int64_t w, int64_t h, dt_err *err)
{
    int64_t T = s->at[prompt + 1] - s->at[prompt];
    int rc = 0;
    set_lora(s, false);
    if (!s->adapted || s->p.base)
        rc = dt_flux_run_plan_sample(s->plain, w, h, T, err);
    set_lora(s, true);
    if (rc == 0 && s->adapted)
        rc = dt_flux_run_plan_sample(s->adapted, w, h, T, err);
    return rc == 0 ? dt_flux_run_plan_decode(s->plain, w, h, err) : rc;
}

static int64_t arena_bytes(const dt_sampler *s)
{
    int64_t a = dt_flux_run_bytes(s->plain), b = s->adapted ? dt_flux_run_bytes(s->adapted) : 0;
    return a > b ? a : b;
}

/* Of the states of all prompts. */
static int64_t text_bytes(const dt_sampler *s)
{
    int64_t floats = 0;
    for (int i = 0; i < NTEXT; i++)
        floats += (s->text[i].own_states ? states_len(s, s->prompts.n) : 0) +
                  (s->text[i].run ? s->prompts.n * s->p.pipe->dit.pooled_dim : 0);
    return floats * (int64_t)sizeof(float);
}

/* What a file's LoRA holds until it is filled is part of the process. */
static void add_weights(const dt_sampler *s, dt_mem_moment *m, enum dt_flux_part k)
{
    dt_mem_add_params(m, weights(s, s->p.pipe->part[k]));
    if (s->lora[k]) {
        dt_mem_add_params(m, weights(s, s->lora[k]->params));
        m->kind[DT_MEM_PROCESS] -= dt_lora_held(s->lora[k]);
    }
}

void dt_sampler_memory(const dt_sampler *s, dt_mem_plan *p, int64_t process)
{
    int64_t states = text_bytes(s);
    dt_mem_moment *m = dt_mem_add(p, "captions", process);
    add_weights(s, m, DT_FLUX_CLIP);
    add_weights(s, m, DT_FLUX_T5);
    for (int i = 0; i < NTEXT; i++)
        if (s->text[i].run && dt_flux_run_bytes(s->text[i].run) > m->kind[DT_MEM_ACTIVATIONS])
            m->kind[DT_MEM_ACTIVATIONS] = dt_flux_run_bytes(s->text[i].run);
    m->kind[DT_MEM_PICTURES] = states;
    m = dt_mem_add(p, "pictures", process - dt_lora_held(s->lora[DT_FLUX_CLIP]) - dt_lora_held(s->lora[DT_FLUX_T5]));
    add_weights(s, m, DT_FLUX_DIT);
    add_weights(s, m, DT_FLUX_VAE);
    m->kind[DT_MEM_ACTIVATIONS] = arena_bytes(s);
    m->kind[DT_MEM_PICTURES] = states + dt_flux_run_host(s->plain);
}

int64_t dt_sampler_latents(const dt_sampler *s, int64_t w_px, int64_t h_px)
{
    int64_t f = dt_vae_factor(&s->p.pipe->vae);
    return s->p.pipe->vae.latent_channels * (w_px / f) * (h_px / f);
}

/* A network, and what adapts it. */
static int load_part(dt_sampler *s, enum dt_flux_part k, dt_err *err)
{
    int rc = dt_flux_pipe_load(s->p.pipe, k, s->p.dev, s->p.act, DT_PARAMS_NO_OPTIM, err);
    dt_lora *l = s->lora[k];
    if (rc == 0 && l)
        rc = dt_params_alloc(l->params, s->p.dev, s->p.act, DT_PARAMS_NO_OPTIM, err);
    return rc == 0 && l ? dt_lora_fill(l, err) : rc;
}

/* All prompts through t's networks, which are gone then. */
static int encode(dt_sampler *s, struct text *t, const volatile int *stop, dt_err *err)
{
    const dt_flux_pipe *p = s->p.pipe;
    float *states = t->own_states ? dt_try_alloc((size_t)states_len(s, s->prompts.n) * sizeof(float)) : NULL;
    t->pooled = dt_try_alloc((size_t)(s->prompts.n * p->dit.pooled_dim) * sizeof(float));
    t->states = t->own_states ? states : s->text[ASKED].states;
    int rc = t->states && t->pooled ? dt_flux_run_alloc(t->run, NULL, err)
                                    : dt_err_set(err, DT_ENOMEM, "no memory for %lld prompts", (long long)s->prompts.n);
    for (int64_t i = 0; i < s->prompts.n && rc == 0; i++)
        rc = stop && *stop ? dt_err_set(err, DT_ESIGNAL, "stopped on request")
                           : dt_flux_run_text(t->run, s->prompts.v[i], states ? states + states_len(s, i) : NULL,
                                              t->pooled + i * p->dit.pooled_dim, err);
    dt_flux_run_free(&t->run);
    return rc;
}

static int encode_all(dt_sampler *s, const volatile int *stop, dt_err *err)
{
    static const enum dt_flux_part part[] = { DT_FLUX_CLIP, DT_FLUX_T5 };
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = load_part(s, part[i], err);
    for (int i = 0; i < NTEXT && rc == 0; i++) {
        if (s->text[i].run)
            rc = encode(s, &s->text[i], stop, err);
        else
            s->text[i] = (struct text){ .states = s->text[ASKED].states, .pooled = s->text[ASKED].pooled };
    }
    for (int i = 0; i < 2; i++) {
        dt_flux_run_free(&s->text[i].run);
        dt_flux_pipe_unload(s->p.pipe, part[i]);
        dt_lora_free(&s->lora[part[i]]);
    }
    return rc;
}

int dt_sampler_load(dt_sampler *s, const volatile int *stop, dt_err *err)
{
    dt_device *dev = s->p.dev;
    int rc = encode_all(s, stop, err);
    if (rc == 0)
        rc = load_part(s, DT_FLUX_DIT, err);
    if (rc == 0)
        rc = load_part(s, DT_FLUX_VAE, err);
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
    const struct text *t = &s->text[q->base ? BASE : ASKED];
    const dt_flux_sample f = { .w_px = q->w_px, .h_px = q->h_px, .steps = q->steps, .guidance = q->guidance,
                               .T = s->at[q->prompt + 1] - s->at[q->prompt],
                               .states = t->states + states_len(s, q->prompt),
                               .pooled = t->pooled + q->prompt * p->dit.pooled_dim, .latents = q->latents,
                               .on_step = q->on_step, .ctx = q->ctx };
    int rc = dt_flux_run_sample(s->adapted && !q->base ? s->adapted : s->plain, &f, err);
    return rc == 0 ? dt_flux_run_decode(s->plain, q->latents, q->w_px, q->h_px, rgb, err) : rc;
}
