/* safetensors.h - read (mapped, zero-copy) and write the safetensors format.
 * u64 LE header length, JSON header, data (https://github.com/huggingface/safetensors, format section).
 * Every offset, shape and size is checked before use; a header over 100 MB is refused. */
#ifndef DT_TENSOR_SAFETENSORS_H
#define DT_TENSOR_SAFETENSORS_H
#include "base/err.h"
#include "tensor/dtype.h"

typedef struct dt_st dt_st;         /* opaque, read-only once open: any number of threads */

typedef struct dt_st_entry {
    const char *name;               /* borrowed until the file is closed, as is data */
    dt_dtype    dtype;
    dt_dims     dims;               /* nd = 0 for a scalar */
    const void *data;               /* may be unaligned */
    size_t      bytes;
    const char *file;               /* path of the file it is in, for messages */
} dt_st_entry;

int  dt_st_open(dt_st **out, const char *path, dt_err *err);
/* A model component folder: STEM.safetensors.index.json and its shards, or STEM.safetensors, for the first
 * of `stems` (NULL-terminated) that exists: "diffusion_pytorch_model", "model". */
int  dt_st_open_folder(dt_st **out, const char *dir, const char *const *stems, dt_err *err);
/* A file that lies in memory (a cache member); `data` borrowed until close; `what` names it in messages. */
int  dt_st_open_mem(dt_st **out, const void *data, size_t bytes, const char *what, dt_err *err);
void dt_st_close(dt_st **st);

int64_t            dt_st_count(const dt_st *st);
const dt_st_entry *dt_st_at(const dt_st *st, int64_t i);            /* in order of file and offset */
const dt_st_entry *dt_st_find(const dt_st *st, const char *name);   /* NULL if absent */
/* As find, copied to *out; absent: DT_EDATA naming file and tensor. */
int                dt_st_need(const dt_st *st, const char *name, dt_st_entry *out, dt_err *err);
/* Keeps rows [first, first + n) of the first dimension. */
int                dt_st_rows(dt_st_entry *e, int64_t first, int64_t n, dt_err *err);
/* Bytes of an entry's data that will not be read soon: see dt_map_forget.  What lies in memory stays there. */
void               dt_st_forget(const dt_st *st, const void *data, size_t bytes);
/* Copies bytes of an entry's data so that no others come into memory with them, as a read of the mapping makes them. */
void               dt_st_read(const dt_st *st, const void *data, size_t bytes, void *to);
/* DT_EDATA if one of its files was written to since it was opened.  What lies in memory is not watched. */
int                dt_st_check(const dt_st *st, dt_err *err);
const char        *dt_st_path(const dt_st *st);                     /* of the (first) file, for messages */
/* __metadata__ of the (first) file: the text under a key, NULL if absent; the i-th text, NULL behind the last. */
const char        *dt_st_meta(const dt_st *st, const char *key);
const char        *dt_st_meta_at(const dt_st *st, int64_t i, const char **key);

/* --- writing: entries are written in the order given; the data section starts on a 64-byte boundary --- */
typedef struct dt_st_kv { const char *key, *value; } dt_st_kv;
/* Atomic (base/file.h). meta ends with a NULL key, or is NULL.  e->bytes and e->file are ignored: dims decide. */
int dt_st_write(const char *path, const dt_st_entry *e, int64_t n, const dt_st_kv *meta, dt_err *err);
/* The same, asking for the data of one entry after the other, so that they need not be in memory together.
 * *data is borrowed until the next call. */
typedef int (*dt_st_fetch_fn)(void *ctx, int64_t i, const void **data, dt_err *err);
int dt_st_write_from(const char *path, const dt_st_entry *e, int64_t n, const dt_st_kv *meta, dt_st_fetch_fn fetch,
                     void *ctx, dt_err *err);
/* The same bytes into memory; caller frees. */
int dt_st_pack(void **data, size_t *bytes, const dt_st_entry *e, int64_t n, const dt_st_kv *meta, dt_err *err);

#endif
