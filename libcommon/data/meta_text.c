/* meta_text.c - metadata files: JSON, JSON lines and CSV (RFC 4180), an entry at a time. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <cjson/cJSON.h>
#include "base/file.h"
#include "base/json.h"
#include "base/window.h"
#include "data/meta.h"

#define MAX_META_BYTES (4ull << 30)
#define MAX_SIDE_PX 65536

struct in {                     /* one metadata source being read */
    dt_meta    *m;
    const char *name;           /* for messages */
    const char *root;
    dt_window   w;
    int64_t     mark;           /* bytes of the byte order mark that it begins with, 0 or 3 */
};

/* Width or height: absent, null and "" are 0.  Returns false when it is no whole number of pixels. */
static bool side_of(int *px, const cJSON *v)
{
    double d = 0;
    *px = 0;
    if (!v || cJSON_IsNull(v))
        return true;
    if (cJSON_IsString(v)) {
        char *end;
        d = strtod(v->valuestring, &end);
        end += strspn(end, " \t");
        if (*end)
            return false;
        if (end == v->valuestring)
            return true;
    } else if (cJSON_IsNumber(v)) {
        d = v->valuedouble;
    } else {
        return false;
    }
    if (!(d >= 1 && d <= MAX_SIDE_PX) || d != floor(d))
        return false;
    *px = (int)d;
    return true;
}

static const cJSON *field(const cJSON *o, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(o, key);
}

static const char *string_of(const cJSON *v)
{
    return cJSON_IsString(v) ? v->valuestring : NULL;
}

/* What is wrong with the entry, or NULL. */
static const char *check_entry(const cJSON *o, int *w, int *h)
{
    const cJSON *path = field(o, "file_path"), *text = field(o, "text"), *type = field(o, "type");
    if (!cJSON_IsObject(o))
        return "must be an object";
    if (!string_of(path) || !*path->valuestring)
        return path ? "'file_path' must be a string" : "'file_path' is missing";
    if (text && !cJSON_IsNull(text) && !string_of(text))
        return "'text' must be a string";
    if (string_of(text) && !dt_is_utf8(text->valuestring, strlen(text->valuestring)))
        return "'text' is not UTF-8";
    if (type && !cJSON_IsNull(type)) {
        const char *t = string_of(type);
        if (t && !strcmp(t, "video"))
            return "'type' is video: only pictures are planned";
        if (!t || (*t && strcmp(t, "image")))
            return "'type' must be \"image\"";
    }
    if (!side_of(w, field(o, "width")) || !side_of(h, field(o, "height")))
        return "'width' and 'height' must be whole numbers of pixels";
    return NULL;
}

/* Takes o. */
static void add_entry(const struct in *in, cJSON *o, const char *where, int64_t n)
{
    static const char *const known[] = { "file_path", "text", "type", "width", "height" };
    int w = 0, h = 0;
    const char *wrong = check_entry(o, &w, &h);
    if (wrong) {
        dt_meta_skip(in->m, "%s: %s %lld: %s", in->name, where, (long long)n, wrong);
    } else {
        const char *said = string_of(field(o, "text"));
        char *path = dt_path_join(in->root, field(o, "file_path")->valuestring), *text = dt_strdup(said ? said : "");
        for (int i = 0; i < 5; i++)
            cJSON_DeleteItemFromObjectCaseSensitive(o, known[i]);
        char *extra = o->child ? dt_json_line(o) : NULL;
        dt_meta_put(in->m, &(dt_meta_item){ .path = path, .text = text, .extra = extra, .w = w && h ? w : 0,
                    .h = w && h ? h : 0, .tar = -1, .repeats = 1, .sub = -1 });
        free(path);
        free(text);
        free(extra);
    }
    cJSON_Delete(o);
}

/* --- what is no text --- */

static int is_nul(const struct in *in, int64_t byte, dt_err *err)
{
    return dt_err_set(err, DT_EDATA, "%s: byte %lld is NUL: this is not text", in->name, (long long)byte);
}

