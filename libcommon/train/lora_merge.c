/* lora_merge.c - LoRAs into the weights they are on:   W + sum_k s_k (alpha_k / r_k) B_k A_k   in fp32, rounded once to W's dtype.
 *
 * The base stays mapped and goes through tensor by tensor; in memory are the LoRAs and the largest tensor that
 * changes.  Files keep their naming: an adapter of to_k changes its rows of a fused qkv. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>
#include "base/file.h"
#include "models/flux_pipe.h"
#include "train/lora_merge.h"

enum { CHUNK_ROWS = 32 };

struct patch {                      /* rows [row, row + rows) of an entry of the base get scale * b a */
    const void  *data;              /* of the entry */
    int64_t      row, rows, rank;
    const float *a, *b;             /* [rank, in], [rows, rank] */
    float        scale;
};

struct merge {
    const struct dt_merge_params *p;
    struct dt_merge_report *r;
    dt_st     *net[DT_FLUX_NPART];  /* the transformer, and what else changes */
    dt_params *params[DT_FLUX_NPART];   /* declared like those */
    dt_lora *(*lora)[DT_FLUX_NPART];
    struct patch *patch;
    int64_t    n, cap;
    const dt_st *st;                /* of the file being written */
    dt_st_entry *e;                 /* of it */
    const void *last;               /* that was fetched and is not needed any more */
    size_t     last_bytes;
    char      *out;                 /* of the largest entry that changes */
    float     *scratch;             /* [threads, CHUNK_ROWS, widest row] */
    int64_t    widest;
    char      *note;                /* metadata dt_merged */
};

/* --- which rows change --- */

static int find_rows(struct merge *m, enum dt_flux_part k, const dt_adapter *a, const float *down, const float *up,
                     double strength, dt_err *err)
{
    dt_st_entry piece[DT_MAX_PIECES];
    char *name = dt_sprintf("%s.weight", a->path);
    const dt_param *w = dt_params_find(m->params[k], name);
    int n = dt_flux_part_rename[k](m->net[k], w, piece, NULL, err);
    free(name);
    int64_t in = w->dims.d[1];
    for (int i = 0; i < n; i++) {
        const dt_st_entry *e = dt_st_find(m->net[k], piece[i].name);
        if (e->dtype > DT_F64 || e->dims.nd != 2 || e->dims.d[1] != in)
            return dt_err_set(err, DT_EDATA, "%s: '%s' is no matrix of floats with %lld columns", e->file, e->name,
                              (long long)in);
        size_t row = (size_t)in * dt_dtype_size(e->dtype);
        dt_grow(&m->patch, &m->cap, m->n + 1, sizeof(*m->patch));
        m->patch[m->n++] = (struct patch){
            .data = e->data, .row = (int64_t)((size_t)((const char *)piece[i].data - (const char *)e->data) / row),
            .rows = piece[i].dims.d[0], .rank = a->rank, .a = down, .b = up, .scale = (float)(strength * a->scale) };
        up += piece[i].dims.d[0] * a->rank;
    }
    return n < 0 ? n : 0;
}

static void add_note(struct merge *m, const char *path, double strength)
{
    char *note = dt_sprintf("%s%s%s:%g", m->note ? m->note : "", m->note ? ", " : "", dt_path_base(path), strength);
    free(m->note);
    m->note = note;
}

/* What the i-th LoRA does to each network. */
static int open_lora(struct merge *m, int64_t i, dt_err *err)
{
    const char *path = m->p->lora[i];
    double strength = m->p->strength[i];
    int rc = dt_lora_open_parts(m->lora[i], m->params, DT_FLUX_NPART, path, err);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++) {
        const dt_lora *l = m->lora[i][k];
        for (int64_t a = 0; l && a < l->n && rc == 0; a++)
            rc = find_rows(m, (enum dt_flux_part)k, &l->v[a], l->values[2 * a], l->values[2 * a + 1], strength, err);
        char *line = l ? dt_sprintf("%s, strength %g", l->report.v[0], strength) : NULL;
        if (line)
            dt_strs_add(&m->r->loras, line);
        free(line);
    }
    if (rc == 0)
        add_note(m, path, strength);
    return rc;
}

