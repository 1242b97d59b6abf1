/* encode_explain.c - why an entry of the cache would be reused or made again.  See encode.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "train/encode_int.h"

/* Record of an index that is nearest to a request: the same request, or the same picture transformed otherwise. */
struct near { const dt_cache_index *x; const dt_cache_rec *rec; };

static struct near find_near(const dt_enc *e, enum dt_cache_kind kind, const char *req)
{
    const char *path = kind == DT_CACHE_IMAGE ? dt_cache_request_path(req) : req;
    const dt_cache_index *x;
    struct near best = { NULL, NULL };
    for (int64_t i = 0; (x = dt_cache_store_index(e->store, i)); i++)
        for (int64_t k = 0; k < x->n; k++) {
            const dt_cache_rec *r = &x->rec[k];
            if (r->kind != kind)
                continue;
            if (!strcmp(r->req, req))
                return (struct near){ x, r };
            if (!best.x && kind == DT_CACHE_IMAGE && !strcmp(dt_cache_request_path(r->req), path))
                best = (struct near){ x, r };
        }
    return best;
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

static void explain_miss(const dt_enc *e, enum dt_cache_kind kind, const char *req, const dt_hash *source, FILE *out)
{
    struct near was = find_near(e, kind, req);
    int n = 0;
    if (!was.x) {
        fprintf(out, "to be made: no index knows it\n");
        return;
    }
    fprintf(out, "to be made again: ");
    if (kind == DT_CACHE_IMAGE && strcmp(was.rec->source.hex, source->hex))
        differs(out, &n, "bytes of the file", was.rec->source.hex, source->hex);
    if (kind == DT_CACHE_IMAGE && strcmp(was.rec->req, req))
        fprintf(out, "%stransform (%.*s, now %.*s)", n++ ? "; " : "",
                (int)(dt_cache_request_path(was.rec->req) - was.rec->req - 1), was.rec->req,
                (int)(dt_cache_request_path(req) - req - 1), req);
    n = compare_recipes(e, &was.x->recipe, kind == DT_CACHE_TEXT, out, n);
    fprintf(out, "%s\n", n ? "" : "the shard it was in is gone");
}

static void explain_hit(const dt_enc *e, int64_t place, FILE *out)
{
    fprintf(out, "reused: entry %s in %s\n", dt_cache_store_key(e->store, place),
            dt_cache_store_file(e->store, place));
}

static void explain_image(const dt_enc *e, int64_t i, FILE *out)
{
    const dt_want_picture *w = &e->want[i];
    dt_got_picture got;
    dt_picture_get(&got, w, false);
    dt_image_release(&got.im);
    fprintf(out, "%s at %dx%d px%s: ", w->item->path, w->w, w->h, w->at.flip ? ", mirrored" : "");
    if (got.rc < 0) {
        fprintf(out, "to be skipped: %s\n", got.err.msg);
        return;
    }
    dt_hash key = dt_cache_image_key(&e->recipe, w->req, &got.source);
    int64_t place = dt_cache_store_find(e->store, &key);
    if (place >= 0)
        explain_hit(e, place, out);
    else
        explain_miss(e, DT_CACHE_IMAGE, w->req, &got.source, out);
}

static int explain_text(const dt_enc *e, const char *caption, FILE *out, dt_err *err)
{
    int64_t T = dt_flux_text_len(e->p->pipe, caption, err);
    if (T < 0)
        return (int)T;
    dt_hash key = dt_cache_text_key(&e->recipe, caption, T);
    int64_t place = dt_cache_store_find(e->store, &key);
    fprintf(out, "caption \"%.60s%s\": ", caption, strlen(caption) > 60 ? "..." : "");
    if (place >= 0)
        explain_hit(e, place, out);
    else
        explain_miss(e, DT_CACHE_TEXT, caption, NULL, out);
    return 0;
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
    const char *last = NULL;
    int64_t n = 0;
    int rc = dt_enc_open(&e, p, &r, err);
    for (int64_t i = 0; i < e.n && rc == 0; i++) {
        const dt_plan_item *it = e.want[i].item;
        if (!same_file(it->path, file))
            continue;
        explain_image(&e, i, out);
        if (!last || strcmp(last, it->text))
            rc = explain_text(&e, last = it->text, out, err);
        n++;
    }
    if (rc == 0 && !n)
        rc = dt_err_set(err, DT_EDATA, "'%s' is not in the plan%s", file,
                        p->shards > 1 ? ", or not in this shard" : "");
    dt_enc_close(&e);
    dt_encode_report_release(&r);
    return rc;
}
