/* bpe.c - byte-level byte pair encoding.  Sennrich et al., "Neural machine translation of rare words with
 * subword units", ACL 2016; on bytes: Radford et al., "Language models are unsupervised multitask learners", 2019.
 *
 * A word's symbols are its bytes (the last one with the suffix); again and again the neighbours whose merge has
 * the lowest rank, leftmost first, become one symbol.  The order of a heap on (rank, position) with stale entries
 * skipped is that of the tokenizers library. */
#include <stdlib.h>
#include <string.h>
#include "text/internal.h"

/* The library also splits what the first alternative finds ("<|endoftext|>" in letters that no added token
 * matched, say from upper case) by GPT-2's pattern; the group lets encode_word() do so. */
const char dt_bpe_clip_pattern[] =
    "(<\\|(?:start|end)oftext\\|>)|'s|'t|'re|'ve|'m|'ll|'d|[" DT_RE_LETTER "]+|[" DT_RE_NUMBER "]"
    "|[^" DT_RE_SPACE DT_RE_LETTER DT_RE_NUMBER "]+";
const char dt_bpe_qwen2_pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n" DT_RE_LETTER DT_RE_NUMBER "]?[" DT_RE_LETTER "]+|[" DT_RE_NUMBER "]"
    "| ?[^" DT_RE_SPACE DT_RE_LETTER DT_RE_NUMBER "]+[\\r\\n]*|[" DT_RE_SPACE "]*[\\r\\n]+"
    "|[" DT_RE_SPACE "]+(?![^" DT_RE_SPACE "])|[" DT_RE_SPACE "]+";

struct rule { uint64_t pair; int32_t rank, id; };   /* pair = left << 32 | right; rank < 0: free */
struct dt_bpe {
    int32_t      first[256], last[256];             /* symbol of a byte, inside and at the end of a word; -1: none */
    struct rule *rule;
    int64_t      rules, cap;                        /* cap is a power of two */
    int32_t      unk;                               /* -1: unknown bytes vanish */
    pcre2_code  *re;
};

int32_t dt_bpe_char(uint8_t byte)
{
    static const uint8_t gap[3][2] = { { 0, 32 }, { 127, 160 }, { 173, 173 } };     /* not printable in Latin-1 */
    int32_t n = 256;
    for (int i = 0; i < 3; i++) {
        if (byte < gap[i][0])
            break;
        if (byte <= gap[i][1])
            return n + byte - gap[i][0];
        n += gap[i][1] - gap[i][0] + 1;
    }
    return byte;
}

static struct rule *rule_slot(const dt_bpe *b, uint64_t pair)
{
    for (uint64_t i = (pair * 0x9e3779b97f4a7c15u) >> 20;; i++) {
        struct rule *r = &b->rule[i & (b->cap - 1)];
        if (r->rank < 0 || r->pair == pair)
            return r;
    }
}

static const struct rule *find_rule(const dt_bpe *b, int32_t left, int32_t right)
{
    const struct rule *r = rule_slot(b, (uint64_t)left << 32 | (uint32_t)right);
    return r->rank < 0 ? NULL : r;
}

static void reserve_rules(dt_bpe *b, int64_t n)
{
    for (b->cap = 64; b->cap < 2 * n; b->cap *= 2)
        ;
    b->rule = dt_alloc(b->cap * sizeof *b->rule);
    for (int64_t i = 0; i < b->cap; i++)
        b->rule[i].rank = -1;
}

/* --- building --- */
static int add_rule(dt_bpe *b, const dt_vocab *v, const char *l, int64_t ln, const char *r, int64_t rn, dt_text *tmp,
                    const char *what, dt_err *err)
{
    int32_t left = dt_vocab_get(v, l, ln), right = dt_vocab_get(v, r, rn);
    tmp->n = 0;
    dt_text_add(tmp, l, ln);
    dt_text_add(tmp, r, rn);
    int32_t id = dt_vocab_get(v, tmp->v, tmp->n);
    if (left < 0 || right < 0 || id < 0)
        return dt_err_set(err, DT_EDATA, "%s: merge %lld ('%.*s %.*s') is not in the vocabulary", what,
                          (long long)b->rules + 1, (int)ln, l, (int)rn, r);
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    *rule_slot(b, pair) = (struct rule){ pair, b->rules++, id };
    return 0;
}

