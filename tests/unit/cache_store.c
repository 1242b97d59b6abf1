/* cache_store.c - caches without encoders: shards, indexes, what readers see of them, damage of every kind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <malloc.h>
#include "base/file.h"
#include "base/rng.h"
#include "data/cache_tar.h"
#include "data/cache_write.h"
#include "tensor/safetensors.h"
#include "tests/unit/scratch.h"

static char *scratch(void **state) { return *state; }

/* --- making small caches --- */

static dt_cache_recipe recipe(const char *vae, const char *t5)
{
    dt_cache_recipe r = { .code = 1, .dtype = DT_F32, .compute = DT_F32, .text_len = 2, .n = 2 };
    strcpy(r.part[0].name, "vae");
    r.part[0].hash = r.part[0].stat = dt_hash_bytes(vae, strlen(vae));
    strcpy(r.part[1].name, "text_encoder_2");
    r.part[1].text = true;
    r.part[1].hash = r.part[1].stat = dt_hash_bytes(t5, strlen(t5));
    return r;
}

static dt_batch_item picture(const dt_plan_item *it)
{
    return (dt_batch_item){ .item = it, .resize_w = 20, .resize_h = 16, .crop_x = 2 };
}

static void *pack(size_t *bytes, const char *const name[2], dt_dims a, dt_dims b, float v)
{
    float x[16];
    void *data;
    for (int i = 0; i < 16; i++)
        x[i] = v + (float)i;
    dt_st_entry e[2] = { { .name = name[0], .dims = a, .data = x }, { .name = name[1], .dims = b, .data = x } };
    assert_int_equal(dt_st_pack(&data, bytes, e, 2, NULL, NULL), 0);
    return data;
}

static void put(dt_cache_store *s, dt_cache_rec *rec, const dt_hash *key, float v)
{
    static const char *const image[2] = { "mean", "logvar" }, *const text[2] = { "states", "pooled" };
    int64_t place = dt_cache_store_find(s, key);
    if (place < 0) {
        size_t bytes;
        void *data = rec->kind == DT_CACHE_IMAGE ? pack(&bytes, image, DT_DIMS(2, 2, 3), DT_DIMS(2, 2, 3), v)
                                                 : pack(&bytes, text, DT_DIMS(2, 3), DT_DIMS(4), v);
        place = dt_cache_store_claim(s, key);
        assert_int_equal(dt_cache_store_put(s, place, key, data, bytes, NULL), 0);
        free(data);
    }
    assert_int_equal(dt_cache_store_fill(s, rec, place, NULL), 0);
}

/* Records to be written, in memory. */
struct recs {
    dt_cache_rec *v;
    int64_t n, cap;
};

static dt_cache_rec *add_rec(struct recs *r, enum dt_cache_kind kind, const char *req)
{
    dt_grow(&r->v, &r->cap, r->n + 1, sizeof(*r->v));
    r->v[r->n] = (dt_cache_rec){ .kind = kind, .req = dt_strdup(req) };
    return &r->v[r->n++];
}

static int get_rec(void *ctx, int64_t i, dt_cache_rec *rec, dt_err *err)
{
    const struct recs *r = ctx;
    (void)err;
    *rec = r->v[i];
    rec->req = dt_strdup(rec->req);
    rec->why = dt_strdup(rec->why);
    return 1;
}

static void put_plan(dt_cache_store *s)
{
    FILE *f = tmpfile();
    fputs("a plan\n", f);
    fflush(f);
    assert_int_equal(dt_cache_store_member(s, "plan.ndjson", f, NULL), 0);
    fclose(f);
}

