/* dt-merge-shards: finished files out of what training leaves: LoRAs in another layout, LoRAs in their base.  See
 * dt-merge-shards(1). */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include "base/commands.h"
#include "base/file.h"
#include "base/tool.h"
#include "train/lora_merge.h"

struct opts {
    const char *output;
    dt_strs lora;
    int64_t threads;
    int     format, dtype, quiet;
};
#define O(m) offsetof(struct opts, m)

static const char *const dtypes[] = { "auto", "fp32", "bf16", "fp16", NULL };
static const int dtype_of[] = { -1, DT_F32, DT_BF16, DT_F16 };

#define QUIET { "quiet", 'q', NULL, DT_OPT_FLAG, O(quiet), .help = "say nothing on standard error except warnings and errors" }

static const dt_opt lora_table[] = {
    { "output", 'o', "FILE", DT_OPT_STR, O(output), .help = "file to write" },
    { "lora_format", 0, "NAME", DT_OPT_ENUM, O(format), .choices = dt_lora_layouts, .help =
      "layout: comfy, peft or kohya, see dt-lora(5) (comfy)" },
    { "save_dtype", 0, "NAME", DT_OPT_ENUM, O(dtype), .choices = dtypes, .help =
      "fp32, bf16, fp16, or auto: that of the input, fp32 if it has several (auto)" },
    QUIET,
    DT_OPT_END
};

static const dt_opt merge_table[] = {
    { "output", 'o', "PATH", DT_OPT_STR, O(output), .help =
      "NAME.safetensors for the transformer in one file; otherwise a folder with the same files as BASE; one that is there is left alone" },
    { "lora", 0, "FILE[:STRENGTH]", DT_OPT_LIST, O(lora), .repeat = true, .help =
      "LoRA files of any layout, each with its strength (1); several add up" },
    { "threads", 0, "N", DT_OPT_INT, O(threads), 0, 1024, .help = "threads that compute (0: all cores)" },
    QUIET,
    DT_OPT_END
};

static const dt_cli clis[] = {
    { .tool = "dt-merge-shards lora", .synopsis = "-o OUT [OPTION]... IN", .table = lora_table,
      .summary = "Write the LoRA IN, a file or a checkpoint of dt-train lora, in another layout.",
      .examples = "  dt-merge-shards lora -o for-webui.safetensors --lora_format kohya out/lora.safetensors\n"
                  "  dt-merge-shards lora -o step-500.safetensors out/checkpoint-500\n" },
    { .tool = "dt-merge-shards merge", .synopsis = "-o OUT [OPTION]... BASE --lora FILE[:STRENGTH]...",
      .table = merge_table,
      .summary = "Add LoRAs to the weights of BASE, a model folder, the folder of a transformer or a single file.",
      .examples = "  dt-merge-shards merge -o merged.safetensors flux1-dev.safetensors --lora out/lora.safetensors\n"
                  "  dt-merge-shards merge -o FLUX.1-cats FLUX.1-dev --lora cats.safetensors:0.8 ink.safetensors:0.5\n" },
};

/* --- lora --- */

/* A checkpoint of dt-train lora has its adapter in a file of this name. */
static char *lora_file(const char *in) { return dt_is_dir(in) ? dt_path_join(in, "lora.safetensors") : dt_strdup(in); }

static int convert(const struct opts *o, const char *in, dt_err *err)
{
    char *path = lora_file(in);
    struct dt_convert_params p = { .in = path, .out = o->output, .layout = (enum dt_lora_layout)o->format,
                                   .dtype = dtype_of[o->dtype] };
    struct dt_convert_report r = { 0 };
    int rc = dt_lora_convert(&p, &r, err);
    if (rc == 0) {
        dt_info("%s: %lld tensors, %lld layers, rank %lld, alpha %g -> %s: %s, %s", path, (long long)r.tensors,
                (long long)r.layers,
                (long long)r.rank, r.alpha, o->output, dt_lora_layouts[o->format], dt_dtype_name(r.dtype));
        if (r.rounded)
            dt_warn("%lld fused layers have parts of different alpha: the B of some are rounded to give them one",
                    (long long)r.rounded);
        if (r.narrowed)
            dt_warn("values are rounded to %s", dt_dtype_name(r.dtype));
    }
    free(path);
    return rc;
}

/* --- merge --- */

static int merge(const struct opts *o, const char *base, dt_err *err)
{
    int64_t n = o->lora.n;
    char **path = dt_alloc((size_t)(n + 1) * sizeof(*path));
    double *strength = dt_alloc((size_t)(n + 1) * sizeof(*strength));
    for (int64_t i = 0; i < n; i++)
        path[i] = dt_lora_split(o->lora.v[i], &strength[i]);
    struct dt_merge_params p = { .base = base, .out = o->output, .lora = path, .strength = strength, .n = n,
                                 .stop = &dt_stop };
    struct dt_merge_report r = { 0 };
    int rc = dt_lora_merge(&p, &r, err);
    for (int64_t i = 0; rc == 0 && i < r.loras.n; i++)
        dt_info("%s", r.loras.v[i]);
    if (rc == 0 && r.done)
        dt_info("%s is this merge already: nothing to do", o->output);
    else if (rc == 0)
        dt_info("%s: %lld of %lld tensors changed", o->output, (long long)r.changed, (long long)r.tensors);
    for (int64_t i = 0; rc == 0 && i < r.left_out.n; i++)
        dt_warn("%s is left out: it is not what was merged", r.left_out.v[i]);
    for (int64_t i = 0; i < n; i++)
        free(path[i]);
    dt_merge_report_release(&r);
    free(path);
    free(strength);
    return rc;
}

/* --- the command --- */

static int check(const struct opts *o, int k, const dt_strs *operands, dt_err *err)
{
    static const char *const what[] = { "the LoRA", "the base" };
    if (!o->output)
        return dt_err_set(err, DT_EUSAGE, "--output is missing");
    if (!operands->n)
        return dt_err_set(err, DT_EUSAGE, "%s is missing%s", what[k],
                          k && o->lora.n > 1 ? ": it stands before --lora, which takes all words up to the next option"
                                             : "");
    if (operands->n > 1)
        return dt_err_set(err, DT_EUSAGE, "one at a time, not also '%s'", operands->v[1]);
    if (k && !o->lora.n)
        return dt_err_set(err, DT_EUSAGE, "--lora is missing: without one nothing changes");
    return 0;
}

static int command(int k, int argc, char **argv)
{
    struct opts o = { 0 };
    dt_strs operands = { 0 };
    dt_err err = { 0 };
    dt_signals_install();
    dt_malloc_install();
    int rc = dt_cli_parse(&clis[k], &o, argc, argv, &operands, &err);
    if (rc == 0) {
        dt_quiet = o.quiet;
        if (o.threads)
            omp_set_num_threads((int)o.threads);
        rc = check(&o, k, &operands, &err);
    }
    if (rc == 0)
        rc = k ? merge(&o, operands.v[0], &err) : convert(&o, operands.v[0], &err);
    dt_strs_release(&operands);
    dt_strs_release(&o.lora);
    return rc < 0 ? dt_die_err(&err) : 0;
}

int main(int argc, char **argv)
{
    static const dt_command commands[] = {
        { "lora", "a LoRA file in another layout", &clis[0], command },
        { "merge", "LoRAs into the weights of their base", &clis[1], command },
        { 0 },
    };
    dt_argv0 = "dt-merge-shards";
    return dt_commands_main("Make finished files out of what training leaves.", commands, argc, argv);
}
