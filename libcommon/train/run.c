/* run.c - a whole training run.  See run.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "graph/peak.h"
#include "train/chart.h"
#include "train/run_int.h"

enum { LOCK_TRIES = 20, LOCK_WAIT_MS = 50 };

static void speak(const dt_job *j, bool warning, const char *fmt, va_list ap)
{
    char line[1024];
    vsnprintf(line, sizeof(line), fmt, ap);
    if (j->ui->say)
        j->ui->say(j->ui->ctx, warning, line);
}

void dt_job_say(const dt_job *j, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    speak(j, false, fmt, ap);
    va_end(ap);
}

void dt_job_warn(const dt_job *j, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    speak(j, true, fmt, ap);
    va_end(ap);
}

/* --- steps and schedule --- */

static void set_schedule(dt_job *j)
{
    const dt_train_opts *o = j->o;
    int64_t accumulate = o->data.gradient_accumulation_steps;
    int64_t steps = (j->batches + accumulate - 1) / accumulate;
    if (o->data.max_train_steps && o->data.max_train_steps < steps)
        steps = o->data.max_train_steps;
    double lr = o->learning_rate;
    if (o->scale_lr)
        lr *= (double)(accumulate * j->info.train_batch_size);
    j->t.max_steps = steps;
    j->t.accumulate = accumulate;
    j->t.lr = (dt_lr){ .kind = o->lr_scheduler, .base = lr, .warmup = o->lr_warmup_steps, .total = steps,
                       .cycles = o->lr_num_cycles, .end = 1e-7, .power = o->lr_power };
    j->t.validate_every = o->validation_steps;
    if (o->validation_epochs) {
        int64_t per_epoch = j->info.epochs ? j->batches / j->info.epochs / accumulate : steps;
        j->t.validate_every = o->validation_epochs * (per_epoch > 0 ? per_epoch : 1);
    } else if (!o->validation_steps) {
        j->t.validate_every = 2000;
    }
}

/* --- watching --- */

#define PEAK_S 0.02                 /* how long the processor is measured, if somebody watches */

/* A file that was begun anew since the checkpoint lacks lines: that is no reason not to go on. */
static int open_metrics(dt_job *j, const char *path, dt_err *err)
{
    dt_err why = { 0 };
    int64_t offset = 0;
    int rc = dt_metrics_open(&j->t.metrics, path, j->t.state.metrics_bytes, &why);
    if (rc == DT_EDATA && (rc = dt_metrics_find(&offset, path, j->t.state.step + 1, err)) == 0) {
        dt_job_warn(j, "%s; earlier lines of this run are missing in it", why.msg);
        return dt_metrics_open(&j->t.metrics, path, offset, err);
    }
    return rc < 0 ? dt_err_set(err, rc, "%s", why.msg) : rc;
}

static int open_watchers(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    if (j->dev->kind == DT_CPU && (!o->quiet || o->progress || o->report_to == 0))
        j->t.peak_flops = dt_peak_fma(j->dev->threads, PEAK_S);
    char *metrics = dt_path_join(o->output_dir, "metrics.ndjson");
    int rc = open_metrics(j, metrics, err);
    if (rc == 0 && o->report_to == 0) {
        char *logs = dt_path_join(o->output_dir, o->logging_dir), *dir = dt_path_join(logs, o->project);
        rc = dt_events_open(&j->t.events, dir, j->t.state.step, err);
        free(dir);
        free(logs);
    }
    if (rc == 0)
        rc = dt_progress_open(&j->t.progress, "train", "step", j->t.max_steps, o->progress, o->quiet, err);
    free(metrics);
    return rc;
}

static int close_watchers(dt_job *j, int rc, dt_err *err)
{
    dt_err later = { 0 };
    dt_progress_close(&j->t.progress);
    if (dt_metrics_close(&j->t.metrics, &later) < 0 && rc >= 0)
        rc = dt_err_set(err, later.code, "%s", later.msg);
    if (dt_events_close(&j->t.events, &later) < 0 && rc >= 0)
        rc = dt_err_set(err, later.code, "%s", later.msg);
    return rc;
}

struct dt_chart_params dt_job_chart(const dt_job *j)
{
    return *dt_chart_params(.title = j->kind->chart);
}

