/* onednn.c - see onednn.h.  A dt_dnn is a list of primitives run in order (reorder of the weights, the operation,
 * reorder of the result); what lies between them and their scratchpads are parts of one workspace.
 * Where oneDNN has no bf16 (x86 without AVX-512), operands are widened to fp32 there, and the result is narrowed. */
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include "base/mem.h"
#include "kernels/onednn.h"

/* --- what versions 2 and 3 call differently --- */

enum conv_kind { CONV_FWD, CONV_DX, CONV_DW };

struct geometry { dnnl_dims_t stride, before, after; };     /* of h and w; before, after: padding */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t md_own;              /* we made it: md_free */
typedef const_dnnl_memory_desc_t md_ref;

static md_own md_strided(int nd, const dnnl_dims_t dims, dnnl_data_type_t t,
                         const dnnl_dims_t strides)
{
    md_own md = NULL;
    dnnl_memory_desc_create_with_strides(&md, nd, dims, t, strides);
    return md;
}

static md_own md_any(int nd, const dnnl_dims_t dims, dnnl_data_type_t t)
{
    md_own md = NULL;
    dnnl_memory_desc_create_with_tag(&md, nd, dims, t, dnnl_format_tag_any);
    return md;
}

static void md_free(md_own md)
{
    if (md)
        dnnl_memory_desc_destroy(md);
}

static dnnl_status_t append_sum(dnnl_post_ops_t po)
{
    return dnnl_post_ops_append_sum(po, 1.0f, 0, dnnl_data_type_undef);
}

static dnnl_status_t append_eltwise(dnnl_post_ops_t po, dnnl_alg_kind_t alg, float alpha)
{
    return dnnl_post_ops_append_eltwise(po, alg, alpha, 0.0f);
}

static dnnl_status_t matmul_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, md_ref a, md_ref b,
                               md_ref bias, md_ref c, dnnl_primitive_attr_t attr)
{
    return dnnl_matmul_primitive_desc_create(pd, e, a, b, bias, c, attr);
}

static dnnl_status_t conv_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, enum conv_kind kind,
                             md_ref x, md_ref w, md_ref bias, md_ref y, const struct geometry *g,
                             dnnl_primitive_attr_t attr, dnnl_primitive_desc_t hint)
{
    const dnnl_dims_t dilate = { 0, 0 };
    const dnnl_alg_kind_t alg = dnnl_convolution_direct;
    if (kind == CONV_FWD)
        return dnnl_convolution_forward_primitive_desc_create(
            pd, e, dnnl_forward_training, alg, x, w, bias, y, g->stride, dilate, g->before, g->after, attr);
    if (kind == CONV_DX)
        return dnnl_convolution_backward_data_primitive_desc_create(
            pd, e, alg, x, w, y, g->stride, dilate, g->before, g->after, hint, attr);
    return dnnl_convolution_backward_weights_primitive_desc_create(
        pd, e, alg, x, w, NULL, y, g->stride, dilate, g->before, g->after, hint, attr);
}
#else
typedef dnnl_memory_desc_t *md_own;
typedef const dnnl_memory_desc_t *md_ref;

static md_own md_strided(int nd, const dnnl_dims_t dims, dnnl_data_type_t t,
                         const dnnl_dims_t strides)
{
    md_own md = dt_alloc(sizeof(*md));
    dnnl_memory_desc_init_by_strides(md, nd, dims, t, strides);
    return md;
}

static md_own md_any(int nd, const dnnl_dims_t dims, dnnl_data_type_t t)
{
    md_own md = dt_alloc(sizeof(*md));
    dnnl_memory_desc_init_by_tag(md, nd, dims, t, dnnl_format_tag_any);
    return md;
}

static void md_free(md_own md) { free(md); }

static dnnl_status_t append_sum(dnnl_post_ops_t po) { return dnnl_post_ops_append_sum(po, 1.0f); }

static dnnl_status_t append_eltwise(dnnl_post_ops_t po, dnnl_alg_kind_t alg, float alpha)
{
    return dnnl_post_ops_append_eltwise(po, 1.0f, alg, alpha, 0.0f);
}

static dnnl_status_t matmul_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, md_ref a, md_ref b,
                               md_ref bias, md_ref c, dnnl_primitive_attr_t attr)
{
    dnnl_matmul_desc_t d;
    dnnl_status_t s = dnnl_matmul_desc_init(&d, a, b, bias, c);
    return s != dnnl_success ? s : dnnl_primitive_desc_create(pd, &d, attr, e, NULL);
}

