/* flux_run.c - the networks of a FLUX folder, forward only.  See flux_run.h. */
#include <math.h>
#include <stdlib.h>
#include "models/flux_run.h"
#include "models/tiles.h"

enum job { TEXT_CLIP, TEXT_T5, ENCODE, DECODE, SAMPLE, NJOB };

struct dt_flux_run {
    struct dt_flux_run_params p;
    dt_session *session[NJOB];
    int64_t     host;               /* bytes */
    void       *arena;
    bool        owned;
};

/* --- graphs --- */

static dt_graph *build_clip(void *ctx, const dt_shape_key *key)
{
    dt_flux_run *r = ctx;
    const dt_flux_pipe *p = r->p.pipe;
    (void)key;
    dt_graph *g = dt_graph_new(r->p.act);
    dt_tensor *ids = dt_input(g, "ids", DT_I32, DT_DIMS(1, p->clip_len)), *eos = dt_input(g, "eos", DT_I32, DT_DIMS(1));
    dt_graph_use(g, p->part[DT_FLUX_CLIP]);
    dt_output(g, dt_cast(g, dt_clip(g, &p->clip, ids, eos).pooled, DT_F32), "out");
    return g;
}

/* key: 1, 0, 0, T */
static dt_graph *build_t5(void *ctx, const dt_shape_key *key)
{
    dt_flux_run *r = ctx;
    const dt_flux_pipe *p = r->p.pipe;
    dt_graph *g = dt_graph_new(r->p.act);
    dt_tensor *ids = dt_input(g, "ids", DT_I32, DT_DIMS(1, key->v[3]));
    dt_graph_use(g, p->part[DT_FLUX_T5]);
    dt_output(g, dt_cast(g, dt_t5(g, &p->t5, ids, NULL), DT_F32), "out");
    return g;
}

/* key: n, w_px, h_px */
static dt_graph *build_encode(void *ctx, const dt_shape_key *key)
{
    dt_flux_run *r = ctx;
    const dt_flux_pipe *p = r->p.pipe;
    dt_graph *g = dt_graph_new(r->p.act);
    dt_tensor *x = dt_input(g, "in", DT_F32, DT_DIMS(key->v[0], key->v[2], key->v[1], 3));
    dt_graph_use(g, p->part[DT_FLUX_VAE]);
    dt_tensor *q = dt_cast(g, dt_vae_encode(g, &p->vae, dt_cast(g, x, r->p.act)), DT_F32);
    dt_output(g, dt_permute(g, q, (const int[]){ 0, 3, 1, 2 }), "out");
    return g;
}

/* key: 1, w_px, h_px */
static dt_graph *build_decode(void *ctx, const dt_shape_key *key)
{
    dt_flux_run *r = ctx;
    const dt_flux_pipe *p = r->p.pipe;
    int64_t f = dt_vae_factor(&p->vae);
    dt_graph *g = dt_graph_new(r->p.act);
    dt_tensor *z = dt_input(g, "in", DT_F32, DT_DIMS(1, p->vae.latent_channels, key->v[2] / f, key->v[1] / f));
    z = dt_permute(g, dt_affine(g, z, 1.0 / p->vae.scaling, p->vae.shift), (const int[]){ 0, 2, 3, 1 });
    dt_graph_use(g, p->part[DT_FLUX_VAE]);
    dt_output(g, dt_cast(g, dt_vae_decode(g, &p->vae, dt_cast(g, z, r->p.act)), DT_F32), "out");
    return g;
}