static int add_line(dt_bpe *b, const dt_vocab *v, const char *s, int64_t n, dt_text *tmp, const char *what, dt_err *err)
{
    const char *gap = memchr(s, ' ', n);
    if (!gap)
        return dt_err_set(err, DT_EDATA, "%s: merge %lld has no space", what, (long long)b->rules + 1);
    return add_rule(b, v, s, gap - s, gap + 1, s + n - gap - 1, tmp, what, err);
}

static int read_lines(dt_bpe *b, const dt_vocab *v, const char *merges, const char *what, dt_err *err)
{
    dt_text tmp = {0};
    int64_t lines = 1;
    int rc = 0;
    for (const char *p = merges; *p; p++)
        lines += *p == '\n';
    reserve_rules(b, lines);
    for (const char *p = merges, *end; *p && rc == 0; p = *end ? end + 1 : end) {
        end = p + strcspn(p, "\n");
        int64_t n = end - p - (end > p && end[-1] == '\r');
        if (n > 0 && !(n >= 8 && !memcmp(p, "#version", 8)))
            rc = add_line(b, v, p, n, &tmp, what, err);
    }
    free(tmp.v);
    return rc;
}

static int read_list(dt_bpe *b, const dt_vocab *v, const cJSON *list, const char *what, dt_err *err)
{
    dt_text tmp = {0};
    int rc = 0;
    const cJSON *e;
    reserve_rules(b, cJSON_GetArraySize(list));
    cJSON_ArrayForEach(e, list) {
        const char *l = cJSON_GetStringValue(cJSON_GetArrayItem(e, 0));
        const char *r = cJSON_GetStringValue(cJSON_GetArrayItem(e, 1));
        if (cJSON_IsString(e))
            rc = add_line(b, v, e->valuestring, strlen(e->valuestring), &tmp, what, err);
        else if (l && r)
            rc = add_rule(b, v, l, strlen(l), r, strlen(r), &tmp, what, err);
        else
            rc = dt_err_set(err, DT_EDATA, "%s: merge %lld is no pair", what, (long long)b->rules + 1);
        if (rc < 0)
            break;
    }
    free(tmp.v);
    return rc;
}

int dt_bpe_open(dt_bpe **out, const dt_vocab *v, const char *merges, const cJSON *list, const char *suffix,
                const char *pattern, int32_t unk, const char *what, dt_err *err)
{
    dt_bpe *b = dt_alloc(sizeof *b);
    dt_text tmp = {0};
    b->unk = unk;
    for (int i = 0; i < 256; i++) {
        tmp.n = 0;
        dt_text_cp(&tmp, dt_bpe_char(i));
        b->first[i] = dt_vocab_get(v, tmp.v, tmp.n);
        dt_text_add(&tmp, suffix, strlen(suffix));
        b->last[i] = dt_vocab_get(v, tmp.v, tmp.n);
    }
    free(tmp.v);
    if (b->last['a'] < 0) {
        dt_bpe_close(&b);
        return dt_err_set(err, DT_EDATA, "%s: the vocabulary has no 'a%s' (is tokenizer_class right?)", what, suffix);
    }
    int rc = merges ? read_lines(b, v, merges, what, err) : read_list(b, v, list, what, err);
    if (rc == 0)
        rc = dt_re_compile(&b->re, pattern, err);
    if (rc < 0)
        dt_bpe_close(&b);
    else
        *out = b;
    return rc;
}

void dt_bpe_close(dt_bpe **b)
{
    if (!*b)
        return;
    pcre2_code_free((*b)->re);
    free((*b)->rule);
    free(*b);
    *b = NULL;
}

/* --- merging --- */
static bool before(struct dt_merge a, struct dt_merge b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.pos < b.pos;
}

static void heap_push(dt_scratch *sc, struct dt_merge m)
{
    dt_grow(&sc->heap, &sc->heap_cap, sc->heap_n + 1, sizeof *sc->heap);
    int64_t i = sc->heap_n++;
    for (; i > 0 && before(m, sc->heap[(i - 1) / 2]); i = (i - 1) / 2)
        sc->heap[i] = sc->heap[(i - 1) / 2];
    sc->heap[i] = m;
}