static dnnl_status_t conv_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, enum conv_kind kind,
                             md_ref x, md_ref w, md_ref bias, md_ref y, const struct geometry *g,
                             dnnl_primitive_attr_t attr, dnnl_primitive_desc_t hint)
{
    dnnl_convolution_desc_t d;
    const dnnl_alg_kind_t alg = dnnl_convolution_direct;
    dnnl_status_t s;
    if (kind == CONV_FWD)
        s = dnnl_convolution_forward_desc_init(&d, dnnl_forward_training, alg, x, w, bias, y,
                                               g->stride, g->before, g->after);
    else if (kind == CONV_DX)
        s = dnnl_convolution_backward_data_desc_init(&d, alg, x, w, y, g->stride, g->before, g->after);
    else
        s = dnnl_convolution_backward_weights_desc_init(&d, alg, x, w, NULL, y, g->stride, g->before,
                                                        g->after);
    return s != dnnl_success ? s : dnnl_primitive_desc_create(pd, &d, attr, e, hint);
}
#endif

/* --- the same for both from here on --- */

/* Whose bytes an argument shows: one of run's pointers or a part of the workspace. */
enum from { FROM_A, FROM_B, FROM_BIAS, FROM_C, FROM_WS, NFROM };

enum {
    MAX_STEPS = 2, MAX_ARGS = 6, BLOCK = 1 << 16,
    PART_ROWS = 64, LANES = 16,         /* rows of c: the least for a part, and what one begins at a multiple of */
};

struct step {
    dnnl_primitive_t prim;
    int              n;
    dnnl_exec_arg_t  arg[MAX_ARGS];
    enum from        from[MAX_ARGS];
    int64_t          off[MAX_ARGS];     /* in the workspace */
};

/* An operand that the caller has in a narrow type and the primitives have in fp32 at `off` of the workspace. */
struct wide { dt_dtype t; int64_t n, off; };        /* n = 0: not widened */

struct dt_dnn {
    dnnl_stream_t stream;
    struct step   step[MAX_STEPS];
    int           nstep;
    int64_t       kept, scratch;        /* workspace: what lives through the steps, then scratchpads, used in turn */
    struct wide   wide[FROM_C + 1];
    bool          add;                  /* reads c */
    int           nparts;               /* not 0: instead of steps, parts, each run by one thread */
    struct part { dt_dnn *dnn; int64_t a, c, ws; } *part;       /* with the bytes before its operands */
};

static dnnl_engine_t the_engine;
static pthread_once_t engine_once = PTHREAD_ONCE_INIT;

static void engine_make(void) { dnnl_engine_create(&the_engine, dnnl_cpu, 0); }

static dnnl_engine_t engine(void)
{
    pthread_once(&engine_once, engine_make);
    return the_engine;
}

static dnnl_data_type_t type_of(dt_dtype t)
{
    return t == DT_BF16 ? dnnl_bf16 : t == DT_F16 ? dnnl_f16 : dnnl_f32;
}

static int fail(dt_err *err, const char *what, dnnl_status_t s)
{
    int code = s == dnnl_out_of_memory ? DT_ENOMEM : DT_EFAIL;
    return dt_err_set(err, code, "oneDNN cannot make this %s (status %d)", what, (int)s);
}

static dt_dnn *dnn_new(void)
{
    dt_dnn *d = dt_alloc(sizeof(*d));
    if (dnnl_stream_create(&d->stream, engine(), dnnl_stream_default_flags) != dnnl_success)
        d->stream = NULL;
    return d;
}

static int64_t round64(int64_t n) { return (n + 63) & ~(int64_t)63; }

static int64_t keep(dt_dnn *d, md_ref md)
{
    int64_t at = d->kept;
    d->kept += round64((int64_t)dnnl_memory_desc_get_size(md));
    return at;
}

static void arg(struct step *s, int id, md_ref md, enum from from, int64_t off)
{
    dnnl_memory_t m = NULL;
    dnnl_memory_create(&m, md, engine(), DNNL_MEMORY_NONE);
    s->arg[s->n] = (dnnl_exec_arg_t){ id, m };
    s->from[s->n] = from;
    s->off[s->n++] = off;
}

