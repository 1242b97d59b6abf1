/* text_t5.h - T5 encoder (v1.1 XXL in FLUX and CogVideoX). */
#ifndef DT_MODELS_TEXT_T5_H
#define DT_MODELS_TEXT_T5_H
#include "base/json.h"
#include "kernels/ops.h"

typedef struct dt_t5_config {       /* names and defaults of transformers' T5Config */
    int64_t vocab, d_model, d_kv, d_ff, layers, heads, buckets, max_distance;
    double  eps;
    bool    gated;                  /* gated-gelu (v1.1) or relu (v1.0) */
} dt_t5_config;

int dt_t5_config_parse(dt_t5_config *c, const cJSON *json, const char *what, dt_err *err);
/* ids [B, S] i32 -> states [B, S, d_model].  mask [B, S] u8 (0 = not attended) or NULL: FLUX attends padding. */
dt_tensor *dt_t5(dt_graph *g, const dt_t5_config *c, dt_tensor *ids, dt_tensor *mask);

#endif
