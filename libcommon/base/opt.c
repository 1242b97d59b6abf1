/* opt.c - reading the command line by the option table.
 *
 * Two layers: next_word() splits argv into options with their raw values and operands, knowing only names and
 * which types take a value; set_value() turns a raw value into the caller's field.  dt_cli_given() needs the first. */
#include "base/opt.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/opt_impl.h"

#define MAX_OPTS 512            /* rows of a table; the largest, of dt-train lora, has 117 */

const char *const dt_cli_shells[] = { "bash", "zsh", "fish", NULL };

const dt_opt dt_cli_common[] = {
    DT_OPT_GROUP("Common options"),
    { "help", 'h', NULL, DT_OPT_FLAG, DT_CLI_HELP, .help =
      "print the options that are used often; --help all: all of them; --help WORD: those about it" },
    { "version", 0, NULL, DT_OPT_FLAG, DT_CLI_VERSION, .help = "print the version" },
    { "print_config", 0, NULL, DT_OPT_FLAG, DT_CLI_CONFIG, .help =
      "print the options in force, given and default ones, as a command line, and stop; --print_config=json: as JSON" },
    { "completion", 0, NULL, DT_OPT_ENUM, DT_CLI_COMPLETION, .choices = dt_cli_shells,
      .help = "print a completion script for the shell" },
    DT_OPT_END
};
static const dt_opt man_opt = { "help_man", 0, NULL, DT_OPT_FLAG, DT_CLI_MAN };

/* --- words --- */
struct scan {
    const dt_cli *cli;
    int argc, i;                /* i: next word to look at */
    char **argv;
    const char *bundle;         /* rest of "-qv" after the q */
    bool only_operands;         /* "--" was seen */
};

struct word {
    const dt_opt *opt;          /* NULL: an operand */
    bool common;                /* from dt_cli_common */
    bool negated;               /* --no_NAME */
    bool joined;                /* --name=value: for a LIST exactly one */
    char *value;                /* borrowed from argv; NULL: none */
    int n;                      /* LIST: words in argv from `value` on */
    bool again;                 /* it was there before */
};

static char plain(char c)
{
    return c == '-' ? '_' : c;
}

static bool same_name(const char *name, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (plain(name[i]) != plain(s[i]))
            return false;
    return !name[n];
}

static const dt_opt *find_in(const dt_opt *t, const char *s, size_t n)
{
    for (; !dt_opt_is_end(t); t++)
        if (t->name && same_name(t->name, s, n))
            return t;
    return NULL;
}

static const dt_opt *find_long(const dt_cli *cli, const char *s, size_t n, struct word *w)
{
    const dt_opt *o = find_in(cli->table, s, n);
    if (!o && n > 3 && !strncmp(s, "no", 2) && (s[2] == '_' || s[2] == '-')) {
        o = find_in(cli->table, s + 3, n - 3);
        o = o && o->type == DT_OPT_FLAG ? o : NULL;
        w->negated = o != NULL;
    }
    if (!o) {
        o = find_in(dt_cli_common, s, n);
        if (!o && same_name(man_opt.name, s, n))
            o = &man_opt;
        w->common = o != NULL;
    }
    return o;
}

static const dt_opt *find_letter(const dt_cli *cli, char c, struct word *w)
{
    for (const dt_opt *t = cli->table; !dt_opt_is_end(t); t++)
        if (t->name && t->letter == c)
            return t;
    for (const dt_opt *t = dt_cli_common; !dt_opt_is_end(t); t++) {
        if (t->name && t->letter == c) {
            w->common = true;
            return t;
        }
    }
    return NULL;
}

