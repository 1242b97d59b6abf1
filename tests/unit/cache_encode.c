/* cache_encode.c - filling a cache with a tiny FLUX model: what is kept is what the encoders give,
 * once for each content, whatever the threads, the grouping and the interruptions. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include <omp.h>
#include "base/file.h"
#include "base/rng.h"
#include "data/cache_write.h"
#include "data/media.h"
#include "models/flux_run.h"
#include "train/encode.h"
#include "train/loader.h"
#include "tests/unit/scratch.h"

#define MODEL "tests/golden/tiny-flux"
enum { PICTURES = 7 };

struct fixture {
    char *dir, *plan;
    dt_flux_pipe *pipe;
    dt_device *dev;
};

static char *file(const struct fixture *f, const char *name) { return dt_path_join(f->dir, name); }

/* Pictures 0..6: 6 holds the same bytes as 2. */
static void write_pictures(const struct fixture *f)
{
    for (int i = 0; i < PICTURES; i++) {
        char name[16];
        dt_image im;
        dt_rng r = dt_rng_make(7, DT_RNG_SHUFFLE, 0, i == 6 ? 2 : (uint32_t)i);
        snprintf(name, sizeof(name), "%d.png", i);
        char *path = file(f, name);
        assert_int_equal(dt_image_alloc(&im, 40, 32, NULL), 0);
        for (int k = 0; k < 40 * 32 * 3; k++)
            im.rgb[k] = (uint8_t)(dt_rng_uniform(&r) * 256);
        assert_int_equal(dt_png_write(path, &im, NULL, 0, NULL), 0);
        dt_image_release(&im);
        free(path);
    }
}

/* Two sizes; picture 0 twice at the same, 1 mirrored too; captions "cap 0", "cap 1", "" and one dropped. */
static void write_plan(const struct fixture *f)
{
    FILE *o = fopen(f->plan, "w");
    fprintf(o, "{\"dt_plan\":1,\"seed\":1,\"items\":%d,\"epochs\":1,\"batches\":3,\"samples\":10,\"steps\":3,"
               "\"train_batch_size\":4,\"gradient_accumulation_steps\":1,\"world_size\":1}\n", PICTURES);
    for (int i = 0; i < PICTURES; i++)
        fprintf(o, "{\"item\":%d,\"path\":\"%s/%d.png\",\"text\":\"%s\",\"size\":[40,32]}\n", i, f->dir, i,
                i == 6 ? "" : i % 2 ? "cap 1" : "cap 0");
#define AT(n, more) "{\"item\":" #n ",\"resize\":[40,32],\"crop\":[4,0]" more "}"
#define BATCH(k, size, items) "{\"batch\":" #k ",\"epoch\":0,\"size\":" size ",\"items\":[" items "]}\n"
    fputs(BATCH(0, "[32,32]", AT(0, "") "," AT(1, "") "," AT(2, "") "," AT(3, ""))
          BATCH(1, "[32,16]", AT(4, "") "," AT(5, ",\"drop\":true"))
          BATCH(2, "[32,32]", AT(6, "") "," AT(1, ",\"flip\":true") "," AT(0, "") "," AT(5, ""))
          "{\"end\":true,\"batches\":3}\n", o);
    fclose(o);
}

static int set_up(void **state)
{
    struct fixture *f = dt_alloc(sizeof(*f));
    *state = f;
    f->dir = scratch_new();
    f->plan = file(f, "plan.ndjson");
    write_pictures(f);
    write_plan(f);
    return dt_flux_pipe_open(&f->pipe, MODEL, 24, NULL) < 0 || dt_device_open(&f->dev, "cpu", NULL) < 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    dt_flux_pipe_close(&f->pipe);
    dt_device_close(&f->dev);
    scratch_end(f->dir);
    free(f->plan);
    free(f);
    return 0;
}

