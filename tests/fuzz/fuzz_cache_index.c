/* An index of a cache, dt-cache(5): what is accepted is written as it was read.  Then a cache folder of
 * that index and a shard, which is looked through for every request of the index, and filled further. */
#include <string.h>
#include "base/file.h"
#include "data/cache_write.h"
#include "tests/fuzz/fuzz.h"

/* The records of an index from its first to its last. */
struct reading { const dt_cache_index *x; size_t pos; };

static int get(void *ctx, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    struct reading *r = ctx;
    r->pos = i ? r->pos : 0;
    return dt_cache_index_next(r->x, &r->pos, rec, err);
}

static int64_t count(const dt_cache_index *x)
{
    dt_cache_rec rec;
    int64_t n = 0;
    for (size_t pos = 0; dt_cache_index_next(x, &pos, &rec, NULL) == 1; n++)
        dt_cache_rec_release(&rec);
    return n;
}

static void write_again(const dt_cache_index *x)
{
    dt_cache_index y;
    dt_err err = { 0 };
    char *text = NULL;
    size_t bytes = 0, pos = 0, qos = 0;
    FILE *f = open_memstream(&text, &bytes);
    struct reading reading = { x, 0 };
    int64_t n = count(x);
    fuzz_check(dt_cache_index_write(x, &(struct dt_cache_lines){ n, get, &reading }, f, &err) == 0 && fclose(f) == 0);
    if (dt_cache_index_read(&y, text, bytes, "again", &err) < 0 || dt_cache_index_check(&y, &err) < 0) {
        fprintf(stderr, "%s\n%s\n", err.msg, text);
        abort();
    }
    fuzz_check(count(&y) == n && y.files.n == x->files.n && dt_cache_recipe_same(&x->recipe, &y.recipe));
    for (dt_cache_rec a, b; dt_cache_index_next(x, &pos, &a, &err) == 1;) {
        fuzz_check(dt_cache_index_next(&y, &qos, &b, &err) == 1 && a.kind == b.kind && !strcmp(a.req, b.req));
        dt_cache_rec_release(&a);
        dt_cache_rec_release(&b);
    }
    dt_cache_index_release(&y);
    free(text);
}

/* As the loader asks: the plan item of a request. */
static void look_up(const dt_cache *c, const dt_cache_rec *r)
{
    dt_err err = { 0 };
    dt_cached_image im;
    dt_cached_text t;
    int v[7];
    if (r->kind == DT_CACHE_TEXT) {
        dt_cache_text_len(c, r->req, &err);
        if (dt_cache_text(c, r->req, &t, &err) == 0) {
            fuzz_touch(t.states, (size_t)(t.T * t.D) * dt_dtype_size(t.dtype));
            fuzz_touch(t.pooled, (size_t)t.P * dt_dtype_size(t.dtype));
        }
    } else if (r->kind == DT_CACHE_IMAGE && sscanf(r->req, "%d %d %d %d %d %d %d", v, v + 1, v + 2, v + 3, v + 4, v + 5,
                                                   v + 6) == 7) {
        dt_plan_item it = { .path = dt_cache_request_path(r->req) };
        dt_batch_item b = { .item = &it, .resize_w = v[0], .resize_h = v[1], .crop_x = v[2], .crop_y = v[3],
                            .flip = v[6] };
        if (dt_cache_image(c, &b, v[4], v[5], &im, &err) == 0) {
            fuzz_touch(im.mean, (size_t)(im.C * im.h * im.w) * dt_dtype_size(im.dtype));
            fuzz_touch(im.logvar, (size_t)(im.C * im.h * im.w) * dt_dtype_size(im.dtype));
        }
    } else {
        dt_cache_skips(c, r->req);
    }
}

static void read_folder(const dt_cache_index *x)
{
    dt_cache *c = NULL;
    dt_err err = { 0 };
    if (dt_cache_open(&c, fuzz_path("cache"), &err) < 0)
        return;
    size_t pos = 0;
    for (dt_cache_rec rec; dt_cache_index_next(x, &pos, &rec, &err) == 1; dt_cache_rec_release(&rec))
        look_up(c, &rec);
    dt_cache_close(&c);
}

static void take_stock(void)
{
    dt_cache_store *s = NULL;
    dt_err err = { 0 };
    struct dt_cache_store_params p = { .dir = fuzz_path("cache"), .shards = 1, .max_bytes = 1 << 20 };
    if (dt_cache_store_open(&s, &p, &err) < 0)
        return;
    for (int64_t i = 0; i < dt_cache_store_found(s); i++) {
        dt_cache_rec rec = { 0 };
        fuzz_check(dt_cache_store_fill(s, &rec, i, &err) == 0 && rec.bytes >= 0);
    }
    dt_cache_store_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "cache/index-000001-0of1.ndjson", "cache/shard-000001-0of1-0000.tar" };
    dt_cache_index x;
    dt_err err = { 0 };
    char *text = NULL;
    size_t bytes = 0;
    dt_mkdirs(fuzz_path("cache"), NULL);
    fuzz_files(name, 2, data, size);
    if (dt_file_read(&text, &bytes, fuzz_path(name[0]), 1 << 20, &err) == 0 &&
        dt_cache_index_read(&x, text, bytes, "index", &err) == 0) {
        if (dt_cache_index_check(&x, &err) == 0) {
            write_again(&x);
            read_folder(&x);
        }
        dt_cache_index_release(&x);
    }
    take_stock();
    free(text);
    return 0;
}
