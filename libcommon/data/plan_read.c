/* plan_read.c - reads dt-plan(5), line by line.  Of an item its id and its place in the file are kept, and
 * it is read again when it is wanted; what comes through a pipe is copied to a temporary file for that. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "base/spool.h"
#include "data/media.h"
#include "data/plan.h"

#define MAX_LINE_BYTES (64 << 20)
#define MAX_ITEMS INT32_MAX
#define MAX_BATCH_ITEMS 65536
#define MAX_SIDE_PX 65536
#define MAX_RESIZE_PX (1 << 30)

struct dt_batches {
    FILE   *f;
    char   *name;               /* for messages */
    dt_plan_info info;
    cJSON  *header;
    int32_t *id;                /* [info.items], ascending */
    int64_t *at;                /* [info.items + 1] where lines of items begin in `items`, and the last one's end */
    FILE   *copy;               /* of items that came through a pipe */
    int     items;              /* descriptor of f, or of the copy */
    dt_batch_item *slot;        /* of the current batch */
    dt_plan_item **own;         /* [slots] its items; NULL: not read */
    int64_t slots, owns;
    cJSON  *doc;                /* its line */
    char   *line;               /* the current one; `held`: to be read again */
    int64_t cap, n_line;
    bool    held, ended;
    off_t   first;              /* where the batches begin, -1 on a pipe */
    int64_t first_line;         /* number of the line before it */
    int64_t last, seen;         /* index of the batch before; batches since the first, -1 after a seek */
};

/* 1 and b->line, 0 at the end of the file. */
static int next_line(dt_batches *b, dt_err *err)
{
    int64_t n = 0;
    if (b->held) {
        b->held = false;
        return 1;
    }
    for (;;) {
        dt_grow(&b->line, &b->cap, n + 4096, 1);
        if (!fgets(b->line + n, b->cap - n, b->f))
            break;
        n += strlen(b->line + n);
        if (n && b->line[n - 1] == '\n')
            break;
        if (n > MAX_LINE_BYTES)
            return dt_err_set(err, DT_EDATA, "%s: line %lld is longer than %d bytes", b->name,
                              (long long)b->n_line + 1, MAX_LINE_BYTES);
    }
    if (ferror(b->f))
        return dt_err_sys(err, DT_EDATA, "%s: cannot read", b->name);
    b->n_line += n > 0;
    return n > 0;
}

/* The line as an object (caller deletes), and in `what` the words for messages about it. */
static int parse_line(dt_batches *b, cJSON **o, char what[512], dt_err *err)
{
    snprintf(what, 512, "%s: line %lld", b->name, (long long)b->n_line);
    *o = cJSON_Parse(b->line);
    if (*o && cJSON_IsObject(*o))
        return 0;
    cJSON_Delete(*o);
    *o = NULL;
    return dt_err_set(err, DT_EDATA, "%s: not a JSON object", what);
}

static int pair(int out[2], const cJSON *o, const char *key, int min, int max, const char *what, dt_err *err)
{
    int64_t v[2];
    int n = 0, rc = dt_json_ints_or(v, &n, 2, o, key, what, err);
    if (rc < 0)
        return rc;
    if (n != 2 || v[0] < min || v[0] > max || v[1] < min || v[1] > max)
        return dt_err_set(err, DT_EDATA, "%s: '%s' must be two integers from %d to %d", what, key, min, max);
    out[0] = v[0];
    out[1] = v[1];
    return 0;
}

static int read_settings(dt_plan_info *i, const cJSON *header, const char *what, dt_err *err)
{
    const struct dt_data_settings def = DT_DATA_DEFAULTS;
    const cJSON *o = cJSON_GetObjectItemCaseSensitive(header, "settings");
    int n = 0,
        rc = dt_json_int_or(&i->image_sample_size, o, "image_sample_size", def.image_sample_size, 1, MAX_SIDE_PX, what,
                            err);
    if (rc == 0)
        rc = dt_json_int_or(&i->multiple, o, "multiple", def.multiple, 1, MAX_SIDE_PX, what, err);
    if (rc == 0)
        rc = dt_json_bool_or(&i->enable_bucket, o, "enable_bucket", false, what, err);
    if (rc == 0)
        rc = dt_json_ints_or(i->fix, &n, 2, o, "fix_sample_size", what, err);
    if (rc == 0 && n &&
        (n != 2 || i->fix[0] < 1 || i->fix[0] > MAX_SIDE_PX || i->fix[1] < 1 || i->fix[1] > MAX_SIDE_PX))
        rc = dt_err_set(err, DT_EDATA, "%s: 'fix_sample_size' must be two integers from 1 to %d", what, MAX_SIDE_PX);
    return rc;
}