/* key: 1, w_px, h_px, T */
static dt_graph *build_sample(void *ctx, const dt_shape_key *key)
{
    dt_flux_run *r = ctx;
    const dt_flux_pipe *p = r->p.pipe;
    int64_t f = dt_vae_factor(&p->vae), w = key->v[1] / f, h = key->v[2] / f, T = key->v[3];
    dt_graph *g = dt_graph_new(r->p.act);
    dt_tensor *x = dt_input(g, "in", DT_F32, DT_DIMS(1, p->vae.latent_channels, h, w));
    dt_tensor *txt = dt_input(g, "states", DT_F32, DT_DIMS(1, T, p->dit.joint_dim));
    dt_tensor *pooled = dt_input(g, "pooled", DT_F32, DT_DIMS(1, p->dit.pooled_dim));
    dt_flux_in in = { .img = dt_flux_pack(g, dt_cast(g, x, r->p.act)), .txt = dt_cast(g, txt, r->p.act),
                      .pooled = dt_cast(g, pooled, r->p.act), .sigma = dt_input(g, "sigma", DT_F32, DT_DIMS(1)) };
    if (p->dit.guidance)
        in.guidance = dt_input(g, "guidance", DT_F32, DT_DIMS(1));
    dt_flux_rope_grid(g, &p->dit, T, h / 2, w / 2, &in.cos, &in.sin);
    dt_graph_use(g, p->part[DT_FLUX_DIT]);
    dt_tensor *v = dt_cast(g, dt_flux(g, &p->dit, &in), DT_F32);
    dt_output(g, dt_flux_unpack(g, v, h, w), "out");
    return g;
}

/* --- life and announcing --- */

dt_flux_run *dt_flux_run_new(const struct dt_flux_run_params *p)
{
    static const dt_build_fn build[NJOB] = { build_clip, build_t5, build_encode, build_decode, build_sample };
    dt_flux_run *r = dt_alloc(sizeof(*r));
    r->p = *p;
    for (int j = 0; j < NJOB; j++)
        r->session[j] = dt_session_new(p->dev, build[j], r);
    return r;
}

void dt_flux_run_free(dt_flux_run **pr)
{
    dt_flux_run *r = *pr;
    if (!r)
        return;
    for (int j = 0; j < NJOB; j++)
        dt_session_free(&r->session[j]);
    if (r->owned)
        r->p.dev->free(r->p.dev, r->arena);
    free(r);
    *pr = NULL;
}

static int add(dt_flux_run *r, enum job j, int64_t n, int64_t w, int64_t h, int64_t T, dt_err *err)
{
    return dt_session_add(r->session[j], &(dt_shape_key){ { n, w, h, T } }, err);
}

static int check_sides(const dt_flux_run *r, int64_t w, int64_t h, int64_t multiple, dt_err *err)
{
    if (w < multiple || h < multiple || w % multiple || h % multiple)
        return dt_err_set(err, DT_EUSAGE, "%lldx%lld px: sides must be multiples of %lld for '%s'", (long long)w,
                          (long long)h, (long long)multiple, r->p.pipe->dir);
    return 0;
}

static bool tiled(const dt_flux_run *r, int64_t w, int64_t h)
{
    return r->p.tile_px && (w > r->p.tile_px || h > r->p.tile_px);
}

int dt_flux_run_plan_text(dt_flux_run *r, int64_t T, dt_err *err)
{
    int rc = add(r, TEXT_CLIP, 1, 0, 0, 0, err);
    return rc < 0 || !T ? rc : add(r, TEXT_T5, 1, 0, 0, T, err);
}

static void need_host(dt_flux_run *r, int64_t floats)
{
    int64_t bytes = floats * (int64_t)sizeof(float);
    r->host = bytes > r->host ? bytes : r->host;
}

/* A vae job of one picture, or of every distinct tile of it. */
static int plan_vae(dt_flux_run *r, enum job j, int64_t n, int64_t w, int64_t h, dt_err *err)
{
    int64_t f = dt_vae_factor(&r->p.pipe->vae);
    int rc = check_sides(r, w, h, f, err);
    if (rc == 0 && r->p.tile_px % (4 * f))
        rc = dt_err_set(err, DT_EUSAGE, "tiles of %lld px: must be a multiple of %lld for '%s'",
                        (long long)r->p.tile_px, (long long)(4 * f), r->p.pipe->dir);
    int64_t rgb = 3 * w * h, moments = w / f * (h / f) * 2 * r->p.pipe->vae.latent_channels,
        out = j == DECODE ? rgb : moments;
    int64_t floats = j == DECODE ? rgb : n * (rgb + moments);
    if (rc == 0 && tiled(r, w, h)) {
        dt_tiles t = dt_tiles_make(w, h, r->p.tile_px);
        for (int64_t i = 0; i < t.nx * t.ny && rc == 0; i++) {
            dt_tile a = dt_tiles_at(&t, i);
            floats += out * a.w * a.h / (w * h);            /* every tile is kept until they are joined, */
            rc = add(r, j, 1, a.w, a.h, 0, err);
        }
        floats += (rgb + moments - out) * t.tile * t.tile / (w * h);        /* and one goes in */
    } else if (rc == 0) {
        rc = add(r, j, n, w, h, 0, err);
    }
    need_host(r, floats);
    return rc;
}

