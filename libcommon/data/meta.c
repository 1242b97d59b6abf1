/* meta.c - metadata of data sets: JSON, JSON lines, CSV (RFC 4180) and folders. */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/json.h"
#include "data/meta.h"

#define MAX_META_BYTES (4ull << 30)
#define MAX_CAPTION_BYTES (1 << 20)
#define MAX_SIDE_PX 65536

struct in {                     /* one metadata source being read */
    dt_meta    *m;
    const char *name;           /* for messages */
    const char *root;
};

static void skip(const struct in *in, const char *where, int64_t n, const char *why)
{
    char *line = dt_sprintf("%s: %s %lld: %s", in->name, where, (long long)n, why);
    dt_strs_add(&in->m->skipped, line);
    free(line);
}

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

/* --- what is kept --- */

/* On the tape, before the strings; nothing between its fields. */
struct head {
    int64_t off, bytes;
    int32_t w, h, tar, from;
    int64_t path, text, extra;      /* bytes with their NUL; 0: NULL */
};

static int32_t from_of(dt_meta *m, const dt_meta_item *it)
{
    const struct dt_meta_from *last = m->n_from ? &m->from[m->n_from - 1] : NULL;
    if (!last || last->repeats != it->repeats || last->sub != it->sub) {
        dt_grow(&m->from, &m->from_cap, m->n_from + 1, sizeof *m->from);
        m->from[m->n_from++] = (struct dt_meta_from){ it->repeats, it->sub };
    }
    return (int32_t)(m->n_from - 1);
}

void dt_meta_put(dt_meta *m, const dt_meta_item *it)
{
    char *own = m->reword ? m->reword(m->by, it->text) : NULL;
    const char *text = own ? own : it->text;
    struct head h = { .off = it->off, .bytes = it->bytes, .w = it->w, .h = it->h, .tar = it->tar,
                      .from = from_of(m, it), .path = (int64_t)strlen(it->path) + 1,
                      .text = (int64_t)strlen(text) + 1, .extra = it->extra ? (int64_t)strlen(it->extra) + 1 : 0 };
    int64_t bytes = (int64_t)sizeof h + h.path + h.text + h.extra;
    int rc = m->wrong.code;

    dt_grow(&m->rec, &m->rec_cap, bytes, 1);
    char *p = mempcpy(m->rec, &h, sizeof h);
    p = mempcpy(p, it->path, (size_t)h.path);
    p = mempcpy(p, text, (size_t)h.text);
    memcpy(p, it->extra ? it->extra : "", (size_t)h.extra);
    if (rc == 0 && m->entries >= INT32_MAX)
        rc = dt_err_set(&m->wrong, DT_EDATA, "more than %d entries", INT32_MAX);
    if (rc == 0) {
        m->tape = m->tape ? m->tape : dt_tape_new();
        rc = dt_tape_add(m->tape, m->entries, m->rec, (size_t)bytes, &m->wrong);
    }
    if (rc == 0) {
        dt_grow(&m->v, &m->cap, m->n + 1, sizeof *m->v);
        m->v[m->n++] = (dt_meta_key){ .id = (int32_t)m->entries, .from = (uint32_t)h.from, .mute = !*text };
    }
    m->entries++;
    free(own);
}

int dt_meta_get(const dt_meta *m, int64_t k, dt_tape_reader *r, dt_meta_item *it, dt_err *err)
{
    const void *rec;
    size_t bytes;
    struct head h;
    int rc = dt_tape_get(m->tape, r, m->v[k].id, &rec, &bytes, err);
    if (rc < 0)
        return rc;
    memcpy(&h, rec, sizeof h);
    const char *s = (const char *)rec + sizeof h;
    *it = (dt_meta_item){ .path = s, .text = s + h.path, .extra = h.extra ? s + h.path + h.text : NULL, .w = h.w,
                          .h = h.h, .tar = h.tar, .off = h.off, .bytes = h.bytes,
                          .repeats = m->from[h.from].repeats, .sub = m->from[h.from].sub };
    return 0;
}