static int read_header(dt_batches *b, dt_err *err)
{
    char what[512];
    cJSON *o = NULL;
    int64_t version, shard[2] = { 0, 1 };
    int n = 0;
    dt_plan_info *i = &b->info;

    int rc = next_line(b, err);
    if (rc <= 0)
        return rc < 0 ? rc : dt_err_set(err, DT_EDATA, "%s: empty, not a plan", b->name);
    if (!strstr(b->line, "\"dt_plan\""))
        return dt_err_set(err, DT_EDATA, "%s: not a plan: line 1 has no 'dt_plan'", b->name);
    if ((rc = parse_line(b, &o, what, err)) < 0)
        return rc;
    const struct { const char *key; int64_t *v, min, max; } field[] = {
        { "dt_plan", &version, 1, 1 }, { "seed", &i->seed, 0, 1ll << 53 }, { "items", &i->items, 0, MAX_ITEMS },
        { "epochs", &i->epochs, 0, 1ll << 53 }, { "batches", &i->batches, 0, 1ll << 53 },
        { "samples", &i->samples, 0, 1ll << 53 }, { "steps", &i->steps, 0, 1ll << 53 },
        { "train_batch_size", &i->train_batch_size, 1, MAX_BATCH_ITEMS },
        { "gradient_accumulation_steps", &i->gradient_accumulation_steps, 1, INT32_MAX },
        { "world_size", &i->world_size, 1, INT32_MAX },
    };
    for (size_t k = 0; rc == 0 && k < sizeof field / sizeof *field; k++)
        rc = dt_json_int(field[k].v, o, field[k].key, field[k].min, field[k].max, what, err);
    if (rc == 0)
        rc = dt_json_ints_or(shard, &n, 2, o, "shard", what, err);
    if (rc == 0 && n && (n != 2 || shard[0] < 0 || shard[1] <= shard[0]))
        rc = dt_err_set(err, DT_EDATA, "%s: 'shard' must be [i, n] with i < n", what);
    i->shard = n ? shard[0] : 0;
    i->shards = n ? shard[1] : 1;
    if (rc == 0)
        rc = read_settings(i, o, what, err);
    b->header = o;
    return rc;
}

/* "tar": {"file": ..., "offset": ..., "bytes": ...} */
static int read_place(dt_plan_item *it, const cJSON *o, const char *what, dt_err *err)
{
    const cJSON *t = cJSON_GetObjectItemCaseSensitive(o, "tar");
    int rc = 0;
    it->tar = NULL;
    it->off = it->bytes = 0;
    if (!t || cJSON_IsNull(t))
        return 0;
    if ((rc = dt_json_str_or(&it->tar, t, "file", NULL, what, err)) < 0 ||
        (rc = dt_json_int(&it->off, t, "offset", 0, 1ll << 53, what, err)) < 0 ||
        (rc = dt_json_int(&it->bytes, t, "bytes", 0, (int64_t)DT_IMAGE_MAX_BYTES, what, err)) < 0)
        return rc;
    return it->tar ? 0 : dt_err_set(err, DT_EDATA, "%s: 'tar' has no 'file'", what);
}

int dt_plan_item_read(char **data, size_t *bytes, const dt_plan_item *it, dt_err *err)
{
    if (!it->tar)
        return dt_file_read_regular(data, bytes, it->path, DT_IMAGE_MAX_BYTES, err);
    int rc = dt_file_read_part(data, it->tar, it->off, it->bytes, err);
    *bytes = rc < 0 ? 0 : (size_t)it->bytes;
    if (rc < 0)
        dt_err_prefix(err, "%s", it->path);
    return rc;
}

/* Strings are borrowed from o. */
static int parse_item(dt_plan_item *it, const cJSON *o, int64_t min_id, const char *what, dt_err *err)
{
    int wh[2] = { 0 }, rc;
    if ((rc = dt_json_int(&it->id, o, "item", min_id, MAX_ITEMS, what, err)) < 0 ||
        (rc = dt_json_str_or(&it->path, o, "path", NULL, what, err)) < 0 ||
        (rc = dt_json_str_or(&it->text, o, "text", "", what, err)) < 0 ||
        (rc = pair(wh, o, "size", 1, MAX_SIDE_PX, what, err)) < 0 || (rc = read_place(it, o, what, err)) < 0)
        return rc;
    if (!it->path)
        return dt_err_set(err, DT_EDATA, "%s: 'path' is missing", what);
    it->w = wh[0];
    it->h = wh[1];
    return 0;
}

