/* tok_train.h - small tokenizers of our own, in the formats of the big ones.  The same captions give the
 * same files. */
#ifndef DT_TEXT_TOK_TRAIN_H
#define DT_TEXT_TOK_TRAIN_H
#include <stdint.h>
#include "base/err.h"
#include "base/mem.h"

/* Byte-level BPE of CLIP: vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json in `dir`, which is
 * made if needed.  vocab_size counts everything: 512 bytes (inside and at the end of a word), merges, start and end
 * token, so at least 514.  max_len becomes model_max_length (CLIP: 77).
 * Returns the size reached, which is smaller when no pair of symbols occurs twice any more. */
int dt_tok_train_clip(const dt_strs *captions, int vocab_size, int max_len, const char *dir, dt_err *err);

/* Unigram of T5: spiece.model, tokenizer_config.json (pad 0, eos 1, unk 2, no sentinels).  T5 has 32100 and 512.
 * Returns the size reached. */
int dt_tok_train_t5(const dt_strs *captions, int vocab_size, int max_len, const char *dir, dt_err *err);

#endif