static struct dt_encode_params params(const struct fixture *f, const char *dir)
{
    return (struct dt_encode_params){ .pipe = f->pipe, .dev = f->dev, .plan = f->plan, .dir = dir,
                                      .vae_mini_batch = 32, .shards = 1, .workers = 2, .max_skipped_fraction = 0.5,
                                      .quiet = true, .max_shard_bytes = 1 << 20 };
}

static int run(const struct dt_encode_params *p, struct dt_encode_report *r)
{
    dt_err err = { 0 };
    *r = (struct dt_encode_report){ 0 };
    int rc = dt_encode_run(p, r, &err);
    if (rc < 0 && rc != DT_ESIGNAL && rc != DT_EDATA)
        fail_msg("%s", err.msg);
    dt_encode_report_release(r);
    return rc;
}

static dt_flux_run *new_run(const struct fixture *f)
{
    dt_flux_run *r = dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = f->pipe, .dev = f->dev, .act = DT_F32 });
    for (int k = DT_FLUX_VAE; k <= DT_FLUX_T5; k++)
        assert_int_equal(dt_flux_pipe_load(f->pipe, (enum dt_flux_part)k, f->dev, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_flux_pipe_tokenizers(f->pipe, NULL), 0);
    assert_int_equal(dt_flux_run_plan_text(r, f->pipe->t5_len, NULL), 0);
    assert_int_equal(dt_flux_run_plan_encode(r, 1, 32, 32, NULL), 0);
    assert_int_equal(dt_flux_run_plan_encode(r, 1, 32, 16, NULL), 0);
    assert_int_equal(dt_flux_run_alloc(r, NULL, NULL), 0);
    return r;
}

static void check_image(const struct fixture *f, const dt_cache *c, dt_flux_run *run, const dt_batch_item *it, int w,
                        int h)
{
    dt_image in, out;
    dt_cached_image got;
    float mean[4 * 16 * 16], logvar[4 * 16 * 16];
    int64_t v = dt_vae_factor(&f->pipe->vae), n = f->pipe->vae.latent_channels * (w / v) * (h / v);
    assert_true(n <= 4 * 16 * 16);
    assert_int_equal(dt_image_read(&in, it->item->path, NULL, NULL), 0);
    assert_int_equal(dt_image_resize(&out, &in, it->resize_w, it->resize_h, it->crop_x, it->crop_y, w, h, NULL), 0);
    if (it->flip)
        dt_image_flip(&out);
    assert_int_equal(dt_flux_run_encode(run, (const uint8_t *const[]){ out.rgb }, 1, w, h, mean, logvar, NULL), 0);
    assert_int_equal(dt_cache_image(c, it, w, h, &got, NULL), 0);
    assert_int_equal(got.C * got.h * got.w, n);
    assert_memory_equal(got.mean, mean, (size_t)n * sizeof(float));
    assert_memory_equal(got.logvar, logvar, (size_t)n * sizeof(float));
    dt_image_release(&in);
    dt_image_release(&out);
}

static void check_text(const struct fixture *f, const dt_cache *c, dt_flux_run *run, const char *caption)
{
    int64_t n = f->pipe->t5_len * f->pipe->dit.joint_dim, p = f->pipe->dit.pooled_dim;
    float *states = dt_alloc((size_t)n * sizeof(float)), *pooled = dt_alloc((size_t)p * sizeof(float));
    dt_cached_text got;
    assert_int_equal(dt_flux_run_text(run, caption, states, pooled, NULL), 0);
    assert_int_equal(dt_cache_text(c, caption, &got, NULL), 0);
    assert_int_equal(got.T, f->pipe->t5_len);
    assert_int_equal(got.D, f->pipe->dit.joint_dim);
    assert_int_equal(got.P, p);
    assert_memory_equal(got.states, states, (size_t)n * sizeof(float));
    assert_memory_equal(got.pooled, pooled, (size_t)p * sizeof(float));
    free(states);
    free(pooled);
}

