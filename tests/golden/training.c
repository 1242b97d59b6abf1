/* training.c - AdamW alone, then ten optimiser steps of LoRA and of full training of the folder's transformer,
 * which is flux_b. */
#include <stdlib.h>
#include <string.h>
#include "tests/golden/gold.h"
#include "train/lora.h"
#include "train/optim.h"
#include "train/schedule.h"
#include "train/task_flux.h"

enum { STEPS = 10 };

static double num(const cJSON *o, const char *key, double otherwise)
{
    const cJSON *v = cJSON_GetObjectItem(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : otherwise;
}

/* --- AdamW, clipping and EMA --- */

static void adamw_case(const gold *f, dt_device *dev, const char *name, const cJSON *how)
{
    dt_err err = { 0 };
    tally t = { 0 };
    dt_params *p = dt_params_new("adamw");
    for (int i = 0; i < 3; i++) {
        char key[16] = { (char)('0' + i), 0 };
        dt_params_declare(p, key, gold_entry(f, "in.%s.w.%d", name, i)->dims, DT_INIT_ZERO, 0)->trainable = true;
    }
    must(dt_params_alloc(p, dev, DT_F32, DT_PARAMS_EMA, &err), &err);
    char *prefix = dt_sprintf("in.%s.w.", name);
    gold_load(f->st, p, prefix);
    free(prefix);
    const cJSON *betas = cJSON_GetObjectItem(how, "betas");
    dt_optim o = { .set = { p }, .nset = 1, .beta1 = cJSON_GetArrayItem(betas, 0)->valuedouble,
                   .beta2 = cJSON_GetArrayItem(betas, 1)->valuedouble, .eps = num(how, "eps", 0),
                   .weight_decay = num(how, "weight_decay", 0), .max_norm = num(how, "max_grad_norm", 0),
                   .ema_decay = num(how, "ema_decay", 0) };
    char *key = dt_sprintf("out.%s.norm", name);
    float *norms = gold_f32(f, key);
    dt_optim_zero(&o);
    for (int k = 0; k < STEPS; k++) {
        for (int i = 0; i < 3; i++) {
            char *g = dt_sprintf("in.%s.grad.%d.%d", name, k, i);
            float *grad = gold_f32(f, g);
            dev->upload(dev, p->v[i]->grad, grad, p->v[i]->numel * (int64_t)sizeof(float));
            free(grad);
            free(g);
        }
        double norm = dt_optim_norm(&o);
        tally_num(&t, key, norm, norms[k], 1e-6);
        dt_optim_step(&o, num(how, "lr", 0), norm);
        for (int i = 0; i < 3; i++) {
            tally_block(&t, f, p, p->v[i]->master, p->v[i]->numel, 1e-6, "out.%s.w.%d.%d", name, k, i);
            tally_block(&t, f, p, p->v[i]->ema, p->v[i]->numel, 1e-6, "out.%s.ema.%d.%d", name, k, i);
        }
    }
    tap(&t, "AdamW after clip_grad_norm_, and its EMA, case %s", name);
    free(norms);
    free(key);
    dt_params_free(&p);
}

/* --- flow matching on the folder's transformer, with the graph that dt-train runs --- */

typedef struct bench {
    const gold   *data;             /* train_inputs */
    dt_device    *dev;
    dt_flux_pipe *pipe;             /* tiny-flux, its transformer not loaded */
    int64_t       w_px, h_px, B;
} bench;

static void micro_step(const bench *b, job *j, int64_t k, int64_t accumulate, double guidance)
{
    static const char *const names[][2] = { { "latents", "x0" }, { "noise", "noise" }, { "sigma", "sigma" },
                                            { "text_states", "txt" }, { "pooled", "pooled" } };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *key = dt_sprintf("in.%lld.%s", (long long)k, names[i][1]);
        float *v = gold_f32(b->data, key);
        job_write(j, names[i][0], v);
        free(v);
        free(key);
    }
    float scale = 1.0f / (float)accumulate, ones[2] = { 1, 1 }, told[2] = { (float)guidance, (float)guidance };
    job_write(j, "loss_scale", &scale);
    job_write(j, "loss_weight", ones);
    job_write(j, "guidance", told);
    job_run(j);
}

