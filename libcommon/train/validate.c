/* validate.c - what a run shows of itself now and then, by the same measure at every step.
 *
 *   samples         every prompt from noise of its own, keyed (seed, prompt): output_dir/samples/step-N-prompt-I.png, and all
 *                   of them as a sheet, output_dir/samples.png.  Step 0 is the model before training
 *   held-out loss   pictures that are not trained on, each batch at four quantiles of the noise table and with noise that is
 *                   always the same: output_dir/validation.ndjson, a line per validation
 *
 * With EMA both are of the running mean, since that is what is saved.  The sheet is drawn from the files,
 * so that a resumed run continues it; what lies there of steps that are still to come is from another run, and removed.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "data/media.h"
#include "train/run_int.h"
#include "train/samples.h"

enum { QUANTILES = 4, EMA_CHUNK = 1 << 18 };

struct dt_validator {
    dt_job      *j;
    /* samples */
    dt_samples   files;
    int64_t      nprompt, picture_bytes;
    dt_flux_run *run;               /* NULL without prompts */
    dt_flux_run *text;              /* frozen encoders, until the prompts are encoded */
    int64_t     *T;                 /* [nprompt] rows of states */
    float       *states, *pooled;   /* [nprompt][t5_len, joint_dim], [nprompt][pooled_dim]; [1] when the
                                       encoders are trained */
    float       *latents;           /* [C, h, w] */
    uint8_t     *rgb;
    /* held-out loss */
    char        *plan;              /* NULL without */
    dt_cache    *cache;
    dt_task      task;
    dt_session  *held;
    int64_t      held_read;         /* bytes on the host for a batch */
    char        *log_path;
    dt_metrics  *log;
    double      *step, *loss;       /* as in the log */
    int64_t      n, cap_step, cap_loss;
    bool         begun;
};

/* --- sizes --- */

/* Square, of the model's multiple.  A plan knows its sizes itself. */
static int64_t side_of(const dt_job *j)
{
    int64_t multiple = 2 * dt_vae_factor(&j->pipe->vae), side = j->o->validation_size, area = 0;
    for (int i = 0; i < j->nshape && (j->o->plan || j->o->latents); i++)
        if (j->shape[i][1] * j->shape[i][2] > area)
            area = j->shape[i][1] * j->shape[i][2];
    if (!side)
        side = area ? (int64_t)floor(sqrt((double)area)) : j->o->data.image_sample_size;
    return side < multiple ? multiple : side / multiple * multiple;
}

static int64_t states_len(const dt_flux_pipe *p) { return p->t5_len * p->dit.joint_dim; }

static int64_t latents_len(const dt_validator *v)
{
    int64_t f = dt_vae_factor(&v->j->pipe->vae);
    return v->j->pipe->vae.latent_channels * (v->files.side_px / f) * (v->files.side_px / f);
}

/* --- prompts --- */

static dt_flux_run *new_run(const dt_job *j)
{
    return dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = j->pipe, .dev = j->dev, .act = j->act,
                                                         .tile_px = j->o->vae_tile_px });
}

static int plan_prompts(const dt_validator *v, dt_flux_run *run, dt_err *err)
{
    int rc = 0;
    for (int64_t i = 0; i < v->nprompt && rc == 0; i++)
        rc = dt_flux_run_plan_text(run, v->T[i], err);
    return rc;
}

/* Frozen encoders are needed for this only, and are gone before the model that trains is loaded. */
int dt_validator_encode(dt_validator *v, dt_err *err)
{
    dt_job *j = v->j;
    dt_flux_pipe *p = j->pipe;
    if (!v->text)
        return 0;
    int rc = dt_flux_pipe_load(p, DT_FLUX_CLIP, j->dev, j->act, DT_PARAMS_NO_OPTIM, err);
    if (rc == 0)
        rc = dt_flux_pipe_load(p, DT_FLUX_T5, j->dev, j->act, DT_PARAMS_NO_OPTIM, err);
    if (rc == 0)
        rc = dt_flux_run_alloc(v->text, NULL, err);
    for (int64_t i = 0; i < v->nprompt && rc == 0; i++)
        rc = dt_flux_run_text(v->text, j->o->validation_prompts.v[i], v->states + i * states_len(p),
                              v->pooled + i * p->dit.pooled_dim, err);
    dt_flux_run_free(&v->text);
    dt_flux_pipe_unload(p, DT_FLUX_CLIP);
    dt_flux_pipe_unload(p, DT_FLUX_T5);
    return rc;
}

