/* run_memory.c - the memory plan of a training run.  See memory.h.
 *
 *   captions     those of the samples are encoded; the encoders go before the model comes
 *   training     and validation, in the same arena
 *   loss.png     the arena is gone
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "train/dump.h"
#include "train/run_int.h"

static int plan_shapes(dt_job *j, dt_err *err)
{
    dt_session_free(&j->session);
    j->session = dt_session_new(j->dev, j->task.build, j->task.ctx);
    for (int i = 0; i < j->nshape; i++) {
        dt_shape_key key = j->task.shape(j->task.ctx, (int)j->shape[i][0], j->shape[i][1], j->shape[i][2],
                                         j->shape[i][3]);
        int rc = dt_session_add(j->session, &key, err);
        if (rc == 0 && (j->staged_bytes = j->task.reserve(j->task.ctx, &key, err)) < 0)
            rc = (int)j->staged_bytes;
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The process as it is with the plan open, and the largest picture of that. */
static int rehearse(const dt_job *j, int64_t *process, int64_t source[2], dt_err *err)
{
    dt_batches *b = NULL;
    int rc = dt_batches_open(&b, j->plan, err);
    if (rc < 0)
        return rc;
    memcpy(source, dt_batches_info(b)->largest, 2 * sizeof(*source));
    *process = dt_mem_resident();
    dt_batches_close(&b);
    return 0;
}

static int64_t batch_bytes(const dt_job *j, const int64_t source[2])
{
    struct dt_loader_params p = dt_job_loader(j);
    int64_t most = 0;
    for (int i = 0; i < j->nshape; i++) {
        int64_t bytes = dt_loader_bytes(&p, j->shape[i][0], j->shape[i][1], j->shape[i][2], source[0], source[1]);
        most = bytes > most ? bytes : most;
    }
    return most + j->staged_bytes;
}

static int64_t dump_bytes(const dt_job *j)
{
    int64_t most = 0;
    dt_shape_key key;
    dt_graph *g;
    for (int i = 0; j->o->dump_steps && dt_session_stats(j->session, i, &key); i++) {
        dt_session_use(j->session, &key, &g);
        int64_t bytes = dt_dump_bytes(g, j->o->data.gradient_accumulation_steps, &j->optim);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int count(dt_job *j, dt_err *err)
{
    const dt_train_opts *o = j->o;
    dt_mem_plan *p = &j->memory;
    unsigned flags = o->use_ema ? DT_PARAMS_EMA : 0;
    int64_t process = 0, source[2] = { 0, 0 }, chart = 0;
    const struct dt_chart_params look = dt_job_chart(j);
    int rc = dt_chart_bytes(&look, &chart, err);
    if (rc == 0)
        rc = rehearse(j, &process, source, err);
    if (rc < 0)
        return rc;
    *p = (dt_mem_plan){ 0 };
    dt_mem_moment *m = dt_mem_add(p, "training", process);
    for (int i = 0; i < j->optim.nset; i++)
        dt_mem_add_params(m, dt_params_size(j->optim.set[i], j->act, flags));
    if (j->lora)
        dt_mem_add_params(m, dt_params_size(j->pipe->part[DT_FLUX_DIT], j->act, flags));
    m->kind[DT_MEM_ACTIVATIONS] = dt_session_bytes(j->session);
    m->kind[DT_MEM_BATCHES] = batch_bytes(j, source);
    m->kind[DT_MEM_DUMP] = dump_bytes(j);
    if (j->val)
        dt_validator_memory(j->val, p, m);
    if (m->kind[DT_MEM_PICTURES] < chart)           /* of the loss, drawn with every checkpoint */
        m->kind[DT_MEM_PICTURES] = chart;
    dt_mem_add_start(p);
    return 0;
}

static double mib(int64_t bytes) { return (double)bytes / 1048576.0; }

static const char fused[] =
    "gradients are not kept: without clipping, each parameter is updated during the backward pass";

static void print(const dt_job *j)
{
    char *text = NULL, *line = dt_mem_line(&j->memory);
    size_t bytes = 0;
    FILE *f = dt_must(open_memstream(&text, &bytes));
    bool varies = dt_job_text_rows(j, NULL).len;
    fprintf(f, "%-24s %12s %12s %12s %10s %10s\n", varies ? "bucket (px, batch, text)" : "bucket (px, batch)",
            "activations", "workspace", "inputs", "TFLOP/step", "kernels");
    const dt_plan_stats *s;
    dt_shape_key key;
    for (int i = 0; (s = dt_session_stats(j->session, i, &key)); i++) {
        char name[64];
        int at = snprintf(name, sizeof(name), "%lldx%lld, %lld", (long long)key.v[1], (long long)key.v[2],
                          (long long)key.v[0]);
        if (varies)
            snprintf(name + at, sizeof(name) - (size_t)at, ", %lld", (long long)key.v[3]);
        fprintf(f, "%-24s %8.1f MiB %8.1f MiB %8.1f MiB %10.4f %10d\n", name, mib(s->activations), mib(s->workspace),
                mib(s->inputs + s->consts), s->flops * (double)j->o->data.gradient_accumulation_steps * 1e-12,
                s->nodes);
    }
    fputc('\n', f);
    dt_mem_table(f, &j->memory);
    if (j->checkpoint && !j->o->gradient_checkpointing)
        fprintf(f, "gradient checkpointing is on: without it the budget of %.1f MiB would not do\n",
                mib(j->o->memory_budget));
    if (j->optim.fused)
        fprintf(f, "%s\n", fused);
    fclose(f);
    if (j->o->memory_plan && j->ui->out) {
        j->ui->out(j->ui->ctx, text);
    } else {
        dt_job_say(j, "%s", line);
        if (j->optim.fused)
            dt_job_say(j, "%s", fused);
    }
    free(line);
    free(text);
}

static int retry_with_checkpointing(dt_job *j, dt_err *err)
{
    j->checkpoint = true;
    dt_task_release(&j->task);
    int rc = j->kind->task(&j->task, j, err);
    return rc < 0 ? rc : plan_shapes(j, err);
}

int dt_job_memory(dt_job *j, dt_err *err)
{
    int64_t budget = j->o->memory_budget;
    bool gave_back = false;
    int rc = plan_shapes(j, err);
    if (rc == 0)
        rc = count(j, err);
    if (rc == 0 && !dt_mem_fits(&j->memory, budget) && (gave_back = dt_flux_pipe_give_back(j->pipe)))
        rc = count(j, err);
    if (rc == 0 && !dt_mem_fits(&j->memory, budget) && !j->checkpoint &&
        (rc = retry_with_checkpointing(j, err)) == 0)
        rc = count(j, err);
    if (rc < 0)
        return rc;
    print(j);
    if (gave_back && dt_mem_fits(&j->memory, budget))
        dt_job_say(j, "%s", DT_MEM_GIVEN_BACK);
    j->arena_bytes = j->memory.at[0].kind[DT_MEM_ACTIVATIONS];
    return dt_mem_accept(&j->memory, budget, j->dev, err);
}