/* Makes a step of pd with its scratchpad; arguments follow.  pd is borrowed. */
static dnnl_status_t add_step(dt_dnn *d, dnnl_primitive_desc_t pd, struct step **out)
{
    struct step *s = *out = &d->step[d->nstep++];
    md_ref scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    int64_t bytes = scratch ? (int64_t)dnnl_memory_desc_get_size(scratch) : 0;
    if (bytes) {
        arg(s, DNNL_ARG_SCRATCHPAD, scratch, FROM_WS, -1);
        if (d->scratch < bytes)
            d->scratch = bytes;
    }
    return dnnl_primitive_create(&s->prim, pd);
}

/* Within rounding of kernels/pointwise.c. */
static const struct { dnnl_alg_kind_t alg; float alpha; } epilogues[] = {
    [DT_EPI_SILU] = { dnnl_eltwise_swish, 1.0f },
    [DT_EPI_GELU_TANH] = { dnnl_eltwise_gelu_tanh, 0.0f },
    [DT_EPI_GELU_ERF] = { dnnl_eltwise_gelu_erf, 0.0f },
    [DT_EPI_QUICK_GELU] = { dnnl_eltwise_swish, 1.702f },
};

static dnnl_primitive_attr_t attr_new(double alpha, bool add, enum dt_epilogue e)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t po = NULL;
    dnnl_primitive_attr_create(&attr);
    dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    dnnl_post_ops_create(&po);
    if (alpha != 1)
        append_eltwise(po, dnnl_eltwise_linear, (float)alpha);
    if (add)
        append_sum(po);
    if (e)
        append_eltwise(po, epilogues[e].alg, epilogues[e].alpha);
    dnnl_primitive_attr_set_post_ops(attr, po);
    dnnl_post_ops_destroy(po);
    return attr;
}

/* Operand `from`, n elements of type t, is fp32 to the primitives. */
static void widen(dt_dnn *d, enum from from, dt_dtype t, int64_t n)
{
    if (t == DT_F32)
        return;
    d->wide[from] = (struct wide){ t, n, d->kept };
    d->kept += round64(n * (int64_t)sizeof(float));
}

static void convert(void *dst, dt_dtype dt, const void *src, dt_dtype st, int64_t n)
{
    size_t ds = dt_dtype_size(dt), ss = dt_dtype_size(st);
#pragma omp parallel for
    for (int64_t i = 0; i < n; i += BLOCK)
        dt_convert((char *)dst + (size_t)i * ds, dt, (const char *)src + (size_t)i * ss, st,
                   n - i < BLOCK ? n - i : BLOCK);
}

int64_t dt_dnn_workspace(const dt_dnn *d) { return d->kept + round64(d->scratch); }

static void run_steps(dt_dnn *d, char *const *base)
{
    for (int i = 0; i < d->nstep; i++) {
        struct step *s = &d->step[i];
        for (int k = 0; k < s->n; k++) {
            int64_t off = s->off[k] < 0 ? d->kept : s->off[k];
            dnnl_memory_set_data_handle(s->arg[k].memory, base[s->from[k]] + off);
        }
        dnnl_primitive_execute(s->prim, d->stream, s->n, s->arg);
    }
    dnnl_stream_wait(d->stream);
}

static void run_parts(dt_dnn *d, char *const *base)
{
#pragma omp parallel for num_threads(d->nparts) schedule(static, 1)
    for (int i = 0; i < d->nparts; i++) {
        const struct part *p = &d->part[i];
        char *of[NFROM] = { base[FROM_A] + p->a, base[FROM_B], NULL, base[FROM_C] + p->c,
                            base[FROM_WS] + d->kept + p->ws };
        run_steps(p->dnn, of);
    }
}

void dt_dnn_run(dt_dnn *d, const void *a, const void *b, const void *bias, void *c, void *ws)
{
    char *base[NFROM] = { (char *)a, (char *)b, (char *)bias, c, ws };
    for (int i = 0; i <= FROM_C; i++) {
        const struct wide *w = &d->wide[i];
        if (w->n && (i != FROM_C || d->add))
            convert((char *)ws + w->off, DT_F32, base[i], w->t, w->n);
        if (w->n)
            base[i] = (char *)ws + w->off;
    }
    if (d->nparts)
        run_parts(d, base);
    else
        run_steps(d, base);
    if (d->wide[FROM_C].n)
        convert(c, d->wide[FROM_C].t, base[FROM_C], DT_F32, d->wide[FROM_C].n);
}

