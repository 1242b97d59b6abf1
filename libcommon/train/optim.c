/* optim.c - AdamW over sets of parameters.  See optim.h. */
#include <math.h>
#include "train/optim.h"

void dt_optim_zero(dt_optim *o)
{
    for (int i = 0; i < o->nset; i++) {
        dt_params *p = o->set[i];
        if (p->n_train)
            p->dev->zero(p->dev, p->grad, p->n_train * (int64_t)sizeof(float));
    }
}

double dt_optim_norm(const dt_optim *o)
{
    double sum = 0;
    for (int i = 0; i < o->nset; i++) {
        dt_params *p = o->set[i];
        if (p->n_train)
            sum += p->dev->flat->sumsq(p->dev, p->grad, p->n_train);
    }
    return sqrt(sum);
}

void dt_optim_step(dt_optim *o, double lr, double norm)
{
    double scale = o->max_norm > 0 ? o->max_norm / (norm + 1e-6) : 1.0;
    double k = (double)++o->k;
    double decay = k > 1 ? fmin(o->ema_decay, k / (9.0 + k)) : 0.0;
    dt_adamw a = { .lr = lr, .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps, .weight_decay = o->weight_decay,
                   .bias1 = 1.0 - pow(o->beta1, k), .bias2 = 1.0 - pow(o->beta2, k), .grad_scale = fmin(1.0, scale) };
    for (int i = 0; i < o->nset; i++) {
        dt_params *p = o->set[i];
        if (!p->n_train)
            continue;
        p->dev->flat->adamw(p->dev, p->master, p->m, p->v2, p->grad, p->n_train, &a);
        if (p->ema)
            p->dev->flat->ema(p->dev, p->ema, p->master, p->n_train, decay);
        dt_params_sync(p);
    }
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
                if (p->v[k]->trainable && !isfinite(p->dev->flat->sumsq(p->dev, block[r] + p->v[k]->off, p->v[k]->numel)))
                    return p->v[k];
        }
    }
    return NULL;
}
