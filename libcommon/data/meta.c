/* meta.c - what is kept of a data set's pictures; folders of them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "data/meta.h"

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

void dt_meta_skip(dt_meta *m, const char *fmt, ...)
{
    char *line;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&line, fmt, ap);
    va_end(ap);
    line = dt_must(n < 0 ? NULL : line);
    dt_strs_add(&m->skipped, line);
    m->entries++;
    free(line);
}

void dt_meta_add(dt_meta *m, const dt_meta_item *it, const char *what)
{
    if (dt_is_utf8(it->text, strlen(it->text)))
        dt_meta_put(m, it);
    else
        dt_meta_skip(m, "%s: not UTF-8", what);
}

int dt_meta_check(const dt_meta *m, dt_err *err)
{
    return m->wrong.code ? dt_err_set(err, m->wrong.code, "%s", m->wrong.msg) : 0;
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

/* --- folders --- */

static int visible(const struct dirent *e) { return e->d_name[0] != '.'; }
static int by_bytes(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static bool is_picture(const char *name)
{
    static const char *const ext[] = { ".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp" };
    for (size_t i = 0; i < sizeof ext / sizeof *ext; i++)
        if (!strcasecmp(dt_path_ext(name), ext[i]))
            return true;
    return false;
}

/* What a folder holds that may matter, sorted: scandir() would keep all of it, in three times the memory. */
struct names {
    char     *text;             /* of each: a byte, 1 if it is surely a file; the name and its NUL */
    uint32_t *at;
    int64_t   n, cap, bytes, room;
};

static int by_name(const void *a, const void *b, void *text)
{
    return strcmp((char *)text + *(const uint32_t *)a + 1, (char *)text + *(const uint32_t *)b + 1);
}

static int list_names(struct names *l, const char *dir, dt_err *err)
{
    DIR *d = opendir(dir);
    if (!d)
        return dt_err_open(err, dir);
    for (struct dirent *e; errno = 0, e = readdir(d); ) {
        int64_t n = (int64_t)strlen(e->d_name) + 2;
        bool file = e->d_type == DT_REG;
        if (!visible(e) || (file && !is_picture(e->d_name) && !dt_is_tar(e->d_name)))
            continue;
        if (l->bytes + n > UINT32_MAX) {
            errno = ENOMEM;
            break;
        }
        dt_grow(&l->text, &l->room, l->bytes + n, 1);
        dt_grow(&l->at, &l->cap, l->n + 1, sizeof *l->at);
        l->text[l->bytes] = file;
        memcpy(l->text + l->bytes + 1, e->d_name, (size_t)n - 1);
        l->at[l->n++] = (uint32_t)l->bytes;
        l->bytes += n;
    }
    int rc = errno ? dt_err_open(err, dir) : 0;
    closedir(d);
    if (l->n)
        qsort_r(l->at, (size_t)l->n, sizeof *l->at, by_name, l->text);
    return rc;
}

struct seen { dev_t dev; ino_t ino; };

struct walk {
    dt_meta *m;
    const struct dt_meta_how *how;
    struct seen *seen;
    int64_t n_seen, cap;
};

/* The caption file of a picture, or NULL.  A link that leads nowhere is one, which cannot be read. */
static char *caption_file(const char *path, const char *ext)
{
    const char *const any[] = { ".txt", ".caption" };
    for (int i = 0; i < (ext ? 1 : 2); i++) {
        char *name = dt_sprintf("%.*s%s", (int)(strlen(path) - strlen(dt_path_ext(path))), path, ext ? ext : any[i]);
        if (faccessat(AT_FDCWD, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            return name;
        free(name);
    }
    return NULL;
}

char *dt_meta_trimmed(char *p)
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

    if (txt && dt_file_read_regular(&text, &n, txt, DT_MAX_CAPTION_BYTES, &err) == 0 && strlen(text) < n)
        dt_err_set(&err, DT_EDATA, "%s: holds a NUL byte", txt);
    if (err.code == DT_ENOMEM)                  /* which is no fault of the caption's */
        dt_must(NULL);
    if (err.code) {
        dt_meta_skip(m, "%s", err.msg);
    } else {
        char *p = text ? dt_meta_trimmed(text) : "";
        if (text && how->first_line) {
            p[strcspn(p, "\r\n")] = 0;
            p = dt_meta_trimmed(p);
        }
        dt_meta_add(m, &(dt_meta_item){ .path = path, .text = text || !how->caption ? p : how->caption, .tar = -1,
                    .repeats = how->repeats, .sub = how->sub }, txt ? txt : path);
    }
    free(text);
    free(txt);
}

static int walk_folder(struct walk *w, const char *dir, dt_err *err)
{
    struct names l = { 0 };
    struct stat st;

    if (stat(dir, &st) < 0)
        return dt_err_open(err, dir);
    for (int64_t i = 0; i < w->n_seen; i++)
        if (w->seen[i].dev == st.st_dev && w->seen[i].ino == st.st_ino)
            return 0;
    int rc = list_names(&l, dir, err);
    if (rc == 0) {
        dt_grow(&w->seen, &w->cap, w->n_seen + 1, sizeof *w->seen);
        w->seen[w->n_seen++] = (struct seen){ st.st_dev, st.st_ino };
    }
    for (int64_t i = 0; rc == 0 && i < l.n; i++) {
        const char *name = l.text + l.at[i];
        char *path = dt_path_join(dir, name + 1);
        dt_err bad = { 0 };
        if (!*name && dt_is_dir(path)) {
            if (!w->how->flat)
                walk_folder(w, path, &bad);
        } else if (is_picture(path)) {
            add_picture(w->m, path, w->how);
        } else if (dt_is_tar(path) && !w->how->flat) {
            dt_meta_add_tar(w->m, path, w->how, &bad);
        }
        if (bad.code == DT_ENOMEM)
            dt_must(NULL);
        if (bad.code)
            dt_meta_skip(w->m, "%s", bad.msg);
        free(path);
    }
    free(l.text);
    free(l.at);
    return rc;
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
    DIR *d = opendir(dir);
    int named = 0;
    if (!d && errno == ENOMEM)
        dt_must(NULL);
    for (struct dirent *e; d && named >= 0 && (e = readdir(d)); ) {
        char *path = dt_path_join(dir, e->d_name);
        if (visible(e))
            named = !dt_is_dir(path) ? (is_picture(path) ? -1 : named) : repeats_of(e->d_name) ? 1 : -1;
        free(path);
    }
    if (d)
        closedir(d);
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
