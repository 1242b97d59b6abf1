/* dt-train: trains LoRA adapters, transformers and autoencoders of FLUX models.  See dt-train(1). */
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/commands.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/tool.h"
#include "data/meta.h"
#include "text/tok_train.h"
#include "train/run.h"

/* --- lora, full, vae --- */

/* The folder that this program is in: its siblings are the other stages. */
static char *bin_dir(void)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (n <= 0)
        return dt_strdup("");
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    return dt_strdup(path);
}

/* `--plan` without a file asks for the memory plan. */
static void bare_plan(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--plan") && (i + 1 == argc || !strncmp(argv[i + 1], "--", 2)))
            argv[i] = "--memory_plan";
}

static int train(int k, int argc, char **argv)
{
    enum dt_method method = (enum dt_method)k;
    dt_err err = { 0 };
    dt_train_opts o;
    dt_train_opts_init(&o, method);
    bare_plan(argc, argv);
    int rc = dt_cli_parse(dt_train_cli(method), &o, argc, argv, NULL, &err);
    if (rc == 0) {
        dt_quiet = o.quiet;
        if (o.threads)
            omp_set_num_threads((int)o.threads);
        rc = dt_train_opts_check(&o, argc, argv, &err);
    }
    if (rc == 0) {
        char *bin = bin_dir();
        dt_signals_install();
        dt_malloc_install();
        dt_ui ui = { .say = dt_tool_say, .out = dt_tool_out, .stop = &dt_stop, .save_now = &dt_save, .bin_dir = bin,
                     .argc = argc + 1, .argv = argv - 1 };
        rc = dt_train_run(&o, &ui, &err);
        rc = rc == 1 ? 3 : rc;
        free(bin);
    } else if (rc == 1) {
        rc = 0;                     /* --help and the like */
    }
    dt_train_opts_release(&o);
    if (rc == DT_ESIGNAL) {
        dt_info("%s", err.msg);
        return 128 + (dt_stop ? dt_stop : SIGTERM);     /* or a child was asked, not we */
    }
    return rc < 0 ? dt_die_err(&err) : rc;
}

/* --- tokenizer --- */

struct tok_opts {
    const char *data, *out;
    int64_t clip, t5, clip_len, t5_len;
};

static const dt_opt tok_table[] = {
    { "train_data_meta", 0, "FILE", DT_OPT_STR, offsetof(struct tok_opts, data), 0, 0, NULL,
      "metadata or folder whose captions are learned from" },
    { "output_dir", 0, "DIR", DT_OPT_STR, offsetof(struct tok_opts, out), 0, 0, NULL,
      "gets tokenizer/ (CLIP) and tokenizer_2/ (T5)" },
    { "clip_vocab_size", 0, "N", DT_OPT_INT, offsetof(struct tok_opts, clip), 514, 1000000, NULL,
      "size of CLIP's vocabulary (1024)" },
    { "t5_vocab_size", 0, "N", DT_OPT_INT, offsetof(struct tok_opts, t5), 64, 1000000, NULL,
      "size of T5's vocabulary (1024)" },
    { "clip_length", 0, "N", DT_OPT_INT, offsetof(struct tok_opts, clip_len), 2, 4096, NULL,
      "model_max_length of CLIP's tokenizer (77)" },
    { "t5_length", 0, "N", DT_OPT_INT, offsetof(struct tok_opts, t5_len), 1, 4096, NULL,
      "model_max_length of T5's tokenizer (512)" },
    DT_OPT_END
};

static int learn(const struct tok_opts *o, dt_err *err)
{
    dt_meta meta = { 0 };
    dt_strs captions = { 0 };
    dt_tape_reader words = { 0 };
    dt_meta_item it;
    char *clip = dt_path_join(o->out, "tokenizer"), *t5 = dt_path_join(o->out, "tokenizer_2");
    int rc = dt_meta_read(&meta, o->data, NULL, err), skipped = 0;
    for (int64_t i = 0; rc >= 0 && i < meta.skipped.n; i++, skipped++)
        dt_warn("skipped %s", meta.skipped.v[i]);
    for (int64_t i = 0; rc >= 0 && i < meta.n; i++)
        if ((rc = dt_meta_get(&meta, i, &words, &it, err)) == 0)
            dt_strs_add(&captions, it.text);
    if (rc >= 0)
        rc = dt_tok_train_clip(&captions, (int)o->clip, (int)o->clip_len, clip, err);
    if (rc >= 0) {
        dt_info("%s: %d tokens", clip, rc);
        rc = dt_tok_train_t5(&captions, (int)o->t5, (int)o->t5_len, t5, err);
    }
    if (rc >= 0)
        dt_info("%s: %d tokens", t5, rc);
    dt_tape_reader_release(&words);
    dt_strs_release(&captions);
    dt_meta_release(&meta);
    free(clip);
    free(t5);
    return rc < 0 ? rc : skipped ? 3 : 0;
}

static const dt_cli tok_cli = { "dt-train tokenizer", "--train_data_meta FILE --output_dir DIR [OPTION]...",
                                "Learn the vocabularies of CLIP and T5 from captions.", NULL, tok_table };

static int tokenizer(int k, int argc, char **argv)
{
    (void)k;
    struct tok_opts o = { .clip = 1024, .t5 = 1024, .clip_len = 77, .t5_len = 512 };
    dt_err err = { 0 };
    int rc = dt_cli_parse(&tok_cli, &o, argc, argv, NULL, &err);
    if (rc == 0 && (!o.data || !o.out))
        rc = dt_err_set(&err, DT_EUSAGE, "--train_data_meta and --output_dir are needed");
    if (rc == 0)
        rc = learn(&o, &err);
    else if (rc > 0)                /* --help and the like */
        rc = 0;
    return rc < 0 ? dt_die_err(&err) : rc;
}

int main(int argc, char **argv)
{
    const dt_command commands[] = {             /* those that train in the order of enum dt_method */
        { "lora", "a low-rank adapter of the transformer", dt_train_cli(DT_METHOD_LORA), train },
        { "full", "all or some weights of the transformer and the text encoders", dt_train_cli(DT_METHOD_FULL), train },
        { "vae", "the autoencoder", dt_train_cli(DT_METHOD_VAE), train },
        { "tokenizer", "the vocabularies of CLIP and T5, from captions", &tok_cli, tokenizer },
        { 0 },
    };
    dt_argv0 = "dt-train";
    return dt_commands_main("Train FLUX models on pictures with captions.", commands, argc, argv);
}
