/* moves.c - every tensor that should train moves within the first steps, and no other does: for each way of training, all
 * parameters of the run's model are compared, bit by bit, from step to step.  What should train is said here in words of the
 * tensors' names, not asked of the library.
 *
 *   moves [PART]                only the cases with PART in their names */
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "train/run_int.h"

enum { STEPS = 3, MAX_PARTS = 5, MAX_ARGS = 48 };

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
    { "lora by glob", DT_METHOD_LORA, "--target_name single_transformer_blocks.1*", "lora/single_transformer_blocks.1.*", 12 },
    { "lora on text projections", DT_METHOD_LORA, "--target_name add_q_proj,add_k_proj,add_v_proj,to_add_out,to_out.0",
      "lora/*.add_[qkv]_proj.* lora/*.to_add_out.* lora/*.to_out.0.*", 20 },
    { "lora on modulations and embedders", DT_METHOD_LORA,
      "--target_name norm1.linear,norm1_context.linear,norm.linear,norm_out.linear,x_embedder,context_embedder,time_text_embed.*,proj_out",
      "lora/*norm1.linear.* lora/*norm1_context.linear.* lora/*norm.linear.* lora/norm_out.linear.* lora/x_embedder.* "
      "lora/context_embedder.* lora/time_text_embed.* lora/*proj_out.*", 0 },
    { "lora but for some", DT_METHOD_LORA, "--lora_skip_name to_q,proj_mlp", "lora/* !lora/*.to_q.* !lora/*.proj_mlp.*", 88 },
    { "lora, recompute", DT_METHOD_LORA, "--gradient_checkpointing", "lora/*", 100 },
    { "lora, bf16, weights left in their file", DT_METHOD_LORA, "--mixed_precision bf16 --low_vram", "lora/*", 100 },
    { "lora, accumulation", DT_METHOD_LORA, "--gradient_accumulation_steps 2", "lora/*", 100 },
    { "full", DT_METHOD_FULL, "", "transformer/*", 112 },
    { "full, recompute, bf16", DT_METHOD_FULL, "--gradient_checkpointing --mixed_precision bf16", "transformer/*", 112 },
    { "full, from a config", DT_METHOD_FULL, "--from_config", "transformer/*", 112 },
    { "full, chosen modules", DT_METHOD_FULL, "--trainable_modules attn norm_out", "transformer/*attn* transformer/*norm_out*", 0 },
    { "full, norms alone", DT_METHOD_FULL, "--trainable_modules norm_q norm_k norm_added",
      "transformer/*.norm_[qk].* transformer/*.norm_added_*", 0 },
    { "full, one block, weights left in their file", DT_METHOD_FULL, "--trainable_modules single_transformer_blocks.0. --low_vram",
      "transformer/single_transformer_blocks.0.*", 0 },
    { "full, text encoders too", DT_METHOD_FULL, "--train_text_encoder", "transformer/* text_encoder/* text_encoder_2/*", 112 + 36 + 21 },
    { "vae", DT_METHOD_VAE, "", "vae/*", 120 },
    { "vae, recompute, from a config", DT_METHOD_VAE, "--gradient_checkpointing --from_config", "vae/*", 120 },
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
            if (p->v[i]->mapped)
                dt_param_bring(p->v[i], c->v[k][i], DT_F32);
            else
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

/* --- a run, as run.c sets one up, stopped after each step --- */

static void words(void *ctx, const char *line)
{
    if (*(bool *)ctx)
        printf("# %s\n", line);
}

static int set_up(dt_job *j, dt_err *err)
{
    int rc = dt_device_open(&j->dev, "cpu", err);
    if (rc == 0)
        rc = dt_mkdirs(j->o->output_dir, err);
    if (rc == 0)
        rc = dt_job_data(j, err);
    if (rc == 0)
        rc = dt_job_model(j, err);
    if (rc == 0)
        rc = dt_job_shapes(j, err);
    j->t = (dt_trainer){ .accumulate = j->o->data.gradient_accumulation_steps, .lr = { .base = 1e-3, .total = STEPS },
                         .output_dir = j->o->output_dir };
    if (rc == 0)
        rc = dt_job_task(j, err);
    if (rc == 0)
        rc = dt_job_memory(j, err);
    if (rc == 0)
        rc = dt_job_weights(j, err);
    if (rc == 0 && !(j->arena = j->dev->alloc(j->dev, j->arena_bytes)))
        rc = dt_err_set(err, DT_ENOMEM, "no memory");
    if (rc == 0)
        rc = dt_session_alloc(j->session, j->arena, err);
    struct dt_loader_params p = dt_job_loader(j);
    if (rc == 0)
        rc = dt_loader_open(&j->loader, &p, err);
    if (rc < 0)
        return rc;
    j->t.task = &j->task;
    j->t.source = dt_loader_source(j->loader);
    j->t.session = j->session;
    j->t.optim = &j->optim;
    j->t.dev = j->dev;
    j->t.state = (dt_train_state){ .seed = (uint64_t)j->info.seed, .threads = j->dev->threads };
    return 0;
}

