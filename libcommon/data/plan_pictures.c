/* plan_pictures.c - the pictures of a data set with their sizes, headers read in parallel. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/progress.h"
#include "data/media.h"
#include "data/plan_int.h"

#define MAX_THREADS 64

struct job {
    dt_meta *m;
    const struct dt_data_settings *s;
    dt_size *size;              /* [m->n], 0 x 0: not usable */
    char   **wrong;             /* [m->n] */
    int64_t  next, differs;
    dt_image_gate gate;
    int64_t  no_memory;         /* 1 + the picture that there was no memory for: no fault of the picture's */
};

static int probe(const struct job *j, const dt_meta_item *it, dt_image_info *info, dt_err *err)
{
    if (it->tar < 0)
        return dt_image_probe(info, it->path, NULL, err);
    return dt_image_probe_part(info, j->m->tars.v[it->tar], it->off, it->bytes, it->path, NULL, err);
}

static int decode(const struct job *j, const dt_meta_item *it, dt_err *err)
{
    const dt_plan_item whole = { .path = it->path, .tar = it->tar < 0 ? NULL : j->m->tars.v[it->tar], .off = it->off,
                                 .bytes = it->bytes };
    char *data = NULL;
    size_t bytes = 0;
    dt_image im = { 0 };
    int rc = dt_plan_item_read(&data, &bytes, &whole, err);
    if (rc == 0)
        rc = dt_image_decode(&im, data, bytes, it->path, NULL, err);
    dt_image_release(&im);
    free(data);
    return rc;
}

static void look(struct job *j, int64_t i)
{
    const dt_meta_item *it = &j->m->v[i];
    dt_image_info info;
    dt_err err = { 0 };

    if (j->s->trust_sizes && it->w && !j->s->verify_images) {
        j->size[i] = (dt_size){ it->w, it->h };
        return;
    }
    int rc = probe(j, it, &info, &err);
    if (rc == 0 && j->s->verify_images) {
        int64_t entered = dt_image_gate_enter(&j->gate, (int64_t)info.w * info.h, info.file_bytes);
        rc = decode(j, it, &err);
        dt_image_gate_leave(&j->gate, entered);
    }
    if (rc < 0)
        j->wrong[i] = dt_strdup(err.msg);
    if (rc == DT_ENOMEM)
        __atomic_store_n(&j->no_memory, i + 1, __ATOMIC_RELAXED);
    if (rc == 0)
        j->size[i] = (dt_size){ info.w, info.h };
    if (rc == 0 && it->w && (it->w != info.w || it->h != info.h))
        __atomic_fetch_add(&j->differs, 1, __ATOMIC_RELAXED);
}

static bool stopped(const struct job *j)
{
    return (j->s->stop && *j->s->stop) || __atomic_load_n(&j->no_memory, __ATOMIC_RELAXED);
}

static int64_t take(struct job *j)
{
    return __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
}

static void *work(void *p)
{
    struct job *j = p;
    for (int64_t i; !stopped(j) && (i = take(j)) < j->m->n; )
        look(j, i);
    return NULL;
}

static void run(struct job *j)
{
    pthread_t t[MAX_THREADS];
    int64_t want = j->s->dataloader_num_workers ? j->s->dataloader_num_workers : 2 * sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0;
    want = want > MAX_THREADS ? MAX_THREADS : want > j->m->n ? j->m->n : want;
    while (n < want - 1 && pthread_create(&t[n], NULL, work, j) == 0)
        n++;
    for (int64_t i; !stopped(j) && (i = take(j)) < j->m->n; ) {     /* this thread is one of them */
        look(j, i);
        if (j->s->progress && i % 16 == 0)
            dt_progress_step(j->s->progress, i);
    }
    if (j->s->progress)
        dt_progress_step(j->s->progress, j->m->n);
    while (n)
        pthread_join(t[--n], NULL);
}

void dt_meta_item_release(dt_meta_item *it)
{
    free(it->path);
    free(it->text);
    cJSON_Delete(it->extra);
}

static void keep_good(struct job *j)
{
    int64_t n = 0;
    dt_meta *m = j->m;
    for (int64_t i = 0; i < m->n; i++) {
        if (j->size[i].w) {
            m->v[n] = m->v[i];
            m->v[n].w = j->size[i].w;
            m->v[n++].h = j->size[i].h;
        } else {
            dt_strs_add(&m->skipped, j->wrong[i]);
            dt_meta_item_release(&m->v[i]);
        }
        free(j->wrong[i]);
    }
    m->n = n;
}

