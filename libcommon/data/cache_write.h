/* cache_write.h - making caches: keys, records, indexes, shards.  Format: dt-cache(5).
 *
 * A store is a cache folder being filled, or one tar stream.  Every entry has a place; entries are put in any order,
 * become visible with their shard, and are found by readers once an index names them. */
#ifndef DT_DATA_CACHE_WRITE_H
#define DT_DATA_CACHE_WRITE_H
#include <stdbool.h>
#include "base/file.h"
#include "base/hash.h"
#include "base/keymap.h"
#include "base/mem.h"
#include "data/cache.h"

enum { DT_CACHE_MAX_PARTS = 8 };

/* A network (or tokenizer) that entries depend on. */
typedef struct dt_cache_part {
    char    name[40];               /* "vae", "text_encoder", ... */
    bool    text;                   /* captions depend on it; otherwise pictures do */
    dt_hash hash;                   /* of config and weights */
    dt_hash stat;                   /* of the files' names and dt_hash_stat(): while it stays, so does hash */
} dt_cache_part;

/* What all entries of a run have in common: the part of their keys that is not in the request. */
typedef struct dt_cache_recipe {
    int64_t  code;                  /* version of the encoding code; rises when its results change */
    dt_dtype dtype, compute;        /* of what is stored, and of the encoders' activations */
    int64_t  tile_px;               /* pictures larger than this are encoded in tiles; 0: never */
    int64_t  text_len;              /* tokens of a caption's states, at most */
    enum dt_padding text_padding;   /* none: as many as the caption has */
    int      n;
    dt_cache_part part[DT_CACHE_MAX_PARTS];
} dt_cache_recipe;

enum dt_cache_kind { DT_CACHE_IMAGE, DT_CACHE_TEXT, DT_CACHE_SKIP };

/* A line of an index: what a request means. */
typedef struct dt_cache_rec {
    enum dt_cache_kind kind;
    char   *req;                    /* image: dt_cache_request(); text: the caption; skip: the path.  Owned */
    char   *why;                    /* skip: what is wrong with the file.  Owned */
    dt_hash key, sum;               /* of the entry: its content address, and the hash of its bytes */
    dt_hash source;                 /* image: of the file's bytes */
    dt_hash stat;                   /* image: dt_hash_stat() of the file before it was read; "" if unknown */
    int64_t file, off, bytes;       /* index of a shard, and where its member's data is */
} dt_cache_rec;

/* An index: its header, and its text, from which records are read one by one. */
typedef struct dt_cache_index {
    char   *name;                   /* of the file, for messages */
    int64_t serial;                 /* of the run; where indexes disagree, the highest is right */
    int64_t shard, shards;
    dt_cache_recipe recipe;
    dt_strs  files;                 /* shards that entries are in */
    int64_t *file_bytes;            /* [files.n] */
    dt_map   map;                   /* of the file; or the text is borrowed */
    const char *text;
    size_t   bytes, first;          /* of the text; where records begin */
} dt_cache_index;

/* Records to be written: get() fills the i-th and returns 1; 0: there is none at i. */
struct dt_cache_lines {
    int64_t n;
    int   (*get)(void *ctx, int64_t i, dt_cache_rec *rec, dt_err *err);
    void   *ctx;
};

/* Paths that indexes name as skipped, and what they are now: those of any number of pictures take no memory. */
typedef struct dt_cache_paths {
    dt_keymap *ever, *now;          /* now: enum dt_cache_kind of the newest record */
    int64_t    n;
} dt_cache_paths;

/* What indexes say of many requests, the first that says it: 24 to 40 bytes for each. */
typedef struct dt_cache_book {
    dt_keymap *map;
    uint64_t  *at;                  /* index << 40 | place of the record's line in it */
    int64_t    n, cap;
    uint64_t   last;                /* the `at` that was read last, by any thread */
} dt_cache_book;

/* The key in an entry's file name, "KEY.safetensors". */
bool        dt_cache_member_key(const char *name, dt_hash *key);

/* "RW RH X Y W H FLIP PATH", the request of a picture; caller frees.  And the path in it. */
char       *dt_cache_request(const dt_batch_item *it, int w, int h);
const char *dt_cache_request_path(const char *req);
/* W and H of it. */
void        dt_cache_request_size(const char *req, int *w, int *h);

dt_hash dt_cache_image_key(const dt_cache_recipe *r, const char *req, const dt_hash *source);
dt_hash dt_cache_text_key(const dt_cache_recipe *r, const char *caption, int64_t T);        /* T states */
const dt_cache_part *dt_cache_recipe_part(const dt_cache_recipe *r, const char *name);      /* NULL if absent */
/* Has an entry of recipe a, for pictures or captions, the key that it would have under b?  (Same
 * request and source.) */
bool    dt_cache_recipe_fits(const dt_cache_recipe *a, const dt_cache_recipe *b, bool text);
bool    dt_cache_recipe_same(const dt_cache_recipe *a, const dt_cache_recipe *b);