static int unknown(const dt_cli *cli, const char *arg, const char *s, size_t n, dt_err *err)
{
    const char *names[MAX_OPTS];
    int k = 0;
    const dt_opt *tables[] = { cli->table, dt_cli_common };
    for (int i = 0; i < 2; i++)
        for (const dt_opt *t = tables[i]; !dt_opt_is_end(t) && k < MAX_OPTS; t++)
            if (t->name && t->type != DT_OPT_REFUSED)
                names[k++] = t->name;
    char *key = dt_sprintf("%.*s", (int)n, s);
    for (char *p = key; *p; p++)
        *p = plain(*p);
    int best = dt_nearest(key, names, k);
    if (best < 0 && !strncmp(key, "no_", 3))    /* only flags have that */
        best = dt_nearest(key + 3, names, k);
    int rc = best < 0 ? dt_err_set(err, DT_EUSAGE, "unknown option '%s'; see --help", arg)
                      : dt_err_set(err, DT_EUSAGE, "unknown option '%s' (did you mean '--%s'?)", arg, names[best]);
    free(key);
    return rc;
}

static bool is_number(const char *s)
{
    return isdigit((unsigned char)s[0]) || (s[0] == '.' && isdigit((unsigned char)s[1]));
}

/* "-", "-5" and "-.5" are operands and values. */
static bool looks_like_option(const char *s)
{
    return s[0] == '-' && s[1] && !is_number(s + 1);
}

/* Takes the value of w->opt from the following words. */
static int take_value(struct scan *s, struct word *w, dt_err *err)
{
    const dt_opt *o = w->opt;
    if (o->type == DT_OPT_FLAG || o->type == DT_OPT_REFUSED)
        return 1;
    bool none = s->i >= s->argc || (o->type == DT_OPT_LIST ? looks_like_option(s->argv[s->i])
                                                           : !strncmp(s->argv[s->i], "--", 2));
    if (none)
        return dt_err_set(err, DT_EUSAGE, "option '--%s' needs a value", o->name);
    w->value = s->argv[s->i++];
    w->n = 1;
    while (o->type == DT_OPT_LIST && s->i < s->argc && !looks_like_option(s->argv[s->i]))
        s->i++, w->n++;
    return 1;
}

static int letter_word(struct scan *s, struct word *w, dt_err *err)
{
    const char *p = s->bundle;
    w->opt = find_letter(s->cli, *p, w);
    if (!w->opt) {
        const char *arg = s->argv[s->i - 1];
        return unknown(s->cli, arg, arg + 1, strcspn(arg + 1, "="), err);
    }
    s->bundle = p[1] ? p + 1 : NULL;
    if (w->opt->type != DT_OPT_FLAG && s->bundle) {         /* -n4, -n=4 */
        w->value = (char *)s->bundle + (*s->bundle == '=');
        w->joined = true;
        w->n = 1;
        s->bundle = NULL;
        return 1;
    }
    return take_value(s, w, err);
}

/* 1: *w is filled; 0: no more; negative: error. */
static int next_word(struct scan *s, struct word *w, dt_err *err)
{
    *w = (struct word){ 0 };
    if (s->bundle)
        return letter_word(s, w, err);
    if (s->i >= s->argc)
        return 0;
    char *arg = s->argv[s->i++];
    if (s->only_operands || !looks_like_option(arg)) {
        w->value = arg;
        return 1;
    }
    if (arg[1] != '-') {
        s->bundle = arg + 1;
        return letter_word(s, w, err);
    }
    if (!arg[2]) {
        s->only_operands = true;
        return next_word(s, w, err);
    }
    char *name = arg + 2, *eq = strchr(name, '=');
    size_t n = eq ? (size_t)(eq - name) : strlen(name);
    w->opt = find_long(s->cli, name, n, w);
    if (!w->opt)
        return unknown(s->cli, arg, name, n, err);
    if (!eq)
        return take_value(s, w, err);
    w->value = eq + 1;
    w->joined = true;
    w->n = 1;
    return 1;
}

/* --- values --- */
static int bad_number(const dt_opt *o, const char *value, dt_err *err)
{
    const char *kind = o->type == DT_OPT_INT ? "an integer" : o->type == DT_OPT_FLOAT ? "a number"
                     : "a number of bytes such as 512M or 24G";
    if (o->min == o->max)
        return dt_err_set(err, DT_EUSAGE, "option '--%s' must be %s (got '%s')", o->name, kind, value);
    int digits = o->type == DT_OPT_INT ? 16 : 15;       /* of 2^53; a fraction has not that many that are meant */
    return dt_err_set(err, DT_EUSAGE, "option '--%s' must be %s from %.*g to %.*g (got '%s')", o->name, kind, digits,
                      o->min, digits, o->max, value);
}

