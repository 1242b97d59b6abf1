/* T5 encoder.                              Raffel et al. 2020, sec. 2.1; v1.1: Shazeer 2020 (GLU variants)
 *
 *   h = shared[ids]
 *   h += Wo Attn( RMS(h) ),  scores = q k^T + bias, no 1/sqrt(d)                    (attn)
 *   h += wo( gelu_tanh(wi_0 n) * wi_1 n ),  n = RMS(h)                              (ff)
 *   y = RMS(h)
 *
 *   B batch   S tokens.  The position bias [heads, S, S] belongs to block 0 and serves all blocks.
 */
#include <string.h>
#include "models/text_t5.h"

int dt_t5_config_parse(dt_t5_config *c, const cJSON *j, const char *what, dt_err *err)
{
    int rc;
    const char *ff;
    *c = (dt_t5_config){ 0 };
    if ((rc = dt_json_int_or(&c->vocab, j, "vocab_size", 32128, 1, 1 << 24, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->d_model, j, "d_model", 512, 1, 65536, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->d_kv, j, "d_kv", 64, 1, 4096, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->d_ff, j, "d_ff", 2048, 1, 1 << 20, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->layers, j, "num_layers", 6, 1, 1000, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->heads, j, "num_heads", 8, 1, 1024, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->buckets, j, "relative_attention_num_buckets", 32, 4, 65536, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->max_distance, j, "relative_attention_max_distance", 128, 2, 65536, what, err)) < 0 ||
        (rc = dt_json_num_or(&c->eps, j, "layer_norm_epsilon", 1e-6, what, err)) < 0 ||
        (rc = dt_json_str_or(&ff, j, "feed_forward_proj", "relu", what, err)) < 0)
        return rc;
    if (strcmp(ff, "gated-gelu") && strcmp(ff, "relu"))
        return dt_err_set(err, DT_EDATA, "%s: 'feed_forward_proj' is '%s', known are gated-gelu and relu", what, ff);
    c->gated = !strcmp(ff, "gated-gelu");
    return 0;
}

static dt_tensor *rms(dt_graph *g, const dt_t5_config *c, const char *name, dt_tensor *x)
{
    return dt_rmsnorm(g, x, dt_weight(g, name, DT_DIMS(c->d_model), DT_INIT_ONE, 0), c->eps);
}

static dt_tensor *attn(dt_graph *g, const dt_t5_config *c, dt_tensor *h, dt_tensor *bias, dt_tensor *mask)
{
    int64_t inner = c->heads * c->d_kv;
    dt_tensor *n = rms(g, c, "layer_norm.weight", h);
    dt_scope(g, "SelfAttention");
    dt_tensor *q = dt_linear(g, "q", n, inner, false);
    dt_tensor *k = dt_linear(g, "k", n, inner, false);
    dt_tensor *v = dt_linear(g, "v", n, inner, false);
    dt_tensor *o = dt_attention(g, q, k, v,
                                &(dt_attn){ .heads = (int)c->heads, .scale = 1.0, .bias = bias, .mask = mask });
    h = dt_add(g, h, dt_linear(g, "o", o, c->d_model, false));                          /* (attn) */
    dt_scope_end(g);
    return h;
}

static dt_tensor *feed_forward(dt_graph *g, const dt_t5_config *c, dt_tensor *h)
{
    dt_tensor *n = rms(g, c, "layer_norm.weight", h), *m;
    dt_scope(g, "DenseReluDense");
    if (c->gated) {
        m = dt_gelu_tanh(g, dt_linear(g, "wi_0", n, c->d_ff, false));
        m = dt_mul(g, m, dt_linear(g, "wi_1", n, c->d_ff, false));
    } else {
        m = dt_relu(g, dt_linear(g, "wi", n, c->d_ff, false));
    }
    h = dt_add(g, h, dt_linear(g, "wo", m, c->d_model, false));                         /* (ff) */
    dt_scope_end(g);
    return h;
}

dt_tensor *dt_t5(dt_graph *g, const dt_t5_config *c, dt_tensor *ids, dt_tensor *mask)
{
    dt_tensor *h = dt_embedding(g, dt_weight(g, "shared.weight", DT_DIMS(c->vocab, c->d_model), DT_INIT_NORMAL, 1.0),
                                ids);
    dt_scope(g, "encoder");
    dt_scope(g, "block.0.layer.0.SelfAttention");
    dt_tensor *table = dt_weight(g, "relative_attention_bias.weight", DT_DIMS(c->buckets, c->heads), DT_INIT_NORMAL,
                                 0.05);
    dt_tensor *bias = dt_t5_bias(g, table, ids->dims.d[1], (int)c->max_distance);
    dt_scope_end(g);
    for (int i = 0; i < c->layers; i++) {
        dt_block(g);
        dt_scope(g, "block.%d.layer.0", i);
        h = attn(g, c, h, bias, mask);
        dt_scope_end(g);
        dt_scope(g, "block.%d.layer.1", i);
        h = feed_forward(g, c, h);
        dt_scope_end(g);
        dt_block_end(g);
    }
    h = rms(g, c, "final_layer_norm.weight", h);
    dt_scope_end(g);
    return h;
}
