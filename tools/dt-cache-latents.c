/* dt-cache-latents: encode every picture and caption of a plan once, ahead of training.  See dt-cache-latents(1). */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/opt.h"
#include "base/tool.h"
#include "train/encode.h"

struct opts {
    const char *model, *short_model, *vae_path, *plan, *output, *shard, *device, *explain, *progress;
    int64_t vae_mini_batch, vae_tile, max_sequence_length, max_shard_size, threads, workers;
    double  max_skipped_fraction;
    int64_t memory_budget;
    int     text_padding, mixed_precision, cache_dtype, pictures_only, memory_plan, low_vram, quiet;
};

static const char *const precisions[] = { "no", "bf16", NULL };
static const char *const cache_dtypes[] = { "auto", "fp32", "bf16", NULL };

#define O(m) offsetof(struct opts, m)
static const dt_opt table[] = {
    DT_OPT_GROUP("Model"),
    { "pretrained_model_name_or_path", 0, "DIR", DT_OPT_STR, O(model),
      .help = "model folder in the layout of diffusers", .often = true },
    { "model", 'm', "DIR", DT_OPT_STR, O(short_model), .help = "short for --pretrained_model_name_or_path",
      .often = true },
    { "vae_path", 0, "PATH", DT_OPT_STR, O(vae_path), .help = "weights of the autoencoder from this file or folder" },
    { "max_sequence_length", 0, "N", DT_OPT_INT, O(max_sequence_length), 0, 512, .help =
      "T5 tokens of a caption, padding included; training must use the same (0: 512)" },
    { "text_padding", 0, "NAME", DT_OPT_ENUM, O(text_padding), 0, 0, dt_padding_names, .help =
      "T5 states of a caption: max, padded to max_sequence_length and the padding attended, as the reference does; or none, its own "
      "tokens alone; training must use the same (max)" },
    { "mixed_precision", 0, "NAME", DT_OPT_ENUM, O(mixed_precision), 0, 0, precisions, .help =
      "encode in fp32 (no) or bf16 (no)", .often = true },
    DT_OPT_GROUP("Cache"),
    { "plan", 0, "FILE", DT_OPT_STR, O(plan), .help = "what dt-bucket wrote, as PLAN (standard input)", .often = true },
    { "output", 'o', "DIR", DT_OPT_STR, O(output), .help =
      "cache folder to fill; - writes one tar stream for dt-train --latents -", .often = true },
    { "cache_dtype", 0, "NAME", DT_OPT_ENUM, O(cache_dtype), 0, 0, cache_dtypes, .help =
      "keep fp32 or bf16 (auto: bf16 with --mixed_precision bf16, otherwise fp32)" },
    { "pictures_only", 0, NULL, DT_OPT_FLAG, O(pictures_only), .help =
      "leave captions out, for training that trains the text encoders" },
    { "shard", 0, "I/N", DT_OPT_STR, O(shard), .help =
      "encode only the I-th of N parts of the pictures and captions; all N fill one folder", .often = true },
    { "max_shard_size", 0, "BYTES", DT_OPT_BYTES, O(max_shard_size), 1, 1e15, .help =
      "complete a file of the cache when it has grown to this; a run that is killed loses less than one (256M)" },
    { "max_skipped_fraction", 0, "F", DT_OPT_FLOAT, O(max_skipped_fraction), 0, 1, .help =
      "fail when a larger part of the pictures cannot be used (0.5)" },
    { "explain", 0, "FILE", DT_OPT_STR, O(explain), .help =
      "encode nothing; say why the entries of this picture would be reused or made again", .often = true },
    DT_OPT_GROUP("Work"),
    { "device", 0, "NAME", DT_OPT_STR, O(device), .help = "cpu, cuda or cuda:N (cpu)" },
    { "vae_mini_batch", 0, "N", DT_OPT_INT, O(vae_mini_batch), 1, 1024, .help =
      "encode up to N pictures of one size at once, but no more than one megapixel together; results are the same (32)" },
    { "vae_tile", 0, "PX", DT_OPT_INT, O(vae_tile), 0, 65536, .help =
      "encode pictures larger than this in overlapping tiles (0: never)" },
    { "threads", 0, "N", DT_OPT_INT, O(threads), 0, 1024, .help = "threads that compute (0: all cores)" },
    { "dataloader_num_workers", 0, "N", DT_OPT_INT, O(workers), 0, 64, .help =
      "threads that read pictures (0: one for each CPU, at most 8)" },
    { "memory_plan", 0, NULL, DT_OPT_FLAG, O(memory_plan),
      .help = "print the memory plan by moment and kind, and stop" },
    { "memory_budget", 0, "BYTES", DT_OPT_BYTES, O(memory_budget), 1, 1e15, .help =
      "take no more memory than this: weights are given back after use, and fewer pictures are encoded at once, if that is needed; "
      "if it is not enough, say what would do and end with status 5" },
    { "low_vram", 0, NULL, DT_OPT_FLAG, O(low_vram), .help =
      "keep matrices out of memory: each is brought in from the weight files where it is used; slower, but larger models fit" },
    { "progress", 0, "FILE", DT_OPT_STR, O(progress), .help =
      "write progress as NDJSON to FILE, or to this descriptor if it is a number" },
    { "quiet", 'q', NULL, DT_OPT_FLAG, O(quiet), .help =
      "say nothing on standard error except warnings and errors" },
    DT_OPT_END
};