void dt_dnn_free(dt_dnn **pd)
{
    dt_dnn *d = *pd;
    if (!d)
        return;
    for (int i = 0; i < d->nstep; i++) {
        for (int k = 0; k < d->step[i].n; k++)
            dnnl_memory_destroy(d->step[i].arg[k].memory);
        if (d->step[i].prim)
            dnnl_primitive_destroy(d->step[i].prim);
    }
    for (int i = 0; i < d->nparts; i++)
        dt_dnn_free(&d->part[i].dnn);
    free(d->part);
    if (d->stream)
        dnnl_stream_destroy(d->stream);
    free(d);
    *pd = NULL;
}

void dt_dnn_release(void *state)
{
    dt_dnn *d = state;
    dt_dnn_free(&d);
}

/* --- matmul --- */

/* ld: from a row to the next, or from a column if transposed. */
static md_own md_matrix(int64_t rows, int64_t cols, dt_dtype t, bool trans, int64_t ld)
{
    const dnnl_dims_t dims = { rows, cols };
    const dnnl_dims_t strides = { trans ? 1 : ld, trans ? ld : 1 };
    return md_strided(2, dims, type_of(t), strides);
}

/* `rows` of the m rows of c. */
static dnnl_status_t matmul_make(dt_dnn **out, const struct dt_dnn_matmul *p, int64_t rows)
{
    dt_dnn *d = *out = dnn_new();
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_attr_t attr = attr_new(p->alpha, p->add, p->epilogue);
    md_own a = md_matrix(rows, p->k, p->a, p->a_trans, p->a_trans ? p->m : p->k);
    md_own b = md_matrix(p->k, p->n, p->b, p->b_trans, p->b_trans ? p->k : p->n);
    md_own c = md_matrix(rows, p->n, p->c, false, p->n);
    md_own bias = p->bias ? md_matrix(1, p->n, p->b, false, p->n) : NULL;
    dnnl_status_t s = matmul_pd(&pd, engine(), a, b, bias, c, attr);
    if (s == dnnl_success) {
        struct step *st;
        s = add_step(d, pd, &st);
        arg(st, DNNL_ARG_SRC, a, FROM_A, 0);
        arg(st, DNNL_ARG_WEIGHTS, b, FROM_B, 0);
        arg(st, DNNL_ARG_DST, c, FROM_C, 0);
        if (p->bias)
            arg(st, DNNL_ARG_BIAS, bias, FROM_BIAS, 0);
    }
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    dnnl_primitive_attr_destroy(attr);
    md_free(a);
    md_free(b);
    md_free(c);
    md_free(bias);
    if (s != dnnl_success)
        dt_dnn_free(out);
    return s;
}

/* n parts of the rows of c.  oneDNN looks at the number of threads when it makes a primitive: here, one. */
static dnnl_status_t parts_make(dt_dnn **out, const struct dt_dnn_matmul *p, int n)
{
    dt_dnn *d = *out = dnn_new();
    dnnl_status_t s = dnnl_success;
    d->part = dt_alloc((size_t)n * sizeof(*d->part));
#pragma omp parallel num_threads(1)
    {
        omp_set_num_threads(1);         /* within this region */
        for (int i = 0; i < n && s == dnnl_success; i++) {
            int64_t r0 = p->m * i / n / LANES * LANES, r1 = i + 1 < n ? p->m * (i + 1) / n / LANES * LANES : p->m;
            struct part *t = &d->part[i];
            s = matmul_make(&t->dnn, p, r1 - r0);
            if (s != dnnl_success)
                continue;
            d->nparts++;
            t->a = r0 * (int64_t)dt_dtype_size(p->a);
            t->c = r0 * p->n * (int64_t)dt_dtype_size(p->c);
            t->ws = d->scratch;
            d->scratch += round64(dt_dnn_workspace(t->dnn));
        }
    }
    if (s != dnnl_success)
        dt_dnn_free(out);
    return s;
}

static dnnl_status_t product_make(dt_dnn **out, const struct dt_dnn_matmul *p)
{
    int64_t n = p->m / PART_ROWS < p->threads ? p->m / PART_ROWS : p->threads;
    if (!p->a_trans || n <= 1)
        return matmul_make(out, p, p->m);
    return parts_make(out, p, (int)n);
}

