/* FLUX.1 transformer.                      Black Forest Labs 2024; blocks after Esser et al. 2024 (MM-DiT), sec. 4
 *
 *   e  = MLP_t(tsin(1000 sigma)) + MLP_g(tsin(1000 guidance)) + MLP_p(pooled)                   (time)
 *   double block: for the image stream x and, with its own weights, the text stream c
 *     h1, s1, a1, h2, s2, a2 = chunk6( W silu(e) )        shift, scale, gate                    (mod)
 *     q, k, v of both streams from (1 + s1) LN(.) + h1; RMS norm per head; text first; RoPE     (qkv)
 *     x += a1 Wo Attn(Q, K, V)                                                                  (attn)
 *     x += a2 FF( (1 + s2) LN(x) + h2 )                                                         (ff)
 *   single block on z = [c; x]:
 *     n = (1 + s) LN(z) + h;   z += a Wo [ Attn(n) | gelu(Wm n) ]                               (single)
 *   y = Wy( (1 + s) LN(x) + h ),  s, h = chunk2( W silu(e) )                                    (out)
 *
 *   B batch   S image tokens   T text tokens   D = heads * head_dim   LN without affine, eps 1e-6
 *
 * Details that have caused bugs:
 *   - text stands before image in attention, in the RoPE tables and in single blocks
 *   - chunks are shift, scale, gate in blocks but SCALE, SHIFT at the output
 *   - sigma and guidance are multiplied by 1000 in the model's dtype: bf16(3.5) * 1000 = bf16 3504
 *   - RoPE angles are computed in fp64 from fp32 ids
 */
#include <math.h>
#include <stdlib.h>
#include "models/flux.h"

#define LN_EPS 1e-6

int dt_flux_config_parse(dt_flux_config *c, const cJSON *j, const char *what, dt_err *err)
{
    int n = 0, rc;
    int64_t patch;
    *c = (dt_flux_config){ .axes = { 16, 56, 56 } };
    if ((rc = dt_json_int_or(&patch, j, "patch_size", 1, 1, 1, what, err)) < 0 ||
        (rc = dt_json_int(&c->in_channels, j, "in_channels", 4, 4096, what, err)) < 0 ||
        (rc = dt_json_int_or(&c->out_channels, j, "out_channels", c->in_channels, 1, 4096, what, err)) < 0 ||
        (rc = dt_json_int(&c->layers, j, "num_layers", 0, 1000, what, err)) < 0 ||
        (rc = dt_json_int(&c->single_layers, j, "num_single_layers", 0, 1000, what, err)) < 0 ||
        (rc = dt_json_int(&c->head_dim, j, "attention_head_dim", 2, 1024, what, err)) < 0 ||
        (rc = dt_json_int(&c->heads, j, "num_attention_heads", 1, 1024, what, err)) < 0 ||
        (rc = dt_json_int(&c->joint_dim, j, "joint_attention_dim", 1, 65536, what, err)) < 0 ||
        (rc = dt_json_int(&c->pooled_dim, j, "pooled_projection_dim", 1, 65536, what, err)) < 0 ||
        (rc = dt_json_bool_or(&c->guidance, j, "guidance_embeds", false, what, err)) < 0 ||
        (rc = dt_json_ints_or(c->axes, &n, 3, j, "axes_dims_rope", what, err)) < 0)
        return rc;
    int64_t any = c->axes[0] | c->axes[1] | c->axes[2];         /* negative if one is, odd if one is */
    if ((n != 0 && n != 3) || any < 0 || any & 1 || c->axes[0] + c->axes[1] + c->axes[2] != c->head_dim)
        return dt_err_set(err, DT_EDATA,
                          "%s: 'axes_dims_rope' must be three even numbers, none negative, that add up to "
                          "attention_head_dim %lld",
                          what, (long long)c->head_dim);
    return 0;
}

/* --- positions and packing --- */

