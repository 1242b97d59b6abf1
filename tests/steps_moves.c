/* steps_moves.c - every tensor that should train moves within the first steps, and no other does: for each
 * way of training, all parameters of the run's model are compared, bit by bit, from step to step.  What should train is
 * said here in words of the tensors' names, not asked of the library. */
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/steps.h"

enum { STEPS = 3, MAX_PARTS = 5 };

/* --- what should train: globs of names; a leading '!' takes away, the last that fits decides --- */

typedef struct way {
    const char *name;
    enum dt_method method;
    const char *args;               /* in words */
    const char *trains;             /* globs of SET/NAME, in words */
    int         tensors;            /* that many, counted by hand from the model's layers; 0: not counted */
} way;

static const way ways[] = {
    { "lora on every linear layer", DT_METHOD_LORA, "", "lora/*", 100 },
    { "lora by suffix", DT_METHOD_LORA, "--target_name to_q,to_k,to_v", "lora/*.attn.to_[qkv].*", 24 },
    { "lora on the feed-forwards of the reference", DT_METHOD_LORA, "--target_name ff.0,ff.2,ff_context.0,ff_context.2",
      "lora/*.ff.net.0.proj.* lora/*.ff.net.2.* lora/*.ff_context.net.0.proj.* lora/*.ff_context.net.2.*", 16 },
    { "lora by glob", DT_METHOD_LORA, "--target_name single_transformer_blocks.1*",
      "lora/single_transformer_blocks.1.*", 12 },
    { "lora on text projections", DT_METHOD_LORA, "--target_name add_q_proj,add_k_proj,add_v_proj,to_add_out,to_out.0",
      "lora/*.add_[qkv]_proj.* lora/*.to_add_out.* lora/*.to_out.0.*", 20 },
    { "lora on modulations and embedders", DT_METHOD_LORA,
      "--target_name norm1.linear,norm1_context.linear,norm.linear,norm_out.linear,x_embedder,context_embedder,time_text_embed.*,proj_out",
      "lora/*norm1.linear.* lora/*norm1_context.linear.* lora/*norm.linear.* lora/norm_out.linear.* lora/x_embedder.* "
      "lora/context_embedder.* lora/time_text_embed.* lora/*proj_out.*", 0 },
    { "lora but for some", DT_METHOD_LORA, "--lora_skip_name to_q,proj_mlp", "lora/* !lora/*.to_q.* !lora/*.proj_mlp.*",
      88 },
    { "lora, recompute", DT_METHOD_LORA, "--gradient_checkpointing", "lora/*", 100 },
    { "lora, bf16, weights left in their file", DT_METHOD_LORA, "--mixed_precision bf16 --low_vram", "lora/*", 100 },
    { "lora, accumulation", DT_METHOD_LORA, "--gradient_accumulation_steps 2", "lora/*", 100 },
    { "full", DT_METHOD_FULL, "", "transformer/*", 112 },
    { "full, recompute, bf16", DT_METHOD_FULL, "--gradient_checkpointing --mixed_precision bf16", "transformer/*",
      112 },
    { "full, no clipping", DT_METHOD_FULL, "--max_grad_norm 0", "transformer/*", 112 },
    { "full, from a config", DT_METHOD_FULL, "--from_config", "transformer/*", 112 },
    { "full, chosen modules", DT_METHOD_FULL, "--trainable_modules attn norm_out",
      "transformer/*attn* transformer/*norm_out*", 0 },
    { "full, norms alone", DT_METHOD_FULL, "--trainable_modules norm_q norm_k norm_added",
      "transformer/*.norm_[qk].* transformer/*.norm_added_*", 0 },
    { "full, one block, weights left in their file", DT_METHOD_FULL,
      "--trainable_modules single_transformer_blocks.0. --low_vram", "transformer/single_transformer_blocks.0.*", 0 },
    { "full, text encoders too", DT_METHOD_FULL, "--train_text_encoder",
      "transformer/* text_encoder/* text_encoder_2/*", 112 + 36 + 21 },
    { "vae", DT_METHOD_VAE, "", "vae/*", 120 },
    { "vae, recompute, from a config", DT_METHOD_VAE, "--gradient_checkpointing --from_config", "vae/*", 120 },
    { "vae, no clipping", DT_METHOD_VAE, "--max_grad_norm 0", "vae/*", 120 },
    { "vae, decoder alone", DT_METHOD_VAE, "--trainable_modules decoder", "vae/decoder.*", 0 },
};

