/* run_data.c - the plan and the cache of a run.  What was not given is made first, as dt-bucket and
 * dt-cache-latents would. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "train/encode.h"
#include "train/run_int.h"

enum { WAIT_MS = 2 };           /* how often a child is looked at */

/* --- the plan --- */

static void report_plan(dt_job *j, const struct dt_plan_report *r, bool made)
{
    dt_strs lines = { 0 };
    for (int64_t i = 0; i < r->notes.n; i++)
        dt_job_say(j, "%s", r->notes.v[i]);
    for (int64_t i = 0; r->skipped.n <= DT_PLAN_FEW && i < r->skipped.n; i++)
        dt_job_warn(j, "skipped %s", r->skipped.v[i]);
    dt_plan_reasons(&lines, &r->skipped);
    for (int64_t i = 0; i < lines.n; i++)
        dt_job_warn(j, "%s", lines.v[i]);
    dt_strs_release(&lines);
    j->skipped |= r->skipped.n > 0;
    if (!made)
        return;
    dt_job_say(j,
               "%" PRId64 " pictures, %" PRId64 " batches in %" PRId64 " epochs; %" PRId64 " without caption, %" PRId64 " skipped",
               r->used, r->batches, r->epochs, r->no_caption, r->skipped.n);
    if (r->items && r->no_caption == r->items)
        dt_job_warn(j, "no picture has a caption: what is learned will be in every picture, whatever the prompt");
    for (int i = 0; i < r->n_bucket; i++)
        dt_job_say(j, "  bucket %dx%d: %" PRId64 " pictures, %" PRId64 " batches", r->bucket[i].w, r->bucket[i].h,
                   r->bucket[i].items, r->bucket[i].batches);
}

int dt_job_make_plan(dt_job *j, const struct dt_data_settings *s, const char *path, dt_err *err)
{
    struct dt_plan_report report = { 0 };
    dt_out *out = NULL;
    int rc = dt_data_settings_check(s, err);
    if (rc == 0)
        rc = dt_out_open(&out, path, err);
    if (rc == 0)
        rc = dt_plan_make(dt_out_file(out), s, &report, err);
    if (rc >= 0)
        rc = dt_out_commit(&out, err);
    report_plan(j, &report, rc >= 0);
    dt_plan_report_release(&report);
    dt_out_abort(&out);
    return rc;
}

/* --- the cache, by dt-cache-latents: its encoders are gone from memory when it ends --- */

/* Killed, we take it with us: it would hold the cache against the run that comes next. */
static int run_child(const dt_job *j, char *const *argv, dt_err *err)
{
    int status;
    pid_t us = getpid(), pid = fork(), got;
    if (pid < 0)
        return dt_err_sys(err, DT_EFAIL, "cannot run '%s'", argv[0]);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == us)
            execv(argv[0], argv);
        _exit(127);
    }
    /* a caught signal restarts waitpid, so that it would not be passed on; twice passed on, it would kill */
    for (bool told = false; (got = waitpid(pid, &status, WNOHANG)) <= 0;) {
        if (got < 0 && errno != EINTR)
            return dt_err_sys(err, DT_EFAIL, "cannot wait for '%s'", argv[0]);
        if (!told && j->ui->stop && *j->ui->stop)
            told = !kill(pid, *j->ui->stop);
        nanosleep(&(struct timespec){ .tv_nsec = WAIT_MS * 1000000 }, NULL);
    }
    int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (code == 130 || code == 143)
        return dt_err_set(err, DT_ESIGNAL, "stopped on request while caching; what is encoded is kept");
    if (WIFSIGNALED(status))
        return dt_err_set(err, DT_EFAIL, "dt-cache-latents was killed by signal %d", WTERMSIG(status));
    if (code == 127)
        return dt_err_set(err, DT_EFAIL, "cannot run '%s'", argv[0]);
    if (code != 0 && code != 3)
        return dt_err_set(err, -code, "dt-cache-latents failed");
    return code;
}

static void arg(dt_strs *v, const char *name, const char *value)
{
    dt_strs_add(v, name);
    if (value)
        dt_strs_add(v, value);
}