void dt_flux_rope(const dt_flux_config *c, const float *ids, int64_t n, float *cosv, float *sinv)
{
    for (int64_t i = 0; i < n; i++)
        for (int a = 0, at = 0; a < 3; a++)
            for (int64_t k = 0; k < c->axes[a] / 2; k++, at++) {
                double angle = ids[i * 3 + a] * (1.0 / pow(10000.0, 2.0 * (double)k / (double)c->axes[a]));
                cosv[i * (c->head_dim / 2) + at] = (float)cos(angle);
                sinv[i * (c->head_dim / 2) + at] = (float)sin(angle);
            }
}

void dt_flux_rope_grid(dt_graph *g, const dt_flux_config *c, int64_t T, int64_t h, int64_t w, dt_tensor **cosv,
                       dt_tensor **sinv)
{
    int64_t n = T + h * w, half = c->head_dim / 2;
    float *ids = dt_alloc((size_t)n * 3 * sizeof(*ids));
    float *cs = dt_alloc((size_t)(n * half) * 2 * sizeof(*cs));
    for (int64_t i = 0; i < h * w; i++) {
        ids[(T + i) * 3 + 1] = (float)(i / w);
        ids[(T + i) * 3 + 2] = (float)(i % w);
    }
    dt_flux_rope(c, ids, n, cs, cs + n * half);
    *cosv = dt_const(g, "rope.cos", DT_F32, DT_DIMS(n, half), cs);
    *sinv = dt_const(g, "rope.sin", DT_F32, DT_DIMS(n, half), cs + n * half);
    free(ids);
    free(cs);
}

dt_tensor *dt_flux_pack(dt_graph *g, dt_tensor *lat)
{
    int64_t B = lat->dims.d[0], C = lat->dims.d[1], H = lat->dims.d[2], W = lat->dims.d[3];
    dt_tensor *x = dt_reshape(g, lat, DT_DIMS(B, C, H / 2, 2, W / 2, 2));
    x = dt_permute(g, x, (const int[]){ 0, 2, 4, 1, 3, 5 });        /* B, y, x, c, dy, dx */
    return dt_reshape(g, x, DT_DIMS(B, H / 2 * (W / 2), C * 4));
}

dt_tensor *dt_flux_unpack(dt_graph *g, dt_tensor *tok, int64_t H, int64_t W)
{
    int64_t B = tok->dims.d[0], C = tok->dims.d[2] / 4;
    dt_tensor *x = dt_reshape(g, tok, DT_DIMS(B, H / 2, W / 2, C, 2, 2));
    x = dt_permute(g, x, (const int[]){ 0, 3, 1, 4, 2, 5 });
    return dt_reshape(g, x, DT_DIMS(B, C, H, W));
}

/* --- parts --- */

static dt_tensor *mlp_embed(dt_graph *g, const char *name, dt_tensor *x, int64_t D)
{
    dt_scope(g, "%s", name);
    x = dt_silu(g, dt_linear(g, "linear_1", x, D, true));
    x = dt_linear(g, "linear_2", x, D, true);
    dt_scope_end(g);
    return x;
}

static dt_tensor *sinusoid(dt_graph *g, dt_tensor *t)
{
    t = dt_affine(g, dt_cast(g, t, dt_graph_dtype(g)), 1000.0, 0.0);
    return dt_timestep_embed(g, dt_cast(g, t, DT_F32), 256, true, 0.0, 1.0);
}

static dt_tensor *time_text_embed(dt_graph *g, const dt_flux_config *c, const dt_flux_in *in, int64_t D)
{
    dt_scope(g, "time_text_embed");
    dt_tensor *e = mlp_embed(g, "timestep_embedder", sinusoid(g, in->sigma), D);
    if (c->guidance)
        e = dt_add(g, e, mlp_embed(g, "guidance_embedder", sinusoid(g, in->guidance), D));
    e = dt_add(g, e, mlp_embed(g, "text_embedder", in->pooled, D));
    dt_scope_end(g);
    return e;
}

/* [B, S, D] -> [B, S, heads, head_dim] */
static dt_tensor *split(dt_graph *g, const dt_flux_config *c, dt_tensor *x)
{
    return dt_reshape(g, x, DT_DIMS(x->dims.d[0], x->dims.d[1], c->heads, c->head_dim));
}