int dt_meta_check(const dt_meta *m, dt_err *err)
{
    return m->wrong.code ? dt_err_set(err, m->wrong.code, "%s", m->wrong.msg) : 0;
}

/* --- entries --- */

/* Takes o. */
static void add_entry(const struct in *in, cJSON *o, const char *where, int64_t n)
{
    static const char *const known[] = { "file_path", "text", "type", "width", "height" };
    int w = 0, h = 0;
    const char *wrong = check_entry(o, &w, &h);
    if (wrong) {
        skip(in, where, n, wrong);
        in->m->entries++;
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

static int read_list(const struct in *in, const char *text, size_t bytes, dt_err *err)
{
    cJSON *list = NULL;
    int rc = dt_json_parse(&list, text, bytes, in->name, err);
    if (rc < 0)
        return rc;
    for (int64_t i = 1; list->child; i++)
        add_entry(in, cJSON_DetachItemViaPointer(list, list->child), "entry", i);
    cJSON_Delete(list);
    return 0;
}

static int read_lines(const struct in *in, const char *text, size_t bytes, dt_err *err)
{
    int64_t line = 1;
    for (const char *p = text, *end = text + bytes, *nl; p < end; p = nl + 1, line++) {
        nl = memchr(p, '\n', end - p);
        nl = nl ? nl : end;
        if (strspn(p, " \t\r") >= (size_t)(nl - p))
            continue;
        cJSON *o = cJSON_ParseWithLength(p, nl - p);
        if (!o)
            return dt_err_set(err, DT_EDATA, "%s: line %lld is not valid JSON", in->name, (long long)line);
        add_entry(in, o, "line", line);
    }
    return 0;
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
        char *why = dt_sprintf("%lld fields, the header has %lld", (long long)row->n, (long long)head->n);
        skip(in, "line", line, why);
        free(why);
        in->m->entries++;
        return;
    }
    cJSON *o = cJSON_CreateObject();
    for (int64_t i = 0; i < head->n; i++)
        cJSON_AddStringToObject(o, head->v[i], row->v[i]);
    add_entry(in, o, "line", line);
}

static int read_csv(const struct in *in, const char *text, size_t bytes, dt_err *err)
{
    const char *p = text, *end = text + bytes;
    dt_strs head = { 0 };
    int64_t line = 1;
    bool found = false;

    const char *wrong = csv_record(&head, &p, end, &line);
    for (int64_t i = 0; i < head.n; i++)
        found |= !strcmp(head.v[i], "file_path");
    int rc = wrong ? dt_err_set(err, DT_EDATA, "%s: line 1: %s", in->name, wrong)
           : !found ? dt_err_set(err, DT_EDATA, "%s: line 1: the header has no column 'file_path'", in->name) : 0;
    while (rc == 0 && p < end) {
        dt_strs row = { 0 };
        int64_t first = line;
        if ((wrong = csv_record(&row, &p, end, &line)))
            rc = dt_err_set(err, DT_EDATA, "%s: line %lld: %s", in->name, (long long)first, wrong);
        else
            csv_row(in, &head, &row, first);
        dt_strs_release(&row);
    }
    dt_strs_release(&head);
    return rc;
}

/* --- folders --- */

struct seen { dev_t dev; ino_t ino; };

struct walk {
    dt_meta *m;
    const struct dt_meta_how *how;
    struct seen *seen;
    int64_t n_seen, cap;
};

static bool is_picture(const char *name)
{
    static const char *const ext[] = { ".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp" };
    for (size_t i = 0; i < sizeof ext / sizeof *ext; i++)
        if (!strcasecmp(dt_path_ext(name), ext[i]))
            return true;
    return false;
}

void dt_meta_add(dt_meta *m, const dt_meta_item *it, const char *what)
{
    if (dt_is_utf8(it->text, strlen(it->text))) {
        dt_meta_put(m, it);
        return;
    }
    char *line = dt_sprintf("%s: not UTF-8", what);
    dt_strs_add(&m->skipped, line);
    m->entries++;
    free(line);
}

/* The caption file of a picture, or NULL. */
static char *caption_file(const char *path, const char *ext)
{
    const char *const any[] = { ".txt", ".caption" };
    for (int i = 0; i < (ext ? 1 : 2); i++) {
        char *name = dt_sprintf("%.*s%s", (int)(strlen(path) - strlen(dt_path_ext(path))), path, ext ? ext : any[i]);
        if (dt_exists(name))
            return name;
        free(name);
    }
    return NULL;
}

static char *trimmed(char *p)
{
    p += !strncmp(p, "\xef\xbb\xbf", 3) ? 3 : 0;
    p += strspn(p, " \t\r\n");
    for (size_t n = strlen(p); n && strchr(" \t\r\n", p[n - 1]); )
        p[--n] = 0;
    return p;
}

static void add_picture(dt_meta *m, const char *path, const struct dt_meta_how *how)
{
    char *txt = caption_file(path, how->ext), *text = NULL;
    size_t n = 0;
    dt_err err = { 0 };

    bool bad = txt && dt_file_read(&text, &n, txt, MAX_CAPTION_BYTES, &err) < 0;
    if (err.code == DT_ENOMEM)                  /* which is no fault of the caption's */
        dt_must(NULL);
    if (bad) {
        dt_strs_add(&m->skipped, err.msg);
        m->entries++;
    } else {
        char *p = trimmed(text ? text : "");
        if (text && how->first_line) {
            p[strcspn(p, "\r\n")] = 0;
            p = trimmed(p);
        }
        dt_meta_add(m, &(dt_meta_item){ .path = path, .text = text || !how->caption ? p : how->caption, .tar = -1,
                    .repeats = how->repeats, .sub = how->sub }, txt ? txt : path);
    }
    free(text);
    free(txt);
}

static int visible(const struct dirent *e) { return e->d_name[0] != '.'; }
static int by_bytes(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static int walk_folder(struct walk *w, const char *dir, dt_err *err)
{
    struct dirent **e = NULL;
    struct stat st;

    int n = stat(dir, &st) < 0 ? -1 : 0;
    for (int64_t i = 0; n == 0 && i < w->n_seen; i++)
        if (w->seen[i].dev == st.st_dev && w->seen[i].ino == st.st_ino)
            return 0;
    if (n == 0)
        n = scandir(dir, &e, visible, by_bytes);
    if (n < 0)
        return dt_err_open(err, dir);
    dt_grow(&w->seen, &w->cap, w->n_seen + 1, sizeof *w->seen);
    w->seen[w->n_seen++] = (struct seen){ st.st_dev, st.st_ino };
    for (int i = 0; i < n; i++) {
        char *path = dt_path_join(dir, e[i]->d_name);
        dt_err bad = { 0 };
        if (dt_is_dir(path)) {
            if (!w->how->flat && walk_folder(w, path, &bad) == DT_ENOMEM)
                dt_must(NULL);
            if (bad.code) {
                dt_strs_add(&w->m->skipped, bad.msg);
                w->m->entries++;
            }
        } else if (is_picture(path)) {
            add_picture(w->m, path, w->how);
        } else if (dt_is_tar(path) && !w->how->flat && dt_meta_add_tar(w->m, path, w->how, &bad) < 0) {
            dt_strs_add(&w->m->skipped, bad.msg);
            w->m->entries++;
        }
        free(path);
        free(e[i]);
    }
    free(e);
    return 0;
}

int dt_meta_add_folder(dt_meta *m, const char *dir, const struct dt_meta_how *how, dt_err *err)
{
    struct walk w = { .m = m, .how = how };
    int rc = walk_folder(&w, dir, err);
    free(w.seen);
    return rc < 0 ? rc : dt_meta_check(m, err);
}

/* N of "N_words", 0 if it is no such name. */
static int64_t repeats_of(const char *name)
{
    size_t n = strspn(name, "0123456789");
    return n && n <= 3 && name[n] == '_' && name[n + 1] ? atoi(name) : 0;
}

bool dt_meta_is_kohya(const char *dir)
{
    struct dirent **e = NULL;
    int n = scandir(dir, &e, visible, by_bytes), named = 0;
    for (int i = 0; i < n; i++) {
        char *path = dt_path_join(dir, e[i]->d_name);
        named = named < 0 ? -1 : !dt_is_dir(path) ? (is_picture(path) ? -1 : named) : repeats_of(e[i]->d_name) ? 1 : -1;
        free(path);
        free(e[i]);
    }
    free(e);
    return named > 0;
}

int dt_meta_read_kohya(dt_meta *m, const char *dir, dt_err *err)
{
    struct dirent **e = NULL;
    *m = (dt_meta){ 0 };
    int rc = 0, n = scandir(dir, &e, visible, by_bytes);
    if (n < 0)
        return dt_err_open(err, dir);
    for (int i = 0; i < n; i++) {
        const char *name = e[i]->d_name;
        char *path = dt_path_join(dir, name);
        int64_t before = m->entries, repeats = repeats_of(name);
        if (rc == 0 && repeats) {
            rc = dt_meta_add_folder(m, path, &(struct dt_meta_how){ .caption = strchr(name, '_') + 1, .flat = true,
                                    .first_line = true, .repeats = repeats, .sub = -1 }, err);
            char *line = dt_sprintf("%s: %lld pictures, each %lld times an epoch; '%s' where there is no caption "
                                    "(a folder as kohya's scripts read it; --no_folder_repeats: an ordinary one)", path,
                                    (long long)(m->entries - before), (long long)repeats, strchr(name, '_') + 1);
            dt_strs_add(&m->notes, line);
            free(line);
        }
        free(path);
        free(e[i]);
    }
    free(e);
    return rc;
}

/* --- entry --- */

static int read_text(const struct in *in, const char *path, const char *text, size_t bytes, dt_err *err)
{
    if (bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) {
        text += 3;
        bytes -= 3;
    }
    const char *ext = dt_path_ext(path);
    char first = text[strspn(text, " \t\r\n")];
    if (strlen(text) < bytes)
        return dt_err_set(err, DT_EDATA, "%s: byte %zu is NUL: this is not text", in->name, strlen(text));
    if (!first)
        return dt_err_set(err, DT_EDATA, "%s: empty", in->name);
    if (!strcasecmp(ext, ".csv"))
        return read_csv(in, text, bytes, err);
    if (first == '[')
        return read_list(in, text, bytes, err);
    if (first == '{')
        return read_lines(in, text, bytes, err);
    if (!strcasecmp(ext, ".json") || !strcasecmp(ext, ".jsonl") || !strcasecmp(ext, ".ndjson"))
        return dt_err_set(err, DT_EDATA, "%s: must be a list of objects, or one object a line", in->name);
    return read_csv(in, text, bytes, err);
}

int dt_meta_read(dt_meta *m, const char *path, const char *root, dt_err *err)
{
    struct in in = { .m = m, .name = strcmp(path, "-") ? path : "standard input" };
    char *text = NULL, *own = NULL;
    size_t bytes = 0;

    *m = (dt_meta){ 0 };
    if (dt_is_dir(path))
        return dt_meta_add_folder(m, path, &(struct dt_meta_how){ .repeats = 1, .sub = -1 }, err);
    if (!root)
        own = dt_sprintf("%.*s", (int)(dt_path_base(path) - path), path);
    in.root = root ? root : own;
    int rc = dt_file_read(&text, &bytes, path, MAX_META_BYTES, err);
    if (rc == 0)
        rc = read_text(&in, path, text, bytes, err);
    free(text);
    free(own);
    return rc < 0 ? rc : dt_meta_check(m, err);
}

void dt_meta_release(dt_meta *m)
{
    free(m->v);
    free(m->from);
    free(m->rec);
    dt_tape_free(&m->tape);
    dt_strs_release(&m->skipped);
    dt_strs_release(&m->tars);
    dt_strs_release(&m->notes);
    *m = (dt_meta){ 0 };
}
