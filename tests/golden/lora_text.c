/* lora_text.c - LoRA files with a part for the text encoders (tests/golden/lora_text.py): states of the prompts and
 * latents against diffusers' and peft's. */
#include <stdlib.h>
#include "models/flux_run.h"
#include "tests/golden/gold.h"
#include "train/lora.h"

enum { PROMPTS = 2, W = 40, H = 24 };

/* What `path` has for each network, on it from here on. */
static void adapt(dt_flux_pipe *pipe, dt_device *dev, dt_lora *lora[DT_FLUX_NPART], const char *path)
{
    dt_err err = { 0 };
    dt_params *base[DT_FLUX_NPART];
    for (int k = 0; k < DT_FLUX_NPART; k++)
        base[k] = k == DT_FLUX_VAE ? NULL : pipe->part[k];
    must(dt_lora_open_parts(lora, base, DT_FLUX_NPART, path, &err), &err);
    for (int k = 0; k < DT_FLUX_NPART; k++) {
        must(dt_flux_pipe_load(pipe, (enum dt_flux_part)k, dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
        if (!lora[k])
            continue;
        must(dt_params_alloc(lora[k]->params, dev, DT_F32, DT_PARAMS_NO_OPTIM, &err), &err);
        must(dt_lora_fill(lora[k], &err), &err);
        pipe->part[k]->lora = lora[k];
    }
}

/* states and pooled [PROMPTS] */
static void encode(const gold *f, dt_flux_run *r, int64_t T, int64_t D, int64_t P, float *states, float *pooled)
{
    dt_err err = { 0 };
    cJSON *prompts = gold_json(f, "prompts");
    for (int i = 0; i < PROMPTS; i++)
        must(dt_flux_run_text(r, cJSON_GetArrayItem(prompts, i)->valuestring, states + i * T * D, pooled + i * P, &err),
             &err);
    cJSON_Delete(prompts);
}

/* `layout`: of the file, "diffusers" or "kohya", which adapts T5 too. */
static void file_of(const gold *f, dt_device *dev, const char *layout)
{
    dt_err err = { 0 };
    tally t = { 0 };
    gold noise;
    dt_flux_pipe *pipe = NULL;
    dt_lora *lora[DT_FLUX_NPART];
    char *name = dt_sprintf("lora_text_%s.safetensors", layout), *path = gold_path(name), *dir = gold_path("tiny-flux");
    char *latents = dt_sprintf("out.latents.%s", layout);
    gold_open(&noise, "pipeline");
    must(dt_flux_pipe_open(&pipe, dir, gold_int(f, "max_sequence_length"), &err), &err);
    must(dt_flux_pipe_tokenizers(pipe, &err), &err);
    adapt(pipe, dev, lora, path);
    int64_t T = pipe->t5_len, D = pipe->dit.joint_dim, P = pipe->dit.pooled_dim;
    float *states = dt_alloc((size_t)(PROMPTS * T * D) * sizeof(float)),
        *pooled = dt_alloc((size_t)(PROMPTS * P) * sizeof(float));
    float *x = gold_f32(&noise, "in.latents");      /* of two pictures; the first counts */
    dt_flux_run *r = dt_flux_run_new(&(struct dt_flux_run_params){ .pipe = pipe, .dev = dev, .act = DT_F32 });
    must(dt_flux_run_plan_text(r, T, &err), &err);
    must(dt_flux_run_plan_sample(r, W, H, T, &err), &err);
    must(dt_flux_run_alloc(r, NULL, &err), &err);
    encode(f, r, T, D, P, states, pooled);
    const dt_flux_sample how = { .w_px = W, .h_px = H, .steps = gold_int(f, "steps"), .guidance = 3.5, .T = T,
                                 .states = states, .pooled = pooled, .latents = x };
    must(dt_flux_run_sample(r, &how, &err), &err);
    tally_tensor(&t, f, "out.pooled", pooled, PROMPTS * P, tol_forward(DT_F32));
    if (lora[DT_FLUX_T5])
        tally_tensor(&t, f, "out.prompt_embeds", states, PROMPTS * T * D, tol_forward(DT_F32));
    tally_tensor(&t, f, latents, x, dt_numel(gold_entry(&noise, "in.latents")->dims) / 2, 1e-4);
    tap(&t, "%s: states and latents", name);
    dt_flux_run_free(&r);
    for (int k = 0; k < DT_FLUX_NPART; k++)
        dt_lora_free(&lora[k]);
    dt_flux_pipe_close(&pipe);
    gold_close(&noise);
    free(states);
    free(pooled);
    free(x);
    free(latents);
    free(name);
    free(path);
    free(dir);
}

void golden_lora_text(dt_device *dev)
{
    gold f;
    gold_open(&f, "lora_text");
    file_of(&f, dev, "diffusers");
    file_of(&f, dev, "kohya");
    gold_close(&f);
}