static const dt_cli cli = {
    .tool = "dt-cache-latents",
    .synopsis = "--pretrained_model_name_or_path DIR [OPTION]... -o CACHE [PLAN]",
    .summary =
        "Encode every picture and caption of a plan once, so that training needs neither the autoencoder nor the "
               "text encoders.",
    .examples = "  dt-bucket --enable_bucket pictures/ | dt-cache-latents --model FLUX.1-dev -o cache/\n"
                "  dt-cache-latents --model FLUX.1-dev --plan plan.ndjson --shard 0/4 -o cache/\n"
                "  dt-cache-latents --model FLUX.1-dev --plan plan.ndjson -o cache/ --explain pictures/cat.jpg\n",
    .table = table,
};

static int check(struct opts *o, const dt_strs *operands, dt_err *err)
{
    if (operands->n > 1)
        return dt_err_set(err, DT_EUSAGE, "one plan at a time, not also '%s'", operands->v[1]);
    if (operands->n && o->plan)
        return dt_err_set(err, DT_EUSAGE, "--plan and '%s': name the plan once", operands->v[0]);
    if (!o->plan)
        o->plan = operands->n ? operands->v[0] : "-";
    if (o->model && o->short_model)
        return dt_err_set(err, DT_EUSAGE, "--model and --pretrained_model_name_or_path: name the model once");
    if (o->short_model)
        o->model = o->short_model;
    if (!o->model)
        return dt_err_set(err, DT_EUSAGE,
                          "--pretrained_model_name_or_path is missing: the folder of the model that encodes");
    if (!o->output)
        return dt_err_set(err, DT_EUSAGE, "--output is missing: the cache folder, or -");
    if (o->explain && !strcmp(o->output, "-"))
        return dt_err_set(err, DT_EUSAGE, "--explain needs a cache folder as --output, not a stream");
    if (o->shard && !strcmp(o->output, "-"))
        return dt_err_set(err, DT_EUSAGE, "--shard needs a cache folder as --output: a stream is the whole cache");
    if (!strcmp(o->plan, "-") && isatty(STDIN_FILENO))
        return dt_err_set(err, DT_EUSAGE, "no plan: give --plan FILE, or pipe dt-bucket into this");
    return 0;
}

