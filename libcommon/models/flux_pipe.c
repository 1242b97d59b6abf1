/* flux_pipe.c - a FLUX model folder.  See flux_pipe.h. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/mem.h"
#include "models/flux_pipe.h"
#include "models/names.h"

enum { MAX_CONFIG_BYTES = 1 << 20 };
const char *const dt_flux_part_dir[DT_FLUX_NPART] = { "transformer", "vae", "text_encoder", "text_encoder_2" };
static const char *const stems[] = { "diffusion_pytorch_model", "model", NULL };

/* --- configs --- */

static char *part_dir(const dt_flux_pipe *p, enum dt_flux_part k) { return dt_path_join(p->dir, dt_flux_part_dir[k]); }

static int read_config(cJSON **out, char **path, const dt_flux_pipe *p, const char *dir, const char *file, dt_err *err)
{
    *path = dt_sprintf("%s/%s/%s", p->dir, dir, file);
    return dt_json_read(out, *path, MAX_CONFIG_BYTES, err);
}

static int read_part(dt_flux_pipe *p, enum dt_flux_part k, dt_err *err)
{
    cJSON *j = NULL;
    char *path = NULL;
    int rc = read_config(&j, &path, p, dt_flux_part_dir[k], "config.json", err);
    if (rc == 0)
        rc = k == DT_FLUX_DIT ? dt_flux_config_parse(&p->dit, j, path, err)
           : k == DT_FLUX_VAE ? dt_vae_config_parse(&p->vae, j, path, err)
           : k == DT_FLUX_CLIP ? dt_clip_config_parse(&p->clip, j, path, err)
                               : dt_t5_config_parse(&p->t5, j, path, err);
    cJSON_Delete(j);
    free(path);
    return rc;
}

static int read_scheduler(dt_flux_pipe *p, dt_err *err)
{
    cJSON *j = NULL;
    char *path = NULL;
    int rc = read_config(&j, &path, p, "scheduler", "scheduler_config.json", err);
    if (rc == 0)
        rc = dt_flow_parse(&p->flow, j, path, err);
    cJSON_Delete(j);
    free(path);
    return rc;
}

static int check_fit(const dt_flux_pipe *p, dt_err *err)
{
    if (p->dit.in_channels != 4 * p->vae.latent_channels)
        return dt_err_set(err, DT_EDATA, "%s: the transformer takes %lld channels, the vae gives 4 x %lld", p->dir,
                          (long long)p->dit.in_channels, (long long)p->vae.latent_channels);
    if (p->dit.joint_dim != p->t5.d_model)
        return dt_err_set(err, DT_EDATA, "%s: joint_attention_dim is %lld, text_encoder_2 gives %lld", p->dir,
                          (long long)p->dit.joint_dim, (long long)p->t5.d_model);
    if (p->dit.pooled_dim != p->clip.hidden)
        return dt_err_set(err, DT_EDATA, "%s: pooled_projection_dim is %lld, text_encoder gives %lld", p->dir,
                          (long long)p->dit.pooled_dim, (long long)p->clip.hidden);
    return 0;
}

/* --- declaring: each network is built once at its smallest shape --- */

static void declare_dit(dt_graph *g, const dt_flux_config *c)
{
    dt_flux_in in = { .img = dt_input(g, "img", DT_F32, DT_DIMS(1, 1, c->in_channels)),
                      .txt = dt_input(g, "txt", DT_F32, DT_DIMS(1, 1, c->joint_dim)),
                      .pooled = dt_input(g, "pooled", DT_F32, DT_DIMS(1, c->pooled_dim)),
                      .sigma = dt_input(g, "sigma", DT_F32, DT_DIMS(1)) };
    if (c->guidance)
        in.guidance = dt_input(g, "guidance", DT_F32, DT_DIMS(1));
    dt_flux_rope_grid(g, c, 1, 1, 1, &in.cos, &in.sin);
    dt_flux(g, c, &in);
}

static void declare_vae(dt_graph *g, const dt_flux_pipe *p)
{
    int64_t side = dt_vae_factor(&p->vae);
    dt_vae_encode(g, &p->vae, dt_input(g, "x", DT_F32, DT_DIMS(1, side, side, 3)));
    dt_vae_decode(g, &p->vae, dt_input(g, "z", DT_F32, DT_DIMS(1, 1, 1, p->vae.latent_channels)));
}