static dt_tensor *head_norm(dt_graph *g, const dt_flux_config *c, const char *name, dt_tensor *x)
{
    dt_tensor *w = dt_weight(g, name, DT_DIMS(c->head_dim), DT_INIT_ONE, 0);
    return dt_rmsnorm(g, split(g, c, x), w, LN_EPS);
}

static dt_tensor *from_token(dt_graph *g, dt_tensor *x, int dim, int64_t first)
{
    return first ? dt_slice(g, x, dim, first, x->dims.d[dim] - first) : x;
}

/* q [B, n - first, heads, head_dim]: of tokens first.., k [B, n, heads, head_dim], v [B, n, D] -> [B, n - first, D] */
static dt_tensor *rotary_attention(dt_graph *g, const dt_flux_config *c, const dt_flux_in *in, dt_tensor *q,
                                   dt_tensor *k, dt_tensor *v, int64_t first)
{
    q = dt_rope(g, q, from_token(g, in->cos, 0, first), from_token(g, in->sin, 0, first));
    q = dt_reshape(g, q, DT_DIMS(q->dims.d[0], q->dims.d[1], v->dims.d[2]));
    k = dt_reshape(g, dt_rope(g, k, in->cos, in->sin), v->dims);
    return dt_attention(g, q, k, v, &(dt_attn){ .heads = (int)c->heads, .mask = in->mask });
}

static dt_tensor *feed_forward(dt_graph *g, const char *name, dt_tensor *x, int64_t D)
{
    dt_scope(g, "%s.net", name);
    x = dt_gelu_tanh(g, dt_linear(g, "0.proj", x, 4 * D, true));
    x = dt_linear(g, "2", x, D, true);
    dt_scope_end(g);
    return x;
}

/* --- blocks --- */

enum { SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 };

static void double_block(dt_graph *g, const dt_flux_config *c, const dt_flux_in *in, dt_tensor *act_e, dt_tensor **px,
                         dt_tensor **pc)
{
    dt_tensor *x = *px, *t = *pc, *m[6], *n[6];
    int64_t D = c->heads * c->head_dim, S = x->dims.d[1], T = t->dims.d[1];

    dt_chunk(g, dt_linear(g, "norm1.linear", act_e, 6 * D, true), 6, m);                        /* (mod) */
    dt_chunk(g, dt_linear(g, "norm1_context.linear", act_e, 6 * D, true), 6, n);

    dt_tensor *xn = dt_modulate(g, dt_layernorm(g, x, NULL, NULL, LN_EPS), m[SHIFT1], m[SCALE1]);
    dt_tensor *tn = dt_modulate(g, dt_layernorm(g, t, NULL, NULL, LN_EPS), n[SHIFT1], n[SCALE1]);
    dt_scope(g, "attn");
    dt_tensor *q[2] = { head_norm(g, c, "norm_added_q.weight", dt_linear(g, "add_q_proj", tn, D, true)),
                        head_norm(g, c, "norm_q.weight", dt_linear(g, "to_q", xn, D, true)) };  /* (qkv) */
    dt_tensor *k[2] = { head_norm(g, c, "norm_added_k.weight", dt_linear(g, "add_k_proj", tn, D, true)),
                        head_norm(g, c, "norm_k.weight", dt_linear(g, "to_k", xn, D, true)) };
    dt_tensor *v[2] = { dt_linear(g, "add_v_proj", tn, D, true), dt_linear(g, "to_v", xn, D, true) };
    dt_tensor *o = rotary_attention(g, c, in, dt_concat(g, 1, 2, q), dt_concat(g, 1, 2, k), dt_concat(g, 1, 2, v), 0);
    dt_tensor *ot = dt_linear(g, "to_add_out", dt_slice(g, o, 1, 0, T), D, true);
    dt_tensor *ox = dt_linear(g, "to_out.0", dt_slice(g, o, 1, T, S), D, true);
    dt_scope_end(g);

    x = dt_gated_add(g, x, m[GATE1], ox);                                                       /* (attn) */
    xn = dt_modulate(g, dt_layernorm(g, x, NULL, NULL, LN_EPS), m[SHIFT2], m[SCALE2]);
    *px = dt_gated_add(g, x, m[GATE2], feed_forward(g, "ff", xn, D));                           /* (ff) */

    t = dt_gated_add(g, t, n[GATE1], ot);
    tn = dt_modulate(g, dt_layernorm(g, t, NULL, NULL, LN_EPS), n[SHIFT2], n[SCALE2]);
    *pc = dt_gated_add(g, t, n[GATE2], feed_forward(g, "ff_context", tn, D));
}