static int open_loras(struct merge *m, dt_err *err)
{
    int64_t n = m->p->n;
    int rc = 0;
    m->lora = dt_alloc((size_t)(n + 1) * sizeof(*m->lora));
    for (int64_t i = 0; i < n && rc == 0; i++)
        rc = open_lora(m, i, err);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++) {
        bool any = false;
        for (int64_t i = 0; i < n; i++)
            any |= m->lora[i][k] != NULL;
        if (!any)
            dt_st_close(&m->net[k]);        /* copied as it is */
    }
    return rc;
}

static bool changes(const struct merge *m, const dt_st_entry *e)
{
    for (int64_t i = 0; i < m->n; i++)
        if (m->patch[i].data == e->data && e->bytes)
            return true;
    return false;
}

static int make_room(struct merge *m, dt_err *err)
{
    size_t most = 1;
    m->widest = 1;
    for (int k = 0; k < DT_FLUX_NPART; k++)
        for (int64_t i = 0; m->net[k] && i < dt_st_count(m->net[k]); i++) {
            const dt_st_entry *e = dt_st_at(m->net[k], i);
            m->r->tensors++;
            if (!changes(m, e))
                continue;
            m->r->changed++;
            most = e->bytes > most ? e->bytes : most;
            m->widest = e->dims.d[1] > m->widest ? e->dims.d[1] : m->widest;
        }
    m->out = dt_try_alloc(most);
    m->scratch = dt_try_alloc((size_t)(omp_get_max_threads() * CHUNK_ROWS * m->widest) * sizeof(float));
    return m->out && m->scratch ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for a tensor of %zu bytes", most);
}

/* --- one tensor --- */

static void add_patch(const struct patch *q, float *x, int64_t first, int64_t n, int64_t in)
{
    for (int64_t y = first > q->row ? first : q->row; y < first + n && y < q->row + q->rows; y++) {
        const float *b = q->b + (y - q->row) * q->rank;
        float *row = x + (y - first) * in;
        for (int64_t k = 0; k < q->rank; k++) {
            const float s = q->scale * b[k], *a = q->a + k * in;
            for (int64_t i = 0; i < in; i++)
                row[i] += s * a[i];
        }
    }
}

static void merge_rows(const struct merge *m, const dt_st_entry *e, int64_t first, int64_t n, float *x)
{
    int64_t in = e->dims.d[1];
    size_t at = (size_t)(first * in) * dt_dtype_size(e->dtype);
    dt_convert(x, DT_F32, (const char *)e->data + at, e->dtype, n * in);
    for (int64_t i = 0; i < m->n; i++)
        if (m->patch[i].data == e->data)
            add_patch(&m->patch[i], x, first, n, in);
    dt_convert(m->out + at, e->dtype, x, DT_F32, n * in);
}

static int fetch(void *ctx, int64_t i, const void **data, dt_err *err)
{
    struct merge *m = ctx;
    const dt_st_entry *e = &m->e[i];
    if (m->p->stop && *m->p->stop)
        return dt_err_set(err, DT_ESIGNAL, "stopped; nothing is written");
    int rc = dt_st_check(m->st, err);
    if (rc < 0)
        return rc;
    if (m->last)
        dt_st_forget(m->st, m->last, m->last_bytes);
    m->last = e->data;
    m->last_bytes = e->bytes;
    *data = e->data;
    if (!changes(m, e))
        return 0;
    int64_t rows = e->dims.d[0], chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < chunks; c++) {
        int64_t first = c * CHUNK_ROWS, n = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
        merge_rows(m, e, first, n, m->scratch + omp_get_thread_num() * CHUNK_ROWS * m->widest);
    }
    *data = m->out;
    return 0;
}

/* --- files --- */

