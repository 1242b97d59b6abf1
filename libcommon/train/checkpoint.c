/* checkpoint.c - training state on disk.  See checkpoint.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "train/checkpoint.h"

enum { FORMAT = 1, MAX_MANIFEST = 16 << 20 };
enum role { MASTER, M, V, EMA, NROLE };
static const char *const role_name[NROLE] = { "master", "m", "v", "ema" };

static float *role_ptr(const dt_param *p, enum role r)
{
    return r == MASTER ? p->master : r == M ? p->m : r == V ? p->v : p->ema;
}

static bool has_role(const dt_params *p, enum role r) { return p->n_train && (r != EMA || p->ema); }

/* --- saving --- */

struct saver {
    dt_params *p;
    dt_param **q;                   /* the trainable ones */
    enum role  role;
    float     *host;                /* of the largest; NULL on the CPU, where blocks are written as they lie */
};

static int fetch_role(void *ctx, int64_t i, const void **data, dt_err *err)
{
    struct saver *s = ctx;
    *data = role_ptr(s->q[i], s->role);
    if (!s->host)
        return 0;
    s->p->dev->download(s->p->dev, s->host, *data, s->q[i]->numel * (int64_t)sizeof(float));
    *data = s->host;
    return s->p->dev->sync(s->p->dev, err);
}

static int save_role(const char *path, dt_params *p, enum role r, dt_err *err)
{
    dt_st_entry *e = dt_alloc((size_t)(p->n + 1) * sizeof(*e));
    struct saver s = { .p = p, .role = r, .q = dt_alloc((size_t)(p->n + 1) * sizeof(*s.q)) };
    int64_t n = 0, most = 1;
    int rc = 0;
    for (int64_t i = 0; i < p->n; i++) {
        dt_param *q = p->v[i];
        if (!q->trainable)
            continue;
        e[n] = (dt_st_entry){ .name = q->name, .dtype = DT_F32, .dims = q->dims };
        s.q[n++] = q;
        most = q->numel > most ? q->numel : most;
    }
    if (p->dev->kind != DT_CPU && !(s.host = dt_try_alloc((size_t)most * sizeof(float))))
        rc = dt_err_set(err, DT_ENOMEM, "%s: no memory for %" PRId64 " numbers", path, most);
    if (rc == 0)
        rc = dt_st_write_from(path, e, n, NULL, fetch_role, &s, err);
    free(s.host);
    free(s.q);
    free(e);
    return rc;
}

static char *role_path(const char *dir, const dt_params *p, enum role r)
{
    return dt_sprintf("%s/%s.%s.safetensors", dir, p->name, role_name[r]);
}

static int add_file(cJSON *files, const char *path, dt_err *err)
{
    dt_hash h;
    struct stat st;
    int rc = dt_hash_file(&h, path, err);
    if (rc < 0)
        return rc;
    if (stat(path, &st) < 0)
        return dt_err_sys(err, DT_EIO, "cannot stat '%s'", path);
    cJSON *f = cJSON_CreateObject();
    cJSON_AddStringToObject(f, "name", dt_path_base(path));
    cJSON_AddNumberToObject(f, "bytes", (double)st.st_size);
    cJSON_AddStringToObject(f, "xxh3_128", h.hex);
    cJSON_AddItemToArray(files, f);
    return 0;
}

static int save_sets(const char *dir, const dt_optim *o, cJSON *files, dt_err *err)
{
    int rc = 0;
    for (int i = 0; i < o->nset && rc == 0; i++)
        for (int r = 0; r < NROLE && rc == 0; r++) {
            if (!has_role(o->set[i], (enum role)r))
                continue;
            char *path = role_path(dir, o->set[i], (enum role)r);
            rc = save_role(path, o->set[i], (enum role)r, err);
            if (rc == 0)
                rc = add_file(files, path, err);
            free(path);
        }
    return rc;
}

/* 64-bit numbers go as strings: JSON's numbers hold 53 bits. */
static void add_u64(cJSON *j, const char *key, uint64_t v)
{
    char text[24];
    snprintf(text, sizeof(text), "%" PRIu64, v);
    cJSON_AddStringToObject(j, key, text);
}

