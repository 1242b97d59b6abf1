/* plan_epoch.c - which pictures meet in which batch.
 *
 * Every epoch draws each picture once, in an order of its own, into the queue of its bucket; a queue that holds
 * train_batch_size pictures becomes a batch.  What waits at the end of an epoch is first in line in the next
 * one, with the draws of the epoch it came from.  Then the epoch's batches are shuffled as a whole. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "data/data_opts.h"
#include "data/plan_int.h"

static int parse_side(int64_t *px, const char *word)
{
    char *end;
    *px = strtoll(word, &end, 10);
    return end == word || *end || *px < 1 || *px > 65536 ? -1 : 0;
}

/* Sizes by aspect are the same for all scales: then no picture can tell the two aspects apart. */
static bool same_sizes(const struct dt_aspect *a, const struct dt_aspect *b, const struct dt_data_settings *s)
{
    double ratio[6];
    int n = s->random_hw_adapt ? dt_bucket_ratios(ratio, s->image_sample_size) : (ratio[0] = 1, 1);
    for (int i = 0; i < n; i++) {
        dt_size x = dt_bucket_size(a, s->image_sample_size, ratio[i], s->multiple);
        dt_size y = dt_bucket_size(b, s->image_sample_size, ratio[i], s->multiple);
        if (x.w != y.w || x.h != y.h)
            return false;
    }
    return true;
}

static int parse_fix(struct dt_rules *r, const struct dt_data_settings *s, dt_err *err)
{
    int64_t h, w;
    if (!s->fix_sample_size.n)
        return 0;
    if (s->fix_sample_size.n != 2 || parse_side(&h, s->fix_sample_size.v[0]) < 0 ||
        parse_side(&w, s->fix_sample_size.v[1]) < 0)
        return dt_err_set(err, DT_EUSAGE, "--fix_sample_size takes two numbers, height and width in pixels");
    r->fix = (dt_size){ .w = w / s->multiple * s->multiple, .h = h / s->multiple * s->multiple };
    if (!r->fix.w || !r->fix.h)
        return dt_err_set(err, DT_EUSAGE, "--fix_sample_size: a side is below --multiple %lld", (long long)s->multiple);
    if (s->random_ratio_crop || s->random_hw_adapt)
        return dt_err_set(err, DT_EUSAGE, "--%s has no effect with --fix_sample_size",
                          s->random_ratio_crop ? "random_ratio_crop" : "random_hw_adapt");
    return 0;
}

int dt_shard_parse(int64_t *shard, int64_t *shards, const char *text, dt_err *err)
{
    long long i = 0, n = 1;
    int end = 0;
    if (text && (sscanf(text, "%lld/%lld%n", &i, &n, &end) != 2 || text[end] || i < 0 || i >= n))
        return dt_err_set(err, DT_EUSAGE, "--shard takes I/N with 0 <= I < N, not '%s'", text);
    *shard = i;
    *shards = n;
    return 0;
}

int dt_rules_init(struct dt_rules *r, const struct dt_data_settings *s, dt_err *err)
{
    double ratio[6] = { 1 };
    int n = s->random_hw_adapt ? dt_bucket_ratios(ratio, s->image_sample_size) : 1;
    dt_size least = dt_bucket_size(&dt_aspect_512[0], s->image_sample_size, ratio[n - 1], s->multiple);

    *r = (struct dt_rules){ .s = s, .shards = 1 };
    if (s->dataset_config) {
        int bad = dt_shard_parse(&r->shard, &r->shards, s->shard, err);
        return bad < 0 ? bad : dt_datasets_open(&r->sets, s->dataset_config, s->multiple, err);
    }
    if (!s->train_data_dir && !s->train_data_meta)
        return dt_err_set(err, DT_EUSAGE, "no data: name a folder or a metadata file");
    if (!s->enable_bucket && (s->random_ratio_crop || s->random_hw_adapt))
        return dt_err_set(err, DT_EUSAGE, "--%s needs --enable_bucket",
                          s->random_ratio_crop ? "random_ratio_crop" : "random_hw_adapt");
    if (s->random_hw_adapt && n == 1)
        return dt_err_set(err, DT_EUSAGE, "--random_hw_adapt has no smaller size for --image_sample_size %lld: "
                          "it begins at 768", (long long)s->image_sample_size);
    if (s->image_sample_size < s->multiple || (s->enable_bucket && !s->fix_sample_size.n && (!least.w || !least.h)))
        return dt_err_set(err, DT_EUSAGE,
                          "--image_sample_size %lld is too small: a side would be below --multiple %lld",
                          (long long)s->image_sample_size, (long long)s->multiple);
    int rc = parse_fix(r, s, err);
    if (rc < 0 || (rc = dt_shard_parse(&r->shard, &r->shards, s->shard, err)) < 0)
        return rc;
    for (int i = 0; i < DT_N_ASPECT; i++)
        while (r->group[i] < i && !same_sizes(&dt_aspect_512[r->group[i]], &dt_aspect_512[i], s))
            r->group[i]++;
    return 0;
}

