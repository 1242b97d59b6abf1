/* tokenizer.h - captions to token ids, as the Python libraries give them.
 *
 * A tokenizer is a folder as diffusers writes it (`tokenizer/`, `tokenizer_2/`).  What it holds decides:
 *   vocab.json + merges.txt     byte-level BPE: CLIP (also without a tokenizer_class), or Qwen2
 *   spiece.model                SentencePiece's Unigram: T5, UMT5
 *   tokenizer.json              Unigram (T5, UMT5) or BPE, when the files above are absent
 * tokenizer_config.json, special_tokens_map.json and added_tokens.json are read where present. */
#ifndef DT_TEXT_TOKENIZER_H
#define DT_TEXT_TOKENIZER_H
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

/* What follows the tokens of a caption: pad tokens up to the longest that there may be, or nothing. */
enum dt_padding { DT_PAD_MAX, DT_PAD_NONE };
extern const char *const dt_padding_names[];        /* "max", "none"; NULL-terminated */

typedef struct dt_tokenizer dt_tokenizer;   /* opaque; any number of threads may call dt_tokenize */

/* *out is set only on success.  A folder that is no tokenizer or a broken file: DT_EDATA. */
int  dt_tokenizer_open(dt_tokenizer **out, const char *dir, dt_err *err);
void dt_tokenizer_close(dt_tokenizer **t);

/* Writes at most max_len ids and returns how many before padding, special tokens included; a text that
 * is too long is cut so that the end token stays last.  With `pad`, ids[n..max_len) get the pad id.
 * Bytes that are no UTF-8 count as U+FFFD, as after Python's decode(errors="replace"). */
int64_t dt_tokenize(dt_tokenizer *t, const char *utf8, int64_t max_len, bool pad, int32_t *ids, dt_err *err);

int32_t     dt_tokenizer_bos(const dt_tokenizer *t);        /* -1: none is added */
int32_t     dt_tokenizer_eos(const dt_tokenizer *t);        /* as named by the config; -1: none */
int32_t     dt_tokenizer_pad(const dt_tokenizer *t);        /* -1: none */
int32_t     dt_tokenizer_vocab(const dt_tokenizer *t);      /* highest id + 1, added tokens included */
int64_t     dt_tokenizer_max_len(const dt_tokenizer *t);    /* model_max_length; INT32_MAX if unlimited */
const char *dt_tokenizer_name(const dt_tokenizer *t);       /* tokenizer_class, e.g. "CLIPTokenizer"; borrowed */
/* Id of a token by its text ("<|image_pad|>", "</s>"), or -1. */
int32_t     dt_tokenizer_id(const dt_tokenizer *t, const char *token);

#endif