static void arg_int(dt_strs *v, const char *name, int64_t value)
{
    char text[24];
    snprintf(text, sizeof(text), "%" PRId64, value);
    arg(v, name, text);
}

int dt_job_make_cache(dt_job *j, const char *plan, const char *dir, dt_err *err)
{
    const dt_train_opts *o = j->o;
    dt_strs v = { 0 };
    char *tool = dt_path_join(j->ui->bin_dir, "dt-cache-latents");
    arg(&v, tool, NULL);
    arg(&v, "--pretrained_model_name_or_path", o->model);
    arg(&v, "--plan", plan);
    arg(&v, "--output", dir);
    arg(&v, "--device", o->device);
    arg_int(&v, "--threads", o->threads);
    arg(&v, "--mixed_precision", dt_precision_names[o->mixed_precision]);
    arg_int(&v, "--vae_mini_batch", o->vae_mini_batch);
    arg_int(&v, "--vae_tile", o->vae_tile_px);
    if (o->memory_budget)
        arg_int(&v, "--memory_budget", o->memory_budget);
    if (o->low_vram)
        arg(&v, "--low_vram", NULL);
    if (o->max_sequence_length)
        arg_int(&v, "--max_sequence_length", o->max_sequence_length);
    arg(&v, "--text_padding", dt_padding_names[o->text_padding]);
    if (o->vae_path)
        arg(&v, "--vae_path", o->vae_path);
    if (o->train_text_encoder)
        arg(&v, "--pictures_only", NULL);
    if (o->quiet)
        arg(&v, "--quiet", NULL);
    dt_grow(&v.v, &v.cap, v.n + 1, sizeof(*v.v));
    v.v[v.n] = NULL;
    int rc = run_child(j, v.v, err);
    if (rc == 3)
        j->skipped = true;
    dt_strs_release(&v);
    free(tool);
    return rc < 0 ? rc : 0;
}

/* --- both --- */

char *dt_job_cache_dir(const dt_train_opts *o)
{
    return o->latents && strcmp(o->latents, "-") ? dt_strdup(o->latents) : dt_path_join(o->output_dir, "cache");
}

static int receive_stream(dt_job *j, dt_err *err)
{
    char *dir = dt_job_cache_dir(j->o);
    int rc = dt_cache_receive(stdin, dir, err);
    if (rc < 0 && j->ui->stop && *j->ui->stop)  /* all programs of a pipe are asked at once: the stream ends early */
        rc = dt_err_set(err, DT_ESIGNAL, "stopped on request while receiving the cache");
    if (rc == 0 && !j->plan)
        j->plan = dt_path_join(dir, "plan.ndjson");
    free(dir);
    return rc;
}

static int open_cache(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    char *dir = dt_job_cache_dir(o);
    int rc = 0;
    if (!o->latents)
        rc = dt_job_make_cache(j, j->plan, dir, err);
    if (rc == 0)
        rc = dt_cache_open(&j->cache, dir, err);
    free(dir);
    return rc;
}

static void warn_stale(const dt_job *j, const dt_batches *b)
{
    const char *file = dt_batches_stale(b);
    if (file)
        dt_job_warn(j, DT_PLAN_STALE, file);
}

static int read_info(dt_job *j, dt_err *err)
{
    dt_batches *b = NULL;
    int rc = dt_batches_open(&b, j->plan, err);
    if (rc == 0) {
        j->info = *dt_batches_info(b);
        if (j->cache ? j->o->latents != NULL : j->o->plan != NULL && j->kind->pictures)
            warn_stale(j, b);       /* otherwise the plan is ours, or dt-cache-latents has said it */
        if (!j->o->data.gradient_accumulation_steps)
            j->o->data.gradient_accumulation_steps = j->info.gradient_accumulation_steps;
        dt_batches_close(&b);
    }
    return rc;
}

static void say(void *job, const char *line) { dt_job_say(job, "%s", line); }

