/* internal.h - parts that the tokenizers share.  Text is valid UTF-8 everywhere below dt_tokenize(). */
#ifndef DT_TEXT_INTERNAL_H
#define DT_TEXT_INTERNAL_H
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"

/* --- growing buffers --- */
typedef struct dt_text { char *v; int64_t n, cap; } dt_text;        /* bytes, not NUL-terminated */
typedef struct dt_ids { int32_t *v; int64_t n, cap; } dt_ids;

void dt_text_add(dt_text *b, const char *s, int64_t n);
void dt_text_cp(dt_text *b, int32_t cp);                            /* appends one code point */
void dt_ids_add(dt_ids *b, int32_t id);

/* --- Unicode (unicode.c) --- */
#define DT_METASPACE "\xe2\x96\x81"                                 /* U+2581, a space to SentencePiece */
/* Unicode White_Space as the inside of a PCRE2 class: its own \s also takes U+180E. */
#define DT_RE_SPACE  "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
/* Letters and numbers of Unicode 16, as the reference has them; PCRE2 10.42 (Debian 12) knows 14. */
#define DT_RE_LETTER \
    "\\p{L}\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}" \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}" \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}" \
    "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}" \
    "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}\\x{18cff}" \
    "\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}" \
    "\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define DT_RE_NUMBER \
    "\\p{N}\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}" \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}" \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

bool dt_uni_space(int32_t cp);                                      /* White_Space */
int  dt_uni_len(unsigned char lead);                                /* bytes of a character by its first */
int  dt_uni_get(const char *s, int32_t *cp);                        /* decodes one, returns its bytes */
void dt_uni_clean(dt_text *out, const char *s);                     /* invalid bytes become U+FFFD */

/* --- vocabulary: string to id (vocab.c) --- */
typedef struct dt_vocab {
    struct dt_vocab_slot { uint64_t hash; int64_t off; int32_t len, id; } *slot;    /* len < 0: free */
    int64_t n, cap;                     /* cap is a power of two */
    dt_text text;
    int32_t top;                        /* highest id + 1 */
} dt_vocab;
void    dt_vocab_put(dt_vocab *v, const char *s, int64_t n, int32_t id);    /* the last one wins */
int32_t dt_vocab_get(const dt_vocab *v, const char *s, int64_t n);          /* -1 if absent */
void    dt_vocab_release(dt_vocab *v);

/* --- words that were split before, per scratch (vocab.c) --- */
typedef struct dt_words {
    struct dt_word { uint64_t hash; int32_t key, len, ids, n; } *slot;
    int64_t used;
    dt_text keys;
    dt_ids  ids;
} dt_words;
uint64_t dt_words_hash(const char *s, int64_t n);
/* True: the ids were appended to `out`. */
bool dt_words_get(const dt_words *w, uint64_t hash, const char *s, int64_t n, dt_ids *out);
/* Remembers that s gave ids[0..k); starts afresh when full. */
void dt_words_put(dt_words *w, uint64_t hash, const char *s, int64_t n, const int32_t *ids, int64_t k);
void dt_words_release(dt_words *w);

/* --- what one call of dt_tokenize works in; kept in a pool, so that a call allocates nothing --- */
struct dt_merge { int32_t rank, pos, id; };                         /* bpe.c */
struct dt_symbol { int32_t id, prev, next; };                       /* id < 0: merged away */
struct dt_best { double score; int32_t start, id; };                /* unigram.c; start < 0: not reached */
typedef struct dt_scratch {
    struct dt_scratch *next;
    dt_text  clean, norm[2], word;
    dt_ids   ids;
    int64_t  limit;                     /* ids beyond this many are not needed */
    int32_t *cps;                       /* code points */
    int64_t  cps_cap;
    dt_words words;
    pcre2_match_data *match;
    struct dt_symbol *sym;
    struct dt_merge  *heap;
    struct dt_best   *best;
    int64_t  sym_cap, heap_n, heap_cap, best_cap;
} dt_scratch;
void dt_scratch_release(dt_scratch *sc);                            /* tokenizer.c */

/* Compiles with UTF, UCP and JIT. */
int dt_re_compile(pcre2_code **re, const char *pattern, dt_err *err);

/* --- SentencePiece's precompiled character map (charsmap.c) --- */
typedef struct dt_charsmap dt_charsmap;
int  dt_charsmap_open(dt_charsmap **out, const void *blob, int64_t n, bool base64, const char *what, dt_err *err);
void dt_charsmap_close(dt_charsmap **m);
void dt_charsmap_run(const dt_charsmap *m, dt_text *out, const char *s, int64_t n);

/* --- normalisers (normalize.c) --- */
enum dt_norm_kind { DT_NORM_NFC, DT_NORM_NFD, DT_NORM_NFKC, DT_NORM_NFKD, DT_NORM_LOWER, DT_NORM_SPACES, DT_NORM_STRIP,
                    DT_NORM_REPLACE, DT_NORM_CHARSMAP };
