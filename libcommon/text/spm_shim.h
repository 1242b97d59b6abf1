/* spm_shim.h - libsentencepiece for C. */
#ifndef DT_TEXT_SPM_SHIM_H
#define DT_TEXT_SPM_SHIM_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_spm dt_spm;       /* opaque; encoding is safe from many threads */

/* From the bytes of a spiece.model; `what` names it in messages. */
int     dt_spm_open(dt_spm **out, const void *proto, size_t bytes, const char *what, dt_err *err);
void    dt_spm_close(dt_spm **m);
int32_t dt_spm_size(const dt_spm *m);
int32_t dt_spm_unk(const dt_spm *m);
int32_t dt_spm_id(const dt_spm *m, const char *piece);     /* -1 if it is none */
/* Sets *ids (caller frees) and *n. */
int     dt_spm_encode(const dt_spm *m, const char *s, size_t bytes, int32_t **ids, int64_t *n, dt_err *err);

/* Trains with options {"vocab_size", "8000", ..., NULL}; *proto (caller frees) is a spiece.model. */
int dt_spm_train(const char *const *options, char *const *lines, int64_t n, void **proto, size_t *bytes, dt_err *err);

#endif
