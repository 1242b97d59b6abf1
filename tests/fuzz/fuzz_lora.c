/* A LoRA file of any layout on a network with FLUX's names; what is accepted can be filled in and saved
 * in every layout. */
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

static dt_params *network(void)
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

static void use(dt_lora *l)
{
    dt_err err = { 0 };
    fuzz_check(dt_params_alloc(l->params, dev, DT_F32, 0, &err) == 0 && dt_lora_fill(l, &err) == 0);
    for (int64_t i = 0; i < l->n; i++)
        fuzz_touch(l->v[i].a->w, (size_t)l->v[i].a->numel * sizeof(float));
    for (int k = DT_LORA_COMFY; k <= DT_LORA_KOHYA; k++)
        if (dt_lora_save(l, fuzz_path("out.safetensors"), (enum dt_lora_layout)k, DT_F32, false,
                         &(dt_lora_info){ .steps = -1 }, &err) < 0)
            fuzz_check(*err.msg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "lora.safetensors", "adapter_config.json" };
    dt_lora *l = NULL;
    dt_err err = { 0 };
    if (!dev)
        fuzz_check(dt_device_open(&dev, "cpu", &err) == 0);
    dt_params *base = network();
    fuzz_files(name, 2, data, size);
    if (dt_lora_open(&l, base, fuzz_path(name[0]), dt_flux_single_name, 0, &err) < 0)
        fuzz_check(!l && *err.msg);
    else
        use(l);
    dt_lora_free(&l);
    dt_params_free(&base);
    return 0;
}
