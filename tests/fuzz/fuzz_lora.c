/* A LoRA file of any layout on networks with the names of FLUX's transformer and text encoders; what is accepted can be
 * filled in and saved in every layout. */
#include <string.h>
#include "graph/device.h"
#include "tests/fuzz/fuzz.h"
#include "train/lora.h"

static dt_device *dev;

static void linear(dt_params *p, const char *path, int64_t out, int64_t in)
{
    char name[200];
    snprintf(name, sizeof(name), "%s.weight", path);
    dt_params_declare(p, name, DT_DIMS(out, in), DT_INIT_FAN_IN, 0);
    dt_params_add_linear(p, path);
}

static dt_params *transformer(void)
{
    static const char *const square[] = { "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj",
                                          "attn.add_k_proj", "attn.add_v_proj" };
    dt_params *p = dt_params_new("transformer");
    char path[200];
    linear(p, "x_embedder", 4, 3);
    for (int i = 0; i < 7; i++) {
        snprintf(path, sizeof(path), "transformer_blocks.0.%s", square[i]);
        linear(p, path, 4, 4);
    }
    linear(p, "transformer_blocks.0.ff.net.0.proj", 16, 4);
    linear(p, "single_transformer_blocks.0.attn.to_q", 4, 4);
    linear(p, "single_transformer_blocks.0.attn.to_k", 4, 4);
    linear(p, "single_transformer_blocks.0.attn.to_v", 4, 4);
    linear(p, "single_transformer_blocks.0.proj_mlp", 16, 4);
    linear(p, "single_transformer_blocks.0.proj_out", 4, 20);
    linear(p, "norm_out.linear", 8, 4);
    return p;
}

enum { DIT, CLIP, T5, PARTS };

static void networks(dt_params *p[PARTS])
{
    p[DIT] = transformer();
    for (int k = CLIP; k < PARTS; k++)
        p[k] = dt_params_new(dt_lora_parts[k].name);
    linear(p[CLIP], "text_model.encoder.layers.0.self_attn.q_proj", 4, 4);
    linear(p[CLIP], "text_model.encoder.layers.0.mlp.fc1", 8, 4);
    linear(p[T5], "encoder.block.0.layer.0.SelfAttention.q", 4, 4);
    linear(p[T5], "encoder.block.0.layer.1.DenseReluDense.wo", 4, 8);
}

static void use(dt_lora *const *l)
{
    dt_err err = { 0 };
    bool any = false;
    for (int k = 0; k < PARTS; k++) {
        if (!l[k])
            continue;
        any = true;
        fuzz_check(dt_params_alloc(l[k]->params, dev, DT_F32, 0, &err) == 0 && dt_lora_fill(l[k], &err) == 0);
        for (int64_t i = 0; i < l[k]->n; i++)
            fuzz_touch(l[k]->v[i].a->w, (size_t)l[k]->v[i].a->numel * sizeof(float));
    }
    fuzz_check(any);
    for (int k = DT_LORA_COMFY; k <= DT_LORA_KOHYA; k++)
        if (dt_lora_save_parts((const dt_lora *const *)l, PARTS, fuzz_path("out.safetensors"), (enum dt_lora_layout)k,
                               DT_F32, false, &(dt_lora_info){ .steps = -1 }, &err) < 0)
            fuzz_check(*err.msg);
}

/* As dt-merge-shards does, which has no networks: their widths from the file. */
static void guess(const char *path)
{
    dt_st *st = NULL;
    dt_clip_config clip;
    dt_t5_config t5;
    if (dt_st_open(&st, path, NULL) == 0) {
        dt_text_guess(&clip, &t5, st);
        fuzz_check(clip.hidden > 0 && clip.mlp > 0 && t5.d_model > 0 && t5.d_ff > 0 && t5.heads > 0);
    }
    dt_st_close(&st);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "lora.safetensors", "adapter_config.json" };
    dt_params *base[PARTS];
    dt_lora *l[PARTS] = { NULL };
    dt_err err = { 0 };
    if (!dev)
        fuzz_check(dt_device_open(&dev, "cpu", &err) == 0);
    networks(base);
    fuzz_files(name, 2, data, size);
    guess(fuzz_path(name[0]));
    if (dt_lora_open_parts(l, base, PARTS, fuzz_path(name[0]), &err) < 0)
        fuzz_check(!l[DIT] && !l[CLIP] && !l[T5] && *err.msg);
    else
        use(l);
    for (int k = 0; k < PARTS; k++) {
        dt_lora_free(&l[k]);
        dt_params_free(&base[k]);
    }
    return 0;
}
