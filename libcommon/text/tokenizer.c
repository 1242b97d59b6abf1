/* tokenizer.c - which tokenizer a folder holds, and the way of a caption through it:
 *   bytes -> UTF-8 -> cut out added tokens -> normalise -> cut out normalised added tokens -> model -> special tokens
 *
 * The ids are those of transformers 5, which diffusers loads.  What its older tokenizers do otherwise:
 *   CLIPTokenizer of transformers 4 (slow)  drops controls and U+FFFD and puts spaces around CJK ideographs, or runs
 *                                           ftfy if it is installed
 *   T5Tokenizer of transformers 4 (slow)    does not end with </s> twice, puts no space after an added token, takes
 *                                           U+2581 in the text for a space and U+0085 for none, composes a letter
 *                                           with two marks (charsmap.c), and breaks ties otherwise (unigram.c)
 *   CLIPTokenizerFast, T5TokenizerFast      nothing
 * `tests/golden/tok_make.py` under transformers 4 lists the strings. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "text/internal.h"
#include "text/tokenizer.h"

const char *const dt_padding_names[] = { "max", "none", NULL };

enum kind { KIND_CLIP, KIND_QWEN2, KIND_T5 };
enum { VOCAB_MAX_BYTES = 256 << 20 };

struct dt_tokenizer {
    enum kind    kind;
    char        *name;
    int64_t      max_len;
    int32_t      bos, eos, pad;
    int          specials;              /* ids put around a text */
    dt_vocab     vocab;
    dt_norm      norm;                  /* of BPE; a dt_unigram has its own */
    dt_bpe      *bpe;
    dt_unigram  *unigram;
    dt_added_set raw, normalized;       /* added tokens matched before, and after, normalising */
    pthread_mutex_t lock;               /* guards `pool` */
    dt_scratch  *pool;
};

struct source {                         /* what dt_tokenizer_open works with */
    const char *dir;
    char *vocab_json, *merges_txt, *spiece, *tokenizer_json;
    bool  pair, model;                  /* which of them exist */
    cJSON *fast;                        /* tokenizer.json, when the others do not */
    dt_tok_config config;
};

/* --- scratch --- */
static dt_scratch *scratch_get(dt_tokenizer *t)
{
    pthread_mutex_lock(&t->lock);
    dt_scratch *sc = t->pool;
    if (sc)
        t->pool = sc->next;
    pthread_mutex_unlock(&t->lock);
    if (!sc) {
        sc = dt_alloc(sizeof *sc);
        sc->match = dt_must(pcre2_match_data_create(2, NULL));
    }
    sc->clean.n = sc->ids.n = 0;
    dt_grow(&sc->clean.v, &sc->clean.cap, 1, 1);    /* never NULL, also for an empty text */
    dt_grow(&sc->ids.v, &sc->ids.cap, 1, sizeof *sc->ids.v);
    return sc;
}

static void scratch_put(dt_tokenizer *t, dt_scratch *sc)
{
    pthread_mutex_lock(&t->lock);
    sc->next = t->pool;
    t->pool = sc;
    pthread_mutex_unlock(&t->lock);
}

void dt_scratch_release(dt_scratch *sc)
{
    free(sc->clean.v);
    free(sc->norm[0].v);
    free(sc->norm[1].v);
    free(sc->word.v);
    free(sc->ids.v);
    free(sc->cps);
    free(sc->sym);
    free(sc->heap);
    free(sc->best);
    dt_words_release(&sc->words);
    pcre2_match_data_free(sc->match);
    *sc = (dt_scratch){0};
}

/* --- opening --- */
/* {"a": 0, "b": 1, ...} */
static int put_vocab(dt_vocab *v, const cJSON *ids, const char *what, dt_err *err)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, ids) {
        if (!e->string || !cJSON_IsNumber(e) || !(e->valuedouble >= 0 && e->valuedouble < DT_TOK_MAX_ID))
            return dt_err_set(err, DT_EDATA, "%s: '%s' has no id", what, e->string ? e->string : "");
        dt_vocab_put(v, e->string, strlen(e->string), e->valuedouble);
    }
    return 0;
}

static const cJSON *fast_model(const struct source *src)
{
    return cJSON_GetObjectItemCaseSensitive(src->fast, "model");
}

/* Old files do not say the type. */
static bool fast_is(const struct source *src, const char *type)
{
    const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(fast_model(src), "type"));
    if (!s && cJSON_GetObjectItemCaseSensitive(fast_model(src), "unk_id"))
        s = "Unigram";
    if (!s && cJSON_GetObjectItemCaseSensitive(fast_model(src), "merges"))
        s = "BPE";
    return s && !strcmp(s, type);
}