int dt_flux_run_plan_encode(dt_flux_run *r, int64_t n, int64_t w, int64_t h, dt_err *err)
{
    return plan_vae(r, ENCODE, n, w, h, err);
}
int dt_flux_run_plan_decode(dt_flux_run *r, int64_t w, int64_t h, dt_err *err)
{
    return plan_vae(r, DECODE, 1, w, h, err);
}

int dt_flux_run_plan_sample(dt_flux_run *r, int64_t w, int64_t h, int64_t T, dt_err *err)
{
    int rc = check_sides(r, w, h, 2 * dt_vae_factor(&r->p.pipe->vae), err);
    int64_t f = dt_vae_factor(&r->p.pipe->vae);
    need_host(r, w / f * (h / f) * r->p.pipe->vae.latent_channels);
    return rc < 0 ? rc : add(r, SAMPLE, 1, w, h, T, err);
}

int64_t dt_flux_run_bytes(const dt_flux_run *r)
{
    int64_t most = 0;
    for (int j = 0; j < NJOB; j++)
        if (dt_session_bytes(r->session[j]) > most)
            most = dt_session_bytes(r->session[j]);
    return most;
}

int64_t dt_flux_run_host(const dt_flux_run *r) { return r->host; }

int dt_flux_run_alloc(dt_flux_run *r, void *arena, dt_err *err)
{
    int64_t bytes = dt_flux_run_bytes(r);
    if (r->owned)
        r->p.dev->free(r->p.dev, r->arena);
    r->owned = !arena;
    r->arena = arena ? arena : r->p.dev->alloc(r->p.dev, bytes ? bytes : 1);
    if (!r->arena) {
        r->owned = false;
        return dt_err_set(err, DT_ENOMEM, "cannot allocate %.1f MiB for activations on %s", (double)bytes / 1048576.0,
                          r->p.dev->name);
    }
    int rc = 0;
    for (int j = 0; j < NJOB && rc == 0; j++)
        rc = dt_session_alloc(r->session[j], r->arena, err);
    return rc;
}

/* --- running --- */

static int use(dt_flux_run *r, enum job j, int64_t n, int64_t w, int64_t h, int64_t T, dt_plan **p, dt_graph **g,
               dt_err *err)
{
    *p = dt_session_use(r->session[j], &(dt_shape_key){ { n, w, h, T } }, g);
    return *p ? 0 : dt_err_set(err, DT_EFAIL, "%lldx%lld px, %lld text states: not announced", (long long)w,
                               (long long)h, (long long)T);
}

/* `what` comes out: "the latents". */
static int run_one(const dt_flux_run *r, dt_plan *p, dt_graph *g, const char *in, const void *data, float *out,
                   const char *what, dt_err *err)
{
    const dt_tensor *y = dt_find(g, "out");
    dt_plan_write(p, dt_find(g, in), data);
    int rc = dt_plan_run(p, err);
    if (rc == 0)
        rc = dt_flux_pipe_check(r->p.pipe, err);
    if (rc < 0)
        return rc;
    dt_plan_read(p, y, out);
    return dt_finite(out, DT_F32, dt_numel(y->dims)) ? 0 : dt_plan_blame(p, what, err);
}

