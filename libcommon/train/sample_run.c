/* sample_run.c - see sample_run.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"
#include "data/media.h"
#include "models/names.h"
#include "train/grid.h"
#include "train/sample_run.h"
#include "train/sampler.h"

struct job {
    dt_sample_opts o;
    const dt_sample_ui *ui;
    dt_prompts     prompts;
    dt_device     *dev;
    dt_flux_pipe  *pipe;
    dt_lora       *lora[DT_FLUX_NPART];     /* until the sampler takes them */
    char          *lora_text;       /* for the PNGs: files, strengths, hashes */
    dt_hash        model;           /* of the transformer */
    dt_sampler    *s;
    dt_mem_plan    memory;
    dt_st         *init;
    dt_st_entry    init_entry;
    float         *latents;         /* of the picture in progress */
    float         *saved;           /* [pictures][C, h, w] */
    dt_grid       *grid;
    dt_progress   *progress;
    int64_t        steps_done;
    bool           one_file;        /* output is a file, not a folder */
};

static void say(const struct job *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(const struct job *j, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    j->ui->say(j->ui->ctx, false, line);
}

static int64_t npictures(const struct job *j) { return j->prompts.n * j->o.num_images; }
static bool wants_base(const struct job *j) { return j->o.compare_base; }

/* --- what is asked for --- */

/* The folder of the pictures, which is made if it is not there. */
static bool is_made(const struct job *j, const char *dir)
{
    const char *out = j->one_file ? NULL : j->o.output;
    size_t n = out ? strlen(out) : 0;
    while (n > 1 && out[n - 1] == '/')
        n--;
    return out && strlen(dir) == n && !memcmp(dir, out, n);
}

/* What could not be written in the end is refused before the work begins. */
static int check_output(const struct job *j, const char *path, dt_err *err)
{
    if (!path || !strcmp(path, "-"))
        return 0;
    char *dir = dt_path_dir(path);
    int rc = is_made(j, dir) ? 0 : dt_path_check_dir(path, err);
    free(dir);
    return rc;
}

/* A folder named cat.jpg is not what anybody wants. */
static int check_kind(const char *path, dt_err *err)
{
    static const char *const other[] = { ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff" };
    for (size_t i = 0; path && !dt_is_dir(path) && i < sizeof(other) / sizeof(*other); i++)
        if (!strcasecmp(dt_path_ext(path), other[i]))
            return dt_err_set(err, DT_EUSAGE, "'%s': pictures are written as .png", path);
    return 0;
}

static int check_outputs(const struct job *j, dt_err *err)
{
    const dt_sample_opts *o = &j->o;
    const char *const path[] = { j->one_file ? o->output : NULL, o->grid, o->save_latents, o->progress };
    int rc = check_kind(o->output, err);
    for (size_t i = 0; i < sizeof(path) / sizeof(*path) && rc == 0; i++)
        rc = check_output(j, path[i], err);
    return rc;
}

static int read_asked(struct job *j, const dt_strs *files, dt_err *err)
{
    const dt_sample_opts *o = &j->o;
    int rc = 0;
    if (!o->model)
        return dt_err_set(err, DT_EUSAGE, "--pretrained_model_name_or_path is missing");
    if (!o->output && !o->grid && !o->save_latents && !o->memory_plan)
        return dt_err_set(err, DT_EUSAGE, "nowhere to write: -o, --grid or --save_latents is missing");
    if (o->compare_base && !o->lora.n)
        return dt_err_set(err, DT_EUSAGE, "--compare_base needs --lora");
    for (int64_t i = 0; i < o->prompt.n; i++)
        dt_prompts_add(&j->prompts, o->prompt.v[i]);
    for (int64_t i = 0; i < files->n && rc == 0; i++)
        rc = dt_prompts_read(&j->prompts, files->v[i], err);
    if (rc == 0 && !j->prompts.n)
        rc = dt_err_set(err, DT_EUSAGE, "nothing to sample: --prompt or a file of prompts is missing");
    j->one_file = o->output && (!strcmp(o->output, "-") || !strcmp(dt_path_ext(o->output), ".png"));
    if (rc == 0 && j->one_file && npictures(j) * (1 + wants_base(j)) > 1)
        rc = dt_err_set(err, DT_EUSAGE, "%lld pictures do not go into one file: -o must name a folder",
                        (long long)(npictures(j) * (1 + wants_base(j))));
    return rc == 0 && !o->memory_plan ? check_outputs(j, err) : rc;
}

static dt_dtype act_of(const struct job *j) { return j->o.bf16 ? DT_BF16 : DT_F32; }

static int open_model(struct job *j, dt_err *err)
{
    const dt_sample_opts *o = &j->o;
    const char *const own[] = { o->transformer_path, o->vae_path };
    static const enum dt_flux_part part[] = { DT_FLUX_DIT, DT_FLUX_VAE };
    int rc = dt_flux_pipe_open(&j->pipe, o->model, o->max_sequence_length, err);
    if (rc == 0)
        j->pipe->text_padding = (enum dt_padding)o->text_padding;
    for (int i = 0; i < 2 && rc == 0; i++) {
        j->pipe->weights[part[i]] = dt_strdup(own[i]);
        if (own[i] && !dt_exists(own[i])) {
            errno = ENOENT;
            rc = dt_err_open(err, own[i]);
        }
    }
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
        if ((rc = dt_flux_pipe_place(j->pipe, (enum dt_flux_part)k, j->dev, act_of(j), o->low_vram, err)) < 0 &&
            o->memory_plan)
            rc = 0;                 /* which takes configurations alone, if there is no more */
    if (rc == 0 && o->low_vram)
        dt_flux_pipe_give_back(j->pipe);
    if (rc == 0 && !j->pipe->dit.guidance && o->guidance_given)
        rc = dt_err_set(err, DT_EUSAGE, "'%s' has no guidance input: --guidance_scale has no effect", o->model);
    return rc;
}

static int describe_lora(struct job *j, const char *path, double strength, dt_err *err)
{
    dt_hash h;
    int rc = dt_hash_file(&h, path, err);
    if (rc < 0)
        return rc;
    char *old = j->lora_text;
    j->lora_text = dt_sprintf("%s%s%s:%g xxh3-128:%s", old ? old : "", old ? ", " : "", dt_path_base(path), strength,
                              h.hex);
    free(old);
    return 0;
}

/* Those of all files into one for each network. */
static int mix_loras(struct job *j, dt_lora *(*v)[DT_FLUX_NPART], const double *strength, int64_t n, dt_err *err)
{
    dt_lora **of = dt_alloc((size_t)n * sizeof(*of));
    int rc = 0;
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++) {
        for (int64_t i = 0; i < n; i++)
            of[i] = v[i][k];
        rc = dt_lora_mix(&j->lora[k], of, strength, n, err);
        for (int64_t i = 0; i < n; i++)
            v[i][k] = of[i];
    }
    free(of);
    return rc;
}

static int open_lora(struct job *j, dt_lora *v[DT_FLUX_NPART], const char *word, double *strength, dt_err *err)
{
    char *path = dt_lora_split(word, strength);
    dt_params *base[DT_FLUX_NPART];
    for (int k = 0; k < DT_FLUX_NPART; k++)
        base[k] = k == DT_FLUX_VAE ? NULL : j->pipe->part[k];
    int rc = dt_lora_open_parts(v, base, DT_FLUX_NPART, path, err);
    if (rc == 0)
        rc = describe_lora(j, path, *strength, err);
    for (int k = 0; k < DT_FLUX_NPART && rc == 0; k++)
        for (int64_t i = 0; v[k] && i < v[k]->report.n; i++)
            say(j, "%s, strength %g", v[k]->report.v[i], *strength);
    free(path);
    return rc;
}

static int open_loras(struct job *j, dt_err *err)
{
    int64_t n = j->o.lora.n;
    dt_lora *(*v)[DT_FLUX_NPART] = dt_alloc((size_t)(n + 1) * sizeof(*v));
    double *strength = dt_alloc((size_t)(n + 1) * sizeof(*strength));
    int rc = 0;
    for (int64_t i = 0; i < n && rc == 0; i++)
        rc = open_lora(j, v[i], j->o.lora.v[i], &strength[i], err);
    if (rc == 0 && n)
        rc = mix_loras(j, v, strength, n, err);
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < DT_FLUX_NPART; k++)
            dt_lora_free(&v[i][k]);
    free(strength);
    free(v);
    return rc;
}