static void keeps_what_the_encoders_give(void **state)
{
    struct fixture *f = *state;
    char *dir = file(f, "cache");
    struct dt_encode_params p = params(f, dir);
    struct dt_encode_report r;
    dt_cache *c;
    dt_batches *b;
    dt_batch x;
    dt_hash h;
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.images.wanted, 9);       /* 10 samples, one of them twice */
    assert_int_equal(r.images.made, 8);
    assert_int_equal(r.images.shared, 1);       /* 6 is 2 */
    assert_int_equal(r.texts.made, 3);
    assert_int_equal(dt_cache_open(&c, dir, NULL), 0);
    dt_flux_run *enc = new_run(f);
    assert_int_equal(dt_batches_open(&b, f->plan, NULL), 0);
    while (dt_batches_next(b, &x, NULL) == 1)
        for (int i = 0; i < x.n; i++) {
            check_image(f, c, enc, &x.item[i], x.w, x.h);
            check_text(f, c, enc, x.item[i].drop ? "" : x.item[i].item->text);
        }
    assert_int_equal(dt_flux_pipe_hash(f->pipe, DT_FLUX_VAE, &h, NULL), 0);
    assert_string_equal(dt_cache_recipe_part(dt_cache_recipe_of(c, false), "vae")->hash.hex, h.hex);
    assert_int_equal(dt_cache_text_len(c, "cap 1", NULL), f->pipe->t5_len);
    assert_int_equal(dt_cache_recipe_of(c, true)->text_padding, DT_PAD_MAX);
    dt_batches_close(&b);
    dt_cache_close(&c);
    dt_flux_run_free(&enc);
    free(dir);
}

/* The bytes of a cache's first shard and of its index. */
static void contents(const char *dir, char *data[2], size_t bytes[2])
{
    static const char *const name[2] = { "shard-000001-0of1-0000.tar", "index-000001-0of1.ndjson" };
    for (int i = 0; i < 2; i++) {
        char *path = dt_path_join(dir, name[i]);
        assert_int_equal(dt_file_read(&data[i], &bytes[i], path, 1 << 24, NULL), 0);
        free(path);
    }
}

static void same_bytes_for_any_threads_and_groups(void **state)
{
    static const struct {
        int workers, group, threads;
    } way[] = { { 1, 1, 1 }, { 1, 2, 1 }, { 5, 3, 1 }, { 3, 32, 2 } };
    struct fixture *f = *state;
    char *data[2], *first[2] = { NULL, NULL };
    size_t bytes[2], n[2];
    for (size_t i = 0; i < sizeof(way) / sizeof(*way); i++) {
        char name[16];
        snprintf(name, sizeof(name), "cache%zu", i);
        char *dir = file(f, name);
        struct dt_encode_params p = params(f, dir);
        struct dt_encode_report r;
        p.workers = way[i].workers;
        p.vae_mini_batch = way[i].group;
        omp_set_num_threads(way[i].threads);
        assert_int_equal(run(&p, &r), 0);
        contents(dir, i ? data : first, i ? bytes : n);
        for (int k = 0; i && k < 2; k++) {
            assert_int_equal(bytes[k], n[k]);
            assert_memory_equal(data[k], first[k], n[k]);
            free(data[k]);
        }
        free(dir);
    }
    omp_set_num_threads(1);
    free(first[0]);
    free(first[1]);
}

static void again_makes_only_what_changed(void **state)
{
    struct fixture *f = *state;
    char *dir = file(f, "cache"), *a = file(f, "3.png"), *b = file(f, "4.png"), *data;
    struct dt_encode_params p = params(f, dir);
    struct dt_encode_report r;
    size_t bytes;
    run(&p, &r);
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.images.made + r.texts.made, 0);
    assert_int_equal(r.images.there, 9);
    assert_false(r.wrote_index);
    assert_int_equal(utimensat(AT_FDCWD, a, NULL, 0), 0);
    for (int again = 0; again < 2; again++) {           /* touched: its time is noted, once */
        assert_int_equal(run(&p, &r), 0);
        assert_int_equal(r.images.made, 0);
        assert_int_equal(r.wrote_index, !again);
    }
    assert_int_equal(dt_file_read(&data, &bytes, b, 1 << 20, NULL), 0);
    assert_int_equal(dt_file_write(a, data, bytes, NULL), 0);   /* 3 becomes 4, at the size that 4 has not */
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.images.made, 1);
    assert_int_equal(r.texts.made, 0);
    assert_true(r.wrote_index);
    p.store = DT_BF16;
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.images.there + r.texts.there, 0);
    free(data);
    free(dir);
    free(a);
    free(b);
}

