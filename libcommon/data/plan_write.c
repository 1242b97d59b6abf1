/* plan_write.c - writes dt-plan(5).  The epochs are made twice: once to count, so that the header can say how
 * long the plan is and which pictures it uses, once to write. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "data/plan_int.h"

struct tally {                  /* of one size */
    dt_size  size;
    int64_t  batches, samples, items;
    uint8_t *met;               /* bit per picture; NULL where each picture has one size: plan.met will do */
};

struct plan {
    struct dt_rules rules;
    cJSON   *sources;           /* the metadata files as they were before they were read */
    dt_meta  m;
    FILE    *out;
    int64_t  limit;             /* batches, 0: no limit */
    uint8_t *met, *used;        /* bit per picture: in a batch, in one of this shard */
    dt_tape_reader words;
    dt_err   wrong;             /* the first error while a batch was written */
    struct tally *tally;
    int64_t  n_tally, cap;
    int64_t  mine;              /* batches of this shard */
    struct dt_plan_report *report;
};

static int get_bit(const uint8_t *bits, int64_t i) { return bits[i >> 3] >> (i & 7) & 1; }

/* 1 the first time. */
static int set_bit(uint8_t *bits, int64_t i)
{
    int first = !get_bit(bits, i);
    bits[i >> 3] |= 1 << (i & 7);
    return first;
}

static uint8_t *bit_each(const struct plan *p) { return dt_alloc((size_t)p->m.n / 8 + 1); }

static bool in_shard(const struct plan *p, int64_t index)
{
    return index % p->rules.shards == p->rules.shard;
}

static struct tally *tally_of(struct plan *p, dt_size s)
{
    for (int64_t i = 0; i < p->n_tally; i++)
        if (p->tally[i].size.w == s.w && p->tally[i].size.h == s.h)
            return &p->tally[i];
    dt_grow(&p->tally, &p->cap, p->n_tally + 1, sizeof *p->tally);
    const struct dt_data_settings *set = p->rules.s;
    bool drawn = !p->rules.sets && (set->random_ratio_crop || set->random_hw_adapt);
    p->tally[p->n_tally] = (struct tally){ .size = s, .met = drawn ? bit_each(p) : NULL };
    return &p->tally[p->n_tally++];
}

static void count_batch(struct plan *p, const struct dt_gen *g, const struct dt_made *b, int64_t index)
{
    struct tally *t = tally_of(p, b->size);
    t->batches++;
    t->samples += b->n;
    p->report->batches++;
    p->report->samples += b->n;
    p->report->short_batches += b->is_short;
    p->mine += in_shard(p, index);
    for (int i = 0; i < b->n; i++) {
        int64_t item = dt_gen_seat(g, b->at + i).item;
        int first = set_bit(p->met, item);
        t->items += t->met ? set_bit(t->met, item) : first;
        if (in_shard(p, index))
            set_bit(p->used, item);
    }
}

static dt_fit fit_of(const struct dt_rules *r, dt_size px, const dt_subset *sub, dt_size size)
{
    if (sub)
        return dt_dataset_fit(r->sets, &r->sets->set[sub->set], px.w, px.h, size);
    return r->fix.w ? dt_fit_stretch(size) : dt_fit_cover(px.w, px.h, size);
}

/* A caption of this place's own. */
static void write_drawn(struct plan *p, const dt_subset *sub, struct dt_seat seat)
{
    dt_meta_item it;
    if (p->wrong.code || dt_meta_get(&p->m, seat.item, &p->words, &it, &p->wrong) < 0)
        return;
    dt_rng r = dt_rng_make(p->rules.s->seed, DT_RNG_CAPTION_TAGS, dt_seat_when(seat), p->m.v[seat.item].id);
    char *text = dt_subset_caption(sub, it.text, &r);
    cJSON *s = cJSON_CreateString(text);
    char *quoted = dt_json_line(s);
    fprintf(p->out, ",\"text\":%s", quoted);
    free(quoted);
    cJSON_Delete(s);
    free(text);
}

