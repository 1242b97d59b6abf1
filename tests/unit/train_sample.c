/* sample_run: the whole way from prompts to pictures against diffusers, LoRAs in three layouts, sums of LoRAs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "data/media.h"
#include "models/names.h"
#include "train/sample_run.h"
#include "train/sampler.h"
#include "tests/unit/scratch.h"

enum { PICTURES = 2, W = 40, H = 24, LATENTS = 4 * 12 * 20 };
static const char *const folder = "tests/golden/tiny-flux";

static char *dir;
static char *in(const char *name) { return dt_path_join(dir, name); }

/* --- what the tool would print --- */

struct heard { char out[8192]; size_t n; };

static void say(void *ctx, bool warning, const char *line) { (void)ctx, (void)warning, (void)line; }

static void out(void *ctx, const char *text)
{
    struct heard *h = ctx;
    h->n += (size_t)snprintf(h->out + h->n, sizeof(h->out) - h->n, "%s", text);
    assert_true(h->n < sizeof(h->out));
}

static dt_sample_opts options(void)
{
    dt_sample_opts o = DT_SAMPLE_DEFAULTS;
    o.model = folder;
    o.steps = 4;
    o.max_sequence_length = 64;
    o.quiet = true;
    return o;
}

static int run(const dt_sample_opts *o, struct heard *h, dt_err *err)
{
    struct heard other = { 0 };
    dt_sample_ui ui = { .ctx = h ? h : &other, .say = say, .out = out };
    dt_strs none = { 0 };
    return dt_sample_run(o, &none, &ui, err);
}

/* Latents of one picture of `prompt` with these LoRAs (NULL-terminated). */
static float *latents(const char *prompt, const char *const *lora, bool bf16)
{
    dt_sample_opts o = options();
    dt_err err = { 0 };
    dt_st *st = NULL;
    dt_st_entry e;
    char *path = in("latents.safetensors");
    o.width = W, o.height = H, o.bf16 = bf16, o.save_latents = path;
    dt_strs_add(&o.prompt, prompt);
    for (; lora && *lora; lora++)
        dt_strs_add(&o.lora, *lora);
    if (run(&o, NULL, &err) < 0)
        fail_msg("%s", err.msg);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    assert_int_equal(dt_st_need(st, "latents", &e, NULL), 0);
    assert_int_equal(e.bytes, LATENTS * sizeof(float));
    float *x = dt_alloc(e.bytes);
    memcpy(x, e.data, e.bytes);
    dt_st_close(&st);
    dt_strs_release(&o.prompt);
    dt_strs_release(&o.lora);
    free(path);
    return x;
}

static double distance(const float *a, const float *b, int64_t n)
{
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return sqrt(d / s);
}

/* --- against diffusers --- */

static void gold(const dt_st *st, const char *name, float *x, int64_t n)
{
    const dt_st_entry *e = dt_st_find(st, name);
    assert_non_null(e);
    assert_int_equal(dt_numel(e->dims), n);
    dt_convert(x, DT_F32, e->data, e->dtype, n);
}

static void check_picture(int i, const float *image)
{
    dt_image im = { 0 };
    char name[32], *path;
    snprintf(name, sizeof(name), "pictures/%04d.png", i);
    path = in(name);
    assert_int_equal(dt_image_read(&im, path, NULL, NULL), 0);
    assert_int_equal(im.w, W);
    assert_int_equal(im.h, H);
    for (int c = 0; c < 3; c++)
        for (int k = 0; k < W * H; k++)
            if (fabs(im.rgb[3 * k + c] - 255.0 * image[(i * 3 + c) * W * H + k]) > 0.51)
                fail_msg("picture %d, channel %d, pixel %d is %d", i, c, k, im.rgb[3 * k + c]);
    dt_image_release(&im);
    free(path);
}

