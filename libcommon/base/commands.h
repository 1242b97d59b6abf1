/* commands.h - for the mains in tools/ only: a program of several commands, by one table. */
#ifndef DT_BASE_COMMANDS_H
#define DT_BASE_COMMANDS_H
#include "base/opt.h"

typedef struct dt_command {
    const char   *name, *what;      /* "lora", "a low-rank adapter of the transformer" */
    const dt_cli *cli;
    int         (*run)(int k, int argc, char **argv);   /* k: its place in the table; argv[0] is its name.  Returns the
                                                           exit status */
} dt_command;

/* Runs the command that argv[1] names; --help, --version and --completion are of the whole program, which is dt_argv0.
 * The table ends with a NULL name.  Returns the exit status of main. */
int dt_commands_main(const char *summary, const dt_command *c, int argc, char **argv);

#endif
