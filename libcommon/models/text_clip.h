/* text_clip.h - CLIP text encoder: CLIP-L (FLUX, SDXL) and OpenCLIP-G (SDXL text_encoder_2). */
#ifndef DT_MODELS_TEXT_CLIP_H
#define DT_MODELS_TEXT_CLIP_H
#include "base/json.h"
#include "kernels/ops.h"

typedef struct dt_clip_config {     /* names and defaults of transformers' CLIPTextConfig */
    int64_t vocab, hidden, mlp, layers, heads, positions;
    int64_t projection;             /* width of text_projection; 0 = the class has none (CLIPTextModel) */
    int64_t eos;                    /* eos_token_id; 2 = the legacy rule of dt_clip_eos */
    double  eps;
    bool    quick_gelu;             /* else gelu with erf */
} dt_clip_config;

int dt_clip_config_parse(dt_clip_config *c, const cJSON *json, const char *what, dt_err *err);

typedef struct dt_clip_out {
    dt_tensor *last;                /* [B, S, hidden] after the final LayerNorm */
    dt_tensor *penultimate;         /* [B, S, hidden] input of the last layer, no final norm */
    dt_tensor *pooled;              /* [B, hidden], or [B, projection] */
} dt_clip_out;

/* ids [B, S] i32, S <= positions; eos_at [B] i32: dt_clip_eos of each row */
dt_clip_out dt_clip(dt_graph *g, const dt_clip_config *c, dt_tensor *ids, dt_tensor *eos_at);
/* Where the pooled state is read: the first EOS, or with eos = 2 (old configs) the greatest id. */
int32_t dt_clip_eos(const dt_clip_config *c, const int32_t *ids, int64_t S);

#endif