static int open_latents(struct job *j, dt_err *err)
{
    int64_t f = dt_vae_factor(&j->pipe->vae), C = j->pipe->vae.latent_channels;
    dt_sample_opts *o = &j->o;
    dt_st_entry *e = &j->init_entry;
    int rc = dt_st_open(&j->init, o->init_latents, err);
    if (rc == 0)
        rc = dt_st_need(j->init, "latents", e, err);
    if (rc < 0)
        return rc;
    if (e->dims.nd != 4 || e->dims.d[0] != npictures(j) || e->dims.d[1] != C)
        return dt_err_set(err, DT_EDATA, "%s: 'latents' must be [%lld, %lld, height, width]", o->init_latents,
                          (long long)npictures(j), (long long)C);
    if ((o->width && o->width != e->dims.d[3] * f) || (o->height && o->height != e->dims.d[2] * f))
        return dt_err_set(err, DT_EUSAGE, "'latents' of %s are of %lldx%lld px, not of --width and --height",
                          o->init_latents, (long long)(e->dims.d[3] * f), (long long)(e->dims.d[2] * f));
    o->width = e->dims.d[3] * f;
    o->height = e->dims.d[2] * f;
    return 0;
}

/* Pictures are of one size when latents are read or written. */
static int settle_prompt(struct job *j, dt_prompt *p, dt_err *err)
{
    const dt_sample_opts *o = &j->o;
    int64_t own = j->pipe->vae.sample_size ? j->pipe->vae.sample_size : 1024;
    int64_t w = o->width ? o->width : own, h = o->height ? o->height : own;
    p->seed = p->seed < 0 ? o->seed : p->seed;
    p->w_px = p->w_px ? p->w_px : w;
    p->h_px = p->h_px ? p->h_px : h;
    if (o->init_latents && (p->w_px != w || p->h_px != h))
        return dt_err_set(err, DT_EDATA, "'%s' is asked for at %lldx%lld px, but the latents of %s are of %lldx%lld px",
                          p->text, (long long)p->w_px, (long long)p->h_px, o->init_latents, (long long)w, (long long)h);
    if (o->save_latents && (p->w_px != j->prompts.v[0].w_px || p->h_px != j->prompts.v[0].h_px))
        return dt_err_set(err, DT_EUSAGE, "--save_latents needs pictures of one size");
    int64_t k = dt_sampler_add_prompt(j->s, p->text, err);
    return k < 0 ? (int)k : dt_sampler_add_size(j->s, k, p->w_px, p->h_px, err);
}

