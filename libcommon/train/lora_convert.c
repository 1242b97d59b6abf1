/* lora_convert.c - a LoRA file into another layout: read as adapters of networks that it fits itself, and saved. */
#include "models/flux_pipe.h"
#include "train/lora_merge.h"

static dt_dtype wider(dt_dtype a, dt_dtype b) { return a == b ? a : DT_F32; }

/* The dtype that all matrices of a file fit in. */
static dt_dtype dtype_of(const dt_st *st)
{
    dt_dtype t = DT_NDTYPES;
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        const dt_st_entry *e = dt_st_at(st, i);
        if (e->dims.nd >= 2 && e->dtype < DT_F64)
            t = t == DT_NDTYPES ? e->dtype : wider(t, e->dtype);
        else if (e->dims.nd >= 2)
            return DT_F32;
    }
    return t == DT_NDTYPES ? DT_F32 : t;
}

/* The adapters of a file, without the networks: any that they fit will do. */
static int open_alone(dt_lora *l[DT_FLUX_NPART], dt_params *base[DT_FLUX_NPART], const dt_st *st, const char *path,
                      dt_device *dev, dt_err *err)
{
    dt_flux_pipe shape = { 0 };
    int rc = 0;
    dt_flux_guess(&shape.dit, st);
    dt_text_guess(&shape.clip, &shape.t5, st);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
        if (k != DT_FLUX_VAE)
            rc = dt_flux_declare(&base[k], &shape, (enum dt_flux_part)k, err);
    if (rc == 0)
        rc = dt_lora_open_parts(l, base, DT_FLUX_NPART, path, err);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++) {
        for (int64_t i = 0; l[k] && i < l[k]->params->n; i++)
            l[k]->params->v[i]->trainable = false;      /* else they would get gradients and moments */
        if (l[k] && (rc = dt_params_alloc(l[k]->params, dev, DT_F32, 0, err)) == 0)
            rc = dt_lora_fill(l[k], err);
    }
    return rc;
}

int dt_lora_convert(const struct dt_convert_params *p, struct dt_convert_report *r, dt_err *err)
{
    dt_params *base[DT_FLUX_NPART] = { NULL };
    dt_lora *l[DT_FLUX_NPART] = { NULL };
    dt_device *dev = NULL;
    dt_st *st = NULL;
    int rc = dt_st_open(&st, p->in, err);
    if (rc == 0)
        rc = dt_device_open(&dev, "cpu", err);
    if (rc == 0)
        rc = open_alone(l, base, st, p->in, dev, err);
    if (rc == 0) {
        r->dtype = p->dtype < 0 ? dtype_of(st) : (dt_dtype)p->dtype;
        r->tensors = dt_st_count(st);
        r->narrowed = r->dtype != dtype_of(st) && r->dtype != DT_F32;
        for (int k = 0; k < DT_FLUX_NPART; k++) {
            if (!l[k])
                continue;
            r->layers += l[k]->n;
            r->rounded += dt_lora_rounds(l[k], p->layout);
            r->alpha = l[k]->rank > r->rank ? l[k]->alpha : r->alpha;
            r->rank = l[k]->rank > r->rank ? l[k]->rank : r->rank;
        }
        rc = dt_lora_save_parts((const dt_lora *const *)l, DT_FLUX_NPART, p->out, p->layout, r->dtype, false,
                                &(dt_lora_info){ .from = st, .steps = -1 }, err);
    }
    for (int k = 0; k < DT_FLUX_NPART; k++) {
        dt_lora_free(&l[k]);
        dt_params_free(&base[k]);
    }
    dt_device_close(&dev);
    dt_st_close(&st);
    return rc;
}
