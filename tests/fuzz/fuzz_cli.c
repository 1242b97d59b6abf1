/* Command lines of every tool: the first character chooses the tool, then there is one word a line.  The mains of the tools are
 * linked in under other names; --print_config, put before the words, makes them stop when the line is read.  Settings of dt-train
 * are checked against one another as well. */
#include <string.h>
#include "base/mem.h"
#include "tests/fuzz/fuzz.h"
#include "train/train_opts.h"

int dt_bucket_main(int argc, char **argv);
int dt_cache_latents_main(int argc, char **argv);
int dt_merge_shards_main(int argc, char **argv);
int dt_sample_main(int argc, char **argv);
int dt_train_main(int argc, char **argv);

enum { MAX_WORDS = 200 };

static void check_training(enum dt_method method, int argc, char **argv)
{
    dt_err err = { 0 };
    dt_train_opts o;
    char hex[33] = "";
    dt_train_opts_init(&o, method);
    if (dt_cli_parse(dt_train_cli(method), &o, argc, argv, NULL, &err) == 0 &&
        dt_train_opts_check(&o, argc, argv, &err) == 0) {
        dt_train_opts_hash(&o, o.gradient_checkpointing, hex);
        fuzz_check(strlen(hex) == 32);
    }
    dt_train_opts_release(&o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char tool[] = "tool", print[] = "--print_config";
    static char *const command[] = { "lora", "full", "vae", "tokenizer" };
    char *text = fuzz_text(data, size), *rest = text + 1, *word, *argv[MAX_WORDS + 4] = { tool, print };
    int argc = 2, which = size ? *text : 0, train = which >= 't' && which <= 'w';
    if (train) {
        argv[1] = command[which - 't'];
        argv[2] = print;
        argc = 3;
    }
    while (size && argc < MAX_WORDS && (word = strsep(&rest, "\n")))
        argv[argc++] = word;
    if (train && which < 'w')                   /* --print_config stands in the tool's place */
        check_training((enum dt_method)(which - 't'), argc - 2, argv + 2);
    if (train)
        dt_train_main(argc, argv);
    else if (which == 'b')
        dt_bucket_main(argc, argv);
    else if (which == 'c')
        dt_cache_latents_main(argc, argv);
    else if (which == 'm')
        dt_merge_shards_main(argc, argv);
    else if (which == 's')
        dt_sample_main(argc, argv);
    free(text);
    return 0;
}