static int settle(struct job *j, dt_err *err)
{
    int rc = j->o.init_latents ? open_latents(j, err) : 0;
    for (int64_t i = 0; i < j->prompts.n && rc == 0; i++)
        rc = settle_prompt(j, &j->prompts.v[i], err);
    return rc;
}

/* --- pictures --- */

static bool on_step(void *ctx, int64_t step)
{
    struct job *j = ctx;
    (void)step;
    dt_progress_step(j->progress, ++j->steps_done);
    return !j->ui->stop || !*j->ui->stop;
}

static void put_record(const struct job *j, const dt_prompt *p, const char *path, int64_t k, bool base,
                       const dt_image *im)
{
    cJSON *o = cJSON_CreateObject(), *item;
    cJSON_AddStringToObject(o, "path", path);
    cJSON_AddStringToObject(o, "prompt", p->text);
    cJSON_AddNumberToObject(o, "seed", (double)p->seed);
    cJSON_AddNumberToObject(o, "image", (double)(p->image + k));
    cJSON_AddNumberToObject(o, "width", im->w);
    cJSON_AddNumberToObject(o, "height", im->h);
    if (base)
        cJSON_AddBoolToObject(o, "base", true);
    cJSON_ArrayForEach(item, p->extra)
        if (strcmp(item->string, "path") && strcmp(item->string, "base"))     /* a record that is given back */
            cJSON_AddItemToObject(o, item->string, cJSON_Duplicate(item, true));
    char *json = dt_json_line(o), *line = dt_sprintf("%s\n", json);
    j->ui->out(j->ui->ctx, line);
    free(line);
    free(json);
    cJSON_Delete(o);
}

