/* encode.c - fills a cache with what a plan asks for.  See encode.h. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
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
    int fd = dt_unnamed_file(NULL, err), rc = fd < 0 ? fd : 0;
    e->plan_file = fd < 0 ? NULL : dt_must(fdopen(fd, "w+"));
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

int dt_enc_caption(const dt_enc *e, int64_t i, char **text, dt_err *err)
{
    dt_plan_item *item;
    int32_t at = e->text[i].at;
    *text = NULL;
    if (at < 0) {
        *text = dt_strdup(e->drawn.v[~at]);
        return 0;
    }
    int rc = dt_batches_item(e->plan, at, &item, err);
    if (rc == 0)
        *text = dt_strdup(item->text);
    free(item);
    return rc;
}

int dt_enc_request(const dt_enc *e, int64_t i, char **req, dt_plan_item **item, dt_err *err)
{
    dt_batch_item it;
    int rc = dt_want_item(e->plan, &e->want[i], &it, item, err);
    *req = rc == 0 ? dt_cache_request(&it, e->want[i].w, e->want[i].h) : NULL;
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
    *r = (dt_cache_recipe){ .code = DT_ENC_CODE, .dtype = e->p->store, .compute = e->p->compute,
                            .tile_px = e->p->tile_px,
                            .text_len = e->p->pipe->t5_len, .text_padding = e->p->pipe->text_padding };
    for (const struct dt_enc_part_kind *k = dt_enc_parts; k->name && rc == 0; k++)
        if (!k->text || !e->p->pictures_only)
            rc = dt_enc_part(&r->part[r->n++], e->p->pipe, k, remembered, e, err);
    return rc;
}

/* --- life --- */

int dt_enc_open(dt_enc *e, const struct dt_encode_params *p, struct dt_encode_report *r, dt_err *err)
{
    *e = (dt_enc){ .p = p, .r = r, .bad = dt_strmap_new() };
    int rc = open_plan(e, err);
    if (rc == 0)
        rc = dt_enc_collect(e, err);
    if (rc == 0)
        rc = dt_cache_store_open(&e->store, &(struct dt_cache_store_params){ .dir = p->dir, .out = p->out,
                                 .shard = p->shard, .shards = p->shards, .max_bytes = p->max_shard_bytes }, err);
    for (int64_t i = 0; rc == 0 && i < dt_cache_store_broken(e->store)->n; i++)
        dt_enc_say(e, true, "%s; its entries are made again", dt_cache_store_broken(e->store)->v[i]);
    if (rc == 0)
        rc = dt_spool_open(&e->file, p->dir, sizeof(struct dt_enc_file), err);
    return rc == 0 ? make_recipe(e, err) : rc;
}

void dt_enc_close(dt_enc *e)
{
    dt_flux_run_free(&e->text_run);
    dt_enc_close_images(e);
    dt_cache_store_close(&e->store);
    dt_spool_close(&e->file);
    dt_strmap_free(&e->bad);
    dt_strs_release(&e->bad_paths);
    dt_strs_release(&e->drawn);
    dt_batches_close(&e->plan);
    if (e->plan_file)
        fclose(e->plan_file);
    free(e->want);
    free(e->place);
    free(e->text);
}

int dt_enc_skip(dt_enc *e, int64_t i, const char *why, dt_err *err)
{
    dt_plan_item *item;
    int rc = dt_batches_item(e->plan, e->want[i].at, &item, err);
    if (rc < 0)
        return rc;
    if (dt_strmap_get(e->bad, item->path) < 0) {
        dt_strs *own = &e->bad_paths;
        dt_strs_add(own, item->path);
        dt_strmap_add(e->bad, own->v[own->n - 1], e->r->skipped.n);
        dt_strs_add(&e->r->skipped, why);
        dt_enc_say(e, true, "skipped %s", why);
    }
    free(item);
    return 0;
}

static int check_skipped(const dt_enc *e, dt_err *err)
{
    int64_t bad = e->r->skipped.n;
    if (!bad || (double)bad <= e->p->max_skipped_fraction * (double)e->r->paths)
        return 0;
    return dt_err_set(err, DT_EDATA,
                      "%lld of %lld pictures cannot be used, more than --max_skipped_fraction %g allows; "
                      "the first: %s", (long long)bad, (long long)e->r->paths, e->p->max_skipped_fraction,
                      e->r->skipped.v[0]);
}

static bool readable(const dt_plan_item *it) { return access(dt_plan_item_file(it), R_OK) == 0; }

/* Nobody should wait for T5 only to learn that this is the wrong folder. */
static int check_present(const dt_enc *e, dt_err *err)
{
    int64_t missing = 0;
    dt_plan_item *it, *first = NULL;
    int rc = 0;
    for (int64_t i = 0; i < e->n && rc == 0; i++) {
        if (!(e->want[i].mark & DT_ENC_FIRST) || (rc = dt_batches_item(e->plan, e->want[i].at, &it, err)) < 0)
            continue;
        if (readable(it))
            free(it);
        else if (missing++)
            free(it);
        else
            first = it;
    }
    if (rc == 0 && missing && (double)missing > e->p->max_skipped_fraction * (double)e->r->paths)
        rc = dt_err_set(err, DT_EDATA, "%lld of %lld pictures of the plan cannot be read, '%s' first%s",
                        (long long)missing, (long long)e->r->paths, first->path,
                        *first->path != '/' ? "; its paths are relative to the folder that dt-bucket ran in" : "");
    free(first);
    return rc;
}

/* --- captions --- */