int dt_data_config_alone(const dt_cli *cli, int argc, char **argv, dt_err *err)
{
    static const char *const said[] = {
        "train_data_dir", "train_data_meta", "train_batch_size", "image_sample_size", "enable_bucket",
        "random_ratio_crop",
        "random_hw_adapt", "fix_sample_size", "random_flip", "caption_dropout", "folder_repeats", "trust_sizes",
    };
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (dt_cli_given(cli, argc, argv, said[i]))
            return dt_err_set(err, DT_EUSAGE, "--%s has no effect with --dataset_config: the file says it", said[i]);
    return 0;
}

int dt_data_settings_check(const struct dt_data_settings *s, dt_err *err)
{
    struct dt_rules r;
    int rc = dt_rules_init(&r, s, err);
    dt_rules_release(&r);
    return rc;
}

void dt_rules_release(struct dt_rules *r)
{
    dt_datasets_close(&r->sets);
    free(r->queue);
    r->queue = NULL;
}

/* The queue of a picture.  Where the target does not depend on the picture there is one queue. */
static int queue_of(const struct dt_rules *r, dt_size px)
{
    if (r->fix.w || r->s->random_ratio_crop || !r->s->enable_bucket)
        return 0;
    return r->group[dt_bucket_closest(px.w, px.h)];
}

static int queue_at(struct dt_rules *r, int set, dt_size size)
{
    int64_t q = 0;
    while (q < r->n_queue && (r->queue[q].set != set || r->queue[q].size.w != size.w || r->queue[q].size.h != size.h))
        q++;
    if (q == r->n_queue) {
        dt_grow(&r->queue, &r->cap, q + 1, sizeof *r->queue);
        r->queue[r->n_queue++] = (struct dt_queue_of){ set, size };
    }
    return (int)q;
}

/* A queue by the dataset_config, -1: left out by its rule, -2: the picture is too small. */
static int set_queue(struct dt_rules *r, const dt_subset *sub, dt_size px)
{
    int set = sub->set;
    const dt_dataset *d = &r->sets->set[set];
    if ((int64_t)px.w * px.h <= (int64_t)d->skip.w * d->skip.h)
        return -1;
    dt_size size = dt_dataset_size(r->sets, d, px.w, px.h);
    return size.w && size.h ? queue_at(r, set, size) : -2;
}

int dt_rules_assign(struct dt_rules *r, dt_meta *m, struct dt_plan_report *report, dt_err *err)
{
    dt_tape_reader words = { 0 };
    int rc = 0;
    for (int64_t i = 0; i < m->n && rc == 0; i++) {
        dt_size px = dt_picture_size(&m->v[i]);
        int queue = r->sets ? set_queue(r, dt_rules_subset(r, m, i), px) : queue_of(r, px);
        dt_meta_item it;
        if (queue == -2 && (rc = dt_meta_get(m, i, &words, &it, err)) == 0) {
            char *line = dt_sprintf("%s: %dx%d is smaller than one step of its buckets, and bucket_no_upscale is set",
                                    it.path, px.w, px.h);
            dt_strs_add(&report->skipped, line);
            free(line);
        }
        report->left_out += queue == -1;
        m->v[i].queue = queue;
    }
    dt_tape_reader_release(&words);
    dt_pictures_keep(m);
    report->items = m->n;
    return rc;
}

/* Size of a batch: drawn once, keyed by the picture that has waited longest. */
static dt_size target(const struct dt_gen *g, int queue, struct dt_seat first)
{
    const struct dt_data_settings *s = g->rules->s;
    int base = s->image_sample_size;
    if (g->rules->sets)
        return g->rules->queue[queue].size;
    if (g->rules->fix.w)
        return g->rules->fix;
    if (!s->enable_bucket)
        return (dt_size){ base / s->multiple * s->multiple, base / s->multiple * s->multiple };
    dt_rng r = dt_rng_make(s->seed, DT_RNG_SIZE, dt_seat_when(first), g->m->v[first.item].id);
    const struct dt_aspect *a = s->random_ratio_crop ? &dt_aspect_crop_512[dt_bucket_draw_aspect(&r)]
                                                     : &dt_aspect_512[queue];
    return dt_bucket_size(a, base, s->random_hw_adapt ? dt_bucket_draw_ratio(base, &r) : 1, s->multiple);
}

static int64_t batch_of(const struct dt_gen *g, int queue)
{
    const struct dt_rules *r = g->rules;
    return r->sets ? r->sets->set[r->queue[queue].set].batch : r->s->train_batch_size;
}

static void emit(struct dt_gen *g, int queue)
{
    struct dt_waiting *q = &g->queue[queue];
    dt_grow(&g->at, &g->at_cap, g->n + 1, sizeof *g->at);
    g->at[g->n++] = (uint32_t)g->seats;
    memcpy(g->seat + g->seats, q->v, (size_t)q->n * sizeof *q->v);
    g->seats += q->n;
    q->n = 0;
}