/* The tensors of a network that are in file `from`, or all of them if it is NULL. */
static int write_file(struct merge *m, const dt_st *st, const char *from, const char *to, dt_err *err)
{
    int64_t n = 0, nkv = 0;
    const char *key;
    m->st = st;
    m->last = NULL;
    while (dt_st_meta_at(st, nkv, &key))
        nkv++;
    dt_st_kv *kv = dt_alloc((size_t)(nkv + 2) * sizeof(*kv));
    for (int64_t i = 0; i < nkv; i++)
        kv[i].value = dt_st_meta_at(st, i, &kv[i].key);
    kv[nkv] = (dt_st_kv){ "dt_merged", m->note };
    m->e = dt_alloc((size_t)(dt_st_count(st) + 1) * sizeof(*m->e));
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        const dt_st_entry *e = dt_st_at(st, i);
        if (!from || !strcmp(e->file, from))
            m->e[n++] = *e;
    }
    int rc = dt_st_write_from(to, m->e, n, kv, fetch, m, err);
    free(m->e);
    free(kv);
    m->e = NULL;
    return rc;
}

/* The network that has weights in this file; NULL: none that is merged. */
static const dt_st *part_in(const struct merge *m, const char *path)
{
    for (int k = 0; k < DT_FLUX_NPART; k++)
        for (int64_t i = 0; m->net[k] && i < dt_st_count(m->net[k]); i++)
            if (!strcmp(dt_st_at(m->net[k], i)->file, path))
                return m->net[k];
    return NULL;
}

/* A folder of a network none of whose weights change? */
static bool is_other(const struct merge *m, const char *name)
{
    for (int k = 0; k < DT_FLUX_NPART; k++)
        if (m->net[k] && !strcmp(name, dt_flux_part_dir[k]))
            return false;
    return true;
}

/* Every file of a folder: merged, or copied.  `weights`: of other networks, are copied too; otherwise only
 * those that are merged. */
static int write_folder(struct merge *m, const char *from, const char *to, bool weights, int depth, dt_err *err)
{
    struct dirent **entry;
    int rc = dt_mkdirs(to, err), n = rc < 0 ? 0 : scandir(from, &entry, NULL, alphasort);
    if (n < 0)
        return dt_err_sys(err, DT_EDATA, "cannot open folder '%s'", from);
    for (int i = 0; i < n; i++) {
        char *a = dt_path_join(from, entry[i]->d_name), *b = dt_path_join(to, entry[i]->d_name);
        bool dir = dt_is_dir(a);
        if (rc == 0 && entry[i]->d_name[0] != '.') {
            if (dir)
                rc = depth ? write_folder(m, a, b, is_other(m, entry[i]->d_name), depth - 1, err) : 0;
            else if (part_in(m, a))
                rc = write_file(m, part_in(m, a), a, b, err);
            else if (weights || strcmp(dt_path_ext(a), ".safetensors"))
                rc = dt_file_copy(a, b, err);
            else
                dt_strs_add(&m->r->left_out, a);
        }
        free(a);
        free(b);
        free(entry[i]);
    }
    if (n)
        free(entry);
    return rc;
}