/* What a validation needs beside what is trained has weights in files, whatever the run begins with. */
static int place(dt_job *j, enum dt_flux_part k, dt_err *err)
{
    return j->pipe->part[k]->file ? 0 : dt_job_place(j, k, err);
}

static int plan_encoders(dt_validator *v, dt_err *err)
{
    v->text = new_run(v->j);
    int rc = place(v->j, DT_FLUX_CLIP, err);
    if (rc == 0)
        rc = place(v->j, DT_FLUX_T5, err);
    return rc == 0 ? plan_prompts(v, v->text, err) : rc;
}

/* Text states and one picture all the time; now and then its PNG file, twice for TensorBoard, or the sheet. */
static int picture_bytes(dt_validator *v, dt_err *err)
{
    const dt_job *j = v->j;
    const dt_flux_pipe *p = j->pipe;
    int64_t n = j->o->train_text_encoder ? 1 : v->nprompt, px = v->files.side_px * v->files.side_px, sheet = 0;
    int rc = dt_samples_bytes(&v->files, j->t.max_steps / (j->t.validate_every ? j->t.validate_every : 1) + 2, &sheet,
                              err);
    int64_t png = 3 * px * (j->o->report_to == 0 ? 2 : 1);
    int64_t host = dt_flux_run_host(v->run), now = sheet > png ? sheet : png;
    v->picture_bytes = (n * (states_len(p) + p->dit.pooled_dim) + latents_len(v)) * (int64_t)sizeof(float) + 3 * px +
                       (now > host ? now : host);
    return rc;
}

static int new_samples(dt_validator *v, dt_err *err)
{
    dt_job *j = v->j;
    dt_flux_pipe *p = j->pipe;
    int64_t n = j->o->train_text_encoder ? 1 : v->nprompt;
    int rc = dt_flux_pipe_tokenizers(p, err);
    if (rc < 0)
        return rc;
    v->files = (dt_samples){ .o = j->o, .seed = j->info.seed, .side_px = side_of(j),
                             .dir = dt_path_join(j->o->output_dir, "samples") };
    v->states = dt_try_alloc((size_t)(n * states_len(p)) * sizeof(float));
    v->pooled = dt_try_alloc((size_t)(n * p->dit.pooled_dim) * sizeof(float));
    v->latents = dt_try_alloc((size_t)latents_len(v) * sizeof(float));
    v->rgb = dt_try_alloc((size_t)(v->files.side_px * v->files.side_px * 3));
    v->T = dt_alloc((size_t)v->nprompt * sizeof(*v->T));
    if (!v->states || !v->pooled || !v->latents || !v->rgb)
        return dt_err_set(err, DT_ENOMEM, "no memory for %" PRId64 " validation prompts", v->nprompt);
    for (int64_t i = 0; i < v->nprompt; i++)
        if ((v->T[i] = dt_flux_text_len(p, j->o->validation_prompts.v[i], err)) < 0)
            return (int)v->T[i];
    v->run = new_run(j);
    rc = j->o->train_text_encoder ? plan_prompts(v, v->run, err) : plan_encoders(v, err);
    if (rc == 0)
        rc = place(j, DT_FLUX_VAE, err);
    for (int64_t i = 0; i < v->nprompt && rc == 0; i++)
        rc = dt_flux_run_plan_sample(v->run, v->files.side_px, v->files.side_px, v->T[i], err);
    if (rc == 0)
        rc = dt_flux_run_plan_decode(v->run, v->files.side_px, v->files.side_px, err);
    return rc == 0 ? picture_bytes(v, err) : rc;
}

/* --- held-out pictures: of the sizes that the plan asks for, each once --- */

