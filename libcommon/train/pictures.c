/* pictures.c - pictures made ready by threads.  See pictures.h.
 *
 * A ring of slots: a thread takes the next request and its slot, works outside the lock; the consumer
 * takes slots in order. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/mem.h"
#include "train/pictures.h"

enum { MAX_THREADS = 64, SLOTS_PER_THREAD = 3 };

struct slot {
    bool ready;
    dt_got_picture got;
};

struct dt_pictures {
    struct dt_pictures_params p;
    struct slot *slot;
    int64_t nslot, head, tail;      /* next to hand out, next to work on */
    bool quit;
    pthread_t thread[MAX_THREADS];
    int nthread;
    pthread_mutex_t lock;
    pthread_cond_t  moved;
    dt_image_gate   gate;
};

int dt_want_item(const dt_batches *plan, const dt_want_picture *w, dt_batch_item *it, dt_plan_item **own, dt_err *err)
{
    int rc = dt_batches_item(plan, w->at, own, err);
    *it = (dt_batch_item){ .at = w->at, .item = *own, .resize_w = w->resize_w, .resize_h = w->resize_h,
                           .crop_x = w->crop_x, .crop_y = w->crop_y, .flip = w->flip };
    return rc;
}

static int make_ready(dt_got_picture *got, const dt_plan_item *it, const dt_want_picture *w, const char *data,
                      size_t bytes)
{
    dt_image in = { 0 };
    dt_image_info info;
    int rc = dt_image_probe_mem(&info, data, bytes, it->path, NULL, &got->err);
    if (rc == 0 && (info.w != it->w || info.h != it->h))
        rc = dt_err_set(&got->err, DT_EDATA, "%s: is %dx%d px, the plan says %dx%d; make the plan again",
                        it->path, info.w, info.h, it->w, it->h);
    if (rc == 0)
        rc = dt_image_decode(&in, data, bytes, it->path, NULL, &got->err);
    if (rc == 0)
        rc = dt_image_resize(&got->im, &in, w->resize_w, w->resize_h, w->crop_x, w->crop_y, w->w, w->h, &got->err);
    if (rc == 0 && w->flip)
        dt_image_flip(&got->im);
    dt_image_release(&in);
    return rc;
}

/* What is hashed and what is decoded are the same bytes, read once: a file replaced meanwhile cannot come under the old
 * one's hash.  gate: may be NULL. */
static void read_file(dt_got_picture *got, const dt_plan_item *it, const dt_want_picture *want, bool hash_only,
                      dt_image_gate *gate)
{
    const char *file = dt_plan_item_file(it);
    struct stat st;
    char *data = NULL;
    size_t bytes = 0;
    int64_t entered = 0;
    got->stat = dt_hash_stat(file);
    if (gate && stat(file, &st) == 0)
        entered = dt_image_gate_enter(gate, hash_only ? 0 : (int64_t)it->w * it->h, it->tar ? it->bytes : st.st_size);
    got->rc = dt_plan_item_read(&data, &bytes, it, &got->err);
    if (got->rc == 0)
        got->source = dt_hash_bytes(data, bytes);
    if (got->rc == 0 && !hash_only)
        got->rc = make_ready(got, it, want, data, bytes);
    free(data);
    if (entered)
        dt_image_gate_leave(gate, entered);
}

static void get(dt_got_picture *got, const dt_batches *plan, const dt_want_picture *want, bool hash_only,
                dt_image_gate *gate)
{
    dt_plan_item *it;
    got->err = (dt_err){ 0 };
    got->im = (dt_image){ 0 };
    got->rc = dt_batches_item(plan, want->at, &it, &got->err);
    if (got->rc < 0)
        got->rc = got->rc == DT_EDATA ? DT_EFAIL : got->rc;     /* a fault of the plan, not of a picture */
    else
        read_file(got, it, want, hash_only, gate);
    free(it);
}

void dt_picture_get(dt_got_picture *got, const dt_batches *plan, const dt_want_picture *want, bool hash_only)
{
    get(got, plan, want, hash_only, NULL);
}

static int64_t place(const struct dt_pictures_params *p, int64_t k) { return p->order ? p->order[k] : k; }

static void *worker(void *arg)
{
    dt_pictures *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->quit && p->tail < p->p.n) {
        if (p->tail - p->head >= p->nslot) {
            pthread_cond_wait(&p->moved, &p->lock);
            continue;
        }
        int64_t k = p->tail++;
        struct slot *s = &p->slot[k % p->nslot];
        pthread_mutex_unlock(&p->lock);
        s->got.i = place(&p->p, k);
        get(&s->got, p->p.plan, &p->p.want[s->got.i], p->p.hash_only, &p->gate);
        pthread_mutex_lock(&p->lock);
        s->ready = true;
        pthread_cond_broadcast(&p->moved);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int threads_of(const struct dt_pictures_params *p)
{
    return p->threads < 1 ? 1 : p->threads > MAX_THREADS ? MAX_THREADS : p->threads;
}

/* A thread has the file, the decoded picture and that in its new width; a slot has the result. */
int64_t dt_pictures_bytes(const struct dt_pictures_params *p)
{
    int64_t work = 0, ready = 0, threads = threads_of(p), slots = SLOTS_PER_THREAD * threads;
    for (int64_t k = 0; k < p->n; k++) {
        const dt_want_picture *w = &p->want[place(p, k)];
        dt_plan_item *it;
        struct stat st;
        if (dt_batches_item(p->plan, w->at, &it, NULL) < 0)
            continue;
        int64_t bytes = it->tar ? it->bytes : stat(it->path, &st) ? 0 : st.st_size, rgb = 3 * (int64_t)w->w * w->h;
        bytes += 3 * (int64_t)(it->w + w->w) * it->h;
        free(it);
        work = bytes > work ? bytes : work;
        ready = rgb > ready ? rgb : ready;
    }
    return work * (p->n < threads ? p->n : threads) + ready * (p->n < slots ? p->n : slots);
}

int dt_pictures_open(dt_pictures **out, const struct dt_pictures_params *params, dt_err *err)
{
    dt_pictures *p = dt_alloc(sizeof(*p));
    int want = threads_of(params);
    p->p = *params;
    p->nslot = SLOTS_PER_THREAD * want;
    p->slot = dt_alloc((size_t)p->nslot * sizeof(*p->slot));
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->moved, NULL);
    dt_image_gate_init(&p->gate);
    while (p->nthread < want && pthread_create(&p->thread[p->nthread], NULL, worker, p) == 0)
        p->nthread++;
    *out = p;
    if (p->nthread)
        return 0;
    dt_pictures_close(out);
    return dt_err_set(err, DT_ENOMEM, "no memory for a thread that reads pictures");
}

int dt_pictures_next(dt_pictures *p, dt_got_picture *got)
{
    if (p->head >= p->p.n)
        return 0;
    pthread_mutex_lock(&p->lock);
    struct slot *s = &p->slot[p->head % p->nslot];
    while (!s->ready)
        pthread_cond_wait(&p->moved, &p->lock);
    *got = s->got;
    s->got.im = (dt_image){ 0 };
    s->ready = false;
    p->head++;
    pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
    return 1;
}

void dt_pictures_close(dt_pictures **pp)
{
    dt_pictures *p = *pp;
    *pp = NULL;
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->moved);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->nthread; i++)
        pthread_join(p->thread[i], NULL);
    for (int64_t i = 0; i < p->nslot; i++)
        dt_image_release(&p->slot[i].got.im);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->moved);
    dt_image_gate_release(&p->gate);
    free(p->slot);
    free(p);
}
