/* KL autoencoder.                          Rombach et al. 2022 (latent diffusion), app. G; diffusers' AutoencoderKL
 *
 *   res   x + conv2(silu(GN2( conv1(silu(GN1(x))) ))),  1x1 shortcut where channels change                (res)
 *   attn  x + Wo Attn1head(GN(x))                                                                         (attn)
 *   encoder: conv_in, levels of `layers` res, between levels pad right/bottom by 1 + conv 3x3 stride 2     (down)
 *            mid = res attn res, GN silu conv_out -> mean | logvar
 *   decoder: conv_in, mid, levels of `layers`+1 res in reverse order, between levels nearest x2 + conv 3x3 (up)
 *
 *   B batch   H, W pixels at the level   C channels   GN eps 1e-6   all activations channels-last
 *
 * Details that have caused bugs: the downsampling pad is asymmetric (0 top/left, 1 bottom/right); attention has
 * one head of size C, its projections have biases and live under attentions.0.
 */
#include <string.h>
#include "models/vae_kl.h"

#define GN_EPS 1e-6
static const int pad1[4] = { 1, 1, 1, 1 }, pad0[4] = { 0, 0, 0, 0 }, pad_down[4] = { 0, 0, 1, 1 };

int dt_vae_config_parse(dt_vae_config *c, const cJSON *j, const char *what, dt_err *err)
{
    int rc;
    *c = (dt_vae_config){ 0 };
    if ((rc = dt_json_int_or(&c->in_channels, j, "in_channels", 3, 3, 3, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->out_channels, j, "out_channels", 3, 3, 3, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->latent_channels, j, "latent_channels", 4, 1, 1024, what, err)) < 0 ||
        (rc = dt_json_ints_or(c->block_out, &c->nblock, 8, j, "block_out_channels", what, err)) < 0 ||
        (rc = dt_json_int_or(&c->layers, j, "layers_per_block", 1, 1, 64, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->groups, j, "norm_num_groups", 32, 1, 1024, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->sample_size, j, "sample_size", 32, 1, 65536, what, err)) < 0 ||
        (rc = dt_json_bool_or(&c->mid_attention, j, "mid_block_add_attention", true, what, err)) < 0 ||
        (rc = dt_json_bool_or(&c->quant_conv, j, "use_quant_conv", true, what, err)) < 0 ||
        (rc = dt_json_bool_or(&c->post_quant_conv, j, "use_post_quant_conv", true, what, err)) < 0 ||
        (rc = dt_json_num_or(&c->scaling, j, "scaling_factor", 0.18215, what, err)) < 0 ||
        (rc = dt_json_num_or(&c->shift, j, "shift_factor", 0.0, what, err)) < 0)
        return rc;
    if (!c->nblock)
        return dt_err_set(err, DT_EDATA, "%s: 'block_out_channels' is missing", what);
    for (int i = 0; i < c->nblock; i++)
        if (c->block_out[i] < 1 || c->block_out[i] > 65536 || c->block_out[i] % c->groups)
            return dt_err_set(err, DT_EDATA, "%s: 'block_out_channels' must be multiples of norm_num_groups %lld", what,
                              (long long)c->groups);
    const char *act;
    if ((rc = dt_json_str_or(&act, j, "act_fn", "silu", what, err)) < 0)
        return rc;
    if (strcmp(act, "silu"))
        return dt_err_set(err, DT_EDATA, "%s: 'act_fn' is '%s', only silu is known", what, act);
    return 0;
}

static dt_tensor *group_norm(dt_graph *g, const dt_vae_config *c, const char *name, dt_tensor *x)
{
    int64_t C = x->dims.d[x->dims.nd - 1];
    dt_scope(g, "%s", name);
    dt_tensor *w = dt_weight(g, "weight", DT_DIMS(C), DT_INIT_ONE, 0);
    dt_tensor *b = dt_weight(g, "bias", DT_DIMS(C), DT_INIT_ZERO, 0);
    dt_scope_end(g);
    return dt_groupnorm(g, x, w, b, (int)c->groups, GN_EPS);
}