typedef struct dt_norm {
    struct dt_norm_step {
        enum dt_norm_kind kind;
        pcre2_code  *re;                /* REPLACE */
        char        *with;
        dt_charsmap *map;               /* CHARSMAP */
        bool         left, right;       /* STRIP */
    } step[8];
    int n;
} dt_norm;
int  dt_norm_add(dt_norm *m, enum dt_norm_kind kind, const char *what, dt_err *err);
int  dt_norm_json(dt_norm *m, const cJSON *node, const char *what, dt_err *err);  /* "normalizer" of tokenizer.json */
int  dt_norm_charsmap(dt_norm *m, const void *blob, int64_t n, bool base64, const char *what, dt_err *err);
void dt_norm_release(dt_norm *m);
/* *s, *n are replaced by the result, which lives in sc->norm until the next run. */
int  dt_norm_run(const dt_norm *m, dt_scratch *sc, const char **s, int64_t *n, dt_err *err);

/* --- byte-level BPE (bpe.c) --- */
typedef struct dt_bpe dt_bpe;
/* `suffix` is what the last symbol of a word carries ("</w>" or ""); `pattern` finds the words; what it does not
 * match is dropped.  merges: lines "a b" of merges.txt, or NULL and `list`, the array of tokenizer.json. */
int  dt_bpe_open(dt_bpe **out, const dt_vocab *v, const char *merges, const cJSON *list, const char *suffix,
                 const char *pattern, int32_t unk, const char *what, dt_err *err);
void dt_bpe_close(dt_bpe **b);
int  dt_bpe_encode(const dt_bpe *b, dt_scratch *sc, const char *s, int64_t n, dt_err *err);
/* GPT-2's printable character for a byte, as a code point. */
int32_t dt_bpe_char(uint8_t byte);
extern const char dt_bpe_clip_pattern[];
extern const char dt_bpe_qwen2_pattern[];

/* --- spiece.model (spiece.c) --- */
typedef struct dt_spiece {              /* borrows from the file's bytes */
    struct dt_piece { const char *text; int64_t len; double score; int64_t type; } *piece;
    int64_t n, cap;
    const void *charsmap;
    int64_t charsmap_bytes, model_type, unk_id;
    bool    dummy_prefix, collapse_spaces, byte_fallback;
} dt_spiece;
enum { DT_PIECE_CONTROL = 3, DT_PIECE_USER = 4 };
int  dt_spiece_parse(dt_spiece *m, const void *data, int64_t bytes, const char *what, dt_err *err);
void dt_spiece_release(dt_spiece *m);

/* --- Unigram (unigram.c); both fill v --- */
typedef struct dt_unigram dt_unigram;
int  dt_unigram_open_json(dt_unigram **out, const cJSON *root, dt_vocab *v, const char *what, dt_err *err);
int  dt_unigram_open_spiece(dt_unigram **out, const dt_spiece *m, int64_t extra_ids, dt_vocab *v, const char *what,
                            dt_err *err);
void dt_unigram_close(dt_unigram **u);
const dt_norm *dt_unigram_norm(const dt_unigram *u);                /* of the file; borrowed */
/* s is normalised; `first`: it begins the text. */
void dt_unigram_encode(const dt_unigram *u, dt_scratch *sc, const char *s, int64_t n, bool first);

/* --- tokens that are cut out of the text before anything else (added.c) --- */
typedef struct dt_added {
    char   *text;
    int64_t len;
    int32_t id;
    bool    lstrip, rstrip, single_word, normalized;
    bool    listed;                     /* comes from added_tokens_decoder, which nothing overrides */
} dt_added;
typedef struct dt_added_set {           /* those that are matched before, or after, normalising */
    dt_added *v;                        /* longest first */
    int64_t   n, cap;
    bool      starts[256];              /* first bytes */
} dt_added_set;
void dt_added_put(dt_added_set *a, const dt_added *tok);            /* copies */
void dt_added_sort(dt_added_set *a);
void dt_added_release(dt_added_set *a);
/* Next token at or after *pos: true and [*start, *stop) with its stripped spaces, never before `from`. */
bool dt_added_next(const dt_added_set *a, const char *s, int64_t n, int64_t from, int64_t *start, int64_t *stop,
                   int32_t *id);

/* --- the files beside the vocabulary (tok_config.c) --- */
enum { DT_TOK_MAX_ID = 1 << 24 };       /* ids are below it, whatever a file says */
enum { DT_TOK_BOS, DT_TOK_EOS, DT_TOK_UNK, DT_TOK_SEP, DT_TOK_PAD, DT_TOK_CLS, DT_TOK_MASK, DT_TOK_NAMED };
typedef struct dt_tok_config {
    char   *class;                      /* NULL if no file says */
    int64_t max_len;
    int64_t extra_ids;                  /* T5; -1 if not said */
    char   *named[DT_TOK_NAMED];
    dt_added_set added;                 /* in the order in which ids are given out; id -1 if not said */
    bool    listed;                     /* there was an added_tokens_decoder */
} dt_tok_config;
int  dt_tok_config_read(dt_tok_config *c, const char *dir, const cJSON *fast, dt_err *err);
void dt_tok_config_release(dt_tok_config *c);
/* What the class assumes where the files are silent: names, as plain strings. */
void dt_tok_config_default(dt_tok_config *c, int which, const char *token);

#endif
