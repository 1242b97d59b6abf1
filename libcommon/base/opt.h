/* opt.h - the option table: the only place an option exists.  It drives parsing, ranges, --help, the
 * OPTIONS section of the man page (tests/man.t compares them), shell completion and --print_config.
 *
 * Flags are GNU-style long options with the names of the reference workflows; '-' and '_' are the same;
 * "--name=value" and "--name value" both work; a unique one-letter form may exist.  Unknown options,
 * values out of range and options given twice are usage errors (exit 2), with the nearest name
 * suggested.  Nothing is accepted and ignored: an option that cannot have an effect is DT_OPT_REFUSED and says why. */
#ifndef DT_BASE_OPT_H
#define DT_BASE_OPT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cjson/cJSON.h>
#include "base/err.h"
#include "base/mem.h"

enum dt_opt_type {
    DT_OPT_FLAG,        /* int: 0/1.  --name, --no_name, --name=true|false */
    DT_OPT_INT,         /* int64_t in [min, max] */
    DT_OPT_FLOAT,       /* double in [min, max], finite */
    DT_OPT_STR,         /* const char *, borrowed from argv */
    DT_OPT_ENUM,        /* int: index into choices */
    DT_OPT_LIST,        /* dt_strs, replaced when given: one or more following words, as argparse nargs='+' (up
                         * to the next option), or =WORD.  With `comma`, "a,b" is two entries */
    DT_OPT_BYTES,       /* int64_t: 24G, 1.5GiB, 512M, 1048576; powers of 1024 */
    DT_OPT_REFUSED,     /* takes an optional value; help is the sentence printed before exit 2 */
};

typedef struct dt_opt {
    const char *name;               /* long name, with underscores; NULL name + help = group heading */
    char        letter;             /* one-letter form or 0 */
    const char *arg;                /* "N", "FILE", "F"…; NULL for flags */
    enum dt_opt_type type;
    size_t      off;                /* offset in the caller's struct */
    double      min, max;           /* INT, FLOAT, BYTES: allowed range; any value when min == max */
    const char *const *choices;     /* ENUM: NULL-terminated */
    const char *help;               /* one or two lines, lower case, default in parentheses */
    bool        comma;              /* LIST */
    bool        repeat;             /* LIST: may be given again, and adds up */
    bool        often;              /* one of the few that a short --help shows */
} dt_opt;

#define DT_OPT_GROUP(text) { .help = text }
#define DT_OPT_END { .name = NULL, .help = NULL }

typedef struct dt_cli {
    const char *tool;               /* "dt-train lora" */
    const char *synopsis;           /* "--pretrained_model_name_or_path DIR [OPTION]... [FILE]..." */
    const char *summary;            /* what it does, one sentence */
    const char *examples;           /* lines shown at the end of --help; may be NULL */
    const dt_opt *table;
} dt_cli;

/* Every tool also has -h --help [TOPIC], --version, --completion SHELL (bash|zsh|fish) and
 * --print_config[=json].  --help shows the options that are used often, where the table marks some; "all" shows all,
 * any other word those about it.  The hidden --help_man prints the OPTIONS section in mdoc.  A page in man/ holds that
 * text between the lines
 *     .\" options: dt-train lora
 *     .\" end options
 * and tests/man.t fails where the two differ; `make man` writes it anew.  So the table stays the only place.
 * A tool of several commands has no table of its own; its --help lists them, one a line, as "  NAME  what it
 * does" after the line "Commands:", and each stands in the page between such lines. */

/* Parses argv[1..argc) into *opts (already holding the defaults).  Operands (words that are no option, "-",
 * all after "--") are appended to *operands, or are an error if NULL.  The options that only print do so to
 * stdout; then it returns 1: exit 0.  Returns 0 to go on, DT_EUSAGE with err set.  STR values are borrowed from
 * argv; LIST fields are released by the caller. */
int  dt_cli_parse(const dt_cli *cli, void *opts, int argc, char **argv, dt_strs *operands, dt_err *err);
/* Was this option on the command line?  (Same argc and argv as dt_cli_parse, which has accepted them.) */
int  dt_cli_given(const dt_cli *cli, int argc, char **argv, const char *name);
/* topic: NULL, "all", or a word that names or texts hold; DT_EUSAGE if none does. */
int  dt_cli_help(const dt_cli *cli, const char *topic, FILE *out, dt_err *err);
/* A completion script for a tool, or for one of several commands; cli ends with NULL. */
void dt_cli_completion(const dt_cli *const *cli, const char *shell, FILE *out);
extern const char *const dt_cli_shells[];
/* What an option comes to; caller deletes.  NULL: a default that the option itself would not take (0 below its
 * range, an ENUM's -1), which stands for a choice that the model or other options make. */
cJSON *dt_cli_value(const dt_opt *o, const void *opts);
/* The options in force and where each is from, after dt_cli_parse has accepted the same argv.  As a
 * command line that says the same, defaults beside it as comments; or as one JSON object, name -> {"value": ...,
 * "from": "flag"|"default"|"model"}; "model" has no value.  Caller frees. */
char *dt_cli_config(const dt_cli *cli, const void *opts, int argc, char **argv, bool json);

#endif