static int read_vocab(dt_tokenizer *t, const struct source *src, dt_err *err)
{
    if (!src->pair)
        return put_vocab(&t->vocab, cJSON_GetObjectItemCaseSensitive(fast_model(src), "vocab"), src->tokenizer_json,
                         err);
    cJSON *ids = NULL;
    int rc = dt_json_read(&ids, src->vocab_json, VOCAB_MAX_BYTES, err);
    if (rc == 0)
        rc = put_vocab(&t->vocab, ids, src->vocab_json, err);
    cJSON_Delete(ids);
    return rc;
}

static int32_t named_id(const dt_tokenizer *t, const struct source *src, int which)
{
    const char *s = src->config.named[which];
    return s ? dt_tokenizer_id(t, s) : -1;
}

static int open_bpe(dt_tokenizer *t, struct source *src, dt_err *err)
{
    bool clip = t->kind == KIND_CLIP;
    const char *what = src->pair ? src->merges_txt : src->tokenizer_json;
    char *merges = NULL;
    size_t bytes;
    int rc;
    if (clip)
        dt_tok_config_default(&src->config, DT_TOK_BOS, "<|startoftext|>");
    for (int i = DT_TOK_EOS; i <= DT_TOK_PAD; i++)
        if (i != DT_TOK_SEP)
            dt_tok_config_default(&src->config, i, "<|endoftext|>");
    if ((src->pair && (rc = dt_file_read_member(&merges, &bytes, src->merges_txt, VOCAB_MAX_BYTES, err)) < 0)
        || (rc = dt_norm_add(&t->norm, DT_NORM_NFC, what, err)) < 0
        || (clip && (rc = dt_norm_add(&t->norm, DT_NORM_SPACES, what, err)) < 0)
        || (clip && (rc = dt_norm_add(&t->norm, DT_NORM_LOWER, what, err)) < 0))
        goto out;
    rc = dt_bpe_open(&t->bpe, &t->vocab, merges, cJSON_GetObjectItemCaseSensitive(fast_model(src), "merges"),
                     clip ? "</w>" : "", clip ? dt_bpe_clip_pattern : dt_bpe_qwen2_pattern,
                     clip ? named_id(t, src, DT_TOK_UNK) : -1, what, err);
out:
    free(merges);
    return rc;
}

static void add_special(dt_tok_config *c, const char *text, int64_t len)
{
    for (int64_t k = 0; k < c->added.n; k++)
        if (c->added.v[k].len == len && !memcmp(c->added.v[k].text, text, len))
            return;
    dt_added_put(&c->added, &(dt_added){ .text = (char *)text, .len = len, .id = -1 });
}

static int open_spiece(dt_tokenizer *t, struct source *src, dt_err *err)
{
    dt_spiece m = {0};
    char *data = NULL;
    size_t bytes;
    int64_t sentinels = src->config.extra_ids >= 0 ? src->config.extra_ids : 100;
    int rc;
    if ((rc = dt_file_read_member(&data, &bytes, src->spiece, VOCAB_MAX_BYTES, err)) < 0
        || (rc = dt_spiece_parse(&m, data, bytes, src->spiece, err)) < 0
        || (rc = dt_unigram_open_spiece(&t->unigram, &m, sentinels, &t->vocab, src->spiece, err)) < 0)
        goto out;
    for (int64_t i = 0; i < m.n; i++)
        if (m.piece[i].type == DT_PIECE_CONTROL || m.piece[i].type == DT_PIECE_USER)
            add_special(&src->config, m.piece[i].text, m.piece[i].len);
    for (int64_t i = 0; i < sentinels; i++) {
        char *text = dt_sprintf("<extra_id_%lld>", (long long)i);
        add_special(&src->config, text, strlen(text));
        free(text);
    }
out:
    dt_spiece_release(&m);
    free(data);
    return rc;
}

static int open_t5(dt_tokenizer *t, struct source *src, dt_err *err)
{
    dt_tok_config_default(&src->config, DT_TOK_EOS, "</s>");
    dt_tok_config_default(&src->config, DT_TOK_UNK, "<unk>");
    dt_tok_config_default(&src->config, DT_TOK_PAD, "<pad>");
    if (src->model)
        return open_spiece(t, src, err);
    return dt_unigram_open_json(&t->unigram, src->fast, &t->vocab, src->tokenizer_json, err);
}

static const dt_norm *norm_of(const dt_tokenizer *t)
{
    return t->unigram ? dt_unigram_norm(t->unigram) : &t->norm;
}