static int save_picture(const struct job *j, const dt_prompt *p, int64_t n, int64_t k, bool base, const dt_image *im,
                        dt_err *err)
{
    const dt_sample_opts *o = &j->o;
    char *name = dt_sprintf("%04lld%s.png", (long long)n, base ? "-base" : "");
    char *path = j->one_file ? dt_strdup(o->output) : dt_path_join(o->output, name);
    char *seed = dt_sprintf("%lld", (long long)p->seed), *image = dt_sprintf("%lld", (long long)(p->image + k));
    char *steps = dt_sprintf("%lld", (long long)o->steps), *guidance = dt_sprintf("%g", o->guidance);
    dt_png_text text[8] = { { "prompt", p->text }, { "seed", seed }, { "image", image }, { "steps", steps },
                            { "model", j->model.hex } };
    int t = 5;
    if (j->pipe->dit.guidance)
        text[t++] = (dt_png_text){ "guidance", guidance };
    if (o->text_padding)
        text[t++] = (dt_png_text){ "text_padding", dt_padding_names[o->text_padding] };
    if (j->lora_text && !base)
        text[t++] = (dt_png_text){ "lora", j->lora_text };
    int rc = dt_png_write(path, im, text, t, err);
    if (rc == 0 && strcmp(path, "-"))
        put_record(j, p, path, k, base, im);
    free(name);
    free(path);
    free(seed);
    free(image);
    free(steps);
    free(guidance);
    return rc;
}

static void take_latents(const struct job *j, float *to, int64_t at, int64_t n)
{
    const dt_st_entry *e = &j->init_entry;
    size_t el = dt_dtype_size(e->dtype);
    const char *from = (const char *)e->data + (size_t)at * el;
    dt_convert(to, DT_F32, from, e->dtype, n);
    dt_st_forget(j->init, from, (size_t)n * el);
}

static int picture(struct job *j, int64_t prompt, int64_t k, bool base, dt_err *err)
{
    const dt_prompt *p = &j->prompts.v[prompt];
    int64_t len = dt_sampler_latents(j->s, p->w_px, p->h_px), n = prompt * j->o.num_images + k;
    dt_sampler_shot q = { .prompt = dt_sampler_add_prompt(j->s, p->text, err), .w_px = p->w_px, .h_px = p->h_px,
                          .steps = j->o.steps, .guidance = j->o.guidance, .base = base, .latents = j->latents,
                          .on_step = on_step, .ctx = j };
    dt_image im = { 0 };
    if (j->init)
        take_latents(j, q.latents, n * len, len);
    else
        dt_rng_fill_normal(q.latents, len, (uint64_t)p->seed, DT_RNG_SAMPLE, 0, (uint32_t)(p->image + k));
    int rc = dt_image_alloc(&im, (int)p->w_px, (int)p->h_px, err);
    if (rc == 0)
        rc = dt_sampler_run(j->s, &q, im.rgb, err);
    if (rc == 0 && j->saved && !base)
        memcpy(j->saved + n * len, q.latents, (size_t)len * sizeof(float));
    if (rc == 0 && j->grid)
        rc = dt_grid_put(j->grid, (int)prompt, (int)(wants_base(j) ? 2 * k + !base : k), im.rgb, im.w, im.h, err);
    if (rc == 0 && j->o.output)
        rc = save_picture(j, p, n, k, base, &im, err);
    dt_image_release(&im);
    return rc;
}