/* --max_train_samples: that many, chosen by seed, in their old order. */
static void keep_some(dt_meta *m, int64_t want, uint64_t seed)
{
    if (!want || want >= m->n)
        return;
    int64_t *perm = dt_alloc(m->n * sizeof *perm), n = 0;
    char *in = dt_alloc(m->n);
    dt_rng r = dt_rng_make(seed, DT_RNG_SHUFFLE, 0, 2);
    dt_rng_permute(perm, m->n, &r);
    for (int64_t i = 0; i < want; i++)
        in[perm[i]] = 1;
    for (int64_t i = 0; i < m->n; i++)
        if (in[i])
            m->v[n++] = m->v[i];
        else
            dt_meta_item_release(&m->v[i]);
    m->n = n;
    free(perm);
    free(in);
}

static int judge(const dt_meta *m, const char *where, double max_fraction, dt_err *err)
{
    int64_t bad = m->skipped.n;
    if (!m->entries)
        return dt_err_set(err, DT_EDATA, "%s: no pictures in it", where);
    if (!m->n)
        return dt_err_set(err, DT_EDATA, "%s: none of its %lld pictures can be used; the first: %s", where,
                          (long long)m->entries, m->skipped.v[0]);
    if (bad > max_fraction * m->entries)
        return dt_err_set(err, DT_EDATA, "%s: %lld of %lld pictures cannot be used, more than --max_skipped_fraction "
                          "%g allows; the first: %s", where, (long long)bad, (long long)m->entries, max_fraction,
                          m->skipped.v[0]);
    return 0;
}

static int read_meta(dt_meta *m, const struct dt_rules *r, const char *where, dt_err *err)
{
    const struct dt_data_settings *s = r->s;
    if (r->sets)
        return dt_datasets_read(r->sets, m, err);
    if (s->train_data_meta && s->train_data_dir && (dt_is_dir(where) || dt_is_tar(where)))
        return dt_err_set(err, DT_EUSAGE, "--train_data_dir has no effect: '%s' is a %s", where,
                          dt_is_dir(where) ? "folder" : "tar");
    if (dt_is_tar(where) && !dt_is_dir(where))
        return dt_meta_read_tars(m, where, err);
    if (s->folder_repeats && dt_meta_is_kohya(where))
        return dt_meta_read_kohya(m, where, err);
    return dt_meta_read(m, where, s->train_data_meta ? s->train_data_dir : NULL, err);
}

/* What was said about the data moves into the report. */
static void take_notes(dt_meta *m, const struct dt_rules *r, struct dt_plan_report *report)
{
    report->notes = m->notes;
    m->notes = (dt_strs){ 0 };
    for (int64_t i = 0; r->sets && i < r->sets->notes.n; i++)
        dt_strs_add(&report->notes, r->sets->notes.v[i]);
}

int dt_pictures_read(dt_meta *m, const struct dt_rules *r, struct dt_plan_report *report, dt_err *err)
{
    const struct dt_data_settings *s = r->s;
    const char *where = s->dataset_config ? s->dataset_config : s->train_data_meta ? s->train_data_meta
                                                                                   : s->train_data_dir;
    int rc = read_meta(m, r, where, err);
    report->entries = m->entries;
    if (rc < 0)
        return rc;
    struct job j = { .m = m, .s = s, .size = dt_alloc(m->n * sizeof *j.size),
                     .wrong = dt_alloc(m->n * sizeof *j.wrong) };
    dt_image_gate_init(&j.gate);
    run(&j);
    dt_image_gate_release(&j.gate);
    if (stopped(&j)) {
        rc = j.no_memory ? dt_err_set(err, DT_ENOMEM, "%s", j.wrong[j.no_memory - 1])
                         : dt_err_set(err, DT_ESIGNAL, "stopped");
        for (int64_t i = 0; i < m->n; i++)
            free(j.wrong[i]);
    } else {
        keep_good(&j);
        rc = judge(m, where, s->max_skipped_fraction, err);
        keep_some(m, s->max_train_samples, s->seed);
    }
    take_notes(m, r, report);
    report->size_differs = j.differs;
    report->items = m->n;
    for (int64_t i = 0; i < m->n; i++)
        report->no_caption += !*m->v[i].text;
    report->skipped = m->skipped;
    m->skipped = (dt_strs){ 0 };
    free(j.size);
    free(j.wrong);
    return rc;
}