/* `paths` of pictures "P:CONTENT", whose latents begin with the number of CONTENT; "!P" is skipped.  And captions. */
static bool fill(const char *dir, FILE *out, const dt_cache_recipe *r, const char *paths, const char *captions)
{
    dt_cache_store *s;
    struct recs x = { 0 };
    dt_strs p = { 0 }, c = { 0 };
    dt_err err = { 0 };
    bool wrote;
    assert_int_equal(
        dt_cache_store_open(&s, &(struct dt_cache_store_params){ .dir = dir, .out = out, .max_bytes = 4000 }, &err),
        0);
    if (out)
        put_plan(s);
    dt_strs_split(&p, paths, ' ');
    dt_strs_split(&c, captions, ' ');
    for (int64_t i = 0; i < p.n; i++) {
        if (*p.v[i] == '!') {
            add_rec(&x, DT_CACHE_SKIP, p.v[i] + 1)->why = dt_strdup("broken");
            continue;
        }
        char *content = strchr(p.v[i], ':');
        *content++ = '\0';
        dt_plan_item it = { .path = p.v[i] };
        dt_batch_item at = picture(&it);
        dt_hash source = dt_hash_bytes(content, strlen(content));
        char *req = dt_cache_request(&at, 16, 16);
        dt_hash key = dt_cache_image_key(r, req, &source);
        dt_cache_rec *rec = add_rec(&x, DT_CACHE_IMAGE, req);
        rec->source = source;
        put(s, rec, &key, strtof(content, NULL));
        free(req);
    }
    for (int64_t i = 0; i < c.n; i++) {
        dt_hash key = dt_cache_text_key(r, c.v[i], r->text_len);
        put(s, add_rec(&x, DT_CACHE_TEXT, c.v[i]), &key, (float)strlen(c.v[i]));
    }
    assert_int_equal(dt_cache_store_commit(s, r, &(struct dt_cache_lines){ x.n, get_rec, &x }, &wrote, &err), 0);
    dt_cache_store_close(&s);
    for (int64_t i = 0; i < x.n; i++)
        dt_cache_rec_release(&x.v[i]);
    free(x.v);
    dt_strs_release(&p);
    dt_strs_release(&c);
    return wrote;
}

/* What a change of one field of a recipe changes: keys of pictures (16 px; 64 px), of captions. */
static void every_field_of_a_recipe_counts(void **state)
{
    (void)state;
    static const struct { const char *what; size_t off, size; bool image, large, text; } f[] = {
#define FIELD(m, i, l, t) { #m, offsetof(dt_cache_recipe, m), sizeof(((dt_cache_recipe *)0)->m), i, l, t }
        FIELD(code, true, true, true), FIELD(dtype, true, true, true), FIELD(compute, true, true, true),
        FIELD(tile_px, false, true, false), FIELD(text_len, false, false, false),
        FIELD(text_padding, false, false, true),
        FIELD(n, false, false, true), FIELD(part[0].name, true, true, false), FIELD(part[0].text, true, true, true),
        FIELD(part[0].hash, true, true, false), FIELD(part[0].stat, false, false, false),
        FIELD(part[1].name, false, false, true),
        FIELD(part[1].text, true, true, true), FIELD(part[1].hash, false, false, true),
        FIELD(part[1].stat, false, false, false),
    };
    dt_hash source = dt_hash_bytes("s", 1);
    const char *small = "20 16 2 0 16 16 0 a", *large = "80 64 8 0 64 64 0 a";
    size_t end = 0;
    for (size_t i = 0; i < sizeof(f) / sizeof(*f); i++) {
        dt_cache_recipe a = recipe("v1", "t1"), b;
        a.tile_px = 32;
        b = a;
        ((unsigned char *)&b)[f[i].off] ^= 1;
        if (f[i].off == offsetof(dt_cache_recipe, n))
            b.n = 1;
        dt_hash k = dt_cache_image_key(&a, small, &source), l = dt_cache_image_key(&b, small, &source);
        dt_hash kl = dt_cache_image_key(&a, large, &source), ll = dt_cache_image_key(&b, large, &source);
        dt_hash kt = dt_cache_text_key(&a, "c", 2), lt = dt_cache_text_key(&b, "c", 2);
        if ((strcmp(k.hex, l.hex) != 0) != f[i].image || (strcmp(kl.hex, ll.hex) != 0) != f[i].large ||
            (strcmp(kt.hex, lt.hex) != 0) != f[i].text)
            fail_msg("%s", f[i].what);
        /* and readers see no entries of the other, except that those see text_len whose padding shows it in T */
        bool len = f[i].off == offsetof(dt_cache_recipe, text_len);
        if (dt_cache_recipe_fits(&a, &b, false) == f[i].large ||
            dt_cache_recipe_fits(&a, &b, true) == (f[i].text || len))
            fail_msg("readers: %s", f[i].what);
        if (f[i].off != end)
            fail_msg("a field before %s that is not in this table", f[i].what);
        end = f[i].off + f[i].size;
    }
    assert_int_equal(end, offsetof(dt_cache_recipe, part[2]));
    assert_int_equal(sizeof(dt_cache_recipe), offsetof(dt_cache_recipe, part[DT_CACHE_MAX_PARTS]));
    dt_cache_recipe a = recipe("v1", "t1");
    dt_hash x = dt_cache_text_key(&a, "c", 2), y = dt_cache_text_key(&a, "c", 3), z = dt_cache_text_key(&a, "d", 2);
    assert_true(strcmp(x.hex, y.hex) && strcmp(x.hex, z.hex));
}