static void pipeline(void **unused)
{
    (void)unused;
    static float begin[PICTURES * LATENTS], end[PICTURES * LATENTS], image[PICTURES * 3 * W * H];
    dt_st *st = NULL, *saved = NULL;
    dt_err err = { 0 };
    struct heard heard = { 0 };
    dt_sample_opts o = options();
    char *first = in("first.safetensors"), *last = in("last.safetensors"), *pictures = in("pictures");
    dt_strs_add(&o.prompt, "a photo of a small red cat");
    dt_strs_add(&o.prompt, "");
    assert_int_equal(dt_st_open(&st, "tests/golden/pipeline.safetensors", NULL), 0);
    gold(st, "in.latents", begin, PICTURES * LATENTS);
    gold(st, "out.latents.3", end, PICTURES * LATENTS);
    gold(st, "out.image", image, PICTURES * 3 * W * H);
    const dt_st_entry e = { .name = "latents", .dtype = DT_F32, .dims = DT_DIMS(PICTURES, 4, 12, 20), .data = begin };
    assert_int_equal(dt_st_write(first, &e, 1, NULL, NULL), 0);

    o.init_latents = first, o.save_latents = last, o.output = pictures;
    if (run(&o, &heard, &err) < 0)
        fail_msg("%s", err.msg);
    assert_int_equal(dt_st_open(&saved, last, NULL), 0);
    gold(saved, "latents", begin, PICTURES * LATENTS);
    assert_true(distance(begin, end, PICTURES * LATENTS) < 1e-4);
    for (int i = 0; i < PICTURES; i++)
        check_picture(i, image);
    assert_non_null(strstr(heard.out,
                           "/0001.png\",\"prompt\":\"\",\"seed\":42,\"image\":0,\"width\":40,\"height\":24}\n"));
    dt_st_close(&st);
    dt_st_close(&saved);
    dt_strs_release(&o.prompt);
    free(first);
    free(last);
    free(pictures);
}

/* --- LoRAs --- */

/* Random A and B on the attention of all blocks; the same seed gives the same values. */
static void make_lora(const char *name, const char *target, int64_t rank, enum dt_lora_layout layout, uint64_t seed)
{
    dt_device *dev = NULL;
    dt_flux_pipe *pipe = NULL;
    dt_lora *l = NULL;
    dt_strs targets = { 0 };
    char *path = in(name);
    dt_strs_add(&targets, target);
    assert_int_equal(dt_device_open(&dev, "cpu", NULL), 0);
    assert_int_equal(dt_flux_pipe_open(&pipe, folder, 0, NULL), 0);
    dt_lora_config c = { .rank = rank, .alpha = 2 * (double)rank, .targets = &targets, .naming = dt_flux_single_name };
    assert_int_equal(dt_lora_new(&l, pipe->part[DT_FLUX_DIT], &c, NULL), 0);
    assert_int_equal(dt_params_alloc(l->params, dev, DT_F32, DT_PARAMS_NO_OPTIM, NULL), 0);
    for (int64_t i = 0; i < l->params->n; i++) {
        dt_param *p = l->params->v[i];
        float *x = p->w;
        dt_rng_fill_normal(x, p->numel, seed, DT_RNG_TEST, 0, (uint32_t)i);
        for (int64_t k = 0; k < p->numel; k++)
            x[k] *= 0.2f;
    }
    dt_lora_info info = { .steps = -1 };
    assert_int_equal(dt_lora_save(l, path, layout, DT_F32, false, &info, NULL), 0);
    dt_lora_free(&l);
    dt_flux_pipe_close(&pipe);
    dt_device_close(&dev);
    dt_strs_release(&targets);
    free(path);
}

#define LORAS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static double between(const char *const *a, const char *const *b, bool bf16)
{
    float *x = latents("a photo of a small red cat", a, bf16), *y = latents("a photo of a small red cat", b, bf16);
    double d = distance(x, y, LATENTS);
    free(x);
    free(y);
    return d;
}

static char *with(const char *name, const char *strength)
{
    return dt_sprintf("%s/%s%s", dir, name, strength);
}