/* Where the line that comes next begins, once it is there to be read again. */
static int64_t here(const dt_batches *b) { return ftello(b->copy ? b->copy : b->f); }

static int read_item(dt_batches *b, int64_t k, dt_err *err)
{
    char what[512];
    cJSON *o;
    dt_plan_item it;
    int rc = next_line(b, err);
    if (rc <= 0)
        return rc < 0 ? rc : dt_err_set(err, DT_EDATA, "%s: cut off: %lld items announced, %lld there", b->name,
                                        (long long)b->info.items, (long long)k);
    if ((rc = parse_line(b, &o, what, err)) < 0)
        return rc;
    rc = parse_item(&it, o, k ? b->id[k - 1] + 1 : 0, what, err);
    if (rc == 0 && b->copy && fputs(b->line, b->copy) < 0)
        rc = dt_err_sys(err, DT_EIO, "%s: cannot write a temporary copy", b->name);
    if (rc == 0) {
        b->id[k] = (int32_t)it.id;
        b->at[k + 1] = here(b);
        if ((int64_t)it.w * it.h > b->info.largest[0] * b->info.largest[1])
            b->info.largest[0] = it.w, b->info.largest[1] = it.h;
    }
    cJSON_Delete(o);
    return rc;
}

/* A file that can be read at any place, for the items. */
static int open_items(dt_batches *b, dt_err *err)
{
    b->items = fileno(b->f);
    if (b->items >= 0 && ftello(b->f) >= 0)
        return 0;
    int fd = dt_unnamed_file(NULL, err);
    if (fd < 0)
        return fd;
    b->copy = dt_must(fdopen(fd, "w"));
    b->items = fd;
    return 0;
}

static int read_items(dt_batches *b, dt_err *err)
{
    int64_t ids = 0, ats = 0;
    int rc = open_items(b, err);
    if (rc < 0)
        return rc;
    dt_grow(&b->at, &ats, 1, sizeof *b->at);
    b->at[0] = here(b);
    for (int64_t k = 0; k < b->info.items; k++) {
        dt_grow(&b->id, &ids, k + 1, sizeof *b->id);        /* as lines come, not as the header promises */
        dt_grow(&b->at, &ats, k + 2, sizeof *b->at);
        if ((rc = read_item(b, k, err)) < 0)
            return rc;
    }
    b->id = dt_realloc(b->id, (size_t)(b->info.items + 1) * sizeof *b->id);
    b->at = dt_realloc(b->at, (size_t)(b->info.items + 1) * sizeof *b->at);
    return b->copy && fflush(b->copy) ? dt_err_sys(err, DT_EIO, "%s: cannot write a temporary copy", b->name) : 0;
}

/* Line k of the items; caller frees. */
static char *line_of(const dt_batches *b, int64_t k)
{
    size_t n = 0, bytes = (size_t)(b->at[k + 1] - b->at[k]);
    char *line = dt_alloc(bytes + 1);
    for (ssize_t got = 1; n < bytes && got; n += got > 0 ? (size_t)got : 0)
        if ((got = pread(b->items, line + n, bytes - n, b->at[k] + (off_t)n)) < 0 && errno != EINTR)
            break;
    return line;
}

/* An item and its strings in one block. */
static dt_plan_item *in_one(const dt_plan_item *it)
{
    size_t path = strlen(it->path) + 1, text = strlen(it->text) + 1, tar = it->tar ? strlen(it->tar) + 1 : 0;
    dt_plan_item *own = dt_alloc(sizeof *own + path + text + tar);
    char *s = (char *)(own + 1);
    *own = *it;
    own->path = memcpy(s, it->path, path);
    own->text = memcpy(s + path, it->text, text);
    own->tar = tar ? memcpy(s + path + text, it->tar, tar) : NULL;
    return own;
}