static void add_columns(struct job *j)
{
    for (int64_t k = 0; k < j->o.num_images; k++)
        for (int base = wants_base(j); base >= 0; base--) {
            const char *what = !wants_base(j) ? "" : base ? "base" : "LoRA";
            char *title = j->o.num_images > 1 ? dt_sprintf("%s %lld", what, (long long)k + 1) : dt_strdup(what);
            dt_grid_add_col(j->grid, *title ? title : NULL);
            free(title);
        }
}

/* Bytes of its tiles, at most w x h px, and of the sheet. */
static int open_grid(struct job *j, int w, int h, int64_t *tiles, int64_t *sheet, dt_err *err)
{
    char *sub = dt_sprintf("seed %lld, %lld steps", (long long)j->o.seed, (long long)j->o.steps);
    j->grid = dt_grid_new(dt_grid_params(.subtitle = sub));
    for (int64_t i = 0; i < j->prompts.n; i++)
        dt_grid_add_row(j->grid, j->prompts.v[i].text);
    add_columns(j);
    free(sub);
    return dt_grid_bytes(j->grid, w, h, tiles, sheet, err);
}

/* --- memory --- */

/* The largest picture, or the largest sides of any for the sheet; latents of all pictures that are kept. */
static void largest(const struct job *j, int64_t *px, int *w, int *h, int64_t *latents)
{
    *px = *latents = *w = *h = 0;
    for (int64_t i = 0; i < j->prompts.n; i++) {
        const dt_prompt *p = &j->prompts.v[i];
        int64_t len = dt_sampler_latents(j->s, p->w_px, p->h_px);
        *px = p->w_px * p->h_px > *px ? p->w_px * p->h_px : *px;
        *w = (int)p->w_px > *w ? (int)p->w_px : *w;
        *h = (int)p->h_px > *h ? (int)p->h_px : *h;
        *latents = len > *latents ? len : *latents;
    }
}

/* Moments: the prompts are encoded; pictures are made, and put into the sheet; the networks are gone
 * when that is drawn. */
static void count(struct job *j, int64_t px, int64_t len, int64_t tiles, int64_t sheet)
{
    int64_t kept = j->o.save_latents ? npictures(j) * len * (int64_t)sizeof(float) : 0;
    j->memory = (dt_mem_plan){ 0 };
    dt_sampler_memory(j->s, &j->memory, dt_mem_resident());
    dt_mem_moment *pictures = &j->memory.at[1];     /* behind the captions */
    pictures->kind[DT_MEM_PICTURES] += kept + len * (int64_t)sizeof(float) + 3 * px + tiles;
    if (j->grid)
        dt_mem_add(&j->memory, "sheet", pictures->kind[DT_MEM_PROCESS])->kind[DT_MEM_PICTURES] = kept + tiles + sheet;
    dt_mem_add_start(&j->memory);
}

static int plan_memory(struct job *j, dt_err *err)
{
    int w, h;
    int64_t px, len, sheet = 0, tiles = 0;
    largest(j, &px, &w, &h, &len);
    int rc = j->o.grid ? open_grid(j, w, h, &tiles, &sheet, err) : 0;
    if (rc < 0)
        return rc;
    count(j, px, len, tiles, sheet);
    if (!dt_mem_fits(&j->memory, j->o.memory_budget) && dt_flux_pipe_give_back(j->pipe)) {
        count(j, px, len, tiles, sheet);
        if (dt_mem_fits(&j->memory, j->o.memory_budget))
            say(j, "%s", DT_MEM_GIVEN_BACK);
    }
    char *text = NULL, *line = dt_mem_line(&j->memory);
    size_t bytes = 0;
    FILE *f = j->o.memory_plan ? dt_must(open_memstream(&text, &bytes)) : NULL;
    if (f) {
        dt_mem_table(f, &j->memory);
        fclose(f);
        j->ui->out(j->ui->ctx, text);
    } else {
        say(j, "%s", line);
    }
    free(text);
    free(line);
    return dt_mem_accept(&j->memory, j->o.memory_budget, j->dev, err);
}

