/* run_model.c - which parameters a run trains, their weights, and what is saved of them. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "train/run_int.h"

static const dt_dtype save_types[] = { DT_F32, DT_BF16, DT_F16 };

/* The parts that train. */
static int parts(const dt_job *j, enum dt_flux_part k[DT_FLUX_NPART])
{
    int n = 0;
    k[n++] = j->kind->part;
    if (j->o->train_text_encoder) {
        k[n++] = DT_FLUX_CLIP;
        k[n++] = DT_FLUX_T5;
    }
    return n;
}

/* --- choosing what trains --- */

static bool wanted(const dt_train_opts *o, const char *name)
{
    for (int64_t i = 0; i < o->trainable_modules.n; i++)
        if (!strcmp(o->trainable_modules.v[i], ".") || strstr(name, o->trainable_modules.v[i]))
            return true;
    return o->trainable_modules.n == 0;
}

/* The part of a parameter's name that is nearest to the word, ", did you mean 'attn'?", or "".  Caller frees. */
static char *near_part(const char *word, const dt_params *p)
{
    dt_strs part = { 0 };
    for (int64_t i = 0; i < p->n; i++)
        dt_strs_split(&part, p->v[i]->name, '.');
    int k = dt_nearest(word, (const char *const *)part.v, (int)part.n);
    char *text = k < 0 ? dt_strdup("") : dt_sprintf("; did you mean '%s'?", part.v[k]);
    dt_strs_release(&part);
    return text;
}

static int choose(dt_job *j, dt_params *p, dt_err *err)
{
    int64_t tensors = 0, numbers = 0;
    for (int64_t i = 0; i < p->n; i++) {
        p->v[i]->trainable = wanted(j->o, p->v[i]->name);
        tensors += p->v[i]->trainable;
        numbers += p->v[i]->trainable ? p->v[i]->numel : 0;
    }
    dt_job_say(j, "%s: training %" PRId64 " of %" PRId64 " tensors, %" PRId64 " parameters", p->name, tensors, p->n,
               numbers);
    if (!tensors) {
        char *near = near_part(j->o->trainable_modules.v[0], p);
        int rc = dt_err_set(err, DT_EUSAGE, "--trainable_modules matches no parameter of '%s'%s", p->name, near);
        free(near);
        return rc;
    }
    j->optim.set[j->optim.nset++] = p;
    return 0;
}

static int choose_lora(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    dt_strs targets = { 0 }, skips = { 0 };
    if (o->target_name)
        dt_strs_split(&targets, o->target_name, ',');
    if (o->lora_skip_name)
        dt_strs_split(&skips, o->lora_skip_name, ',');
    dt_params *base = j->pipe->part[j->kind->part];
    int rc = dt_lora_new(&j->lora, base,
                         &(dt_lora_config){ .rank = o->rank, .alpha = o->network_alpha, .targets = &targets,
                                                          .skips = &skips, .naming = dt_flux_single_name }, err);
    dt_strs_release(&targets);
    dt_strs_release(&skips);
    if (rc < 0)
        return rc;
    int64_t numbers = 0;
    for (int64_t i = 0; i < j->lora->report.n; i++)
        dt_job_say(j, "%s", j->lora->report.v[i]);
    for (int64_t i = 0; i < j->lora->params->n; i++)
        numbers += j->lora->params->v[i]->numel;
    dt_job_say(j,
               "lora: rank %" PRId64 ", alpha %g on %" PRId64 " of %" PRId64 " linear layers, %" PRId64 " parameters",
               o->rank, o->network_alpha, j->lora->n, base->linears.n, numbers);
    base->lora = j->lora;
    j->optim.set[j->optim.nset++] = j->lora->params;
    return 0;
}

int dt_job_place(dt_job *j, enum dt_flux_part k, dt_err *err)
{
    int rc = dt_flux_pipe_place(j->pipe, k, j->dev, j->act, j->o->low_vram, err);
    if (rc == 0 && j->o->low_vram)
        dt_params_give_back(j->pipe->part[k]);
    return j->o->memory_plan ? 0 : rc;              /* which takes configurations alone, if there is no more */
}

