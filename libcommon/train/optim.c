/* optim.c - AdamW over sets of parameters.  See optim.h. */
#include <math.h>
#include "train/optim.h"

void dt_optim_fuse(dt_optim *o)
{
    o->fused = true;
    for (int i = 0; i < o->nset; i++)
        for (int64_t j = 0; j < o->set[i]->n; j++)
            if (o->set[i]->v[j]->trainable)
                o->set[i]->v[j]->update = &o->update;
}

void dt_optim_zero(dt_optim *o)
{
    for (int i = 0; i < o->nset; i++) {
        dt_params *p = o->set[i];
        if (p->grad)
            p->dev->zero(p->dev, p->grad, p->n_train * (int64_t)sizeof(float));
    }
}

/* Parameter by parameter, in the order of declaration: the same sum when each comes at its own time. */
double dt_optim_norm(const dt_optim *o)
{
    double sum = 0;
    for (int i = 0; i < o->nset; i++)
        for (int64_t j = 0; j < o->set[i]->n; j++) {
            const dt_param *q = o->set[i]->v[j];
            dt_device *d = o->set[i]->dev;
            if (q->trainable && !q->update)
                sum += d->flat->sumsq(d, q->grad, q->numel);
            else if (q->trainable && q->sumsq != -1)
                sum += q->sumsq;
        }
    return sqrt(sum);
}

/* What update k + 1 goes by. */
static dt_update next(const dt_optim *o, double lr, double scale)
{
    double k = (double)o->k + 1;
    return (dt_update){
        .adamw = { .lr = lr, .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps, .weight_decay = o->weight_decay,
                   .bias1 = 1.0 - pow(o->beta1, k), .bias2 = 1.0 - pow(o->beta2, k), .grad_scale = fmin(1.0, scale) },
        .ema_decay = k > 1 ? fmin(o->ema_decay, k / (9.0 + k)) : 0.0,
    };
}

void dt_optim_begin(dt_optim *o, double lr)
{
    if (!o->fused)
        return;
    o->update = next(o, lr, 1.0);
    for (int i = 0; i < o->nset; i++)
        for (int64_t j = 0; j < o->set[i]->n; j++)
            o->set[i]->v[j]->sumsq = -1;
}

/* What no gradient reached in the run decays all the same. */
static void update_rest(const dt_optim *o, const dt_params *p)
{
    for (int64_t j = 0; j < p->n; j++)
        if (p->v[j]->trainable && p->v[j]->sumsq == -1)
            dt_param_update(p->dev, p->v[j], NULL, &o->update.adamw, o->update.ema_decay);
}

void dt_optim_step(dt_optim *o, double lr, double norm)
{
    dt_update u = next(o, lr, o->max_norm > 0 ? o->max_norm / (norm + 1e-6) : 1.0);
    for (int i = 0; i < o->nset; i++) {
        dt_params *p = o->set[i];
        dt_param all = { .master = p->master, .m = p->m, .v = p->v2, .ema = p->ema, .w = p->w_train, .dtype = p->dtype,
                         .numel = p->n_train };
        if (o->fused)
            update_rest(o, p);
        else if (p->n_train)
            dt_param_update(p->dev, &all, p->grad, &u.adamw, u.ema_decay);
    }
    o->k++;
    dt_optim_zero(o);
}

const dt_param *dt_optim_not_finite(const dt_optim *o, const char **set, const char **role)
{
    static const char *const names[] = { "weight", "first moment", "second moment", "average" };
    for (int i = 0; i < o->nset; i++) {
        const dt_params *p = o->set[i];
        float *const block[] = { p->master, p->m, p->v2, p->ema };
        for (int r = 0; r < 4; r++) {
            if (!block[r] || !p->n_train || isfinite(p->dev->flat->sumsq(p->dev, block[r], p->n_train)))
                continue;
            *set = p->name;
            *role = names[r];
            for (int64_t k = 0; k < p->n; k++)
                if (p->v[k]->trainable &&
                    !isfinite(p->dev->flat->sumsq(p->dev, block[r] + p->v[k]->off, p->v[k]->numel)))
                    return p->v[k];
        }
    }
    return NULL;
}
