/* ops.h - every op the models are written with, one line each: what it computes and its shapes.
 *
 *   B batch   S tokens   C channels or features   H, W pixels or latent cells   h heads
 *   T the graph's activation dtype.  Statistics, losses, sigmas and parameter gradients are fp32.
 *   Image-like activations are channels-last [B, H, W, C]; tokens are [B, S, C].
 * Gradients exist for everything not marked "no gradient". */
#ifndef DT_KERNELS_OPS_H
#define DT_KERNELS_OPS_H
#include "graph/graph.h"

/* ---- matmul.c ---- */
/* y = x w^T + b.   x [..., K]  w [N, K]  b [N] or NULL  ->  y [..., N] */
dt_tensor *dt_matmul_wt(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b);
/* y = c + alpha x w^T, into c's memory when it may.   c [..., N]: the LoRA branch */
dt_tensor *dt_matmul_add(dt_graph *g, dt_tensor *c, dt_tensor *x, dt_tensor *w, double alpha);
/* A linear layer at scope path `name`: declares name.weight [out, in] and name.bias [out] (if bias), adds the
 * LoRA branch if the set in use has an adapter for this path. */
dt_tensor *dt_linear(dt_graph *g, const char *name, dt_tensor *x, int64_t out, bool bias);

/* ---- conv.c ---- */
/* 2-D convolution.  x [B, H, W, C]  w [O, C, kh, kw] (as in files)  b [O] or NULL  ->  [B, H', W', O];
 * pad = {top, left, bottom, right} zeros */
dt_tensor *dt_conv2d_w(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b, int stride, const int pad[4]);
/* Layer: declares name.weight, name.bias */
dt_tensor *dt_conv2d(dt_graph *g, const char *name, dt_tensor *x, int64_t out, int k, int stride, const int pad[4]);
/* Nearest-neighbour x2.  [B, H, W, C] -> [B, 2H, 2W, C] */
dt_tensor *dt_upsample2(dt_graph *g, dt_tensor *x);

/* ---- attention.c ---- */
typedef struct dt_attn {
    int    heads;
    double scale;                   /* 0 = 1/sqrt(head size) */
    bool   causal;
    dt_tensor *bias;                /* [heads, Sq, Sk] fp32, added to the scores; NULL = none */
    dt_tensor *mask;                /* [B, Sk] u8, 0 = key not attended; no gradient; NULL = none */
} dt_attn;
/* softmax(scale q k^T + bias) v per head, online softmax, fp32 inside.
 * q [B, Sq, h*d]  k, v [B, Sk, h*d]  ->  [B, Sq, h*d].  A row with no key attended gives 0.  Fewer key
 * heads than query heads (k, v [B, Sk, g*d], g divides h) are shared by h/g query heads each. */
dt_tensor *dt_attention(dt_graph *g, dt_tensor *q, dt_tensor *k, dt_tensor *v, const dt_attn *a);

/* ---- norm.c ---- */
/* last dim; w, b [C] or NULL */
dt_tensor *dt_layernorm(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b, double eps);
dt_tensor *dt_rmsnorm(dt_graph *g, dt_tensor *x, dt_tensor *w, double eps);  /* last dim; w [C] or NULL */
/* x [B, ..., C] channels last; statistics over (..., C/groups) per sample and group */
dt_tensor *dt_groupnorm(dt_graph *g, dt_tensor *x, dt_tensor *w, dt_tensor *b, int groups, double eps);

/* ---- pointwise.c ---- */
dt_tensor *dt_silu(dt_graph *g, dt_tensor *x);
dt_tensor *dt_gelu_tanh(dt_graph *g, dt_tensor *x);
dt_tensor *dt_gelu_erf(dt_graph *g, dt_tensor *x);
dt_tensor *dt_quick_gelu(dt_graph *g, dt_tensor *x);
dt_tensor *dt_relu(dt_graph *g, dt_tensor *x);
dt_tensor *dt_affine(dt_graph *g, dt_tensor *x, double a, double b);            /* a x + b */
dt_tensor *dt_cast(dt_graph *g, dt_tensor *x, dt_dtype t);
dt_tensor *dt_add(dt_graph *g, dt_tensor *a, dt_tensor *b);                     /* same dims */
dt_tensor *dt_sub(dt_graph *g, dt_tensor *a, dt_tensor *b);
dt_tensor *dt_mul(dt_graph *g, dt_tensor *a, dt_tensor *b);