/* States of the first T of t5_len tokens, the others masked: what T5 gives when it is told that they are padding. */
static float *masked_states(const struct fixture *f, const char *caption, int64_t T)
{
    int64_t n = f->pipe->t5_len, D = f->pipe->dit.joint_dim;
    int32_t ids[64], clip[128], eos;
    uint8_t mask[64];
    dt_plan *p;
    float *x = dt_alloc((size_t)(n * D) * sizeof(*x));
    assert_true(n <= 64 && f->pipe->clip_len <= 128);
    assert_int_equal(dt_flux_tokenize(f->pipe, caption, clip, &eos, ids, NULL), T);
    for (int64_t i = 0; i < n; i++)
        mask[i] = i < T;
    dt_graph *g = dt_graph_new(DT_F32);
    dt_tensor *in = dt_input(g, "ids", DT_I32, DT_DIMS(1, n)), *m = dt_input(g, "mask", DT_U8, DT_DIMS(1, n));
    dt_graph_use(g, f->pipe->part[DT_FLUX_T5]);
    dt_tensor *out = dt_output(g, dt_t5(g, &f->pipe->t5, in, m), "out");
    assert_int_equal(dt_plan_new(&p, g, f->dev, NULL), 0);
    void *arena = f->dev->alloc(f->dev, dt_plan_bytes(p));
    dt_plan_bind(p, arena);
    dt_plan_write(p, in, ids);
    dt_plan_write(p, m, mask);
    assert_int_equal(dt_plan_run(p, NULL), 0);
    dt_plan_read(p, out, x);
    dt_plan_free(&p);
    dt_graph_free(&g);
    f->dev->free(f->dev, arena);
    return x;
}

/* Each caption has its own tokens' states, which its padding has not touched. */
static void check_unpadded(const struct fixture *f, const dt_cache *c, const char *caption, int64_t least)
{
    dt_cached_text got;
    int64_t T = dt_flux_text_len(f->pipe, caption, NULL), D = f->pipe->dit.joint_dim;
    assert_in_range(T, least, f->pipe->t5_len - 1);
    assert_int_equal(dt_cache_text_len(c, caption, NULL), T);
    assert_int_equal(dt_cache_text(c, caption, &got, NULL), 0);
    assert_int_equal(got.T, T);
    assert_int_equal(got.D, D);
    assert_int_equal(dt_flux_pipe_load(f->pipe, DT_FLUX_T5, f->dev, DT_F32, 0, NULL), 0);
    float *want = masked_states(f, caption, T);
    dt_flux_pipe_unload(f->pipe, DT_FLUX_T5);
    for (int64_t k = 0; k < T * D; k++)
        if (!(fabsf(((const float *)got.states)[k] - want[k]) <= 1e-5f * (1 + fabsf(want[k]))))
            fail_msg("'%s': state %lld is %g, not %g", caption, (long long)k, (double)((const float *)got.states)[k],
                     (double)want[k]);
    free(want);
}

static int64_t cached_len(void *c, const char *caption, dt_err *err) { return dt_cache_text_len(c, caption, err); }

