/* lora_merge.c - LoRAs into the weights they are on:   W + sum_k s_k (alpha_k / r_k) B_k A_k   in fp32, rounded once to
 * W's dtype.
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
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "models/flux_pipe.h"
#include "train/lora_merge.h"

enum { CHUNK_ROWS = 32 };

/* In a folder that was made: its files' names and hashes, dt-merge-shards(1).  The version goes up when the same files
 * would give another result. */
#define RECORD "dt-merge.json"
enum { RECORD_VERSION = 1, RECORD_BYTES = 16 << 20 };

struct item {                       /* a file of the base that the result has too */
    char        *name;              /* relative to either folder */
    const dt_st *net;               /* the network whose weights it has, which are merged; NULL: it is copied */
    const char  *file;              /* then: its name in net */
};

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
    struct item *item;              /* what the result has, if it is a folder */
    int64_t    items, item_cap;
};

/* --- which rows change --- */

static int find_rows(struct merge *m, enum dt_flux_part k, const dt_adapter *a, const float *down, const float *up,
                     double strength, dt_err *err)
{
    dt_st_entry piece[DT_MAX_PIECES];
    const dt_param *w = dt_lora_weight(m->params[k], a->path);
    int n = dt_flux_part_rename[k](m->net[k], w, piece, NULL, err);
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

static int stopped(dt_err *err) { return dt_err_set(err, DT_ESIGNAL, "stopped; nothing is written"); }

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
        return stopped(err);
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
    if (!dt_finite(m->out, e->dtype, dt_numel(e->dims)))
        return dt_err_set(err, DT_ENAN, "'%s' of the result is not finite in %s, or beyond its range", e->name,
                          dt_dtype_name(e->dtype));
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
    int64_t at = nkv;                       /* of what was merged before, and is now */
    for (int64_t i = 0; i < nkv; i++) {
        kv[i].value = dt_st_meta_at(st, i, &kv[i].key);
        at = strcmp(kv[i].key, "dt_merged") ? at : i;
    }
    char *note = at < nkv ? dt_sprintf("%s, %s", kv[at].value, m->note) : dt_strdup(m->note);
    kv[at] = (dt_st_kv){ "dt_merged", note };
    m->e = dt_alloc((size_t)(dt_st_count(st) + 1) * sizeof(*m->e));
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        const dt_st_entry *e = dt_st_at(st, i);
        if (!from || !strcmp(e->file, from))
            m->e[n++] = *e;
    }
    int rc = dt_st_write_from(to, m->e, n, kv, fetch, m, err);
    free(m->e);
    free(kv);
    free(note);
    m->e = NULL;
    return rc;
}

/* Is this file, whatever it is called here, weights of a network that is merged?  Then x gets which. */
static bool find_file(const struct merge *m, const char *path, struct item *x)
{
    struct stat is, of;
    const char *last = NULL;
    if (stat(path, &is) < 0)
        return false;
    for (int k = 0; k < DT_FLUX_NPART; k++)
        for (int64_t i = 0; m->net[k] && i < dt_st_count(m->net[k]); i++) {
            const char *file = dt_st_at(m->net[k], i)->file;
            if (file == last || stat(last = file, &of) < 0 || of.st_ino != is.st_ino || of.st_dev != is.st_dev)
                continue;
            x->net = m->net[k];
            x->file = file;
            return true;
        }
    return false;
}

/* --- a folder: what the base has that the result has too --- */

/* A folder of a network none of whose weights change? */
static bool is_other(const struct merge *m, const char *name)
{
    for (int k = 0; k < DT_FLUX_NPART; k++)
        if (m->net[k] && !strcmp(name, dt_flux_part_dir[k]))
            return false;
    return true;
}

static int list_folder(struct merge *m, const char *folder, bool copied, dt_err *err);

/* Of folders in folders of networks nothing is known. */
static int list_entry(struct merge *m, const char *name, const char *path, bool copied, dt_err *err)
{
    struct item x = { 0 };
    bool folder = dt_is_dir(path), weights = !folder && !strcmp(dt_path_ext(name), ".safetensors");
    if (folder && !strchr(name, '/'))
        return list_folder(m, name, is_other(m, name), err);
    if (folder || (!find_file(m, path, &x) && weights && !copied)) {
        dt_strs_add(&m->r->left_out, path);
        return 0;
    }
    x.name = dt_strdup(name);
    dt_grow(&m->item, &m->item_cap, m->items + 1, sizeof(*m->item));
    m->item[m->items++] = x;
    return 0;
}

/* `copied`: the weights in it that are not merged, too. */
static int list_folder(struct merge *m, const char *folder, bool copied, dt_err *err)
{
    struct dirent **entry = NULL;
    char *dir = dt_path_join(m->p->base, folder);
    int rc = 0, n = scandir(dir, &entry, NULL, alphasort);
    if (n < 0)
        rc = dt_err_sys(err, DT_EDATA, "cannot open folder '%s'", dir);
    for (int i = 0; i < n; i++) {
        const char *is = entry[i]->d_name;
        char *name = *folder ? dt_path_join(folder, is) : dt_strdup(is), *path = dt_path_join(m->p->base, name);
        if (rc == 0 && *is != '.' && strcmp(name, RECORD))
            rc = list_entry(m, name, path, copied, err);
        free(name);
        free(path);
        free(entry[i]);
    }
    free(entry);
    free(dir);
    return rc;
}