/* First number of a picture's mean; -1 if the cache lacks it. */
static float look(const dt_cache *c, const char *path)
{
    dt_plan_item it = { .path = path };
    dt_batch_item at = picture(&it);
    dt_cached_image im;
    float v;
    if (dt_cache_image(c, &at, 16, 16, &im, NULL) < 0)
        return -1;
    assert_int_equal(im.C * 100 + im.h * 10 + im.w, 223);
    assert_int_equal(im.dtype, DT_F32);
    assert_int_equal((uintptr_t)im.mean % 4, 0);
    memcpy(&v, im.mean, sizeof(v));
    return v;
}

static dt_cache *open_cache(const char *dir)
{
    dt_cache *c;
    dt_err err = { 0 };
    if (dt_cache_open(&c, dir, &err) < 0)
        fail_msg("%s", err.msg);
    return c;
}

/* --- tests --- */

/* Bytes of the heap in use. */
static int64_t held(void)
{
    struct mallinfo2 m = mallinfo2();
    return (int64_t)(m.uordblks + m.hblkhd);
}

static void finds_what_was_put(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    dt_cached_text t;
    assert_true(fill(scratch(state), NULL, &r, "a:1 b:2 c:1 !d", "x yy"));
    dt_cache *c = open_cache(scratch(state));
    assert_true(look(c, "a") == 1 && look(c, "b") == 2 && look(c, "c") == 1 && look(c, "d") == -1 &&
                look(c, "e") == -1);
    assert_true(dt_cache_skips(c, "d") && !dt_cache_skips(c, "a") && !dt_cache_skips(c, "e"));
    assert_int_equal(dt_cache_text(c, "yy", &t, NULL), 0);
    assert_int_equal(t.T * 100 + t.D * 10 + t.P, 234);
    assert_true(*(const float *)t.states == 2);
    assert_int_equal(dt_cache_text(c, "z", &t, NULL), DT_EDATA);
    assert_string_equal(dt_cache_recipe_part(dt_cache_recipe_of(c, false), "vae")->hash.hex, r.part[0].hash.hex);
    assert_string_equal(dt_cache_recipe_part(dt_cache_recipe_of(c, true), "text_encoder_2")->hash.hex,
                        r.part[1].hash.hex);
    assert_null(dt_cache_recipe_part(dt_cache_recipe_of(c, true), "transformer"));
    assert_int_equal(dt_cache_text_len(c, "yy", NULL), 2);
    assert_int_equal(dt_cache_text_len(c, "z", NULL), DT_EDATA);
    assert_int_equal(dt_cache_recipe_of(c, true)->text_padding, DT_PAD_MAX);
    dt_cache_close(&c);
}

static void another_size_or_flip_is_another_picture(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    dt_cached_image im;
    fill(scratch(state), NULL, &r, "a:1", "");
    dt_cache *c = open_cache(scratch(state));
    dt_plan_item it = { .path = "a" };
    dt_batch_item at = picture(&it);
    assert_int_equal(dt_cache_image(c, &at, 16, 16, &im, NULL), 0);
    assert_int_equal(dt_cache_image(c, &at, 16, 32, &im, NULL), DT_EDATA);
    at.flip = true;
    assert_int_equal(dt_cache_image(c, &at, 16, 16, &im, NULL), DT_EDATA);
    dt_cache_close(&c);
}

static void same_again_writes_nothing(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    assert_true(fill(scratch(state), NULL, &r, "a:1 b:2 !d", "x"));
    assert_false(fill(scratch(state), NULL, &r, "a:1 b:2 !d", "x"));
    assert_false(fill(scratch(state), NULL, &r, "b:2", ""));
    assert_true(fill(scratch(state), NULL, &r, "b:3", ""));
    assert_true(fill(scratch(state), NULL, &r, "d:4", ""));
    assert_true(fill(scratch(state), NULL, &r, "!b", ""));
}

static void newest_index_is_right(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    fill(scratch(state), NULL, &r, "a:1 b:2 !d f:6", "x");
    fill(scratch(state), NULL, &r, "a:7 d:4 !b", "");
    dt_cache *c = open_cache(scratch(state));
    assert_true(look(c, "a") == 7 && look(c, "d") == 4 && look(c, "f") == 6);
    assert_true(dt_cache_skips(c, "b") && !dt_cache_skips(c, "d"));
    dt_cache_close(&c);
    fill(scratch(state), NULL, &r, "a:1", "");          /* back to what it was: the old entry serves */
    c = open_cache(scratch(state));
    assert_true(look(c, "a") == 1);
    dt_cache_close(&c);
}

