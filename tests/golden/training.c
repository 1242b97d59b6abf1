/* training.c - AdamW alone, then ten optimiser steps of LoRA and of full training of flux_b. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tests/golden/gold.h"
#include "models/flux.h"
#include "train/optim.h"
#include "train/schedule.h"

enum { STEPS = 10 };

static double num(const cJSON *o, const char *key, double otherwise)
{
    const cJSON *v = cJSON_GetObjectItem(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : otherwise;
}

/* --- AdamW and clipping --- */

static void adamw_case(const gold *f, dt_device *dev, const char *name, const cJSON *how)
{
    dt_err err = { 0 };
    tally t = { 0 };
    dt_params *p = dt_params_new("adamw");
    for (int i = 0; i < 3; i++) {
        char key[16] = { (char)('0' + i), 0 };
        dt_params_declare(p, key, gold_entry(f, "in.%s.w.%d", name, i)->dims, DT_INIT_ZERO, 0)->trainable = true;
    }
    must(dt_params_alloc(p, dev, DT_F32, 0, &err), &err);
    char *prefix = dt_sprintf("in.%s.w.", name);
    gold_load(f->st, p, prefix);
    free(prefix);
    const cJSON *betas = cJSON_GetObjectItem(how, "betas");
    dt_optim o = { .set = { p }, .nset = 1, .beta1 = cJSON_GetArrayItem(betas, 0)->valuedouble,
                   .beta2 = cJSON_GetArrayItem(betas, 1)->valuedouble, .eps = num(how, "eps", 0),
                   .weight_decay = num(how, "weight_decay", 0), .max_norm = num(how, "max_grad_norm", 0) };
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
            char *w = dt_sprintf("out.%s.w.%d.%d", name, k, i);
            float *ref = gold_f32(f, w), *a = dt_alloc((size_t)p->v[i]->numel * sizeof(*a));
            dev->download(dev, a, p->v[i]->master, p->v[i]->numel * (int64_t)sizeof(*a));
            tally_add(&t, w, a, ref, p->v[i]->numel, 0, 1e-6);
            free(a);
            free(ref);
            free(w);
        }
    }
    tap(&t, "AdamW after clip_grad_norm_, case %s", name);
    free(norms);
    free(key);
    dt_params_free(&p);
}

/* --- flow matching on flux_b --- */

static dt_tensor *like(dt_graph *g, const gold *data, const char *name)
{
    return dt_input(g, name, DT_F32, gold_entry(data, "in.0.%s", name)->dims);
}

static dt_graph *build(const gold *model, const gold *data, dt_params *base, bool backward)
{
    dt_err err = { 0 };
    dt_flux_config c;
    must(dt_flux_config_parse(&c, model->config, model->name, &err), &err);
    dt_graph *g = dt_graph_new(DT_F32);
    dt_graph_use(g, base);
    dt_tensor *scale = dt_input(g, "loss_scale", DT_F32, DT_DIMS(1));
    dt_tensor *x0 = like(g, data, "x0"), *noise = like(g, data, "noise"), *sigma = like(g, data, "sigma");
    int64_t B = x0->dims.d[0], H = x0->dims.d[2], W = x0->dims.d[3];
    dt_flux_in in = { .img = dt_flux_pack(g, dt_flow_noise(g, x0, noise, sigma)), .txt = like(g, data, "txt"),
                      .pooled = like(g, data, "pooled"), .sigma = sigma,
                      .guidance = dt_input(g, "guidance", DT_F32, DT_DIMS(B)) };
    dt_flux_rope_grid(g, &c, in.txt->dims.d[1], H / 2, W / 2, &in.cos, &in.sin);
    dt_tensor *y = dt_flux_unpack(g, dt_flux(g, &c, &in), H, W);
    dt_tensor *loss = dt_mse_loss(g, y, dt_sub(g, noise, x0), NULL, 50.0, NULL);
    if (backward)
        dt_backward(g, loss, scale);
    dt_output(g, loss, "loss");
    dt_output(g, y, "prediction");
    return g;
}

static void micro_step(job *j, const gold *data, int64_t k, int64_t accumulate, double guidance)
{
    static const char *const names[] = { "x0", "noise", "sigma", "txt", "pooled" };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *key = dt_sprintf("in.%lld.%s", (long long)k, names[i]);
        float *v = gold_f32(data, key);
        job_write(j, names[i], v);
        free(v);
        free(key);
    }
    float scale = 1.0f / (float)accumulate, both[2] = { (float)guidance, (float)guidance };
    job_write(j, "loss_scale", &scale);
    job_write(j, "guidance", both);
    job_run(j);
}