/* --- the record of a folder: what it was made of --- */

static cJSON *add_file(cJSON *list, const char *name, const dt_hash *h)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "file", name);
    cJSON_AddStringToObject(o, "xxh3_128", h->hex);
    cJSON_AddItemToArray(list, o);
    return o;
}

/* A record but for the files of the base. */
static int begin_record(cJSON **out, const struct merge *m, dt_err *err)
{
    cJSON *o = *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "dt_merge", RECORD_VERSION);
    cJSON *list = cJSON_AddArrayToObject(o, "lora");
    int rc = 0;
    for (int64_t i = 0; i < m->p->n && rc == 0; i++) {
        dt_hash h;
        if ((rc = dt_hash_file(&h, m->p->lora[i], err)) == 0)
            cJSON_AddNumberToObject(add_file(list, dt_path_base(m->p->lora[i]), &h), "strength", m->p->strength[i]);
    }
    return rc;
}

static const char *text_of(const cJSON *o, const char *key)
{
    const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, key));
    return s ? s : "";
}

/* 1: the result has this file, and the base still has the one that it was made of; 0: not so. */
static int same_item(const struct merge *m, const struct item *x, const cJSON *was, dt_err *err)
{
    char *from = dt_path_join(m->p->base, x->name), *to = dt_path_join(m->p->out, x->name);
    dt_hash h = dt_hash_stat(from);         /* "": it is from the future */
    int rc = !strcmp(text_of(was, "file"), x->name) && dt_exists(to);
    if (rc == 1 && (!*h.hex || strcmp(h.hex, text_of(was, "stat")))) {
        rc = dt_hash_file(&h, from, err);
        rc = rc < 0 ? rc : !strcmp(h.hex, text_of(was, "xxh3_128"));
    }
    free(from);
    free(to);
    return rc;
}

/* 1: what is there is the result of these files; 0: it is something else. */
static int is_done(const struct merge *m, dt_err *err)
{
    char *path = dt_path_join(m->p->out, RECORD);
    cJSON *was = NULL, *now = NULL;
    int rc = dt_json_read(&was, path, RECORD_BYTES, err);
    if (rc == 0)
        rc = begin_record(&now, m, err);
    else if (rc == DT_EDATA)
        rc = 0;                             /* there is none, or it is not ours */
    if (rc == 0 && now) {
        const cJSON *w;
        cJSON *base = cJSON_DetachItemFromObjectCaseSensitive(was, "base");
        int64_t i = 0;
        rc = cJSON_Compare(was, now, true) && cJSON_GetArraySize(base) == m->items;
        cJSON_ArrayForEach(w, base)
            rc = rc == 1 ? same_item(m, &m->item[i++], w, err) : rc;
        cJSON_Delete(base);
    }
    cJSON_Delete(was);
    cJSON_Delete(now);
    free(path);
    return rc;
}

static int there_already(struct merge *m, dt_err *err)
{
    int rc = is_done(m, err);
    if (rc == 0)
        return dt_err_set(err, DT_EUSAGE, "'%s' is there already, and is not this merge", m->p->out);
    m->r->done = rc == 1;
    return rc < 0 ? rc : 0;
}

/* --- a folder, whole or not at all --- */

static int write_item(struct merge *m, const struct item *x, const char *to, cJSON *record, dt_err *err)
{
    char *from = dt_path_join(m->p->base, x->name), *path = dt_path_join(to, x->name), *dir = dt_path_dir(path);
    dt_hash h, stat = dt_hash_stat(from);
    int rc = m->p->stop && *m->p->stop ? stopped(err) : dt_mkdirs(dir, err);
    if (rc == 0)
        rc = x->net ? write_file(m, x->net, x->file, path, err) : dt_file_copy(from, path, err);
    if (rc == 0)
        rc = dt_hash_file(&h, from, err);
    if (rc == 0 && strcmp(stat.hex, dt_hash_stat(from).hex))
        rc = dt_err_set(err, DT_EDATA, "'%s' was written to while it was read", from);
    if (rc == 0)
        cJSON_AddStringToObject(add_file(record, x->name, &h), "stat", stat.hex);
    free(from);
    free(path);
    free(dir);
    return rc;
}

static int write_folder(struct merge *m, const char *to, dt_err *err)
{
    cJSON *record = NULL;
    char *path = dt_path_join(to, RECORD);
    int rc = begin_record(&record, m, err);
    cJSON *base = cJSON_AddArrayToObject(record, "base");
    for (int64_t i = 0; i < m->items && rc == 0; i++)
        rc = write_item(m, &m->item[i], to, base, err);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
        rc = m->net[k] ? dt_st_check(m->net[k], err) : 0;
    if (rc == 0)
        rc = dt_json_write(path, record, true, err);
    cJSON_Delete(record);
    free(path);
    return rc;
}

