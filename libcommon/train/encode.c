/* encode.c - fills a cache with what a plan asks for.  See encode.h. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "tensor/safetensors.h"
#include "train/encode_int.h"

void dt_encode_report_release(struct dt_encode_report *r)
{
    dt_strs_release(&r->skipped);
}

bool dt_enc_stopped(const dt_enc *e) { return e->p->stop && *e->p->stop; }

void dt_enc_say(const dt_enc *e, bool warning, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    if (!e->p->say)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    e->p->say(e->p->ctx, warning, line);
}

/* --- the plan --- */

/* A file to go through twice: the plan itself, or a copy of what comes through a pipe. */
static int open_plan(dt_enc *e, dt_err *err)
{
    struct stat st;
    bool in = !strcmp(e->p->plan, "-");
    FILE *f = in ? stdin : fopen(e->p->plan, "re");
    if (!f)
        return dt_err_open(err, e->p->plan);
    if (!in && !fstat(fileno(f), &st) && S_ISREG(st.st_mode)) {
        e->plan_file = f;
        return 0;
    }
    e->plan_file = tmpfile();
    int rc = e->plan_file ? 0 : dt_err_sys(err, DT_EIO, "cannot make a temporary file for the plan");
    char buf[1 << 16];
    for (size_t n; rc == 0 && (n = fread(buf, 1, sizeof(buf), f)) > 0;)
        if (fwrite(buf, 1, n, e->plan_file) != n)
            rc = dt_err_sys(err, DT_EIO, "cannot write a temporary copy of the plan");
    if (rc == 0 && fflush(e->plan_file))
        rc = dt_err_sys(err, DT_EIO, "cannot write a temporary copy of the plan");
    if (rc == 0)
        rewind(e->plan_file);
    if (!in)
        fclose(f);
    return rc;
}

static bool mine(const dt_enc *e, const char *name)
{
    if (e->p->shards <= 1)
        return true;
    char first[16] = { 0 };
    dt_hash h = dt_hash_bytes(name, strlen(name));
    memcpy(first, h.hex, sizeof(first) - 1);
    return (int64_t)(strtoull(first, NULL, 16) % (uint64_t)e->p->shards) == e->p->shard;
}

static void want_picture(dt_enc *e, const dt_batch *b, const dt_batch_item *it)
{
    char *req = dt_cache_request(it, b->w, b->h);
    if (dt_strmap_get(e->reqs, req) >= 0 || !mine(e, it->item->path)) {
        free(req);
        return;
    }
    int64_t cap = e->cap;
    dt_grow(&e->want, &cap, e->n + 1, sizeof(*e->want));
    dt_grow(&e->image, &e->cap, e->n + 1, sizeof(*e->image));
    e->want[e->n] = (dt_want_picture){ .item = it->item, .at = *it, .w = b->w, .h = b->h, .req = req };
    e->image[e->n] = (struct dt_enc_image){ .place = -1 };
    dt_strmap_add(e->reqs, req, e->n);
    dt_strmap_add(e->paths, it->item->path, e->n++);
}

static void want_caption(dt_enc *e, const char *text)
{
    if (e->p->pictures_only || dt_strmap_get(e->captions, text) >= 0 || !mine(e, text))
        return;
    dt_grow(&e->caption, &e->texts_cap, e->texts + 1, sizeof(*e->caption));
    e->caption[e->texts] = text;
    dt_strmap_add(e->captions, text, e->texts++);
}

static int collect(dt_enc *e, dt_err *err)
{
    bool in = !strcmp(e->p->plan, "-");
    dt_batch b;
    int fd = dup(fileno(e->plan_file)), rc;
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    if (!f)
        return dt_err_sys(err, DT_EFAIL, "cannot read the plan");
    if ((rc = dt_batches_open_file(&e->plan, f, in ? "<stdin>" : e->p->plan, err)) < 0)
        return rc;
    e->reqs = dt_strmap_new();
    e->captions = dt_strmap_new();
    e->paths = dt_strmap_new();
    e->bad = dt_strmap_new();
    while ((rc = dt_batches_next(e->plan, &b, err)) == 1)
        for (int i = 0; i < b.n; i++) {
            want_picture(e, &b, &b.item[i]);
            want_caption(e, b.item[i].text);
        }
    e->text_place = dt_alloc((size_t)(e->texts + 1) * sizeof(*e->text_place));
    e->text_len = dt_alloc((size_t)(e->texts + 1) * sizeof(*e->text_len));
    for (int64_t i = 0; i < e->texts; i++)
        e->text_place[i] = -1;
    for (int64_t i = 0; i < e->n; i++)
        e->r->paths += dt_strmap_get(e->paths, e->want[i].item->path) == i;
    e->r->images.wanted = e->n;
    e->r->texts.wanted = e->texts;
    return rc;
}

