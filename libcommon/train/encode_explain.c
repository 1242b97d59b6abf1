/* encode_explain.c - why an entry of the cache would be reused or made again.  See encode.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "train/encode_int.h"

/* Record of an index that is nearest to a request: the same request, or the same picture transformed
 * otherwise.  Owned. */
struct near { const dt_cache_index *x; dt_cache_rec rec; };

static int find_near(const dt_enc *e, enum dt_cache_kind kind, const char *req, struct near *best, dt_err *err)
{
    const char *path = kind == DT_CACHE_IMAGE ? dt_cache_request_path(req) : req;
    const dt_cache_index *x;
    bool same = false;
    int rc = 0;
    *best = (struct near){ 0 };
    for (int64_t i = 0; rc == 0 && !same && (x = dt_cache_store_index(e->store, i)); i++) {
        size_t pos = 0;
        dt_cache_rec r;
        while (!same && (rc = dt_cache_index_next(x, &pos, &r, err)) == 1) {
            same = r.kind == kind && !strcmp(r.req, req);
            if (same ||
                (!best->x && r.kind == kind && kind == DT_CACHE_IMAGE && !strcmp(dt_cache_request_path(r.req), path))) {
                dt_cache_rec_release(&best->rec);
                *best = (struct near){ x, r };
            } else {
                dt_cache_rec_release(&r);
            }
        }
        rc = rc < 0 ? rc : 0;
    }
    return rc;
}

/* Says one thing that differs; counts them. */
static void differs(FILE *out, int *n, const char *what, const char *was, const char *now)
{
    fprintf(out, "%s%s (%.8s, now %.8s)", (*n)++ ? "; " : "", what, was, now);
}

static void differs_int(FILE *out, int *n, const char *what, int64_t was, int64_t now)
{
    fprintf(out, "%s%s (%lld, now %lld)", (*n)++ ? "; " : "", what, (long long)was, (long long)now);
}

static int compare_recipes(const dt_enc *e, const dt_cache_recipe *was, bool text, FILE *out, int n)
{
    const dt_cache_recipe *now = &e->recipe;
    if (was->code != now->code)
        differs_int(out, &n, "code version", was->code, now->code);
    if (was->dtype != now->dtype)
        differs(out, &n, "dtype", dt_dtype_name(was->dtype), dt_dtype_name(now->dtype));
    if (was->compute != now->compute)
        differs(out, &n, "precision of the encoders", dt_dtype_name(was->compute), dt_dtype_name(now->compute));
    if (text && was->text_len != now->text_len)
        differs_int(out, &n, "tokens", was->text_len, now->text_len);
    if (text && was->text_padding != now->text_padding)
        differs(out, &n, "text_padding", dt_padding_names[was->text_padding], dt_padding_names[now->text_padding]);
    if (!text && was->tile_px != now->tile_px)
        differs_int(out, &n, "tile", was->tile_px, now->tile_px);
    for (int i = 0; i < now->n; i++) {
        const dt_cache_part *q = dt_cache_recipe_part(was, now->part[i].name);
        char what[64];
        snprintf(what, sizeof(what), "encoder %s", now->part[i].name);
        if (now->part[i].text == text && (!q || strcmp(q->hash.hex, now->part[i].hash.hex)))
            differs(out, &n, what, q ? q->hash.hex : "none", now->part[i].hash.hex);
    }
    return n;
}

static int explain_miss(const dt_enc *e, enum dt_cache_kind kind, const char *req, const dt_hash *source, FILE *out,
                        dt_err *err)
{
    struct near was;
    int n = 0, rc = find_near(e, kind, req, &was, err);
    if (rc < 0 || !was.x) {
        if (rc == 0)
            fprintf(out, "to be made: no index knows it\n");
        dt_cache_rec_release(&was.rec);
        return rc;
    }
    fprintf(out, "to be made again: ");
    if (kind == DT_CACHE_IMAGE && strcmp(was.rec.source.hex, source->hex))
        differs(out, &n, "bytes of the file", was.rec.source.hex, source->hex);
    if (kind == DT_CACHE_IMAGE && strcmp(was.rec.req, req))
        fprintf(out, "%stransform (%.*s, now %.*s)", n++ ? "; " : "",
                (int)(dt_cache_request_path(was.rec.req) - was.rec.req - 1), was.rec.req,
                (int)(dt_cache_request_path(req) - req - 1), req);
    n = compare_recipes(e, &was.x->recipe, kind == DT_CACHE_TEXT, out, n);
    fprintf(out, "%s\n", n ? "" : "the shard it was in is gone");
    dt_cache_rec_release(&was.rec);
    return 0;
}