static void layouts(void **unused)
{
    (void)unused;
    make_lora("comfy.safetensors", "attn.to_q", 3, DT_LORA_COMFY, 1);
    make_lora("peft.safetensors", "attn.to_q", 3, DT_LORA_PEFT, 1);
    make_lora("kohya.safetensors", "attn.to_q", 3, DT_LORA_KOHYA, 1);
    char *comfy = with("comfy.safetensors", ""), *peft = with("peft.safetensors", ":1"),
        *kohya = with("kohya.safetensors", ":1.0");
    assert_true(between(LORAS(comfy), NULL, false) > 1e-3);
    assert_true(between(LORAS(peft), LORAS(comfy), false) < 1e-5);
    assert_true(between(LORAS(kohya), LORAS(comfy), false) < 1e-5);
    free(comfy);
    free(peft);
    free(kohya);
}

/* Files with a part for the text encoders: tests/golden/lora_text.py. */
static void text_encoders(void **unused)
{
    (void)unused;
    static const char *const layout[] = { "diffusers", "kohya" };
    dt_st *st = NULL, *noise = NULL;
    char *first = in("text_first.safetensors"), *last = in("text_last.safetensors");
    float begin[2 * LATENTS], end[LATENTS];
    assert_int_equal(dt_st_open(&st, "tests/golden/lora_text.safetensors", NULL), 0);
    assert_int_equal(dt_st_open(&noise, "tests/golden/pipeline.safetensors", NULL), 0);
    gold(noise, "in.latents", begin, 2 * LATENTS);
    const dt_st_entry e = { .name = "latents", .dtype = DT_F32, .dims = DT_DIMS(1, 4, 12, 20), .data = begin };
    assert_int_equal(dt_st_write(first, &e, 1, NULL, NULL), 0);
    for (int i = 0; i < 2; i++) {
        char *file = dt_sprintf("tests/golden/lora_text_%s.safetensors", layout[i]);
        char *name = dt_sprintf("out.latents.%s", layout[i]);
        dt_sample_opts o = options();
        dt_st *saved = NULL;
        dt_err err = { 0 };
        o.init_latents = first, o.save_latents = last, o.steps = 2, o.max_sequence_length = 16;
        dt_strs_add(&o.prompt, "a photo of a small red cat");
        dt_strs_add(&o.lora, file);
        if (run(&o, NULL, &err) < 0)
            fail_msg("%s", err.msg);
        assert_int_equal(dt_st_open(&saved, last, NULL), 0);
        gold(st, name, end, LATENTS);
        gold(saved, "latents", begin, LATENTS);
        assert_true(distance(begin, end, LATENTS) < 1e-4);
        dt_st_close(&saved);
        dt_strs_release(&o.prompt);
        dt_strs_release(&o.lora);
        free(file);
        free(name);
    }
    const char *kohya = "tests/golden/lora_text_kohya.safetensors";
    const char *half = "tests/golden/lora_text_kohya.safetensors:0.5";
    const char *clip = "tests/golden/lora_text_diffusers.safetensors";
    const char *minus = "tests/golden/lora_text_diffusers.safetensors:-1";
    assert_true(between(LORAS(half), LORAS(kohya), false) > 1e-2);
    assert_true(between(LORAS(half, half), LORAS(kohya), false) < 1e-5);
    assert_true(between(LORAS(clip, kohya, minus), LORAS(kohya), false) < 1e-5);
    dt_st_close(&st);
    dt_st_close(&noise);
    free(first);
    free(last);
}

static void strengths(void **unused)
{
    (void)unused;
    make_lora("q.safetensors", "attn.to_q", 3, DT_LORA_COMFY, 1);
    make_lora("qv.safetensors", "*.attn.to_*", 2, DT_LORA_COMFY, 2);
    char *q = with("q.safetensors", ""), *half = with("q.safetensors", ":0.5"), *none = with("q.safetensors", ":0");
    char *minus = with("q.safetensors", ":-1"), *other = with("qv.safetensors", ":0.7");
    assert_true(between(LORAS(none), NULL, false) < 1e-7);
    assert_true(between(LORAS(half), LORAS(q), false) > 1e-4);
    assert_true(between(LORAS(half, half), LORAS(q), false) < 1e-5);
    assert_true(between(LORAS(q, minus), NULL, false) < 1e-5);
    assert_true(between(LORAS(q, other, minus), LORAS(other), false) < 1e-5);
    assert_true(between(LORAS(q, other), LORAS(other), false) > 1e-3);
    assert_true(between(LORAS(q, other), LORAS(other, q), false) < 1e-5);
    free(q);
    free(half);
    free(none);
    free(minus);
    free(other);
}

