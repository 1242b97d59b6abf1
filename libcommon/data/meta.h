/* meta.h - what a data set says about its pictures: a .json list, .jsonl lines, a .csv table, or a folder of
 * pictures with captions in .txt files of the same name.
 *
 * Fields: file_path (required), text, type ("image"), width, height (numbers or strings); others are kept. */
#ifndef DT_DATA_META_H
#define DT_DATA_META_H
#include <stdint.h>
#include <cjson/cJSON.h>
#include "base/err.h"
#include "base/mem.h"

typedef struct dt_meta_item {
    int64_t id;         /* position in the metadata, from 0: unusable entries leave gaps */
    char   *path;       /* joined with the root */
    char   *text;       /* caption, "" when there is none; valid UTF-8 */
    int     w, h;       /* px as the metadata says, 0 when it does not */
    cJSON  *extra;      /* object of the other fields, or NULL */
} dt_meta_item;

typedef struct dt_meta {
    dt_meta_item *v;
    int64_t n, cap;
    int64_t entries;    /* those that could not be used included */
    dt_strs skipped;    /* "FILE: entry 3: 'file_path' must be a string" */
} dt_meta;

/* Reads `path`: a folder, "-" (JSON, JSON lines or CSV, told apart by the first character), or a file.  Relative
 * paths inside are joined to root; root NULL means the metadata file's own folder.  A folder is read
 * recursively in the order of its names, hidden files left out, each folder once however it is linked.
 * DT_EDATA for what makes the rest unreadable (syntax, no file_path column); a bad entry is skipped and listed. */
int  dt_meta_read(dt_meta *m, const char *path, const char *root, dt_err *err);
void dt_meta_release(dt_meta *m);

#endif
