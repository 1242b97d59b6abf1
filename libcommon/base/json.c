/* json.c - cJSON with limits and error lines, and our own printer: cJSON's keeps 15 digits of a number
 * where that is off by one unit in the last place, and writes 10^15 as 1e+15. */
#include "base/json.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "base/file.h"
#include "base/mem.h"

#define MAX_EXACT 9007199254740992.0    /* 2^53: integers beyond are not exact in a JSON number */

/* Short of memory, cJSON leaves out the field that it was asked to add, and calls a good text malformed.  In what we
 * write and read nothing may be missing in silence: it takes its memory where running out ends the process. */
__attribute__((constructor)) static void never_null(void)
{
    cJSON_InitHooks(&(cJSON_Hooks){ .malloc_fn = dt_alloc, .free_fn = free });
}

/* --- reading --- */
bool dt_is_utf8(const void *s, size_t bytes)
{
    const uint8_t *p = s;
    for (size_t i = 0; i < bytes;) {
        utf8proc_int32_t cp;
        utf8proc_ssize_t k = utf8proc_iterate(p + i, (utf8proc_ssize_t)(bytes - i), &cp);
        if (k <= 0 || cp == 0)
            return false;
        i += (size_t)k;
    }
    return true;
}

int dt_json_parse(cJSON **out, const char *text, size_t bytes, const char *what, dt_err *err)
{
    const char *end = NULL;
    cJSON *o = cJSON_ParseWithLengthOpts(text, bytes + 1, &end, 1);
    if (o && end != text + bytes) {             /* a NUL byte, and more after it */
        cJSON_Delete(o);
        o = NULL;
    }
    if (o) {
        *out = o;
        return 0;
    }
    int line = 1, col = 1;
    for (const char *p = text; end && p < end && p < text + bytes; p++) {
        col = *p == '\n' ? 1 : col + 1;
        line += *p == '\n';
    }
    return dt_err_set(err, DT_EDATA, "%s: not valid JSON at line %d, column %d", what, line, col);
}

int dt_json_read(cJSON **out, const char *path, size_t max_bytes, dt_err *err)
{
    char *text = NULL;
    size_t bytes = 0;
    int rc = dt_file_read_member(&text, &bytes, path, max_bytes, err);
    if (rc < 0)
        return rc;
    rc = dt_json_parse(out, text, bytes, path, err);
    if (rc == 0 && !dt_is_utf8(text, bytes)) {
        cJSON_Delete(*out);
        *out = NULL;
        rc = dt_err_set(err, DT_EDATA, "%s: not valid UTF-8", path);
    }
    free(text);
    return rc;
}

/* The member, or NULL when it is absent or null. */
static const cJSON *member(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsNull(v) ? NULL : v;
}

static bool is_int(const cJSON *v, int64_t min, int64_t max)
{
    double d = v->valuedouble;
    return cJSON_IsNumber(v) && fabs(d) <= MAX_EXACT && d == floor(d) && (int64_t)d >= min && (int64_t)d <= max;
}

static int bad_int(const char *key, int64_t min, int64_t max, const char *what, dt_err *err)
{
    if (min == INT64_MIN && max == INT64_MAX)
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be an integer", what, key);
    if (max == INT64_MAX)
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be an integer of at least %" PRId64, what, key, min);
    return dt_err_set(err, DT_EDATA, "%s: '%s' must be an integer from %" PRId64 " to %" PRId64, what, key, min, max);
}

int dt_json_int(int64_t *out, const cJSON *o, const char *key, int64_t min, int64_t max, const char *what, dt_err *err)
{
    const cJSON *v = member(o, key);
    if (!v)
        return dt_err_set(err, DT_EDATA, "%s: '%s' is missing", what, key);
    if (!is_int(v, min, max))
        return bad_int(key, min, max, what, err);
    *out = (int64_t)v->valuedouble;
    return 0;
}

int dt_json_int_or(int64_t *out, const cJSON *o, const char *key, int64_t def, int64_t min, int64_t max,
                   const char *what, dt_err *err)
{
    *out = def;
    return member(o, key) ? dt_json_int(out, o, key, min, max, what, err) : 0;
}

int dt_json_num_or(double *out, const cJSON *o, const char *key, double def, const char *what, dt_err *err)
{
    const cJSON *v = member(o, key);
    *out = def;
    if (!v)
        return 0;
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be a number", what, key);
    *out = v->valuedouble;
    return 0;
}

int dt_json_bool_or(bool *out, const cJSON *o, const char *key, bool def, const char *what, dt_err *err)
{
    const cJSON *v = member(o, key);
    *out = def;
    if (!v)
        return 0;
    if (!cJSON_IsBool(v))
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be true or false", what, key);
    *out = cJSON_IsTrue(v);
    return 0;
}

