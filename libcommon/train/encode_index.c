/* encode_index.c - the index of a cache and its copy of the plan, written from what is on disk.  See encode_int.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "train/encode_int.h"

static int image_line(const dt_enc *e, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    dt_plan_item *item = NULL;
    struct dt_enc_file file;
    if (e->place[i] < 0)
        return 0;
    rec->kind = DT_CACHE_IMAGE;
    int rc = dt_enc_request(e, i, &rec->req, &item, err);
    free(item);
    if (rc == 0)
        rc = dt_spool_get(e->file, i, &file, err);
    if (rc < 0)
        return rc;
    rec->source = file.source;
    rec->stat = file.stat;
    rc = dt_cache_store_fill(e->store, rec, e->place[i], err);
    return rc < 0 ? rc : 1;
}

static int text_line(const dt_enc *e, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    if (e->text[i].place < 0)
        return 0;
    rec->kind = DT_CACHE_TEXT;
    int rc = dt_enc_caption(e, i, &rec->req, err);
    if (rc == 0)
        rc = dt_cache_store_fill(e->store, rec, e->text[i].place, err);
    return rc < 0 ? rc : 1;
}

/* A path that is skipped, at its first picture. */
static int skip_line(const dt_enc *e, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    dt_plan_item *item;
    if (!(e->want[i].mark & DT_ENC_FIRST))
        return 0;
    int rc = dt_batches_item(e->plan, e->want[i].at, &item, err);
    if (rc < 0)
        return rc;
    int64_t bad = dt_strmap_get(e->bad, item->path);
    if (bad >= 0) {
        rec->kind = DT_CACHE_SKIP;
        rec->req = dt_strdup(item->path);
        rec->why = dt_strdup(e->r->skipped.v[bad]);
    }
    free(item);
    return bad >= 0;
}

static int get_line(void *ctx, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    const dt_enc *e = ctx;
    if (i < e->n)
        return image_line(e, i, rec, err);
    return i < e->n + e->texts ? text_line(e, i - e->n, rec, err) : skip_line(e, i - e->n - e->texts, rec, err);
}

/* --- what it adds up to --- */

/* An entry of a caption that is padded to the limit; 0 if there are none. */
static int padded_bytes(const dt_enc *e, int64_t *bytes, dt_err *err)
{
    const dt_flux_pipe *pipe = e->p->pipe;
    int64_t row = pipe->dit.joint_dim * (int64_t)dt_dtype_size(e->p->store), i = 0;
    dt_cache_rec rec = { 0 };
    *bytes = 0;
    while (i < e->texts && e->text[i].place < 0)
        i++;
    if (i == e->texts)
        return 0;
    int rc = dt_cache_store_fill(e->store, &rec, e->text[i].place, err);
    *bytes = rec.bytes + (pipe->t5_len - e->text[i].len) * row;
    return rc;
}

/* Bytes of a member of a tar file of so many. */
static int64_t in_tar(int64_t bytes) { return 512 + (bytes + 511) / 512 * 512; }

static int add_up(dt_enc *e, dt_err *err)
{
    struct dt_encode_report *r = e->r;
    int64_t text;
    int rc = padded_bytes(e, &text, err);
    unsigned char *seen = dt_alloc((size_t)dt_cache_store_places(e->store) + 1);
    r->text_len = text ? e->p->pipe->t5_len : 0;
    for (int64_t i = 0; i < e->n + e->texts && rc == 0; i++) {
        int64_t place = i < e->n ? e->place[i] : e->text[i - e->n].place;
        dt_cache_rec rec = { 0 };
        if (place < 0)
            continue;
        rc = dt_cache_store_fill(e->store, &rec, place, err);
        if (i < e->n) {
            r->naive_bytes += rec.bytes + text;
            r->files += 1 + (text > 0);
        }
        r->bytes += seen[place] ? 0 : in_tar(rec.bytes);
        seen[place] = 1;
    }
    free(seen);
    return rc;
}

int dt_enc_write_index(dt_enc *e, dt_err *err)
{
    struct dt_cache_lines lines = { .n = e->n + e->texts + (e->r->skipped.n ? e->n : 0), .get = get_line, .ctx = e };
    int rc = dt_cache_store_commit(e->store, &e->recipe, &lines, &e->r->wrote_index, err);
    return rc < 0 ? rc : add_up(e, err);
}

/* --- the plan --- */

/* Has a file the plan's bytes?  What cannot be read has not. */
static bool is_plan(const dt_enc *e, const char *path)
{
    char a[1 << 14], b[sizeof(a)];
    ssize_t n = 0, m = 0;
    off_t at = 0;
    FILE *f = fopen(path, "re");
    bool same = f;
    for (; same; at += n) {
        n = pread(fileno(e->plan_file), a, sizeof(a), at);
        m = pread(fileno(f), b, sizeof(b), at);
        same = n >= 0 && n == m && !memcmp(a, b, (size_t)n);
        if (n == 0)
            break;
    }
    if (f)
        fclose(f);
    return same;
}

static int copy_plan(const dt_enc *e, const char *path, dt_err *err)
{
    char buf[1 << 14];
    dt_out *out = NULL;
    ssize_t n = 0;
    int rc = dt_out_open(&out, path, err);
    for (off_t at = 0; rc == 0 && (n = pread(fileno(e->plan_file), buf, sizeof(buf), at)) > 0; at += n)
        if (fwrite(buf, 1, (size_t)n, dt_out_file(out)) != (size_t)n)
            rc = dt_err_sys(err, DT_EIO, "cannot write '%s'", path);
    if (rc == 0 && n < 0)
        rc = dt_err_sys(err, DT_EFAIL, "cannot read the plan again");
    if (rc == 0)
        rc = dt_out_commit(&out, err);
    dt_out_abort(&out);
    return rc;
}

int dt_enc_put_plan(dt_enc *e, dt_err *err)
{
    if (!e->p->dir)
        return dt_cache_store_member(e->store, "plan.ndjson", e->plan_file, err);
    if (dt_batches_info(e->plan)->shards > 1)
        return 0;
    char *path = dt_path_join(e->p->dir, "plan.ndjson");
    int rc = is_plan(e, path) ? 0 : copy_plan(e, path, err);
    free(path);
    return rc;
}