static void summary(const struct dt_encode_report *r)
{
    const struct dt_encode_count *i = &r->images, *t = &r->texts;
    dt_info("%lld pictures: %lld encoded, %lld there already, %lld the same as another; %lld files skipped",
            (long long)i->wanted, (long long)i->made, (long long)i->there, (long long)i->shared,
            (long long)r->skipped.n);
    dt_info("%lld captions: %lld encoded, %lld there already", (long long)t->wanted, (long long)t->made,
            (long long)t->there);
    if (!r->bytes)
        return;
    char states[64] = "";
    if (r->text_len)
        snprintf(states, sizeof(states), " and one of its caption padded to %lld tokens", (long long)r->text_len);
    dt_info("size: %lld bytes (%.1f MiB); a file for each picture%s would be %lld files, %lld bytes (%.1f MiB), %.2f times as much",
            (long long)r->bytes, (double)r->bytes / 1048576, states, (long long)r->files, (long long)r->naive_bytes,
            (double)r->naive_bytes / 1048576, (double)r->naive_bytes / (double)r->bytes);
}

static int run(const struct opts *o, struct dt_encode_params *p, struct dt_encode_report *r, dt_err *err)
{
    dt_flux_pipe *pipe = NULL;
    dt_device *dev = NULL;
    int rc = dt_flux_pipe_open(&pipe, o->model, o->max_sequence_length, err);
    if (rc == 0)
        pipe->text_padding = (enum dt_padding)o->text_padding;
    if (rc == 0 && o->vae_path) {
        pipe->weights[DT_FLUX_VAE] = dt_strdup(o->vae_path);
        if (!dt_exists(o->vae_path))
            rc = dt_err_set(err, DT_EDATA, "--vae_path: there is no '%s'", o->vae_path);
    }
    if (rc == 0)
        rc = dt_device_open(&dev, o->device, err);
    p->pipe = pipe;
    p->dev = dev;
    if (rc == 0)
        rc = o->explain ? dt_encode_explain(p, o->explain, stdout, err) : dt_encode_run(p, r, err);
    dt_flux_pipe_close(&pipe);
    dt_device_close(&dev);
    return rc;
}

static void fill_params(struct dt_encode_params *p, const struct opts *o)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    p->plan = o->plan;
    p->dir = strcmp(o->output, "-") ? o->output : NULL;
    p->out = stdout;
    p->compute = o->mixed_precision ? DT_BF16 : DT_F32;
    p->store = o->cache_dtype ? (o->cache_dtype == 1 ? DT_F32 : DT_BF16) : p->compute;
    p->vae_mini_batch = o->vae_mini_batch;
    p->tile_px = o->vae_tile;
    p->max_shard_bytes = o->max_shard_size;
    p->pictures_only = o->pictures_only;
    p->workers = o->workers ? (int)o->workers : cpus > 8 ? 8 : (int)cpus;
    p->max_skipped_fraction = o->max_skipped_fraction;
    p->memory_budget = o->memory_budget;
    p->memory_plan = o->memory_plan;
    p->low_vram = o->low_vram;
    p->table = dt_tool_out;
    p->progress = o->progress;
    p->quiet = o->quiet;
    p->stop = &dt_stop;
    p->say = dt_tool_say;
}

int main(int argc, char **argv)
{
    struct opts o = { .device = "cpu", .vae_mini_batch = 32, .max_shard_size = 256 << 20,
                      .max_skipped_fraction = 0.5 };
    struct dt_encode_report r = { 0 };
    struct dt_encode_params p = { 0 };
    dt_strs operands = { 0 };
    dt_err err = { 0 };

    dt_argv0 = "dt-cache-latents";
    dt_signals_install();
    dt_malloc_install();
    int rc = dt_cli_parse(&cli, &o, argc, argv, &operands, &err);
    dt_quiet = o.quiet;
    if (rc == 0)
        rc = check(&o, &operands, &err);
    if (rc == 0)
        rc = dt_shard_parse(&p.shard, &p.shards, o.shard, &err);
    if (rc == 0) {
        if (o.threads)
            omp_set_num_threads((int)o.threads);
        fill_params(&p, &o);
        rc = run(&o, &p, &r, &err);
    }
    if (!o.explain && !o.memory_plan && (rc == 0 || rc == DT_ESIGNAL))
        summary(&r);
    int status = rc < 0 ? dt_die_err(&err) : r.skipped.n ? 3 : 0;
    dt_encode_report_release(&r);
    dt_strs_release(&operands);
    return dt_finish(status);
}
