/* folder.c - a model folder as people have it (tests/golden/tiny-flux: sharded bf16, fp16 and fp32 components) against
 * diffusers.FluxPipeline: token ids, text states, four sampling steps from given noise, pictures, tiles.  Each stage is
 * fed with what the one before it made here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "models/flux_run.h"
#include "tests/golden/gold.h"

enum { PROMPTS = 5, PICTURES = 2, STEPS = 4, W = 40, H = 24, TILE = 32, TILED_W = 80, TILED_H = 56 };

typedef struct scene {              /* what the stages hand on */
    const gold   *f;
    dt_flux_pipe *pipe;
    dt_device    *dev;
    float *states, *pooled;         /* [PROMPTS, t5_len, D], [PROMPTS, P] */
    float *lat;                     /* [PICTURES, C, h, w] */
} scene;

/* Largest distance in levels of 0..255 between rgb and ref (0..1); 0.5 is rounding. */
static void compare_rgb(tally *t, const char *name, const uint8_t *rgb, const float *ref, int64_t n)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++)
        worst = fmax(worst, fabs((double)rgb[i] - 255.0 * (double)ref[i]));
    tally_error(t, name, worst, 0.51);
}

static dt_flux_run *start(const scene *s, int64_t tile_px)
{
    struct dt_flux_run_params p = { .pipe = s->pipe, .dev = s->dev, .act = DT_F32, .tile_px = tile_px };
    return dt_flux_run_new(&p);
}

static void same_ids(tally *t, const char *what, const int32_t *a, const float *ref, int64_t n)
{
    int64_t differ = 0;
    for (int64_t i = 0; i < n; i++)
        differ += (float)a[i] != ref[i];
    tally_error(t, what, (double)differ, 0.5);
}

static void captions(scene *s)
{
    dt_err err = { 0 };
    tally ids = { 0 }, states = { 0 };
    int64_t nc = s->pipe->clip_len, nt = s->pipe->t5_len, D = s->pipe->dit.joint_dim, P = s->pipe->dit.pooled_dim;
    cJSON *prompts = gold_json(s->f, "prompts");
    float *ref_clip = gold_f32(s->f, "in.clip_ids"), *ref_t5 = gold_f32(s->f, "in.t5_ids");
    int32_t *clip = dt_alloc((size_t)(nc + nt) * sizeof(*clip)), *t5 = clip + nc, eos;
    s->states = dt_alloc((size_t)(PROMPTS * nt * D) * sizeof(float));
    s->pooled = dt_alloc((size_t)(PROMPTS * P) * sizeof(float));
    dt_flux_run *r = start(s, 0);
    must(dt_flux_run_plan_text(r, nt, &err), &err);
    must(dt_flux_run_alloc(r, NULL, &err), &err);
    for (int i = 0; i < PROMPTS; i++) {
        const char *text = cJSON_GetArrayItem(prompts, i)->valuestring;
        must((int)dt_flux_tokenize(s->pipe, text, clip, &eos, t5, &err), &err);
        same_ids(&ids, text, clip, ref_clip + i * nc, nc);
        same_ids(&ids, text, t5, ref_t5 + i * nt, nt);
        must(dt_flux_run_text(r, text, s->states + i * nt * D, s->pooled + i * P, &err), &err);
    }
    tally_tensor(&states, s->f, "out.prompt_embeds", s->states, PROMPTS * nt * D, tol_forward(DT_F32));
    tally_tensor(&states, s->f, "out.pooled", s->pooled, PROMPTS * P, tol_forward(DT_F32));
    tap(&ids, "token ids of five prompts");
    tap(&states, "states of five prompts");
    dt_flux_run_free(&r);
    free(clip);
    free(ref_t5);
    free(ref_clip);
    cJSON_Delete(prompts);
}

/* --- sampling --- */

typedef struct watch {              /* on_step: latents of one picture against the file's */
    const gold *f;
    tally *t;
    const float *lat;
    int64_t n;
    int picture;
} watch;

static bool on_step(void *ctx, int64_t step)
{
    watch *w = ctx;
    char *name = dt_sprintf("out.latents.%d", (int)step - 1);
    float *ref = gold_f32(w->f, name);
    tally_add(w->t, name, w->lat, ref + w->picture * w->n, w->n, 0, 1e-4);
    free(ref);
    free(name);
    return true;
}

