/* meta_tar.c - webdataset: tar files whose members of one key, next to each other, are one sample.
 *
 *     shard-0000.tar:  000001.jpg  000001.txt  000002.png  000002.json ...
 *
 * The key is the name up to the first dot behind the last slash, what follows is the field: a picture's extension; txt,
 * caption, or json with "caption" or "text".  Members of other fields are left alone, and counted.  Where a picture's
 * bytes begin is kept, so that it is later read from there without going through the tar; links and sparse members, whose
 * bytes are elsewhere, are skipped. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "data/meta.h"

#define MAX_TARS 100000

enum { NO_CAPTION, JSON_CAPTION, FILE_CAPTION };    /* the later wins */

struct sample {
    char   *key;
    char   *picture;            /* name of the member */
    int64_t off, bytes;
    char   *text;
    int     from;
};

struct tar {
    dt_meta    *m;
    const char *path;
    int         index;          /* in m->tars */
    const struct dt_meta_how *how;
    struct sample s;
    int64_t     pictures, others, alone;    /* alone: samples that have no picture */
};

static bool is_field(const char *field, const char *const *list)
{
    for (; *list; list++)
        if (!strcasecmp(field, *list))
            return true;
    return false;
}

/* The sample is complete: next. */
static void flush(struct tar *t)
{
    struct sample *s = &t->s;
    if (s->picture) {
        char *path = dt_sprintf("%s/%s", t->path, s->picture);
        const char *text = s->text ? s->text : t->how->caption ? t->how->caption : "";
        dt_meta_add(t->m, &(dt_meta_item){ .path = path, .text = text, .tar = t->index, .off = s->off,
                    .bytes = s->bytes, .repeats = t->how->repeats, .sub = t->how->sub }, path);
        t->pictures++;
        free(path);
    } else if (s->key) {
        t->alone++;
    }
    free(s->key);
    free(s->picture);
    free(s->text);
    *s = (struct sample){ 0 };
}

static int read_member(struct archive *a, int64_t bytes, const char *name, char **text, dt_err *err)
{
    char *p = dt_alloc((size_t)bytes + 1);
    la_ssize_t got = 0, n = 0;
    while (n < bytes && (got = archive_read_data(a, p + n, (size_t)(bytes - n))) > 0)
        n += got;
    *text = p;
    if (n == bytes)
        return 0;
    bool memory = archive_errno(a) == ENOMEM;
    return dt_err_set(err, memory ? DT_ENOMEM : DT_EDATA, memory ? "%s: no memory to read it" : "%s: cut off", name);
}

/* *caption stays NULL when there is none in it. */
static int json_caption(char **caption, const char *text, size_t bytes, const char *what)
{
    cJSON *o = NULL;
    int rc = dt_json_parse(&o, text, bytes, what, NULL);
    char *c = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "caption"));
    c = c ? c : cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "text"));
    *caption = c ? dt_strdup(dt_meta_trimmed(c)) : NULL;
    cJSON_Delete(o);
    return rc;
}

/* For the list of what was skipped. */
static void not_used(struct tar *t, const char *name, const char *why)
{
    char *line = dt_sprintf("%s/%s: %s", t->path, name, why);
    dt_strs_add(&t->m->skipped, line);
    free(line);
}

static int take_caption(struct tar *t, struct archive *a, int64_t bytes, const char *name, int from, dt_err *err)
{
    char *raw = NULL, *text = NULL;
    if (from < t->s.from)
        return 0;
    if (bytes > DT_MAX_CAPTION_BYTES) {
        not_used(t, name, "a caption beyond the limit of 1 MiB");
        return 0;
    }
    int rc = read_member(a, bytes, name, &raw, err);
    if (rc == 0 && from == JSON_CAPTION && json_caption(&text, raw, (size_t)bytes, name) < 0)
        not_used(t, name, "a caption that is not valid JSON");
    else if (rc == 0 && from != JSON_CAPTION && strlen(raw) < (size_t)bytes)
        not_used(t, name, "a caption that holds a NUL byte");
    else if (rc == 0 && from != JSON_CAPTION)
        text = dt_strdup(dt_meta_trimmed(raw));
    free(raw);
    if (text) {
        free(t->s.text);
        t->s.text = text;
        t->s.from = from;
    }
    return rc;
}

static int take_member(struct tar *t, struct archive *a, struct archive_entry *e, dt_err *err)
{
    static const char *const picture[] = { "jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", NULL };
    static const char *const caption[] = { "txt", "caption", NULL };
    const char *name = archive_entry_pathname(e), *base = name ? dt_path_base(name) : "", *dot = strchr(base, '.');
    int64_t bytes = archive_entry_size(e);
    bool link = archive_entry_hardlink(e) || archive_entry_filetype(e) == AE_IFLNK;
    if (!name || (archive_entry_filetype(e) != AE_IFREG && !link) || !dot || dot == base || bytes < 0)
        return 0;
    size_t n = (size_t)(dot - name);
    if (t->s.key && (strlen(t->s.key) != n || memcmp(t->s.key, name, n)))
        flush(t);
    if (!t->s.key)
        t->s.key = dt_sprintf("%.*s", (int)n, name);
    if ((link || archive_entry_sparse_count(e)) && (is_field(dot + 1, picture) || is_field(dot + 1, caption))) {
        not_used(t, name, link ? "a link to another member" : "a sparse member");
        t->m->entries += is_field(dot + 1, picture);
        return 0;
    }
    if (is_field(dot + 1, picture) && !t->s.picture) {
        t->s.picture = dt_strdup(name);
        t->s.off = archive_filter_bytes(a, 0);
        t->s.bytes = bytes;
        return 0;
    }
    if (is_field(dot + 1, caption))
        return take_caption(t, a, bytes, name, FILE_CAPTION, err);
    if (!strcasecmp(dot + 1, "json"))
        return take_caption(t, a, bytes, name, JSON_CAPTION, err);
    t->others++;
    return 0;
}