static void other_encoders_are_not_seen(void **state)
{
    dt_cache_recipe r = recipe("v", "t"), q = recipe("w", "t");
    dt_cached_text t;
    fill(scratch(state), NULL, &r, "a:1 b:2", "x");
    fill(scratch(state), NULL, &q, "a:5", "y");
    dt_cache *c = open_cache(scratch(state));
    assert_true(look(c, "a") == 5 && look(c, "b") == -1);
    assert_int_equal(dt_cache_text(c, "x", &t, NULL), 0);
    assert_string_equal(dt_cache_recipe_part(dt_cache_recipe_of(c, false), "vae")->hash.hex, q.part[0].hash.hex);
    dt_cache_close(&c);
}

/* Everything that the content depends on, and nothing else, changes a key. */
static void keys(void **state)
{
    (void)state;
    dt_cache_recipe r = recipe("v", "t");
    dt_hash src = dt_hash_bytes("1", 1), other = dt_hash_bytes("2", 1),
            k = dt_cache_image_key(&r, "20 16 2 0 16 16 0 a", &src);
    assert_string_equal(dt_cache_image_key(&r, "20 16 2 0 16 16 0 elsewhere b", &src).hex, k.hex);
    assert_string_not_equal(dt_cache_image_key(&r, "20 16 2 0 16 16 0 a", &other).hex, k.hex);
    assert_string_not_equal(dt_cache_image_key(&r, "20 16 2 0 16 16 1 a", &src).hex, k.hex);
    assert_string_not_equal(dt_cache_image_key(&r, "20 16 3 0 16 16 0 a", &src).hex, k.hex);
    assert_string_equal(dt_cache_request_path("1 2 3 4 5 6 0 a b/c d"), "a b/c d");
}

/* A run that was killed has left complete shards without an index, and a temporary file. */
static void finished_shards_survive(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    dt_cache_store *s;
    dt_hash key[10];
    char *tmp = dt_path_join(scratch(state), ".shard-000001-0of1-0007.tar.1.tmp"),
         *other = dt_path_join(scratch(state), ".shard-000001-0of12-0007.tar.1.tmp");
    struct dt_cache_store_params p = { .dir = scratch(state), .max_bytes = 4000 };
    assert_int_equal(dt_cache_store_open(&s, &p, NULL), 0);
    assert_int_equal(dt_cache_store_found(s), 0);
    for (int i = 0; i < 10; i++) {
        char text[] = { (char)('a' + i), 0 };
        dt_cache_rec rec = { .kind = DT_CACHE_TEXT };
        key[i] = dt_cache_text_key(&r, text, 2);
        put(s, &rec, &key[i], (float)i);
    }
    dt_cache_store_close(&s);
    dt_file_write(tmp, "half", 4, NULL);
    dt_file_write(other, "half", 4, NULL);
    assert_int_equal(dt_cache_store_open(&s, &p, NULL), 0);
    int64_t found = dt_cache_store_found(s);
    assert_in_range(found, 5, 9);                       /* the shard that was not complete is gone */
    for (int i = 0; i < 10; i++)
        assert_int_equal(dt_cache_store_find(s, &key[i]) >= 0, i < found);
    assert_false(dt_exists(tmp));
    assert_true(dt_exists(other));                      /* another process may be writing it */
    dt_cache_store_close(&s);
    free(tmp);
    free(other);
}

static void one_at_a_time(void **state)
{
    dt_cache_store *a, *b = NULL, *c;
    dt_err err = { 0 };
    assert_int_equal(dt_cache_store_open(&a, &(struct dt_cache_store_params){ .dir = scratch(state) }, NULL), 0);
    assert_int_equal(dt_cache_store_open(&b, &(struct dt_cache_store_params){ .dir = scratch(state) }, &err),
                     DT_EFAIL);
    assert_null(b);
    assert_non_null(strstr(err.msg, "another process"));
    assert_int_equal(dt_cache_store_open(
                         &c, &(struct dt_cache_store_params){ .dir = scratch(state), .shards = 2, .shard = 1 }, NULL),
                     0);
    dt_cache_store_close(&a);
    dt_cache_store_close(&c);
}