void dt_cache_rec_release(dt_cache_rec *r);
/* The header of a text, which is borrowed until release.  Records may be found wrong when they are read. */
int  dt_cache_index_read(dt_cache_index *x, const char *text, size_t bytes, const char *name, dt_err *err);
/* The record whose line is at *pos (0: the first), which moves on: 1, and the caller releases it; 0 at the end. */
int  dt_cache_index_next(const dt_cache_index *x, size_t *pos, dt_cache_rec *rec, dt_err *err);
/* Goes through all records. */
int  dt_cache_index_check(const dt_cache_index *x, dt_err *err);
int  dt_cache_index_write(const dt_cache_index *x, const struct dt_cache_lines *lines, FILE *f, dt_err *err);
void dt_cache_index_release(dt_cache_index *x);

void dt_cache_paths_init(dt_cache_paths *p, const dt_cache_index *x, int64_t n);
void dt_cache_paths_release(dt_cache_paths *p);
/* Takes a record of a picture or of a skipped file; the newest come first. */
void dt_cache_paths_note(dt_cache_paths *p, const dt_cache_rec *rec);
bool dt_cache_paths_skip(const dt_cache_paths *p, const char *path);

void    dt_cache_book_init(dt_cache_book *b);
void    dt_cache_book_release(dt_cache_book *b);
/* Notes that the record at pos of index i says something of a request, unless another did before: the
 * entry's number, or -1. */
int64_t dt_cache_book_add(dt_cache_book *b, const char *req, int64_t i, size_t pos);
int64_t dt_cache_book_find(const dt_cache_book *b, const char *req);                        /* -1 if there is none */
/* Reads an entry's record, which the caller releases, and says of which index it is. */
int     dt_cache_book_read(const dt_cache_book *b, int64_t e, const dt_cache_index *index, dt_cache_rec *rec,
                           const dt_cache_index **x, dt_err *err);

/* Indexes of a folder, newest first; caller releases each and frees *x.  `broken` NULL: an index that cannot be read
 * is an error; otherwise it is left out and its message added there. */
int dt_cache_indexes(dt_cache_index **x, int64_t *n, const char *dir, dt_strs *broken, dt_err *err);

/* What a reader of the cache goes by: the recipe of all pictures or captions that it sees, NULL if there are
 * none; and the record of a picture or a caption: 1, and the caller releases it, or 0. */
const dt_cache_recipe *dt_cache_recipe_of(const dt_cache *c, bool text);
int dt_cache_image_rec(const dt_cache *c, const dt_batch_item *it, int w, int h, dt_cache_rec *rec, dt_err *err);
int dt_cache_text_rec(const dt_cache *c, const char *caption, dt_cache_rec *rec, dt_err *err);

/* --- stores --- */
typedef struct dt_cache_store dt_cache_store;       /* opaque; one thread at a time */

struct dt_cache_store_params {
    const char *dir;                /* made if it is not there; NULL: a stream */
    FILE       *out;                /* of the stream; borrowed */
    int64_t     shard, shards;      /* names of files carry these, so that several may fill one folder (0 of 1) */
    int64_t     max_bytes;          /* a shard that has grown to this is completed (0: 256 MiB) */
};
/* Takes stock of a folder.  DT_EFAIL: another process is filling it under the same shard/shards. */
int  dt_cache_store_open(dt_cache_store **s, const struct dt_cache_store_params *p, dt_err *err);
/* Leaves complete shards, removes the one being written. */
void dt_cache_store_close(dt_cache_store **s);
/* Files of the folder that are of no use, with reasons. */
const dt_strs *dt_cache_store_broken(const dt_cache_store *s);
/* Indexes that were there, newest first. */
const dt_cache_index *dt_cache_store_index(const dt_cache_store *s, int64_t i);

int64_t dt_cache_store_found(const dt_cache_store *s);              /* entries that were there on opening */
/* Place of an entry, -1 if there is none. */
int64_t dt_cache_store_find(const dt_cache_store *s, const dt_hash *key);
/* A place for an entry that has none yet; it must be put before the index is written. */
int64_t dt_cache_store_claim(dt_cache_store *s, const dt_hash *key);
int     dt_cache_store_put(dt_cache_store *s, int64_t place, const dt_hash *key, const void *data, size_t bytes,
                           dt_err *err);
int64_t dt_cache_store_places(const dt_cache_store *s);
/* A file of a stream that is no entry ("plan.ndjson"): the contents of a regular file. */
int     dt_cache_store_member(dt_cache_store *s, const char *name, FILE *file, dt_err *err);
/* Points a record at a place: its `file` is one of the store's, whose name is dt_cache_store_file(). */
int     dt_cache_store_fill(const dt_cache_store *s, dt_cache_rec *rec, int64_t place, dt_err *err);
const char *dt_cache_store_file(const dt_cache_store *s, int64_t file);
/* Completes the shard being written; the next entry begins another. */
int     dt_cache_store_finish(dt_cache_store *s, dt_err *err);
/* Completes the shard and writes the index of these records, as dt_cache_store_fill() made them; they are gone
 * through more than once.  Nothing is written if the folder says all of it already.  A stream gets the index as
 * its last member. */
int     dt_cache_store_commit(dt_cache_store *s, const dt_cache_recipe *recipe, const struct dt_cache_lines *lines,
                              bool *wrote, dt_err *err);

#endif
