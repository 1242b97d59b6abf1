/* dt-bucket: decide sizes, crops, captions and the order of batches of a whole training run.  See dt-bucket(1). */
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/file.h"
#include "base/progress.h"
#include "base/tool.h"
#include "data/data_opts.h"
#include "data/meta.h"

struct opts {
    struct dt_data_settings data;
    int64_t world_size;
    const char *shard, *output, *progress;
    int quiet;
};

static const dt_opt table[] = {
    DT_DATA_OPTS(struct opts, data),
    { "world_size", 0, "N", DT_OPT_INT, offsetof(struct opts, world_size), 1, 1 << 20, .help =
      "processes that will share the batches; counts steps (1)" },
    DT_OPT_GROUP("Output"),
    { "shard", 0, "I/N", DT_OPT_STR, offsetof(struct opts, shard), .help =
      "write only batches whose number modulo N is I" },
    { "output", 'o', "FILE", DT_OPT_STR, offsetof(struct opts, output), .help =
      "write the plan to FILE, whole or not at all (standard output)", .often = true },
    { "progress", 0, "FILE", DT_OPT_STR, offsetof(struct opts, progress), .help =
      "write progress as NDJSON to FILE, or to this descriptor if it is a number" },
    { "quiet", 'q', NULL, DT_OPT_FLAG, offsetof(struct opts, quiet), .help = "no summary on standard error" },
    DT_OPT_END
};

static const dt_cli cli = {
    .tool = "dt-bucket",
    .synopsis = "[OPTION]... [DATA]",
    .summary = "Read a folder of pictures or a metadata file and write the plan of a training run: which pictures, "
               "at which size, in which batches and order.",
    .examples = "  dt-bucket --enable_bucket --image_sample_size=1024 --train_batch_size=4 pictures/ >plan.ndjson\n"
                "  dt-bucket --train_data_dir=pictures --train_data_meta=meta.json -o plan.ndjson\n"
                "  dt-bucket --enable_bucket pictures/ | dt-cache-latents --model FLUX.1-dev -o cache/\n",
    .table = table,
};

static void list_skipped(const dt_strs *skipped)
{
    dt_strs lines = { 0 };
    for (int64_t i = 0; skipped->n <= DT_PLAN_FEW && i < skipped->n; i++)
        dt_warn("skipped %s", skipped->v[i]);
    dt_plan_reasons(&lines, skipped);
    for (int64_t i = 0; i < lines.n; i++)
        dt_warn("%s", lines.v[i]);
    dt_strs_release(&lines);
}

static void summary(const struct dt_plan_report *r)
{
    for (int64_t i = 0; i < r->notes.n; i++)
        dt_info("%s", r->notes.v[i]);
    list_skipped(&r->skipped);
    if (r->left_out)
        dt_info("%lld pictures left out by skip_image_resolution", (long long)r->left_out);
    dt_info("%lld pictures of %lld entries, %lld skipped", (long long)r->items, (long long)r->entries,
            (long long)r->skipped.n);
    if (r->items && r->no_caption == r->items)
        dt_warn("no picture has a caption");
    else if (r->no_caption)
        dt_info("%lld without a caption", (long long)r->no_caption);
    if (r->size_differs)
        dt_info("%lld whose size in the metadata is not the picture's: the picture's was taken",
                (long long)r->size_differs);
    for (int i = 0; i < r->n_bucket; i++) {
        const struct dt_bucket_count *b = &r->bucket[i];
        dt_info("%5d x %-5d %9lld pictures %11lld samples %10lld batches", b->w, b->h, (long long)b->items,
                (long long)b->samples, (long long)b->batches);
    }
    dt_info("%lld epochs, %lld samples, %lld batches (%lld short), %lld steps", (long long)r->epochs,
            (long long)r->samples, (long long)r->batches, (long long)r->short_batches, (long long)r->steps);
    if (r->unreached)
        dt_info("%lld pictures are in no batch: --max_train_steps ends before them", (long long)r->unreached);
}

/* DATA that ends in .toml is a dataset_config. */
static bool is_config(const char *path)
{
    return !strcasecmp(dt_path_ext(path), ".toml");
}

/* The tars that a shell made of shard-{00..12}.tar: one name again.  NULL: they are not all tars. */
static char *joined(const dt_strs *v)
{
    char *list = NULL;
    for (int64_t i = 0; i < v->n; i++) {
        char *old = list;
        if (!dt_is_tar(v->v[i]) || strpbrk(v->v[i], "{},")) {
            free(list);
            return NULL;
        }
        list = dt_sprintf("%s%s%.*s", old ? old : "{", old ? "," : "", (int)strlen(v->v[i]) - 4, v->v[i]);
        free(old);
    }
    char *name = dt_sprintf("%s}.tar", list);
    free(list);
    return name;
}

static int take_operand(struct opts *o, dt_strs *operands, dt_err *err)
{
    char *tars = operands->n > 1 ? joined(operands) : NULL;
    if (tars) {
        dt_strs_release(operands);
        dt_strs_add(operands, tars);
        free(tars);
    }
    if (operands->n > 1)
        return dt_err_set(err, DT_EUSAGE, "one DATA at a time, not also '%s'", operands->v[1]);
    if (operands->n && (o->data.train_data_meta || o->data.dataset_config))
        return dt_err_set(err, DT_EUSAGE, "--%s and '%s': name the data once",
                          o->data.dataset_config ? "dataset_config" : "train_data_meta", operands->v[0]);
    if (operands->n && is_config(operands->v[0]))
        o->data.dataset_config = operands->v[0];
    else if (operands->n)
        o->data.train_data_meta = operands->v[0];
    o->data.world_size = o->world_size;
    o->data.shard = o->shard;
    o->data.stop = &dt_stop;
    return dt_data_settings_check(&o->data, err);
}

int main(int argc, char **argv)
{
    struct opts o = { .data = DT_DATA_DEFAULTS, .world_size = 1, .output = "-" };
    struct dt_plan_report report = { 0 };
    dt_strs operands = { 0 };
    dt_out *out = NULL;
    dt_err err = { 0 };

    dt_argv0 = "dt-bucket";
    dt_signals_install();
    int rc = dt_cli_parse(&cli, &o, argc, argv, &operands, &err);
    dt_quiet = o.quiet;
    if (rc == 0)
        rc = take_operand(&o, &operands, &err);
    if (rc == 0 && o.data.dataset_config)
        rc = dt_data_config_alone(&cli, argc, argv, &err);
    if (rc == 0)
        rc = dt_out_open(&out, o.output, &err);
    if (rc == 0)
        rc = dt_progress_open(&o.data.progress, "read", "pictures", -1, o.progress, o.quiet, &err);
    if (rc == 0)
        rc = dt_plan_make(dt_out_file(out), &o.data, &report, &err);
    dt_progress_close(&o.data.progress);
    if (rc == 0) {
        rc = dt_out_commit(&out, &err);
        summary(&report);
    } else {
        list_skipped(&report.skipped);
    }
    int status = rc < 0 ? dt_die_err(&err) : report.skipped.n ? 3 : 0;
    dt_out_abort(&out);
    dt_plan_report_release(&report);
    dt_strs_release(&operands);
    dt_strs_release(&o.data.fix_sample_size);
    return dt_finish(status);
}