/* DT_EDATA if there is one from here on. */
static int look_for_nul(struct in *in, dt_err *err)
{
    dt_window *w = &in->w;
    for (int rc = 0; rc == 0; rc = dt_window_more(w, err)) {
        const char *nul = memchr(w->text + w->at, '\0', (size_t)(w->n - w->at));
        if (nul)
            return is_nul(in, w->next - (w->n - (nul - w->text)) - w->first - in->mark, err);
        if (w->end)
            return 0;
        w->at = w->n;
    }
    return 0;
}

/* --- JSON --- */

/* The next character that is no space, 0 at the end and for a NUL.  What cJSON takes for space is one. */
static int next_char(struct in *in, int *c, dt_err *err)
{
    dt_window *w = &in->w;
    for (*c = 0; ; ) {
        while (w->at < w->n && (*c = (unsigned char)w->text[w->at]) && *c <= ' ')
            w->at++;
        if (w->at < w->n || w->end)
            break;
        int rc = dt_window_more(w, err);
        if (rc < 0)
            return rc;
    }
    *c = w->at < w->n ? *c : 0;
    return 0;
}

/* 1 and the bytes from w.at to the ',' or ']' behind an element; 0: there is none, or the brackets are too many. */
static int element(struct in *in, int64_t *bytes, dt_err *err)
{
    enum { MAX_DEPTH = 900 };               /* cJSON's limit is 1000 */
    dt_window *w = &in->w;
    int64_t i = 0;
    int depth = 0;
    for (bool quoted = false; ; ) {
        const char *p = w->text + w->at;
        while ((i += (int64_t)strcspn(p + i, quoted ? "\"\\" : "\"[]{},")) < w->n - w->at) {
            char c = p[i];
            if (!c || depth > MAX_DEPTH || (!depth && c == '}'))
                return 0;
            if (!quoted && !depth && (c == ',' || c == ']')) {
                *bytes = i;
                return 1;
            }
            if (c == '\\' && i + 1 == w->n - w->at)
                break;                      /* what it stands before is not there yet */
            quoted = quoted != (c == '"');
            depth += !quoted && (c == '[' || c == '{') ? 1 : !quoted && (c == ']' || c == '}') ? -1 : 0;
            i += c == '\\' ? 2 : 1;
        }
        if (w->end)
            return 0;
        int rc = dt_window_more(w, err);
        if (rc < 0)
            return rc;
    }
}

/* NULL unless all of it is one value. */
static cJSON *parse_element(const char *p, int64_t bytes)
{
    const char *end = p;
    cJSON *o = *p == '\xef' ? NULL : cJSON_ParseWithLengthOpts(p, (size_t)bytes, &end, 0);    /* no mark within */
    while (end < p + bytes && (unsigned char)*end <= ' ')
        end++;
    if (o && end == p + bytes)
        return o;
    cJSON_Delete(o);
    return NULL;
}

/* The list at once, for what is to be said about it; should nothing be wrong, its elements but the first `done`. */
static int read_whole_list(const struct in *in, int64_t done, dt_err *err)
{
    cJSON *list = NULL;
    char *text = NULL;
    size_t bytes = 0;
    int rc = dt_window_all(&in->w, &text, &bytes, err);
    if (rc == 0 && strlen(text + in->mark) + (size_t)in->mark < bytes)
        rc = is_nul(in, (int64_t)strlen(text + in->mark), err);
    if (rc == 0)
        rc = dt_json_parse(&list, text + in->mark, bytes - (size_t)in->mark, in->name, err);
    for (int64_t i = 1; rc == 0 && list->child; i++) {
        cJSON *o = cJSON_DetachItemViaPointer(list, list->child);
        if (i > done)
            add_entry(in, o, "entry", i);
        else
            cJSON_Delete(o);
    }
    cJSON_Delete(list);
    free(text);
    return rc;
}