static int held_data(dt_validator *v, dt_err *err)
{
    dt_job *j = v->j;
    struct dt_data_settings s = j->o->data;
    char *dir = dt_path_join(j->o->output_dir, "held-cache"), side[2][24], *fix[2] = { side[0], side[1] };
    s.train_data_dir = j->o->held.train_data_dir;
    s.train_data_meta = j->o->held.train_data_meta;
    s.dataset_config = NULL;
    s.train_batch_size = j->info.train_batch_size;
    s.seed = j->info.seed;
    s.num_train_epochs = s.gradient_accumulation_steps = s.world_size = 1;
    s.max_train_steps = s.max_train_samples = 0;
    s.caption_dropout = 0;
    s.random_flip = s.random_ratio_crop = s.random_hw_adapt = 0;
    s.image_sample_size = j->info.image_sample_size;
    s.multiple = j->info.multiple;
    s.enable_bucket = j->info.enable_bucket;
    for (int k = 0; k < 2; k++)
        snprintf(side[k], sizeof(side[k]), "%" PRId64, j->info.fix[k]);
    s.fix_sample_size = (dt_strs){ .v = fix, .n = j->info.fix[0] ? 2 : 0 };
    s.shard = NULL;
    s.stop = j->ui->stop;
    dt_job_say(j, "held-out pictures:");
    int rc = dt_job_make_plan(j, &s, v->plan, err);
    if (rc == 0 && !j->o->memory_plan) {
        rc = dt_job_make_cache(j, v->plan, dir, err);
        if (rc == 0)
            rc = dt_cache_open(&v->cache, dir, err);
    }
    free(dir);
    return rc;
}

static struct dt_loader_params held_loader(const dt_validator *v)
{
    return (struct dt_loader_params){
        .plan = v->plan, .cache = v->cache, .rows = dt_job_text_rows(v->j, v->cache),
        .want = v->j->o->train_text_encoder ? DT_WANT_LATENTS : DT_WANT_LATENTS | DT_WANT_STATES,
    };
}

static int new_held(dt_validator *v, dt_err *err)
{
    dt_job *j = v->j;
    const dt_train_opts *o = j->o;
    int64_t (*shape)[4] = NULL, batches = 0, staged = 0;
    int n = 0;
    v->plan = dt_path_join(o->output_dir, "held-plan.ndjson");
    v->log_path = dt_path_join(o->output_dir, "validation.ndjson");
    int rc = held_data(v, err);
    if (rc == 0)
        rc = dt_flux_task_new(&v->task, &(struct dt_flux_task_params){
            .pipe = j->pipe, .act = j->act, .train_text = o->train_text_encoder, .timesteps = o->timesteps,
            .guidance = o->guidance, .outlier_limit = o->outlier_limit }, err);
    if (rc < 0)
        return rc;
    v->held = dt_session_new(j->dev, v->task.build, v->task.ctx);
    const struct dt_loader_params loader = held_loader(v);
    rc = dt_plan_shapes(v->plan, v->cache, &loader.rows, &shape, &n, &batches, err);
    if (rc == 0 && !batches)
        rc = dt_err_set(err, DT_EDATA, "%s: no held-out picture is left", v->plan);
    for (int i = 0; i < n && rc == 0; i++) {
        dt_shape_key key = v->task.shape(v->task.ctx, (int)shape[i][0], shape[i][1], shape[i][2], shape[i][3]);
        rc = dt_session_add(v->held, &key, err);
        if (rc == 0 && (staged = v->task.reserve(v->task.ctx, &key, err)) < 0)
            rc = (int)staged;
        int64_t read = dt_loader_bytes(&loader, shape[i][0], shape[i][1], shape[i][2], 0, 0);
        v->held_read = read > v->held_read ? read : v->held_read;
    }
    v->held_read += staged;
    free(shape);
    return rc;
}

/* --- life --- */