static int set_int(const dt_opt *o, int64_t *field, const char *value, dt_err *err)
{
    char *end;
    errno = 0;
    long long v = strtoll(value, &end, 10);
    if (errno || end == value || *end || isspace((unsigned char)*value) || !dt_opt_in_range(o, (double)v))
        return bad_number(o, value, err);
    *field = v;
    return 0;
}

/* strtod, without its hexadecimal, infinite and undefined numbers. */
static bool read_decimal(const char *s, double *v, char **end)
{
    if (!is_number(s + (*s == '-' || *s == '+')))
        return false;
    size_t n = strspn(s, "+-.0123456789eE");
    *v = strtod(s, end);
    return *end > s && *end <= s + n && isfinite(*v);
}

static int set_float(const dt_opt *o, double *field, const char *value, dt_err *err)
{
    char *end;
    double v;
    if (!read_decimal(value, &v, &end) || *end || !dt_opt_in_range(o, v))
        return bad_number(o, value, err);
    *field = v;
    return 0;
}

static int set_bytes(const dt_opt *o, int64_t *field, const char *value, dt_err *err)
{
    static const char unit[] = "KMGT";
    char *end;
    double v;
    if (!read_decimal(value, &v, &end) || v < 0)
        return bad_number(o, value, err);
    const char *u = *end ? strchr(unit, toupper((unsigned char)*end)) : NULL;
    if (u) {
        v = ldexp(v, 10 * (int)(u - unit + 1));
        end += end[1] == 'i' ? 2 : 1;
    }
    end += *end == 'B' || *end == 'b';
    if (*end || v >= 0x1p63 || !dt_opt_in_range(o, v))
        return bad_number(o, value, err);
    *field = (int64_t)v;
    return 0;
}

static int set_flag(const struct word *w, int *field, dt_err *err)
{
    static const char *const word[] = { "false", "true", "0", "1", "no", "yes", "off", "on" };
    int v = 1;
    if (w->value) {
        for (v = 0; v < 8 && strcasecmp(w->value, word[v]); v++)
            ;
        if (v == 8)
            return dt_err_set(err, DT_EUSAGE, "option '--%s' must be true or false (got '%s')", w->opt->name, w->value);
    }
    *field = (v & 1) ^ w->negated;
    return 0;
}

static int set_enum(const dt_opt *o, int *field, const char *value, dt_err *err)
{
    char list[512] = "";
    int n = 0;
    for (; o->choices[n]; n++) {
        if (same_name(o->choices[n], value, strlen(value))) {
            *field = n;
            return 0;
        }
        size_t at = strlen(list);
        snprintf(list + at, sizeof list - at, "%s%s", n ? ", " : "", o->choices[n]);
    }
    int best = dt_nearest(value, o->choices, n);
    return dt_err_set(err, DT_EUSAGE, "option '--%s' must be one of %s (got '%s'%s%s%s)", o->name, list, value,
                      best < 0 ? "" : "; did you mean '", best < 0 ? "" : o->choices[best], best < 0 ? "" : "'?");
}

static int set_list(const struct word *w, dt_strs *field, char *const *words, dt_err *err)
{
    if (!w->again)
        dt_strs_release(field);
    for (int i = 0; i < w->n; i++) {
        const char *v = w->joined ? w->value : words[i];
        if (w->opt->comma)
            dt_strs_split(field, v, ',');
        else
            dt_strs_add(field, v);
    }
    return field->n ? 0 : dt_err_set(err, DT_EUSAGE, "option '--%s' needs a value", w->opt->name);
}

