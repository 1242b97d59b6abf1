/* mem.h - small host allocations.  Structs, strings and tables of a few megabytes at most: running
 * out of memory for these ends the process with exit status 5 in one place.  Tensors, pictures and
 * anything whose size comes from input use dt_try_alloc() and report DT_ENOMEM. */
#ifndef DT_BASE_MEM_H
#define DT_BASE_MEM_H
#include <stddef.h>
#include <stdint.h>

void *dt_alloc(size_t bytes);                       /* zeroed; never NULL; free() */
void *dt_realloc(void *p, size_t bytes);            /* never NULL for bytes > 0 */
char *dt_strdup(const char *s);                     /* never NULL; NULL in, NULL out */
char *dt_sprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));   /* caller frees */
void *dt_try_alloc(size_t bytes);                   /* 64-byte aligned, not zeroed, may be NULL; free() */
void *dt_must(void *p);                             /* p; NULL, from a library that had no memory, ends the process */

/* Grows *p so that it holds at least n elements of `size` bytes, doubling *cap. */
void  dt_grow(void *p /* T ** */, int64_t *cap, int64_t n, size_t size);

/* Owned list of strings. */
typedef struct dt_strs {
    char  **v;
    int64_t n, cap;
} dt_strs;
void dt_strs_add(dt_strs *s, const char *str);      /* copies */
void dt_strs_split(dt_strs *s, const char *str, char sep);  /* adds the non-empty, trimmed parts */
void dt_strs_release(dt_strs *s);

/* Index of the candidate nearest to `word` by edit distance, or -1 if none is near enough to be
 * worth suggesting (changes: half of a word of up to 3 letters, 1 + len / 4 of a longer one). */
int dt_nearest(const char *word, const char *const *cand, int n);

#endif