static int read_members(struct tar *t, struct archive *a, dt_err *err)
{
    struct archive_entry *e;
    int got, rc = 0;
    while (rc == 0 && ((got = archive_read_next_header(a, &e)) == ARCHIVE_OK || got == ARCHIVE_WARN))
        rc = take_member(t, a, e, err);
    if (rc == 0 && got != ARCHIVE_EOF)
        rc = dt_err_set(err, archive_errno(a) == ENOMEM ? DT_ENOMEM : DT_EDATA, "%s",
                        archive_error_string(a) ? archive_error_string(a) : "not a tar file");
    flush(t);
    if (rc < 0)
        dt_err_prefix(err, "%s", t->path);
    return rc;
}

static void say_read(const struct tar *t)
{
    if (!t->others && !t->alone)
        return;
    char *line =
        dt_sprintf("%s: %lld pictures; %lld members of other kinds and %lld samples without a picture are not used%s",
                   t->path, (long long)t->pictures, (long long)t->others, (long long)t->alone,
                   t->alone ? " (what belongs together must be next to each other: tar --sort=name)" : "");
    dt_strs_add(&t->m->notes, line);
    free(line);
}

int dt_meta_add_tar(dt_meta *m, const char *path, const struct dt_meta_how *how, dt_err *err)
{
    struct tar t = { .m = m, .path = path, .index = (int)m->tars.n, .how = how };
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return dt_err_open(err, path);
    struct archive *a = archive_read_new();
    int rc = a ? 0 : dt_err_set(err, DT_ENOMEM, "%s: no memory to read it", path);
    if (rc == 0) {
        archive_read_support_format_tar(a);         /* and no filter: a compressed one cannot be read from the middle */
        if (archive_read_open_fd(a, fd, 1 << 16) != ARCHIVE_OK)
            rc = dt_err_set(err, DT_EDATA, "%s: %s", path, archive_error_string(a));
    }
    dt_strs_add(&m->tars, path);
    if (rc == 0)
        rc = read_members(&t, a, err);
    say_read(&t);
    archive_read_free(a);
    close(fd);
    return rc;
}

/* --- names --- */

bool dt_is_tar(const char *path)
{
    return !strcasecmp(dt_path_ext(path), ".tar");
}

static bool end_of_range(const char *p, const char **end, int64_t *v)
{
    size_t n = strspn(p, "0123456789");
    *v = n && n < 10 ? atoll(p) : -1;
    *end = p + n;
    return *v >= 0;
}

/* Each {0000..0012}, with its zeros, and each {a,b}, in every combination. */
static int expand(dt_strs *out, const char *name, dt_err *err)
{
    const char *open = strchr(name, '{'), *close = open ? strchr(open, '}') : NULL, *p;
    int64_t from, to;
    int rc = 0;
    if (!close) {
        dt_strs_add(out, name);
        return out->n <= MAX_TARS ? 0 : dt_err_set(err, DT_EUSAGE, "'%s': more than %d files", name, MAX_TARS);
    }
    int width = (int)strspn(open + 1, "0123456789"), head = (int)(open - name);
    if (end_of_range(open + 1, &p, &from) && !strncmp(p, "..", 2) && end_of_range(p + 2, &p, &to) && p == close) {
        for (int64_t i = from; rc == 0 && i <= to; i++) {
            char *one = dt_sprintf("%.*s%0*lld%s", head, name, width, (long long)i, close + 1);
            rc = expand(out, one, err);
            free(one);
        }
        return rc;
    }
    for (p = open + 1; rc == 0 && p <= close; ) {
        int n = (int)strcspn(p, ",}");
        char *one = dt_sprintf("%.*s%.*s%s", head, name, n, p, close + 1);
        rc = expand(out, one, err);
        free(one);
        p += n + 1;
    }
    return rc;
}

int dt_meta_read_tars(dt_meta *m, const char *name, dt_err *err)
{
    dt_strs all = { 0 };
    struct dt_meta_how how = { .repeats = 1, .sub = -1 };
    *m = (dt_meta){ 0 };
    if (dt_exists(name))
        dt_strs_add(&all, name);
    int rc = all.n ? 0 : expand(&all, name, err);
    for (int64_t i = 0; i < all.n && rc == 0; i++)
        rc = dt_meta_add_tar(m, all.v[i], &how, err);
    dt_strs_release(&all);
    return rc < 0 ? rc : dt_meta_check(m, err);
}