static int draw_loss(const dt_job *j, dt_err *err)
{
    char *in = dt_path_join(j->o->output_dir, "metrics.ndjson"), *out = dt_path_join(j->o->output_dir, "loss.png");
    double *x = NULL, *y = NULL;
    int64_t n = 0, m = 0;
    const double *hx = NULL, *hy = NULL;
    const struct dt_chart_params look = dt_job_chart(j);
    int rc = dt_metrics_read(&x, &y, &n, in, "loss", err);
    if (rc == 0 && n) {
        dt_validator_held(j->val, &hx, &hy, &m);
        while (m && hx[m - 1] > (double)j->t.state.step)        /* of a process that was killed */
            m--;
        dt_series s[2] = { { "training loss", DT_SERIES_NOISY, x, y, n },
                           { "held-out loss", DT_SERIES_POINTS, hx, hy, m } };
        rc = dt_chart_save(out, s, m ? 2 : 1, &look, err);
    }
    free(x);
    free(y);
    free(in);
    free(out);
    return rc;
}

/* --- run.json --- */

static void begin_manifest(dt_job *j)
{
    j->manifest = dt_manifest_new(j->o->output_dir);
    if (!j->ui->argv)
        return;
    dt_manifest_command(j->manifest, j->ui->argc, j->ui->argv);
    char *text = dt_cli_config(dt_train_cli((enum dt_method)j->o->method), j->o, j->ui->argc - 1,
                               (char **)j->ui->argv + 1, true);
    cJSON_AddItemToObject(dt_manifest_run(j->manifest), "settings", cJSON_Parse(text));
    free(text);
}

/* All index files of a cache: what they say is what was trained on. */
static int hash_cache(const char *dir, dt_hash *out, dt_err *err)
{
    struct dirent **e;
    int n = scandir(dir, &e, NULL, alphasort), rc = n < 0 ? dt_err_open(err, dir) : 0;
    dt_hasher *h = dt_hasher_new();
    for (int i = 0; i < n; i++) {
        char *path = dt_path_join(dir, e[i]->d_name);
        dt_hash one;
        if (rc == 0 && !strncmp(e[i]->d_name, "index-", 6) && (rc = dt_hash_file(&one, path, err)) == 0)
            dt_hasher_str(h, one.hex);
        free(path);
        free(e[i]);
    }
    if (n >= 0)
        free(e);
    *out = dt_hasher_end(&h);
    return rc;
}

/* What the run is made from, once all of it is there. */
static int fill_manifest(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    cJSON *run = dt_manifest_run(j->manifest), *part;
    dt_hash plan, cache;
    dt_manifest_host(j->manifest, j->dev);
    int rc = dt_job_base_hash(j, err);
    if (rc == 0)
        rc = dt_hash_file(&plan, j->plan, err);
    if (rc < 0)
        return rc;
    part = cJSON_AddObjectToObject(run, "model");
    cJSON_AddStringToObject(part, "path", o->model);
    if (*j->base.hex)
        cJSON_AddStringToObject(part, "hash", j->base.hex);
    part = cJSON_AddObjectToObject(run, "plan");
    cJSON_AddStringToObject(part, "path", j->plan);
    cJSON_AddStringToObject(part, "hash", plan.hex);
    if (j->cache) {
        char *dir = dt_job_cache_dir(o);
        rc = hash_cache(dir, &cache, err);
        part = cJSON_AddObjectToObject(run, "cache");
        cJSON_AddStringToObject(part, "path", dir);
        cJSON_AddStringToObject(part, "hash", cache.hex);
        free(dir);
    }
    cJSON_AddNumberToObject(run, "seed", (double)j->info.seed);
    cJSON_AddNumberToObject(run, "first_step", (double)j->t.state.step);
    cJSON_AddNumberToObject(run, "planned_steps", (double)j->t.max_steps);
    return rc < 0 ? rc : dt_manifest_write(j->manifest, err);
}

/* A run that failed keeps its own error. */
static int end_manifest(dt_job *j, int rc, dt_err *err)
{
    cJSON *run = dt_manifest_run(j->manifest);
    dt_err later = { 0 };
    if (j->t.seconds > 0) {
        cJSON_AddNumberToObject(run, "last_step", (double)j->t.state.step);
        cJSON_AddNumberToObject(run, "last_loss", j->t.last_loss);
        cJSON_AddNumberToObject(run, "train_seconds", (double)(int64_t)(j->t.seconds * 1e3) * 1e-3);
        cJSON_AddNumberToObject(run, "images", j->t.images);
    }
    if (dt_manifest_end(j->manifest, rc, err ? err->msg : NULL, &later) < 0 && rc >= 0)
        return dt_err_set(err, later.code, "%s", later.msg);
    return rc;
}

/* --- the whole --- */

static void say_saved(void *job, const char *line) { dt_job_say(job, "%s", line); }
static int draw_saved(void *job, dt_err *err) { return draw_loss(job, err); }

