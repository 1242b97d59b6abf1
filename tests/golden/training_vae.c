/* training_vae.c - ten optimiser steps of the autoencoder vae_a with the graph that dt-train runs, and
 * the EMA of its weights. */
#include <stdlib.h>
#include <string.h>
#include "tests/golden/gold.h"
#include "train/optim.h"
#include "train/task_vae.h"

enum { STEPS = 10 };

static double setting(const cJSON *how, const char *key) { return cJSON_GetObjectItem(how, key)->valuedouble; }

/* Everything is declared by building the graph once. */
static dt_params *trained(const gold *f, dt_device *dev, const dt_task *task, const dt_shape_key *key, dt_params *p)
{
    dt_err err = { 0 };
    dt_graph *g = task->build(task->ctx, key);
    dt_graph_free(&g);
    for (int64_t i = 0; i < p->n; i++)
        p->v[i]->trainable = true;
    must(dt_params_alloc(p, dev, DT_F32, DT_PARAMS_EMA, &err), &err);
    gold_load(f->weights, p, "w.");
    return p;
}

static void write_images(job *j, const gold *f, int64_t k, const char *in, const char *from)
{
    char *key = dt_sprintf("in.%lld.%s", (long long)k, from);
    dt_dims d = gold_entry(f, "%s", key)->dims;
    float *ref = gold_f32(f, key), *v = dt_alloc((size_t)dt_numel(d) * sizeof(*v));
    gold_channels_last(v, ref, d, false);
    job_write(j, in, v);
    free(v);
    free(ref);
    free(key);
}

/* Not to_k.bias: it moves all logits of a query alike, its gradient is zero but for rounding, and AdamW makes that
 * as large as any. */
static void compare(const gold *f, const dt_params *p, const char *prefix, bool ema, tally *t)
{
    for (int64_t i = 0; i < p->n; i++)
        if (!strstr(p->v[i]->name, "to_k.bias"))
            tally_block(t, f, p, ema ? p->v[i]->ema : p->v[i]->master, p->v[i]->numel, 1e-4, "out.%s.%s", prefix,
                        p->v[i]->name);
}

static void steps(const gold *f, dt_device *dev, bool recompute)
{
    dt_err err = { 0 };
    tally loss = { 0 }, norm = { 0 }, weights = { 0 }, ema = { 0 };
    cJSON *how = gold_json(f, "train");
    gold vae;
    gold_open(&vae, "vae_a");
    dt_vae_config c;
    must(dt_vae_config_parse(&c, vae.config, vae.name, &err), &err);
    dt_params *p = dt_params_new("vae");
    dt_task task;
    dt_vae_task_new(&task, &(struct dt_vae_task_params){ .config = &c, .params = p, .act = DT_F32,
                                                         .checkpoint = recompute,
                                                         .kl_weight = setting(how, "kl_weight") });
    dt_dims x = gold_entry(f, "in.0.x")->dims;
    dt_shape_key key = task.shape(task.ctx, (int)x.d[0], x.d[3], x.d[2], 0);
    dt_optim o = { .set = { trained(f, dev, &task, &key, p) }, .nset = 1, .beta1 = 0.9, .beta2 = 0.999,
                   .eps = setting(how, "eps"),
                   .weight_decay = setting(how, "weight_decay"), .max_norm = setting(how, "max_norm"),
                   .ema_decay = setting(how, "ema_decay") };
    job j;
    job_start(&j, dev, task.build(task.ctx, &key), f->name);
    float *l1 = gold_f32(f, "out.l1"), *kl = gold_f32(f, "out.kl"), *norms = gold_f32(f, "out.norm"), one = 1;
    dt_optim_zero(&o);
    for (int64_t k = 0; k < STEPS; k++) {
        write_images(&j, f, k, "pictures", "x");
        write_images(&j, f, k, "eps", "eps");
        job_write(&j, "loss_scale", &one);
        job_run(&j);
        double n = dt_optim_norm(&o);
        tally_num(&loss, "L1", (double)job_scalar(&j, "l1"), (double)l1[k], 1e-4);
        tally_num(&loss, "KL", (double)job_scalar(&j, "kl"), (double)kl[k], 1e-4);
        tally_num(&norm, "norm", n, (double)norms[k], 1e-4);
        dt_optim_step(&o, setting(how, "lr"), n);
    }
    compare(f, p, "w", false, &weights);
    compare(f, p, "ema", true, &ema);
    const char *recomputed = recompute ? ", recomputed" : "";
    tap(&loss, "autoencoder%s: losses of ten steps", recomputed);
    tap(&norm, "autoencoder%s: gradient norms", recomputed);
    tap(&weights, "autoencoder%s: weights afterwards", recomputed);
    tap(&ema, "autoencoder%s: their running mean (EMA)", recomputed);
    free(l1);
    free(kl);
    free(norms);
    job_stop(&j);
    dt_task_release(&task);
    dt_params_free(&p);
    gold_close(&vae);
    cJSON_Delete(how);
}

void golden_training_vae(dt_device *dev)
{
    gold f;
    gold_open(&f, "train_vae");
    steps(&f, dev, false);
    steps(&f, dev, true);
    gold_close(&f);
}