static void half_precision(void **unused)
{
    (void)unused;
    float *a = latents("a cat", NULL, true), *b = latents("a cat", NULL, false);
    double d = distance(a, b, LATENTS);
    assert_true(d > 0 && d < 0.3);      /* torch's own bf16 is 0.17 from its fp32: random weights amplify */
    free(a);
    free(b);
}

/* Left edge of a picture that a sheet holds, each pixel TILE times as large; -1: it is not there. */
static int left_edge(const dt_image *sheet, const dt_image *im)
{
    enum { TILE = 4 };
    for (int at = 0; at < sheet->w * (sheet->h - TILE * im->h); at++) {
        bool same = at % sheet->w + TILE * im->w <= sheet->w;
        for (int k = 0; k < im->w * im->h && same; k++)
            same = !memcmp(sheet->rgb + 3 * (at + TILE * (k / im->w * sheet->w + k % im->w)), im->rgb + 3 * k, 3);
        if (same)
            return at % sheet->w;
    }
    return -1;
}

/* The base beside the LoRA is what comes out without one, and left of it in the sheet. */
static void compare_base(void **unused)
{
    (void)unused;
    make_lora("q.safetensors", "attn.to_q", 3, DT_LORA_COMFY, 1);
    dt_err err = { 0 };
    dt_image a = { 0 }, b = { 0 }, c = { 0 }, sheet = { 0 };
    char *q = with("q.safetensors", ""), *both = in("both"), *alone = in("alone.png"), *grid = in("grid.png");
    dt_sample_opts o = options();
    o.output = both, o.grid = grid, o.compare_base = true;
    dt_strs_add(&o.lora, q);
    dt_strs_add(&o.prompt, "a cat");
    if (run(&o, NULL, &err) < 0)
        fail_msg("%s", err.msg);
    dt_strs_release(&o.lora);
    o.output = alone, o.grid = NULL, o.compare_base = false;
    if (run(&o, NULL, &err) < 0)
        fail_msg("%s", err.msg);
    dt_strs_release(&o.prompt);
    char *one = dt_path_join(both, "0000-base.png"), *two = dt_path_join(both, "0000.png");
    assert_int_equal(dt_image_read(&a, one, NULL, NULL), 0);
    assert_int_equal(dt_image_read(&b, alone, NULL, NULL), 0);
    assert_int_equal(dt_image_read(&c, two, NULL, NULL), 0);
    assert_int_equal(dt_image_read(&sheet, grid, NULL, NULL), 0);
    assert_int_equal(a.w, 32);
    assert_memory_equal(a.rgb, b.rgb, (size_t)(a.w * a.h * 3));
    assert_memory_not_equal(a.rgb, c.rgb, (size_t)(a.w * a.h * 3));
    int base = left_edge(&sheet, &a), lora = left_edge(&sheet, &c);
    assert_true(base >= 0 && lora > base);
    dt_image_release(&a);
    dt_image_release(&b);
    dt_image_release(&c);
    dt_image_release(&sheet);
    free(one);
    free(two);
    free(q);
    free(both);
    free(alone);
    free(grid);
}

static int enter(void **unused)
{
    (void)unused;
    return !(dir = scratch_new());
}

static int leave(void **unused)
{
    (void)unused;
    return scratch_end(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pipeline),
        cmocka_unit_test(layouts),
        cmocka_unit_test(text_encoders),
        cmocka_unit_test(strengths),
        cmocka_unit_test(half_precision),
        cmocka_unit_test(compare_base),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, enter, leave);
}