int dt_validator_new(dt_validator **out, dt_job *j, dt_err *err)
{
    dt_validator *v = dt_alloc(sizeof(*v));
    *v = (dt_validator){ .j = j, .nprompt = j->o->validation_prompts.n };
    int rc = v->nprompt ? new_samples(v, err) : 0;
    if (rc == 0 && (j->o->held.train_data_dir || j->o->held.train_data_meta))
        rc = new_held(v, err);
    if (rc < 0)
        dt_validator_free(&v);
    *out = v;
    return rc;
}

void dt_validator_free(dt_validator **pv)
{
    dt_validator *v = *pv;
    if (!v)
        return;
    dt_flux_run_free(&v->run);
    dt_flux_run_free(&v->text);
    dt_session_free(&v->held);
    dt_task_release(&v->task);
    dt_cache_close(&v->cache);
    dt_metrics_close(&v->log, NULL);
    free(v->T);
    free(v->states);
    free(v->pooled);
    free(v->latents);
    free(v->rgb);
    free(v->files.dir);
    free(v->plan);
    free(v->log_path);
    free(v->step);
    free(v->loss);
    free(v);
    *pv = NULL;
}

int64_t dt_validator_bytes(const dt_validator *v)
{
    int64_t a = v->run ? dt_flux_run_bytes(v->run) : 0, b = v->held ? dt_session_bytes(v->held) : 0;
    return a > b ? a : b;
}

/* --- memory --- */

void dt_validator_memory(const dt_validator *v, dt_mem_plan *plan, dt_mem_moment *training)
{
    const dt_job *j = v->j;
    dt_params *const *part = j->pipe->part;
    int64_t *k = training->kind, arena = dt_validator_bytes(v);
    if (arena > k[DT_MEM_ACTIVATIONS])
        k[DT_MEM_ACTIVATIONS] = arena;
    k[DT_MEM_BATCHES] += v->held_read + (j->o->use_ema ? 2 * EMA_CHUNK * (int64_t)sizeof(float) : 0);
    if (!v->run)
        return;
    dt_mem_add_params(training, dt_params_size(part[DT_FLUX_VAE], j->act, DT_PARAMS_NO_OPTIM));
    k[DT_MEM_PICTURES] = v->picture_bytes;
    if (!v->text)
        return;
    dt_mem_moment *m = dt_mem_add(plan, "captions", k[DT_MEM_PROCESS]);
    dt_mem_add_params(m, dt_params_size(part[DT_FLUX_CLIP], j->act, DT_PARAMS_NO_OPTIM));
    dt_mem_add_params(m, dt_params_size(part[DT_FLUX_T5], j->act, DT_PARAMS_NO_OPTIM));
    m->kind[DT_MEM_ACTIVATIONS] = dt_flux_run_bytes(v->text);
    m->kind[DT_MEM_PICTURES] = v->nprompt * (states_len(j->pipe) + j->pipe->dit.pooled_dim) * (int64_t)sizeof(float);
}

/* What an earlier process of this run found. */
static int read_log(dt_validator *v, dt_err *err)
{
    if (!v->log_path || !dt_exists(v->log_path))
        return 0;
    int rc = dt_metrics_read(&v->step, &v->loss, &v->n, v->log_path, "loss", err);
    v->cap_step = v->cap_loss = rc == 0 ? v->n : 0;
    return rc;
}

int dt_validator_ready(dt_validator *v, void *arena, dt_err *err)
{
    int rc = read_log(v, err);
    if (rc == 0 && v->run &&
        (rc = dt_flux_pipe_load(v->j->pipe, DT_FLUX_VAE, v->j->dev, v->j->act, DT_PARAMS_NO_OPTIM, err)) == 0)
        rc = dt_flux_run_alloc(v->run, arena, err);
    if (rc == 0 && v->held)
        rc = dt_session_alloc(v->held, arena, err);
    return rc;
}

void dt_validator_held(const dt_validator *v, const double **step, const double **loss, int64_t *n)
{
    *step = v ? v->step : NULL;
    *loss = v ? v->loss : NULL;
    *n = v ? v->n : 0;
}

/* --- sampling --- */

static bool stopped(const dt_job *j) { return j->ui->stop && *j->ui->stop; }

static bool go_on(void *ctx, int64_t step)
{
    (void)step;
    return !stopped(ctx);
}