int dt_batches_item(const dt_batches *b, int64_t k, dt_plan_item **out, dt_err *err)
{
    char what[512], *line = line_of(b, k);
    dt_plan_item it = { 0 };
    snprintf(what, sizeof what, "%s: item %d", b->name, b->id[k]);
    cJSON *o = cJSON_Parse(line);
    int rc = cJSON_IsObject(o) ? parse_item(&it, o, 0, what, err) : DT_EDATA;
    if (!o || rc < 0 || it.id != b->id[k])
        rc = dt_err_set(err, DT_EDATA, "%s: the file has changed while it is in use", what);
    *out = rc == 0 ? in_one(&it) : NULL;
    cJSON_Delete(o);
    free(line);
    return rc;
}

static int by_id(const void *key, const void *id)
{
    int32_t a = *(const int32_t *)key, b = *(const int32_t *)id;
    return a < b ? -1 : a > b;
}

static int read_slot(const dt_batches *b, dt_batch_item *s, const dt_batch *batch, const cJSON *o, const char *what,
                     dt_err *err)
{
    int64_t id;
    int resize[2] = { 0 }, crop[2] = { 0 }, rc;
    *s = (dt_batch_item){ 0 };
    if ((rc = dt_json_int(&id, o, "item", 0, MAX_ITEMS, what, err)) < 0 ||
        (rc = pair(resize, o, "resize", 1, MAX_RESIZE_PX, what, err)) < 0 ||
        (rc = pair(crop, o, "crop", 0, MAX_RESIZE_PX, what, err)) < 0 ||
        (rc = dt_json_bool_or(&s->flip, o, "flip", false, what, err)) < 0 ||
        (rc = dt_json_bool_or(&s->drop, o, "drop", false, what, err)) < 0 ||
        (rc = dt_json_str_or(&s->text, o, "text", NULL, what, err)) < 0)
        return rc;
    const int32_t *at = bsearch(&(int32_t){ (int32_t)id }, b->id, (size_t)b->info.items, sizeof *b->id, by_id);
    if (!at)
        return dt_err_set(err, DT_EDATA, "%s: item %lld is not in the plan", what, (long long)id);
    if (crop[0] > resize[0] - batch->w || crop[1] > resize[1] - batch->h)
        return dt_err_set(err, DT_EDATA, "%s: 'crop' of item %lld reaches outside 'resize'", what, (long long)id);
    s->at = at - b->id;
    s->text = s->drop ? "" : s->text;
    s->resize_w = resize[0];
    s->resize_h = resize[1];
    s->crop_x = crop[0];
    s->crop_y = crop[1];
    return 0;
}

static int read_batch(dt_batches *b, dt_batch *r, const cJSON *o, const char *what, dt_err *err)
{
    const cJSON *items = cJSON_GetObjectItemCaseSensitive(o, "items"), *e;
    int wh[2] = { 0 }, rc, n = cJSON_GetArraySize(items);

    if ((rc = dt_json_int(&r->index, o, "batch", b->last + 1, 1ll << 53, what, err)) < 0 ||
        (rc = dt_json_int(&r->epoch, o, "epoch", 0, 1ll << 53, what, err)) < 0 ||
        (rc = dt_json_bool_or(&r->is_short, o, "short", false, what, err)) < 0 ||
        (rc = pair(wh, o, "size", 1, MAX_SIDE_PX, what, err)) < 0)
        return rc;
    if (!cJSON_IsArray(items) || n < 1 || n > MAX_BATCH_ITEMS)
        return dt_err_set(err, DT_EDATA, "%s: 'items' must be a list of 1 to %d objects", what, MAX_BATCH_ITEMS);
    dt_grow(&b->slot, &b->slots, n, sizeof *b->slot);
    r->w = wh[0];
    r->h = wh[1];
    r->n = 0;
    r->item = b->slot;
    cJSON_ArrayForEach(e, items)
        if ((rc = read_slot(b, &b->slot[r->n++], r, e, what, err)) < 0)
            return rc;
    b->last = r->index;
    b->seen += b->seen >= 0;
    return 1;
}

static int read_footer(dt_batches *b, const cJSON *o, const char *what, dt_err *err)
{
    int64_t batches;
    int rc = dt_json_int(&batches, o, "batches", 0, 1ll << 53, what, err);
    if (rc == 0 && b->seen >= 0 && batches != b->seen)
        rc = dt_err_set(err, DT_EDATA, "%s: the plan has %lld batches, %lld are here", what, (long long)batches,
                        (long long)b->seen);
    b->ended = rc == 0;
    return rc;
}