int dt_json_str_or(const char **out, const cJSON *o, const char *key, const char *def, const char *what, dt_err *err)
{
    const cJSON *v = member(o, key);
    *out = def;
    if (!v)
        return 0;
    if (!cJSON_IsString(v))
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be a string", what, key);
    *out = v->valuestring;
    return 0;
}

int dt_json_ints_or(int64_t *out, int *n, int max, const cJSON *o, const char *key, const char *what, dt_err *err)
{
    const cJSON *v = member(o, key), *e;
    *n = 0;
    if (!v)
        return 0;
    int size = cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 0;
    bool ok = size >= 1 && size <= max;
    cJSON_ArrayForEach(e, v)
        ok = ok && is_int(e, INT64_MIN, INT64_MAX);
    if (!ok)
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be an array of 1 to %d integers", what, key, max);
    cJSON_ArrayForEach(e, v)
        out[(*n)++] = (int64_t)e->valuedouble;
    return 0;
}

/* --- writing --- */
struct text {
    char   *s;
    int64_t n, cap;
};

static void put(struct text *t, const char *s, size_t n)
{
    dt_grow(&t->s, &t->cap, t->n + (int64_t)n + 1, 1);
    memcpy(t->s + t->n, s, n);
    t->n += (int64_t)n;
    t->s[t->n] = '\0';
}

static void put_str(struct text *t, const char *s)
{
    put(t, "\"", 1);
    for (; *s; s++) {
        char esc[8];
        unsigned char c = (unsigned char)*s;
        const char *short_form = strchr("\"\"\\\\\bb\ff\nn\rr\tt", c);
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)
            put(t, s, 1);
        else if (short_form)
            put(t, esc, (size_t)snprintf(esc, sizeof esc, "\\%c", short_form[1]));
        else
            put(t, esc, (size_t)snprintf(esc, sizeof esc, "\\u%04x", c));
    }
    put(t, "\"", 1);
}

/* The fewest digits that read back as the same double; what JSON cannot say (NaN, infinity) is null. */
static void put_num(struct text *t, double d)
{
    char buf[40] = "null";
    if (isfinite(d) && fabs(d) <= MAX_EXACT && d == floor(d)) {
        snprintf(buf, sizeof buf, "%" PRId64, (int64_t)d);
    } else if (isfinite(d)) {
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(buf, sizeof buf, "%.*g", digits, d);
            if (strtod(buf, NULL) == d)
                break;
        }
    }
    put(t, buf, strlen(buf));
}

static void put_break(struct text *t, bool pretty, int depth)
{
    if (!pretty)
        return;
    put(t, "\n", 1);
    for (int i = 0; i < depth; i++)
        put(t, "  ", 2);
}

static void put_value(struct text *t, const cJSON *o, bool pretty, int depth);

static void put_members(struct text *t, const cJSON *o, bool pretty, int depth)
{
    bool object = cJSON_IsObject(o);
    const cJSON *e;
    put(t, object ? "{" : "[", 1);
    cJSON_ArrayForEach(e, o) {
        bool flat = !pretty || (!object && !e->child);      /* arrays of numbers stay on one line */
        if (e != o->child)
            put(t, flat && pretty ? ", " : ",", flat && pretty ? 2 : 1);
        put_break(t, !flat, depth + 1);
        if (object) {
            put_str(t, e->string);
            put(t, pretty ? ": " : ":", pretty ? 2 : 1);
        }
        put_value(t, e, pretty, depth + 1);
    }
    if (o->child && (object || o->child->prev->child))      /* the last one stood on a line of its own */
        put_break(t, pretty, depth);
    put(t, object ? "}" : "]", 1);
}

static void put_value(struct text *t, const cJSON *o, bool pretty, int depth)
{
    if (cJSON_IsObject(o) || cJSON_IsArray(o))
        put_members(t, o, pretty, depth);
    else if (cJSON_IsString(o))
        put_str(t, o->valuestring);
    else if (cJSON_IsNumber(o))
        put_num(t, o->valuedouble);
    else if (cJSON_IsRaw(o))
        put(t, o->valuestring, strlen(o->valuestring));
    else
        put(t, cJSON_IsTrue(o) ? "true" : cJSON_IsFalse(o) ? "false" : "null", cJSON_IsFalse(o) ? 5 : 4);
}

int dt_json_write(const char *path, const cJSON *o, bool pretty, dt_err *err)
{
    struct text t = { 0 };
    put_value(&t, o, pretty, 0);
    put(&t, "\n", 1);
    int rc = dt_file_write(path, t.s, (size_t)t.n, err);
    free(t.s);
    return rc;
}

char *dt_json_line(const cJSON *o)
{
    struct text t = { 0 };
    put_value(&t, o, false, 0);
    return t.s;
}
