/* run_resume.c - which checkpoint a run goes on from, and whether it is one of this run: the same settings,
 * weights to begin with, number of threads, and batches behind it.  Each is compared as soon as it is known, so that a
 * run that is refused has encoded and loaded nothing. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "data/cache_write.h"
#include "train/encode_int.h"
#include "train/run_int.h"

#define WAYS "; another --output_dir leaves it alone, --resume_from_checkpoint none sets it aside and starts anew"

/* --- settings: every option but those that may change, and what they came to --- */

static void set(cJSON *settings, const char *name, cJSON *v)
{
    cJSON_DeleteItemFromObjectCaseSensitive(settings, name);
    cJSON_AddItemToObject(settings, name, v);
}

static int set_file(cJSON *settings, const dt_job *j, const char *name, dt_err *err)
{
    char *path = dt_path_join(j->o->model, name);
    dt_hash h;
    int rc = dt_hash_file(&h, path, err);
    if (rc == 0)
        set(settings, name, cJSON_CreateString(h.hex));
    free(path);
    return rc;
}

static bool not_known(void *ctx, dt_cache_part *part)
{
    (void)ctx;
    (void)part;
    return false;
}

/* Files of the model that neither the hash of the weights to begin with covers, nor the cache's keys do:
 * "text_encoder/" is a folder. */
static int set_files(cJSON *settings, const dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    int rc = j->kind->pictures ? 0 : set_file(settings, j, "scheduler/scheduler_config.json", err);
    if (rc == 0 && o->from_config) {
        char *config = dt_path_join(dt_flux_part_dir[j->kind->part], "config.json");
        rc = set_file(settings, j, config, err);
        free(config);
    }
    for (const struct dt_enc_part_kind *kind = dt_enc_parts; kind->name && rc == 0 && o->train_text_encoder; kind++) {
        dt_cache_part part;
        char *name = dt_sprintf(kind->k >= 0 && o->from_config ? "%s/config.json" : "%s/", kind->name);
        if (kind->text && name[strlen(name) - 1] != '/')
            rc = set_file(settings, j, name, err);
        else if (kind->text && (rc = dt_enc_part(&part, j->pipe, kind, not_known, NULL, err)) == 0)
            set(settings, name, cJSON_CreateString(part.hash.hex));
        free(name);
    }
    return rc;
}

/* `all`: with what is known only when there are a plan and a memory plan. */
static int settings_of(cJSON **out, const dt_job *j, bool all, dt_err *err)
{
    const dt_train_opts *o = j->o;
    cJSON *s = *out = dt_train_opts_settings(o);
    set(s, "device", cJSON_CreateString(j->dev->kind == DT_CPU ? "cpu" : "cuda"));
    if (!j->kind->pictures)
        set(s, "max_sequence_length", cJSON_CreateNumber((double)j->pipe->t5_len));
    if (!all && !o->data.gradient_accumulation_steps)
        cJSON_DeleteItemFromObjectCaseSensitive(s, "gradient_accumulation_steps");
    if (all || !o->memory_budget)
        set(s, "gradient_checkpointing", cJSON_CreateBool(j->checkpoint));
    if (all)
        set(s, "train_batch_size", cJSON_CreateNumber((double)j->info.train_batch_size));
    return set_files(s, j, err);
}

/* As it would stand on a command line; caller frees. */
static char *text_of(const cJSON *v)
{
    if (!v || cJSON_IsNull(v))
        return dt_strdup("not set");
    return cJSON_IsString(v) ? dt_strdup(v->valuestring) : dt_json_line(v);
}

static int another(const dt_job *j, const char *name, const cJSON *was, const cJSON *is, dt_err *err)
{
    char *a = text_of(was), *b = text_of(is);
    const char *from = j->resume.from;
    int rc;
    if (strchr(name, '/'))
        rc = dt_err_set(err, DT_EUSAGE, "%s was made with another %s than that of %s" WAYS, from, name, j->o->model);
    else if (!strcmp(name, "command"))
        rc = dt_err_set(err, DT_EUSAGE, "%s was made by dt-train %s, this is dt-train %s" WAYS, from, a, b);
    else
        rc = dt_err_set(err, DT_EUSAGE, "%s was made with --%s %.200s, this run has --%s %.200s" WAYS, from, name, a,
                        name, b);
    free(a);
    free(b);
    return rc;
}