/* Gives ids to the added tokens and sorts them by when they are matched. */
static int place_added(dt_tokenizer *t, const struct source *src, dt_err *err)
{
    dt_scratch *sc = scratch_get(t);
    int rc = 0;
    for (int64_t i = 0; i < src->config.added.n && rc == 0; i++) {
        dt_added tok = src->config.added.v[i];
        int32_t known = dt_tokenizer_id(t, tok.text);
        if (known >= 0)
            tok.id = known;
        else if (tok.id < 0)
            tok.id = t->vocab.top;
        dt_vocab_put(&t->vocab, tok.text, tok.len, tok.id);
        const char *s = tok.text;
        if (tok.normalized && (rc = dt_norm_run(norm_of(t), sc, &s, &tok.len, err)) < 0)
            break;
        tok.text = (char *)s;
        if (tok.len <= 0)                       /* normalised to nothing: it cannot occur */
            continue;
        dt_added_put(tok.normalized ? &t->normalized : &t->raw, &tok);
    }
    scratch_put(t, sc);
    dt_added_sort(&t->raw);
    dt_added_sort(&t->normalized);
    return rc;
}

static int find_kind(enum kind *kind, const struct source *src, dt_err *err)
{
    const char *class = src->config.class;
    bool generic = !class || !strcmp(class, "PreTrainedTokenizerFast") || !strcmp(class, "TokenizersBackend");
    bool bpe = src->pair || fast_is(src, "BPE"), unigram = src->model || fast_is(src, "Unigram");
    const char *suffix = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(fast_model(src), "end_of_word_suffix"));
    if (bpe && (generic ? src->pair || (suffix && !strcmp(suffix, "</w>")) : !!strstr(class, "CLIP")))
        *kind = KIND_CLIP;
    else if (bpe && !generic && strstr(class, "Qwen2"))
        *kind = KIND_QWEN2;
    else if (unigram && (generic || strstr(class, "T5")))
        *kind = KIND_T5;
    else if (class && !generic && !strstr(class, "CLIP") && !strstr(class, "Qwen2") && !strstr(class, "T5"))
        return dt_err_set(err, DT_EDATA, "%s: no support for tokenizer_class '%s' (known: CLIPTokenizer, T5Tokenizer, "
                          "Qwen2Tokenizer)", src->dir, class);
    else
        return dt_err_set(err, DT_EDATA, "%s: no tokenizer files%s%s (vocab.json and merges.txt, spiece.model, or "
                          "tokenizer.json)", src->dir, class ? " for " : "", class ? class : "");
    return 0;
}

static int open_source(dt_tokenizer *t, struct source *src, dt_err *err)
{
    static const char *const class_of[] = { "CLIPTokenizer", "Qwen2Tokenizer", "T5Tokenizer" };
    int rc;
    if (!dt_is_dir(src->dir))
        return dt_err_set(err, DT_EDATA, "%s: no such folder", src->dir);
    if (!src->pair && !src->model && dt_exists(src->tokenizer_json)
        && (rc = dt_json_read(&src->fast, src->tokenizer_json, VOCAB_MAX_BYTES, err)) < 0)
        return rc;
    if ((rc = dt_tok_config_read(&src->config, src->dir, src->fast, err)) < 0
        || (rc = find_kind(&t->kind, src, err)) < 0)
        return rc;
    bool bpe = t->kind == KIND_CLIP || t->kind == KIND_QWEN2;
    t->name = dt_strdup(src->config.class ? src->config.class : class_of[t->kind]);
    t->max_len = src->config.max_len;
    if ((bpe && (rc = read_vocab(t, src, err)) < 0)
        || (rc = bpe ? open_bpe(t, src, err) : open_t5(t, src, err)) < 0
        || (rc = place_added(t, src, err)) < 0)
        return rc;
    t->bos = t->kind == KIND_CLIP ? named_id(t, src, DT_TOK_BOS) : -1;
    t->eos = named_id(t, src, DT_TOK_EOS);
    t->pad = named_id(t, src, DT_TOK_PAD);
    t->specials = t->kind == KIND_CLIP ? 2 : t->kind == KIND_QWEN2 ? 0 : 1;
    return 0;
}

int dt_tokenizer_open(dt_tokenizer **out, const char *dir, dt_err *err)
{
    dt_tokenizer *t = dt_alloc(sizeof *t);
    struct source src = {
        .dir = dir, .vocab_json = dt_path_join(dir, "vocab.json"), .merges_txt = dt_path_join(dir, "merges.txt"),
        .spiece = dt_path_join(dir, "spiece.model"), .tokenizer_json = dt_path_join(dir, "tokenizer.json"),
    };
    src.pair = dt_exists(src.vocab_json) && dt_exists(src.merges_txt);
    src.model = dt_exists(src.spiece);
    pthread_mutex_init(&t->lock, NULL);
    int rc = open_source(t, &src, err);
    dt_tok_config_release(&src.config);
    cJSON_Delete(src.fast);
    free(src.vocab_json);
    free(src.merges_txt);
    free(src.spiece);
    free(src.tokenizer_json);
    if (rc < 0)
        dt_tokenizer_close(&t);
    else
        *out = t;
    return rc;
}

