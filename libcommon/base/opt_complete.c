/* opt_complete.c - completion scripts for bash, zsh and fish: installed where the shells look, or
 * read by eval or source:
 *     eval "$(dt-bucket --completion bash)"
 * "dt-train lora" is completed by a function of its own, which the one of dt-train finds by its name; so the
 * scripts of several subcommands can be read one after another. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "base/opt_impl.h"

/* What the printers know about the tool's name. */
struct names {
    FILE       *out;
    const char *sub;        /* "lora", or NULL */
    char       *cmd;        /* "dt-train" */
    char       *entry;      /* "_dt_train": shell function */
    char       *fn;         /* "_dt_train__lora", or as entry */
};

static char *identifier(const char *prefix, const char *s)
{
    char *id = dt_sprintf("%s%s", prefix, s);
    for (char *p = id; *p; p++)
        *p = isalnum((unsigned char)*p) ? *p : '_';
    return id;
}

/* Puts text between single quotes; with `zsh`, what _arguments reads specially is escaped. */
static void quoted(FILE *out, const char *s, bool zsh)
{
    for (; *s; s++) {
        if (*s == '\'')
            fputs("'\\''", out);
        else if (*s == '\n')
            fputc(' ', out);
        else if (zsh && strchr("[]:\\", *s))
            fprintf(out, "\\%c", *s);
        else
            fputc(*s, out);
    }
}

/* Calls fn for the options that are shown. */
static void each_option(const dt_cli *cli, void (*fn)(const struct names *n, const dt_opt *o), const struct names *n)
{
    const dt_opt *tables[] = { cli->table, dt_cli_common };
    for (int i = 0; i < 2; i++)
        for (const dt_opt *o = tables[i]; !dt_opt_is_end(o); o++)
            if (o->name && o->type != DT_OPT_REFUSED)
                fn(n, o);
}

static void choices(FILE *out, const dt_opt *o)
{
    for (int i = 0; o->choices[i]; i++) {
        fputs(i ? " " : "", out);
        quoted(out, o->choices[i], false);
    }
}

/* What follows an option, by the word that stands for it in --help. */
enum after { AFTER_FILE, AFTER_DIR, AFTER_CHOICE, AFTER_TEXT };

static enum after after(const dt_opt *o)
{
    static const char *const file[] = { "FILE", "PATH" };
    if (o->type == DT_OPT_ENUM)
        return AFTER_CHOICE;
    if (o->arg && !strcmp(o->arg, "DIR"))
        return AFTER_DIR;
    for (int i = 0; i < 2; i++)
        if (o->arg && !strcmp(o->arg, file[i]))
            return AFTER_FILE;
    return AFTER_TEXT;
}

/* --- bash --- */
static void bash_case(const struct names *n, const dt_opt *o)
{
    if (o->type == DT_OPT_FLAG)
        return;
    switch (after(o)) {
    case AFTER_CHOICE:
        fprintf(n->out, "    --%s) COMPREPLY=($(compgen -W '", o->name);
        choices(n->out, o);
        fputs("' -- \"$cur\")); return;;\n", n->out);
        break;
    case AFTER_DIR:
        fprintf(n->out,
                "    --%s) local IFS=$'\\n'; COMPREPLY=($(compgen -d -- \"$cur\")); compopt -o filenames; return;;\n",
                o->name);
        break;
    case AFTER_TEXT:
        fprintf(n->out, "    --%s) compopt +o default; return;;\n", o->name);
        break;
    case AFTER_FILE:
        break;                          /* the default: files */
    }
}

static void bash_word(const struct names *n, const dt_opt *o)
{
    fprintf(n->out, " --%s%s", o->name, o->type == DT_OPT_FLAG || o->type == DT_OPT_LIST ? "" : "=");
}

static void bash(const dt_cli *cli, const struct names *n)
{
    fprintf(n->out,
            "%s() {\n"
            "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
            "    if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
            "    case $prev in\n", n->fn);
    each_option(cli, bash_case, n);
    fputs("    esac\n"
          "    [[ $cur == -* ]] || return\n"
          "    COMPREPLY=($(compgen -W '", n->out);
    each_option(cli, bash_word, n);
    fputs("' -- \"$cur\"))\n"
          "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n"
          "}\n", n->out);
}

static void bash_end(const struct names *n)
{
    if (n->sub)
        fprintf(n->out,
                "%1$s() {\n"
                "    local f=%1$s__${COMP_WORDS[1]//-/_}\n"
                "    if (( COMP_CWORD > 1 )); then\n"
                "        declare -F \"$f\" >/dev/null && \"$f\"\n"
                "    else\n"
                "        local subs=$(compgen -A function %1$s__ | sed 's/.*__//')\n"
                "        COMPREPLY=($(compgen -W \"$subs\" -- \"${COMP_WORDS[1]}\"))\n"
                "    fi\n"
                "}\n", n->entry);
    fprintf(n->out, "complete -o default -F %s %s\n", n->entry, n->cmd);
}

