/* trainer.c - the training loop.  See trainer.h. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/file.h"
#include "base/mem.h"
#include "train/dump.h"
#include "train/memory.h"
#include "train/trainer.h"

struct step {                       /* what one optimiser step found */
    double loss, norm, lr, flops;
    int64_t images;
    int    micros;                  /* 0: the plan is at its end */
};

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* Names the first op and block that made it.  Gradients as they are would show each node that adds to them. */
static int not_finite(const dt_trainer *t, dt_plan *p, const char *what, int64_t batch, dt_err *err)
{
    dt_err found = { 0 };
    char *text = dt_sprintf("step %" PRId64 ": the %s", t->state.step + 1, what);
    dt_optim_zero(t->optim);
    dt_plan_blame(p, text, &found);
    free(text);
    return dt_err_set(err, DT_ENAN, "%s; batch %" PRId64 " of the plan", found.msg, batch);
}

/* What goes to the disk and into pictures are numbers. */
static int sound(const dt_trainer *t, dt_err *err)
{
    const char *role, *set;
    const dt_param *q = dt_optim_not_finite(t->optim, &set, &role);
    return q ? dt_err_set(err, DT_ENAN, "step %" PRId64 ": the %s of '%s' in '%s' is not finite; nothing is saved",
                          t->state.step, role, q->name, set) : 0;
}

static int run_micro(dt_trainer *t, const dt_micro *b, struct step *s, int micro, dt_dump *dump, dt_plan **plan,
                     dt_err *err)
{
    dt_shape_key key = t->task->shape(t->task->ctx, b->n, b->w_px, b->h_px, b->T);
    dt_graph *g = NULL;
    dt_plan *p = dt_session_use(t->session, &key, &g);
    if (!p)
        return dt_err_set(err, DT_EDATA, "batch %" PRId64 " has a shape that the plan's header does not list",
                          b->index);
    *plan = p;
    dt_step_at at = { t->state.seed, t->state.step, micro, t->accumulate };
    float scale = 1.0f / (float)t->accumulate, loss = 0;
    int rc = t->task->feed(t->task->ctx, g, p, b, &at, err);
    if (rc < 0)
        return rc;
    dt_plan_write(p, dt_find(g, "loss_scale"), &scale);
    if ((rc = dt_plan_run(p, err)) < 0)
        return rc;
    dt_plan_read(p, dt_find(g, "loss"), &loss);
    if (!isfinite(loss))
        return not_finite(t, p, "loss", b->index, err);
    if (t->accumulate > 1 && !isfinite(dt_optim_norm(t->optim)))        /* later its inputs are gone */
        return not_finite(t, p, "gradient", b->index, err);
    s->loss += (double)loss * (double)scale;
    s->images += b->n;
    s->flops += dt_plan_stat(p)->flops - dt_plan_stat(p)->flops_recompute;
    return dump ? dt_dump_micro(dump, g, p, micro, err) : 0;
}

static int update(dt_trainer *t, struct step *s, dt_plan *plan, dt_dump *dump, dt_err *err)
{
    int rc = dump ? dt_dump_grads(dump, t->optim, err) : 0;
    if (rc < 0)
        return rc;
    s->norm = dt_optim_norm(t->optim);
    if (!isfinite(s->norm))
        return not_finite(t, plan, "gradient", t->state.batch - 1, err);
    dt_optim_step(t->optim, s->lr, s->norm);
    if (!dump)
        return 0;
    if ((rc = dt_dump_scalar(dump, "lr", s->lr, err)) < 0 ||
        (rc = dt_dump_scalar(dump, "grad_norm", s->norm, err)) < 0 ||
        (rc = dt_dump_weights(dump, t->optim, err)) < 0)
        return rc;
    return dt_dump_write(dump, t->dump_dir, t->state.step + 1, err);
}

/* One optimiser step.  A plan that ends within one gives a last step of fewer micro-batches. */
static int one_step(dt_trainer *t, struct step *s, dt_err *err)
{
    dt_dump *dump = t->state.step < t->dump_steps ? dt_dump_new() : NULL;
    dt_plan *plan = NULL;
    int rc = 0;
    *s = (struct step){ .lr = dt_lr_at(&t->lr, t->state.step) };
    dt_optim_begin(t->optim, s->lr);
    for (; s->micros < t->accumulate && rc == 0; s->micros++) {
        dt_micro *b = NULL;
        rc = t->source.next(t->source.ctx, &b, err);
        if (rc <= 0)
            break;
        rc = run_micro(t, b, s, s->micros, dump, &plan, err);
        t->state.batch = b->index + 1;
        t->state.epoch = b->epoch;
        t->state.trace = b->trace;
        t->source.done(t->source.ctx, b);
    }
    if (rc == 0 && s->micros)
        rc = update(t, s, plan, dump, err);
    dt_dump_free(&dump);
    return rc < 0 ? rc : 0;
}

/* A clock that stood still or went backwards tells no rate. */
static double per_s(double n, double seconds)
{
    return seconds > 0 ? n / seconds : 0;
}