/* T is that of the longest caption of a batch, rounded up; every batch has a shape that was announced. */
static void check_shapes(const struct fixture *f, dt_cache *c)
{
    dt_text_rows rows = { .len = cached_len, .ctx = c, .most = f->pipe->t5_len };
    struct dt_loader_params lp = { .plan = f->plan, .cache = c, .want = DT_WANT_STATES, .rows = rows, .threads = 2 };
    int64_t (*shape)[4], batches;
    int n;
    dt_loader *l;
    dt_micro *b;
    dt_err err = { 0 };
    assert_int_equal(dt_plan_shapes(f->plan, c, &rows, &shape, &n, &batches, NULL), 0);
    assert_int_equal(batches, 3);
    assert_int_equal(n, 2);
    assert_int_equal(dt_loader_open(&l, &lp, NULL), 0);
    dt_source src = dt_loader_source(l);
    for (int k = 0; src.next(src.ctx, &b, NULL) == 1; k++) {
        const int64_t *s = shape[k == 1];
        assert_true(s[0] == b->n && s[1] == b->w_px && s[2] == b->h_px && s[3] == b->T);
        assert_int_equal(b->T, 16);
        src.done(src.ctx, b);
    }
    dt_loader_close(&l);
    free(shape);
    rows.most = 4;
    assert_int_equal(dt_plan_shapes(f->plan, c, &rows, &shape, &n, &batches, &err), DT_EUSAGE);
    assert_non_null(strstr(err.msg, "--max_sequence_length is 4"));
    free(shape);
}

static int64_t shard_bytes(const char *dir)
{
    struct stat st;
    char *path = dt_path_join(dir, "shard-000001-0of1-0000.tar");
    assert_int_equal(stat(path, &st), 0);
    free(path);
    return st.st_size;
}

static void captions_without_padding(void **state)
{
    struct fixture *f = *state;
    char *dir = file(f, "none"), *max = file(f, "max");
    struct dt_encode_params p = params(f, max), q = params(f, dir);
    struct dt_encode_report r;
    dt_cache *c;
    assert_int_equal(run(&p, &r), 0);
    f->pipe->text_padding = DT_PAD_NONE;
    assert_int_equal(run(&q, &r), 0);
    assert_int_equal(r.texts.made, 3);
    assert_int_equal(dt_cache_open(&c, dir, NULL), 0);
    assert_int_equal(dt_cache_recipe_of(c, true)->text_padding, DT_PAD_NONE);
    check_unpadded(f, c, "cap 0", 3);
    check_unpadded(f, c, "cap 1", 3);
    check_unpadded(f, c, "", 1);
    check_shapes(f, c);
    int64_t rows = dt_cache_text_len(c, "cap 0", NULL) + dt_cache_text_len(c, "cap 1", NULL) +
                   dt_cache_text_len(c, "", NULL);
    int64_t less = (3 * f->pipe->t5_len - rows) * f->pipe->dit.joint_dim * (int64_t)sizeof(float);
    assert_true(llabs(shard_bytes(max) - shard_bytes(dir) - less) < 3 * 512);       /* members end on blocks */
    dt_cache_close(&c);
    assert_int_equal(run(&p, &r), 0);           /* into the folder of the others: pictures are the same */
    assert_int_equal(r.texts.there, 0);
    assert_int_equal(r.images.there, 9);
    assert_int_equal(dt_cache_open(&c, max, NULL), 0);
    assert_int_equal(dt_cache_recipe_of(c, true)->text_padding, DT_PAD_NONE);
    check_unpadded(f, c, "cap 0", 3);
    dt_cache_close(&c);
    f->pipe->text_padding = DT_PAD_MAX;
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.texts.there, 3);
    assert_int_equal(dt_cache_open(&c, max, NULL), 0);
    assert_int_equal(dt_cache_recipe_of(c, true)->text_padding, DT_PAD_MAX);
    assert_int_equal(dt_cache_text_len(c, "cap 0", NULL), f->pipe->t5_len);
    dt_cache_close(&c);
    free(dir);
    free(max);
}