static bool should_train(const way *w, const char *set, const char *name)
{
    char *full = dt_sprintf("%s/%s", set, name), *words = dt_strdup(w->trains), *save = NULL;
    bool yes = false;
    for (char *g = strtok_r(words, " ", &save); g; g = strtok_r(NULL, " ", &save))
        if (!fnmatch(g + (*g == '!'), full, 0))
            yes = *g != '!';
    free(words);
    free(full);
    return yes;
}

/* --- all parameters, in fp32: what is trained by its masters --- */

typedef struct copy { dt_params *set[MAX_PARTS]; float **v[MAX_PARTS]; int n; } copy;

static int take(copy *c, const dt_job *j, dt_err *err)
{
    int rc = 0;
    *c = (copy){ 0 };
    for (int k = 0; k < DT_FLUX_NPART; k++)
        if (j->pipe->part[k] && j->pipe->part[k]->allocated)
            c->set[c->n++] = j->pipe->part[k];
    if (j->lora)
        c->set[c->n++] = j->lora->params;
    for (int k = 0; k < c->n && rc == 0; k++) {
        dt_params *p = c->set[k];
        c->v[k] = dt_alloc((size_t)(p->n + 1) * sizeof(*c->v[k]));
        for (int64_t i = 0; i < p->n && rc == 0; i++) {
            c->v[k][i] = dt_alloc((size_t)p->v[i]->numel * sizeof(float));
            rc = dt_params_read(p, p->v[i], false, c->v[k][i], err);
        }
    }
    return rc;
}

static void drop(copy *c)
{
    for (int k = 0; k < c->n; k++) {
        for (int64_t i = 0; c->v[k] && i < c->set[k]->n; i++)
            free(c->v[k][i]);
        free(c->v[k]);
    }
    c->n = 0;
}

/* The kernels' copy of a trained tensor is its master, rounded. */
static bool in_step(const dt_param *q)
{
    float *w = dt_alloc((size_t)q->numel * sizeof(*w)), *m = dt_alloc((size_t)q->numel * sizeof(*m));
    void *rounded = dt_alloc((size_t)q->numel * sizeof(float));
    dt_convert(rounded, q->dtype, q->master, DT_F32, q->numel);
    dt_convert(m, DT_F32, rounded, q->dtype, q->numel);
    dt_convert(w, DT_F32, q->w, q->dtype, q->numel);
    bool same = !memcmp(w, m, (size_t)q->numel * sizeof(*w));
    free(rounded);
    free(m);
    free(w);
    return same;
}

/* Counts tensors that did not do what they should in the step; says the first ones.
 * B of a LoRA begins at 0, so that A has no gradient before the second step. */
static int judge(const way *w, const copy *a, const copy *b, int step)
{
    int wrong = 0, trained = 0;
    for (int k = 0; k < a->n; k++)
        for (int64_t i = 0; i < a->set[k]->n; i++) {
            const dt_param *q = a->set[k]->v[i];
            bool should = should_train(w, a->set[k]->name, q->name), waits = step == 1 && strstr(q->name, "lora_A");
            bool moved = memcmp(a->v[k][i], b->v[k][i], (size_t)q->numel * sizeof(float)) != 0;
            trained += should;
            if (moved != (should && !waits) || should != q->trainable || (should && !in_step(q)))
                if (wrong++ < 5)
                    printf("# step %d: %s/%s %s\n", step, a->set[k]->name, q->name,
                           moved ? should ? "moved too early, or its copy is another" : "moved" : "stayed");
        }
    if (w->tensors && trained != w->tensors && ++wrong)
        printf("# %d tensors should train, %d were counted\n", trained, w->tensors);
    if (!trained && ++wrong)
        printf("# none should train\n");
    return wrong;
}

static int run(const way *w, dt_err *err)
{
    steps s;
    copy a = { 0 }, b = { 0 };
    int wrong = 0, rc = steps_open(&s, w->method, w->args, err);
    if (rc == 0)
        rc = take(&a, &s.j, err);
    for (int step = 1; step <= STEPS && rc == 0; step++) {
        s.j.t.max_steps = step;
        if ((rc = dt_train(&s.j.t, err)) == 0 && (rc = take(&b, &s.j, err)) == 0)
            wrong += judge(w, &a, &b, step);
        drop(&a);
        a = b;
        b = (copy){ 0 };
    }
    drop(&a);
    steps_close(&s);
    return rc < 0 ? rc : wrong;
}

void steps_moves(void)
{
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        dt_err err = { 0 };
        if (!steps_wanted(ways[i].name))
            continue;
        int wrong = run(&ways[i], &err);
        if (wrong < 0)
            printf("# %s\n", err.msg);
        steps_result(wrong == 0, "%s: what should train moves, the rest stays", ways[i].name);
    }
}