static int report(dt_trainer *t, const struct step *s, double seconds, dt_err *err)
{
    const double img_s = per_s((double)s->images, seconds), flops_s = per_s(s->flops, seconds),
                 of_peak = t->peak_flops > 0 ? flops_s / t->peak_flops : 0,
                 mem_mib = (double)dt_mem_resident() / 1048576;
    const struct { const char *tag; double value; } curve[] = {
        { "train/loss", s->loss }, { "train/lr", s->lr }, { "train/grad_norm", s->norm },
        { "performance/img_per_s", img_s }, { "performance/memory_MiB", mem_mib },
        { "performance/TFLOP_per_s", flops_s * 1e-12 },
        { "performance/of_peak", of_peak },         /* last: left out where it is not known */
    };
    int64_t k = t->state.step;
    int rc = 0, curves = (int)(sizeof(curve) / sizeof(curve[0])) - !(t->peak_flops > 0);
    if (t->metrics) {
        dt_metrics_int(t->metrics, "step", k);
        dt_metrics_int(t->metrics, "epoch", t->state.epoch);
        dt_metrics_num(t->metrics, "loss", s->loss);
        dt_metrics_num(t->metrics, "lr", s->lr);
        dt_metrics_num(t->metrics, "grad_norm", s->norm);
        rc = dt_metrics_end(t->metrics, err);
    }
    for (int i = 0; t->events && i < curves && rc == 0; i++)
        rc = dt_events_scalar(t->events, curve[i].tag, k, curve[i].value, err);
    if (t->progress) {
        dt_progress_num(t->progress, "loss", s->loss);
        dt_progress_num(t->progress, "lr", s->lr);
        dt_progress_num(t->progress, "img/s", img_s);
        if (t->peak_flops > 0)
            dt_progress_share(t->progress, "of_peak", of_peak);
        dt_progress_num(t->progress, "TFLOP/s", flops_s * 1e-12);
        dt_progress_num(t->progress, "grad_norm", s->norm);
        dt_progress_num(t->progress, "memory_MiB", mem_mib);
        dt_progress_step(t->progress, k);
    }
    return rc;
}

static int save(dt_trainer *t, dt_err *err)
{
    char *dir = dt_sprintf("%s/checkpoint-%" PRId64, t->output_dir, t->state.step);
    int rc = sound(t, err);
    if (rc == 0 && t->metrics) {
        t->state.metrics_bytes = dt_metrics_offset(t->metrics);
        rc = dt_metrics_sync(t->metrics, err);
    }
    t->state.optim_k = t->optim->k;
    if (t->events && rc == 0)
        rc = dt_events_flush(t->events, err);
    if (rc == 0)
        rc = dt_checkpoint_save(dir, t->optim, &t->state, t->about, t->save_extra, t->ctx, err);
    if (rc == 0 && t->say) {
        char *line = dt_sprintf("saved %s", dir);
        t->say(t->ctx, line);
        free(line);
    }
    if (rc == 0)
        rc = dt_checkpoint_prune(t->output_dir, t->keep, t->state.step, err);
    if (rc == 0 && t->saved)
        rc = t->saved(t->ctx, err);
    free(dir);
    return rc;
}

static bool due(int64_t every, int64_t step) { return every > 0 && step % every == 0; }

/* Validates once per step that is due; a run that was stopped before doing so does it when resumed. */
static int validate(dt_trainer *t, bool last, dt_err *err)
{
    if (!t->validate || !t->validate_every || !(last || due(t->validate_every, t->state.step)) ||
        t->state.validated == t->state.step + 1)
        return 0;
    int rc = sound(t, err);
    if (rc == 0)
        rc = t->validate(t->ctx, t->state.step, err);
    if (rc == 0)
        t->state.validated = t->state.step + 1;
    return rc;
}

static int after_step(dt_trainer *t, int64_t *saved, bool last, dt_err *err)
{
    bool stop = t->stop && *t->stop;
    int rc = stop ? 0 : validate(t, last, err);
    if (rc == DT_ESIGNAL)
        stop = true, rc = 0;
    bool asked = t->save_now && *t->save_now;
    if (asked)
        *t->save_now = 0;
    if (rc == 0 && *saved != t->state.step && (due(t->save_every, t->state.step) || last || stop || asked)) {
        rc = save(t, err);
        *saved = t->state.step;
    }
    if (rc == 0 && stop)
        return dt_err_set(err, DT_ESIGNAL, "stopped on request at step %" PRId64 ", state saved", t->state.step);
    return rc;
}

int dt_train(dt_trainer *t, dt_err *err)
{
    int64_t saved = t->state.step, validated = t->state.validated;
    bool ended = false, over = t->state.step > 0 && t->state.step >= t->max_steps;
    dt_optim_zero(t->optim);
    /* killed between saving and removing, a run that goes on has that left to do */
    int rc = t->state.step ? dt_checkpoint_prune(t->output_dir, t->keep, t->state.step, err) : 0;
    if (rc == 0)
        rc = validate(t, over, err);
    if (rc == 0 && over && t->state.validated != validated)
        rc = save(t, err);
    while (rc == 0 && !ended && t->state.step < t->max_steps) {
        struct step s;
        double t0 = now();
        if ((rc = one_step(t, &s, err)) < 0 || (t->intact && (rc = t->intact(t->ctx, err)) < 0))
            break;
        ended = s.micros == 0;
        if (!ended) {
            double seconds = now() - t0;
            t->state.step++;
            t->last_loss = s.loss;
            t->seconds += seconds > 0 ? seconds : 0;
            t->images += (double)s.images;
            rc = report(t, &s, seconds, err);
        }
        if (rc == 0)
            rc = after_step(t, &saved, ended || t->state.step == t->max_steps, err);
    }
    return rc;
}