static int choose_all(dt_job *j, dt_err *err)
{
    enum dt_flux_part k[DT_FLUX_NPART];
    int n = parts(j, k), rc = j->kind->pictures ? 0 : dt_flux_pipe_tokenizers(j->pipe, err);
    for (int i = 0; i < n && rc == 0; i++) {
        rc = j->kind->adapter ? choose_lora(j, err) : choose(j, j->pipe->part[k[i]], err);
        if (rc == 0 && !j->o->from_config)
            rc = dt_job_place(j, k[i], err);
    }
    return rc;
}

int dt_job_pipe(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    if (j->pipe)
        return 0;
    int rc = dt_flux_pipe_open(&j->pipe, o->model, o->max_sequence_length, err);
    if (rc < 0)
        return rc;
    j->pipe->text_padding = (enum dt_padding)o->text_padding;
    if (o->transformer_path)
        j->pipe->weights[DT_FLUX_DIT] = dt_strdup(o->transformer_path);
    if (o->vae_path)
        j->pipe->weights[DT_FLUX_VAE] = dt_strdup(o->vae_path);
    return 0;
}

int dt_job_model(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    int rc = dt_job_pipe(j, err);
    if (rc < 0)
        return rc;
    j->optim = (dt_optim){ .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->epsilon, .weight_decay = o->weight_decay,
                           .max_norm = o->max_grad_norm, .ema_decay = o->use_ema ? o->ema_decay : 0 };
    rc = choose_all(j, err);
    if (rc == 0 && o->max_grad_norm == 0 && o->data.gradient_accumulation_steps == 1 && !o->dump_steps)
        dt_optim_fuse(&j->optim);                   /* nothing looks at all gradients at once */
    return rc;
}

/* --- weights --- */

static int bring(dt_job *j, enum dt_flux_part k, dt_err *err)
{
    const dt_train_opts *o = j->o;
    unsigned flags = o->use_ema ? DT_PARAMS_EMA : 0;
    if (!o->from_config)
        return dt_flux_pipe_load(j->pipe, k, j->dev, j->act, flags, err);
    return dt_flux_pipe_fresh(j->pipe, k, j->dev, j->act, flags, (uint64_t)j->info.seed, err);
}

int dt_job_weights(dt_job *j, dt_err *err)
{
    enum dt_flux_part k[DT_FLUX_NPART];
    int n = parts(j, k), rc = 0;
    for (int i = 0; i < n && rc == 0; i++)
        rc = bring(j, k[i], err);
    if (rc == 0 && j->lora) {
        rc = dt_params_alloc(j->lora->params, j->dev, j->act, j->o->use_ema ? DT_PARAMS_EMA : 0, err);
        if (rc == 0)
            rc = dt_params_init(j->lora->params, (uint64_t)j->info.seed, err);
    }
    return rc;
}

int dt_job_intact(void *job, dt_err *err) { return dt_flux_pipe_check(((dt_job *)job)->pipe, err); }

/* --- the commands --- */

static int autoencoder(dt_task *out, const dt_job *j, dt_err *err)
{
    (void)err;
    dt_vae_task_new(out, &(struct dt_vae_task_params){
        .config = &j->pipe->vae, .params = j->pipe->part[DT_FLUX_VAE], .act = j->act, .checkpoint = j->checkpoint,
        .kl_weight = j->o->kl_weight });
    return 0;
}

static int flow_matching(dt_task *out, const dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    return dt_flux_task_new(out, &(struct dt_flux_task_params){
        .pipe = j->pipe, .act = j->act, .backward = true, .checkpoint = j->checkpoint,
        .train_text = o->train_text_encoder, .timesteps = o->timesteps, .guidance = o->guidance,
        .noise_offset = o->noise_offset, .input_perturbation = o->input_perturbation,
        .outlier_limit = o->outlier_limit }, err);
}

const struct dt_run_kind *dt_run_kind(enum dt_method method)
{
    static const struct dt_run_kind kinds[] = {
        [DT_METHOD_LORA] = { "Flow matching", DT_LORA_FILE, DT_FLUX_DIT, .adapter = true, .task = flow_matching },
        [DT_METHOD_FULL] = { "Flow matching", "transformer", DT_FLUX_DIT, .task = flow_matching },
        [DT_METHOD_VAE] = { "Autoencoder", "vae", DT_FLUX_VAE, .pictures = true, .task = autoencoder },
    };
    return &kinds[method];
}

/* --- scaling of a fresh vae --- */

enum { FIT_PICTURES = 256 };

