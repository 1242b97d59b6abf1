/* Command lines of every tool: the first character chooses the tool, then there is one word a line.  The
 * mains of the tools are linked in under other names; --print_config, put before the words, makes them stop when the
 * line is read.  Settings of dt-train are checked against one another as well. */
#include <stdlib.h>
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
    dt_train_opts_init(&o, method);
    if (dt_cli_parse(dt_train_cli(method), &o, argc, argv, NULL, &err) == 0 &&
        dt_train_opts_check(&o, argc, argv, &err) == 0) {
        cJSON *settings = dt_train_opts_settings(&o);
        fuzz_check(cJSON_GetArraySize(settings) > 1);
        cJSON_Delete(settings);
    }
    dt_train_opts_release(&o);
}

/* dt-train and dt-merge-shards have commands, which stand before the options. */
static const struct program {
    char letter;
    int (*run)(int argc, char **argv);
    const char *command;
} program[] = {
    { 'b', dt_bucket_main, NULL }, { 'c', dt_cache_latents_main, NULL }, { 's', dt_sample_main, NULL },
    { 'm', dt_merge_shards_main, "lora" }, { 'n', dt_merge_shards_main, "merge" }, { 't', dt_train_main, "lora" },
    { 'u', dt_train_main, "full" }, { 'v', dt_train_main, "vae" }, { 'w', dt_train_main, "tokenizer" },
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char tool[] = "tool", print[] = "--print_config";
    char *text = fuzz_text(data, size), *rest = text + 1, *word, *argv[MAX_WORDS + 4], command[16];
    int argc = 0;
    const struct program *p = program, *end = program + sizeof(program) / sizeof(program[0]);
    while (p < end && size && p->letter != *text)
        p++;
    if (p < end && size) {
        argv[argc++] = tool;
        if (p->command) {
            snprintf(command, sizeof(command), "%s", p->command);
            argv[argc++] = command;
        }
        argv[argc++] = print;
        int words = argc;
        while (argc < MAX_WORDS && (word = strsep(&rest, "\n")))
            argv[argc++] = word;
        argv[argc] = NULL;
        if (p->letter >= 't' && p->letter <= 'v')   /* --print_config stands in the tool's place */
            check_training((enum dt_method)(p->letter - 't'), argc - words + 1, argv + words - 1);
        p->run(argc, argv);
    }
    free(text);
    return 0;
}