/* Lets go of the current batch. */
static void leave(dt_batches *b)
{
    for (int64_t i = 0; i < b->owns; i++) {
        free(b->own[i]);
        b->own[i] = NULL;
    }
    cJSON_Delete(b->doc);
    b->doc = NULL;
}

int dt_batches_next_bare(dt_batches *b, dt_batch *batch, dt_err *err)
{
    char what[512];

    leave(b);
    if (b->ended)
        return 0;
    int rc = next_line(b, err);
    if (rc <= 0)
        return rc < 0 ? rc : dt_err_set(err, DT_EDATA, "%s: cut off: the footer is missing after line %lld", b->name,
                                        (long long)b->n_line);
    if ((rc = parse_line(b, &b->doc, what, err)) < 0)
        return rc;
    return cJSON_GetObjectItemCaseSensitive(b->doc, "end") ? read_footer(b, b->doc, what, err)
                                                           : read_batch(b, batch, b->doc, what, err);
}

int dt_batches_next(dt_batches *b, dt_batch *batch, dt_err *err)
{
    int rc = dt_batches_next_bare(b, batch, err);
    for (int i = 0; rc == 1 && i < batch->n; i++) {
        dt_batch_item *s = &batch->item[i];
        if (i == b->owns) {
            dt_grow(&b->own, &b->owns, i + 1, sizeof *b->own);
            memset(b->own + i, 0, (size_t)(b->owns - i) * sizeof *b->own);
        }
        int bad = dt_batches_item(b, s->at, &b->own[i], err);
        if (bad < 0)
            return bad;
        s->item = b->own[i];
        s->text = s->text ? s->text : s->item->text;
    }
    return rc;
}

/* Of a batch line, whose first field it is: dt-plan(5); -1: it is no batch. */
static int64_t index_of(const char *line)
{
    long long at;
    return sscanf(line, " { \"batch\" : %lld", &at) == 1 ? at : -1;
}

int dt_batches_seek(dt_batches *b, int64_t k, dt_err *err)
{
    if (k <= b->last) {
        if (b->first < 0 || fseeko(b->f, b->first, SEEK_SET) < 0)
            return dt_err_set(err, DT_EDATA, "%s: cannot go back to batch %lld in a pipe", b->name, (long long)k);
        b->n_line = b->first_line;
        b->held = b->ended = false;
        b->last = -1;
    }
    b->seen = -1;
    while (!b->ended) {
        int rc = next_line(b, err);
        if (rc < 0)
            return rc;
        if (rc == 0)                    /* dt_batches_next() will say that the footer is missing */
            return 0;
        int64_t at = index_of(b->line);
        if (at < 0 || at >= k) {
            b->held = true;
            return 0;
        }
        b->last = at;
    }
    return 0;
}

int dt_batches_open_file(dt_batches **out, FILE *f, const char *name, dt_err *err)
{
    dt_batches *b = dt_alloc(sizeof *b);
    int rc;

    b->last = -1;
    b->name = dt_strdup(name);
    b->f = f;
    if ((rc = read_header(b, err)) == 0)
        rc = read_items(b, err);
    if (rc < 0) {
        dt_batches_close(&b);
        return rc;
    }
    b->first = ftello(b->f);
    b->first_line = b->n_line;
    *out = b;
    return 0;
}

int dt_batches_open(dt_batches **out, const char *path, dt_err *err)
{
    bool in = !strcmp(path, "-");
    FILE *f = in ? stdin : fopen(path, "re");
    return f ? dt_batches_open_file(out, f, in ? "<stdin>" : path, err)
             : dt_err_open(err, path);
}

void dt_batches_close(dt_batches **pb)
{
    dt_batches *b = *pb;
    *pb = NULL;
    if (!b)
        return;
    if (b->f && b->f != stdin)
        fclose(b->f);
    leave(b);
    if (b->copy)
        fclose(b->copy);
    cJSON_Delete(b->header);
    free(b->own);
    free(b->id);
    free(b->at);
    free(b->slot);
    free(b->line);
    free(b->name);
    free(b);
}

const dt_plan_info *dt_batches_info(const dt_batches *b) { return &b->info; }
const cJSON *dt_batches_header(const dt_batches *b) { return b->header; }
int64_t dt_batches_id(const dt_batches *b, int64_t k) { return b->id[k]; }
int64_t dt_batches_items(const dt_batches *b) { return b->info.items; }
