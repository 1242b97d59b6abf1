/* flux.h - FLUX.1 transformer (diffusers' FluxTransformer2DModel): dev and schnell. */
#ifndef DT_MODELS_FLUX_H
#define DT_MODELS_FLUX_H
#include "base/json.h"
#include "kernels/ops.h"

typedef struct dt_flux_config {     /* names and defaults of diffusers' config.json */
    int64_t in_channels;            /* of a token: latent channels * 4 (64) */
    int64_t out_channels;           /* (in_channels) */
    int64_t layers, single_layers;  /* 19, 38 */
    int64_t head_dim, heads;        /* 128, 24; D = head_dim * heads */
    int64_t joint_dim, pooled_dim;  /* 4096 (T5), 768 (CLIP) */
    int64_t axes[3];                /* RoPE dims of (0, row, column): 16, 56, 56; sum = head_dim */
    bool    guidance;               /* dev: true, schnell: false */
} dt_flux_config;

/* DT_EDATA names `what` (the file) and the field. */
int dt_flux_config_parse(dt_flux_config *c, const cJSON *json, const char *what, dt_err *err);

typedef struct dt_flux_in {
    dt_tensor *img;                 /* [B, S, in_channels] packed latents */
    dt_tensor *txt;                 /* [B, T, joint_dim] T5 states */
    dt_tensor *pooled;              /* [B, pooled_dim] CLIP */
    dt_tensor *sigma;               /* [B] fp32 in [0, 1]: the time the model is told */
    dt_tensor *guidance;            /* [B] fp32; NULL unless the config has guidance */
    dt_tensor *mask;                /* [B, T + S] u8: tokens that none attends have 0; NULL: all are attended */
    dt_tensor *cos, *sin;           /* [T + S, head_dim / 2] fp32, text first: dt_flux_rope */
} dt_flux_in;

/* Velocity, packed: [B, S, out_channels]. */
dt_tensor *dt_flux(dt_graph *g, const dt_flux_config *c, const dt_flux_in *in);

/* Rotary tables for n tokens with ids [n, 3] (fp32), angles in fp64: cos, sin [n, head_dim / 2]. */
void dt_flux_rope(const dt_flux_config *c, const float *ids, int64_t n, float *cos, float *sin);
/* The same as graph constants for T text tokens (ids 0) and an h x w grid of image tokens (ids (0, row, column)). */
void dt_flux_rope_grid(dt_graph *g, const dt_flux_config *c, int64_t T, int64_t h, int64_t w, dt_tensor **cos,
                       dt_tensor **sin);

/* Latents [B, C, H, W] (H, W even) <-> tokens [B, H/2 * W/2, 4C], channel c*4 + dy*2 + dx. */
dt_tensor *dt_flux_pack(dt_graph *g, dt_tensor *lat);
dt_tensor *dt_flux_unpack(dt_graph *g, dt_tensor *tok, int64_t H, int64_t W);

#endif
