/* The bytes of a cache entry under a hash that is right, so that they come to be read: first byte t: of a
 * caption, else of a picture. */
#include <string.h>
#include "base/file.h"
#include "data/cache_write.h"
#include "tests/fuzz/fuzz.h"

static int get(void *ctx, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    (void)i;
    (void)err;
    *rec = *(const dt_cache_rec *)ctx;
    rec->req = dt_strdup(rec->req);
    return 1;
}

static void fill(const char *dir, const dt_plan_item *it, const uint8_t *data, size_t size, bool text)
{
    dt_cache_store *s = NULL;
    dt_err err = { 0 };
    bool wrote;
    dt_cache_recipe recipe = { .code = 1, .dtype = DT_F32, .compute = DT_F32, .text_len = 2,
                               .text_padding = DT_PAD_NONE };
    struct dt_cache_store_params p = { .dir = dir, .shards = 1, .max_bytes = 1 << 20 };
    fuzz_check(dt_cache_store_open(&s, &p, &err) == 0);
    dt_hash key = dt_hash_bytes(data, size);
    dt_batch_item b = { .item = it, .resize_w = 20, .resize_h = 16 };
    char *req = dt_cache_request(&b, 16, 16);
    dt_cache_rec r = { .kind = text ? DT_CACHE_TEXT : DT_CACHE_IMAGE, .req = text ? (char *)it->text : req,
                       .source = key };
    int64_t place = dt_cache_store_claim(s, &key);
    fuzz_check(dt_cache_store_put(s, place, &key, data, size, &err) == 0);
    fuzz_check(dt_cache_store_fill(s, &r, place, &err) == 0);
    fuzz_check(dt_cache_store_commit(s, &recipe, &(struct dt_cache_lines){ 1, get, &r }, &wrote, &err) == 0);
    dt_cache_store_close(&s);
    free(req);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const dt_plan_item it = { .path = "a.png", .text = "a caption", .w = 20, .h = 16 };
    dt_batch_item b = { .item = &it, .resize_w = 20, .resize_h = 16 };
    dt_cache *c = NULL;
    dt_err err = { 0 };
    dt_cached_image im;
    dt_cached_text t;
    if (!size)
        return 0;
    dt_rmtree(fuzz_path("cache"), NULL);
    fill(fuzz_path("cache"), &it, data + 1, size - 1, *data == 't');
    fuzz_check(dt_cache_open(&c, fuzz_path("cache"), &err) == 0);
    if (dt_cache_image(c, &b, 16, 16, &im, &err) == 0) {
        fuzz_touch(im.mean, (size_t)(im.C * im.h * im.w) * dt_dtype_size(im.dtype));
        fuzz_touch(im.logvar, (size_t)(im.C * im.h * im.w) * dt_dtype_size(im.dtype));
    }
    int64_t T = *data == 't' ? dt_cache_text_len(c, it.text, &err) : 0;
    if (dt_cache_text(c, it.text, &t, &err) == 0) {
        fuzz_check(t.T == T);
        fuzz_touch(t.states, (size_t)(t.T * t.D) * dt_dtype_size(t.dtype));
        fuzz_touch(t.pooled, (size_t)t.P * dt_dtype_size(t.dtype));
    }
    dt_cache_close(&c);
    return 0;
}