static cJSON *manifest_of(const dt_train_state *s, const cJSON *about)
{
    const cJSON *e;
    cJSON *j = cJSON_CreateObject();
    cJSON_AddNumberToObject(j, "format", FORMAT);
    cJSON_AddStringToObject(j, "dt_version", DT_VERSION);
    cJSON_AddNumberToObject(j, "step", (double)s->step);
    cJSON_AddNumberToObject(j, "batch", (double)s->batch);
    cJSON_AddNumberToObject(j, "epoch", (double)s->epoch);
    cJSON_AddNumberToObject(j, "optimiser_updates", (double)s->optim_k);
    cJSON_AddNumberToObject(j, "validated", (double)s->validated);
    add_u64(j, "seed", s->seed);
    cJSON_AddNumberToObject(j, "metrics_bytes", (double)s->metrics_bytes);
    cJSON_AddNumberToObject(j, "threads", s->threads);
    cJSON_AddNumberToObject(j, "world_size", 1);
    cJSON_AddStringToObject(j, "base", s->base);
    cJSON_AddNumberToObject(j, "planned_steps", (double)s->planned);
    cJSON_AddStringToObject(j, "batches_hash", s->trace.plan);
    cJSON_AddStringToObject(j, "data_hash", s->trace.data);
    cJSON_ArrayForEach(e, about)
        cJSON_AddItemToObject(j, e->string, cJSON_Duplicate(e, true));
    return j;
}

/* tmp becomes dir.  One that is there, of a run that was resumed from before it, is exchanged, so that at
 * no moment there is none; where the file system cannot do that, it first loses its manifest and with it its name. */
static int put_in_place(const char *tmp, const char *dir, dt_err *err)
{
    int rc = 0;
    if (!dt_exists(dir) || renameat2(AT_FDCWD, tmp, AT_FDCWD, dir, RENAME_EXCHANGE) < 0) {
        char *manifest = dt_path_join(dir, "manifest.json");
        if (unlink(manifest) < 0 && errno != ENOENT)
            rc = dt_err_sys(err, DT_EIO, "cannot remove '%s'", manifest);
        else
            rc = dt_rmtree(dir, err);
        if (rc == 0 && rename(tmp, dir) < 0)
            rc = dt_err_sys(err, DT_EIO, "cannot rename '%s'", tmp);
        free(manifest);
    }
    char *parent = dt_path_dir(dir);
    if (rc == 0)
        rc = dt_fsync_dir(parent, err);
    free(parent);
    if (rc == 0)
        rc = dt_rmtree(tmp, err);
    return rc;
}

int dt_checkpoint_save(const char *dir, const dt_optim *o, const dt_train_state *s, const cJSON *about,
                       int (*extra)(void *ctx, const char *dir, dt_err *err), void *ctx, dt_err *err)
{
    char *tmp = dt_sprintf("%s.tmp", dir), *path = dt_sprintf("%s/manifest.json", tmp);
    cJSON *j = manifest_of(s, about), *files = cJSON_AddArrayToObject(j, "files");
    int rc = dt_rmtree(tmp, err);
    if (rc == 0)
        rc = dt_mkdirs(tmp, err);
    if (rc == 0 && extra)
        rc = extra(ctx, tmp, err);
    if (rc == 0)
        rc = save_sets(tmp, o, files, err);
    if (rc == 0)
        rc = dt_json_write(path, j, true, err);
    if (rc == 0)
        rc = put_in_place(tmp, dir, err);
    cJSON_Delete(j);
    free(path);
    free(tmp);
    return rc;
}

/* --- loading --- */