/* Of two objects, the first member of `is` that is another in `was`; NULL: none.  What `was` lacks counts only if it is
 * complete: options have been added since. */
static const cJSON *first_other(const cJSON *was, const cJSON *is, bool complete, const cJSON **then)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, is) {
        *then = cJSON_GetObjectItemCaseSensitive(was, e->string);
        if (*then ? !cJSON_Compare(*then, e, true) : complete)
            return e;
    }
    return NULL;
}

static int same_settings(const dt_job *j, const cJSON *settings, dt_err *err)
{
    const cJSON *then,
        *e = first_other(cJSON_GetObjectItemCaseSensitive(j->resume.manifest, "options"), settings, false, &then);
    return e ? another(j, e->string, then, e, err) : 0;
}

/* --- finding it --- */

static bool asked(const dt_job *j, const char *word) { return j->o->resume && !strcmp(j->o->resume, word); }

static int same_threads(const dt_job *j, dt_err *err)
{
    const dt_train_state *s = &j->resume.state;
    if (s->threads == j->dev->threads)
        return 0;
    return dt_err_set(err, DT_EUSAGE,
                      "%s was made with %d compute threads, this run has %d; add --threads %d to get the same bits",
                      j->resume.from, s->threads, j->dev->threads, s->threads);
}

static int not_past(const dt_job *j, int64_t steps, dt_err *err)
{
    if (!steps || j->resume.state.step <= steps)
        return 0;
    return dt_err_set(err, DT_EUSAGE,
                      "%s is at step %" PRId64 ", this run ends at step %" PRId64 "; --resume_from_checkpoint takes "
                      "the name of an earlier one" WAYS, j->resume.from, j->resume.state.step, steps);
}

static int same_weights(dt_job *j, dt_err *err)
{
    const struct dt_resume *r = &j->resume;
    int rc = dt_job_base_hash(j, err);
    if (rc == 0 && *r->state.base && *j->base.hex && strcmp(r->state.base, j->base.hex))
        rc = dt_err_set(err, DT_EUSAGE, "%s was made from another model than %s" WAYS, r->from, j->o->model);
    return rc;
}

/* Without it, nobody knows what the run was. */
static int says_all(const struct dt_resume *r, dt_err *err)
{
    const char *gone = !cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(r->manifest, "options")) ? "options"
                     : r->state.batch && !*r->state.trace.plan ? "batches_hash"
                     : r->state.batch && !*r->state.trace.data ? "data_hash" : NULL;
    return gone ? dt_err_set(err, DT_EDATA, "%s/manifest.json: '%s' is missing", r->from, gone) : 0;
}

/* A path, or a name under the output folder.  Caller frees. */
static char *checkpoint_of(const dt_train_opts *o)
{
    bool name = !strchr(o->resume, '/') && !dt_exists(o->resume);
    return name ? dt_path_join(o->output_dir, o->resume) : dt_strdup(o->resume);
}

int dt_job_resume_find(dt_job *j, dt_err *err)
{
    struct dt_resume *r = &j->resume;
    cJSON *settings = NULL;
    if (asked(j, "none"))
        return 0;
    int rc = 0;
    if (!j->o->resume || asked(j, "latest"))
        rc = dt_checkpoint_latest(&r->from, j->o->output_dir, err);
    else
        r->from = checkpoint_of(j->o);
    if (rc < 0)
        return rc;
    if (!r->from) {
        if (j->o->resume)
            dt_job_say(j, "no checkpoint under %s yet: starting from step 0", j->o->output_dir);
        return 0;
    }
    rc = dt_checkpoint_state(r->from, &r->state, &r->manifest, err);
    if (rc == 0)
        rc = says_all(r, err);
    if (rc == 0)
        rc = dt_job_pipe(j, err);
    if (rc == 0 && (rc = settings_of(&settings, j, false, err)) == 0)
        rc = same_settings(j, settings, err);
    if (rc == 0)
        rc = same_threads(j, err);
    if (rc == 0)
        rc = not_past(j, j->o->data.max_train_steps, err);
    if (rc == 0)
        rc = same_weights(j, err);
    cJSON_Delete(settings);
    return rc;
}