/* What a killed process has left. */
static int empty_folder(const char *dir, dt_err *err)
{
    DIR *d = opendir(dir);
    int rc = d ? 0 : dt_err_sys(err, DT_EIO, "cannot open '%s'", dir);
    for (struct dirent *e; rc == 0 && (e = readdir(d));) {
        char *path = dt_path_join(dir, e->d_name);
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            rc = dt_rmtree(path, err);
        free(path);
    }
    if (d)
        closedir(d);
    return rc;
}

/* An empty folder for us alone while *lock is open.  One that we have opened may be another's, who has renamed or
 * removed it by the time that we have the lock. */
static int take_folder(int *lock, const char *dir, dt_err *err)
{
    for (;;) {
        struct stat ours, there;
        int rc = dt_mkdirs(dir, err);
        if (rc < 0)
            return rc;
        *lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (*lock < 0 && errno != ENOENT)
            return dt_err_sys(err, DT_EIO, "cannot open '%s'", dir);
        if (*lock >= 0 && flock(*lock, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
            return dt_err_set(err, DT_EFAIL, "'%s' is being written by another process", dir);
        if (*lock >= 0 && fstat(*lock, &ours) == 0 && stat(dir, &there) == 0 && ours.st_ino == there.st_ino &&
            ours.st_dev == there.st_dev)
            return empty_folder(dir, err);
        if (*lock >= 0)
            close(*lock);
        *lock = -1;
    }
}

static int write_whole(struct merge *m, dt_err *err)
{
    const char *to = m->p->out;
    size_t len = strlen(to);
    int lock = -1;
    while (len > 1 && to[len - 1] == '/')
        len--;
    char *clean = dt_sprintf("%.*s", (int)len, to), *parent = dt_path_dir(clean);
    const char *base = dt_path_base(clean);
    char *tmp = dt_sprintf("%.*s.%s.tmp", (int)(base - clean), clean, base);
    int rc = take_folder(&lock, tmp, err);
    if (rc == 0) {
        rc = write_folder(m, tmp, err);
        if (rc == 0 && rename(tmp, clean) < 0)
            rc = errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR
                     ? there_already(m, err)                /* since a moment ago */
                     : dt_err_sys(err, DT_EIO, "cannot rename '%s' to '%s'", tmp, clean);
        if (rc < 0 || m->r->done)
            dt_rmtree(tmp, NULL);
        else
            rc = dt_fsync_dir(parent, err);
    }
    if (lock >= 0)
        close(lock);
    free(tmp);
    free(parent);
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
            /* a LoRA that needs it will miss it */
            rc = dt_st_open_folder(&m->net[k], dir, stems, err) == DT_ENOMEM ? DT_ENOMEM : 0;
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

static void release(struct merge *m)
{
    for (int k = 0; k < DT_FLUX_NPART; k++) {
        for (int64_t i = 0; m->lora && i < m->p->n; i++)
            dt_lora_free(&m->lora[i][k]);
        dt_params_free(&m->params[k]);
        dt_st_close(&m->net[k]);
    }
    for (int64_t i = 0; i < m->items; i++)
        free(m->item[i].name);
    free(m->lora);
    free(m->patch);
    free(m->out);
    free(m->scratch);
    free(m->note);
    free(m->item);
}

static int merge_folder(struct merge *m, dt_err *err)
{
    int rc = list_folder(m, "", false, err);
    if (rc == 0 && dt_exists(m->p->out))
        return there_already(m, err);
    if (rc == 0)
        rc = make_room(m, err);
    return rc < 0 ? rc : write_whole(m, err);
}

static int merge_file(struct merge *m, dt_err *err)
{
    int rc = make_room(m, err);
    return rc < 0 ? rc : write_file(m, m->net[DT_FLUX_DIT], NULL, m->p->out, err);
}

int dt_lora_merge(const struct dt_merge_params *p, struct dt_merge_report *r, dt_err *err)
{
    struct merge m = { .p = p, .r = r };
    bool file = is_file_name(p->out);
    if (!file && !dt_is_dir(p->base))
        return dt_err_set(err, DT_EUSAGE, "'%s' is a file, and so must the result be: -o NAME.safetensors", p->base);
    int rc = open_base(&m, err);
    if (rc == 0 && file && find_file(&m, p->out, &(struct item){ 0 }))
        rc = dt_err_set(err, DT_EUSAGE, "'%s' is the base: name another file", p->out);
    if (rc == 0)
        rc = open_loras(&m, err);
    if (rc == 0)
        rc = file ? merge_file(&m, err) : merge_folder(&m, err);
    release(&m);
    return rc;
}

void dt_merge_report_release(struct dt_merge_report *r)
{
    dt_strs_release(&r->loras);
    dt_strs_release(&r->left_out);
}