int dt_flux_run_text(dt_flux_run *r, const char *caption, float *states, float *pooled, dt_err *err)
{
    const dt_flux_pipe *pipe = r->p.pipe;
    int32_t *ids = dt_alloc((size_t)(pipe->clip_len + pipe->t5_len) * sizeof(*ids)), eos;
    dt_plan *p;
    dt_graph *g;
    int64_t T = dt_flux_tokenize(pipe, caption, ids, &eos, ids + pipe->clip_len, err);
    int rc = T < 0 ? (int)T : use(r, TEXT_CLIP, 1, 0, 0, 0, &p, &g, err);
    if (rc == 0) {
        dt_plan_write(p, dt_find(g, "eos"), &eos);
        rc = run_one(r, p, g, "ids", ids, pooled, "CLIP's output for a caption", err);
    }
    if (rc == 0 && states && (rc = use(r, TEXT_T5, 1, 0, 0, T, &p, &g, err)) == 0)
        rc = run_one(r, p, g, "ids", ids + pipe->clip_len, states, "T5's output for a caption", err);
    free(ids);
    return rc;
}

static void to_unit(float *x, const uint8_t *rgb, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rgb[i] / 127.5f - 1.0f;
}

/* Moments [n][2C, h, w] into mean and logvar [n][C, h, w]. */
static void split_moments(const float *m, int64_t n, int64_t half, float *mean, float *logvar)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < half; k++) {
            mean[i * half + k] = m[2 * i * half + k];
            logvar[i * half + k] = fminf(20.0f, fmaxf(-30.0f, m[(2 * i + 1) * half + k]));
        }
}

/* What goes into the vae or comes out: [planes, h, w, channels] with h, w = px / scale. */
struct layout { int64_t planes, channels, scale; };

static float *alloc_cells(const struct layout *l, int64_t w, int64_t h)
{
    return dt_try_alloc((size_t)(l->planes * (h / l->scale) * (w / l->scale) * l->channels) * sizeof(float));
}

/* ENCODE: a picture in [-1, 1] to its moments; DECODE: latents to a picture. */
static int run_tiled(dt_flux_run *r, enum job j, const float *x, int64_t w, int64_t h, float *y, const char *what,
                     dt_err *err)
{
    int64_t f = dt_vae_factor(&r->p.pipe->vae), C = r->p.pipe->vae.latent_channels;
    const struct layout px = { 1, 3, 1 }, lat = { j == ENCODE ? 2 * C : C, 1, f },
                        *in = j == ENCODE ? &px : &lat, *out = j == ENCODE ? &lat : &px;
    dt_tiles t = dt_tiles_make(w, h, r->p.tile_px);
    float *tile = alloc_cells(in, t.tile, t.tile), **done = dt_alloc((size_t)(t.nx * t.ny) * sizeof(*done));
    int rc = tile ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for a tile");
    for (int64_t i = 0; i < t.nx * t.ny && rc == 0; i++) {
        dt_tile a = dt_tiles_at(&t, i);
        dt_plan *p;
        dt_graph *g;
        dt_tiles_cut(&t, i, x, in->planes, in->channels, in->scale, tile);
        done[i] = alloc_cells(out, a.w, a.h);
        rc = done[i] ? use(r, j, 1, a.w, a.h, 0, &p, &g, err) : dt_err_set(err, DT_ENOMEM, "no memory for a tile");
        if (rc == 0)
            rc = run_one(r, p, g, "in", tile, done[i], what, err);
    }
    if (rc == 0)
        dt_tiles_join(&t, done, out->planes, out->channels, out->scale, y);
    for (int64_t i = 0; i < t.nx * t.ny; i++)
        free(done[i]);
    free(done);
    free(tile);
    return rc;
}

int dt_flux_run_encode(dt_flux_run *r, const uint8_t *const *rgb, int64_t n, int64_t w, int64_t h, float *mean,
                       float *logvar, dt_err *err)
{
    int64_t f = dt_vae_factor(&r->p.pipe->vae), px = w * h * 3,
        half = r->p.pipe->vae.latent_channels * (w / f) * (h / f);
    float *x = dt_try_alloc((size_t)(n * px) * sizeof(float)),
        *m = dt_try_alloc((size_t)(n * 2 * half) * sizeof(float));
    int rc = x && m ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for %lld pictures of %lldx%lld px", (long long)n,
                                     (long long)w, (long long)h);
    for (int64_t i = 0; i < n && rc == 0; i++)
        to_unit(x + i * px, rgb[i], px);
    if (rc == 0 && tiled(r, w, h)) {
        for (int64_t i = 0; i < n && rc == 0; i++)
            rc = run_tiled(r, ENCODE, x + i * px, w, h, m + 2 * i * half, "the latent of a picture", err);
    } else if (rc == 0) {
        dt_plan *p;
        dt_graph *g;
        rc = use(r, ENCODE, n, w, h, 0, &p, &g, err);
        if (rc == 0)
            rc = run_one(r, p, g, "in", x, m, "the latent of a picture", err);
    }
    if (rc == 0)
        split_moments(m, n, half, mean, logvar);
    free(x);
    free(m);
    return rc;
}