/* --- the plan --- */

/* What the header says of how a plan was made, for messages. */
static cJSON *made_with(const cJSON *header)
{
    const cJSON *e, *path, *hash;
    cJSON *made = cJSON_Duplicate(cJSON_GetObjectItemCaseSensitive(header, "settings"), true);
    if (!cJSON_IsObject(made)) {
        cJSON_Delete(made);
        made = cJSON_CreateObject();
    }
    cJSON_ArrayForEach(e, cJSON_GetObjectItemCaseSensitive(header, "metadata")) {
        path = cJSON_GetObjectItemCaseSensitive(e, "path");
        hash = cJSON_GetObjectItemCaseSensitive(e, "xxh3_128");
        if (cJSON_IsString(path) && cJSON_IsString(hash))
            cJSON_AddStringToObject(made, dt_path_base(path->valuestring), hash->valuestring);
    }
    return made;
}

static int too_short(const dt_job *j, int64_t found, dt_err *err)
{
    return dt_err_set(err, DT_EUSAGE, "%s has %" PRId64 " batches behind it, this run's plan has only %" PRId64 WAYS,
                      j->resume.from, j->resume.state.batch, found);
}

static int other_batches(const dt_job *j, const cJSON *header, int64_t found, dt_err *err)
{
    const struct dt_resume *r = &j->resume;
    const cJSON *then = NULL, *theirs = cJSON_GetObjectItemCaseSensitive(r->manifest, "plan_settings");
    cJSON *ours = made_with(header);
    const cJSON *e = theirs ? first_other(theirs, ours, true, &then) : NULL;
    char *why = NULL;
    if (e) {
        char *a = text_of(then), *b = text_of(e);
        why = dt_sprintf(" (%s was %.100s, is %.100s)", e->string, a, b);
        free(a);
        free(b);
    }
    int rc = found < r->state.batch ? too_short(j, found, err)
        : dt_err_set(err, DT_EUSAGE,
                     "%s was trained on other data: the %" PRId64 " batches behind it are not the first of this run's "
                     "plan%s" WAYS, r->from, r->state.batch, why ? why : "");
    free(why);
    cJSON_Delete(ours);
    return rc;
}

int dt_job_resume_plan(const dt_job *j, const char *plan, dt_err *err)
{
    const struct dt_resume *r = &j->resume;
    const struct dt_loader_params p = { .plan = plan, .want = dt_job_want(j) };
    dt_batches *b = NULL;
    dt_trace t;
    int64_t found = 0;
    if (!r->from)
        return 0;
    int rc = dt_batches_open(&b, plan, err);
    if (rc < 0)
        return rc;
    const dt_plan_info *i = dt_batches_info(b);
    if (r->state.seed != (uint64_t)i->seed)
        rc = dt_err_set(err, DT_EUSAGE, "%s was made with --seed %" PRIu64 ", this run has --seed %" PRId64 WAYS,
                        r->from, r->state.seed, i->seed);
    cJSON *size = cJSON_CreateObject();
    cJSON_AddNumberToObject(size, "train_batch_size", (double)i->train_batch_size);
    if (rc == 0)
        rc = same_settings(j, size, err);
    cJSON_Delete(size);
    if (rc == 0 && (rc = dt_plan_trace(&t, &found, &p, r->state.batch, 0, NULL, err)) == 0 &&
        strcmp(t.plan, r->state.trace.plan))
        rc = other_batches(j, dt_batches_header(b), found, err);
    dt_batches_close(&b);
    return rc;
}

/* --- all that is left --- */

