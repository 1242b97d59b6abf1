/* steps.c - what training does to weights, step by step: steps_moves.c, what moves; steps_nan.c, what is not finite.
 *
 *   steps [PART]                only the cases with PART in their names; VERBOSE=1: what dt-train would say */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/steps.h"
#include "tests/unit/scratch.h"

enum { MAX_ARGS = 48 };

static struct { const char *part; char *dir, *bin; int n, bad; } all;

/* --- results --- */

bool steps_wanted(const char *name) { return !all.part || strstr(name, all.part); }

void steps_result(bool ok, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("%s %d - ", ok ? "ok" : "not ok", ++all.n);
    vprintf(fmt, ap);
    putchar('\n');
    fflush(stdout);
    va_end(ap);
    all.bad += !ok;
}

/* --- a run, as run.c sets one up, stopped after each step --- */

static void words(void *ctx, bool warning, const char *line)
{
    (void)warning;
    if (*(bool *)ctx)
        printf("# %s\n", line);
}

static void table(void *ctx, const char *text) { words(ctx, false, text); }

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
    j->t = (dt_trainer){ .accumulate = j->o->data.gradient_accumulation_steps, .lr = { .base = 1e-3, .total = 10 },
                         .output_dir = j->o->output_dir };
    if (rc == 0)
        rc = j->kind->task(&j->task, j, err);
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
    j->t.state = (dt_train_state){ .seed = (uint64_t)j->info.seed, .threads = j->dev->threads };
    return 0;
}

static void release(dt_job *j)
{
    dt_loader_close(&j->loader);
    dt_session_free(&j->session);
    dt_task_release(&j->task);
    if (j->arena)
        j->dev->free(j->dev, j->arena);
    dt_lora_free(&j->lora);
    dt_flux_pipe_close(&j->pipe);
    dt_cache_close(&j->cache);
    dt_device_close(&j->dev);
    free(j->shape);
    free(j->plan);
}

int steps_open(steps *s, enum dt_method method, const char *args, dt_err *err)
{
    char *argv[MAX_ARGS + 1] = { NULL }, *save = NULL;
    int argc = 0;
    *s = (steps){ .loud = getenv("VERBOSE") != NULL };
    s->line = dt_sprintf("x --pretrained_model_name_or_path tests/golden/tiny-flux --train_data_meta %s/m.jsonl "
                         "--image_sample_size 32 --train_batch_size 2 --report_to none --quiet --threads 1 "
                         "--adam_weight_decay 0 --output_dir %s/out %s%s",
                         all.dir, all.dir, method == DT_METHOD_LORA ? "--rank 2 " : "", args);
    for (char *w = strtok_r(s->line, " ", &save); w && argc < MAX_ARGS; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    s->dir = dt_path_join(all.dir, "out");
    dt_train_opts_init(&s->o, method);
    int rc = dt_exists(s->dir) ? dt_rmtree(s->dir, err) : 0;
    if (rc == 0)
        rc = dt_cli_parse(dt_train_cli(method), &s->o, argc, argv, NULL, err);
    if (rc == 0)
        rc = dt_train_opts_check(&s->o, argc, argv, err);
    s->ui = (dt_ui){ .ctx = &s->loud, .say = words, .out = table, .bin_dir = all.bin };
    s->j = (dt_job){ .o = &s->o, .kind = dt_run_kind(method), .ui = &s->ui,
                     .act = s->o.mixed_precision ? DT_BF16 : DT_F32, .checkpoint = s->o.gradient_checkpointing };
    return rc == 0 ? set_up(&s->j, err) : rc;
}

void steps_close(steps *s)
{
    release(&s->j);
    dt_train_opts_release(&s->o);
    free(s->line);
    free(s->dir);
}

int main(int argc, char **argv)
{
    char cwd[4096];
    const char *b = getenv("B");
    dt_err err = { 0 };
    all.part = argc > 1 ? argv[1] : NULL;
    if (!getcwd(cwd, sizeof(cwd)) || !(all.dir = scratch_new()))
        return 1;
    all.bin = dt_sprintf("%s/bin", b ? b : "build");
    char *pictures = dt_sprintf("{\"file_path\":\"%s/examples/pictures/crown.png\",\"text\":\"a crown\"}\n"
                                "{\"file_path\":\"%s/examples/pictures/rocket.png\",\"text\":\"a rocket that flies\"}\n", cwd, cwd);
    char *meta = dt_path_join(all.dir, "m.jsonl");
    if (dt_file_write(meta, pictures, strlen(pictures), &err) < 0) {
        printf("Bail out! %s\n", err.msg);
    } else {
        steps_moves();
        steps_nan();
        printf("1..%d\n", all.n);
    }
    scratch_end(all.dir);
    free(pictures);
    free(meta);
    free(all.bin);
    return all.bad > 0;
}