static void shuffle_batches(struct dt_gen *g)
{
    g->n_full = g->n;
    if (!g->n)                  /* every queue is still waiting */
        return;
    dt_rng r = dt_rng_make(g->rules->s->seed, DT_RNG_SHUFFLE, g->epoch, DT_SHUFFLE_BATCHES);
    g->order = dt_realloc(g->order, (size_t)g->n * sizeof *g->order);
    dt_rng_permute(g->order, g->n, &r);
}

int dt_gen_init(struct dt_gen *g, const struct dt_rules *r, const dt_meta *m, dt_err *err)
{
    *g = (struct dt_gen){ .rules = r, .m = m, .n_queue = r->sets ? r->n_queue : DT_N_ASPECT };
    for (int64_t i = 0; i < m->n; i++) {
        int64_t repeats = m->from[m->v[i].from].repeats;
        if (!g->n_stretch || g->stretch[g->n_stretch - 1].repeats != repeats) {
            dt_grow(&g->stretch, &g->stretch_cap, g->n_stretch + 1, sizeof *g->stretch);
            g->stretch[g->n_stretch++] = (struct dt_stretch){ i, g->places, repeats };
        }
        g->places += repeats;
    }
    g->queue = dt_alloc((size_t)(g->n_queue + 1) * sizeof *g->queue);
    if (g->places > DT_MAX_PLACES)
        return dt_err_set(err, DT_EDATA, "an epoch of %lld pictures, repeats counted: more than %d",
                          (long long)g->places, DT_MAX_PLACES);
    return 0;
}

static const struct dt_stretch *stretch_of(const struct dt_gen *g, uint32_t place)
{
    int64_t a = 0, b = g->n_stretch;
    while (b - a > 1) {
        int64_t mid = a + (b - a) / 2;
        if (g->stretch[mid].place <= place)
            a = mid;
        else
            b = mid;
    }
    return &g->stretch[a];
}

static struct dt_seat seat_of(const struct dt_gen *g, uint32_t code)
{
    if (code & DT_KEPT)
        return g->kept[code & ~DT_KEPT];
    const struct dt_stretch *s = stretch_of(g, code);
    uint32_t k = code - (uint32_t)s->place, repeats = (uint32_t)s->repeats;
    return (struct dt_seat){ .item = s->item + k / repeats, .repeat = (int)(k % repeats), .epoch = g->epoch - 1 };
}

struct dt_seat dt_gen_seat(const struct dt_gen *g, int64_t at)
{
    return seat_of(g, g->seat[at]);
}

struct dt_made dt_gen_batch(const struct dt_gen *g, int64_t k)
{
    int64_t i = k < g->n_full ? g->order[k] : k, end = i + 1 < g->n ? g->at[i + 1] : g->seats;
    struct dt_seat first = dt_gen_seat(g, g->at[i]);
    return (struct dt_made){ .size = target(g, g->m->v[first.item].queue, first), .at = g->at[i],
                             .n = (int)(end - g->at[i]), .is_short = k >= g->n_full };
}

/* What waits is no place of the next epoch: it gets a seat that says all. */
static void keep_waiting(struct dt_gen *g)
{
    int64_t n = 0;
    for (int64_t q = 0; q < g->n_queue; q++)
        n += g->queue[q].n;
    struct dt_seat *kept = dt_alloc((size_t)n * sizeof *kept);
    n = 0;
    for (int64_t q = 0; q < g->n_queue; q++)
        for (int64_t i = 0; i < g->queue[q].n; i++, n++) {
            kept[n] = seat_of(g, g->queue[q].v[i]);
            g->queue[q].v[i] = DT_KEPT | (uint32_t)n;
        }
    free(g->kept);
    g->kept = kept;
    g->n_kept = n;
}

void dt_gen_epoch(struct dt_gen *g, bool last)
{
    const dt_meta *m = g->m;
    dt_rng r = dt_rng_make(g->rules->s->seed, DT_RNG_SHUFFLE, g->epoch, DT_SHUFFLE_ITEMS);

    keep_waiting(g);
    g->n = g->seats = 0;
    g->seat = dt_realloc(g->seat, (size_t)(g->n_kept + g->places) * sizeof *g->seat);
    uint32_t *perm = g->seat + g->n_kept;       /* seats take its place: there are never more than were taken from it */
    dt_rng_permute(perm, g->places, &r);
    for (int64_t i = 0; i < g->places; i++) {
        const struct dt_stretch *s = stretch_of(g, perm[i]);
        int q = m->v[s->item + (perm[i] - (uint32_t)s->place) / (uint32_t)s->repeats].queue;
        struct dt_waiting *w = &g->queue[q];
        dt_grow(&w->v, &w->cap, w->n + 1, sizeof *w->v);
        w->v[w->n++] = perm[i];
        if (w->n == batch_of(g, q))
            emit(g, q);
    }
    shuffle_batches(g);
    for (int q = 0; last && q < g->n_queue; q++)
        if (g->queue[q].n)
            emit(g, q);
    g->epoch++;
}

void dt_gen_release(struct dt_gen *g)
{
    for (int64_t q = 0; g->queue && q < g->n_queue; q++)
        free(g->queue[q].v);
    free(g->queue);
    free(g->stretch);
    free(g->kept);
    free(g->seat);
    free(g->order);
    free(g->at);
}