int dt_job_check_cache(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    if (!j->cache || !o->latents)
        return 0;                   /* made just now */
    int64_t threads = o->data.dataloader_num_workers ? o->data.dataloader_num_workers : j->dev->threads;
    char *dir = dt_job_cache_dir(o);
    int rc = dt_encode_check(&(struct dt_check_params){ .cache = j->cache, .dir = dir, .plan = j->plan, .pipe = j->pipe,
                             .texts = !o->train_text_encoder, .threads = (int)threads, .stop = j->ui->stop, .say = say,
                             .ctx = j },
                             err);
    free(dir);
    return rc;
}

/* --- shapes --- */

static int64_t cached_len(void *cache, const char *caption, dt_err *err)
{
    return dt_cache_text_len(cache, caption, err);
}
static int64_t own_len(void *pipe, const char *caption, dt_err *err) { return dt_flux_text_len(pipe, caption, err); }

dt_text_rows dt_job_text_rows(const dt_job *j, const dt_cache *cache)
{
    if (j->kind->pictures || j->o->text_padding == DT_PAD_MAX)
        return (dt_text_rows){ 0 };
    bool cached = cache && !j->o->train_text_encoder;
    return (dt_text_rows){ .len = cached ? cached_len : own_len, .ctx = cached ? (void *)cache : j->pipe,
                           .most = j->pipe->t5_len };
}

int dt_job_shapes(dt_job *j, dt_err *err)
{
    dt_text_rows rows = dt_job_text_rows(j, j->cache);
    int rc = dt_plan_shapes(j->plan, j->cache, &rows, &j->shape, &j->nshape, &j->batches, err);
    if (rc == 0 && !j->batches)
        rc = dt_err_set(err, DT_EDATA, "%s: no batch is left to train on", j->plan);
    return rc;
}

/* A plan of our own takes the place of the one before when it is known to be of the same run.  The same
 * again: that one stays. */
static int own_plan(dt_job *j, dt_err *err)
{
    dt_train_opts *o = j->o;
    dt_hash a, b;
    char *made = dt_path_join(o->output_dir, ".plan.ndjson.new");
    j->plan = dt_path_join(o->output_dir, "plan.ndjson");
    o->data.stop = j->ui->stop;
    o->data.verify_images |= j->kind->pictures;    /* no cache stage finds damage before step 1 */
    int rc = dt_job_make_plan(j, &o->data, made, err);
    if (rc >= 0)
        rc = dt_job_resume_plan(j, made, err);
    bool same = rc == 0 && dt_hash_file(&a, made, NULL) == 0 && dt_hash_file(&b, j->plan, NULL) == 0 &&
                !strcmp(a.hex, b.hex);
    if (rc == 0 && !same && rename(made, j->plan) < 0)
        rc = dt_err_sys(err, DT_EIO, "cannot rename '%s'", made);
    else if (rc == 0 && !same)
        rc = dt_fsync_dir(o->output_dir, err);
    else if (unlink(made) < 0)
        errno = 0;                  /* it was not made, or stays beside the plan */
    free(made);
    return rc;
}

int dt_job_data(dt_job *j, dt_err *err)
{
    dt_train_opts *o = j->o;
    struct stat st;
    int rc = 0;
    bool made = j->plan != NULL;                /* by an earlier look at what the run needs */
    if (o->plan && !stat(o->plan, &st) && !S_ISREG(st.st_mode))
        return dt_err_set(err, DT_EUSAGE, "--plan: '%s' is not a file: a run reads its plan several times", o->plan);
    if (o->plan && !made)
        j->plan = dt_strdup(o->plan);
    if (o->latents && !strcmp(o->latents, "-")) {
        rc = receive_stream(j, err);
    } else if (!o->plan && o->latents && !made) {
        j->plan = dt_path_join(o->latents, "plan.ndjson");
    } else if (!o->plan && !made) {
        rc = own_plan(j, err);
        made = true;
    }
    if (rc == 0 && !made)
        rc = dt_job_resume_plan(j, j->plan, err);
    if (rc >= 0 && !j->kind->pictures && (o->latents || !o->memory_plan))   /* a memory plan encodes nothing */
        rc = open_cache(j, err);
    return rc < 0 ? rc : read_info(j, err);
}
