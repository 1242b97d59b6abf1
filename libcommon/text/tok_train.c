/* tok_train.c - training of tokenizers.
 *
 * BPE (Sennrich et al., ACL 2016): count the neighbours in all words, merge the most frequent pair, count again.  Only
 * words that hold the pair are counted anew; a heap with lazily corrected entries finds the next pair.
 * Among equals the pair with the smaller ids wins, so the result does not depend on hashing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "text/internal.h"
#include "text/spm_shim.h"
#include "text/tok_train.h"
#include "text/tokenizer.h"

enum { MIN_COUNT = 2, BYTES = 512 };            /* a pair that occurs once teaches nothing */

struct word { int32_t *sym; int32_t n; int64_t count; };
struct pair { uint64_t key; int64_t count; dt_ids words; };     /* key = left << 32 | right; words that (may) hold it */
struct entry { int64_t count; uint64_t key; int32_t pair; };
struct trainer {
    dt_vocab      seen;                         /* word -> index */
    struct word  *word;
    int64_t       words, word_cap;
    dt_vocab      vocab;                        /* symbol -> id */
    dt_strs       symbol;                       /* by id */
    dt_text       merges;
    struct pair  *pair;
    int64_t       pairs, pair_cap;
    int32_t      *slot;                         /* hash table of pairs: index + 1, 0 free */
    int64_t       slots;
    struct entry *heap;
    int64_t       heap_n, heap_cap;
};

/* --- words --- */
static void add_word(struct trainer *t, const char *s, int64_t n)
{
    int32_t i = dt_vocab_get(&t->seen, s, n);
    if (i < 0) {
        i = t->words;
        dt_vocab_put(&t->seen, s, n, i);
        dt_grow(&t->word, &t->word_cap, t->words + 1, sizeof *t->word);
        t->word[t->words++] = (struct word){ .sym = dt_alloc(n * sizeof(int32_t)), .n = n };
        for (int64_t k = 0; k < n; k++)         /* ids 0-255: bytes by their printable character, then with </w> */
            t->word[i].sym[k] = (unsigned char)s[k] + (k + 1 == n ? 256 : 0);
    }
    t->word[i].count++;
}

static int split(struct trainer *t, const dt_strs *captions, dt_err *err)
{
    dt_scratch sc = { .match = dt_must(pcre2_match_data_create(2, NULL)) };
    dt_norm norm = {0};
    pcre2_code *re = NULL;
    int rc = dt_re_compile(&re, dt_bpe_clip_pattern, err);
    for (int i = 0; i < 3 && rc == 0; i++)
        rc = dt_norm_add(&norm, ((int[]){ DT_NORM_NFC, DT_NORM_SPACES, DT_NORM_LOWER })[i], "clip", err);
    for (int64_t i = 0; i < captions->n && rc == 0; i++) {
        sc.clean.n = 0;
        dt_uni_clean(&sc.clean, captions->v[i]);
        const char *s = sc.clean.v;
        int64_t n = sc.clean.n;
        if (!n || (rc = dt_norm_run(&norm, &sc, &s, &n, err)) < 0)
            continue;
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(sc.match);
        for (int64_t at = 0; at < n; at = ov[1]) {
            int k = pcre2_match(re, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, sc.match, NULL);
            if (k < 0)
                break;
            if (k == 1)                         /* else it is a special token */
                add_word(t, s + ov[0], ov[1] - ov[0]);
        }
    }
    dt_norm_release(&norm);
    pcre2_code_free(re);
    dt_scratch_release(&sc);
    return rc;
}

/* --- pairs --- */
static int32_t *pair_slot(struct trainer *t, uint64_t key)
{
    for (uint64_t i = (key * 0x9e3779b97f4a7c15u) >> 20;; i++) {
        int32_t *s = &t->slot[i & (t->slots - 1)];
        if (!*s || t->pair[*s - 1].key == key)
            return s;
    }
}

static int32_t pair_of(struct trainer *t, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)left << 32 | (uint32_t)right;
    if (2 * (t->pairs + 1) > t->slots) {
        t->slots = t->slots ? 2 * t->slots : 4096;
        free(t->slot);
        t->slot = dt_alloc(t->slots * sizeof *t->slot);
        for (int64_t i = 0; i < t->pairs; i++)
            *pair_slot(t, t->pair[i].key) = i + 1;
    }
    int32_t *s = pair_slot(t, key);
    if (!*s) {
        dt_grow(&t->pair, &t->pair_cap, t->pairs + 1, sizeof *t->pair);
        t->pair[t->pairs++] = (struct pair){ .key = key };
        *s = t->pairs;
    }
    return *s - 1;
}

