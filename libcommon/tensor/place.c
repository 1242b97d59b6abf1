/* place.c - parameters in a file: where they lie in it, and which stay there.
 *
 * The memory of a parameter that is used where it lies is the system's: processes that read one file share it,
 * and it goes when memory is short.  Pages of the file that are read count as the process's nevertheless, until
 * they are given back. */
#include "tensor/place.h"

#include <stdlib.h>
#include "graph/device.h"

/* --- finding --- */

static int check_pieces(const dt_param *q, const dt_st_entry *piece, int k, dt_err *err)
{
    dt_dims have = piece[0].dims;
    for (int i = 0; i < k; i++) {
        if (piece[i].dtype >= DT_I64)
            return dt_err_set(err, DT_EDATA, "%s: tensor '%s' is of type %s, a float type was expected", piece[i].file,
                              piece[i].name, dt_dtype_name(piece[i].dtype));
        dt_dims rest = piece[i].dims;
        if (i && rest.nd == have.nd && rest.nd > 0) {
            have.d[0] += rest.d[0];
            rest.d[0] = have.d[0];
        }
        if (!dt_dims_same(rest, have))
            have.nd = -1;
    }
    char want[128], got[128];
    if (have.nd >= 0 && dt_dims_same(have, q->dims))
        return 0;
    dt_dims_text(q->dims, want, sizeof(want));
    dt_dims_text(piece[0].dims, got, sizeof(got));
    return dt_err_set(err, DT_EDATA, "%s: tensor '%s' is %s%s, %s was expected for '%s'", piece[0].file, piece[0].name,
                      got, k > 1 ? " with others" : "", want, q->name);
}

int dt_param_find(const dt_param *q, const dt_st *st, dt_rename_fn rename, void *ctx, dt_st_entry out[DT_MAX_PIECES],
                  dt_err *err)
{
    int k = rename ? rename(st, q, out, ctx, err) : dt_st_need(st, q->name, out, err);
    if (k == 0 && !rename)
        k = 1;
    if (k == 0)
        k = dt_err_set(err, DT_EFAIL, "nothing was found for '%s'", q->name);
    int rc = k < 0 ? k : check_pieces(q, out, k, err);
    return rc < 0 ? rc : k;
}

/* --- placing --- */

/* They lie as the kernels would have them.  The format aligns nothing; kernels ask for whole numbers. */
static bool usable(const dt_st_entry *piece, int k, dt_dtype t)
{
    for (int i = 0; i < k; i++)
        if (piece[i].dtype != t ||
            (i && (const char *)piece[i - 1].data + piece[i - 1].bytes != (const char *)piece[i].data))
            return false;
    return (uintptr_t)piece[0].data % dt_dtype_size(t) == 0;
}

int dt_params_place(dt_params *p, dt_st **st, dt_rename_fn rename, void *ctx, struct dt_device *dev, dt_dtype dtype,
                    bool fetch, dt_err *err)
{
    dt_st_close(&p->file);
    p->file = *st;
    *st = NULL;
    for (int64_t i = 0; i < p->n; i++) {
        dt_param *q = p->v[i];
        dt_st_entry piece[DT_MAX_PIECES];
        if (q->trainable || q->dims.nd < 2)         /* small ones would take a page each */
            continue;
        int k = dt_param_find(q, p->file, rename, ctx, piece, err);
        if (k < 0)
            return k;
        q->place = dev->kind == DT_CPU && usable(piece, k, dtype) ? DT_IN_FILE : fetch ? DT_FETCHED : DT_IN_BLOCK;
        if (q->place == DT_IN_FILE) {
            q->w = (void *)piece[0].data;
            q->dtype = dtype;
        } else if (q->place == DT_FETCHED) {
            free(q->piece);
            q->piece = dt_alloc((size_t)k * sizeof(*piece));
            q->pieces = k;
            memcpy(q->piece, piece, (size_t)k * sizeof(*piece));
        }
        q->file = p->file;
    }
    return 0;
}

void dt_params_loaded(dt_params *p)
{
    for (int64_t i = 0; i < p->n; i++)
        if (p->v[i]->place != DT_IN_BLOCK)
            return;
    dt_st_close(&p->file);
}

int dt_params_check(const dt_params *p, dt_err *err) { return p->file ? dt_st_check(p->file, err) : 0; }

/* --- using --- */

void dt_param_bring(const dt_param *q, void *dst, dt_dtype t)
{
    enum { PART = 1 << 16 };
    char *at = dst;
    for (int i = 0; i < q->pieces; i++) {
        const dt_st_entry *e = &q->piece[i];
        int64_t n = dt_numel(e->dims), from = (int64_t)dt_dtype_size(e->dtype), to = (int64_t)dt_dtype_size(t);
#pragma omp parallel for schedule(static)
        for (int64_t j = 0; j < n; j += PART)
            dt_convert(at + j * to, t, (const char *)e->data + j * from, e->dtype, n - j < PART ? n - j : PART);
        dt_st_forget(q->file, e->data, e->bytes);
        at += n * to;
    }
}

static int64_t bytes_of(const dt_param *q) { return q->numel * (int64_t)dt_dtype_size(q->dtype); }

void dt_param_row(const dt_param *q, int64_t row, void *dst, dt_dtype t)
{
    enum { PART = 1 << 10 };
    char part[sizeof(double) * PART];       /* of any float type */
    int64_t n = q->dims.d[0] ? q->numel / q->dims.d[0] : 0;
    const char *from = q->w;
    dt_dtype type = q->dtype;
    for (int i = 0; i < q->pieces && !q->w && row >= 0; row -= q->piece[i++].dims.d[0])
        if (row < q->piece[i].dims.d[0]) {
            from = q->piece[i].data;
            type = q->piece[i].dtype;
            break;
        }
    from += row * n * (int64_t)dt_dtype_size(type);
    for (int64_t i = 0; i < n; i += PART) {
        int64_t k = n - i < PART ? n - i : PART;
        dt_st_read(q->file, from + i * (int64_t)dt_dtype_size(type), (size_t)k * dt_dtype_size(type), part);
        dt_convert((char *)dst + i * (int64_t)dt_dtype_size(t), t, part, type, k);
    }
}

void dt_param_used(const dt_param *q)
{
    if (q->place == DT_IN_FILE && q->give_back)
        dt_st_forget(q->file, q->w, (size_t)bytes_of(q));
}

bool dt_params_give_back(dt_params *p)
{
    bool any = false;
    for (int64_t i = 0; i < p->n; i++) {
        dt_param *q = p->v[i];
        any |= q->place == DT_IN_FILE && !q->give_back;
        q->give_back = true;
    }
    return any;
}

int64_t dt_params_in_file(const dt_params *p)
{
    enum { AROUND = 1 << 20 };  /* what the pages that it begins and ends in add, which may be huge ones */
    int64_t sum = 0, most = 0;
    for (int64_t i = 0; i < p->n; i++) {
        const dt_param *q = p->v[i];
        int64_t n = q->place == DT_IN_FILE && q->read ? bytes_of(q) : 0;
        sum += n;
        most = n + AROUND > most ? n + AROUND : most;
    }
    return p->n && p->v[0]->give_back && most < sum ? most : sum;
}