static int plan_run(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    int rc = dt_job_model(j, err);
    if (rc == 0)
        rc = dt_job_check_cache(j, err);
    if (rc == 0)
        rc = dt_job_shapes(j, err);
    if (rc == 0)
        set_schedule(j);
    if (rc == 0)
        rc = j->kind->task(&j->task, j, err);
    if (rc == 0 && (o->validation_prompts.n || o->held.train_data_dir || o->held.train_data_meta))
        rc = dt_validator_new(&j->val, j, err);
    return rc == 0 ? dt_job_memory(j, err) : rc;
}

unsigned dt_job_want(const dt_job *j)
{
    if (j->kind->pictures)
        return DT_WANT_RGB;
    return j->o->train_text_encoder ? DT_WANT_LATENTS : DT_WANT_LATENTS | DT_WANT_STATES;
}

struct dt_loader_params dt_job_loader(const dt_job *j)
{
    return (struct dt_loader_params){
        .plan = j->plan, .cache = j->cache, .want = dt_job_want(j),
        .threads = (int)j->o->data.dataloader_num_workers, .rows = dt_job_text_rows(j, j->cache),
    };
}

static int open_loader(dt_job *j, dt_err *err)
{
    struct dt_loader_params p = dt_job_loader(j);
    p.first = j->t.state.batch;
    p.trace = j->t.state.trace;
    return dt_loader_open(&j->loader, &p, err);
}

static void free_arena(dt_job *j)
{
    if (j->arena)
        j->dev->free(j->dev, j->arena);
    j->arena = NULL;
}

static int begin(dt_job *j, dt_err *err)
{
    int rc = j->val ? dt_validator_encode(j->val, err) : 0;
    if (rc == 0)
        rc = dt_job_weights(j, err);
    j->t.state = (dt_train_state){ .seed = (uint64_t)j->info.seed, .threads = j->dev->threads };
    if (rc == 0)
        rc = dt_job_resume_load(j, err);
    j->t.state.planned = j->t.max_steps;
    if (rc == 0 && !(j->arena = j->dev->alloc(j->dev, j->arena_bytes)))
        rc = dt_err_set(err, DT_ENOMEM, "cannot allocate %.1f MiB on %s", (double)j->arena_bytes / 1048576.0,
                        j->dev->name);
    if (rc == 0)
        rc = dt_session_alloc(j->session, j->arena, err);
    if (rc == 0 && j->val)
        rc = dt_validator_ready(j->val, j->arena, err);
    if (rc == 0)
        rc = open_watchers(j, err);
    if (rc == 0)
        rc = open_loader(j, err);
    if (rc == 0)
        rc = fill_manifest(j, err);
    memcpy(j->t.state.base, j->base.hex, sizeof(j->t.state.base));
    return rc;
}

static int steps(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    char *dump = o->dump_dir ? dt_strdup(o->dump_dir) : dt_path_join(o->output_dir, "dump");
    j->t.task = &j->task;
    j->t.source = dt_loader_source(j->loader);
    j->t.session = j->session;
    j->t.optim = &j->optim;
    j->t.save_every = o->checkpointing_steps;
    j->t.keep = o->checkpoints_total_limit;
    j->t.output_dir = o->output_dir;
    j->t.dump_steps = o->dump_steps;
    j->t.dump_dir = dump;
    j->t.about = j->about;
    j->t.ctx = j;
    j->t.save_extra = dt_job_save_extra;
    j->t.intact = dt_job_intact;
    j->t.saved = draw_saved;
    j->t.validate = j->val ? dt_validator_run : NULL;
    j->t.say = say_saved;
    j->t.stop = j->ui->stop;
    j->t.save_now = j->ui->save_now;
    int rc = dt_train(&j->t, err);
    free(dump);
    return rc;
}

static int note_result(dt_job *j, dt_err *err)
{
    char *last = dt_sprintf("%s/checkpoint-%" PRId64, j->o->output_dir, j->t.state.step);
    cJSON *result = dt_job_result(j, dt_exists(last) || !j->resume.from ? last : j->resume.from, err);
    if (result)
        cJSON_AddItemToObject(dt_manifest_run(j->manifest), "result", result);
    free(last);
    return result ? 0 : err ? err->code : DT_EFAIL;
}

