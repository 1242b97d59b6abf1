/* work.c - see work.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/rng.h"
#include "bench/work.h"
#include "models/flux.h"
#include "models/text_t5.h"
#include "models/vae_kl.h"
#include "train/lora.h"
#include "train/optim.h"

enum { IMAGE_SIDE = 16, TEXT = 128, T5_TOKENS = 256, PIXELS = 512, RANK = 16, SEED = 1 };

static const dt_flux_config flux = {
    .in_channels = 64, .out_channels = 64, .layers = 4, .single_layers = 8, .head_dim = 128, .heads = 6,
    .joint_dim = 4096, .pooled_dim = 768, .axes = { 16, 56, 56 }, .guidance = true,
};
static const dt_vae_config vae = {
    .in_channels = 3, .out_channels = 3, .latent_channels = 16, .block_out = { 128, 256, 512, 512 }, .nblock = 4,
    .layers = 2, .groups = 32, .mid_attention = true, .scaling = 0.3611, .shift = 0.1159, .sample_size = 1024,
};
static const dt_t5_config t5 = {
    .vocab = 32128, .d_model = 1024, .d_kv = 64, .d_ff = 2816, .layers = 24, .heads = 16, .buckets = 32,
    .max_distance = 128, .eps = 1e-6, .gated = true,
};

struct work {
    const struct job *job;
    dt_device *dev;
    dt_params *set;
    dt_lora   *lora;
    dt_optim   optim;
    dt_graph  *g;
    dt_plan   *plan;
    void      *arena;
};

/* --- graphs --- */

static dt_tensor *flux_net(dt_graph *g, dt_dtype t)
{
    dt_flux_in in = {
        .img = dt_input(g, "img", t, DT_DIMS(1, IMAGE_SIDE * IMAGE_SIDE, flux.in_channels)),
        .txt = dt_input(g, "txt", t, DT_DIMS(1, TEXT, flux.joint_dim)),
        .pooled = dt_input(g, "pooled", t, DT_DIMS(1, flux.pooled_dim)),
        .sigma = dt_input(g, "sigma", DT_F32, DT_DIMS(1)),
        .guidance = dt_input(g, "guidance", DT_F32, DT_DIMS(1)),
    };
    dt_flux_rope_grid(g, &flux, TEXT, IMAGE_SIDE, IMAGE_SIDE, &in.cos, &in.sin);
    return dt_output(g, dt_flux(g, &flux, &in), "out");
}

static void flux_step(dt_graph *g, dt_dtype t)
{
    dt_tensor *scale = dt_input(g, "scale", DT_F32, DT_DIMS(1));
    dt_tensor *target = dt_input(g, "target", DT_F32, DT_DIMS(1, IMAGE_SIDE * IMAGE_SIDE, flux.out_channels));
    dt_graph_checkpoint(g, true);
    dt_tensor *loss = dt_output(g, dt_mse_loss(g, flux_net(g, t), target, NULL, 0, NULL), "loss");
    dt_backward(g, loss, scale);
}

static void flux_pass(dt_graph *g, dt_dtype t) { flux_net(g, t); }

static void encode(dt_graph *g, dt_dtype t)
{
    dt_output(g, dt_vae_encode(g, &vae, dt_input(g, "img", t, DT_DIMS(1, PIXELS, PIXELS, 3))), "out");
}

static void decode(dt_graph *g, dt_dtype t)
{
    int64_t side = PIXELS / dt_vae_factor(&vae);
    dt_output(g, dt_vae_decode(g, &vae, dt_input(g, "latent", t, DT_DIMS(1, side, side, vae.latent_channels))), "out");
}

static void t5_pass(dt_graph *g, dt_dtype t)
{
    (void)t;
    dt_output(g, dt_t5(g, &t5, dt_input(g, "ids", DT_I32, DT_DIMS(1, T5_TOKENS)), NULL), "out");
}

/* --- jobs --- */

static const struct job {
    const char *name;
    void (*build)(dt_graph *g, dt_dtype t);
    bool lora, full;
} jobs[] = {
    { "lora", flux_step, .lora = true },
    { "full", flux_step, .full = true },
    { "sample", flux_pass },
    { "encode", encode },
    { "decode", decode },
    { "t5", t5_pass },
};
enum { NJOB = sizeof(jobs) / sizeof(jobs[0]) };

const char *work_name(int k) { return k < NJOB ? jobs[k].name : NULL; }

static dt_graph *build(const struct job *j, dt_params *set, dt_dtype t)
{
    dt_graph *g = dt_graph_new(t);
    dt_graph_use(g, set);
    j->build(g, t);
    return g;
}

/* Fresh weights in a file of this type, which is gone when *st is closed. */
static int in_file(dt_st **st, const struct job *j, dt_device *dev, dt_dtype t, dt_err *err)
{
    const char *tmp = getenv("TMPDIR");
    char *path = dt_sprintf("%s/dt-bench-%ld.safetensors", tmp && *tmp ? tmp : "/tmp", (long)getpid());
    dt_params *p = dt_params_new(j->name);
    dt_graph *g = build(j, p, t);
    int rc = dt_params_alloc(p, dev, t, DT_PARAMS_NO_OPTIM, err);
    if (rc == 0) {
        dt_params_init(p, SEED, NULL);
        rc = dt_params_save(p, path, t, false, NULL, err);
    }
    dt_graph_free(&g);
    dt_params_free(&p);
    if (rc == 0)
        rc = dt_st_open(st, path, err);
    unlink(path);
    free(path);
    return rc;
}

