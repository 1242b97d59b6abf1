/* spiece.c - the parts of a spiece.model that a Unigram model needs.  It is a protobuf, sentencepiece.ModelProto of
 * github.com/google/sentencepiece (sentencepiece_model.proto):
 *   1 pieces { 1 piece, 2 score (float), 3 type }                       repeated
 *   2 trainer_spec { 3 model_type (1 = unigram), 35 byte_fallback, 40 unk_id }
 *   3 normalizer_spec { 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces } */
#include <stdlib.h>
#include <string.h>
#include "text/internal.h"

struct reader { const uint8_t *p, *end; bool bad; };
struct field {
    int      number;
    uint64_t value;                     /* varint, or the bits of a fixed-size number */
    struct reader bytes;                /* of a length-delimited field */
};

static uint64_t varint(struct reader *r)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && r->p < r->end; shift += 7) {
        v |= (uint64_t)(*r->p & 127) << shift;
        if (*r->p++ < 128)
            return v;
    }
    r->bad = true;
    return 0;
}

static uint64_t fixed(struct reader *r, int n)
{
    uint64_t v = 0;
    if (r->end - r->p < n) {
        r->bad = true;
        return 0;
    }
    for (int i = 0; i < n; i++)
        v |= (uint64_t)*r->p++ << 8 * i;
    return v;
}

/* False at the end, or when the message is damaged (then r->bad). */
static bool next_field(struct reader *r, struct field *f)
{
    if (r->p == r->end || r->bad)
        return false;
    uint64_t tag = varint(r), n;
    *f = (struct field){ .number = tag >> 3 & 0xffff };
    switch (tag & 7) {
    case 0:
        f->value = varint(r);
        break;
    case 1:
        f->value = fixed(r, 8);
        break;
    case 2:
        n = varint(r);
        if (n > (uint64_t)(r->end - r->p)) {
            r->bad = true;
            break;
        }
        f->bytes = (struct reader){ r->p, r->p + n, false };
        r->p += n;
        break;
    case 5:
        f->value = fixed(r, 4);
        break;
    default:
        r->bad = true;
    }
    return !r->bad;
}

/* Its text cuts captions into parts, which must be UTF-8 again. */
static bool read_piece(dt_spiece *m, struct reader r)
{
    struct field f;
    struct dt_piece x = { .text = "", .type = 1 };
    while (next_field(&r, &f)) {
        if (f.number == 1 && f.bytes.p) {
            x.text = (const char *)f.bytes.p;
            x.len = f.bytes.end - f.bytes.p;
        } else if (f.number == 2) {
            uint32_t bits = f.value;
            float score;
            memcpy(&score, &bits, sizeof score);
            x.score = score;
        } else if (f.number == 3) {
            x.type = f.value;
        }
    }
    dt_grow(&m->piece, &m->cap, m->n + 1, sizeof *m->piece);
    m->piece[m->n++] = x;
    return !r.bad && x.score == x.score && dt_is_utf8(x.text, (size_t)x.len);
}

static bool read_trainer(dt_spiece *m, struct reader r)
{
    struct field f;
    while (next_field(&r, &f)) {
        if (f.number == 3)
            m->model_type = f.value;
        else if (f.number == 35)
            m->byte_fallback = f.value;
        else if (f.number == 40)
            m->unk_id = (int64_t)f.value;
    }
    return !r.bad;
}

static bool read_normalizer(dt_spiece *m, struct reader r)
{
    struct field f;
    while (next_field(&r, &f)) {
        if (f.number == 2) {
            m->charsmap = f.bytes.p;
            m->charsmap_bytes = f.bytes.end - f.bytes.p;
        } else if (f.number == 3) {
            m->dummy_prefix = f.value;
        } else if (f.number == 4) {
            m->collapse_spaces = f.value;
        }
    }
    return !r.bad;
}

int dt_spiece_parse(dt_spiece *m, const void *data, int64_t bytes, const char *what, dt_err *err)
{
    struct reader r = { data, (const uint8_t *)data + bytes, false };
    struct field f;
    bool ok = true;
    *m = (dt_spiece){ .model_type = 1, .dummy_prefix = true, .collapse_spaces = true };
    while (ok && next_field(&r, &f)) {
        if (f.number == 1)
            ok = read_piece(m, f.bytes);
        else if (f.number == 2)
            ok = read_trainer(m, f.bytes);
        else if (f.number == 3)
            ok = read_normalizer(m, f.bytes);
    }
    if (!ok || r.bad || !m->n || m->unk_id < 0 || m->unk_id >= m->n) {
        dt_spiece_release(m);
        return dt_err_set(err, DT_EDATA, "%s: no SentencePiece model, or a damaged one", what);
    }
    if (m->model_type != 1) {
        dt_spiece_release(m);
        return dt_err_set(err, DT_EDATA, "%s: the model is not of type unigram", what);
    }
    return 0;
}

void dt_spiece_release(dt_spiece *m)
{
    free(m->piece);
    *m = (dt_spiece){0};
}