static int train(dt_job *j, dt_err *err)
{
    int rc = begin(j, err);
    if (rc == 0)
        rc = steps(j, err);
    rc = close_watchers(j, rc, err);
    if (rc == 0 && j->o->fit_scaling)
        rc = dt_job_fit_scaling(j, err);
    if (rc == 0)
        rc = dt_job_save_extra(j, j->o->output_dir, err);
    if (rc == 0) {
        free_arena(j);
        rc = draw_loss(j, err);
    }
    if (rc == 0)
        rc = note_result(j, err);
    char *peak = rc == 0 ? dt_mem_report(&j->memory) : NULL;
    if (peak)
        dt_job_say(j, "%s", peak);
    free(peak);
    return rc;
}

static void release(dt_job *j)
{
    dt_loader_close(&j->loader);
    dt_validator_free(&j->val);
    dt_session_free(&j->session);
    dt_task_release(&j->task);
    free_arena(j);
    dt_job_resume_release(j);
    dt_lora_free(&j->lora);
    dt_flux_pipe_close(&j->pipe);
    dt_cache_close(&j->cache);
    dt_manifest_free(&j->manifest);
    dt_device_close(&j->dev);
    free(j->shape);
    free(j->plan);
}

/* A budget is refused before the run fills a cache, not after: the training that follows is
 * planned from the plan alone. */
static int foresee(dt_job *j, dt_err *err)
{
    dt_train_opts *o = j->o;
    const dt_ui quiet = { .stop = j->ui->stop, .bin_dir = j->ui->bin_dir };
    dt_job f = { .o = o, .kind = j->kind, .ui = j->ui, .act = j->act, .checkpoint = j->checkpoint,
                 .resume = j->resume };
    o->memory_plan = true;                      /* nothing is encoded */
    int rc = dt_device_open(&f.dev, o->device, err);
    if (rc == 0)
        rc = dt_job_data(&f, err);
    f.ui = &quiet;
    if (rc == 0)
        rc = plan_run(&f, err);
    o->memory_plan = false;
    j->plan = f.plan;
    f.plan = NULL;
    f.resume = (struct dt_resume){ 0 };         /* ours */
    release(&f);
    return rc;
}

static int set_up(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    int rc = o->memory_budget && !o->latents && !o->memory_plan && !j->kind->pictures ? foresee(j, err) : 0;
    if (rc == 0)
        rc = dt_job_data(j, err);
    return rc == 0 ? plan_run(j, err) : rc;
}

/* One run at a time for an output folder: two would write each other's metrics and remove each other's
 * checkpoints.  One that was killed may take a moment to go; where folders cannot be locked, none is. */
static int lock_output(dt_job *j, dt_err *err)
{
    bool busy = false;
    j->lock = open(j->o->output_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; j->lock >= 0 && i < LOCK_TRIES; i++) {
        busy = flock(j->lock, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
        if (!busy)
            break;
        nanosleep(&(struct timespec){ .tv_nsec = LOCK_WAIT_MS * 1000000 }, NULL);
    }
    return busy ? dt_err_set(err, DT_EFAIL, "another dt-train is at work in '%s'", j->o->output_dir) : 0;
}

/* A name that is mistyped is found before the data are read. */
static int look_for_files(const dt_train_opts *o, dt_err *err)
{
    const char *const path[] = { o->model, o->transformer_path, o->vae_path };
    for (int i = 0; i < 3; i++)
        if (path[i] && !dt_exists(path[i])) {
            errno = ENOENT;
            return dt_err_open(err, path[i]);
        }
    return o->progress ? dt_path_check_dir(o->progress, err) : 0;
}

int dt_train_run(dt_train_opts *o, const dt_ui *ui, dt_err *err)
{
    dt_job j = { .o = o, .kind = dt_run_kind((enum dt_method)o->method), .ui = ui,
                 .act = o->mixed_precision ? DT_BF16 : DT_F32, .checkpoint = o->gradient_checkpointing, .lock = -1 };
    int rc = dt_device_open(&j.dev, o->device, err);
    if (rc == 0)
        rc = look_for_files(o, err);
    if (rc == 0)
        rc = dt_mkdirs(o->output_dir, err);
    if (rc == 0)
        rc = lock_output(&j, err);
    if (rc == 0 && !o->memory_plan) {
        begin_manifest(&j);
        rc = dt_manifest_write(j.manifest, err);
    }
    if (rc == 0 && !o->memory_plan)
        rc = dt_job_resume_find(&j, err);
    if (rc == 0)
        rc = set_up(&j, err);
    if (rc == 0 && !o->memory_plan)
        rc = dt_job_resume_check(&j, err);
    if (rc == 0 && !o->memory_plan && !j.resume.finished)
        rc = train(&j, err);
    if (j.manifest)
        rc = end_manifest(&j, rc, err);
    release(&j);
    if (j.lock >= 0)
        close(j.lock);
    return rc < 0 ? rc : j.skipped;
}