/* --- the recipe --- */

/* The hash that an earlier run computed for files with this stat. */
static bool remembered(void *ctx, dt_cache_part *part)
{
    const dt_enc *e = ctx;
    const dt_cache_index *x;
    for (int64_t i = 0; e->store && (x = dt_cache_store_index(e->store, i)); i++) {
        const dt_cache_part *q = dt_cache_recipe_part(&x->recipe, part->name);
        if (q && !strcmp(q->stat.hex, part->stat.hex)) {
            part->hash = q->hash;
            return true;
        }
    }
    return false;
}

static int make_recipe(dt_enc *e, dt_err *err)
{
    dt_cache_recipe *r = &e->recipe;
    int rc = dt_flux_pipe_tokenizers(e->p->pipe, err);
    *r = (dt_cache_recipe){ .code = DT_ENC_CODE, .dtype = e->p->store, .compute = e->p->compute, .tile_px = e->p->tile_px,
                            .text_len = e->p->pipe->t5_len, .text_padding = e->p->pipe->text_padding };
    for (const struct dt_enc_part_kind *k = dt_enc_parts; k->name && rc == 0; k++)
        if (!k->text || !e->p->pictures_only)
            rc = dt_enc_part(&r->part[r->n++], e->p->pipe, k, remembered, e, err);
    return rc;
}

static int count_tokens(dt_enc *e, dt_err *err)
{
    for (int64_t i = 0; i < e->texts; i++)
        if ((e->text_len[i] = dt_flux_text_len(e->p->pipe, e->caption[i], err)) < 0)
            return (int)e->text_len[i];
    return 0;
}

/* --- life --- */

int dt_enc_open(dt_enc *e, const struct dt_encode_params *p, struct dt_encode_report *r, dt_err *err)
{
    *e = (dt_enc){ .p = p, .r = r };
    int rc = open_plan(e, err);
    if (rc == 0)
        rc = collect(e, err);
    if (rc == 0)
        rc = dt_cache_store_open(&e->store, &(struct dt_cache_store_params){ .dir = p->dir, .out = p->out,
                                 .shard = p->shard, .shards = p->shards, .max_bytes = p->max_shard_bytes }, err);
    for (int64_t i = 0; rc == 0 && i < dt_cache_store_broken(e->store)->n; i++)
        dt_enc_say(e, true, "%s; its entries are made again", dt_cache_store_broken(e->store)->v[i]);
    if (rc == 0)
        rc = make_recipe(e, err);
    return rc == 0 ? count_tokens(e, err) : rc;
}

void dt_enc_close(dt_enc *e)
{
    dt_flux_run_free(&e->text);
    dt_enc_close_images(e);
    dt_cache_store_close(&e->store);
    for (int64_t i = 0; i < e->n; i++)
        free(e->want[i].req);
    dt_strmap_free(&e->reqs);
    dt_strmap_free(&e->captions);
    dt_strmap_free(&e->paths);
    dt_strmap_free(&e->bad);
    dt_batches_close(&e->plan);
    if (e->plan_file)
        fclose(e->plan_file);
    free(e->want);
    free(e->image);
    free(e->caption);
    free(e->text_place);
    free(e->text_len);
}

void dt_enc_skip(dt_enc *e, int64_t i, const char *why)
{
    const char *path = e->want[i].item->path;
    e->image[i].skip = true;
    if (dt_strmap_get(e->bad, path) >= 0)
        return;
    dt_strmap_add(e->bad, path, e->r->skipped.n);
    dt_strs_add(&e->r->skipped, why);
    dt_enc_say(e, true, "skipped %s", why);
}

