/* CLIP text encoder.                       Radford et al. 2021, sec. 2.4; transformers' CLIPTextModel
 *
 *   h = tok[ids] + pos[0..S)
 *   h += Wo Attn_causal(LN1(h));   h += fc2(act(fc1(LN2(h))))                       (block)
 *   last = LN(h),  pooled = last[eos] (W_proj)
 *
 *   B batch   S tokens   C hidden.  Padding is not masked; only causality hides it.
 */
#include <string.h>
#include "models/text_clip.h"

int dt_clip_config_parse(dt_clip_config *c, const cJSON *j, const char *what, dt_err *err)
{
    int rc;
    const char *act;
    int64_t proj;
    *c = (dt_clip_config){ 0 };
    if ((rc = dt_json_int_or(&c->vocab, j, "vocab_size", 49408, 1, 1 << 24, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->hidden, j, "hidden_size", 512, 1, 65536, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->mlp, j, "intermediate_size", 2048, 1, 1 << 20, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->layers, j, "num_hidden_layers", 12, 1, 1000, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->heads, j, "num_attention_heads", 8, 1, 1024, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->positions, j, "max_position_embeddings", 77, 1, 1 << 20, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->eos, j, "eos_token_id", 49407, 0, 1 << 24, what, err)) < 0 ||
        (rc = dt_json_int_or(&proj, j, "projection_dim", 512, 0, 65536, what, err)) < 0 ||
        (rc = dt_json_num_or(&c->eps, j, "layer_norm_eps", 1e-5, what, err)) < 0 ||
        (rc = dt_json_str_or(&act, j, "hidden_act", "quick_gelu", what, err)) < 0)
        return rc;
    if (c->hidden % c->heads)
        return dt_err_set(err, DT_EDATA, "%s: 'hidden_size' must be a multiple of num_attention_heads", what);
    if (strcmp(act, "quick_gelu") && strcmp(act, "gelu"))
        return dt_err_set(err, DT_EDATA, "%s: 'hidden_act' is '%s', known are quick_gelu and gelu", what, act);
    c->quick_gelu = !strcmp(act, "quick_gelu");
    const cJSON *arch = cJSON_GetArrayItem(cJSON_GetObjectItem(j, "architectures"), 0);
    if (cJSON_IsString(arch) && !strcmp(arch->valuestring, "CLIPTextModelWithProjection"))
        c->projection = proj;
    return 0;
}

int32_t dt_clip_eos(const dt_clip_config *c, const int32_t *ids, int64_t S)
{
    int32_t at = 0;
    for (int64_t i = 0; i < S; i++) {
        if (c->eos == 2 ? ids[i] > ids[at] : ids[i] == c->eos) {
            at = (int32_t)i;
            if (c->eos != 2)
                break;
        }
    }
    return at;
}

static dt_tensor *layer_norm(dt_graph *g, const dt_clip_config *c, const char *name, dt_tensor *x)
{
    dt_scope(g, "%s", name);
    dt_tensor *w = dt_weight(g, "weight", DT_DIMS(c->hidden), DT_INIT_ONE, 0);
    dt_tensor *b = dt_weight(g, "bias", DT_DIMS(c->hidden), DT_INIT_ZERO, 0);
    dt_scope_end(g);
    return dt_layernorm(g, x, w, b, c->eps);
}

static dt_tensor *block(dt_graph *g, const dt_clip_config *c, dt_tensor *h)
{
    dt_tensor *n = layer_norm(g, c, "layer_norm1", h);
    dt_scope(g, "self_attn");
    dt_tensor *q = dt_linear(g, "q_proj", n, c->hidden, true);
    dt_tensor *k = dt_linear(g, "k_proj", n, c->hidden, true);
    dt_tensor *v = dt_linear(g, "v_proj", n, c->hidden, true);
    dt_tensor *o = dt_attention(g, q, k, v, &(dt_attn){ .heads = (int)c->heads, .causal = true });
    h = dt_add(g, h, dt_linear(g, "out_proj", o, c->hidden, true));                     /* (block) */
    dt_scope_end(g);

    dt_tensor *m = dt_linear(g, "mlp.fc1", layer_norm(g, c, "layer_norm2", h), c->mlp, true);
    m = c->quick_gelu ? dt_quick_gelu(g, m) : dt_gelu_erf(g, m);
    return dt_add(g, h, dt_linear(g, "mlp.fc2", m, c->hidden, true));
}

dt_clip_out dt_clip(dt_graph *g, const dt_clip_config *c, dt_tensor *ids, dt_tensor *eos_at)
{
    dt_clip_out out = { 0 };
    int64_t S = ids->dims.d[1];
    if (S > c->positions)
        dt_graph_fail(g, "%lld tokens, the model has %lld positions", (long long)S, (long long)c->positions);
    dt_scope(g, "text_model");
    dt_scope(g, "embeddings");
    dt_tensor *tok = dt_weight(g, "token_embedding.weight", DT_DIMS(c->vocab, c->hidden), DT_INIT_NORMAL, 0.02);
    dt_tensor *pos = dt_weight(g, "position_embedding.weight", DT_DIMS(c->positions, c->hidden), DT_INIT_NORMAL, 0.02);
    dt_scope_end(g);
    dt_tensor *h = dt_add_rows(g, dt_embedding(g, tok, ids), dt_slice(g, pos, 0, 0, S));
    for (int i = 0; i < c->layers; i++) {
        out.penultimate = h;
        dt_scope(g, "encoder.layers.%d", i);
        dt_block(g);
        h = block(g, c, h);
        dt_block_end(g);
        dt_scope_end(g);
    }
    out.last = layer_norm(g, c, "final_layer_norm", h);
    dt_scope_end(g);
    out.pooled = dt_gather_rows(g, out.last, eos_at);
    if (c->projection)
        out.pooled = dt_linear(g, "text_projection", out.pooled, c->projection, false);
    return out;
}