/* ---- broadcast.c ---- */
/* x + y with y [S, C] or [C] repeated over the leading dims of x [..., S, C] (position embeddings) */
dt_tensor *dt_add_rows(dt_graph *g, dt_tensor *x, dt_tensor *y);
/* x (1 + scale) + shift; x [B, S, C]; shift, scale [B, C] */
dt_tensor *dt_modulate(dt_graph *g, dt_tensor *x, dt_tensor *shift, dt_tensor *scale);
dt_tensor *dt_gated_add(dt_graph *g, dt_tensor *x, dt_tensor *gate, dt_tensor *y);      /* x + gate y; gate [B, C] */

/* ---- rope.c ---- */
/* Interleaved rotary embedding.  x [B, S, h, d]; cos, sin [S, d/2] fp32: (x0, x1) -> (x0 c - x1 s, x1 c + x0 s) */
dt_tensor *dt_rope(dt_graph *g, dt_tensor *x, dt_tensor *cos, dt_tensor *sin);

/* ---- shape.c: data movement ---- */
dt_tensor *dt_concat(dt_graph *g, int dim, int n, dt_tensor *const *x);        /* 1..DT_MAX_IN tensors */
dt_tensor *dt_slice(dt_graph *g, dt_tensor *x, int dim, int64_t start, int64_t len);
void       dt_chunk(dt_graph *g, dt_tensor *x, int n, dt_tensor **out);         /* n equal slices of the last dim */
dt_tensor *dt_permute(dt_graph *g, dt_tensor *x, const int *perm);              /* out dim i = x dim perm[i] */

/* ---- embed.c ---- */
dt_tensor *dt_embedding(dt_graph *g, dt_tensor *w, dt_tensor *ids);  /* w [V, C]; ids [...] i32 -> [..., C] */
dt_tensor *dt_gather_rows(dt_graph *g, dt_tensor *x, dt_tensor *idx);           /* x [B, S, C]; idx [B] i32 -> [B, C] */
/* T5 relative position bias, bidirectional.  w [buckets, h] -> [h, S, S] fp32 */
dt_tensor *dt_t5_bias(dt_graph *g, dt_tensor *w, int64_t S, int max_distance);
/* Sinusoidal embedding of t [B] fp32 -> [B, n]: cos first when flip; f_i = 10000^(-i/(n/2 - shift)).  no gradient */
dt_tensor *dt_timestep_embed(dt_graph *g, dt_tensor *t, int n, bool flip, double shift, double scale);

/* ---- objective.c ---- */
/* (1 - sigma) x0 + sigma noise, in fp32, rounded once to T.  x0, noise [B, ...] fp32; sigma [B] fp32.  no gradient */
dt_tensor *dt_flow_noise(dt_graph *g, dt_tensor *x0, dt_tensor *noise, dt_tensor *sigma);
/* mean( w 1[|p - t| <= limit] (p - t)^2 ) -> [1] fp32; *per_sample (NULL: not wanted): the means [B] fp32.  p [B, ...] T,
 * t [B, ...] fp32, w [B] fp32 or NULL; limit <= 0: none.  Gradient to p only. */
dt_tensor *dt_mse_loss(dt_graph *g, dt_tensor *p, dt_tensor *t, dt_tensor *w, double limit, dt_tensor **per_sample);
/* mean |p - t| -> [1] fp32; t fp32 or T.  Gradient to p only. */
dt_tensor *dt_l1_loss(dt_graph *g, dt_tensor *p, dt_tensor *t);
/* Diagonal Gaussian posterior.  moments [B, H, W, 2C] (mean | logvar, logvar clamped to [-30, 20]);
 * eps [B, H, W, C] fp32; z = mean + exp(logvar/2) eps */
dt_tensor *dt_posterior_sample(dt_graph *g, dt_tensor *moments, dt_tensor *eps);
/* KL(N(mean, exp logvar) || N(0, 1)) summed over the latent, mean over batch and latent elements -> [1] */
dt_tensor *dt_kl_loss(dt_graph *g, dt_tensor *moments);
dt_tensor *dt_weighted_sum(dt_graph *g, int n, dt_tensor *const *x, const double *w);  /* of [1] fp32 scalars, n <= 4 */

/* All ops, alphabetical, NULL-terminated: those that checkop wants cases of. */
extern const dt_op *const dt_ops[];

#endif
