/* flux_run.h - the four networks of a FLUX folder, forward only: encoding captions and pictures, sampling, decoding.
 *
 * Shapes are announced first (dt_flux_run_plan_*), then one arena serves them all; nothing grows later.  Parts
 * that are used must be loaded (dt_flux_pipe_load).  One thread at a time. */
#ifndef DT_MODELS_FLUX_RUN_H
#define DT_MODELS_FLUX_RUN_H
#include "graph/session.h"
#include "models/flux_pipe.h"

typedef struct dt_flux_run dt_flux_run;

struct dt_flux_run_params {
    dt_flux_pipe *pipe;             /* borrowed */
    dt_device    *dev;
    dt_dtype      act;              /* dtype of activations and of the loaded weights */
    int64_t       tile_px;          /* pictures larger than this on a side go through the vae in tiles (a multiple of
                                       4 * vae factor); 0 = never.  As diffusers' enable_tiling, overlap 1/4 */
};

dt_flux_run *dt_flux_run_new(const struct dt_flux_run_params *p);
void         dt_flux_run_free(dt_flux_run **r);

/* --- announcing --- */
/* T: dt_flux_text_len of a caption; 0: CLIP alone */
int     dt_flux_run_plan_text(dt_flux_run *r, int64_t T, dt_err *err);
int     dt_flux_run_plan_encode(dt_flux_run *r, int64_t n, int64_t w_px, int64_t h_px, dt_err *err);
int     dt_flux_run_plan_sample(dt_flux_run *r, int64_t w_px, int64_t h_px, int64_t T, dt_err *err);
int     dt_flux_run_plan_decode(dt_flux_run *r, int64_t w_px, int64_t h_px, dt_err *err);
int64_t dt_flux_run_bytes(const dt_flux_run *r);            /* arena for everything announced */
int64_t dt_flux_run_host(const dt_flux_run *r);             /* host memory while anything announced runs, beside what
                                                               the caller gives */
/* `arena`: device memory of at least that many bytes, borrowed; NULL allocates. */
int     dt_flux_run_alloc(dt_flux_run *r, void *arena, dt_err *err);

/* --- running --- */
/* states [T, joint_dim], NULL: CLIP alone; pooled [pooled_dim]; fp32 */
int dt_flux_run_text(dt_flux_run *r, const char *caption, float *states, float *pooled, dt_err *err);
/* rgb [n][h_px, w_px, 3] -> mean, logvar [n][C, h, w] fp32, logvar clamped to [-30, 20] */
int dt_flux_run_encode(dt_flux_run *r, const uint8_t *const *rgb, int64_t n, int64_t w_px, int64_t h_px, float *mean,
                       float *logvar, dt_err *err);

typedef struct dt_flux_sample {
    int64_t w_px, h_px, steps;
    double  guidance;
    int64_t T;                      /* rows of states */
    const float *states, *pooled;   /* of dt_flux_run_text */
    float  *latents;                /* [C, h, w]: noise N(0,1) in, result out (scaled as the transformer sees it) */
    bool  (*on_step)(void *ctx, int64_t step);      /* may be NULL; false stops */
    void   *ctx;
} dt_flux_sample;
int dt_flux_run_sample(dt_flux_run *r, const dt_flux_sample *s, dt_err *err);
/* latents [C, h, w] -> rgb [h_px, w_px, 3] */
int dt_flux_run_decode(dt_flux_run *r, const float *latents, int64_t w_px, int64_t h_px, uint8_t *rgb, dt_err *err);

#endif
