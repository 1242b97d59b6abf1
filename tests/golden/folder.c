/* folder.c - a model folder as people have it (tests/golden/tiny-flux: sharded bf16, fp16 and fp32 components) against
 * diffusers.FluxPipeline: token ids, text states, four sampling steps from given noise, the picture.  Each stage is fed with
 * what the one before it made here. */
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "models/flux.h"
#include "models/text_clip.h"
#include "models/text_t5.h"
#include "models/vae_kl.h"
#include "tests/golden/gold.h"
#include "text/tokenizer.h"
#include "train/schedule.h"

enum { PROMPTS = 5, PICTURES = 2, CLIP_TOK = 77, T5_TOK = 64, STEPS = 4 };

typedef struct scene {              /* what the stages hand on, fp32, torch's layouts */
    const gold *f;
    dt_device  *dev;
    int32_t clip_ids[PROMPTS * CLIP_TOK], t5_ids[PROMPTS * T5_TOK];
    float  *states, *pooled;        /* [PROMPTS, T5_TOK, D], [PROMPTS, P] */
    float  *lat;                    /* [PICTURES, C, H, W] */
} scene;

static cJSON *read_config(const char *part, const char *file)
{
    dt_err err = { 0 };
    cJSON *j = NULL;
    char *rel = dt_sprintf("tiny-flux/%s/%s", part, file), *path = gold_path(rel);
    must(dt_json_read(&j, path, 1 << 20, &err), &err);
    free(path);
    free(rel);
    return j;
}

