/* unigram.c - Unigram language model.  Kudo, "Subword regularization", ACL 2018.
 *
 *   best(j) = max over pieces x = s[i..j) of best(i) + score(x),    best(0) = 0, in fp64, the first maximum wins
 *
 * A character that is no piece costs min(score) - 10 as <unk>; runs of them become one.  The normaliser and the
 * pre-tokenisers (WhitespaceSplit, Metaspace) are those of the file.
 *
 * libsentencepiece adds scores in fp32, and where two paths cost the same ("!!!!!!!" is "!!" "!!!!!" or the reverse)
 * its versions choose differently; so a spiece.model is run here too, as transformers 5 does, and the ids do not
 * depend on the library's version. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "text/internal.h"

struct edge { uint64_t key; int32_t node; };    /* key = (node + 1) << 8 | byte; 0: free */
struct node { double score; int32_t id; };      /* id < 0: no piece ends here */
struct dt_unigram {
    struct edge *edge;
    int64_t edges, edge_cap;                    /* edge_cap is a power of two */
    struct node *node;                          /* [nodes], 0 is the root */
    int64_t nodes, node_cap;
    double  min_score;
    int32_t unk, pieces;
    int32_t byte_id[256];                       /* byte_fallback; byte_id[0] < 0: none */
    bool    split_spaces;                       /* WhitespaceSplit */
    bool    metaspace, meta_split;
    enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } prepend;
    dt_norm norm;
};

/* --- trie --- */
static struct edge *edge_slot(const dt_unigram *u, int64_t node, unsigned char byte)
{
    uint64_t key = (uint64_t)(node + 1) << 8 | byte;
    for (uint64_t i = (key * 0x9e3779b97f4a7c15u) >> 20;; i++) {
        struct edge *e = &u->edge[i & (u->edge_cap - 1)];
        if (!e->key || e->key == key)
            return e;
    }
}

static void grow_edges(dt_unigram *u)
{
    struct edge *old = u->edge;
    int64_t n = u->edge_cap;
    u->edge_cap = n ? 2 * n : 1 << 16;
    u->edge = dt_alloc(u->edge_cap * sizeof *u->edge);
    for (int64_t i = 0; i < n; i++)
        if (old[i].key)
            *edge_slot(u, (old[i].key >> 8) - 1, old[i].key & 255) = old[i];
    free(old);
}

static int32_t new_node(dt_unigram *u)
{
    dt_grow(&u->node, &u->node_cap, u->nodes + 1, sizeof *u->node);
    u->node[u->nodes] = (struct node){ .id = -1 };
    return u->nodes++;
}

static void add_node(dt_unigram *u, const char *s, int64_t n, double score, int32_t id)
{
    int32_t at = 0;
    for (const char *end = s + n; s < end; s++) {
        if (2 * (u->edges + 1) > u->edge_cap)
            grow_edges(u);
        struct edge *e = edge_slot(u, at, *s);
        if (!e->key) {
            e->key = (uint64_t)(at + 1) << 8 | (unsigned char)*s;
            e->node = new_node(u);
            u->edges++;
        }
        at = e->node;
    }
    u->node[at] = (struct node){ score, id };
}

/* --- from tokenizer.json --- */
static void add_piece(dt_unigram *u, dt_vocab *v, const char *s, int64_t n, double score)
{
    if (u->pieces == 0 || score < u->min_score)
        u->min_score = score;
    if (u->nodes == 0)
        new_node(u);
    if (n)
        add_node(u, s, n, score, u->pieces);
    dt_vocab_put(v, s, n, u->pieces++);
}

static int read_vocab(dt_unigram *u, const cJSON *model, dt_vocab *v, const char *what, dt_err *err)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, cJSON_GetObjectItemCaseSensitive(model, "vocab")) {
        const char *piece = cJSON_GetStringValue(cJSON_GetArrayItem(e, 0));
        const cJSON *score = cJSON_GetArrayItem(e, 1);
        if (!piece || !cJSON_IsNumber(score))
            return dt_err_set(err, DT_EDATA, "%s: entry %d of 'model.vocab' is no [piece, score]", what, u->pieces);
        add_piece(u, v, piece, strlen(piece), score->valuedouble);
    }
    if (!u->pieces)
        return dt_err_set(err, DT_EDATA, "%s: 'model.vocab' is empty", what);
    int64_t unk;
    int rc = dt_json_int(&unk, model, "unk_id", 0, u->pieces - 1, what, err);
    u->unk = unk;
    return rc;
}

