/* run_memory.c - the memory plan: every byte a run will need, before it needs the first.
 *
 *   process      what is resident when everything is planned and nothing allocated: program, libraries, primitives
 *   weights      working copies, frozen and trained;  gradients, master, moments, ema: trained parameters only
 *   activations  the arena of the largest bucket, inputs and workspaces included; validation runs in the same arena
 *   batches      host copies of micro-batches: prepared ahead, and staged for the device
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "train/run_int.h"

struct kinds { int64_t process, weights, grads, master, moments, ema, activations, batches; };

static int64_t total(const struct kinds *k)
{
    return k->process + k->weights + k->grads + k->master + k->moments + k->ema + k->activations + k->batches;
}

static void add_params(struct kinds *k, const dt_params *p, dt_dtype t, unsigned flags)
{
    dt_params_bytes b = dt_params_size(p, t, flags);
    k->weights += b.weights;
    k->grads += b.grads;
    k->master += b.master;
    k->moments += b.moments;
    k->ema += b.ema;
}

/* Pictures or latents of the largest micro-batch, as the loader and the task hold them. */
static int64_t batch_bytes(const dt_job *j)
{
    const dt_train_opts *o = j->o;
    int64_t most = 0, f = dt_vae_factor(&j->pipe->vae), ahead = 2 * o->data.dataloader_num_workers + 1;
    for (int i = 0; i < j->nshape; i++) {
        int64_t n = j->shape[i][0], px = j->shape[i][1] * j->shape[i][2], bytes;
        int64_t z = px / (f * f) * j->pipe->vae.latent_channels, T = j->shape[i][3] ? j->shape[i][3] : j->pipe->t5_len;
        if (o->method == DT_METHOD_VAE)
            bytes = n * (px * 3 * (4 + ahead) + z * 4);
        else
            bytes = n * (z * 3 + T * j->pipe->dit.joint_dim) * 4 + 2 * z * 4;
        if (bytes > most)
            most = bytes;
    }
    return most;
}

static int plan_shapes(dt_job *j, dt_err *err)
{
    dt_session_free(&j->session);
    j->session = dt_session_new(j->dev, j->task.build, j->task.ctx);
    for (int i = 0; i < j->nshape; i++) {
        dt_shape_key key = j->task.shape(j->task.ctx, (int)j->shape[i][0], j->shape[i][1], j->shape[i][2], j->shape[i][3]);
        int rc = dt_session_add(j->session, &key, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static struct kinds count(const dt_job *j)
{
    const dt_train_opts *o = j->o;
    struct kinds k = { .process = dt_job_resident(), .batches = batch_bytes(j) };
    unsigned flags = o->use_ema ? DT_PARAMS_EMA : 0;
    for (int i = 0; i < j->optim.nset; i++)
        add_params(&k, j->optim.set[i], j->act, flags);
    if (j->lora)
        add_params(&k, j->pipe->part[DT_FLUX_DIT], j->act, flags);
    k.activations = dt_session_bytes(j->session);
    if (j->val) {
        k.weights += dt_validator_weights(j->val);
        if (dt_validator_bytes(j->val) > k.activations)
            k.activations = dt_validator_bytes(j->val);
    }
    return k;
}

static double mib(int64_t bytes) { return (double)bytes / 1048576.0; }

static void print(const dt_job *j, const struct kinds *k)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (!f)
        return;
    bool varies = dt_job_text_rows(j, NULL).len;
    fprintf(f, "%-24s %12s %12s %12s %10s %10s\n", varies ? "bucket (px, batch, text)" : "bucket (px, batch)", "activations",
            "workspace", "inputs", "TFLOP/step", "kernels");
    const dt_plan_stats *s;
    dt_shape_key key;
    for (int i = 0; (s = dt_session_stats(j->session, i, &key)); i++) {
        char name[64];
        int at = snprintf(name, sizeof(name), "%lldx%lld, %lld", (long long)key.v[1], (long long)key.v[2], (long long)key.v[0]);
        if (varies)
            snprintf(name + at, sizeof(name) - (size_t)at, ", %lld", (long long)key.v[3]);
        fprintf(f, "%-24s %8.1f MiB %8.1f MiB %8.1f MiB %10.4f %10d\n", name, mib(s->activations), mib(s->workspace),
                mib(s->inputs + s->consts), s->flops * (double)j->o->data.gradient_accumulation_steps * 1e-12, s->nodes);
    }
    fprintf(f, "\n%-24s %12s\n", "peak by kind", "");
    const struct { const char *name; int64_t bytes; } row[] = {
        { "process", k->process }, { "weights", k->weights }, { "gradients", k->grads }, { "master weights", k->master },
        { "optimiser moments", k->moments }, { "ema", k->ema }, { "activations", k->activations }, { "batches", k->batches },
        { "total", total(k) },
    };
    for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++)
        fprintf(f, "  %-22s %8.1f MiB\n", row[i].name, mib(row[i].bytes));
    if (j->checkpoint && !j->o->gradient_checkpointing)
        fprintf(f, "gradient checkpointing is on: without it the budget of %.1f MiB would not do\n", mib(j->o->memory_budget));
    fclose(f);
    if (j->o->memory_plan && j->ui->table)
        j->ui->table(j->ui->ctx, text);
    else
        dt_job_say(j, "memory plan: %.1f MiB peak (weights %.1f, gradients and optimiser %.1f, activations %.1f)", mib(total(k)),
                   mib(k->weights), mib(k->grads + k->master + k->moments + k->ema), mib(k->activations));
    free(text);
}

static int retry_with_checkpointing(dt_job *j, dt_err *err)
{
    j->checkpoint = true;
    if (j->o->method == DT_METHOD_VAE)
        dt_vae_task_release(&j->task);
    else
        dt_flux_task_release(&j->task);
    int rc = dt_job_task(j, err);
    return rc < 0 ? rc : plan_shapes(j, err);
}

int dt_job_memory(dt_job *j, dt_err *err)
{
    int64_t budget = j->o->memory_budget;
    int rc = plan_shapes(j, err);
    if (rc < 0)
        return rc;
    struct kinds k = count(j);
    if (budget && total(&k) > budget && !j->checkpoint) {
        if ((rc = retry_with_checkpointing(j, err)) < 0)
            return rc;
        k = count(j);
    }
    j->planned_bytes = total(&k);
    print(j, &k);
    if (budget && total(&k) > budget)
        return dt_err_set(err, DT_ENOMEM, "the smallest memory budget that would do is %.0fM, asked for %.0fM",
                          mib(total(&k)) + 1, mib(budget));
    if (total(&k) > j->dev->mem_bytes && j->dev->mem_bytes > 0)
        return dt_err_set(err, DT_ENOMEM, "this run needs %.1f MiB, %s has %.1f MiB", mib(total(&k)), j->dev->name, mib(j->dev->mem_bytes));
    if (j->o->memory_plan)
        return 0;
    j->arena_bytes = k.activations;
    j->arena = j->dev->alloc(j->dev, j->arena_bytes);
    return j->arena ? 0 : dt_err_set(err, DT_ENOMEM, "cannot allocate %.1f MiB on %s", mib(j->arena_bytes), j->dev->name);
}