static dt_tensor *res(dt_graph *g, const dt_vae_config *c, dt_tensor *x, int64_t out)
{
    dt_tensor *h = dt_conv2d(g, "conv1", dt_silu(g, group_norm(g, c, "norm1", x)), out, 3, 1, pad1);
    h = dt_conv2d(g, "conv2", dt_silu(g, group_norm(g, c, "norm2", h)), out, 3, 1, pad1);
    if (x->dims.d[3] != out)
        x = dt_conv2d(g, "conv_shortcut", x, out, 1, 1, pad0);
    return dt_add(g, x, h);                                                             /* (res) */
}

static dt_tensor *attn(dt_graph *g, const dt_vae_config *c, dt_tensor *x)
{
    int64_t B = x->dims.d[0], n = x->dims.d[1] * x->dims.d[2], C = x->dims.d[3];
    dt_tensor *h = dt_reshape(g, group_norm(g, c, "group_norm", x), DT_DIMS(B, n, C));
    dt_tensor *q = dt_linear(g, "to_q", h, C, true);
    dt_tensor *k = dt_linear(g, "to_k", h, C, true);
    dt_tensor *v = dt_linear(g, "to_v", h, C, true);
    h = dt_linear(g, "to_out.0", dt_attention(g, q, k, v, &(dt_attn){ .heads = 1 }), C, true);
    return dt_add(g, x, dt_reshape(g, h, x->dims));                                     /* (attn) */
}

static dt_tensor *scoped_res(dt_graph *g, const dt_vae_config *c, const char *name, int i, dt_tensor *x, int64_t out)
{
    dt_scope(g, "%s.%d", name, i);
    dt_block(g);
    x = res(g, c, x, out);
    dt_block_end(g);
    dt_scope_end(g);
    return x;
}

static dt_tensor *mid_block(dt_graph *g, const dt_vae_config *c, dt_tensor *x)
{
    int64_t C = x->dims.d[3];
    dt_scope(g, "mid_block");
    x = scoped_res(g, c, "resnets", 0, x, C);
    if (c->mid_attention) {
        dt_scope(g, "attentions.0");
        x = attn(g, c, x);
        dt_scope_end(g);
    }
    x = scoped_res(g, c, "resnets", 1, x, C);
    dt_scope_end(g);
    return x;
}

static dt_tensor *conv_out(dt_graph *g, const dt_vae_config *c, dt_tensor *x, int64_t out)
{
    return dt_conv2d(g, "conv_out", dt_silu(g, group_norm(g, c, "conv_norm_out", x)), out, 3, 1, pad1);
}

dt_tensor *dt_vae_encode(dt_graph *g, const dt_vae_config *c, dt_tensor *x)
{
    dt_scope(g, "encoder");
    x = dt_conv2d(g, "conv_in", x, c->block_out[0], 3, 1, pad1);
    for (int i = 0; i < c->nblock; i++) {
        dt_scope(g, "down_blocks.%d", i);
        for (int j = 0; j < c->layers; j++)
            x = scoped_res(g, c, "resnets", j, x, c->block_out[i]);
        if (i < c->nblock - 1)
            x = dt_conv2d(g, "downsamplers.0.conv", x, c->block_out[i], 3, 2, pad_down);    /* (down) */
        dt_scope_end(g);
    }
    x = conv_out(g, c, mid_block(g, c, x), 2 * c->latent_channels);
    dt_scope_end(g);
    return c->quant_conv ? dt_conv2d(g, "quant_conv", x, 2 * c->latent_channels, 1, 1, pad0) : x;
}

dt_tensor *dt_vae_decode(dt_graph *g, const dt_vae_config *c, dt_tensor *z)
{
    if (c->post_quant_conv)
        z = dt_conv2d(g, "post_quant_conv", z, c->latent_channels, 1, 1, pad0);
    dt_scope(g, "decoder");
    dt_tensor *x = dt_conv2d(g, "conv_in", z, c->block_out[c->nblock - 1], 3, 1, pad1);
    x = mid_block(g, c, x);
    for (int i = 0; i < c->nblock; i++) {
        int64_t C = c->block_out[c->nblock - 1 - i];
        dt_scope(g, "up_blocks.%d", i);
        for (int j = 0; j <= c->layers; j++)
            x = scoped_res(g, c, "resnets", j, x, C);
        if (i < c->nblock - 1)
            x = dt_conv2d(g, "upsamplers.0.conv", dt_upsample2(g, x), C, 3, 1, pad1);   /* (up) */
        dt_scope_end(g);
    }
    x = conv_out(g, c, x, c->out_channels);
    dt_scope_end(g);
    return x;
}