int dt_flux_declare(dt_params **out, const dt_flux_pipe *p, enum dt_flux_part k, dt_err *err)
{
    dt_graph *g = dt_graph_new(DT_F32);
    *out = dt_params_new(dt_flux_part_dir[k]);
    dt_graph_use(g, *out);
    if (k == DT_FLUX_DIT)
        declare_dit(g, &p->dit);
    else if (k == DT_FLUX_VAE)
        declare_vae(g, p);
    else if (k == DT_FLUX_CLIP)
        dt_clip(g, &p->clip, dt_input(g, "ids", DT_I32, DT_DIMS(1, 1)), dt_input(g, "eos", DT_I32, DT_DIMS(1)));
    else
        dt_t5(g, &p->t5, dt_input(g, "ids", DT_I32, DT_DIMS(1, 1)), NULL);
    int rc = dt_graph_error(g) ? dt_err_set(err, DT_EDATA, "%s%s%s: %s", p->dir ? p->dir : "", p->dir ? "/" : "",
                                            dt_flux_part_dir[k], dt_graph_error(g)) : 0;
    dt_graph_free(&g);
    if (rc < 0)
        dt_params_free(out);
    return rc;
}

static int declare(dt_flux_pipe *p, enum dt_flux_part k, dt_err *err)
{
    dt_params_free(&p->part[k]);
    return dt_flux_declare(&p->part[k], p, k, err);
}

int dt_flux_pipe_open(dt_flux_pipe **out, const char *dir, int64_t max_sequence_length, dt_err *err)
{
    *out = NULL;
    if (!dt_exists(dir)) {
        errno = ENOENT;
        return dt_err_open(err, dir);
    }
    if (!dt_is_dir(dir))
        return dt_err_set(err, DT_EDATA,
                          "'%s' is not a folder; a model folder holds transformer/, vae/, text_encoder/, ...", dir);
    dt_flux_pipe *p = dt_alloc(sizeof(*p));
    p->dir = dt_strdup(dir);
    p->clip_len = 77;
    p->t5_len = max_sequence_length ? max_sequence_length : 512;
    int rc = read_scheduler(p, err);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
        if ((rc = read_part(p, (enum dt_flux_part)k, err)) == 0)
            rc = declare(p, (enum dt_flux_part)k, err);
    if (rc == 0)
        rc = check_fit(p, err);
    if (rc < 0)
        dt_flux_pipe_close(&p);
    *out = p;
    return rc;
}

void dt_flux_pipe_close(dt_flux_pipe **pp)
{
    dt_flux_pipe *p = *pp;
    if (!p)
        return;
    for (int k = 0; k < DT_FLUX_NPART; k++) {
        dt_params_free(&p->part[k]);
        free(p->weights[k]);
    }
    dt_tokenizer_close(&p->clip_tok);
    dt_tokenizer_close(&p->t5_tok);
    free(p->dir);
    free(p);
    *pp = NULL;
}

/* --- tokens --- */

static void shorten(int64_t *len, const dt_tokenizer *t)
{
    int64_t max = dt_tokenizer_max_len(t);
    if (max > 0 && max < *len)
        *len = max;
}

int dt_flux_pipe_tokenizers(dt_flux_pipe *p, dt_err *err)
{
    if (p->clip_tok)
        return 0;
    char *a = dt_path_join(p->dir, "tokenizer"), *b = dt_path_join(p->dir, "tokenizer_2");
    int rc = dt_tokenizer_open(&p->clip_tok, a, err);
    if (rc == 0)
        rc = dt_tokenizer_open(&p->t5_tok, b, err);
    free(a);
    free(b);
    if (rc < 0) {
        dt_tokenizer_close(&p->clip_tok);       /* both, or none */
        return rc;
    }
    shorten(&p->clip_len, p->clip_tok);
    shorten(&p->t5_len, p->t5_tok);
    if (p->clip_len > p->clip.positions)
        p->clip_len = p->clip.positions;
    return 0;
}