static int store(const dt_validator *v, int64_t step, int64_t i, dt_err *err)
{
    const dt_job *j = v->j;
    char *path = dt_samples_path(&v->files, step, i), *at = dt_sprintf("%" PRId64, step),
        *seed = dt_sprintf("%" PRId64, j->info.seed);
    const dt_png_text text[] = { { "prompt", j->o->validation_prompts.v[i] }, { "step", at }, { "seed", seed } };
    const dt_image im = { (int)v->files.side_px, (int)v->files.side_px, v->rgb };
    char *png = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&png, &bytes);
    int rc = f ? dt_png_put(f, &im, text, 3, err) : dt_err_sys(err, DT_ENOMEM, "no memory for '%s'", path);
    if (f && fclose(f) != 0 && rc == 0)
        rc = dt_err_set(err, DT_ENOMEM, "no memory for '%s'", path);
    if (rc == 0)
        rc = dt_file_write(path, png, bytes, err);
    if (rc == 0 && j->t.events) {
        char *tag = dt_sprintf("samples/%" PRId64, i);
        rc = dt_events_image(j->t.events, tag, step, png, bytes, im.w, im.h, err);
        free(tag);
    }
    free(png);
    free(seed);
    free(at);
    free(path);
    return rc;
}

static int sample_prompt(dt_validator *v, int64_t step, int64_t i, dt_err *err)
{
    dt_job *j = v->j;
    const dt_flux_pipe *p = j->pipe;
    bool trained = j->o->train_text_encoder;
    dt_flux_sample s = { .w_px = v->files.side_px, .h_px = v->files.side_px, .steps = j->o->validation_inference_steps,
                         .guidance = j->o->guidance, .T = v->T[i],
                         .states = v->states + (trained ? 0 : i * states_len(p)),
                         .pooled = v->pooled + (trained ? 0 : i * p->dit.pooled_dim), .latents = v->latents,
                         .on_step = go_on, .ctx = j };
    int rc = trained ? dt_flux_run_text(v->run, j->o->validation_prompts.v[i], v->states, v->pooled, err) : 0;
    dt_rng_fill_normal(v->latents, latents_len(v), (uint64_t)j->info.seed, DT_RNG_VALIDATION, 0, (uint32_t)i);
    if (rc == 0)
        rc = dt_flux_run_sample(v->run, &s, err);
    if (rc == 0)
        rc = dt_flux_run_decode(v->run, v->latents, v->files.side_px, v->files.side_px, v->rgb, err);
    return rc == 0 ? store(v, step, i, err) : rc;
}

/* --- the held-out loss --- */

static int held_batch(dt_validator *v, const dt_micro *b, double *sum, dt_err *err)
{
    dt_shape_key key = v->task.shape(v->task.ctx, b->n, b->w_px, b->h_px, b->T);
    dt_graph *g = NULL;
    dt_plan *p = dt_session_use(v->held, &key, &g);
    int rc = p ? 0 : dt_err_set(err, DT_EDATA, "%s: batch %" PRId64 " has a shape that was not announced", v->plan,
                                b->index);
    for (int q = 0; q < QUANTILES && rc == 0; q++) {
        dt_step_at at = { (uint64_t)v->j->info.seed, 0, q, QUANTILES };
        float loss = 0;
        rc = stopped(v->j) ? dt_err_set(err, DT_ESIGNAL, "stopped on request")
                           : v->task.feed(v->task.ctx, g, p, b, &at, err);
        if (rc == 0 && (rc = dt_plan_run(p, err)) == 0)
            dt_plan_read(p, dt_find(g, "loss"), &loss);
        if (rc == 0 && !isfinite(loss))
            rc = dt_plan_blame(p, "the held-out loss", err);
        *sum += (double)loss * b->n / QUANTILES;
    }
    return rc;
}

