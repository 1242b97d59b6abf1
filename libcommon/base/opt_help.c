/* opt_help.c - what is printed from an option table: --help, the OPTIONS section of a man page (mdoc), --print_config
 * and completion scripts.  Refused options are in none of them. */
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/opt_impl.h"

#define WIDTH 80
#define HELP_COL 30

/* Calls fn for every row that is shown, headings among them, the common options last.  A heading whose options
 * are all refused is left out. */
static void each_row(const dt_cli *cli, void (*fn)(const dt_opt *o, void *ctx), void *ctx)
{
    const dt_opt *tables[] = { cli->table, dt_cli_common }, *heading = NULL;
    for (int i = 0; i < 2; i++) {
        for (const dt_opt *o = tables[i]; !dt_opt_is_end(o); o++) {
            if (!o->name) {
                heading = o;
            } else if (o->type != DT_OPT_REFUSED) {
                if (heading)
                    fn(heading, ctx);
                heading = NULL;
                fn(o, ctx);
            }
        }
    }
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

void dt_cli_help(const dt_cli *cli, FILE *out)
{
    int n = fprintf(out, "Usage: %s ", cli->tool);
    wrap(out, cli->synopsis, n, n);
    wrap(out, cli->summary, 0, 0);
    if (cli->table->name)
        fputs("\nOptions:\n", out);
    each_row(cli, help_row, out);
    if (cli->examples)
        fprintf(out, "\nExamples:\n%s%s", cli->examples, cli->examples[strlen(cli->examples) - 1] == '\n' ? "" : "\n");
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
    each_row(cli, man_row, &m);
    fputs(".El\n", out);
}

/* --- --print_config --- */
void dt_cli_config(const dt_cli *cli, const void *opts, FILE *out)
{
    cJSON *root = cJSON_CreateObject();
    for (const dt_opt *o = cli->table; !dt_opt_is_end(o); o++) {
        const void *f = (const char *)opts + o->off;
        cJSON *v = NULL;
        if (!o->name || o->type == DT_OPT_REFUSED)
            continue;
        switch (o->type) {
        case DT_OPT_FLAG:   v = cJSON_CreateBool(*(const int *)f); break;
        case DT_OPT_INT:
        case DT_OPT_BYTES:  v = cJSON_CreateNumber((double)*(const int64_t *)f); break;
        case DT_OPT_FLOAT:  v = cJSON_CreateNumber(*(const double *)f); break;
        case DT_OPT_ENUM:   v = cJSON_CreateString(o->choices[*(const int *)f]); break;
        case DT_OPT_LIST:
            v = cJSON_CreateStringArray((const char *const *)((const dt_strs *)f)->v, (int)((const dt_strs *)f)->n);
            break;
        default:
            v = *(const char *const *)f ? cJSON_CreateString(*(const char *const *)f) : cJSON_CreateNull();
        }
        cJSON_AddItemToObject(root, o->name, v ? v : cJSON_CreateArray());
    }
    char *text = dt_json_line(root);
    fprintf(out, "%s\n", text);
    free(text);
    cJSON_Delete(root);
}
