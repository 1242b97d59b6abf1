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
    int64_t  next, differs;
    dt_image_gate gate;
    pthread_mutex_t lock;       /* of `wrong` */
    struct wrong { int64_t at; char *why; } *wrong;     /* pictures that are not usable, as they were met */
    int64_t  n_wrong, cap;
    int      failed;            /* something that is no fault of a picture's: */
    dt_err   err;
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

static int measure(struct job *j, const dt_meta_item *it, dt_size *size, dt_err *err)
{
    dt_image_info info;
    if (j->s->trust_sizes && it->w && !j->s->verify_images) {
        *size = (dt_size){ it->w, it->h };
        return 0;
    }
    int rc = probe(j, it, &info, err);
    if (rc == 0 && j->s->verify_images) {
        int64_t entered = dt_image_gate_enter(&j->gate, (int64_t)info.w * info.h, info.file_bytes);
        rc = decode(j, it, err);
        dt_image_gate_leave(&j->gate, entered);
    }
    if (rc < 0)
        return rc;
    *size = (dt_size){ info.w, info.h };
    if (it->w && (it->w != info.w || it->h != info.h))
        __atomic_fetch_add(&j->differs, 1, __ATOMIC_RELAXED);
    return 0;
}

/* It is left out; what is short of memory, or of a temporary file, ends the whole. */
static void give_up(struct job *j, int64_t i, bool its_fault, const dt_err *err)
{
    pthread_mutex_lock(&j->lock);
    if (its_fault && err->code != DT_ENOMEM) {
        dt_grow(&j->wrong, &j->cap, j->n_wrong + 1, sizeof *j->wrong);
        j->wrong[j->n_wrong++] = (struct wrong){ i, dt_strdup(err->msg) };
        j->m->v[i].queue = -1;
    } else if (!j->failed) {
        j->err = *err;
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&j->lock);
}

static void look(struct job *j, int64_t i, dt_tape_reader *words)
{
    dt_meta_item it;
    dt_size size = { 1, 1 };
    dt_err err = { 0 };
    bool there = dt_meta_get(j->m, i, words, &it, &err) == 0;
    if (!there || measure(j, &it, &size, &err) < 0)
        give_up(j, i, there, &err);
    j->m->v[i].w1 = (uint16_t)(size.w - 1);
    j->m->v[i].h1 = (uint16_t)(size.h - 1);
}

static bool stopped(const struct job *j)
{
    return (j->s->stop && *j->s->stop) || __atomic_load_n(&j->failed, __ATOMIC_RELAXED);
}

static int64_t take(struct job *j)
{
    return __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
}

static void *work(void *p)
{
    struct job *j = p;
    dt_tape_reader words = { 0 };
    for (int64_t i; !stopped(j) && (i = take(j)) < j->m->n; )
        look(j, i, &words);
    dt_tape_reader_release(&words);
    return NULL;
}

static void run(struct job *j)
{
    pthread_t t[MAX_THREADS];
    dt_tape_reader words = { 0 };
    int64_t want = j->s->dataloader_num_workers ? j->s->dataloader_num_workers : 2 * sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0;
    want = want > MAX_THREADS ? MAX_THREADS : want > j->m->n ? j->m->n : want;
    while (n < want - 1 && pthread_create(&t[n], NULL, work, j) == 0)
        n++;
    for (int64_t i; !stopped(j) && (i = take(j)) < j->m->n; ) {     /* this thread is one of them */
        look(j, i, &words);
        if (j->s->progress && i % 16 == 0)
            dt_progress_step(j->s->progress, i);
    }
    if (j->s->progress)
        dt_progress_step(j->s->progress, j->m->n);
    while (n)
        pthread_join(t[--n], NULL);
    dt_tape_reader_release(&words);
}

void dt_pictures_keep(dt_meta *m)
{
    int64_t n = 0;
    for (int64_t i = 0; i < m->n; i++)
        if (m->v[i].queue >= 0)
            m->v[n++] = m->v[i];
    m->n = n;
}

static int by_place(const void *a, const void *b)
{
    const struct wrong *x = a, *y = b;
    return x->at < y->at ? -1 : x->at > y->at;
}

static void list_wrong(struct job *j)
{
    if (j->n_wrong)
        qsort(j->wrong, (size_t)j->n_wrong, sizeof *j->wrong, by_place);
    for (int64_t i = 0; i < j->n_wrong; i++)
        dt_strs_add(&j->m->skipped, j->wrong[i].why);
}

/* --max_train_samples: that many, chosen by seed, in their old order. */
static void keep_some(dt_meta *m, int64_t want, uint64_t seed)
{
    if (!want || want >= m->n)
        return;
    uint32_t *perm = dt_alloc((size_t)m->n * sizeof *perm);
    dt_rng r = dt_rng_make(seed, DT_RNG_SHUFFLE, 0, DT_SHUFFLE_CHOICE);
    dt_rng_permute(perm, m->n, &r);
    for (int64_t i = want; i < m->n; i++)
        m->v[perm[i]].queue = -1;
    dt_pictures_keep(m);
    free(perm);
}

static int judge(const dt_meta *m, const char *where, double max_fraction, dt_err *err)
{
    int64_t bad = m->entries - m->n;
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
    struct job j = { .m = m, .s = s, .lock = PTHREAD_MUTEX_INITIALIZER };
    dt_image_gate_init(&j.gate);
    run(&j);
    dt_image_gate_release(&j.gate);
    if (stopped(&j)) {
        rc = j.failed ? dt_err_set(err, j.err.code, "%s", j.err.msg) : dt_err_set(err, DT_ESIGNAL, "stopped");
    } else {
        list_wrong(&j);
        dt_pictures_keep(m);
        rc = judge(m, where, s->max_skipped_fraction, err);
        keep_some(m, s->max_train_samples, s->seed);
    }
    take_notes(m, r, report);
    report->size_differs = j.differs;
    report->items = m->n;
    for (int64_t i = 0; i < m->n; i++)
        report->no_caption += m->v[i].mute;
    report->skipped = m->skipped;
    m->skipped = (dt_strs){ 0 };
    for (int64_t i = 0; i < j.n_wrong; i++)
        free(j.wrong[i].why);
    free(j.wrong);
    return rc;
}
