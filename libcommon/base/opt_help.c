/* opt_help.c - what is printed from an option table: --help and the OPTIONS section of a man page
 * (mdoc).  Refused options are in neither. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/opt_impl.h"

#define WIDTH 80
#define HELP_COL 30

static bool any_row(const dt_opt *o, const char *topic)
{
    (void)topic;
    return o->type != DT_OPT_REFUSED;
}

/* Calls fn for every row that is shown, headings among them, the common options last, and returns the
 * number of options.
 * A heading none of whose options is shown is left out. */
static int each_row(const dt_cli *cli, bool (*shown)(const dt_opt *o, const char *topic), const char *topic,
                    void (*fn)(const dt_opt *o, void *ctx), void *ctx)
{
    const dt_opt *tables[] = { cli->table, dt_cli_common }, *heading = NULL;
    int n = 0;
    for (int i = 0; i < 2; i++) {
        for (const dt_opt *o = tables[i]; !dt_opt_is_end(o); o++) {
            if (!o->name) {
                heading = o;
            } else if (shown(o, topic)) {
                if (heading)
                    fn(heading, ctx);
                heading = NULL;
                fn(o, ctx);
                n++;
            }
        }
    }
    return n;
}

/* "F", "a|b|c", "WORD...": the argument as people read it; empty for flags. */
static void argument(const dt_opt *o, char *buf, size_t size)
{
    size_t n = 0;
    buf[0] = '\0';
    if (o->type == DT_OPT_FLAG)
        return;
    if (o->arg || o->type != DT_OPT_ENUM)
        n = (size_t)snprintf(buf, size, "%s", o->arg ? o->arg : "VALUE");
    for (int i = 0; !o->arg && o->type == DT_OPT_ENUM && o->choices[i] && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%s", i ? "|" : "", o->choices[i]);
    if (o->type == DT_OPT_LIST && n < size)
        snprintf(buf + n, size - n, o->comma ? ",..." : "...");
}

/* --- --help --- */

/* Prints text in lines of at most WIDTH, the first starting at column `at`, the others at `indent`. */
static void wrap(FILE *out, const char *text, int at, int indent)
{
    bool first = true;
    for (const char *p = text; *p; ) {
        int n = (int)strcspn(p, " \n");
        if (!first && at + 1 + n > WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            at = indent;
        } else if (!first) {
            fputc(' ', out);
            at++;
        }
        fprintf(out, "%.*s", n, p);
        at += n;
        first = false;
        p += n;
        p += strspn(p, " \n");
    }
    fputc('\n', out);
}

static void help_row(const dt_opt *o, void *ctx)
{
    FILE *out = ctx;
    char arg[400], left[512], letter[4] = { '-', o->letter, ',', '\0' };
    if (!o->name) {
        fprintf(out, "\n%s:\n", o->help);
        return;
    }
    argument(o, arg, sizeof arg);
    bool words = o->type == DT_OPT_LIST && !o->comma;
    int n = snprintf(left, sizeof left, "  %-3s --%s%s%s", o->letter ? letter : "", o->name,
                     !*arg ? "" : words ? " " : "=", arg);
    fputs(left, out);
    if (n > HELP_COL - 2) {
        fputc('\n', out);
        n = 0;
    }
    fprintf(out, "%*s", HELP_COL - n, "");
    wrap(out, o->help, HELP_COL, HELP_COL);
}

static void short_row(const dt_opt *o, void *ctx)
{
    if (o->name)
        help_row(o, ctx);
}

static bool is_often(const dt_opt *o, const char *topic)
{
    return any_row(o, topic) && o->often;
}

/* '-' is '_', case does not matter. */
static bool holds(const char *text, const char *word)
{
    size_t n = strlen(word);
    for (; *text; text++) {
        size_t i = 0;
        while (i < n && text[i] &&
               (text[i] == word[i] || (text[i] == '_' && word[i] == '-') || !strncasecmp(text + i, word + i, 1)))
            i++;
        if (i == n)
            return true;
    }
    return false;
}

static bool is_about(const dt_opt *o, const char *topic)
{
    char arg[400];
    if (!any_row(o, topic))
        return false;
    argument(o, arg, sizeof arg);
    return holds(o->name, topic) || holds(o->help, topic) || holds(arg, topic);
}

static void nothing(const dt_opt *o, void *ctx)
{
    (void)o;
    (void)ctx;
}

static void examples(const dt_cli *cli, FILE *out)
{
    if (cli->examples)
        fprintf(out, "\nExamples:\n%s%s", cli->examples, cli->examples[strlen(cli->examples) - 1] == '\n' ? "" : "\n");
}

static void usage(const dt_cli *cli, FILE *out)
{
    int n = fprintf(out, "Usage: %s ", cli->tool);
    wrap(out, cli->synopsis, n, n);
    wrap(out, cli->summary, 0, 0);
}

int dt_cli_help(const dt_cli *cli, const char *topic, FILE *out, dt_err *err)
{
    int all = each_row(cli, any_row, NULL, nothing, NULL), often = each_row(cli, is_often, NULL, nothing, NULL);
    if (topic && !strcmp(topic, "all"))
        often = 0;
    else if (topic && *topic) {
        topic += strspn(topic, "-");
        if (!each_row(cli, is_about, topic, help_row, out))
            return dt_err_set(err, DT_EUSAGE, "no option is about '%s'; --help all lists them", topic);
        return 0;
    }
    usage(cli, out);
    if (often) {
        examples(cli, out);
        fputs("\nUsed often:\n", out);
        each_row(cli, is_often, NULL, short_row, out);
        fprintf(out, "\n%d more options: --help all lists them, --help WORD those about it;\n`man %.*s` explains.\n",
                all - often, (int)strcspn(cli->tool, " "), cli->tool);
        return 0;
    }
    if (cli->table->name)
        fputs("\nOptions:\n", out);
    each_row(cli, any_row, NULL, help_row, out);
    examples(cli, out);
    return 0;
}

/* --- the man page --- */
struct man {
    FILE *out;
    bool in_list;
};

/* A word as a macro argument: "\&" keeps short ones from being read as macros (No, Ar, Op). */
static void man_word(FILE *out, const char *s, int n)
{
    fprintf(out, " %s%.*s", n <= 3 ? "\\&" : "", n, s);
}

static void man_argument(FILE *out, const dt_opt *o)
{
    char arg[400];
    argument(o, arg, sizeof arg);
    if (!*arg)
        return;
    bool words = o->type == DT_OPT_LIST && !o->comma, choice = o->type == DT_OPT_ENUM && !o->arg;
    fprintf(out, words ? " Ar" : choice ? " Ns = Ns Cm" : " Ns = Ns Ar");
    for (char *p = arg; *p; ) {
        int n = (int)strcspn(p, choice ? "|" : "");
        man_word(out, p, n);
        p += n;
        if (*p) {
            fputs(" |", out);
            p++;
        }
    }
}

/* Help as filled text: no line may look like a request, no word like an escape. */
static void man_text(FILE *out, const char *text)
{
    int at = 0;
    for (const char *p = text; *p; ) {
        int n = (int)strcspn(p, " \n");
        if (at && at + 1 + n > WIDTH - 2) {
            fputc('\n', out);
            at = 0;
        } else if (at) {
            fputc(' ', out);
            at++;
        }
        if (!at && (*p == '.' || *p == '\''))
            fputs("\\&", out);
        for (int i = 0; i < n; i++) {
            fputc(p[i], out);
            if (p[i] == '\\')
                fputc('e', out);
        }
        at += n;
        p += n;
        p += strspn(p, " \n");
    }
    fputc('\n', out);
}

static void man_row(const dt_opt *o, void *ctx)
{
    struct man *m = ctx;
    if (!o->name) {
        if (m->in_list)
            fputs(".El\n", m->out);
        m->in_list = false;
        fprintf(m->out, ".Ss %s\n", o->help);
        return;
    }
    if (!m->in_list)
        fputs(".Bl -tag -width Ds\n", m->out);
    m->in_list = true;
    fputs(".It ", m->out);
    if (o->letter)
        fprintf(m->out, "Fl %c , ", o->letter);
    fprintf(m->out, "Fl -%s", o->name);
    man_argument(m->out, o);
    fputc('\n', m->out);
    man_text(m->out, o->help);
}

void dt_cli_man(const dt_cli *cli, FILE *out)
{
    struct man m = { .out = out };
    each_row(cli, any_row, NULL, man_row, &m);
    fputs(".El\n", out);
}