static void compare_weights(const gold *f, const dt_params *trained, tally *t)
{
    for (int64_t i = 0; i < trained->n; i++) {
        const dt_param *p = trained->v[i];
        char *key = dt_sprintf("out.w.%s", p->name);
        if (dt_st_find(f->st, key))
            tally_block(t, f, trained, p->master, p->numel, 1e-4, "%s", key);
        free(key);
    }
}

/* The prediction is of tokens; the file has latents. */
static void compare_prediction(const bench *b, const gold *f, job *j, tally *t)
{
    dt_dims lat = gold_entry(f, "out.y")->dims;
    int64_t n = dt_numel(lat);
    float *y = gold_f32(f, "out.y"), *tok = dt_alloc((size_t)n * sizeof(*tok)), *a = dt_alloc((size_t)n * sizeof(*a));
    job unpack;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *in = dt_input(g, "tokens", DT_F32, DT_DIMS(lat.d[0], lat.d[2] * lat.d[3] / 4, lat.d[1] * 4));
    dt_output(g, dt_flux_unpack(g, in, lat.d[2], lat.d[3]), "latents");
    job_start(&unpack, b->dev, g, "unpack");
    job_read(j, "prediction", tok);
    job_write(&unpack, "tokens", tok);
    job_run(&unpack);
    job_read(&unpack, "latents", a);
    tally_add(t, "prediction", a, y, n, 0, 1e-4);
    job_stop(&unpack);
    free(a);
    free(tok);
    free(y);
}

/* Ten steps; compares losses, norms, the weights that the file has, and a prediction afterwards. */
static void ten_steps(const bench *b, const gold *f, dt_params *trained, bool recompute)
{
    dt_err err = { 0 };
    tally loss = { 0 }, norm = { 0 }, weights = { 0 };
    cJSON *how = gold_json(f, "train");
    int64_t accumulate = (int64_t)num(how, "accumulation", 1);
    double guidance = num(how, "guidance", 3.5);
    dt_optim o = { .set = { trained }, .nset = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = num(how, "eps", 0),
                   .weight_decay = num(how, "weight_decay", 0), .max_norm = num(how, "max_norm", 0) };
    const char *schedule = cJSON_GetObjectItem(how, "scheduler")->valuestring;
    dt_lr lr = { .kind = !strcmp(schedule, "cosine") ? DT_LR_COSINE : DT_LR_CONSTANT, .base = num(how, "lr", 0),
                 .warmup = (int64_t)num(how, "warmup", 0), .total = STEPS, .cycles = 0.5 };
    dt_task task;
    struct dt_flux_task_params tp = { .pipe = b->pipe, .act = DT_F32, .backward = true, .checkpoint = recompute,
                                      .timesteps = { .steps = 1000 }, .outlier_limit = 50.0 };
    must(dt_flux_task_new(&task, &tp, &err), &err);
    dt_shape_key key = task.shape(task.ctx, (int)b->B, b->w_px, b->h_px, 0);
    job j;
    job_start(&j, b->dev, task.build(task.ctx, &key), f->name);
    float *losses = gold_f32(f, "out.loss"), *norms = gold_f32(f, "out.norm");
    dt_optim_zero(&o);
    for (int64_t s = 0; s < STEPS; s++) {
        double mean = 0;
        for (int64_t k = s * accumulate; k < (s + 1) * accumulate; k++) {
            micro_step(b, &j, k, accumulate, guidance);
            mean += (double)job_scalar(&j, "loss") / (double)accumulate;
        }
        double n = dt_optim_norm(&o);
        tally_num(&loss, "loss", mean, losses[s], 1e-4);
        tally_num(&norm, "norm", n, norms[s], 1e-4);
        dt_optim_step(&o, dt_lr_at(&lr, s), n);
    }
    compare_weights(f, trained, &weights);
    micro_step(b, &j, 0, accumulate, guidance);
    compare_prediction(b, f, &j, &weights);
    tap(&loss, "%s: losses of ten steps", f->name);
    tap(&norm, "%s: gradient norms", f->name);
    tap(&weights, "%s: weights and prediction afterwards", f->name);
    free(norms);
    free(losses);
    cJSON_Delete(how);
    job_stop(&j);
    dt_task_release(&task);
}

