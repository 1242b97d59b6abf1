/* vae_kl.h - AutoencoderKL of FLUX (16 channels) and SDXL (4 channels). */
#ifndef DT_MODELS_VAE_KL_H
#define DT_MODELS_VAE_KL_H
#include "base/json.h"
#include "kernels/ops.h"

typedef struct dt_vae_config {      /* names and defaults of diffusers' config.json */
    int64_t in_channels, out_channels;  /* 3, 3 */
    int64_t latent_channels;        /* 16 (FLUX), 4 (SDXL) */
    int64_t block_out[8];           /* 128, 256, 512, 512 */
    int     nblock;                 /* image side = latent side << (nblock - 1) */
    int64_t layers;                 /* ResBlocks per encoder level (2); decoder has one more */
    int64_t groups;                 /* 32 */
    bool    mid_attention, quant_conv, post_quant_conv;
    double  scaling, shift;         /* latent the DiT sees = (z - shift) * scaling */
    int64_t sample_size;            /* tiles of this many pixels when tiling (1024) */
} dt_vae_config;

int dt_vae_config_parse(dt_vae_config *c, const cJSON *json, const char *what, dt_err *err);
static inline int64_t dt_vae_factor(const dt_vae_config *c) { return (int64_t)1 << (c->nblock - 1); }

/* Image [B, H, W, 3] in [-1, 1], sides multiples of dt_vae_factor -> posterior moments [B, H/f, W/f, 2 *
 * latent_channels]: mean | logvar (logvar not clamped here). */
dt_tensor *dt_vae_encode(dt_graph *g, const dt_vae_config *c, dt_tensor *x);
/* z [B, h, w, latent_channels] -> image [B, h*f, w*f, 3], not clamped. */
dt_tensor *dt_vae_decode(dt_graph *g, const dt_vae_config *c, dt_tensor *z);

#endif