int dt_dnn_matmul_new(dt_dnn **out, const struct dt_dnn_matmul *p, dt_err *err)
{
    dnnl_status_t s = product_make(out, p);
    if (s == dnnl_unimplemented) {
        struct dt_dnn_matmul q = *p;
        q.a = q.b = q.c = DT_F32;
        s = product_make(out, &q);
        if (s == dnnl_success) {
            widen(*out, FROM_A, p->a, p->m * p->k);
            widen(*out, FROM_B, p->b, p->k * p->n);
            widen(*out, FROM_BIAS, p->b, p->bias ? p->n : 0);
            widen(*out, FROM_C, p->c, p->m * p->n);
            (*out)->add = p->add;
        }
    }
    return s == dnnl_success ? 0 : fail(err, "matrix product", s);
}

/* --- convolution --- */

/* What the three passes share: the tensors as the caller has them, the operation's own choice for the weights;
 * w_hint has the data's type, for the forward pass that gradients refer to. */
struct conv {
    md_own x, y, w, w_hint, w_user, bias;
    struct geometry geom;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t hint, pd;
};

static md_own md_image(int64_t b, int64_t h, int64_t w, int64_t c, dt_dtype t)
{
    const dnnl_dims_t dims = { b, c, h, w };
    const dnnl_dims_t nhwc = { h * w * c, 1, w * c, c };
    return md_strided(4, dims, type_of(t), nhwc);
}

static void conv_init(struct conv *v, const struct dt_dnn_conv *p, enum conv_kind kind)
{
    dt_dtype w_type = kind == CONV_DW ? DT_F32 : p->t;
    const dnnl_dims_t wd = { p->o, p->c, p->kh, p->kw };
    const dnnl_dims_t oihw = { p->c * p->kh * p->kw, p->kh * p->kw, p->kw, 1 };
    const dnnl_dims_t bd = { p->o }, b1 = { 1 };
    *v = (struct conv){
        .x = md_image(p->b, p->h, p->w, p->c, p->t),
        .y = md_image(p->b, p->oh, p->ow, p->o, p->t),
        .w = md_any(4, wd, type_of(w_type)),
        .w_hint = md_any(4, wd, type_of(p->t)),
        .w_user = md_strided(4, wd, type_of(w_type), oihw),
        .bias = p->bias && kind == CONV_FWD ? md_strided(1, bd, type_of(p->t), b1) : NULL,
        .geom = { { p->stride, p->stride }, { p->pad[0], p->pad[1] }, { p->pad[2], p->pad[3] } },
        .attr = attr_new(1, false, DT_EPI_NONE),
    };
}

static void conv_release(struct conv *v)
{
    if (v->pd)
        dnnl_primitive_desc_destroy(v->pd);
    if (v->hint)
        dnnl_primitive_desc_destroy(v->hint);
    dnnl_primitive_attr_destroy(v->attr);
    md_free(v->x);
    md_free(v->y);
    md_free(v->w);
    md_free(v->w_hint);
    md_free(v->w_user);
    md_free(v->bias);
}

static dnnl_status_t make_pd(struct conv *v, enum conv_kind kind)
{
    dnnl_status_t s = dnnl_success;
    if (kind != CONV_FWD)
        s = conv_pd(&v->hint, engine(), CONV_FWD, v->x, v->w_hint, NULL, v->y, &v->geom, v->attr,
                    NULL);
    if (s == dnnl_success)
        s = conv_pd(&v->pd, engine(), kind, v->x, v->w, v->bias, v->y, &v->geom, v->attr, v->hint);
    return s;
}

static dnnl_status_t add_reorder(dt_dnn *d, md_ref src, enum from sf, int64_t soff, md_ref dst,
                                 enum from df, int64_t doff, bool add)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_attr_t attr = attr_new(1, add, DT_EPI_NONE);
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&pd, src, engine(), dst, engine(), attr);
    if (s == dnnl_success) {
        struct step *st;
        s = add_step(d, pd, &st);
        arg(st, DNNL_ARG_FROM, src, sf, soff);
        arg(st, DNNL_ARG_TO, dst, df, doff);
        dnnl_primitive_desc_destroy(pd);
    }
    dnnl_primitive_attr_destroy(attr);
    return s;
}