/* Weights of a component whose parameters a first build has declared. */
static void load(dt_params *p, dt_device *dev, const char *part)
{
    static const char *const stems[] = { "diffusion_pytorch_model", "model", NULL };
    dt_err err = { 0 };
    dt_st *st = NULL;
    char *rel = dt_sprintf("tiny-flux/%s", part), *dir = gold_path(rel);
    must(dt_params_alloc(p, dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
    must(dt_st_open_folder(&st, dir, stems, &err), &err);
    must(dt_params_load(p, st, NULL, NULL, &err), &err);
    dt_st_close(&st);
    free(dir);
    free(rel);
}

static void compare(scene *s, tally *t, const char *name, const float *a, double tol)
{
    float *ref = gold_f32(s->f, name);
    tally_add(t, name, a, ref, dt_numel(gold_entry(s->f, "%s", name)->dims), 0, tol);
    free(ref);
}

/* --- captions to ids --- */

static void tokenize(scene *s, const char *part, int64_t n, const char *entry, int32_t *ids)
{
    dt_err err = { 0 };
    tally t = { 0 };
    dt_tokenizer *tok = NULL;
    char *rel = dt_sprintf("tiny-flux/%s", part), *dir = gold_path(rel);
    cJSON *prompts = gold_json(s->f, "prompts");
    float *ref = gold_f32(s->f, entry), *a = dt_alloc((size_t)n * sizeof(*a));
    must(dt_tokenizer_open(&tok, dir, &err), &err);
    for (int i = 0; i < PROMPTS; i++) {
        const char *text = cJSON_GetArrayItem(prompts, i)->valuestring;
        must((int)dt_tokenize(tok, text, n, true, ids + i * n, &err), &err);
        for (int64_t k = 0; k < n; k++)
            a[k] = (float)ids[i * n + k];
        tally_add(&t, text[0] ? text : "the empty prompt", a, ref + i * n, n, 0, 1e-9);
    }
    tap(&t, "%s: ids", part);
    dt_tokenizer_close(&tok);
    free(a);
    free(ref);
    cJSON_Delete(prompts);
    free(dir);
    free(rel);
}

/* --- ids to states --- */

static dt_graph *clip_graph(dt_params *p, const dt_clip_config *c)
{
    dt_graph *g = dt_graph_new(DT_F32);
    dt_graph_use(g, p);
    dt_tensor *ids = dt_input(g, "ids", DT_I32, DT_DIMS(PROMPTS, CLIP_TOK)), *eos = dt_input(g, "eos", DT_I32, DT_DIMS(PROMPTS));
    dt_output(g, dt_clip(g, c, ids, eos).pooled, "pooled");
    return g;
}

static void encode_clip(scene *s)
{
    dt_err err = { 0 };
    tally t = { 0 };
    job j;
    dt_clip_config c;
    cJSON *config = read_config("text_encoder", "config.json");
    must(dt_clip_config_parse(&c, config, "text_encoder/config.json", &err), &err);
    dt_params *p = dt_params_new("text_encoder");
    dt_graph *g = clip_graph(p, &c);
    dt_graph_free(&g);
    load(p, s->dev, "text_encoder");
    job_start(&j, s->dev, clip_graph(p, &c), "text_encoder");
    int32_t eos[PROMPTS];
    for (int i = 0; i < PROMPTS; i++)
        eos[i] = dt_clip_eos(&c, s->clip_ids + i * CLIP_TOK, CLIP_TOK);
    dt_plan_write(j.plan, dt_find(j.g, "ids"), s->clip_ids);
    dt_plan_write(j.plan, dt_find(j.g, "eos"), eos);
    job_run(&j);
    s->pooled = dt_alloc((size_t)(PROMPTS * c.hidden) * sizeof(float));
    job_read(&j, "pooled", s->pooled);
    compare(s, &t, "out.pooled", s->pooled, tol_forward(DT_F32));
    tap(&t, "text_encoder: pooled states");
    job_stop(&j);
    dt_params_free(&p);
    cJSON_Delete(config);
}

static dt_graph *t5_graph(dt_params *p, const dt_t5_config *c)
{
    dt_graph *g = dt_graph_new(DT_F32);
    dt_graph_use(g, p);
    dt_output(g, dt_t5(g, c, dt_input(g, "ids", DT_I32, DT_DIMS(PROMPTS, T5_TOK)), NULL), "states");
    return g;
}

static void encode_t5(scene *s)
{
    dt_err err = { 0 };
    tally t = { 0 };
    job j;
    dt_t5_config c;
    cJSON *config = read_config("text_encoder_2", "config.json");
    must(dt_t5_config_parse(&c, config, "text_encoder_2/config.json", &err), &err);
    dt_params *p = dt_params_new("text_encoder_2");
    dt_graph *g = t5_graph(p, &c);
    dt_graph_free(&g);
    load(p, s->dev, "text_encoder_2");
    job_start(&j, s->dev, t5_graph(p, &c), "text_encoder_2");
    dt_plan_write(j.plan, dt_find(j.g, "ids"), s->t5_ids);
    job_run(&j);
    s->states = dt_alloc((size_t)(PROMPTS * T5_TOK * c.d_model) * sizeof(float));
    job_read(&j, "states", s->states);
    compare(s, &t, "out.prompt_embeds", s->states, tol_forward(DT_F32));
    tap(&t, "text_encoder_2: states");
    job_stop(&j);
    dt_params_free(&p);
    cJSON_Delete(config);
}

/* --- noise to latents --- */

static dt_graph *flux_graph(dt_params *p, const dt_flux_config *c, dt_dims lat)
{
    int64_t B = lat.d[0], H = lat.d[2], W = lat.d[3];
    dt_graph *g = dt_graph_new(DT_F32);
    dt_graph_use(g, p);
    dt_tensor *x = dt_input(g, "x", DT_F32, lat);
    dt_flux_in in = { .txt = dt_input(g, "txt", DT_F32, DT_DIMS(B, T5_TOK, c->joint_dim)),
                      .pooled = dt_input(g, "pooled", DT_F32, DT_DIMS(B, c->pooled_dim)),
                      .sigma = dt_input(g, "sigma", DT_F32, DT_DIMS(B)),
                      .guidance = dt_input(g, "guidance", DT_F32, DT_DIMS(B)) };
    in.img = dt_flux_pack(g, x);
    dt_flux_rope_grid(g, c, T5_TOK, H / 2, W / 2, &in.cos, &in.sin);
    dt_output(g, dt_flux_unpack(g, dt_flux(g, c, &in), H, W), "v");
    return g;
}

/* Euler:  x += (sigma[k + 1] - sigma[k]) v(x, sigma[k]) */
static void euler(scene *s, job *j, const double *sigma, int64_t n, tally *t)
{
    float *v = dt_alloc((size_t)n * sizeof(*v));
    for (int k = 0; k < STEPS; k++) {
        float now[PICTURES] = { (float)sigma[k], (float)sigma[k] };
        job_write(j, "x", s->lat);
        job_write(j, "sigma", now);
        job_run(j);
        job_read(j, "v", v);
        for (int64_t i = 0; i < n; i++)
            s->lat[i] += (float)(sigma[k + 1] - sigma[k]) * v[i];
        char *name = dt_sprintf("out.latents.%d", k);
        compare(s, t, name, s->lat, 1e-4);
        free(name);
    }
    free(v);
}

static void sample(scene *s)
{
    dt_err err = { 0 };
    tally t = { 0 };
    job j;
    dt_flux_config c;
    dt_flow flow;
    dt_dims lat = gold_entry(s->f, "in.latents")->dims;
    cJSON *config = read_config("transformer", "config.json"), *sched = read_config("scheduler", "scheduler_config.json");
    must(dt_flux_config_parse(&c, config, "transformer/config.json", &err), &err);
    must(dt_flow_parse(&flow, sched, "scheduler/scheduler_config.json", &err), &err);
    dt_params *p = dt_params_new("transformer");
    dt_graph *g = flux_graph(p, &c, lat);
    dt_graph_free(&g);
    load(p, s->dev, "transformer");
    job_start(&j, s->dev, flux_graph(p, &c, lat), "transformer");
    float guidance[PICTURES] = { 3.5f, 3.5f };
    job_write(&j, "guidance", guidance);
    job_write(&j, "txt", s->states);
    job_write(&j, "pooled", s->pooled);
    double sigma[STEPS + 1];
    dt_flow_sigmas(&flow, sigma, STEPS, lat.d[2] / 2 * (lat.d[3] / 2));
    float fsigma[STEPS + 1];
    for (int i = 0; i <= STEPS; i++)
        fsigma[i] = (float)sigma[i];
    compare(s, &t, "out.sigmas", fsigma, 1e-6);
    s->lat = gold_f32(s->f, "in.latents");
    euler(s, &j, sigma, dt_numel(lat), &t);
    tap(&t, "transformer: four steps of Euler");
    job_stop(&j);
    dt_params_free(&p);
    cJSON_Delete(sched);
    cJSON_Delete(config);
}

/* --- latents to pictures --- */

static dt_graph *vae_graph(dt_params *p, const dt_vae_config *c, dt_dims lat)
{
    dt_graph *g = dt_graph_new(DT_F32);
    dt_graph_use(g, p);
    dt_tensor *z = dt_input(g, "z", DT_F32, DT_DIMS(lat.d[0], lat.d[2], lat.d[3], lat.d[1]));
    dt_output(g, dt_vae_decode(g, c, dt_affine(g, z, 1.0 / c->scaling, c->shift)), "y");
    return g;
}

static void decode(scene *s)
{
    dt_err err = { 0 };
    tally t = { 0 };
    job j;
    dt_vae_config c;
    dt_dims lat = gold_entry(s->f, "in.latents")->dims, rgb = gold_entry(s->f, "out.decoded")->dims;
    int64_t n = dt_numel(rgb);
    cJSON *config = read_config("vae", "config.json");
    must(dt_vae_config_parse(&c, config, "vae/config.json", &err), &err);
    dt_params *p = dt_params_new("vae");
    dt_graph *g = vae_graph(p, &c, lat);
    dt_graph_free(&g);
    load(p, s->dev, "vae");
    job_start(&j, s->dev, vae_graph(p, &c, lat), "vae");
    float *z = dt_alloc((size_t)dt_numel(lat) * sizeof(*z)), *last = dt_alloc((size_t)n * sizeof(*last));
    float *y = dt_alloc((size_t)n * sizeof(*y));
    gold_channels_last(z, s->lat, lat, false);
    job_write(&j, "z", z);
    job_run(&j);
    job_read(&j, "y", last);
    gold_channels_last(y, last, rgb, true);
    compare(s, &t, "out.decoded", y, 1e-4);
    tap(&t, "vae: the pictures");
    job_stop(&j);
    free(y);
    free(last);
    free(z);
    dt_params_free(&p);
    cJSON_Delete(config);
}

void golden_folder(dt_device *dev)
{
    gold f;
    gold_open(&f, "pipeline");
    scene s = { .f = &f, .dev = dev };
    tokenize(&s, "tokenizer", CLIP_TOK, "in.clip_ids", s.clip_ids);
    tokenize(&s, "tokenizer_2", T5_TOK, "in.t5_ids", s.t5_ids);
    encode_clip(&s);
    encode_t5(&s);
    sample(&s);
    decode(&s);
    free(s.states);
    free(s.pooled);
    free(s.lat);
    gold_close(&f);
}