static void full(const bench *b, const char *name, bool recompute)
{
    dt_err err = { 0 };
    gold f;
    gold_open(&f, name);
    dt_params *p = b->pipe->part[DT_FLUX_DIT];
    for (int64_t i = 0; i < p->n; i++)
        p->v[i]->trainable = true;
    must(dt_flux_pipe_load(b->pipe, DT_FLUX_DIT, b->dev, DT_F32, 0, &err), &err);
    ten_steps(b, &f, p, recompute);
    dt_flux_pipe_unload(b->pipe, DT_FLUX_DIT);
    gold_close(&f);
}

static void lora(const bench *b, const char *name, bool recompute)
{
    dt_err err = { 0 };
    gold f;
    gold_open(&f, name);
    cJSON *how = gold_json(&f, "train");
    dt_params *base = b->pipe->part[DT_FLUX_DIT];
    dt_lora *l = NULL;
    dt_strs targets = { 0 };        /* as people write them; the file's settings hold what they mean */
    dt_strs_split(&targets, "to_q,to_k,to_v,ff.0,ff.2,ff_context.0,ff_context.2", ',');
    must(dt_lora_new(&l, base, &(dt_lora_config){ .rank = (int64_t)num(how, "rank", 0), .alpha = num(how, "alpha", 0),
                                                  .targets = &targets }, &err), &err);
    must(dt_flux_pipe_load(b->pipe, DT_FLUX_DIT, b->dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
    must(dt_params_alloc(l->params, b->dev, DT_F32, 0, &err), &err);
    base->lora = l;
    gold_load(f.st, l->params, "w.");
    ten_steps(b, &f, l->params, recompute);
    dt_lora_free(&l);
    dt_flux_pipe_unload(b->pipe, DT_FLUX_DIT);
    dt_strs_release(&targets);
    cJSON_Delete(how);
    gold_close(&f);
}

/* A file of diffusers gives the prediction that its trainer ended with. */
static void lora_file(const bench *b, const char *file)
{
    dt_err err = { 0 };
    tally t = { 0 };
    gold f;
    gold_open(&f, "lora_1");
    dt_params *base = b->pipe->part[DT_FLUX_DIT];
    dt_lora *l = NULL;
    char *path = gold_path(file);
    must(dt_flux_pipe_load(b->pipe, DT_FLUX_DIT, b->dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
    must(dt_lora_open_parts(&l, &base, 1, path, &err), &err);
    must(dt_params_alloc(l->params, b->dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
    must(dt_lora_fill(l, &err), &err);
    base->lora = l;
    dt_task task;
    struct dt_flux_task_params tp = { .pipe = b->pipe, .act = DT_F32, .timesteps = { .steps = 1000 } };
    must(dt_flux_task_new(&task, &tp, &err), &err);
    dt_shape_key key = task.shape(task.ctx, (int)b->B, b->w_px, b->h_px, 0);
    job j;
    job_start(&j, b->dev, task.build(task.ctx, &key), file);
    micro_step(b, &j, 0, 1, 3.5);
    compare_prediction(b, &f, &j, &t);
    tap(&t, "%s: prediction", file);
    job_stop(&j);
    dt_task_release(&task);
    dt_lora_free(&l);
    dt_flux_pipe_unload(b->pipe, DT_FLUX_DIT);
    free(path);
    gold_close(&f);
}

void golden_training(dt_device *dev)
{
    dt_err err = { 0 };
    gold f, data;
    gold_open(&f, "adamw");
    cJSON *cases = gold_json(&f, "cases");
    for (const cJSON *c = cases->child; c; c = c->next)
        adamw_case(&f, dev, c->string, c);
    cJSON_Delete(cases);
    gold_close(&f);

    gold_open(&data, "train_inputs");
    dt_dims x0 = gold_entry(&data, "in.0.x0")->dims, txt = gold_entry(&data, "in.0.txt")->dims;
    bench b = { .data = &data, .dev = dev, .B = x0.d[0] };
    char *dir = gold_path("tiny-flux");
    must(dt_flux_pipe_open(&b.pipe, dir, txt.d[1], &err), &err);
    b.h_px = x0.d[2] * dt_vae_factor(&b.pipe->vae);
    b.w_px = x0.d[3] * dt_vae_factor(&b.pipe->vae);
    full(&b, "full_1", false);
    full(&b, "full_2", true);
    lora(&b, "lora_1", false);
    lora(&b, "lora_2", true);
    lora_file(&b, "lora_1_diffusers.safetensors");
    dt_flux_pipe_close(&b.pipe);
    free(dir);
    gold_close(&data);
}