/* --- zsh --- */
static void zsh_spec(const struct names *n, const dt_opt *o)
{
    fprintf(n->out, " \\\n    '--%s%s[", o->name, o->type == DT_OPT_FLAG ? "" : o->type == DT_OPT_LIST ? "" : "=");
    quoted(n->out, o->help, true);
    fputc(']', n->out);
    if (o->type == DT_OPT_ENUM) {
        fprintf(n->out, ":%s:(", o->name);
        choices(n->out, o);
        fputc(')', n->out);
    } else if (o->type != DT_OPT_FLAG) {
        fprintf(n->out, ":%s:%s", o->arg ? o->arg : "VALUE",
                after(o) == AFTER_DIR ? "_files -/" : after(o) == AFTER_FILE ? "_files" : " ");
    }
    fputc('\'', n->out);
}

static void zsh(const dt_cli *cli, const struct names *n)
{
    fprintf(n->out, "%s() {\n  _arguments", n->fn);
    each_option(cli, zsh_spec, n);
    fputs(" \\\n    '*:file:_files'\n}\n", n->out);
}

/* As a file in $fpath it is run when first needed, and has to complete that first time itself. */
static void zsh_end(const struct names *n)
{
    if (n->sub)
        fprintf(n->out,
                "%1$s() {\n"
                "  local f=%1$s__${words[2]//-/_}\n"
                "  if (( CURRENT > 2 && $+functions[$f] )); then\n"
                "    shift words; (( CURRENT-- )); $f\n"
                "  else\n"
                "    compadd -- ${${(k)functions[(I)%1$s__*]}#%1$s__}\n"
                "  fi\n"
                "}\n", n->entry);
    fprintf(n->out, "if [[ $funcstack[1] = _%s ]]; then %s \"$@\"; else compdef %s %s; fi\n", n->cmd, n->entry,
            n->entry, n->cmd);
}

/* --- fish --- */
static void fish_line(const struct names *n, const dt_opt *o)
{
    fprintf(n->out, "complete -c %s", n->cmd);
    if (n->sub)
        fprintf(n->out, " -n '__fish_seen_subcommand_from %s'", n->sub);
    fprintf(n->out, " -l %s", o->name);
    if (o->letter)
        fprintf(n->out, " -s %c", o->letter);
    if (o->type == DT_OPT_ENUM) {
        fputs(" -x -a '", n->out);
        choices(n->out, o);
        fputc('\'', n->out);
    } else if (o->type != DT_OPT_FLAG) {
        fputs(after(o) == AFTER_FILE ? " -r -F" : after(o) == AFTER_DIR ? " -x -a '(__fish_complete_directories)'"
                                                                        : " -x", n->out);
    }
    fputs(" -d \"", n->out);            /* fish: \" \$ and \\ inside double quotes */
    for (const char *s = o->help; *s; s++) {
        if (strchr("\"$\\", *s))
            fputc('\\', n->out);
        fputc(*s == '\n' ? ' ' : *s, n->out);
    }
    fputs("\"\n", n->out);
}

static void fish(const dt_cli *cli, const struct names *n)
{
    if (n->sub)
        fprintf(n->out, "complete -c %s -n __fish_use_subcommand -a %s\n", n->cmd, n->sub);
    each_option(cli, fish_line, n);
}

static void names_init(struct names *n, const dt_cli *cli, FILE *out)
{
    const char *space = strchr(cli->tool, ' ');
    *n = (struct names){ .out = out, .sub = space ? space + 1 : NULL };
    n->cmd = dt_sprintf("%.*s", (int)strcspn(cli->tool, " "), cli->tool);
    n->entry = identifier("_", n->cmd);
    char *tail = space ? identifier("__", n->sub) : dt_strdup("");
    n->fn = dt_sprintf("%s%s", n->entry, tail);
    free(tail);
}

static void names_release(struct names *n)
{
    free(n->cmd);
    free(n->entry);
    free(n->fn);
}

void dt_cli_completion(const dt_cli *const *cli, const char *shell, FILE *out)
{
    static const struct {
        const char *shell;
        void (*one)(const dt_cli *cli, const struct names *n);
        void (*end)(const struct names *n);
    } how[] = {
        { "bash", bash, bash_end }, { "zsh", zsh, zsh_end }, { "fish", fish, NULL },
    };
    struct names n;
    int k = 0;
    while (k < 2 && strcmp(shell, how[k].shell))
        k++;
    if (k == 1)
        fprintf(out, "#compdef %.*s\n", (int)strcspn(cli[0]->tool, " "), cli[0]->tool);
    for (int i = 0; cli[i]; i++) {
        names_init(&n, cli[i], out);
        how[k].one(cli[i], &n);
        if (!cli[i + 1] && how[k].end)
            how[k].end(&n);
        names_release(&n);
    }
}