static int read_list(struct in *in, dt_err *err)
{
    dt_window *w = &in->w;
    int64_t n = 0, bytes;
    int c, rc = next_char(in, &c, err);
    for (bool open = true; rc == 0 && open; ) {
        w->at++;                                        /* the '[' or a ',' */
        if ((rc = next_char(in, &c, err)) < 0 || (c == ']' && !n) || (rc = element(in, &bytes, err)) < 0)
            break;
        cJSON *o = rc ? parse_element(w->text + w->at, bytes) : NULL;
        if (!o)
            return read_whole_list(in, n, err);
        add_entry(in, o, "entry", ++n);
        w->at += bytes;
        open = w->text[w->at] == ',';
        rc = 0;
    }
    w->at++;                                            /* the ']' */
    if (rc == 0)
        rc = next_char(in, &c, err);
    return rc < 0 || w->at == w->n ? rc : read_whole_list(in, n, err);
}

static int read_lines(struct in *in, dt_err *err)
{
    char *p;
    size_t bytes;
    int rc;
    for (int64_t line = 1; (rc = dt_window_line(&in->w, &p, &bytes, err)) > 0; line++) {
        if (strspn(p, " \t\r") >= bytes)
            continue;
        cJSON *o = strnlen(p, bytes) < bytes ? NULL : cJSON_ParseWithLength(p, bytes);
        if (!o) {
            in->w.at = p - in->w.text;
            return dt_err_set(err, DT_EDATA, "%s: line %lld is not valid JSON", in->name, (long long)line);
        }
        add_entry(in, o, "line", line);
    }
    return rc;
}

/* --- CSV --- */

/* One record from *p: fields are added to row, *p and *line move behind it.  Returns what is wrong, or NULL. */
static const char *csv_record(dt_strs *row, const char **at, const char *end, int64_t *line)
{
    const char *p = *at;
    int64_t n = 0, cap = 256;
    char *buf = dt_alloc(cap);
    const char *wrong = NULL;

    for (bool more = true; more && !wrong; ) {
        bool quoted = p < end && *p == '"';
        for (p += quoted; p < end; p++) {
            if (quoted && *p == '"') {
                if (p + 1 < end && p[1] == '"')
                    p++;
                else
                    break;
            } else if (!quoted && (*p == ',' || *p == '\n' || *p == '\r')) {
                break;
            }
            *line += *p == '\n';
            dt_grow(&buf, &cap, n + 2, 1);
            buf[n++] = *p;
        }
        if (quoted && p == end)
            wrong = "a quote is not closed";
        p += quoted && p < end;
        buf[n] = 0;
        dt_strs_add(row, buf);
        n = 0;
        if (!wrong && quoted && p < end && !strchr(",\r\n", *p))
            wrong = "text after a closing quote";
        more = p < end && *p == ',';
        p += more;
    }
    p += p < end && *p == '\r';
    if (p < end && *p == '\n') {
        p++;
        ++*line;
    }
    *at = p;
    free(buf);
    return wrong;
}

static void csv_row(const struct in *in, const dt_strs *head, const dt_strs *row, int64_t line)
{
    if (row->n == 1 && !*row->v[0])             /* an empty line */
        return;
    if (row->n != head->n) {
        dt_meta_skip(in->m, "%s: line %lld: %lld fields, the header has %lld", in->name, (long long)line,
                     (long long)row->n, (long long)head->n);
        return;
    }
    cJSON *o = cJSON_CreateObject();
    for (int64_t i = 0; i < head->n; i++)
        cJSON_AddStringToObject(o, head->v[i], row->v[i]);
    add_entry(in, o, "line", line);
}

/* A record, however much of the file it takes. */
static int next_record(struct in *in, dt_strs *row, int64_t *line, const char **wrong, dt_err *err)
{
    dt_window *w = &in->w;
    int rc = 0;
    for (; rc == 0; rc = dt_window_more(w, err)) {
        const char *from = w->text + w->at, *p = from, *end = w->text + w->n;
        int64_t next = *line;
        *wrong = csv_record(row, &p, end, &next);
        if (p < end || w->end) {
            w->at = p - w->text;
            *line = next;
            if (!memchr(from, '\0', (size_t)(p - from)))
                return 0;
            w->at = from - w->text;
            *wrong = "a NUL byte";
            return 0;
        }
        dt_strs_release(row);                       /* it may go on */
    }
    return rc;
}