int dt_enc_put(dt_enc *e, int64_t place, const dt_hash *key, const char *const name[2], const float *const v[2],
               const dt_dims dims[2], dt_err *err)
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
        rc = dt_cache_store_put(e->store, place, key, packed, bytes, err);
    free(packed);
    free(data[0]);
    free(data[1]);
    return rc;
}

static int encode_caption(dt_enc *e, int64_t i, float *states, float *pooled, dt_err *err)
{
    static const char *const name[2] = { "states", "pooled" };
    const dt_flux_pipe *pipe = e->p->pipe;
    struct dt_enc_text *t = &e->text[i];
    char *caption;
    int rc = dt_enc_caption(e, i, &caption, err);
    if (rc == 0)
        rc = dt_flux_run_text(e->text_run, caption, states, pooled, err);
    if (rc == 0) {
        dt_hash key = dt_cache_text_key(&e->recipe, caption, t->len);
        int64_t place = dt_cache_store_claim(e->store, &key);
        rc = dt_enc_put(e, place, &key, name, (const float *const[]){ states, pooled },
                        (const dt_dims[]){ DT_DIMS(t->len, pipe->dit.joint_dim), DT_DIMS(pipe->dit.pooled_dim) }, err);
        t->place = rc == 0 ? (int32_t)place : -1;
    }
    free(caption);
    return rc;
}

static int encode_captions(dt_enc *e, dt_progress *bar, dt_err *err)
{
    const dt_flux_pipe *pipe = e->p->pipe;
    int64_t D = pipe->dit.joint_dim, P = pipe->dit.pooled_dim, done = 0;
    float *states = dt_try_alloc((size_t)(pipe->t5_len * D) * sizeof(float)),
        *pooled = dt_try_alloc((size_t)P * sizeof(float));
    int rc = states && pooled ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for text states");
    dt_progress_step(bar, 0);
    for (int64_t i = 0; i < e->texts && rc == 0 && !dt_enc_stopped(e); i++) {
        if (e->text[i].place >= 0)
            continue;
        if ((rc = encode_caption(e, i, states, pooled, err)) == 0) {
            e->r->texts.made++;
            dt_progress_step(bar, ++done);
        }
    }
    free(states);
    free(pooled);
    return rc;
}

int dt_enc_place(dt_enc *e, enum dt_flux_part k, dt_err *err)
{
    const struct dt_encode_params *p = e->p;
    int rc = dt_flux_pipe_place(p->pipe, k, p->dev, p->compute, p->low_vram, err);
    if (rc == 0 && p->low_vram)
        dt_params_give_back(p->pipe->part[k]);
    return rc;
}

int dt_enc_find_texts(dt_enc *e, dt_err *err)
{
    int rc = 0;
    for (int64_t i = 0; i < e->texts && rc == 0; i++) {
        struct dt_enc_text *t = &e->text[i];
        char *caption;
        if ((rc = dt_enc_caption(e, i, &caption, err)) < 0)
            return rc;
        int64_t T = dt_flux_text_len(e->p->pipe, caption, err);
        rc = T < 0 ? (int)T : 0;
        t->len = (int32_t)T;
        dt_hash key = dt_cache_text_key(&e->recipe, caption, T);
        t->place = (int32_t)dt_cache_store_find(e->store, &key);
        e->missing_texts += t->place < 0;
        free(caption);
    }
    if (rc < 0)
        return rc;
    e->r->texts.there = e->texts - e->missing_texts;
    if (!e->missing_texts)
        return 0;
    e->text_run = dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = e->p->pipe, .dev = e->p->dev,
                                                                .act = e->p->compute });
    rc = dt_enc_place(e, DT_FLUX_CLIP, err);
    if (rc == 0)
        rc = dt_enc_place(e, DT_FLUX_T5, err);
    for (int64_t i = 0; i < e->texts && rc == 0; i++)
        if (e->text[i].place < 0)
            rc = dt_flux_run_plan_text(e->text_run, e->text[i].len, err);
    return rc;
}

int dt_enc_texts(dt_enc *e, dt_err *err)
{
    dt_flux_pipe *pipe = e->p->pipe;
    dt_progress *bar = NULL;
    if (!e->text_run || dt_enc_stopped(e))
        return 0;
    int rc = dt_flux_pipe_load(pipe, DT_FLUX_CLIP, e->p->dev, e->p->compute, 0, err);
    if (rc == 0)
        rc = dt_flux_pipe_load(pipe, DT_FLUX_T5, e->p->dev, e->p->compute, 0, err);
    if (rc == 0)
        rc = dt_flux_run_alloc(e->text_run, NULL, err);
    if (rc == 0)
        rc = dt_progress_open(&bar, "captions", "caption", e->missing_texts, e->p->progress, e->p->quiet, err);
    if (rc == 0)
        rc = encode_captions(e, bar, err);
    dt_progress_close(&bar);
    dt_flux_run_free(&e->text_run);
    dt_flux_pipe_unload(pipe, DT_FLUX_CLIP);
    dt_flux_pipe_unload(pipe, DT_FLUX_T5);
    return rc;
}

/* --- the whole --- */

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
    int rc = p->dir ? 0 : dt_enc_put_plan(e, err);
    if (rc == 0)
        rc = dt_enc_texts(e, err);
    if (rc == 0)
        rc = dt_enc_images(e, err);
    dt_enc_close_images(e);
    if (rc == 0)
        rc = check_skipped(e, err);
    if (rc < 0 && rc != DT_EIO && p->dir)
        dt_cache_store_finish(e->store, NULL);      /* what was made is not lost */
    if (rc == 0 && (p->dir || !dt_enc_stopped(e)))
        rc = dt_enc_write_index(e, err);
    if (rc == 0 && p->dir)
        rc = dt_enc_put_plan(e, err);
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