/* Mean over the pictures. */
static int held_loss(dt_validator *v, double *mean, dt_err *err)
{
    dt_loader *l = NULL;
    dt_micro *b = NULL;
    double sum = 0;
    int64_t n = 0;
    const struct dt_loader_params p = held_loader(v);
    int rc = dt_loader_open(&l, &p, err);
    if (rc < 0)
        return rc;
    dt_source source = dt_loader_source(l);
    while ((rc = source.next(source.ctx, &b, err)) == 1) {
        rc = held_batch(v, b, &sum, err);
        n += b->n;
        source.done(source.ctx, b);
        if (rc < 0)
            break;
    }
    dt_loader_close(&l);
    if (rc == 0)
        rc = dt_flux_pipe_check(v->j->pipe, err);
    *mean = sum / (double)(n ? n : 1);
    return rc;
}

static int report_loss(dt_validator *v, int64_t step, double loss, dt_err *err)
{
    dt_metrics_int(v->log, "step", step);
    dt_metrics_num(v->log, "loss", loss);
    int rc = dt_metrics_end(v->log, err);
    if (rc == 0 && v->j->t.events)
        rc = dt_events_scalar(v->j->t.events, "validation/loss", step, loss, err);
    dt_grow(&v->step, &v->cap_step, v->n + 1, sizeof(*v->step));
    dt_grow(&v->loss, &v->cap_loss, v->n + 1, sizeof(*v->loss));
    v->step[v->n] = (double)step;
    v->loss[v->n++] = loss;
    return rc;
}

/* --- a validation --- */

/* Cuts what there is of this step and later ones. */
static int begin(dt_validator *v, int64_t step, dt_err *err)
{
    int64_t offset = 0;
    int rc = v->run ? dt_samples_drop_later(&v->files, step, err) : 0;
    if (rc == 0 && v->held && (rc = dt_metrics_find(&offset, v->log_path, step, err)) == 0)
        rc = dt_metrics_open(&v->log, v->log_path, offset, err);
    while (v->n > 0 && v->step[v->n - 1] >= (double)step)
        v->n--;
    v->begun = rc == 0;
    return rc;
}

/* Exchanges the trained weights and their running mean; a second time restores every bit. */
static void swap_ema(const dt_job *j)
{
    dt_device *dev = j->dev;
    float *a = dt_alloc(2 * EMA_CHUNK * sizeof(*a)), *b = a + EMA_CHUNK;
    for (int k = 0; k < j->optim.nset; k++) {
        dt_params *p = j->optim.set[k];
        for (int64_t i = 0; p->ema && i < p->n_train; i += EMA_CHUNK) {
            int64_t bytes = (p->n_train - i < EMA_CHUNK ? p->n_train - i : EMA_CHUNK) * (int64_t)sizeof(*a);
            dev->download(dev, a, p->master + i, bytes);
            dev->download(dev, b, p->ema + i, bytes);
            dev->upload(dev, p->master + i, b, bytes);
            dev->upload(dev, p->ema + i, a, bytes);
            dev->sync(dev, NULL);
        }
        if (p->ema)
            dt_params_sync(p);
    }
    free(a);
}

static int validate(dt_validator *v, int64_t step, double *loss, dt_err *err)
{
    int rc = 0;
    for (int64_t i = 0; i < v->nprompt && rc == 0; i++)
        rc = sample_prompt(v, step, i, err);
    return rc == 0 && v->held ? held_loss(v, loss, err) : rc;
}

int dt_validator_run(void *job, int64_t step, dt_err *err)
{
    dt_job *j = job;
    dt_validator *v = j->val;
    double loss = 0;
    int rc = v->begun ? 0 : begin(v, step, err);
    if (rc < 0)
        return rc;
    swap_ema(j);
    rc = validate(v, step, &loss, err);
    swap_ema(j);
    if (rc == 0 && v->held)
        rc = report_loss(v, step, loss, err);
    if (rc == 0 && v->run)
        rc = dt_samples_draw(&v->files, err);
    if (rc == 0 && v->held)
        dt_job_say(j, "step %" PRId64 ": held-out loss %.6g", step, loss);
    if (rc == 0 && v->run)
        dt_job_say(j, "step %" PRId64 ": sampled %" PRId64 " prompts into %s/samples.png", step, v->nprompt,
                   j->o->output_dir);
    return rc;
}