/* An empty folder for us alone while *lock is open; what a killed process has left there is removed. */
static int take_folder(const char *dir, int *lock, dt_err *err)
{
    *lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool busy = *lock >= 0 && flock(*lock, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    int rc = busy ? dt_err_set(err, DT_EFAIL, "'%s' is being written by another process", dir) : 0;
    if (rc == 0 && *lock >= 0)
        rc = dt_rmtree(dir, err);
    if (*lock >= 0)
        close(*lock);
    *lock = -1;
    if (rc == 0)
        rc = dt_mkdirs(dir, err);
    if (rc == 0 && (*lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0)
        flock(*lock, LOCK_EX | LOCK_NB);
    return rc;
}

/* As write_folder, but whole or not at all. */
static int write_whole(struct merge *m, const char *to, dt_err *err)
{
    size_t len = strlen(to);
    int lock = -1;
    while (len > 1 && to[len - 1] == '/')
        len--;
    char *clean = dt_sprintf("%.*s", (int)len, to);
    const char *base = dt_path_base(clean);
    char *tmp = dt_sprintf("%.*s.%s.tmp", (int)(base - clean), clean, base);
    int rc = take_folder(tmp, &lock, err);
    if (rc == 0) {
        rc = write_folder(m, m->p->base, tmp, false, 1, err);
        for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
            rc = m->net[k] ? dt_st_check(m->net[k], err) : 0;
        if (rc == 0 && rename(tmp, clean) < 0)
            rc = errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR
                     ? dt_err_set(err, DT_EUSAGE, "'%s' is there already", clean)
                     : dt_err_sys(err, DT_EIO, "cannot rename '%s' to '%s'", tmp, clean);
        if (rc < 0) {
            dt_rmtree(tmp, NULL);
        } else {
            char *parent = dt_path_dir(clean);
            rc = dt_fsync_dir(parent, err);
            free(parent);
        }
    }
    if (lock >= 0)
        close(lock);
    free(tmp);
    free(clean);
    return rc;
}

static bool is_file_name(const char *s) { return !strcmp(dt_path_ext(s), ".safetensors"); }

/* A model folder, the folder of a transformer, or a file.  The text encoders of a model folder too, if a folder is
 * made of it. */
static int open_base(struct merge *m, dt_err *err)
{
    static const char *const stems[] = { "diffusion_pytorch_model", "model", NULL };
    const char *base = m->p->base;
    dt_flux_pipe shape = { 0 };
    int rc = 0;
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++) {
        char *dir = dt_path_join(base, dt_flux_part_dir[k]);
        if (k == DT_FLUX_DIT)
            rc = dt_is_dir(base) ? dt_st_open_folder(&m->net[k], dt_is_dir(dir) ? dir : base, stems, err)
                                 : dt_st_open(&m->net[k], base, err);
        else if (k != DT_FLUX_VAE && !is_file_name(m->p->out) && dt_is_dir(dir))
            dt_st_open_folder(&m->net[k], dir, stems, NULL);    /* a LoRA that needs it will miss it */
        free(dir);
    }
    if (rc == 0)
        dt_flux_guess(&shape.dit, m->net[DT_FLUX_DIT]);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++) {
        if (k == DT_FLUX_CLIP && m->net[k])
            dt_text_guess(&shape.clip, &shape.t5, m->net[k]);
        if (k == DT_FLUX_T5 && m->net[k])
            dt_text_guess(&(dt_clip_config){ 0 }, &shape.t5, m->net[k]);
        if (m->net[k])
            rc = dt_flux_declare(&m->params[k], &shape, (enum dt_flux_part)k, err);
    }
    return rc;
}

int dt_lora_merge(const struct dt_merge_params *p, struct dt_merge_report *r, dt_err *err)
{
    struct merge m = { .p = p, .r = r };
    if (!is_file_name(p->out) && !dt_is_dir(p->base))
        return dt_err_set(err, DT_EUSAGE, "'%s' is a file, and so must the result be: -o NAME.safetensors", p->base);
    if (!is_file_name(p->out) && dt_exists(p->out))
        return dt_err_set(err, DT_EUSAGE, "'%s' is there already", p->out);
    int rc = open_base(&m, err);
    if (rc == 0 && is_file_name(p->out) && part_in(&m, p->out))
        rc = dt_err_set(err, DT_EUSAGE, "'%s' is the base: name another file", p->out);
    if (rc == 0)
        rc = open_loras(&m, err);
    if (rc == 0)
        rc = make_room(&m, err);
    if (rc == 0)
        rc = is_file_name(p->out) ? write_file(&m, m.net[DT_FLUX_DIT], NULL, p->out, err)
                                  : write_whole(&m, p->out, err);
    for (int k = 0; k < DT_FLUX_NPART; k++) {
        for (int64_t i = 0; m.lora && i < p->n; i++)
            dt_lora_free(&m.lora[i][k]);
        dt_params_free(&m.params[k]);
        dt_st_close(&m.net[k]);
    }
    free(m.lora);
    free(m.patch);
    free(m.out);
    free(m.scratch);
    free(m.note);
    return rc;
}

void dt_merge_report_release(struct dt_merge_report *r)
{
    dt_strs_release(&r->loras);
    dt_strs_release(&r->left_out);
}

/* --- conversion --- */

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