static void write_seat(struct plan *p, const struct dt_made *b, struct dt_seat seat)
{
    const struct dt_data_settings *s = p->rules.s;
    const dt_meta_key *it = &p->m.v[seat.item];
    const dt_subset *sub = dt_rules_subset(&p->rules, &p->m, seat.item);
    dt_fit f = fit_of(&p->rules, dt_picture_size(it), sub, b->size);
    uint32_t when = dt_seat_when(seat);
    dt_rng flip = dt_rng_make(s->seed, DT_RNG_FLIP, when, it->id);
    dt_rng drop = dt_rng_make(s->seed, DT_RNG_CAPTION_DROP, when, it->id);
    bool flipped = (sub ? sub->flip : s->random_flip) && dt_rng_uniform(&flip) < 0.5;
    bool dropped = dt_rng_uniform(&drop) < (sub ? sub->drop : s->caption_dropout) ||
                   (sub && sub->drop_every && (seat.epoch + 1) % sub->drop_every == 0);

    fprintf(p->out, "{\"item\":%lld,\"resize\":[%d,%d],\"crop\":[%d,%d]%s%s", (long long)it->id, f.w, f.h, f.x, f.y,
            flipped ? ",\"flip\":true" : "", dropped ? ",\"drop\":true" : "");
    if (sub && !dropped && dt_subset_draws(sub))
        write_drawn(p, sub, seat);
    putc('}', p->out);
}

static void write_batch(struct plan *p, const struct dt_gen *g, const struct dt_made *b, int64_t index)
{
    if (!in_shard(p, index))
        return;
    fprintf(p->out, "{\"batch\":%lld,\"epoch\":%lld,\"size\":[%d,%d]%s,\"items\":[", (long long)index,
            (long long)g->epoch - 1, b->size.w, b->size.h,
            b->is_short ? ",\"short\":true" : "");
    for (int i = 0; i < b->n; i++) {
        if (i)
            putc(',', p->out);
        write_seat(p, b, dt_gen_seat(g, b->at + i));
    }
    fputs("]}\n", p->out);
}

static int check_out(const struct plan *p, dt_err *err)
{
    if (p->wrong.code)
        return dt_err_set(err, p->wrong.code, "%s", p->wrong.msg);
    return ferror(p->out) ? dt_err_sys(err, DT_EIO, "cannot write the plan") : 0;
}

/* All epochs; `each` sees every batch in order. */
static int all_epochs(struct plan *p,
                      void (*each)(struct plan *, const struct dt_gen *, const struct dt_made *, int64_t), dt_err *err)
{
    const struct dt_data_settings *s = p->rules.s;
    struct dt_gen g;
    int64_t index = 0;
    int rc = dt_gen_init(&g, &p->rules, &p->m, err);

    while (rc == 0 && (p->limit ? index < p->limit : g.epoch < s->num_train_epochs)) {
        dt_gen_epoch(&g, !p->limit && g.epoch == s->num_train_epochs - 1);
        for (int64_t i = 0; i < g.n && (!p->limit || index < p->limit); i++) {
            struct dt_made b = dt_gen_batch(&g, i);
            each(p, &g, &b, index++);
        }
        rc = s->stop && *s->stop ? dt_err_set(err, DT_ESIGNAL, "stopped") : check_out(p, err);
    }
    p->report->epochs = g.epoch;
    dt_gen_release(&g);
    return rc;
}

static void write_object(struct plan *p, cJSON *o)      /* takes o */
{
    char *line = dt_json_line(o);
    fprintf(p->out, "%s\n", line);
    free(line);
    cJSON_Delete(o);
}

static cJSON *two(double a, double b)
{
    return cJSON_CreateDoubleArray((double[]){ a, b }, 2);
}