static int describe(dt_job *j, dt_err *err)
{
    dt_batches *b = NULL;
    cJSON *settings = NULL;
    int rc = settings_of(&settings, j, true, err);
    j->about = cJSON_CreateObject();
    cJSON_AddItemToObject(j->about, "options", settings);
    if (rc == 0 && (rc = dt_batches_open(&b, j->plan, err)) == 0)
        cJSON_AddItemToObject(j->about, "plan_settings", made_with(dt_batches_header(b)));
    dt_batches_close(&b);
    return rc;
}

static int same_data(const dt_job *j, dt_err *err)
{
    const struct dt_resume *r = &j->resume;
    const struct dt_loader_params p = dt_job_loader(j);
    int64_t found = 0, threads = j->o->data.dataloader_num_workers ? j->o->data.dataloader_num_workers
                                                                   : j->dev->threads;
    dt_trace t;
    int rc = dt_plan_trace(&t, &found, &p, r->state.batch, (int)threads, j->ui->stop, err);
    if (rc < 0)
        return rc;
    if (!strcmp(t.data, r->state.trace.data))
        return 0;
    return dt_err_set(err, DT_EUSAGE, "%s was trained on other data: the %" PRId64 " batches behind it had %s" WAYS,
                      r->from, r->state.batch,
                      j->kind->pictures ? "other pictures" : "other pictures, or were encoded otherwise");
}

/* The learning rate is a curve over all steps: with more of them, what is behind was another part of it. */
static void compare_length(const dt_job *j)
{
    const dt_train_state *s = &j->resume.state;
    if (s->planned && s->planned != j->t.max_steps && j->t.lr.kind != DT_LR_CONSTANT && j->t.lr.kind != DT_LR_WARMUP)
        dt_job_warn(j,
                    "%s was made for %" PRId64 " steps, this run has %" PRId64 ": until step %" PRId64 " the learning rate was "
                    "that of the other length", j->resume.from, s->planned, j->t.max_steps, s->step);
}

cJSON *dt_job_result(const dt_job *j, const char *checkpoint, dt_err *err)
{
    const dt_train_opts *o = j->o;
    char *path = dt_path_join(checkpoint, "manifest.json");
    dt_hash h;
    cJSON *r = NULL;
    if (dt_hash_file(&h, path, err) == 0) {
        r = cJSON_CreateObject();
        cJSON_AddStringToObject(r, "checkpoint", h.hex);
        cJSON_AddStringToObject(r, "file", j->kind->result);
        cJSON_AddStringToObject(r, "save_dtype", dt_save_dtype_names[o->save_dtype]);
        cJSON_AddStringToObject(r, "lora_format", dt_lora_layouts[o->lora_format]);
        cJSON_AddBoolToObject(r, "fit_scaling", o->fit_scaling);
    }
    free(path);
    return r;
}

static bool there(const dt_job *j, const char *name)
{
    char *path = dt_path_join(j->o->output_dir, name);
    bool yes = dt_exists(path);
    free(path);
    return yes;
}

/* Is nothing left to do?  Then run.json says that what is there was made from this checkpoint, in the way that
 * is asked for now. */
static void look_whether_finished(dt_job *j)
{
    struct dt_resume *r = &j->resume;
    bool validated = !j->val || !j->t.validate_every || r->state.validated == r->state.step + 1;
    if (r->state.step < j->t.max_steps || !validated || !there(j, "loss.png"))
        return;
    cJSON *result = dt_job_result(j, r->from, NULL);
    const cJSON *file = cJSON_GetObjectItemCaseSensitive(result, "file");
    if (result && cJSON_Compare(result, dt_manifest_result(j->manifest), true) && there(j, file->valuestring)) {
        r->finished = true;
        dt_job_say(j, "%s is finished: %" PRId64 " of %" PRId64 " steps are done, nothing is left to do",
                   j->o->output_dir, r->state.step, j->t.max_steps);
        cJSON_AddItemToObject(dt_manifest_run(j->manifest), "result", result);
        result = NULL;
    }
    cJSON_Delete(result);
}

