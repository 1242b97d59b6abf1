/* meta.h - what a data set says about its pictures: a .json list, .jsonl lines, a .csv table, or a folder of
 * pictures with captions in .txt or .caption files of the same name, webdataset tars.  (TOML files of other
 * trainers: dataset.h.)
 *
 * Fields: file_path (required), text, type ("image"), width, height (numbers or strings); others are kept. */
#ifndef DT_DATA_META_H
#define DT_DATA_META_H
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "base/mem.h"
#include "base/tape.h"

typedef struct dt_meta_item {
    const char *path;   /* joined with the root */
    const char *text;   /* caption, "" when there is none; valid UTF-8 */
    const char *extra;  /* JSON object of the other fields, or NULL */
    int     w, h;       /* px as the metadata says, 0 when it does not */
    int     tar;        /* of m->tars: its bytes are [off, off + bytes) of that file; -1: path is the file */
    int64_t off, bytes;
    int64_t repeats;    /* how often an epoch draws it: 1, or as a kohya folder or dataset_config says */
    int     sub;        /* the subset of a dataset_config that it is from, otherwise -1 */
} dt_meta_item;

/* What stays in memory of a picture; the rest is on a tape until it is wanted. */
typedef struct dt_meta_key {
    int32_t  id;        /* position in the metadata, from 0: unusable entries leave gaps */
    uint32_t from : 31; /* of m->from */
    uint32_t mute : 1;  /* has no caption */
    /* of the plan: */
    int32_t  queue;     /* pictures of one queue can share a batch; < 0: left out */
    uint16_t w1, h1;    /* px - 1, as the picture is */
} dt_meta_key;

typedef struct dt_meta {
    dt_meta_key *v;     /* ascending by id */
    int64_t n, cap;
    int64_t entries;    /* those that could not be used included */
    dt_strs skipped;    /* "FILE: entry 3: 'file_path' must be a string" */
    dt_strs tars;       /* files that pictures are in */
    dt_strs notes;      /* what was read in a way that should be known: "10_cat dog: ..." */
    struct dt_meta_from { int64_t repeats; int sub; } *from;    /* what neighbours have in common */
    int64_t n_from, from_cap;
    dt_tape *tape;
    char   *rec;        /* the record that is being made */
    int64_t rec_cap;
    dt_err  wrong;      /* the first error of adding */
    char *(*reword)(const void *by, const char *text);  /* the caption to keep, caller frees; NULL: as it is */
    const void *by;
} dt_meta;

/* All of m->v[k], strings borrowed until the next call with the same reader. */
int  dt_meta_get(const dt_meta *m, int64_t k, dt_tape_reader *r, dt_meta_item *it, dt_err *err);

/* Reads `path`: a folder, "-" (JSON, JSON lines or CSV, told apart by the first character), or a file.  Relative
 * paths inside are joined to root; root NULL means the metadata file's own folder.  A folder is read
 * recursively in the order of its names, hidden files left out, each folder once however it is linked.
 * DT_EDATA for what makes the rest unreadable (syntax, no file_path column); a bad entry is skipped and listed. */
int  dt_meta_read(dt_meta *m, const char *path, const char *root, dt_err *err);
void dt_meta_release(dt_meta *m);
/* What went wrong where it could not be said: after dt_meta_put() and dt_meta_add(). */
int  dt_meta_check(const dt_meta *m, dt_err *err);

/* A folder within a larger data set. */
struct dt_meta_how {
    const char *ext;        /* of caption files; NULL: .txt, otherwise .caption */
    const char *caption;    /* of pictures without such a file; NULL: none */
    bool        flat;       /* not the folders in it */
    bool        first_line; /* of a caption file only, as kohya's scripts do */
    int64_t     repeats;
    int         sub;
};
int  dt_meta_add_folder(dt_meta *m, const char *dir, const struct dt_meta_how *how, dt_err *err);

/* A webdataset tar; and all that a name such as "shards/{0000..0012}.tar" stands for. */
int  dt_meta_add_tar(dt_meta *m, const char *path, const struct dt_meta_how *how, dt_err *err);
int  dt_meta_read_tars(dt_meta *m, const char *name, dt_err *err);
bool dt_is_tar(const char *path);

/* One more picture; `path` is taken as it is.  Counts as an entry. */
void dt_meta_put(dt_meta *m, const dt_meta_item *it);
/* The same; a text that is not UTF-8 is skipped and listed as `what`'s. */
void dt_meta_add(dt_meta *m, const dt_meta_item *it, const char *what);
/* An entry that cannot be used, and the line that says why. */
void dt_meta_skip(dt_meta *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Of a caption, or of a JSON file that holds one. */
enum { DT_MAX_CAPTION_BYTES = 1 << 20 };
/* Without byte order mark and the white space around it; within `text`, which is cut. */
char *dt_meta_trimmed(char *text);

/* Folders named as kohya's scripts want it: nothing but folders in it, each "N_words", 1 <= N <= 999.  Pictures of such
 * a folder are drawn N times an epoch; the words are the caption of those without one. */
bool dt_meta_is_kohya(const char *dir);
int  dt_meta_read_kohya(dt_meta *m, const char *dir, dt_err *err);

#endif