static char *shard_of(const char *dir) { return dt_path_join(dir, "shard-000001-0of1-0000.tar"); }

static void damage_is_noticed(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    char *path = shard_of(scratch(state)), *data;
    size_t bytes;
    dt_cache *c;
    dt_err err = { 0 };
    fill(scratch(state), NULL, &r, "a:1", "");
    assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, NULL), 0);
    /* in its first number, behind tar's header, safetensors' length and header */
    data[512 + 8 + (uint8_t)data[512] + 1] ^= 1;
    dt_file_write(path, data, bytes, NULL);
    c = open_cache(scratch(state));
    dt_plan_item it = { .path = "a" };
    dt_batch_item at = picture(&it);
    dt_cached_image im;
    assert_int_equal(dt_cache_image(c, &at, 16, 16, &im, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "damaged"));
    dt_cache_close(&c);
    dt_file_write(path, data, 600, NULL);
    assert_int_equal(dt_cache_open(&c, scratch(state), &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "cut off"));
    unlink(path);
    assert_int_equal(dt_cache_open(&c, scratch(state), &err), DT_EDATA);
    assert_non_null(strstr(err.msg, path));
    assert_true(fill(scratch(state), NULL, &r, "a:1", ""));     /* heals */
    c = open_cache(scratch(state));
    assert_true(look(c, "a") == 1);
    dt_cache_close(&c);
    free(data);
    free(path);
}

static int walk(const uint8_t *data, size_t bytes)
{
    dt_tar_member m;
    size_t pos = 0;
    int rc;
    while ((rc = dt_tar_next(data, bytes, &pos, &m, "x", NULL)) == 1)
        assert_true(m.off <= bytes && m.bytes <= bytes - m.off && strlen(m.name) <= 100);
    return rc;
}

static void tar_survives_anything(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    char *path = shard_of(scratch(state)), *data;
    size_t bytes;
    fill(scratch(state), NULL, &r, "a:1 b:2", "x");
    assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, NULL), 0);
    assert_int_equal(walk((uint8_t *)data, bytes), 0);
    for (size_t n = 0; n < bytes; n++) {
        uint8_t *cut = malloc(n ? n : 1);               /* its own size, so that a sanitizer sees one byte too many */
        memcpy(cut, data, n);
        assert_int_equal(walk(cut, n), DT_EDATA);
        free(cut);
    }
    dt_rng rng = dt_rng_make(1, DT_RNG_SHUFFLE, 0, 0);
    for (int i = 0; i < 20000; i++) {
        size_t at = (size_t)(dt_rng_uniform(&rng) * (double)bytes);
        char was = data[at];
        data[at] = (char)(uint8_t)(dt_rng_uniform(&rng) * 256);
        walk((uint8_t *)data, bytes);
        data[at] = was;
    }
    free(data);
    free(path);
}

static int read_all(const char *text, size_t bytes)
{
    dt_cache_index x;
    dt_cache_rec rec;
    size_t pos = 0;
    int rc = dt_cache_index_read(&x, text, bytes, "x", NULL);
    if (rc < 0)
        return rc;
    while ((rc = dt_cache_index_next(&x, &pos, &rec, NULL)) == 1) {
        assert_true(rec.file < x.files.n && rec.req && *dt_cache_request_path(rec.req) >= -128);
        dt_cache_rec_release(&rec);
    }
    assert_null(rec.req);
    dt_cache_index_release(&x);
    return rc;
}

static void index_survives_anything(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    char *path = dt_path_join(scratch(state), "index-000001-0of1.ndjson"), *data;
    size_t bytes;
    fill(scratch(state), NULL, &r, "a:1 !b", "x");
    assert_int_equal(dt_file_read(&data, &bytes, path, 1 << 20, NULL), 0);
    for (size_t n = 0; n + 1 < bytes; n++) {
        char *cut = malloc(n ? n : 1);
        memcpy(cut, data, n);
        assert_int_equal(read_all(cut, n), DT_EDATA);
        free(cut);
    }
    dt_rng rng = dt_rng_make(2, DT_RNG_SHUFFLE, 0, 0);
    for (int i = 0; i < 20000; i++) {
        size_t at = (size_t)(dt_rng_uniform(&rng) * (double)bytes);
        char was = data[at];
        data[at] = (char)(dt_rng_uniform(&rng) * 256);
        read_all(data, bytes);
        data[at] = was;
    }
    free(data);
    free(path);
}