static void damaged_pictures_are_left_out(void **state)
{
    struct fixture *f = *state;
    char *dir = file(f, "cache"), *bad = file(f, "1.png"), *data;
    struct dt_encode_params p = params(f, dir);
    struct dt_encode_report r;
    dt_cache *c;
    size_t bytes;
    assert_int_equal(dt_file_read(&data, &bytes, bad, 1 << 20, NULL), 0);
    assert_int_equal(dt_file_write(bad, data, bytes / 2, NULL), 0);
    p.max_skipped_fraction = 1.0 / 7;           /* and no more */
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.paths, 7);
    assert_int_equal(r.images.made + r.images.shared, 7);       /* 9 less the two of this picture */
    assert_int_equal(dt_cache_open(&c, dir, NULL), 0);
    assert_true(dt_cache_skips(c, bad));
    dt_cache_close(&c);
    p.max_skipped_fraction = 0.1;
    assert_int_equal(run(&p, &r), DT_EDATA);
    assert_int_equal(dt_file_write(bad, data, bytes, NULL), 0);
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.images.made, 2);
    assert_int_equal(dt_cache_open(&c, dir, NULL), 0);
    assert_false(dt_cache_skips(c, bad));
    dt_cache_close(&c);
    free(data);
    free(dir);
    free(bad);
}

static void stop_at(void *ctx, bool warning, const char *line)
{
    (void)line;
    if (warning)
        *(volatile int *)ctx = 2;
}

/* Stopped at the first warning: the damaged picture. */
static void stopped_run_goes_on(void **state)
{
    struct fixture *f = *state;
    char *dir = file(f, "cache"), *bad = file(f, "1.png");
    volatile int stop = 0;
    struct dt_encode_params p = params(f, dir);
    struct dt_encode_report r;
    assert_int_equal(dt_file_write(bad, "no picture", 10, NULL), 0);
    p.stop = &stop;
    p.say = stop_at;
    p.ctx = (void *)&stop;
    assert_int_equal(run(&p, &r), DT_ESIGNAL);
    int64_t made = r.images.made;
    assert_true(made >= 1 && made < 6);
    stop = 0;
    p.say = NULL;
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.images.there, made);
    assert_int_equal(r.images.made + r.images.there + r.images.shared, 7);
    assert_int_equal(r.texts.there, 3);
    free(dir);
    free(bad);
}

static void parts_fill_one_folder(void **state)
{
    struct fixture *f = *state;
    char *dir = file(f, "cache");
    struct dt_encode_params p = params(f, dir);
    struct dt_encode_report r;
    int64_t images = 0, texts = 0;
    p.shards = 3;
    for (p.shard = 0; p.shard < 3; p.shard++) {
        assert_int_equal(run(&p, &r), 0);
        images += r.images.wanted;
        texts += r.texts.wanted;
    }
    assert_int_equal(images, 9);
    assert_int_equal(texts, 3);
    p.shard = 0;
    p.shards = 1;
    assert_int_equal(run(&p, &r), 0);
    assert_int_equal(r.images.there, 9);
    assert_int_equal(r.images.made + r.texts.made, 0);
    assert_false(r.wrote_index);                /* the parts say all of it */
    free(dir);
}

static void stream_is_the_same_cache(void **state)
{
    struct fixture *f = *state;
    char *in = file(f, "in"), *dir = file(f, "cache"), *data[2], *other[2];
    size_t bytes[2], n[2];
    FILE *t = tmpfile();
    struct dt_encode_params p = params(f, NULL);
    struct dt_encode_report r;
    p.out = t;
    assert_int_equal(run(&p, &r), 0);
    rewind(t);
    assert_int_equal(dt_cache_receive(t, in, NULL), 0);
    fclose(t);
    p.dir = dir;
    assert_int_equal(run(&p, &r), 0);
    contents(in, data, bytes);
    contents(dir, other, n);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(bytes[i], n[i]);
        assert_memory_equal(data[i], other[i], n[i]);
        free(data[i]);
        free(other[i]);
    }
    free(in);
    free(dir);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, set_up, tear_down)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        TEST(keeps_what_the_encoders_give),  TEST(same_bytes_for_any_threads_and_groups),
        TEST(again_makes_only_what_changed), TEST(damaged_pictures_are_left_out),
        TEST(stopped_run_goes_on),           TEST(parts_fill_one_folder),
        TEST(stream_is_the_same_cache),      TEST(captions_without_padding),
    };
    omp_set_num_threads(1);     /* two threads that wait for each other are slow where other tests run */
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
