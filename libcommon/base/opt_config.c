/* opt_config.c - --print_config: the options in force and where each is from. */
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/opt_impl.h"

cJSON *dt_cli_value(const dt_opt *o, const void *opts)
{
    const void *f = (const char *)opts + o->off;
    double v = o->type == DT_OPT_FLOAT ? *(const double *)f
             : o->type == DT_OPT_INT || o->type == DT_OPT_BYTES ? (double)*(const int64_t *)f : 0;
    const dt_strs *list;
    switch (o->type) {
    case DT_OPT_FLAG:
        return cJSON_CreateBool(*(const int *)f);
    case DT_OPT_INT:
    case DT_OPT_BYTES:
    case DT_OPT_FLOAT:
        return dt_opt_in_range(o, v) ? cJSON_CreateNumber(v) : NULL;
    case DT_OPT_ENUM:
        return *(const int *)f >= 0 ? cJSON_CreateString(o->choices[*(const int *)f]) : NULL;
    case DT_OPT_LIST:
        list = f;
        return list->n ? cJSON_CreateStringArray((const char *const *)list->v, (int)list->n) : cJSON_CreateArray();
    default:
        return *(const char *const *)f ? cJSON_CreateString(*(const char *const *)f) : cJSON_CreateNull();
    }
}

/* A word as any shell reads it. */
static void put_word(FILE *out, const char *s)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%";
    if (*s && strspn(s, plain) == strlen(s)) {
        fputs(s, out);
        return;
    }
    putc('\'', out);
    for (; *s; s++)
        fputs(*s == '\'' ? "'\\''" : (char[]){ *s, '\0' }, out);
    putc('\'', out);
}

static void put_flag(FILE *out, const dt_opt *o, const cJSON *v)
{
    const cJSON *e;
    if (cJSON_IsBool(v)) {
        fprintf(out, "--%s%s", cJSON_IsTrue(v) ? "" : "no_", o->name);
        return;
    }
    fprintf(out, "--%s", o->name);
    if (cJSON_IsArray(v)) {
        cJSON_ArrayForEach(e, v) {
            putc(o->comma && e != v->child ? ',' : o->comma ? '=' : ' ', out);
            put_word(out, e->valuestring);
        }
        return;
    }
    putc('=', out);
    if (cJSON_IsString(v)) {
        put_word(out, v->valuestring);
        return;
    }
    char *number = dt_json_line(v);         /* whole ones without an exponent, which no option of that kind takes */
    fputs(number, out);
    free(number);
}

static bool empty(const cJSON *v)
{
    return cJSON_IsNull(v) || (cJSON_IsArray(v) && !v->child);
}

static void print_flags(FILE *out, const dt_cli *cli, const void *opts, int argc, char **argv)
{
    static const char *const head[] = { NULL, NULL, "\n# not set:",
                                        "\n# chosen by the model, the data or other options:" };
    fputs(cli->tool, out);
    for (int part = 0; part < 4; part++) {          /* given; defaults; not set; left to the model */
        bool any = false;
        for (const dt_opt *o = cli->table; !dt_opt_is_end(o); o++) {
            if (!o->name || o->type == DT_OPT_REFUSED)
                continue;
            cJSON *v = dt_cli_value(o, opts);
            int mine = dt_cli_given(cli, argc, argv, o->name) ? 0 : !v ? 3 : empty(v) ? 2 : 1;
            if (mine == part && part < 2) {
                fputs(part ? any ? "\n#   " : "\n# default:\n#   " : " \\\n    ", out);
                put_flag(out, o, v);
            } else if (mine == part) {
                fprintf(out, "%s --%s", any ? "" : head[part], o->name);
            }
            any |= mine == part;
            cJSON_Delete(v);
        }
    }
    putc('\n', out);
}

static void print_json(FILE *out, const dt_cli *cli, const void *opts, int argc, char **argv)
{
    cJSON *root = cJSON_CreateObject();
    for (const dt_opt *o = cli->table; !dt_opt_is_end(o); o++) {
        if (!o->name || o->type == DT_OPT_REFUSED)
            continue;
        cJSON *v = dt_cli_value(o, opts), *row = cJSON_AddObjectToObject(root, o->name);
        cJSON_AddItemToObject(row, "value", v ? v : cJSON_CreateNull());
        cJSON_AddStringToObject(row, "from", dt_cli_given(cli, argc, argv, o->name) ? "flag" : v ? "default" : "model");
    }
    char *text = dt_json_line(root);
    fprintf(out, "%s\n", text);
    free(text);
    cJSON_Delete(root);
}

char *dt_cli_config(const dt_cli *cli, const void *opts, int argc, char **argv, bool json)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = dt_must(open_memstream(&text, &bytes));
    (json ? print_json : print_flags)(out, cli, opts, argc, argv);
    fclose(out);
    return text;
}