static int receive(const char *dir, const char *data, size_t bytes, dt_err *err)
{
    FILE *f = fmemopen((void *)data, bytes ? bytes : 1, "r");
    if (!bytes)
        fgetc(f);
    int rc = dt_cache_receive(f, dir, err);
    fclose(f);
    return rc;
}

static void streams(void **state)
{
    dt_cache_recipe r = recipe("v", "t");
    char *data = NULL, *dir = dt_path_join(scratch(state), "in"), *plan = dt_path_join(dir, "plan.ndjson"), *text;
    size_t bytes = 0, n;
    dt_err err = { 0 };
    FILE *f = open_memstream(&data, &bytes);
    fill(NULL, f, &r, "a:1 b:2 c:1 !d", "x y");
    fclose(f);
    for (size_t cut = 0; cut < bytes - 1024; cut += 97) {       /* without the end mark it is whole already */
        dt_cache *c;
        assert_int_equal(receive(dir, data, cut, &err), DT_EDATA);
        assert_int_equal(dt_cache_open(&c, dir, NULL), DT_EDATA);
        assert_false(dt_exists(plan));
    }
    for (size_t at = 0; at < bytes - 1024; at += 389) {
        data[at] ^= 32;
        int rc = receive(dir, data, bytes, &err);
        assert_true(rc == 0 || rc == DT_EDATA); /* bytes of padding and of tar's unused fields do not matter */
        dt_rmtree(dir, NULL);
        data[at] ^= 32;
    }
    assert_int_equal(receive(dir, data, bytes, &err), 0);
    assert_int_equal(receive(dir, data, bytes, &err), 0);
    dt_cache *c = open_cache(dir);
    assert_true(look(c, "a") == 1 && look(c, "b") == 2 && look(c, "c") == 1 && dt_cache_skips(c, "d"));
    dt_cache_close(&c);
    assert_int_equal(dt_file_read(&text, &n, plan, 100, NULL), 0);
    assert_string_equal(text, "a plan\n");
    free(text);
    free(plan);
    free(data);
    free(dir);
}

/* Of 20,000 records a reader keeps some bytes each, whatever their requests are like. */
static void many_records(void **state)
{
    enum { N = 20000 };
    dt_cache_recipe r = recipe("v", "t");
    char *first = dt_path_join(scratch(state), "index-000001-0of1.ndjson"), *text, *line;
    char *path = dt_path_join(scratch(state), "index-000002-0of1.ndjson");
    size_t bytes;
    fill(scratch(state), NULL, &r, "a:1", "");
    assert_int_equal(dt_file_read(&text, &bytes, first, 1 << 20, NULL), 0);
    char *rec = strchr(text, '\n') + 1, *end = strchr(rec, '\n') + 1;
    FILE *f = fopen(path, "w");
    fwrite(text, 1, (size_t)(rec - text), f);
    assert_non_null(line = strstr(rec, "\"a\""));
    for (int i = 0; i < N; i++)
        fprintf(f, "%.*s\"a picture with a name that is as long as names of pictures are, number %d\"%.*s",
                (int)(line - rec), rec, i, (int)(end - line - 3), line + 3);
    fputs(end, f);
    fclose(f);
    int64_t before = held();
    dt_cache *c = open_cache(scratch(state));
    assert_in_range(held() - before, 0, 60 * N);
    assert_true(look(c, "a") == 1 &&
                look(c, "a picture with a name that is as long as names of pictures are, number 19999") == 1);
    assert_int_equal(dt_cache_skipped(c), 0);
    dt_cache_close(&c);
    free(text);
    free(path);
    free(first);
}

static void no_cache(void **state)
{
    dt_cache *c;
    dt_err err = { 0 };
    assert_int_equal(dt_cache_open(&c, "/nowhere/at/all", &err), DT_EDATA);
    assert_null(c);
    assert_int_equal(dt_cache_open(&c, scratch(state), &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "no index; run dt-cache-latents"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        scratch_test(finds_what_was_put), scratch_test(another_size_or_flip_is_another_picture),
        scratch_test(same_again_writes_nothing), scratch_test(newest_index_is_right),
        scratch_test(other_encoders_are_not_seen), scratch_test(keys), scratch_test(finished_shards_survive),
        scratch_test(one_at_a_time), scratch_test(damage_is_noticed), scratch_test(tar_survives_anything),
        scratch_test(index_survives_anything), scratch_test(streams), scratch_test(many_records),
        scratch_test(no_cache), scratch_test(every_field_of_a_recipe_counts),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