static int add_lora(work *w, dt_dtype t, dt_err *err)
{
    dt_strs targets = { 0 };
    dt_strs_split(&targets, "*.attn.*,*.net.*,*.proj_mlp,*blocks.*.proj_out", ',');
    dt_lora_config c = { .rank = RANK, .targets = &targets, .naming = dt_flux_single_name };
    int rc = dt_lora_new(&w->lora, w->set, &c, err);
    dt_strs_release(&targets);
    if (rc < 0)
        return rc;
    w->set->lora = w->lora;
    w->optim.set[w->optim.nset++] = w->lora->params;
    return dt_params_alloc(w->lora->params, w->dev, t, 0, err);
}

/* The first build declares the parameters.  What does not train is used from a file, as the tools do. */
static int parameters(work *w, dt_dtype t, dt_err *err)
{
    dt_st *st = NULL;
    dt_graph *g = build(w->job, w->set, t);
    dt_graph_free(&g);
    for (int64_t i = 0; i < w->set->n; i++)
        w->set->v[i]->trainable = w->job->full;
    if (w->job->full) {
        w->optim.set[w->optim.nset++] = w->set;
        w->optim.max_norm = 0;
        dt_optim_fuse(&w->optim);
    }
    int rc = w->job->lora ? add_lora(w, t, err) : 0;
    if (rc == 0 && !w->job->full && (rc = in_file(&st, w->job, w->dev, t, err)) == 0)
        rc = dt_params_place(w->set, &st, NULL, NULL, w->dev, t, false, err);
    if (rc == 0)
        rc = dt_params_alloc(w->set, w->dev, t, 0, err);
    if (rc == 0 && w->set->file)
        rc = dt_params_load(w->set, w->set->file, NULL, NULL, err);
    if (rc < 0)
        return rc;
    if (w->job->full)
        dt_params_init(w->set, SEED, NULL);
    if (w->lora)
        dt_params_init(w->lora->params, SEED, NULL);
    return 0;
}

static void fill_inputs(work *w)
{
    static const char *const names[] = { "img", "txt", "pooled", "target", "latent" };
    const float one = 1, sigma = 0.5f, guidance = 3.5f;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const dt_tensor *t = dt_find(w->g, names[i]);
        if (!t)
            continue;
        int64_t n = dt_numel(t->dims);
        float *x = dt_alloc((size_t)n * sizeof(*x));
        dt_rng_fill_normal(x, n, SEED, DT_RNG_TEST, 0, (uint32_t)i);
        void *typed = dt_alloc((size_t)n * sizeof(*x));
        dt_convert(typed, t->dtype, x, DT_F32, n);
        dt_plan_write(w->plan, t, typed);
        free(x);
        free(typed);
    }
    if (dt_find(w->g, "sigma")) {
        dt_plan_write(w->plan, dt_find(w->g, "sigma"), &sigma);
        dt_plan_write(w->plan, dt_find(w->g, "guidance"), &guidance);
    }
    if (dt_find(w->g, "scale"))
        dt_plan_write(w->plan, dt_find(w->g, "scale"), &one);
    if (dt_find(w->g, "ids")) {
        int32_t ids[T5_TOKENS];
        for (int i = 0; i < T5_TOKENS; i++)
            ids[i] = i * 7919 % (int)t5.vocab;
        dt_plan_write(w->plan, dt_find(w->g, "ids"), ids);
    }
}

int work_new(work **out, const char *name, dt_dtype t, dt_device *dev, dt_err *err)
{
    int k = 0;
    while (k < NJOB && strcmp(jobs[k].name, name))
        k++;
    if (k == NJOB)
        return dt_err_set(err, DT_EUSAGE, "no work is called '%s'", name);
    work *w = dt_alloc(sizeof(*w));
    *w = (work){ .job = &jobs[k], .dev = dev, .set = dt_params_new(name) };
    w->optim = (dt_optim){ .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .max_norm = 1 };
    int rc = parameters(w, t, err);
    if (rc == 0) {
        w->g = build(w->job, w->set, t);
        rc = dt_plan_new(&w->plan, w->g, dev, err);
    }
    if (rc == 0) {
        w->arena = dev->alloc(dev, dt_plan_bytes(w->plan));
        rc = w->arena ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for %s", name);
    }
    if (rc < 0) {
        work_free(&w);
        return rc;
    }
    dt_plan_bind(w->plan, w->arena);
    fill_inputs(w);
    if (w->optim.nset)
        dt_optim_zero(&w->optim);
    *out = w;
    return 0;
}

void work_free(work **pw)
{
    work *w = *pw;
    if (!w)
        return;
    dt_plan_free(&w->plan);
    dt_graph_free(&w->g);
    if (w->arena)
        w->dev->free(w->dev, w->arena);
    dt_lora_free(&w->lora);
    dt_params_free(&w->set);
    free(w);
    *pw = NULL;
}

int work_run(work *w, dt_err *err)
{
    const double lr = 1e-6;
    float loss;
    dt_optim_begin(&w->optim, lr);
    int rc = dt_plan_run(w->plan, err);
    if (rc < 0 || !w->optim.nset)
        return rc;
    dt_plan_read(w->plan, dt_find(w->g, "loss"), &loss);
    if (!isfinite(loss))
        return dt_err_set(err, DT_ENAN, "the loss is not finite");
    dt_optim_step(&w->optim, lr, dt_optim_norm(&w->optim));
    return 0;
}

dt_plan *work_plan(const work *w) { return w->plan; }

int64_t work_weights(const work *w)
{
    int64_t sum = 0;
    for (int i = 0; i < 2; i++) {
        const dt_params *p = i ? (w->lora ? w->lora->params : NULL) : w->set;
        if (!p)
            continue;
        dt_params_bytes b = dt_params_size(p, dt_graph_dtype(w->g), 0);
        sum += b.weights + b.grads + b.master + b.moments;
    }
    return sum;
}
