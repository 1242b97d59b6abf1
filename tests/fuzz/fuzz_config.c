/* The configs of a model folder, as every tool opens it: read, checked against one another, and the
 * networks declared.  A config that the input does not hold is that of a small model. */
#include <string.h>
#include "base/file.h"
#include "models/flux_pipe.h"
#include "tests/fuzz/fuzz.h"

static const char *const name[] = { "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json",
                                    "text_encoder/config.json", "text_encoder_2/config.json" };
static const char *const small[] = {
    "{\"num_train_timesteps\":1000,\"shift\":3.0,\"use_dynamic_shifting\":true}",
    "{\"in_channels\":16,\"num_layers\":1,\"num_single_layers\":1,\"attention_head_dim\":16,\"num_attention_heads\":2,"
    "\"joint_attention_dim\":32,\"pooled_projection_dim\":32,\"guidance_embeds\":true,\"axes_dims_rope\":[4,4,8]}",
    "{\"block_out_channels\":[8,16],\"layers_per_block\":1,\"latent_channels\":4,\"norm_num_groups\":4}",
    "{\"vocab_size\":634,\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":1,\"num_attention_heads\":2}",
    "{\"vocab_size\":128,\"d_model\":32,\"d_kv\":8,\"d_ff\":48,\"num_layers\":1,\"num_heads\":4,"
    "\"feed_forward_proj\":\"gated-gelu\"}",
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dt_flux_pipe *p = NULL;
    dt_err err = { 0 };
    for (int i = 0; i < 5; i++) {
        char *dir = dt_sprintf("%.*s", (int)(strchr(name[i], '/') - name[i]), name[i]);
        dt_mkdirs(fuzz_path(dir), NULL);
        free(dir);
    }
    fuzz_files(name, 5, data, size);
    for (int i = 0; i < 5; i++)
        if (!dt_exists(fuzz_path(name[i])))
            fuzz_put(name[i], small[i], strlen(small[i]));
    if (dt_flux_pipe_open(&p, fuzz_dir(), 0, &err) < 0)
        fuzz_check(!p && *err.msg);
    for (int k = 0; p && k < DT_FLUX_NPART; k++)
        fuzz_check(dt_params_size(p->part[k], DT_F32, 0).weights > 0);
    dt_flux_pipe_close(&p);
    return 0;
}