void dt_tokenizer_close(dt_tokenizer **tp)
{
    dt_tokenizer *t = *tp;
    if (!t)
        return;
    for (dt_scratch *sc = t->pool, *next; sc; sc = next) {
        next = sc->next;
        dt_scratch_release(sc);
        free(sc);
    }
    pthread_mutex_destroy(&t->lock);
    dt_norm_release(&t->norm);
    dt_bpe_close(&t->bpe);
    dt_unigram_close(&t->unigram);
    dt_added_release(&t->raw);
    dt_added_release(&t->normalized);
    dt_vocab_release(&t->vocab);
    free(t->name);
    free(t);
    *tp = NULL;
}

/* --- encoding --- */
static int encode_model(dt_tokenizer *t, dt_scratch *sc, const char *s, int64_t n, bool first, dt_err *err)
{
    if (n <= 0)
        return 0;
    if (t->bpe)
        return dt_bpe_encode(t->bpe, sc, s, n, err);
    dt_unigram_encode(t->unigram, sc, s, n, first);
    return 0;
}

/* A stretch without tokens of t->raw. */
static int encode_stretch(dt_tokenizer *t, dt_scratch *sc, const char *s, int64_t n, bool first, dt_err *err)
{
    int64_t at = 0, start, stop;
    int32_t id;
    int rc;
    if (n <= 0)
        return 0;
    if ((rc = dt_norm_run(norm_of(t), sc, &s, &n, err)) < 0 || n <= 0)
        return rc;
    while (sc->ids.n < sc->limit && dt_added_next(&t->normalized, s, n, at, &start, &stop, &id)) {
        if ((rc = encode_model(t, sc, s + at, start - at, first && at == 0, err)) < 0)
            return rc;
        dt_ids_add(&sc->ids, id);
        at = stop;
    }
    return encode_model(t, sc, s + at, n - at, first && at == 0, err);
}

static int encode(dt_tokenizer *t, dt_scratch *sc, dt_err *err)
{
    const char *s = sc->clean.v;
    int64_t n = sc->clean.n, at = 0, start, stop;
    int32_t id;
    int rc;
    while (sc->ids.n < sc->limit && dt_added_next(&t->raw, s, n, at, &start, &stop, &id)) {
        if ((rc = encode_stretch(t, sc, s + at, start - at, at == 0, err)) < 0)
            return rc;
        dt_ids_add(&sc->ids, id);
        at = stop;
    }
    return sc->ids.n < sc->limit ? encode_stretch(t, sc, s + at, n - at, at == 0, err) : 0;
}

int64_t dt_tokenize(dt_tokenizer *t, const char *utf8, int64_t max_len, bool pad, int32_t *ids, dt_err *err)
{
    if (max_len < t->specials)
        return dt_err_set(err, DT_EUSAGE, "%s: %lld tokens have no room for the special ones", t->name,
                          (long long)max_len);
    if (pad && t->pad < 0)
        return dt_err_set(err, DT_EDATA, "%s: no pad token", t->name);
    dt_scratch *sc = scratch_get(t);
    dt_uni_clean(&sc->clean, utf8);
    sc->limit = max_len + 1;
    int rc = encode(t, sc, err);
    int64_t n = 0, k = sc->ids.n < max_len - t->specials ? sc->ids.n : max_len - t->specials;
    if (rc == 0) {
        if (t->kind == KIND_CLIP)
            ids[n++] = t->bos;
        if (k)
            memcpy(ids + n, sc->ids.v, k * sizeof *ids);
        n += k;
        if (t->kind != KIND_QWEN2)
            ids[n++] = t->eos;
        for (int64_t i = n; pad && i < max_len; i++)
            ids[i] = t->pad;
    }
    scratch_put(t, sc);
    return rc < 0 ? rc : n;
}

/* --- what it is --- */
int32_t dt_tokenizer_bos(const dt_tokenizer *t)
{
    return t->bos;
}

int32_t dt_tokenizer_eos(const dt_tokenizer *t)
{
    return t->eos;
}

int32_t dt_tokenizer_pad(const dt_tokenizer *t)
{
    return t->pad;
}

int32_t dt_tokenizer_vocab(const dt_tokenizer *t)
{
    return t->vocab.top;
}

int64_t dt_tokenizer_max_len(const dt_tokenizer *t)
{
    return t->max_len;
}

const char *dt_tokenizer_name(const dt_tokenizer *t)
{
    return t->name;
}

int32_t dt_tokenizer_id(const dt_tokenizer *t, const char *token)
{
    return dt_vocab_get(&t->vocab, token, strlen(token));
}