static int check_skipped(const dt_enc *e, dt_err *err)
{
    int64_t bad = e->r->skipped.n;
    if (!bad || (double)bad <= e->p->max_skipped_fraction * (double)e->r->paths)
        return 0;
    return dt_err_set(err, DT_EDATA, "%lld of %lld pictures cannot be used, more than --max_skipped_fraction %g allows; "
                      "the first: %s", (long long)bad, (long long)e->r->paths, e->p->max_skipped_fraction,
                      e->r->skipped.v[0]);
}

static bool readable(const dt_plan_item *it) { return access(dt_plan_item_file(it), R_OK) == 0; }

/* Nobody should wait for T5 only to learn that this is the wrong folder. */
static int check_present(const dt_enc *e, dt_err *err)
{
    int64_t missing = 0, first = -1;
    for (int64_t i = 0; i < e->n; i++)
        if (dt_strmap_get(e->paths, e->want[i].item->path) == i && !readable(e->want[i].item)) {
            missing++;
            first = first < 0 ? i : first;
        }
    if (!missing || (double)missing <= e->p->max_skipped_fraction * (double)e->r->paths)
        return 0;
    bool relative = e->want[first].item->path[0] != '/';
    return dt_err_set(err, DT_EDATA, "%lld of %lld pictures of the plan cannot be read, '%s' first%s",
                      (long long)missing, (long long)e->r->paths, e->want[first].item->path,
                      relative ? "; its paths are relative to the folder that dt-bucket ran in" : "");
}

/* --- captions --- */

int dt_enc_put(dt_enc *e, int64_t place, const char *const name[2], const float *const v[2], const dt_dims dims[2],
               dt_err *err)
{
    dt_st_entry entry[2];
    void *data[2] = { NULL, NULL }, *packed = NULL;
    size_t bytes = 0;
    int rc = 0;
    for (int i = 0; i < 2; i++) {
        int64_t n = dt_numel(dims[i]);
        data[i] = dt_try_alloc((size_t)n * dt_dtype_size(e->p->store));
        if (!data[i]) {
            rc = dt_err_set(err, DT_ENOMEM, "no memory for an entry of the cache");
            break;
        }
        dt_convert(data[i], e->p->store, v[i], DT_F32, n);
        entry[i] = (dt_st_entry){ .name = name[i], .dtype = e->p->store, .dims = dims[i], .data = data[i] };
    }
    if (rc == 0)
        rc = dt_st_pack(&packed, &bytes, entry, 2, NULL, err);
    if (rc == 0)
        rc = dt_cache_store_put(e->store, place, packed, bytes, err);
    free(packed);
    free(data[0]);
    free(data[1]);
    return rc;
}

static int encode_captions(dt_enc *e, dt_flux_run *run, dt_progress *bar, dt_err *err)
{
    static const char *const name[2] = { "states", "pooled" };
    const dt_flux_pipe *pipe = e->p->pipe;
    int64_t D = pipe->dit.joint_dim, P = pipe->dit.pooled_dim, done = 0;
    float *states = dt_try_alloc((size_t)(pipe->t5_len * D) * sizeof(float)), *pooled = dt_try_alloc((size_t)P * sizeof(float));
    int rc = states && pooled ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for text states");
    dt_progress_step(bar, 0);
    for (int64_t i = 0; i < e->texts && rc == 0 && !dt_enc_stopped(e); i++) {
        if (e->text_place[i] >= 0)
            continue;
        dt_hash key = dt_cache_text_key(&e->recipe, e->caption[i], e->text_len[i]);
        rc = dt_flux_run_text(run, e->caption[i], states, pooled, err);
        if (rc < 0)
            break;
        int64_t place = dt_cache_store_claim(e->store, &key);
        rc = dt_enc_put(e, place, name, (const float *const[]){ states, pooled },
                        (const dt_dims[]){ DT_DIMS(e->text_len[i], D), DT_DIMS(P) }, err);
        if (rc == 0) {
            e->text_place[i] = place;
            e->r->texts.made++;
            dt_progress_step(bar, ++done);
        }
    }
    free(states);
    free(pooled);
    return rc;
}