static int read_csv(struct in *in, dt_err *err)
{
    const dt_window *w = &in->w;
    dt_strs head = { 0 };
    const char *wrong = NULL;
    int64_t line = 1;
    bool found = false;

    int rc = next_record(in, &head, &line, &wrong, err);
    for (int64_t i = 0; i < head.n; i++)
        found |= !strcmp(head.v[i], "file_path");
    if (rc == 0)
        rc = wrong ? dt_err_set(err, DT_EDATA, "%s: line 1: %s", in->name, wrong)
           : !found ? dt_err_set(err, DT_EDATA, "%s: line 1: the header has no column 'file_path'", in->name) : 0;
    while (rc == 0) {
        dt_strs row = { 0 };
        int64_t first = line;
        if (w->at == w->n && ((rc = dt_window_more(&in->w, err)) < 0 || w->at == w->n))
            break;
        rc = next_record(in, &row, &line, &wrong, err);
        if (rc == 0 && wrong)
            rc = dt_err_set(err, DT_EDATA, "%s: line %lld: %s", in->name, (long long)first, wrong);
        if (rc == 0)
            csv_row(in, &head, &row, first);
        dt_strs_release(&row);
    }
    dt_strs_release(&head);
    return rc;
}

/* --- any of them --- */

/* The first character that says something; it stays where it is. */
static int first_char(struct in *in, char *first, dt_err *err)
{
    dt_window *w = &in->w;
    int rc = 0;
    if (w->n >= 3 && !memcmp(w->text, "\xef\xbb\xbf", 3))
        w->at = in->mark = 3;
    size_t n;
    while ((n = strspn(w->text + w->at, " \t\r\n")) == (size_t)(w->n - w->at) && !w->end && rc == 0)
        rc = dt_window_more(w, err);
    *first = w->text[w->at + (int64_t)n];
    return rc;
}

static int read_text(struct in *in, const char *path, dt_err *err)
{
    const char *ext = dt_path_ext(path);
    char first;
    int rc = first_char(in, &first, err);
    if (rc < 0)
        return rc;
    if (!first)
        return dt_err_set(err, DT_EDATA, "%s: empty", in->name);
    if (!strcasecmp(ext, ".csv"))
        return read_csv(in, err);
    if (first == '[')
        return read_list(in, err);
    if (first == '{')
        return read_lines(in, err);
    if (!strcasecmp(ext, ".json") || !strcasecmp(ext, ".jsonl") || !strcasecmp(ext, ".ndjson"))
        return dt_err_set(err, DT_EDATA, "%s: must be a list of objects, or one object a line", in->name);
    return read_csv(in, err);
}

int dt_meta_read(dt_meta *m, const char *path, const char *root, dt_err *err)
{
    struct in in = { .m = m, .name = strcmp(path, "-") ? path : "standard input" };
    char *own = NULL;

    *m = (dt_meta){ 0 };
    if (dt_is_dir(path))
        return dt_meta_add_folder(m, path, &(struct dt_meta_how){ .repeats = 1, .sub = -1 }, err);
    if (!root)
        own = dt_sprintf("%.*s", (int)(dt_path_base(path) - path), path);
    in.root = root ? root : own;
    int rc = dt_window_open(&in.w, path, MAX_META_BYTES, err);
    if (rc == 0 && (rc = read_text(&in, path, err)) == DT_EDATA) {
        int nul = look_for_nul(&in, err);           /* which explains what else is wrong */
        rc = nul < 0 ? nul : rc;
    }
    dt_window_close(&in.w);
    free(own);
    return rc < 0 ? rc : dt_meta_check(m, err);
}