static int check_files(const cJSON *j, const char *dir, const char *what, dt_err *err)
{
    const cJSON *f, *files = cJSON_GetObjectItem(j, "files");
    if (!cJSON_IsArray(files))
        return dt_err_set(err, DT_EDATA, "%s: 'files' must be a list", what);
    cJSON_ArrayForEach(f, files) {
        const char *name, *want;
        dt_hash h;
        if (dt_json_str_or(&name, f, "name", "", what, err) < 0 ||
            dt_json_str_or(&want, f, "xxh3_128", "", what, err) < 0)
            return DT_EDATA;
        char *path = dt_path_join(dir, dt_path_base(name));
        int rc = dt_hash_file(&h, path, err);
        if (rc == 0 && strcmp(h.hex, want))
            rc = dt_err_set(err, DT_EDATA, "%s: its contents are not what the checkpoint's manifest says", path);
        free(path);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* What check_files has not seen is not read. */
static int listed(const cJSON *j, const char *path, dt_err *err)
{
    const cJSON *f;
    cJSON_ArrayForEach(f, cJSON_GetObjectItem(j, "files")) {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(f, "name"));
        if (name && !strcmp(name, dt_path_base(path)))
            return 0;
    }
    return dt_err_set(err, DT_EDATA, "%s: the checkpoint's manifest does not list it", path);
}

static int load_role(const char *path, dt_params *p, enum role r, dt_err *err)
{
    dt_st *st = NULL;
    int rc = dt_st_open(&st, path, err);
    for (int64_t i = 0; i < p->n && rc == 0; i++) {
        dt_param *q = p->v[i];
        if (!q->trainable)
            continue;
        const dt_st_entry *e = dt_st_find(st, q->name);
        if (!e || e->dtype != DT_F32 || (int64_t)e->bytes != q->numel * (int64_t)sizeof(float))
            rc = dt_err_set(err, DT_EDATA, "%s: tensor '%s' is missing or of another size than this run trains", path,
                            q->name);
        else
            p->dev->upload(p->dev, role_ptr(q, r), e->data, (int64_t)e->bytes);
    }
    if (rc == 0)
        rc = p->dev->sync(p->dev, err);
    dt_st_close(&st);
    return rc;
}

static int load_state(dt_train_state *s, const cJSON *j, const char *what, dt_err *err)
{
    const int64_t big = (int64_t)1 << 53;
    int64_t format, threads;
    const char *seed, *base, *plan, *data;
    *s = (dt_train_state){ 0 };
    int rc;
    if ((rc = dt_json_int(&format, j, "format", FORMAT, FORMAT, what, err)) < 0 ||
        (rc = dt_json_int(&s->step, j, "step", 0, big, what, err)) < 0 ||
        (rc = dt_json_int(&s->batch, j, "batch", 0, big, what, err)) < 0 ||
        (rc = dt_json_int(&s->epoch, j, "epoch", 0, big, what, err)) < 0 ||
        (rc = dt_json_int(&s->optim_k, j, "optimiser_updates", 0, big, what, err)) < 0 ||
        (rc = dt_json_int(&s->validated, j, "validated", 0, big, what, err)) < 0 ||
        (rc = dt_json_int(&s->metrics_bytes, j, "metrics_bytes", 0, big, what, err)) < 0 ||
        (rc = dt_json_int(&threads, j, "threads", 1, 1 << 20, what, err)) < 0 ||
        (rc = dt_json_str_or(&seed, j, "seed", "0", what, err)) < 0 ||
        (rc = dt_json_str_or(&base, j, "base", "", what, err)) < 0 ||
        (rc = dt_json_int_or(&s->planned, j, "planned_steps", 0, 0, big, what, err)) < 0 ||
        (rc = dt_json_str_or(&plan, j, "batches_hash", "", what, err)) < 0 ||
        (rc = dt_json_str_or(&data, j, "data_hash", "", what, err)) < 0)
        return rc;
    s->threads = (int)threads;
    s->seed = strtoull(seed, NULL, 10);
    snprintf(s->base, sizeof(s->base), "%s", base);
    snprintf(s->trace.plan, sizeof(s->trace.plan), "%s", plan);
    snprintf(s->trace.data, sizeof(s->trace.data), "%s", data);
    return 0;
}

static int read_manifest(const char *dir, cJSON **j, char **path, dt_train_state *s, dt_err *err)
{
    *path = dt_path_join(dir, "manifest.json");
    int rc = dt_json_read(j, *path, MAX_MANIFEST, err);
    return rc < 0 ? rc : load_state(s, *j, *path, err);
}

int dt_checkpoint_state(const char *dir, dt_train_state *s, cJSON **about, dt_err *err)
{
    cJSON *j = NULL;
    char *path = NULL;
    int rc = read_manifest(dir, &j, &path, s, err);
    if (about)
        *about = j;
    else
        cJSON_Delete(j);
    free(path);
    return rc;
}

int dt_checkpoint_load(const char *dir, dt_optim *o, dt_train_state *s, dt_err *err)
{
    cJSON *j = NULL;
    char *path = NULL;
    int rc = read_manifest(dir, &j, &path, s, err);
    if (rc == 0)
        rc = check_files(j, dir, path, err);
    for (int i = 0; i < o->nset && rc == 0; i++)
        for (int r = 0; r < NROLE && rc == 0; r++) {
            if (!has_role(o->set[i], (enum role)r))
                continue;
            char *file = role_path(dir, o->set[i], (enum role)r);
            rc = listed(j, file, err);
            if (rc == 0)
                rc = load_role(file, o->set[i], (enum role)r, err);
            free(file);
        }
    for (int i = 0; i < o->nset && rc == 0; i++)
        dt_params_sync(o->set[i]);
    if (rc == 0)
        o->k = s->optim_k;
    cJSON_Delete(j);
    free(path);
    return rc;
}

/* --- folders --- */

struct found { int64_t step; char *path; };

static int by_step(const void *a, const void *b)
{
    int64_t x = ((const struct found *)a)->step, y = ((const struct found *)b)->step;
    return x < y ? -1 : x > y;
}

/* Folders checkpoint-N by step, complete ones; or, with suffix ".tmp", those that were being written or removed. */
static int list(struct found **f, int64_t *n, const char *output_dir, const char *suffix, dt_err *err)
{
    int64_t cap = 0;
    DIR *d = opendir(output_dir);
    *f = NULL;
    *n = 0;
    if (!d)
        return errno == ENOENT ? 0 : dt_err_open(err, output_dir);
    for (struct dirent *e; errno = 0, (e = readdir(d));) {
        char *end = NULL;
        if (strncmp(e->d_name, "checkpoint-", 11))
            continue;
        int64_t step = strtoll(e->d_name + 11, &end, 10);
        char *manifest = dt_sprintf("%s/%s/manifest.json", output_dir, e->d_name);
        if (end > e->d_name + 11 && !strcmp(end, suffix) && (*suffix || dt_exists(manifest))) {
            dt_grow(f, &cap, *n + 1, sizeof(**f));
            (*f)[(*n)++] = (struct found){ step, dt_path_join(output_dir, e->d_name) };
        }
        free(manifest);
    }
    int rc = errno ? dt_err_open(err, output_dir) : 0;
    closedir(d);
    if (*f)
        qsort(*f, (size_t)*n, sizeof(**f), by_step);
    return rc;
}

static void release(struct found *f, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        free(f[i].path);
    free(f);
}

int dt_checkpoint_latest(char **path, const char *output_dir, dt_err *err)
{
    struct found *f;
    int64_t n;
    int rc = list(&f, &n, output_dir, "", err);
    *path = rc == 0 && n ? dt_strdup(f[n - 1].path) : NULL;
    release(f, n);
    return rc;
}

/* Under another name first: a folder that has a checkpoint's name is whole. */
static int drop(const char *path, dt_err *err)
{
    char *tmp = dt_sprintf("%s.tmp", path);
    int rc = dt_rmtree(tmp, err);
    if (rc == 0 && rename(path, tmp) < 0)
        rc = dt_err_sys(err, DT_EIO, "cannot rename '%s'", path);
    if (rc == 0)
        rc = dt_rmtree(tmp, err);
    free(tmp);
    return rc;
}

int dt_checkpoint_prune(const char *output_dir, int64_t keep, int64_t step, dt_err *err)
{
    struct found *f, *tmp = NULL;
    int64_t n, n_tmp = 0, mine = 0;
    int rc = list(&f, &n, output_dir, "", err);
    if (rc == 0)
        rc = list(&tmp, &n_tmp, output_dir, ".tmp", err);
    while (mine < n && f[mine].step <= step)
        mine++;
    for (int64_t i = 0; keep > 0 && i < mine - keep && rc == 0; i++)
        rc = drop(f[i].path, err);
    for (int64_t i = 0; i < n_tmp && rc == 0; i++)
        rc = dt_rmtree(tmp[i].path, err);
    release(tmp, n_tmp);
    release(f, n);
    return rc;
}
