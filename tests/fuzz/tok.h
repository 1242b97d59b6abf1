/* tok.h - for the targets that open tokenizers. */
#ifndef DT_FUZZ_TOK_H
#define DT_FUZZ_TOK_H
#include "text/tokenizer.h"

/* Tokenizes with and without padding and a short limit; ids are those of the vocabulary. */
void fuzz_tokenize(dt_tokenizer *t, const char *text);
/* Opens the folder of this process as a tokenizer and tokenizes file `name`, if that is there, and some fixed texts. */
void fuzz_tokenizer_folder(const char *name);

#endif