static int set_value(const struct scan *s, const struct word *w, void *opts, dt_err *err)
{
    const dt_opt *o = w->opt;
    void *field = (char *)opts + o->off;
    switch (o->type) {
    case DT_OPT_FLAG:  return set_flag(w, field, err);
    case DT_OPT_INT:   return set_int(o, field, w->value, err);
    case DT_OPT_FLOAT: return set_float(o, field, w->value, err);
    case DT_OPT_BYTES: return set_bytes(o, field, w->value, err);
    case DT_OPT_ENUM:  return set_enum(o, field, w->value, err);
    case DT_OPT_LIST:  return set_list(w, field, s->argv + s->i - w->n, err);
    case DT_OPT_STR:   *(const char **)field = w->value; return 0;
    case DT_OPT_REFUSED: break;
    }
    return dt_err_set(err, DT_EUSAGE, "--%s: %s", o->name, o->help);
}

/* --- the whole line --- */

enum { SHOW_NOTHING, SHOW_CONFIG, SHOW_JSON };

/* --help=WORD, --help WORD. */
static int help_option(const struct scan *s, const struct word *w, dt_err *err)
{
    const char *next = s->i < s->argc && !looks_like_option(s->argv[s->i]) ? s->argv[s->i] : NULL;
    int rc = dt_cli_help(s->cli, w->value ? w->value : next, stdout, err);
    return rc < 0 ? rc : 1;
}

/* 1: printed, leave; 0: go on (--print_config waits for the rest of the line). */
static int common_option(const struct scan *s, const struct word *w, int *show, dt_err *err)
{
    int v = 1;
    if (w->opt->off == DT_CLI_HELP)
        return help_option(s, w, err);
    if (w->opt->off == DT_CLI_CONFIG && w->value && !strcmp(w->value, "json")) {
        *show = SHOW_JSON;
        return 0;
    }
    if (w->opt->type == DT_OPT_ENUM ? set_enum(w->opt, &v, w->value, err) < 0 : set_flag(w, &v, err) < 0)
        return DT_EUSAGE;
    if (!v && w->opt->type == DT_OPT_FLAG)
        return 0;
    switch (w->opt->off) {
    case DT_CLI_MAN:        dt_cli_man(s->cli, stdout); return 1;
    case DT_CLI_VERSION:    printf("%s (dt) %s\n", s->cli->tool, DT_VERSION); return 1;
    case DT_CLI_COMPLETION: dt_cli_completion((const dt_cli *[]){ s->cli, NULL }, dt_cli_shells[v], stdout); return 1;
    }
    *show = SHOW_CONFIG;
    return 0;
}

int dt_cli_parse(const dt_cli *cli, void *opts, int argc, char **argv, dt_strs *operands, dt_err *err)
{
    bool seen[MAX_OPTS] = { false };
    int show = SHOW_NOTHING;
    struct scan s = { .cli = cli, .argc = argc, .i = 1, .argv = argv };
    struct word w;
    int rc;
    while ((rc = next_word(&s, &w, err)) > 0) {
        if (!w.opt && !operands)
            return dt_err_set(err, DT_EUSAGE,
                              "unexpected operand '%s' (a value with blanks, * or {} must be in quotes)", w.value);
        if (!w.opt) {
            dt_strs_add(operands, w.value);
            continue;
        }
        if (w.common) {
            if ((rc = common_option(&s, &w, &show, err)))
                return rc;
            continue;
        }
        int64_t k = w.opt - cli->table;
        w.again = k < MAX_OPTS && seen[k];
        if (w.again && !w.opt->repeat)
            return dt_err_set(err, DT_EUSAGE, "option '--%s' is given twice", w.opt->name);
        if (k < MAX_OPTS)
            seen[k] = true;
        if ((rc = set_value(&s, &w, opts, err)) < 0)
            return rc;
    }
    if (!rc && show) {
        char *text = dt_cli_config(cli, opts, argc, argv, show == SHOW_JSON);
        fputs(text, stdout);
        free(text);
        return 1;
    }
    return rc;
}

int dt_cli_given(const dt_cli *cli, int argc, char **argv, const char *name)
{
    struct scan s = { .cli = cli, .argc = argc, .i = 1, .argv = argv };
    struct word w;
    while (next_word(&s, &w, NULL) > 0)
        if (w.opt && !w.common && !strcmp(w.opt->name, name))
            return 1;
    return 0;
}