int dt_job_resume_check(dt_job *j, dt_err *err)
{
    int rc = describe(j, err);
    if (rc < 0 || !j->resume.from)
        return rc;
    rc = same_settings(j, cJSON_GetObjectItemCaseSensitive(j->about, "options"), err);
    if (rc == 0)
        rc = not_past(j, j->t.max_steps, err);
    if (rc == 0)
        rc = same_data(j, err);
    if (rc == 0) {
        compare_length(j);
        look_whether_finished(j);
    }
    return rc;
}

/* --- going on, or beginning --- */

static int move(const char *path, const char *dir, dt_err *err)
{
    char *to = dt_path_join(dir, dt_path_base(path));
    int rc = rename(path, to) < 0 ? dt_err_sys(err, DT_EIO, "cannot move '%s' to '%s'", path, dir) : 0;
    free(to);
    return rc;
}

/* Is it, or is in it, what this run's model is read from? */
static bool read_from(const dt_job *j, const char *path)
{
    char *own = realpath(path, NULL);
    bool yes = false;
    for (int k = 0; own && !yes && k < DT_FLUX_NPART; k++) {
        const char *given = j->pipe->weights[k];
        char *source = given ? dt_strdup(given) : dt_path_join(j->pipe->dir, dt_flux_part_dir[k]);
        char *real = realpath(source, NULL);
        size_t n = strlen(own);
        yes = real && !strncmp(real, own, n) && (real[n] == '/' || !real[n]);
        free(real);
        free(source);
    }
    free(own);
    return yes;
}

/* Its weights stay if they are what this run begins with. */
static int move_result(const dt_job *j, const char *name, const char *dir, dt_err *err)
{
    char *path = dt_path_join(j->o->output_dir, name);
    int rc = dt_exists(path) && !read_from(j, path) ? move(path, dir, err) : 0;
    free(path);
    return rc;
}

/* What an earlier run has left goes into old-N, so that none of its checkpoints is taken for one of this run, or
 * has to make room for one.  Checkpoints last: while there is one, the rest is known to be old. */
static int set_aside(const dt_job *j, dt_err *err)
{
    static const char *const part[] = { "metrics.ndjson", "validation.ndjson", "loss.png", "samples.png", "samples",
                                        DT_LORA_FILE };
    const char *out = j->o->output_dir;
    char *path, *old = NULL;
    int rc = dt_checkpoint_latest(&path, out, err);
    if (rc < 0 || !path)
        return rc;
    for (int i = 1; !old || dt_exists(old); i++) {
        free(old);
        old = dt_sprintf("%s/old-%d", out, i);
    }
    rc = dt_mkdirs(old, err);
    for (size_t i = 0; i < sizeof(part) / sizeof(part[0]) && rc == 0; i++)
        rc = move_result(j, part[i], old, err);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
        rc = move_result(j, dt_flux_part_dir[k], old, err);
    while (rc == 0 && path) {
        rc = move(path, old, err);
        free(path);
        path = NULL;
        if (rc == 0)
            rc = dt_checkpoint_latest(&path, out, err);
    }
    if (rc == 0)
        rc = dt_fsync_dir(old, err);
    if (rc == 0)
        rc = dt_fsync_dir(out, err);
    if (rc == 0)
        dt_job_warn(j, "starting anew: what an earlier run has left is in %s now", old);
    free(path);
    free(old);
    return rc;
}

int dt_job_resume_load(dt_job *j, dt_err *err)
{
    struct dt_resume *r = &j->resume;
    dt_train_state s;
    if (!r->from)
        return asked(j, "none") ? set_aside(j, err) : 0;
    int rc = dt_checkpoint_load(r->from, &j->optim, &s, err);
    if (rc == 0) {
        j->t.state = r->state;
        dt_job_say(j, "resumed from %s at step %" PRId64, r->from, r->state.step);
    }
    return rc;
}

void dt_job_resume_release(dt_job *j)
{
    free(j->resume.from);
    cJSON_Delete(j->resume.manifest);
    cJSON_Delete(j->about);
    j->resume = (struct dt_resume){ 0 };
    j->about = NULL;
}