/* Padded to max.  A folder may hold the tokenizer of another model: what the encoder has no state for is told. */
static int64_t tokens(const dt_flux_pipe *p, dt_tokenizer *t, enum dt_flux_part k, int64_t vocab, const char *text,
                      int64_t max, int32_t *ids, dt_err *err)
{
    int64_t n = dt_tokenize(t, text, max, true, ids, err);
    for (int64_t i = 0; n >= 0 && i < max; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return dt_err_set(err, DT_EDATA, "%s: a caption has token %d, %s knows %lld", p->dir, (int)ids[i],
                              dt_flux_part_dir[k], (long long)vocab);
    return n;
}

/* Never 0: a text without tokens is one pad token. */
static int64_t t5_tokens(const dt_flux_pipe *p, const char *text, int32_t *ids, dt_err *err)
{
    int64_t n = tokens(p, p->t5_tok, DT_FLUX_T5, p->t5.vocab, text, p->t5_len, ids, err);
    if (n < 0 || p->text_padding == DT_PAD_MAX)
        return n < 0 ? n : p->t5_len;
    return n ? n : 1;
}

int64_t dt_flux_text_len(const dt_flux_pipe *p, const char *text, dt_err *err)
{
    if (p->text_padding == DT_PAD_MAX)
        return p->t5_len;
    int32_t *ids = dt_alloc((size_t)p->t5_len * sizeof(*ids));
    int64_t n = t5_tokens(p, text, ids, err);
    free(ids);
    return n;
}

int64_t dt_flux_tokenize(const dt_flux_pipe *p, const char *text, int32_t *clip, int32_t *eos_at, int32_t *t5,
                         dt_err *err)
{
    int64_t n = tokens(p, p->clip_tok, DT_FLUX_CLIP, p->clip.vocab, text, p->clip_len, clip, err);
    if (n < 0)
        return n;
    *eos_at = dt_clip_eos(&p->clip, clip, p->clip_len);
    return t5_tokens(p, text, t5, err);
}

/* --- weights --- */

static int need_either(const dt_st *st, const char *name, const char *other, dt_st_entry *out, dt_err *err)
{
    int rc = dt_st_need(st, dt_st_find(st, name) || !dt_st_find(st, other) ? name : other, out, err);
    return rc < 0 ? rc : 1;
}

/* T5 files hold the embedding under either of two names. */
static int rename_t5(const dt_st *st, const dt_param *q, dt_st_entry *out, void *ctx, dt_err *err)
{
    (void)ctx;
    bool embedding = !strcmp(q->name, "shared.weight");
    return need_either(st, q->name, embedding ? "encoder.embed_tokens.weight" : q->name, out, err);
}

/* transformers 5 leaves the prefix text_model out. */
static int rename_clip(const dt_st *st, const dt_param *q, dt_st_entry *out, void *ctx, dt_err *err)
{
    (void)ctx;
    bool prefix = !strncmp(q->name, "text_model.", 11);
    return need_either(st, q->name, prefix ? q->name + 11 : q->name, out, err);
}

const dt_rename_fn dt_flux_part_rename[DT_FLUX_NPART] = { dt_flux_rename, dt_vae_rename, rename_clip, rename_t5 };

int dt_flux_pipe_place(dt_flux_pipe *p, enum dt_flux_part k, dt_device *dev, dt_dtype dtype, bool fetch, dt_err *err)
{
    dt_st *st = NULL;
    char *dir = p->weights[k] ? dt_strdup(p->weights[k]) : part_dir(p, k);
    int rc = dt_is_dir(dir) ? dt_st_open_folder(&st, dir, stems, err) : dt_st_open(&st, dir, err);
    if (rc == 0)
        rc = dt_params_place(p->part[k], &st, dt_flux_part_rename[k], NULL, dev, dtype, fetch, err);
    free(dir);
    return rc;
}

int dt_flux_pipe_load(dt_flux_pipe *p, enum dt_flux_part k, dt_device *dev, dt_dtype dtype, unsigned flags, dt_err *err)
{
    dt_params *part = p->part[k];
    int rc = part->file ? 0 : dt_flux_pipe_place(p, k, dev, dtype, false, err);
    if (rc == 0)
        rc = dt_params_alloc(part, dev, dtype, flags, err);
    if (rc == 0)
        rc = dt_params_load(part, part->file, dt_flux_part_rename[k], NULL, err);
    if (rc >= 0)
        rc = dt_params_check(part, err);            /* what was copied, too */
    if (rc == 0)
        dt_params_loaded(part);
    return rc;
}

bool dt_flux_pipe_give_back(dt_flux_pipe *p)
{
    bool any = false;
    for (int k = 0; k < DT_FLUX_NPART; k++)
        any |= dt_params_give_back(p->part[k]);
    return any;
}

int dt_flux_pipe_check(const dt_flux_pipe *p, dt_err *err)
{
    int rc = 0;
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
        rc = dt_params_check(p->part[k], err);
    return rc;
}

int dt_flux_pipe_fresh(dt_flux_pipe *p, enum dt_flux_part k, dt_device *dev, dt_dtype dtype, unsigned flags,
                       uint64_t seed, dt_err *err)
{
    int rc = dt_params_alloc(p->part[k], dev, dtype, flags, err);
    return rc < 0 ? rc : dt_params_init(p->part[k], seed, err);
}

void dt_flux_pipe_unload(dt_flux_pipe *p, enum dt_flux_part k)
{
    declare(p, k, NULL);            /* succeeded on opening */
}

/* --- hashing and copying folders --- */

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int list_dir(dt_strs *names, const char *dir, dt_err *err)
{
    DIR *d = opendir(dir);
    if (!d)
        return dt_err_open(err, dir);
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.')
            dt_strs_add(names, e->d_name);
    closedir(d);
    if (names->n)
        qsort(names->v, (size_t)names->n, sizeof(*names->v), by_name);
    return 0;
}

static bool is_weights(const char *name)
{
    return !strcmp(dt_path_ext(name), ".safetensors") || strstr(name, ".safetensors.index.json");
}

/* Adds the hashes of a folder's config and weights, as asked, in the order of their names. */
static int hash_files(dt_hasher *h, const char *dir, bool config, bool weights, dt_err *err)
{
    dt_strs names = { 0 };
    int rc = list_dir(&names, dir, err);
    for (int64_t i = 0; i < names.n && rc == 0; i++) {
        dt_hash one;
        char *path = dt_path_join(dir, names.v[i]);
        if ((config && !strcmp(names.v[i], "config.json")) || (weights && is_weights(names.v[i]))) {
            rc = dt_hash_file(&one, path, err);
            if (rc == 0)
                dt_hasher_str(h, one.hex);
        }
        free(path);
    }
    dt_strs_release(&names);
    return rc;
}

int dt_flux_pipe_hash(const dt_flux_pipe *p, enum dt_flux_part k, dt_hash *out, dt_err *err)
{
    char *dir = part_dir(p, k);
    const char *w = p->weights[k];
    dt_hash one;
    dt_hasher *h = dt_hasher_new();
    int rc = hash_files(h, dir, true, !w, err);
    if (rc == 0 && w && dt_is_dir(w))
        rc = hash_files(h, w, false, true, err);
    else if (rc == 0 && w && (rc = dt_hash_file(&one, w, err)) == 0)
        dt_hasher_str(h, one.hex);
    *out = dt_hasher_end(&h);
    free(dir);
    return rc;
}

/* Copies the files of a folder that are no weights. */
static int copy_rest(const char *from, const char *to, dt_err *err)
{
    dt_strs names = { 0 };
    int rc = dt_mkdirs(to, err);
    if (rc == 0)
        rc = list_dir(&names, from, err);
    for (int64_t i = 0; i < names.n && rc == 0; i++) {
        char *a = dt_path_join(from, names.v[i]), *b = dt_path_join(to, names.v[i]);
        if (!dt_is_dir(a) && !is_weights(names.v[i]))
            rc = dt_file_copy(a, b, err);
        free(a);
        free(b);
    }
    dt_strs_release(&names);
    return rc;
}

/* The vae's config with the factors in use: a fresh vae's are measured after training. */
static int write_factors(const dt_flux_pipe *p, const char *from, const char *to, dt_err *err)
{
    cJSON *j = NULL;
    char *in = dt_path_join(from, "config.json"), *out = dt_path_join(to, "config.json");
    int rc = dt_json_read(&j, in, MAX_CONFIG_BYTES, err);
    if (rc == 0) {
        cJSON_DeleteItemFromObject(j, "scaling_factor");
        cJSON_DeleteItemFromObject(j, "shift_factor");
        cJSON_AddNumberToObject(j, "scaling_factor", p->vae.scaling);
        cJSON_AddNumberToObject(j, "shift_factor", p->vae.shift);
        rc = dt_json_write(out, j, true, err);
    }
    cJSON_Delete(j);
    free(in);
    free(out);
    return rc;
}

int dt_flux_pipe_save(const dt_flux_pipe *p, enum dt_flux_part k, const char *dir, dt_dtype dtype, bool ema,
                      const dt_st_kv *meta, dt_err *err)
{
    bool text = k == DT_FLUX_CLIP || k == DT_FLUX_T5;
    char *to = dt_path_join(dir, dt_flux_part_dir[k]), *from = part_dir(p, k);
    char *path = dt_sprintf("%s/%s.safetensors", to, stems[text]);
    int rc = copy_rest(from, to, err);
    if (rc == 0 && k == DT_FLUX_VAE)
        rc = write_factors(p, from, to, err);
    if (rc == 0)
        rc = dt_params_save(p->part[k], path, dtype, ema, meta, err);
    free(path);
    free(to);
    free(from);
    return rc;
}