/* Ten steps; compares losses, norms, the weights of `trained` that the file has, and a prediction afterwards. */
static void ten_steps(const gold *f, const gold *model, const gold *data, dt_device *dev, dt_params *base,
                      dt_params *trained, const char *what)
{
    tally loss = { 0 }, norm = { 0 }, weights = { 0 };
    cJSON *how = gold_json(f, "train");
    int64_t accumulate = (int64_t)num(how, "accumulation", 1);
    double guidance = num(how, "guidance", 3.5);
    dt_optim o = { .set = { trained }, .nset = 1, .beta1 = 0.9, .beta2 = 0.999, .eps = num(how, "eps", 0),
                   .weight_decay = num(how, "weight_decay", 0), .max_norm = num(how, "max_norm", 0) };
    const char *schedule = cJSON_GetObjectItem(how, "scheduler")->valuestring;
    dt_lr lr = { .kind = !strcmp(schedule, "cosine") ? DT_LR_COSINE : DT_LR_CONSTANT, .base = num(how, "lr", 0),
                 .warmup = (int64_t)num(how, "warmup", 0), .total = STEPS, .cycles = 0.5 };
    job j;
    job_start(&j, dev, build(model, data, base, true), what);
    float *losses = gold_f32(f, "out.loss"), *norms = gold_f32(f, "out.norm");
    dt_optim_zero(&o);
    for (int64_t s = 0; s < STEPS; s++) {
        double mean = 0;
        for (int64_t k = s * accumulate; k < (s + 1) * accumulate; k++) {
            micro_step(&j, data, k, accumulate, guidance);
            mean += (double)job_scalar(&j, "loss") / (double)accumulate;
        }
        double n = dt_optim_norm(&o);
        tally_num(&loss, "loss", mean, losses[s], 1e-4);
        tally_num(&norm, "norm", n, norms[s], 1e-3);
        dt_optim_step(&o, dt_lr_at(&lr, s), n);
    }
    for (int64_t i = 0; i < trained->n; i++) {
        dt_param *p = trained->v[i];
        char *key = dt_sprintf("out.w.%s", p->name);
        if (dt_st_find(f->st, key)) {
            float *ref = gold_f32(f, key), *a = dt_alloc((size_t)p->numel * sizeof(*a));
            dev->download(dev, a, p->master, p->numel * (int64_t)sizeof(*a));
            tally_add(&weights, key, a, ref, p->numel, 0, 1e-5);
            free(a);
            free(ref);
        }
        free(key);
    }
    micro_step(&j, data, 0, accumulate, guidance);
    int64_t n = dt_numel(gold_entry(f, "out.y")->dims);
    float *y = gold_f32(f, "out.y"), *a = dt_alloc((size_t)n * sizeof(*a));
    job_read(&j, "prediction", a);
    tally_add(&weights, "prediction", a, y, n, 0, 1e-4);
    tap(&loss, "%s: losses of ten steps", what);
    tap(&norm, "%s: gradient norms", what);
    tap(&weights, "%s: weights and prediction afterwards", what);
    free(a);
    free(y);
    free(norms);
    free(losses);
    cJSON_Delete(how);
    job_stop(&j);
}

static dt_params *transformer(const gold *model, const gold *data)
{
    dt_err err = { 0 };
    dt_params *p = dt_params_new("transformer");
    dt_graph *g = build(model, data, p, false);
    if (dt_graph_error(g))
        must(dt_err_set(&err, DT_EFAIL, "flux_b: %s", dt_graph_error(g)), &err);
    dt_graph_free(&g);
    return p;
}

static void full(const gold *model, const gold *data, dt_device *dev, const char *name)
{
    dt_err err = { 0 };
    gold f;
    gold_open(&f, name);
    dt_params *p = transformer(model, data);
    for (int64_t i = 0; i < p->n; i++)
        p->v[i]->trainable = true;
    must(dt_params_alloc(p, dev, DT_F32, 0, &err), &err);
    gold_load(f.weights, p, "w.");
    ten_steps(&f, model, data, dev, p, p, name);
    dt_params_free(&p);
    gold_close(&f);
}

void golden_training(dt_device *dev)
{
    gold f, model, data;
    gold_open(&f, "adamw");
    cJSON *cases = gold_json(&f, "cases");
    for (const cJSON *c = cases->child; c; c = c->next)
        adamw_case(&f, dev, c->string, c);
    cJSON_Delete(cases);
    gold_close(&f);

    gold_open(&model, "flux_b");
    gold_open(&data, "train_inputs");
    full(&model, &data, dev, "full_1");
    full(&model, &data, dev, "full_2");
    gold_close(&data);
    gold_close(&model);
}
