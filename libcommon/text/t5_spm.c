/* t5_spm.c - spiece.model as the slow T5Tokenizer of transformers 4 uses it.
 *
 * legacy (the default):  each stretch between added tokens goes to SentencePiece as it is.
 * legacy = false:        SentencePiece adds no dummy prefix; the text gets one U+2581 in front (add_prefix_space),
 *                        and since the library would strip it, a stretch that begins with a space is encoded
 *                        behind "<unk>", whose pieces are then dropped. */
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "text/internal.h"
#include "text/spm_shim.h"

struct dt_t5 {
    dt_spm *spm;
    bool    legacy, prefix;
    int32_t meta;               /* id of the piece U+2581, -1 if there is none */
    int64_t unk_pieces;         /* pieces of the text "<unk>" */
    char   *unk;
};

enum { MODEL_MAX_BYTES = 256 << 20 };

int dt_t5_open(dt_t5 **out, const char *path, const dt_tok_config *c, dt_err *err)
{
    dt_t5 *t = dt_alloc(sizeof *t);
    char *proto = NULL;
    size_t bytes;
    int32_t *ids = NULL;
    int rc = dt_file_read(&proto, &bytes, path, MODEL_MAX_BYTES, err);
    if (rc < 0)
        goto out;
    t->legacy = c->legacy;
    t->prefix = c->add_prefix_space;
    t->unk = dt_strdup(c->named[DT_TOK_UNK]);
    if (!t->legacy) {
        /* protobuf merges what is appended: ModelProto.normalizer_spec (3) . add_dummy_prefix (3) = false */
        static const char no_prefix[4] = { 0x1a, 2, 0x18, 0 };
        proto = dt_realloc(proto, bytes + sizeof no_prefix);
        memcpy(proto + bytes, no_prefix, sizeof no_prefix);
        bytes += sizeof no_prefix;
    }
    if ((rc = dt_spm_open(&t->spm, proto, bytes, path, err)) < 0)
        goto out;
    t->meta = dt_spm_id(t->spm, DT_METASPACE);
    rc = dt_spm_encode(t->spm, t->unk, strlen(t->unk), &ids, &t->unk_pieces, err);
out:
    free(ids);
    free(proto);
    if (rc < 0)
        dt_t5_close(&t);
    else
        *out = t;
    return rc;
}

void dt_t5_close(dt_t5 **t)
{
    if (!*t)
        return;
    dt_spm_close(&(*t)->spm);
    free((*t)->unk);
    free(*t);
    *t = NULL;
}

int32_t dt_t5_size(const dt_t5 *t)
{
    return dt_spm_size(t->spm);
}

int32_t dt_t5_id(const dt_t5 *t, const char *piece)
{
    return dt_spm_id(t->spm, piece);
}

static int encode_stretch(const dt_t5 *t, dt_scratch *sc, const char *s, int64_t n, dt_err *err)
{
    int32_t *ids = NULL;
    int64_t k = 0, skip = 0;
    int rc;
    if (n <= 0)
        return 0;
    if (t->legacy || !(s[0] == ' ' || (n >= 3 && !memcmp(s, DT_METASPACE, 3)))) {
        rc = dt_spm_encode(t->spm, s, n, &ids, &k, err);
    } else {
        sc->word.n = 0;
        dt_text_add(&sc->word, t->unk, strlen(t->unk));
        dt_text_add(&sc->word, s, n);
        rc = dt_spm_encode(t->spm, sc->word.v, sc->word.n, &ids, &k, err);
        skip = k >= t->unk_pieces ? t->unk_pieces : 0;
    }
    for (int64_t i = skip; i < k; i++)
        dt_ids_add(&sc->ids, ids[i]);
    free(ids);
    return rc;
}

/* U+2581 in the text is a space, and one is put in front. */
static void with_prefix(const dt_t5 *t, dt_text *out, const char *s, int64_t n)
{
    out->n = 0;
    if (t->prefix)
        dt_text_add(out, DT_METASPACE, 3);
    for (int64_t i = 0; i < n;) {
        int k = dt_uni_len(s[i]);
        if (k == 3 && !memcmp(s + i, DT_METASPACE, 3))
            dt_text_add(out, " ", 1);
        else
            dt_text_add(out, s + i, k);
        i += k;
    }
}

int dt_t5_encode(const dt_t5 *t, const dt_added_set *added, dt_scratch *sc, const char *s, int64_t n, dt_err *err)
{
    int64_t at = 0, start, stop;
    int32_t id;
    int rc;
    bool bare = true;           /* nothing but the prefix came before */
    if (!t->legacy && n) {
        with_prefix(t, &sc->norm[0], s, n);
        s = sc->norm[0].v;
        n = sc->norm[0].n;
    }
    while (sc->ids.n < sc->limit && dt_added_next(added, s, n, at, &start, &stop, &id)) {
        if ((rc = encode_stretch(t, sc, s + at, start - at, err)) < 0)
            return rc;
        if (bare && !t->legacy && sc->ids.n == 1 && t->meta >= 0 && sc->ids.v[0] == t->meta)
            sc->ids.n = 0;      /* the prefix alone before an added token goes */
        bare = false;
        dt_ids_add(&sc->ids, id);
        at = stop;
    }
    return sc->ids.n < sc->limit ? encode_stretch(t, sc, s + at, n - at, err) : 0;
}
