/* An index of a cache, dt-cache(5): what is accepted is written as it was read.  Then a cache folder of that index and a
 * shard, which is looked through for every request of the index, and filled further. */
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "data/cache_write.h"
#include "tests/fuzz/fuzz.h"

static void write_again(const dt_cache_index *x)
{
    dt_cache_index y;
    dt_err err = { 0 };
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    fuzz_check(dt_cache_index_write(x, f, &err) == 0 && fclose(f) == 0);
    if (dt_cache_index_read(&y, text, bytes, "again", &err) < 0) {
        fprintf(stderr, "%s\n%s\n", err.msg, text);
        abort();
    }
    fuzz_check(y.n == x->n && y.files.n == x->files.n && dt_cache_recipe_same(&x->recipe, &y.recipe));
    for (int64_t i = 0; i < x->n; i++)
        fuzz_check(y.rec[i].kind == x->rec[i].kind && !strcmp(y.rec[i].req, x->rec[i].req));
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
        dt_batch_item b = { &it, v[0], v[1], v[2], v[3], v[6], false };
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
    dt_cache_encoder(c, "vae");
    dt_cache_text_padding(c);
    for (int64_t i = 0; i < x->n; i++)
        look_up(c, &x->rec[i]);
    dt_cache_close(&c);
}

static void take_stock(void)
{
    dt_cache_store *s = NULL;
    dt_err err = { 0 };
    struct dt_cache_store_params p = { .dir = fuzz_path("cache"), .shards = 1, .max_bytes = 1 << 20 };
    if (dt_cache_store_open(&s, &p, &err) < 0)
        return;
    for (int64_t i = 0; i < dt_cache_store_found(s); i++)
        dt_cache_store_bytes(s, i);
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
        write_again(&x);
        read_folder(&x);
        dt_cache_index_release(&x);
    }
    take_stock();
    free(text);
    return 0;
}
