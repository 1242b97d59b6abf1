/* commands.c - see commands.h. */
#include "base/commands.h"
#include <string.h>
#include "base/tool.h"

enum { MAX_COMMANDS = 16 };

static int count(const dt_command *c)
{
    int n = 0;
    while (n < MAX_COMMANDS && c[n].name)
        n++;
    return n;
}

/* The list under "Commands:" is read by tests/man.t and `make man`, too. */
static void print_help(FILE *f, const char *summary, const dt_command *c)
{
    size_t width = 0;
    for (int i = 0; i < count(c); i++)
        width = strlen(c[i].name) > width ? strlen(c[i].name) : width;
    fprintf(f, "Usage: %s COMMAND [OPTION]...\n%s\n\nCommands:\n", dt_argv0, summary);
    for (int i = 0; i < count(c); i++)
        fprintf(f, "  %-*s  %s\n", (int)width, c[i].name, c[i].what);
    fprintf(f, "\n%s COMMAND --help shows the options of a command; `man %s` explains.\n", dt_argv0, dt_argv0);
}

/* All commands in one script, as a shell wants it of one program. */
static void print_completion(const dt_command *c, const char *shell)
{
    const dt_cli *all[MAX_COMMANDS + 1] = { NULL };
    for (int i = 0; i < count(c); i++)
        all[i] = c[i].cli;
    for (int i = 0; shell && dt_cli_shells[i]; i++)
        if (!strcmp(shell, dt_cli_shells[i])) {
            dt_cli_completion(all, shell, stdout);
            return;
        }
    dt_die(2, "--completion takes bash, zsh or fish");
}

static void no_command(const dt_command *c, const char *word)
{
    const char *name[MAX_COMMANDS];
    for (int i = 0; i < count(c); i++)
        name[i] = c[i].name;
    int near = dt_nearest(word, name, count(c));
    if (near < 0)
        dt_die(2, "no command '%s': %s --help lists them", word, dt_argv0);
    dt_die(2, "no command '%s' (did you mean '%s'?)", word, name[near]);
}

int dt_commands_main(const char *summary, const dt_command *c, int argc, char **argv)
{
    const char *word = argc < 2 ? "" : argv[1], *value = strchr(word, '=');
    if (argc < 2 || !strcmp(word, "--help") || !strcmp(word, "-h")) {
        print_help(argc < 2 ? stderr : stdout, summary, c);
        return dt_finish(argc < 2 ? 2 : 0);
    }
    if (!strcmp(word, "--version")) {
        printf("%s " DT_VERSION "\n", dt_argv0);
        return dt_finish(0);
    }
    if (!strcmp(word, "--completion") || !strncmp(word, "--completion=", 13)) {
        print_completion(c, value ? value + 1 : argv[2]);
        return dt_finish(0);
    }
    for (int k = 0; k < count(c); k++)
        if (!strcmp(word, c[k].name))
            return dt_finish(c[k].run(k, argc - 1, argv + 1));
    no_command(c, word);
    return 2;
}