/* A dataset_config's settings in the words of the options: its largest batch, its first size. */
static struct dt_data_settings in_words(const struct dt_rules *r)
{
    struct dt_data_settings s = *r->s;
    for (int i = 0; r->sets && i < r->sets->n_set; i++) {
        const dt_dataset *d = &r->sets->set[i];
        if (!i) {
            s.image_sample_size = (int64_t)(sqrt((double)d->reso.w * d->reso.h) + 0.5);
            s.enable_bucket = d->bucket;
            s.train_batch_size = 0;
        }
        s.train_batch_size = d->batch > s.train_batch_size ? d->batch : s.train_batch_size;
    }
    return s;
}

static void write_header(struct plan *p)
{
    const struct dt_data_settings words = in_words(&p->rules), *s = &words;
    const struct dt_plan_report *r = p->report;
    cJSON *o = cJSON_CreateObject(), *set = cJSON_CreateObject();
    const struct { const char *key; double v; } head[] = {
        { "dt_plan", 1 }, { "seed", s->seed }, { "items", r->used }, { "epochs", r->epochs }, { "batches", r->batches },
        { "samples", r->samples }, { "steps", r->steps }, { "train_batch_size", s->train_batch_size },
        { "gradient_accumulation_steps", s->gradient_accumulation_steps }, { "world_size", s->world_size },
    };
    for (size_t i = 0; i < sizeof head / sizeof *head; i++)
        cJSON_AddNumberToObject(o, head[i].key, head[i].v);
    if (p->rules.shards > 1)
        cJSON_AddItemToObject(o, "shard", two(p->rules.shard, p->rules.shards));
    if (s->dataset_config)
        cJSON_AddStringToObject(set, "dataset_config", s->dataset_config);
    cJSON_AddNumberToObject(set, "image_sample_size", s->image_sample_size);
    cJSON_AddBoolToObject(set, "enable_bucket", s->enable_bucket);
    cJSON_AddBoolToObject(set, "random_ratio_crop", s->random_ratio_crop);
    cJSON_AddBoolToObject(set, "random_hw_adapt", s->random_hw_adapt);
    if (p->rules.fix.w)
        cJSON_AddItemToObject(set, "fix_sample_size", two(p->rules.fix.h, p->rules.fix.w));
    cJSON_AddNumberToObject(set, "multiple", s->multiple);
    if (!s->dataset_config) {
        cJSON_AddBoolToObject(set, "random_flip", s->random_flip);
        cJSON_AddNumberToObject(set, "caption_dropout", s->caption_dropout);
    }
    cJSON_AddNumberToObject(set, "max_train_samples", s->max_train_samples);
    cJSON_AddItemToObject(o, "settings", set);
    if (p->sources->child)
        cJSON_AddItemReferenceToObject(o, "metadata", p->sources);
    write_object(p, o);
}

static void write_item(struct plan *p, const dt_meta_key *k, const dt_meta_item *it)
{
    dt_size px = dt_picture_size(k);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "item", k->id);
    cJSON_AddStringToObject(o, "path", it->path);
    cJSON_AddStringToObject(o, "text", it->text);
    cJSON_AddItemToObject(o, "size", two(px.w, px.h));
    if (it->tar >= 0) {
        cJSON *t = cJSON_AddObjectToObject(o, "tar");
        cJSON_AddStringToObject(t, "file", p->m.tars.v[it->tar]);
        cJSON_AddNumberToObject(t, "offset", (double)it->off);
        cJSON_AddNumberToObject(t, "bytes", (double)it->bytes);
    }
    if (it->extra)
        cJSON_AddRawToObject(o, "extra", it->extra);
    write_object(p, o);
}

static int write_items(struct plan *p, dt_err *err)
{
    dt_meta_item it;
    int rc = 0;
    for (int64_t i = 0; i < p->m.n && rc == 0; i++)
        if (get_bit(p->used, i) && (rc = dt_meta_get(&p->m, i, &p->words, &it, err)) == 0)
            write_item(p, &p->m.v[i], &it);
    return rc;
}

