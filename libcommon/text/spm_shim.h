/* spm_shim.h - the trainer of libsentencepiece for C. */
#ifndef DT_TEXT_SPM_SHIM_H
#define DT_TEXT_SPM_SHIM_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

/* Trains with options {"vocab_size", "8000", ..., NULL}; *proto (caller frees) is a spiece.model. */
int dt_spm_train(const char *const *options, char *const *lines, int64_t n, void **proto, size_t *bytes, dt_err *err);

#endif