/* x += dt v */
static int euler(float *x, const float *v, float dt, int64_t n, int64_t step, dt_err *err)
{
    bool ok = true;
    for (int64_t k = 0; k < n; k++) {
        x[k] += dt * v[k];
        ok &= isfinite(x[k]) != 0;
    }
    return ok ? 0 : dt_err_set(err, DT_ENAN, "sampling step %lld: the latents are not finite", (long long)step + 1);
}

int dt_flux_run_sample(dt_flux_run *r, const dt_flux_sample *s, dt_err *err)
{
    const dt_flux_pipe *pipe = r->p.pipe;
    int64_t f = dt_vae_factor(&pipe->vae), h = s->h_px / f, w = s->w_px / f, n = pipe->vae.latent_channels * h * w;
    dt_plan *p;
    dt_graph *g;
    int rc = use(r, SAMPLE, 1, s->w_px, s->h_px, s->T, &p, &g, err);
    if (rc < 0)
        return rc;
    double *sigma = dt_alloc((size_t)(s->steps + 1) * sizeof(*sigma));
    float *v = dt_try_alloc((size_t)n * sizeof(*v)), guidance = (float)s->guidance;
    if (!v)
        rc = dt_err_set(err, DT_ENOMEM, "no memory for latents");
    dt_flow_sigmas(&pipe->flow, sigma, s->steps, h / 2 * (w / 2));
    for (int64_t i = 0; i < s->steps && rc == 0; i++) {
        float t = (float)sigma[i], dt = (float)sigma[i + 1] - t;
        dt_plan_write(p, dt_find(g, "states"), s->states);
        dt_plan_write(p, dt_find(g, "pooled"), s->pooled);
        dt_plan_write(p, dt_find(g, "sigma"), &t);
        if (pipe->dit.guidance)
            dt_plan_write(p, dt_find(g, "guidance"), &guidance);
        rc = run_one(r, p, g, "in", s->latents, v, "the transformer's prediction", err);
        if (rc == DT_ENAN)
            dt_err_prefix(err, "sampling step %lld", (long long)i + 1);
        if (rc == 0)
            rc = euler(s->latents, v, dt, n, i, err);
        if (rc == 0 && s->on_step && !s->on_step(s->ctx, i + 1))
            rc = dt_err_set(err, DT_ESIGNAL, "stopped on request");
    }
    free(sigma);
    free(v);
    return rc;
}

int dt_flux_run_decode(dt_flux_run *r, const float *latents, int64_t w, int64_t h, uint8_t *rgb, dt_err *err)
{
    float *x = dt_try_alloc((size_t)(w * h * 3) * sizeof(*x));
    int rc = x ? 0 : dt_err_set(err, DT_ENOMEM, "no memory for a picture of %lldx%lld px", (long long)w, (long long)h);
    if (rc == 0 && tiled(r, w, h)) {
        rc = run_tiled(r, DECODE, latents, w, h, x, "a decoded picture", err);
    } else if (rc == 0) {
        dt_plan *p;
        dt_graph *g;
        rc = use(r, DECODE, 1, w, h, 0, &p, &g, err);
        if (rc == 0)
            rc = run_one(r, p, g, "in", latents, x, "a decoded picture", err);
    }
    for (int64_t i = 0; i < w * h * 3 && rc == 0; i++)
        rgb[i] = (uint8_t)lrintf(fminf(1.0f, fmaxf(0.0f, x[i] * 0.5f + 0.5f)) * 255.0f);
    free(x);
    return rc;
}