/* What pictures need beside the networks; folders are made before the long work begins. */
static int prepare(struct job *j, dt_err *err)
{
    int w, h;
    int64_t px, len;
    largest(j, &px, &w, &h, &len);
    j->latents = dt_try_alloc((size_t)len * sizeof(float));
    j->saved = j->o.save_latents ? dt_try_alloc((size_t)(npictures(j) * len) * sizeof(float)) : NULL;
    if (!j->latents || (j->o.save_latents && !j->saved))
        return dt_err_set(err, DT_ENOMEM, "no memory for the latents of %lld pictures", (long long)npictures(j));
    int rc = j->o.output && !j->one_file ? dt_mkdirs(j->o.output, err) : 0;
    return rc == 0 && j->o.output ? dt_flux_pipe_hash(j->pipe, DT_FLUX_DIT, &j->model, err) : rc;
}

static int make_pictures(struct job *j, dt_err *err)
{
    int64_t total = npictures(j) * (1 + wants_base(j)) * j->o.steps;
    int rc = dt_progress_open(&j->progress, "sample", "step", total, j->o.progress, j->o.quiet, err);
    if (rc < 0)
        return rc;
    dt_progress_step(j->progress, 0);
    for (int64_t i = 0; i < j->prompts.n && rc == 0; i++)
        for (int64_t k = 0; k < j->o.num_images && rc == 0; k++) {
            if (wants_base(j))
                rc = picture(j, i, k, true, err);
            if (rc == 0)
                rc = picture(j, i, k, false, err);
        }
    dt_progress_close(&j->progress);
    return rc;
}

static int write_rest(struct job *j, dt_err *err)
{
    dt_sampler_free(&j->s);
    for (int k = 0; k < DT_FLUX_NPART; k++)
        dt_flux_pipe_unload(j->pipe, (enum dt_flux_part)k);
    int64_t f = dt_vae_factor(&j->pipe->vae);
    const dt_prompt *p = &j->prompts.v[0];
    const dt_st_entry e = { .name = "latents", .dtype = DT_F32, .data = j->saved,
                            .dims = DT_DIMS(npictures(j), j->pipe->vae.latent_channels, p->h_px / f, p->w_px / f) };
    int rc = j->saved ? dt_st_write(j->o.save_latents, &e, 1, NULL, err) : 0;
    return rc == 0 && j->grid ? dt_grid_save(j->grid, j->o.grid, err) : rc;
}

static void release(struct job *j)
{
    dt_sampler_free(&j->s);
    for (int k = 0; k < DT_FLUX_NPART; k++)
        dt_lora_free(&j->lora[k]);
    dt_flux_pipe_close(&j->pipe);
    dt_device_close(&j->dev);
    dt_grid_free(&j->grid);
    dt_st_close(&j->init);
    dt_prompts_release(&j->prompts);
    free(j->lora_text);
    free(j->latents);
    free(j->saved);
}

static int run(struct job *j, dt_err *err)
{
    int rc = prepare(j, err);
    if (rc == 0)
        rc = dt_sampler_load(j->s, j->ui->stop, err);
    if (rc == 0)
        rc = make_pictures(j, err);
    if (rc == 0)
        rc = write_rest(j, err);
    char *peak = rc == 0 ? dt_mem_report(&j->memory) : NULL;
    if (peak)
        say(j, "%s", peak);
    free(peak);
    return rc;
}

int dt_sample_run(const dt_sample_opts *o, const dt_strs *files, const dt_sample_ui *ui, dt_err *err)
{
    struct job j = { .o = *o, .ui = ui };
    int rc = read_asked(&j, files, err);
    if (rc == 0)
        rc = dt_device_open(&j.dev, o->device, err);
    if (rc == 0)
        rc = open_model(&j, err);
    if (rc == 0)
        rc = open_loras(&j, err);
    if (rc == 0)
        rc = dt_sampler_new(&j.s, &(struct dt_sampler_params){
            .pipe = j.pipe, .dev = j.dev, .lora = j.lora, .base = o->compare_base, .act = act_of(&j),
            .tile_px = o->vae_tile }, err);
    if (rc == 0)
        rc = settle(&j, err);
    if (rc == 0)
        rc = plan_memory(&j, err);
    if (rc == 0 && !o->memory_plan)
        rc = run(&j, err);
    release(&j);
    return rc;
}