static void sample(scene *s)
{
    dt_err err = { 0 };
    tally t = { 0 }, pictures = { 0 };
    int64_t n = dt_numel(gold_entry(s->f, "in.latents")->dims) / PICTURES, px = W * H;
    int64_t D = s->pipe->t5_len * s->pipe->dit.joint_dim, P = s->pipe->dit.pooled_dim;
    s->lat = gold_f32(s->f, "in.latents");
    float *ref = gold_f32(s->f, "out.image"), *last = dt_alloc((size_t)(3 * px) * sizeof(*last));
    uint8_t *rgb = dt_alloc((size_t)(3 * px));
    dt_flux_run *r = start(s, 0);
    must(dt_flux_run_plan_sample(r, W, H, s->pipe->t5_len, &err), &err);
    must(dt_flux_run_plan_decode(r, W, H, &err), &err);
    must(dt_flux_run_alloc(r, NULL, &err), &err);
    for (int i = 0; i < PICTURES; i++) {
        watch w = { s->f, &t, s->lat + i * n, n, i };
        dt_flux_sample how = { .w_px = W, .h_px = H, .steps = STEPS, .guidance = 3.5, .T = s->pipe->t5_len,
                               .states = s->states + i * D, .pooled = s->pooled + i * P,
                               .latents = s->lat + i * n, .on_step = on_step, .ctx = &w };
        must(dt_flux_run_sample(r, &how, &err), &err);
        must(dt_flux_run_decode(r, s->lat + i * n, W, H, rgb, &err), &err);
        gold_channels_last(last, ref + i * 3 * px, DT_DIMS(1, 3, H, W), false);
        compare_rgb(&pictures, "out.image", rgb, last, 3 * px);
    }
    tap(&t, "latents of four steps");
    tap(&pictures, "decoded pictures");
    dt_flux_run_free(&r);
    free(rgb);
    free(last);
    free(ref);
}

static void tiles(scene *s)
{
    dt_err err = { 0 };
    tally t = { 0 };
    int64_t n = dt_numel(gold_entry(s->f, "out.tiled.mean")->dims), px = TILED_W * TILED_H;
    float *mean = dt_alloc((size_t)n * sizeof(*mean)), *logvar = dt_alloc((size_t)n * sizeof(*logvar));
    float *lat = gold_f32(s->f, "in.tiled.latents"), *image = gold_f32(s->f, "out.tiled.image");
    uint8_t *rgb = dt_alloc((size_t)(3 * px));
    memcpy(rgb, gold_entry(s->f, "in.tiled.rgb")->data, (size_t)(3 * px));
    dt_flux_run *r = start(s, TILE);
    must(dt_flux_run_plan_encode(r, 1, TILED_W, TILED_H, &err), &err);
    must(dt_flux_run_plan_decode(r, TILED_W, TILED_H, &err), &err);
    must(dt_flux_run_alloc(r, NULL, &err), &err);
    must(dt_flux_run_encode(r, (const uint8_t *const[]){ rgb }, 1, TILED_W, TILED_H, mean, logvar, &err), &err);
    tally_tensor(&t, s->f, "out.tiled.mean", mean, n, tol_forward(DT_F32));
    tally_tensor(&t, s->f, "out.tiled.logvar", logvar, n, tol_forward(DT_F32));
    must(dt_flux_run_decode(r, lat, TILED_W, TILED_H, rgb, &err), &err);
    compare_rgb(&t, "out.tiled.image", rgb, image, 3 * px);
    tap(&t, "autoencoder in tiles");
    dt_flux_run_free(&r);
    free(rgb);
    free(image);
    free(lat);
    free(logvar);
    free(mean);
}

/* flux1-tiny.safetensors holds the transformer under other names, with q, k, v in one: the same weights come of it. */
static void single_file(scene *s)
{
    dt_err err = { 0 };
    tally t = { 0 };
    dt_flux_pipe *one = NULL;
    char *dir = gold_path("tiny-flux");
    must(dt_flux_pipe_open(&one, dir, 0, &err), &err);
    one->weights[DT_FLUX_DIT] = dt_sprintf("%s/flux1-tiny.safetensors", dir);
    must(dt_flux_pipe_load(one, DT_FLUX_DIT, s->dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
    const dt_params *a = one->part[DT_FLUX_DIT], *b = s->pipe->part[DT_FLUX_DIT];
    for (int64_t i = 0; i < a->n; i++) {
        size_t bytes = (size_t)a->v[i]->numel * sizeof(float);
        float *x = dt_alloc(bytes), *y = dt_alloc(bytes);
        s->dev->download(s->dev, x, a->v[i]->w, (int64_t)bytes);
        s->dev->download(s->dev, y, b->v[i]->w, (int64_t)bytes);
        tally_error(&t, a->v[i]->name, memcmp(x, y, bytes) ? 1.0 : 0.0, 0.5);
        free(x);
        free(y);
    }
    tap(&t, "transformer from a single file");
    dt_flux_pipe_close(&one);
    free(dir);
}

void golden_folder(dt_device *dev)
{
    dt_err err = { 0 };
    gold f;
    gold_open(&f, "pipeline");
    scene s = { .f = &f, .dev = dev };
    char *dir = gold_path("tiny-flux");
    must(dt_flux_pipe_open(&s.pipe, dir, gold_int(&f, "max_sequence_length"), &err), &err);
    must(dt_flux_pipe_tokenizers(s.pipe, &err), &err);
    for (int k = 0; k < DT_FLUX_NPART; k++)
        must(dt_flux_pipe_load(s.pipe, (enum dt_flux_part)k, dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
    captions(&s);
    sample(&s);
    tiles(&s);
    single_file(&s);
    dt_flux_pipe_close(&s.pipe);
    free(dir);
    free(s.states);
    free(s.pooled);
    free(s.lat);
    gold_close(&f);
}