/* Adds (or with sign -1 takes away) all pairs of a word; those with symbol `with` (any if < 0) get it in their list. */
static void count_word(struct trainer *t, int32_t w, int sign, int32_t with)
{
    const struct word *x = &t->word[w];
    for (int32_t i = 0; i + 1 < x->n; i++) {
        int32_t at = pair_of(t, x->sym[i], x->sym[i + 1]);     /* may move t->pair */
        struct pair *p = &t->pair[at];
        p->count += sign * x->count;
        if (sign > 0 && (with < 0 || x->sym[i] == with || x->sym[i + 1] == with)
            && (!p->words.n || p->words.v[p->words.n - 1] != w))
            dt_ids_add(&p->words, w);
    }
}

static bool before(struct entry a, struct entry b)
{
    return a.count != b.count ? a.count > b.count : a.key < b.key;
}

static void push(struct trainer *t, int32_t pair)
{
    struct entry e = { t->pair[pair].count, t->pair[pair].key, pair };
    if (e.count < MIN_COUNT)
        return;
    dt_grow(&t->heap, &t->heap_cap, t->heap_n + 1, sizeof *t->heap);
    int64_t i = t->heap_n++;
    for (; i > 0 && before(e, t->heap[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = e;
}

static struct entry pop(struct trainer *t)
{
    struct entry top = t->heap[0], e = t->heap[--t->heap_n];
    int64_t i = 0;
    for (int64_t k; (k = 2 * i + 1) < t->heap_n; i = k) {
        if (k + 1 < t->heap_n && before(t->heap[k + 1], t->heap[k]))
            k++;
        if (!before(t->heap[k], e))
            break;
        t->heap[i] = t->heap[k];
    }
    t->heap[i] = e;
    return top;
}

/* Index of the most frequent pair, or -1. */
static int32_t best_pair(struct trainer *t)
{
    while (t->heap_n) {
        struct entry e = pop(t);
        if (e.count == t->pair[e.pair].count)
            return e.pair;
        push(t, e.pair);                        /* it has become rarer since */
    }
    return -1;
}

/* --- symbols --- */
static int32_t add_symbol(struct trainer *t, const char *s)
{
    int32_t id = dt_vocab_get(&t->vocab, s, strlen(s));
    if (id >= 0)
        return id;                              /* two ways to the same symbol */
    id = t->symbol.n;
    dt_vocab_put(&t->vocab, s, strlen(s), id);
    dt_strs_add(&t->symbol, s);
    return id;
}

/* CLIP's order of bytes: printable ones first.  Words are renumbered from bytes to it. */
static void add_bytes(struct trainer *t)
{
    int32_t id_of[BYTES];
    for (int end = 0; end < 2; end++)
        for (int late = 0; late < 2; late++)
            for (int i = 0; i < 256; i++) {
                dt_text s = {0};
                if ((dt_bpe_char(i) >= 256) != late)
                    continue;
                dt_text_cp(&s, dt_bpe_char(i));
                dt_text_add(&s, end ? "</w>" : "", 5 - 4 * !end);       /* with the NUL */
                id_of[256 * end + i] = add_symbol(t, s.v);
                free(s.v);
            }
    for (int64_t w = 0; w < t->words; w++)
        for (int32_t i = 0; i < t->word[w].n; i++)
            t->word[w].sym[i] = id_of[t->word[w].sym[i]];
}

static void merge_in_word(struct word *w, int32_t left, int32_t right, int32_t id)
{
    int32_t k = 0;
    for (int32_t i = 0; i < w->n; i++)
        if (i + 1 < w->n && w->sym[i] == left && w->sym[i + 1] == right) {
            w->sym[k++] = id;
            i++;
        } else {
            w->sym[k++] = w->sym[i];
        }
    w->n = k;
}

static void merge_pair(struct trainer *t, int32_t pair)
{
    int32_t left = t->pair[pair].key >> 32, right = t->pair[pair].key & 0xffffffff;
    char *joined = dt_sprintf("%s%s", t->symbol.v[left], t->symbol.v[right]);
    char *line = dt_sprintf("%s %s\n", t->symbol.v[left], t->symbol.v[right]);
    int32_t id = add_symbol(t, joined);
    dt_text_add(&t->merges, line, strlen(line));
    free(joined);
    free(line);

    dt_ids words = t->pair[pair].words;
    t->pair[pair].words = (dt_ids){0};
    for (int64_t i = 0; i < words.n; i++) {
        struct word *w = &t->word[words.v[i]];
        count_word(t, words.v[i], -1, id);
        merge_in_word(w, left, right, id);
        count_word(t, words.v[i], 1, id);
    }
    for (int64_t i = 0; i < words.n; i++) {     /* pairs with the new symbol may have become frequent */
        const struct word *w = &t->word[words.v[i]];
        for (int32_t k = 0; k + 1 < w->n; k++)
            if (w->sym[k] == id || w->sym[k + 1] == id)
                push(t, pair_of(t, w->sym[k], w->sym[k + 1]));
    }
    free(words.v);
}

static void trainer_release(struct trainer *t)
{
    for (int64_t i = 0; i < t->words; i++)
        free(t->word[i].sym);
    for (int64_t i = 0; i < t->pairs; i++)
        free(t->pair[i].words.v);
    dt_vocab_release(&t->seen);
    dt_vocab_release(&t->vocab);
    dt_strs_release(&t->symbol);
    free(t->word);
    free(t->pair);
    free(t->slot);
    free(t->heap);
    free(t->merges.v);
}

/* --- files --- */
static int write_json(const char *dir, const char *name, const cJSON *o, bool pretty, dt_err *err)
{
    char *path = dt_path_join(dir, name);
    int rc = dt_json_write(path, o, pretty, err);
    free(path);
    return rc;
}

static int write_file(const char *dir, const char *name, const void *data, size_t bytes, dt_err *err)
{
    char *path = dt_path_join(dir, name);
    int rc = dt_file_write(path, data, bytes, err);
    free(path);
    return rc;
}

static void add_decoder(cJSON *config, int id, const char *token, bool normalized)
{
    cJSON *list = cJSON_GetObjectItemCaseSensitive(config, "added_tokens_decoder"), *o = cJSON_CreateObject();
    char *key = dt_sprintf("%d", id);
    if (!list)
        list = cJSON_AddObjectToObject(config, "added_tokens_decoder");
    cJSON_AddStringToObject(o, "content", token);
    cJSON_AddFalseToObject(o, "lstrip");
    cJSON_AddBoolToObject(o, "normalized", normalized);
    cJSON_AddFalseToObject(o, "rstrip");
    cJSON_AddFalseToObject(o, "single_word");
    cJSON_AddTrueToObject(o, "special");
    cJSON_AddItemToObject(list, key, o);
    free(key);
}

static int write_clip(struct trainer *t, int max_len, const char *dir, dt_err *err)
{
    static const char *const special[2] = { "<|startoftext|>", "<|endoftext|>" };
    static const char *const names[4] = { "bos_token", "eos_token", "pad_token", "unk_token" };
    cJSON *vocab = cJSON_CreateObject(), *config = cJSON_CreateObject(), *map = cJSON_CreateObject();
    for (int64_t i = 0; i < t->symbol.n; i++)
        cJSON_AddNumberToObject(vocab, t->symbol.v[i], i);
    for (int i = 0; i < 2; i++) {
        cJSON_AddNumberToObject(vocab, special[i], t->symbol.n + i);
        add_decoder(config, t->symbol.n + i, special[i], true);
    }
    for (int i = 0; i < 4; i++) {
        cJSON_AddStringToObject(config, names[i], special[i > 0]);
        cJSON_AddStringToObject(map, names[i], special[i > 0]);
    }
    cJSON_AddStringToObject(config, "tokenizer_class", "CLIPTokenizer");
    cJSON_AddNumberToObject(config, "model_max_length", max_len);
    cJSON_AddTrueToObject(config, "do_lower_case");
    cJSON_AddFalseToObject(config, "add_prefix_space");
    cJSON_AddStringToObject(config, "errors", "replace");
    int rc = write_json(dir, "vocab.json", vocab, false, err);
    if (rc == 0)
        rc = write_json(dir, "special_tokens_map.json", map, true, err);
    if (rc == 0)
        rc = write_json(dir, "tokenizer_config.json", config, true, err);
    if (rc == 0)
        rc = write_file(dir, "merges.txt", t->merges.v, t->merges.n, err);
    cJSON_Delete(vocab);
    cJSON_Delete(map);
    cJSON_Delete(config);
    return rc;
}

int dt_tok_train_clip(const dt_strs *captions, int vocab_size, int max_len, const char *dir, dt_err *err)
{
    static const char version[] = "#version: 0.2\n";
    struct trainer t = {0};
    int rc;
    if (vocab_size < BYTES + 2 || max_len < 2)
        return dt_err_set(err, DT_EUSAGE, "a CLIP vocabulary has at least %d entries, and texts at least 2", BYTES + 2);
    if ((rc = dt_mkdirs(dir, err)) < 0 || (rc = split(&t, captions, err)) < 0)
        goto out;
    if (!t.words) {
        rc = dt_err_set(err, DT_EDATA, "no words to train a tokenizer on");
        goto out;
    }
    add_bytes(&t);
    dt_text_add(&t.merges, version, sizeof version - 1);
    for (int64_t i = 0; i < t.words; i++)
        count_word(&t, i, 1, -1);
    for (int64_t i = 0; i < t.pairs; i++)
        push(&t, i);
    for (int32_t p; t.symbol.n < vocab_size - 2 && (p = best_pair(&t)) >= 0;)
        merge_pair(&t, p);
    rc = write_clip(&t, max_len, dir, err);
    if (rc == 0)
        rc = t.symbol.n + 2;
out:
    trainer_release(&t);
    return rc;
}

/* --- T5 --- */
static int write_t5(int max_len, const void *proto, size_t bytes, const char *dir, dt_err *err)
{
    static const char *const special[3] = { "<pad>", "</s>", "<unk>" };
    static const char *const names[3] = { "pad_token", "eos_token", "unk_token" };
    cJSON *config = cJSON_CreateObject();
    for (int i = 0; i < 3; i++)
        add_decoder(config, i, special[i], false);
    for (int i = 0; i < 3; i++)
        cJSON_AddStringToObject(config, names[i], special[i]);
    cJSON_AddStringToObject(config, "tokenizer_class", "T5Tokenizer");
    cJSON_AddNumberToObject(config, "model_max_length", max_len);
    cJSON_AddNumberToObject(config, "extra_ids", 0);
    cJSON_AddItemToObject(config, "additional_special_tokens", cJSON_CreateArray());
    cJSON_AddFalseToObject(config, "legacy");
    int rc = write_json(dir, "tokenizer_config.json", config, true, err);
    cJSON_Delete(config);
    return rc < 0 ? rc : write_file(dir, "spiece.model", proto, bytes, err);
}

/* Characters that a vocabulary must hold one by one, if all are to be known. */
static int64_t distinct_characters(const dt_strs *s)
{
    uint8_t *seen = dt_alloc(0x110000);
    int64_t n = 0;
    int32_t cp;
    for (int64_t i = 0; i < s->n; i++)
        for (const char *p = s->v[i]; *p;) {
            p += dt_uni_get(p, &cp);
            n += !seen[cp];
            seen[cp] = 1;
        }
    free(seen);
    return n;
}

int dt_tok_train_t5(const dt_strs *captions, int vocab_size, int max_len, const char *dir, dt_err *err)
{
    char size[16];
    snprintf(size, sizeof size, "%d", vocab_size);
    const char *options[] = {
        "character_coverage", "1.0", "model_type", "unigram", "vocab_size", size, "hard_vocab_limit", "false",
        "pad_id", "0", "eos_id", "1", "unk_id", "2", "bos_id", "-1", "pad_piece", "<pad>",
        "byte_fallback", "false", "normalization_rule_name", "nmt_nfkc",
        "max_sentence_length", "1048576",
        "num_threads", "1",                     /* sums in another order would give other scores */
        "shuffle_input_sentence", "false", "minloglevel", "3", NULL,
    };
    dt_strs lines = {0};
    dt_tokenizer *t = NULL;
    void *proto = NULL;
    size_t bytes;
    int rc;
    if (vocab_size < 8 || max_len < 1)
        return dt_err_set(err, DT_EUSAGE, "a T5 vocabulary has at least 8 entries, and texts at least 1");
    for (int64_t i = 0; i < captions->n; i++) {
        dt_text clean = {0};
        dt_uni_clean(&clean, captions->v[i]);
        dt_text_add(&clean, "", 1);
        if (clean.n > 1)
            dt_strs_add(&lines, clean.v);
        free(clean.v);
    }
    /* T5's own coverage, for scripts with more characters than there is room for */
    if (2 * distinct_characters(&lines) > vocab_size)
        options[1] = "0.9995";
    if (!lines.n)
        rc = dt_err_set(err, DT_EDATA, "no words to train a tokenizer on");
    else if ((rc = dt_mkdirs(dir, err)) == 0 && (rc = dt_spm_train(options, lines.v, lines.n, &proto, &bytes, err)) == 0
             && (rc = write_t5(max_len, proto, bytes, dir, err)) == 0 && (rc = dt_tokenizer_open(&t, dir, err)) == 0)
        rc = dt_tokenizer_vocab(t);
    dt_tokenizer_close(&t);
    dt_strs_release(&lines);
    free(proto);
    return rc;
}