static int explain_hit(const dt_enc *e, int64_t place, FILE *out, dt_err *err)
{
    dt_cache_rec rec = { 0 };
    int rc = dt_cache_store_fill(e->store, &rec, place, err);
    if (rc == 0)
        fprintf(out, "reused: entry %s in %s\n", rec.key.hex, dt_cache_store_file(e->store, rec.file));
    return rc;
}

static int explain_image(const dt_enc *e, int64_t i, const dt_plan_item *item, const char *req, FILE *out, dt_err *err)
{
    const dt_want_picture *w = &e->want[i];
    dt_got_picture got;
    dt_picture_get(&got, e->plan, w, false);
    dt_image_release(&got.im);
    fprintf(out, "%s at %dx%d px%s: ", item->path, w->w, w->h, w->flip ? ", mirrored" : "");
    if (got.rc < 0) {
        fprintf(out, "to be skipped: %s\n", got.err.msg);
        return 0;
    }
    dt_hash key = dt_cache_image_key(&e->recipe, req, &got.source);
    int64_t place = dt_cache_store_find(e->store, &key);
    return place >= 0 ? explain_hit(e, place, out, err) : explain_miss(e, DT_CACHE_IMAGE, req, &got.source, out, err);
}

static int explain_text(const dt_enc *e, const char *caption, FILE *out, dt_err *err)
{
    int64_t T = dt_flux_text_len(e->p->pipe, caption, err);
    if (T < 0)
        return (int)T;
    dt_hash key = dt_cache_text_key(&e->recipe, caption, T);
    int64_t place = dt_cache_store_find(e->store, &key);
    fprintf(out, "caption \"%.60s%s\": ", caption, strlen(caption) > 60 ? "..." : "");
    return place >= 0 ? explain_hit(e, place, out, err) : explain_miss(e, DT_CACHE_TEXT, caption, NULL, out, err);
}

static bool same_file(const char *a, const char *b)
{
    struct stat s, t;
    return !strcmp(a, b) || (!stat(a, &s) && !stat(b, &t) && s.st_ino == t.st_ino && s.st_dev == t.st_dev);
}

int dt_encode_explain(const struct dt_encode_params *p, const char *file, FILE *out, dt_err *err)
{
    dt_enc e;
    struct dt_encode_report r = { 0 };
    char *last = NULL;
    int64_t n = 0;
    int rc = dt_enc_open(&e, p, &r, err);
    for (int64_t i = 0; i < e.n && rc == 0; i++) {
        dt_plan_item *it;
        char *req;
        if ((rc = dt_enc_request(&e, i, &req, &it, err)) < 0)
            break;
        if (same_file(it->path, file)) {
            rc = explain_image(&e, i, it, req, out, err);
            if (rc == 0 && (!last || strcmp(last, it->text)))
                rc = explain_text(&e, it->text, out, err);
            free(last);
            last = dt_strdup(it->text);
            n++;
        }
        free(req);
        free(it);
    }
    free(last);
    if (rc == 0 && !n && !dt_exists(file)) {
        errno = ENOENT;
        rc = dt_err_open(err, file);
    }
    if (rc == 0 && !n)
        rc = dt_err_set(err, DT_EDATA, "'%s' is not in the plan%s", file,
                        p->shards > 1 ? ", or not in this shard" : "");
    dt_enc_close(&e);
    dt_encode_report_release(&r);
    return rc;
}