/* Of tokens first..: the last block is asked for the image alone, so that no product is made for text
 * that nobody reads. */
static dt_tensor *single_block(dt_graph *g, const dt_flux_config *c, const dt_flux_in *in, dt_tensor *act_e,
                               dt_tensor *z, int64_t first)
{
    dt_tensor *m[3];
    int64_t D = c->heads * c->head_dim;
    dt_chunk(g, dt_linear(g, "norm.linear", act_e, 3 * D, true), 3, m);
    dt_tensor *n = dt_modulate(g, dt_layernorm(g, z, NULL, NULL, LN_EPS), m[SHIFT1], m[SCALE1]);

    dt_tensor *r = from_token(g, n, 1, first);

    dt_scope(g, "attn");
    dt_tensor *q = head_norm(g, c, "norm_q.weight", dt_linear(g, "to_q", r, D, true));
    dt_tensor *k = head_norm(g, c, "norm_k.weight", dt_linear(g, "to_k", n, D, true));
    dt_tensor *a = rotary_attention(g, c, in, q, k, dt_linear(g, "to_v", n, D, true), first);
    dt_scope_end(g);

    dt_tensor *mlp = dt_gelu_tanh(g, dt_linear(g, "proj_mlp", r, 4 * D, true));
    dt_tensor *am[2] = { a, mlp };
    z = from_token(g, z, 1, first);
    return dt_gated_add(g, z, m[GATE1], dt_linear(g, "proj_out", dt_concat(g, 2, 2, am), D, true));  /* (single) */
}

dt_tensor *dt_flux(dt_graph *g, const dt_flux_config *c, const dt_flux_in *in)
{
    int64_t D = c->heads * c->head_dim, T = in->txt->dims.d[1], S = in->img->dims.d[1];
    if (c->guidance && !in->guidance)
        dt_graph_fail(g, "this model is told its guidance scale, and none was given");
    dt_tensor *x = dt_linear(g, "x_embedder", in->img, D, true);
    dt_tensor *e = dt_silu(g, time_text_embed(g, c, in, D));                                    /* (time) */
    dt_tensor *t = dt_linear(g, "context_embedder", in->txt, D, true);

    for (int i = 0; i < c->layers; i++) {
        dt_block(g);
        dt_scope(g, "transformer_blocks.%d", i);
        double_block(g, c, in, e, &x, &t);
        dt_scope_end(g);
        dt_block_end(g);
    }
    dt_tensor *both[2] = { t, x }, *z = dt_concat(g, 1, 2, both);
    for (int i = 0; i < c->single_layers; i++) {
        dt_block(g);
        dt_scope(g, "single_transformer_blocks.%d", i);
        z = single_block(g, c, in, e, z, i == c->single_layers - 1 ? T : 0);
        dt_scope_end(g);
        dt_block_end(g);
    }
    x = c->single_layers ? z : dt_slice(g, z, 1, T, S);

    enum { SCALE, SHIFT };
    dt_tensor *m[2];
    dt_chunk(g, dt_linear(g, "norm_out.linear", e, 2 * D, true), 2, m);                         /* (out) */
    x = dt_modulate(g, dt_layernorm(g, x, NULL, NULL, LN_EPS), m[SHIFT], m[SCALE]);
    return dt_linear(g, "proj_out", x, c->out_channels, true);
}