static void set_byte_fallback(dt_unigram *u, bool on, const dt_vocab *v)
{
    for (int i = 255; i >= 0; i--) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        u->byte_id[i] = on ? dt_vocab_get(v, name, 6) : -1;
        on = on && u->byte_id[i] >= 0;
    }
    if (!on)
        u->byte_id[0] = -1;
}

static int read_metaspace(dt_unigram *u, const cJSON *node, const char *what, dt_err *err)
{
    static const char *const names[] = { "always", "first", "never" };
    const char *with, *scheme;
    bool prefix;
    int rc, i;
    if ((rc = dt_json_str_or(&with, node, "replacement", DT_METASPACE, what, err)) < 0
        || (rc = dt_json_bool_or(&prefix, node, "add_prefix_space", true, what, err)) < 0
        || (rc = dt_json_str_or(&scheme, node, "prepend_scheme", prefix ? "always" : "never", what, err)) < 0
        || (rc = dt_json_bool_or(&u->meta_split, node, "split", true, what, err)) < 0)
        return rc;
    for (i = 0; i < 3 && strcmp(scheme, names[i]); i++)
        ;
    if (i == 3 || strcmp(with, DT_METASPACE))
        return dt_err_set(err, DT_EDATA, "%s: no support for this Metaspace pre-tokenizer", what);
    u->metaspace = true;
    u->prepend = i;
    return 0;
}

static int read_pretokenizer(dt_unigram *u, const cJSON *node, const char *what, dt_err *err)
{
    if (!node || cJSON_IsNull(node))
        return 0;
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(node, "type"));
    if (type && !strcmp(type, "Sequence")) {
        const cJSON *e;
        cJSON_ArrayForEach(e, cJSON_GetObjectItemCaseSensitive(node, "pretokenizers")) {
            int rc = read_pretokenizer(u, e, what, err);
            if (rc < 0)
                return rc;
        }
        return 0;
    }
    if (type && !strcmp(type, "WhitespaceSplit") && !u->metaspace) {
        u->split_spaces = true;
        return 0;
    }
    if (type && !strcmp(type, "Metaspace") && !u->metaspace)
        return read_metaspace(u, node, what, err);
    return dt_err_set(err, DT_EDATA, "%s: no support for pre-tokenizer '%s' here", what, type ? type : "");
}

int dt_unigram_open_json(dt_unigram **out, const cJSON *root, dt_vocab *v, const char *what, dt_err *err)
{
    dt_unigram *u = dt_alloc(sizeof *u);
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    bool bytes;
    int rc;
    if ((rc = read_vocab(u, model, v, what, err)) < 0
        || (rc = dt_json_bool_or(&bytes, model, "byte_fallback", false, what, err)) < 0
        || (rc = dt_norm_json(&u->norm, cJSON_GetObjectItemCaseSensitive(root, "normalizer"), what, err)) < 0
        || (rc = read_pretokenizer(u, cJSON_GetObjectItemCaseSensitive(root, "pre_tokenizer"), what, err)) < 0) {
        dt_unigram_close(&u);
        return rc;
    }
    set_byte_fallback(u, bytes, v);
    *out = u;
    return 0;
}

/* --- from spiece.model --- */
int dt_unigram_open_spiece(dt_unigram **out, const dt_spiece *m, int64_t extra_ids, dt_vocab *v, const char *what,
                           dt_err *err)
{
    dt_unigram *u = dt_alloc(sizeof *u);
    int rc = 0;
    for (int64_t i = 0; i < m->n; i++)
        add_piece(u, v, m->piece[i].text, m->piece[i].len, m->piece[i].score);
    for (int64_t i = extra_ids - 1; i >= 0; i--) {          /* T5 puts its sentinels behind, the last first */
        char *text = dt_sprintf("<extra_id_%lld>", (long long)i);
        add_piece(u, v, text, strlen(text), 0);
        free(text);
    }
    u->unk = m->unk_id;
    u->split_spaces = m->collapse_spaces;
    u->metaspace = u->meta_split = true;
    u->prepend = m->dummy_prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    set_byte_fallback(u, m->byte_fallback, v);
    if (m->charsmap_bytes)
        rc = dt_norm_charsmap(&u->norm, m->charsmap, m->charsmap_bytes, false, what, err);
    if (rc < 0)
        dt_unigram_close(&u);
    else
        *out = u;
    return rc;
}

void dt_unigram_close(dt_unigram **u)
{
    if (!*u)
        return;
    dt_norm_release(&(*u)->norm);
    free((*u)->edge);
    free((*u)->node);
    free(*u);
    *u = NULL;
}

const dt_norm *dt_unigram_norm(const dt_unigram *u)
{
    return &u->norm;
}