static void write_footer(struct plan *p)
{
    const struct dt_plan_report *r = p->report;
    cJSON *o = cJSON_CreateObject(), *list = cJSON_CreateArray();
    cJSON_AddBoolToObject(o, "end", 1);
    cJSON_AddNumberToObject(o, "batches", p->mine);
    cJSON_AddNumberToObject(o, "short_batches", r->short_batches);
    for (int i = 0; i < r->n_bucket; i++) {
        cJSON *b = cJSON_CreateObject();
        cJSON_AddItemToObject(b, "size", two(r->bucket[i].w, r->bucket[i].h));
        cJSON_AddNumberToObject(b, "items", r->bucket[i].items);
        cJSON_AddNumberToObject(b, "samples", r->bucket[i].samples);
        cJSON_AddNumberToObject(b, "batches", r->bucket[i].batches);
        cJSON_AddItemToArray(list, b);
    }
    cJSON_AddItemToObject(o, "buckets", list);
    list = cJSON_CreateArray();
    for (int64_t i = 0; i < r->skipped.n; i++)
        cJSON_AddItemToArray(list, cJSON_CreateString(r->skipped.v[i]));
    cJSON_AddItemToObject(o, "skipped", list);
    write_object(p, o);
}

static int by_area(const void *a, const void *b)
{
    const struct dt_bucket_count *x = a, *y = b;
    int64_t d = (int64_t)x->w * x->h - (int64_t)y->w * y->h;
    return d ? (d < 0 ? -1 : 1) : x->w - y->w;
}

static void fill_report(struct plan *p)
{
    const struct dt_data_settings *s = p->rules.s;
    struct dt_plan_report *r = p->report;
    int64_t per_step = s->gradient_accumulation_steps * s->world_size;

    r->steps = (r->batches + per_step - 1) / per_step;
    for (int64_t i = 0; i < p->m.n; i++) {
        r->used += get_bit(p->used, i);
        r->unreached += !get_bit(p->met, i);
    }
    r->n_bucket = p->n_tally;
    r->bucket = dt_alloc(p->n_tally * sizeof *r->bucket);
    for (int64_t i = 0; i < p->n_tally; i++) {
        const struct tally *t = &p->tally[i];
        r->bucket[i] = (struct dt_bucket_count){ t->size.w, t->size.h, t->batches, t->samples, t->items };
    }
    qsort(r->bucket, r->n_bucket, sizeof *r->bucket, by_area);
}

int dt_plan_make(FILE *out, const struct dt_data_settings *s, struct dt_plan_report *report, dt_err *err)
{
    struct plan p = { .out = out, .report = report };
    int rc;

    *report = (struct dt_plan_report){ 0 };
    if ((rc = dt_rules_init(&p.rules, s, err)) < 0)
        goto out;
    p.sources = dt_plan_sources(&p.rules);
    if ((rc = dt_pictures_read(&p.m, &p.rules, report, err)) < 0)
        goto out;
    if ((rc = dt_rules_assign(&p.rules, &p.m, report, err)) < 0)
        goto out;
    if (!p.m.n) {
        rc = dt_err_set(err, DT_EDATA, "%s: its rules leave out every picture", s->dataset_config);
        goto out;
    }
    p.limit = s->max_train_steps * s->gradient_accumulation_steps * s->world_size;
    p.met = bit_each(&p);
    p.used = bit_each(&p);
    if ((rc = all_epochs(&p, count_batch, err)) < 0)
        goto out;
    fill_report(&p);
    write_header(&p);
    if ((rc = write_items(&p, err)) < 0 || (rc = all_epochs(&p, write_batch, err)) < 0)
        goto out;
    write_footer(&p);
    fflush(out);
    rc = check_out(&p, err);
out:
    for (int64_t i = 0; i < p.n_tally; i++)
        free(p.tally[i].met);
    free(p.tally);
    free(p.met);
    free(p.used);
    dt_tape_reader_release(&p.words);
    cJSON_Delete(p.sources);
    dt_rules_release(&p.rules);
    dt_meta_release(&p.m);
    return rc;
}

void dt_plan_report_release(struct dt_plan_report *r)
{
    dt_strs_release(&r->skipped);
    dt_strs_release(&r->notes);
    free(r->bucket);
    *r = (struct dt_plan_report){ 0 };
}