int dt_enc_find_texts(dt_enc *e, dt_err *err)
{
    int rc = 0;
    for (int64_t i = 0; i < e->texts; i++) {
        dt_hash key = dt_cache_text_key(&e->recipe, e->caption[i], e->text_len[i]);
        e->text_place[i] = dt_cache_store_find(e->store, &key);
        e->missing_texts += e->text_place[i] < 0;
    }
    e->r->texts.there = e->texts - e->missing_texts;
    if (!e->missing_texts)
        return 0;
    e->text = dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = e->p->pipe, .dev = e->p->dev, .act = e->p->compute });
    for (int64_t i = 0; i < e->texts && rc == 0; i++)
        if (e->text_place[i] < 0)
            rc = dt_flux_run_plan_text(e->text, e->text_len[i], err);
    return rc;
}

int dt_enc_texts(dt_enc *e, dt_err *err)
{
    dt_flux_pipe *pipe = e->p->pipe;
    dt_progress *bar = NULL;
    if (!e->text || dt_enc_stopped(e))
        return 0;
    int rc = dt_flux_pipe_load(pipe, DT_FLUX_CLIP, e->p->dev, e->p->compute, 0, err);
    if (rc == 0)
        rc = dt_flux_pipe_load(pipe, DT_FLUX_T5, e->p->dev, e->p->compute, 0, err);
    if (rc == 0)
        rc = dt_flux_run_alloc(e->text, NULL, err);
    if (rc == 0)
        rc = dt_progress_open(&bar, "captions", "caption", e->missing_texts, e->p->progress, e->p->quiet, err);
    if (rc == 0)
        rc = encode_captions(e, e->text, bar, err);
    dt_progress_close(&bar);
    dt_flux_run_free(&e->text);
    dt_flux_pipe_unload(pipe, DT_FLUX_CLIP);
    dt_flux_pipe_unload(pipe, DT_FLUX_T5);
    return rc;
}

/* --- the whole --- */

static void fill_index(dt_enc *e, dt_cache_index *x)
{
    x->recipe = e->recipe;
    dt_cache_index_reserve(x, e->n + e->texts);
    for (int64_t i = 0; i < e->n; i++)
        if (e->image[i].place >= 0) {
            dt_cache_rec *rec = dt_cache_index_add(x, DT_CACHE_IMAGE, e->want[i].req);
            rec->source = e->image[i].source;
            rec->stat = e->image[i].stat;
            dt_cache_store_fill(e->store, rec, e->image[i].place);
        }
    for (int64_t i = 0; i < e->texts; i++)
        if (e->text_place[i] >= 0)
            dt_cache_store_fill(e->store, dt_cache_index_add(x, DT_CACHE_TEXT, e->caption[i]), e->text_place[i]);
    for (int64_t i = 0; i < e->n; i++) {
        const char *path = e->want[i].item->path;
        int64_t bad = dt_strmap_get(e->bad, path);
        if (bad >= 0 && dt_strmap_get(e->paths, path) == i)
            dt_cache_index_add(x, DT_CACHE_SKIP, path)->why = dt_strdup(e->r->skipped.v[bad]);
    }
}

/* An entry of a caption that is padded to the limit; 0 if there are none. */
static int64_t padded_bytes(const dt_enc *e)
{
    const dt_flux_pipe *pipe = e->p->pipe;
    int64_t row = pipe->dit.joint_dim * (int64_t)dt_dtype_size(e->p->store);
    for (int64_t i = 0; i < e->texts; i++)
        if (e->text_place[i] >= 0)
            return dt_cache_store_bytes(e->store, e->text_place[i]) + (pipe->t5_len - e->text_len[i]) * row;
    return 0;
}

/* Bytes of a member of a tar file of so many. */
static int64_t in_tar(int64_t bytes) { return 512 + (bytes + 511) / 512 * 512; }

static void add_up(dt_enc *e)
{
    struct dt_encode_report *r = e->r;
    int64_t text = padded_bytes(e);
    dt_strmap *seen = dt_strmap_new();
    r->text_len = text ? e->p->pipe->t5_len : 0;
    for (int64_t i = 0; i < e->n + e->texts; i++) {
        int64_t place = i < e->n ? e->image[i].place : e->text_place[i - e->n];
        if (place < 0)
            continue;
        int64_t bytes = dt_cache_store_bytes(e->store, place);
        if (i < e->n) {
            r->naive_bytes += bytes + text;
            r->files += 1 + (text > 0);
        }
        const char *key = dt_cache_store_key(e->store, place);
        if (dt_strmap_get(seen, key) < 0) {
            dt_strmap_add(seen, key, 0);
            r->bytes += in_tar(bytes);
        }
    }
    dt_strmap_free(&seen);
}