/* --- Viterbi --- */
static void reach(struct dt_best *b, double score, int32_t from, int32_t id)
{
    if (b->start < 0 || score > b->score)
        *b = (struct dt_best){ score, from, id };
}

static void forward(const dt_unigram *u, dt_scratch *sc, const char *s, int64_t n)
{
    struct dt_best *best = sc->best;
    for (int64_t i = 0; i <= n; i++)
        best[i] = (struct dt_best){ .start = -1 };
    for (int64_t i = 0; i < n; i += dt_uni_len(s[i])) {
        int64_t one = i + dt_uni_len(s[i]);
        bool single = false;
        int32_t at = 0;
        for (int64_t j = i; j < n && u->edges; ) {
            const struct edge *e = edge_slot(u, at, s[j++]);
            if (!e->key)
                break;
            at = e->node;
            if (u->node[at].id < 0)
                continue;
            reach(&best[j], best[i].score + u->node[at].score, i, u->node[at].id);
            single = single || j == one;
        }
        if (!single)
            reach(&best[one], best[i].score + u->min_score - 10, i, u->unk);
    }
}

/* Ids from last to first; a run of <unk> is one, or its bytes. */
static void backward(const dt_unigram *u, dt_scratch *sc, const char *s, int64_t n)
{
    int64_t from = sc->ids.n;
    for (int64_t end = n; end > 0;) {
        const struct dt_best *b = &sc->best[end];
        int64_t start = b->start;
        if (b->id == u->unk) {
            while (start > 0 && sc->best[start].id == u->unk)
                start = sc->best[start].start;
            for (int64_t i = end; u->byte_id[0] >= 0 && i-- > start;)
                dt_ids_add(&sc->ids, u->byte_id[(unsigned char)s[i]]);
        }
        if (b->id != u->unk || u->byte_id[0] < 0)
            dt_ids_add(&sc->ids, b->id);
        end = start;
    }
    for (int64_t i = from, j = sc->ids.n - 1; i < j; i++, j--) {
        int32_t id = sc->ids.v[i];
        sc->ids.v[i] = sc->ids.v[j];
        sc->ids.v[j] = id;
    }
}

static void encode_piece(const dt_unigram *u, dt_scratch *sc, const char *s, int64_t n)
{
    uint64_t hash = dt_words_hash(s, n);
    int64_t at = sc->ids.n;
    if (!n || sc->ids.n >= sc->limit || dt_words_get(&sc->words, hash, s, n, &sc->ids))
        return;
    dt_grow(&sc->best, &sc->best_cap, n + 1, sizeof *sc->best);
    forward(u, sc, s, n);
    backward(u, sc, s, n);
    dt_words_put(&sc->words, hash, s, n, sc->ids.v + at, sc->ids.n - at);
}

/* --- pre-tokenising --- */
static void encode_metaspace(const dt_unigram *u, dt_scratch *sc, const char *s, int64_t n, bool first)
{
    dt_text *w = &sc->word;
    w->n = 0;
    if ((u->prepend == PREPEND_ALWAYS || (u->prepend == PREPEND_FIRST && first))
        && !(n && s[0] == ' ') && !(n >= 3 && !memcmp(s, DT_METASPACE, 3)))
        dt_text_add(w, DT_METASPACE, 3);
    for (int64_t i = 0, j; i < n; i = j) {
        for (j = i; j < n && s[j] != ' '; j++)
            ;
        dt_text_add(w, s + i, j - i);
        if (j < n) {
            dt_text_add(w, DT_METASPACE, 3);
            j++;
        }
    }
    int64_t from = 0;
    for (int64_t i = 1; u->meta_split && i + 3 <= w->n; i++)
        if (!memcmp(w->v + i, DT_METASPACE, 3)) {
            encode_piece(u, sc, w->v + from, i - from);
            from = i;
        }
    encode_piece(u, sc, w->v + from, w->n - from);
}

void dt_unigram_encode(const dt_unigram *u, dt_scratch *sc, const char *s, int64_t n, bool first)
{
    int32_t cp;
    int64_t from = 0;
    for (int64_t i = 0, k; u->split_spaces && i < n && sc->ids.n < sc->limit; i += k) {
        k = dt_uni_get(s + i, &cp);
        if (!dt_uni_space(cp))
            continue;
        if (i > from)
            encode_metaspace(u, sc, s + from, i - from, first && from == 0);
        from = i + k;
    }
    if (from < n && !u->metaspace)
        encode_piece(u, sc, s + from, n - from);
    else if (from < n)
        encode_metaspace(u, sc, s + from, n - from, first && from == 0);
}