/* Forward and data gradient: the weights are reordered in every run, as they may have been trained meanwhile. */
static dnnl_status_t conv_data_steps(dt_dnn *d, struct conv *v, enum conv_kind kind)
{
    bool fwd = kind == CONV_FWD;
    md_ref w = dnnl_primitive_desc_query_md(v->pd, dnnl_query_weights_md, 0);
    int64_t off = 0;
    enum from from = FROM_B;
    if (!dnnl_memory_desc_equal(w, v->w_user)) {
        off = keep(d, w);
        from = FROM_WS;
        dnnl_status_t s = add_reorder(d, v->w_user, FROM_B, 0, w, FROM_WS, off, false);
        if (s != dnnl_success)
            return s;
    }
    struct step *st;
    dnnl_status_t s = add_step(d, v->pd, &st);
    arg(st, fwd ? DNNL_ARG_SRC : DNNL_ARG_DIFF_DST, fwd ? v->x : v->y, FROM_A, 0);
    arg(st, DNNL_ARG_WEIGHTS, w, from, off);
    arg(st, fwd ? DNNL_ARG_DST : DNNL_ARG_DIFF_SRC, fwd ? v->y : v->x, FROM_C, 0);
    if (v->bias)
        arg(st, DNNL_ARG_BIAS, v->bias, FROM_BIAS, 0);
    return s;
}

static dnnl_status_t conv_dw_steps(dt_dnn *d, struct conv *v, bool add)
{
    md_ref w = dnnl_primitive_desc_query_md(v->pd, dnnl_query_diff_weights_md, 0);
    int64_t off = keep(d, w);
    struct step *st;
    dnnl_status_t s = add_step(d, v->pd, &st);
    arg(st, DNNL_ARG_SRC, v->x, FROM_A, 0);
    arg(st, DNNL_ARG_DIFF_DST, v->y, FROM_B, 0);
    arg(st, DNNL_ARG_DIFF_WEIGHTS, w, FROM_WS, off);
    return s == dnnl_success ? add_reorder(d, w, FROM_WS, off, v->w_user, FROM_C, 0, add) : s;
}

static dnnl_status_t conv_make(dt_dnn **out, const struct dt_dnn_conv *p, enum conv_kind kind)
{
    dt_dnn *d = *out = dnn_new();
    struct conv v;
    conv_init(&v, p, kind);
    dnnl_status_t s = make_pd(&v, kind);
    if (s == dnnl_success)
        s = kind == CONV_DW ? conv_dw_steps(d, &v, p->add) : conv_data_steps(d, &v, kind);
    conv_release(&v);
    if (s != dnnl_success)
        dt_dnn_free(out);
    return s;
}

static int conv_new(dt_dnn **out, const struct dt_dnn_conv *p, enum conv_kind kind, dt_err *err)
{
    int64_t x = p->b * p->h * p->w * p->c, y = p->b * p->oh * p->ow * p->o;
    int64_t w = p->o * p->c * p->kh * p->kw;
    dnnl_status_t s = conv_make(out, p, kind);
    if (s == dnnl_unimplemented) {
        struct dt_dnn_conv q = *p;
        q.t = DT_F32;
        s = conv_make(out, &q, kind);
        if (s == dnnl_success) {
            widen(*out, FROM_A, p->t, kind == CONV_DX ? y : x);
            widen(*out, FROM_B, p->t, kind == CONV_DW ? y : w);
            widen(*out, FROM_BIAS, p->t, p->bias && kind == CONV_FWD ? p->o : 0);
            widen(*out, FROM_C, kind == CONV_DW ? DT_F32 : p->t, kind == CONV_FWD ? y : x);
        }
    }
    return s == dnnl_success ? 0 : fail(err, "convolution", s);
}

int dt_dnn_conv_new(dt_dnn **out, const struct dt_dnn_conv *p, dt_err *err)
{
    return conv_new(out, p, CONV_FWD, err);
}

int dt_dnn_conv_dx_new(dt_dnn **out, const struct dt_dnn_conv *p, dt_err *err)
{
    return conv_new(out, p, CONV_DX, err);
}

int dt_dnn_conv_dw_new(dt_dnn **out, const struct dt_dnn_conv *p, dt_err *err)
{
    return conv_new(out, p, CONV_DW, err);
}