/* The plan as it is on disk, for plan.ndjson. */
static int map_plan(const dt_enc *e, void **data, size_t *bytes, dt_err *err)
{
    struct stat st;
    int fd = fileno(e->plan_file);
    *data = MAP_FAILED;
    if (fstat(fd, &st) < 0 || (*data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        return dt_err_sys(err, DT_EFAIL, "cannot map the plan");
    *bytes = (size_t)st.st_size;
    return 0;
}

/* A stream begins with the plan; a folder gets it last, if it is a whole one. */
static int put_plan(dt_enc *e, dt_err *err)
{
    void *data;
    size_t bytes = 0;
    if (e->p->dir && dt_batches_info(e->plan)->shards > 1)
        return 0;
    int rc = map_plan(e, &data, &bytes, err);
    if (rc < 0)
        return rc;
    if (e->p->dir) {
        char *path = dt_path_join(e->p->dir, "plan.ndjson");
        dt_map old = { 0 };
        bool same = dt_exists(path) && dt_map_open(&old, path, NULL) == 0 && old.bytes == bytes &&
                    !memcmp(old.data, data, bytes);
        rc = same ? 0 : dt_file_write(path, data, bytes, err);
        dt_map_close(&old);
        free(path);
    } else {
        rc = dt_cache_store_member(e->store, "plan.ndjson", data, bytes, err);
    }
    munmap(data, bytes);
    return rc;
}

static int stopped(const dt_enc *e, dt_err *err)
{
    const struct dt_encode_count *i = &e->r->images, *t = &e->r->texts;
    return dt_err_set(err, DT_ESIGNAL, "stopped with %lld of %lld pictures and %lld of %lld captions%s",
                      (long long)(i->made + i->there + i->shared), (long long)i->wanted,
                      (long long)(t->made + t->there), (long long)t->wanted,
                      e->p->dir ? "; the same command goes on from here" : "");
}

/* Encodes what is missing and names all of it in the index. */
static int fill_cache(dt_enc *e, dt_err *err)
{
    const struct dt_encode_params *p = e->p;
    dt_cache_index x = { 0 };
    int rc = p->dir ? 0 : put_plan(e, err);
    if (rc == 0)
        rc = dt_enc_texts(e, err);
    if (rc == 0)
        rc = dt_enc_images(e, err);
    dt_enc_close_images(e);
    if (rc == 0)
        rc = check_skipped(e, err);
    if (rc < 0 && rc != DT_EIO && p->dir)
        dt_cache_store_finish(e->store, NULL);      /* what was made is not lost */
    if (rc == 0 && (p->dir || !dt_enc_stopped(e))) {
        fill_index(e, &x);
        rc = dt_cache_store_commit(e->store, &x, &e->r->wrote_index, err);
        add_up(e);
    }
    if (rc == 0 && p->dir)
        rc = put_plan(e, err);
    dt_cache_index_release(&x);
    return rc == 0 && dt_enc_stopped(e) ? stopped(e, err) : rc;
}

int dt_encode_run(const struct dt_encode_params *p, struct dt_encode_report *r, dt_err *err)
{
    dt_enc e;
    int rc = dt_enc_open(&e, p, r, err);
    if (rc == 0)
        rc = check_present(&e, err);
    if (rc == 0)
        rc = dt_enc_find_texts(&e, err);
    if (rc == 0)
        rc = dt_enc_find_images(&e, err);
    if (rc == 0)
        rc = dt_enc_memory(&e, err);
    if (rc == 0 && !p->memory_plan)
        rc = fill_cache(&e, err);
    char *peak = rc == 0 && !p->memory_plan ? dt_mem_report(&e.memory) : NULL;
    if (peak)
        dt_enc_say(&e, false, "%s", peak);
    free(peak);
    dt_enc_close(&e);
    return rc;
}