static struct dt_merge heap_pop(dt_scratch *sc)
{
    struct dt_merge top = sc->heap[0], m = sc->heap[--sc->heap_n];
    int64_t i = 0;
    for (int64_t k; (k = 2 * i + 1) < sc->heap_n; i = k) {
        if (k + 1 < sc->heap_n && before(sc->heap[k + 1], sc->heap[k]))
            k++;
        if (!before(sc->heap[k], m))
            break;
        sc->heap[i] = sc->heap[k];
    }
    sc->heap[i] = m;
    return top;
}

static void offer(const dt_bpe *b, dt_scratch *sc, int32_t left, int32_t right)
{
    if (left < 0 || right < 0)
        return;
    const struct rule *r = find_rule(b, sc->sym[left].id, sc->sym[right].id);
    if (r)
        heap_push(sc, (struct dt_merge){ r->rank, left, r->id });
}

static void merge_all(const dt_bpe *b, dt_scratch *sc, int32_t n)
{
    struct dt_symbol *sym = sc->sym;
    sc->heap_n = 0;
    for (int32_t i = 0; i + 1 < n; i++)
        offer(b, sc, i, i + 1);
    while (sc->heap_n) {
        struct dt_merge m = heap_pop(sc);
        struct dt_symbol *l = &sym[m.pos];
        if (l->id < 0 || l->next < 0)
            continue;
        struct dt_symbol *r = &sym[l->next];
        const struct rule *rule = find_rule(b, l->id, r->id);
        if (!rule || rule->id != m.id)
            continue;                               /* a stale entry: the neighbours have changed */
        l->id = m.id;
        l->next = r->next;
        r->id = -1;
        if (l->next >= 0)
            sym[l->next].prev = m.pos;
        offer(b, sc, l->prev, m.pos);
        offer(b, sc, m.pos, l->next);
    }
}

static void merge_word(const dt_bpe *b, dt_scratch *sc, const char *s, int64_t n)
{
    int32_t k = 0;
    dt_grow(&sc->sym, &sc->sym_cap, n, sizeof *sc->sym);
    for (int64_t i = 0; i < n; i++) {
        unsigned char c = s[i];
        int32_t id = i + 1 < n ? b->first[c] : b->last[c];
        if (id < 0 && (id = b->unk) < 0)
            continue;
        sc->sym[k] = (struct dt_symbol){ id, k - 1, k + 1 };
        k++;
    }
    if (!k)
        return;
    sc->sym[k - 1].next = -1;
    merge_all(b, sc, k);
    for (int32_t i = 0; i >= 0; i = sc->sym[i].next)
        dt_ids_add(&sc->ids, sc->sym[i].id);
}

static void encode_word(const dt_bpe *b, dt_scratch *sc, const char *s, int64_t n)
{
    uint64_t hash = dt_words_hash(s, n);
    int64_t from = sc->ids.n;
    if (dt_words_get(&sc->words, hash, s, n, &sc->ids))
        return;
    merge_word(b, sc, s, n);
    dt_words_put(&sc->words, hash, s, n, sc->ids.v + from, sc->ids.n - from);
}

int dt_bpe_encode(const dt_bpe *b, dt_scratch *sc, const char *s, int64_t n, dt_err *err)
{
    for (int64_t at = 0; at < n && sc->ids.n < sc->limit;) {
        int rc = pcre2_match(b->re, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, sc->match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return dt_err_set(err, DT_EFAIL, "pattern matching failed (PCRE2 error %d)", rc);
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(sc->match);
        const char *word = s + ov[0];
        int64_t len = ov[1] - ov[0];
        at = ov[1];
        if (rc > 1) {                               /* "<|" "endoftext" "|>" */
            encode_word(b, sc, word, 2);
            encode_word(b, sc, word + 2, len - 4);
            encode_word(b, sc, word + len - 2, 2);
        } else {
            encode_word(b, sc, word, len);
        }
    }
    return 0;
}