static void release(dt_job *j)
{
    dt_loader_close(&j->loader);
    dt_session_free(&j->session);
    if (j->o->method == DT_METHOD_VAE)
        dt_vae_task_release(&j->task);
    else
        dt_flux_task_release(&j->task);
    if (j->arena)
        j->dev->free(j->dev, j->arena);
    dt_lora_free(&j->lora);
    dt_flux_pipe_close(&j->pipe);
    dt_cache_close(&j->cache);
    dt_device_close(&j->dev);
    free(j->shape);
    free(j->plan);
}

static int run(const way *w, dt_train_opts *o, const char *bin, dt_err *err)
{
    bool loud = getenv("VERBOSE") != NULL;
    const dt_ui ui = { .ctx = &loud, .say = words, .warn = words, .table = words, .bin_dir = bin };
    dt_job j = { .o = o, .ui = &ui, .act = o->mixed_precision ? DT_BF16 : DT_F32, .checkpoint = o->gradient_checkpointing };
    copy a = { 0 }, b = { 0 };
    int wrong = 0, rc = set_up(&j, err);
    if (rc == 0)
        rc = take(&a, &j, err);
    for (int step = 1; step <= STEPS && rc == 0; step++) {
        j.t.max_steps = step;
        if ((rc = dt_train(&j.t, err)) == 0 && (rc = take(&b, &j, err)) == 0)
            wrong += judge(w, &a, &b, step);
        drop(&a);
        a = b;
        b = (copy){ 0 };
    }
    drop(&a);
    release(&j);
    return rc < 0 ? rc : wrong;
}

static bool one(const way *w, const char *dir, const char *bin)
{
    dt_train_opts o;
    dt_err err = { 0 };
    char *line = dt_sprintf("x --pretrained_model_name_or_path tests/golden/tiny-flux --train_data_meta %s/m.jsonl --image_sample_size 32 "
                            "--train_batch_size 2 --report_to none --quiet --threads 1 --adam_weight_decay 0 --output_dir %s/out %s%s",
                            dir, dir, w->method == DT_METHOD_LORA ? "--rank 2 " : "", w->args);
    char *argv[MAX_ARGS + 1] = { NULL }, *save = NULL;
    int argc = 0;
    for (char *s = strtok_r(line, " ", &save); s && argc < MAX_ARGS; s = strtok_r(NULL, " ", &save))
        argv[argc++] = s;
    dt_train_opts_init(&o, w->method);
    int rc = dt_cli_parse(dt_train_cli(w->method), &o, argc, argv, NULL, &err);
    if (rc == 0)
        rc = dt_train_opts_check(&o, argc, argv, &err);
    if (rc == 0)
        rc = run(w, &o, bin, &err);
    if (rc < 0)
        printf("# %s\n", err.msg);
    dt_train_opts_release(&o);
    free(line);
    return rc == 0;
}

int main(int argc, char **argv)
{
    char dir[] = "/tmp/dt-moves-XXXXXX", cwd[4096];
    const char *b = getenv("B");
    char *bin = dt_sprintf("%s/bin", b ? b : "build"), *meta = NULL, *pictures = NULL;
    int bad = 0, n = 0;
    dt_err err = { 0 };
    if (!mkdtemp(dir) || !getcwd(cwd, sizeof(cwd)))
        return 1;
    pictures = dt_sprintf("{\"file_path\":\"%s/examples/pictures/crown.png\",\"text\":\"a crown\"}\n"
                          "{\"file_path\":\"%s/examples/pictures/rocket.png\",\"text\":\"a rocket that flies\"}\n", cwd, cwd);
    meta = dt_path_join(dir, "m.jsonl");
    if (dt_file_write(meta, pictures, strlen(pictures), &err) < 0)
        printf("Bail out! %s\n", err.msg);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        if (argc > 1 && !strstr(ways[i].name, argv[1]))
            continue;
        bool ok = one(&ways[i], dir, bin);
        bad += !ok;
        printf("%s %d - %s: what should train moves, the rest stays\n", ok ? "ok" : "not ok", ++n, ways[i].name);
        fflush(stdout);
    }
    dt_rmtree(dir, NULL);
    printf("1..%d\n", n);
    free(pictures);
    free(meta);
    free(bin);
    return bad > 0;
}