static int fit_batch(dt_flux_run *run, const dt_micro *b, int64_t half, double sum[2], dt_err *err)
{
    float *mean = dt_alloc(2 * (size_t)half * sizeof(*mean));
    int rc = 0;
    for (int i = 0; i < b->n && rc == 0; i++) {
        rc = dt_flux_run_encode(run, (const uint8_t *const[]){ b->s[i].rgb }, 1, b->w_px, b->h_px, mean, mean + half,
                                err);
        for (int64_t k = 0; k < half && rc == 0; k++) {
            sum[0] += mean[k];
            sum[1] += (double)mean[k] * mean[k];
        }
    }
    free(mean);
    return rc;
}

/* Latents as the transformer will see them get mean 0 and variance 1: (z - shift) * scaling. */
int dt_job_fit_scaling(dt_job *j, dt_err *err)
{
    dt_vae_config *vae = &j->pipe->vae;
    dt_flux_run *run = dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = j->pipe, .dev = j->dev, .act = j->act });
    dt_loader *l = NULL;
    dt_micro *b;
    double sum[2] = { 0 }, n = 0;
    int64_t seen = 0, f = dt_vae_factor(vae);
    int rc = 0;
    for (int i = 0; i < j->nshape && rc == 0; i++)
        rc = dt_flux_run_plan_encode(run, 1, j->shape[i][1], j->shape[i][2], err);
    if (rc == 0)
        /* training is over */
        rc = dt_flux_run_alloc(run, dt_flux_run_bytes(run) <= j->arena_bytes ? j->arena : NULL, err);
    if (rc == 0)
        rc = dt_loader_open(&l, &(struct dt_loader_params){ .plan = j->plan, .want = DT_WANT_RGB }, err);
    dt_source src = { 0 };
    if (rc == 0)
        src = dt_loader_source(l);
    while (rc == 0 && seen < FIT_PICTURES && (rc = src.next(src.ctx, &b, err)) == 1) {
        int64_t half = vae->latent_channels * (b->w_px / f) * (b->h_px / f);
        rc = fit_batch(run, b, half, sum, err);
        n += (double)(half * b->n);
        seen += b->n;
        src.done(src.ctx, b);
    }
    if (rc == 0 && n > 0) {
        double mean = sum[0] / n, var = sum[1] / n - mean * mean;
        vae->shift = mean;
        vae->scaling = var > 0 ? 1.0 / sqrt(var) : 1.0;
        dt_job_say(j, "vae: shift_factor %.5f, scaling_factor %.5f over %" PRId64 " pictures", vae->shift, vae->scaling,
                   seen);
    }
    dt_loader_close(&l);
    dt_flux_run_free(&run);
    return rc;
}

/* --- results: into a checkpoint, and at the end into output_dir --- */

int dt_job_base_hash(dt_job *j, dt_err *err)
{
    return *j->base.hex || j->o->from_config ? 0 : dt_flux_pipe_hash(j->pipe, j->kind->part, &j->base, err);
}

static int save_lora(dt_job *j, const char *dir, dt_err *err)
{
    char *path = dt_path_join(dir, DT_LORA_FILE);
    int rc = dt_job_base_hash(j, err);
    if (rc == 0)
        rc = dt_lora_save(j->lora, path, (enum dt_lora_layout)j->o->lora_format, save_types[j->o->save_dtype],
                          j->o->use_ema, &(dt_lora_info){ .base_hash = j->base.hex, .steps = j->t.state.step }, err);
    free(path);
    return rc;
}

int dt_job_save_extra(void *job, const char *dir, dt_err *err)
{
    dt_job *j = job;
    const dt_train_opts *o = j->o;
    dt_dtype t = save_types[o->save_dtype];
    char *step = dt_sprintf("%" PRId64, j->t.state.step);
    dt_st_kv meta[] = { { "format", "pt" }, { "dt_version", DT_VERSION }, { "dt_steps", step }, { NULL, NULL } };
    enum dt_flux_part k[DT_FLUX_NPART];
    int n = j->lora ? 0 : parts(j, k), rc = j->lora ? save_lora(j, dir, err) : 0;
    for (int i = 0; i < n && rc == 0; i++)
        rc = dt_flux_pipe_save(j->pipe, k[i], dir, t, o->use_ema, meta, err);
    free(step);
    return rc;
}
