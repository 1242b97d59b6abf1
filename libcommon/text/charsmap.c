/* charsmap.c - SentencePiece's character map ("Precompiled" in tokenizer.json, in base64).
 *
 *   blob = u32 bytes of the trie | trie (Darts-clone double array, u32 units) | replacements, NUL-terminated
 *
 * A unit: bits 0-7 label (with bit 31: of a leaf, the value), bit 8 has_leaf, bits 10-30 offset, bit 9
 * scales the offset by 256.  Yata, "Darts-clone", github.com/s-yata/darts-clone.
 *
 * The rule is the tokenizers library's, not SentencePiece's longest match: a grapheme of fewer than 6 bytes
 * is replaced whole by what its *shortest* matching prefix maps to (so U+0323 U+0302 on an o lose one mark); otherwise
 * each of its characters is looked up alone.  Both give the same on ordinary text. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "text/internal.h"

struct dt_charsmap {
    uint8_t  *blob;
    uint32_t *unit;             /* [units] */
    int64_t   units;
    const char *text;           /* replacements; blob ends with a NUL of our own */
    int64_t   text_bytes;
};

static int base64_decode(uint8_t *out, const char *s, int64_t *n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t value[256];
    uint32_t acc = 0;
    int bits = 0;
    memset(value, 255, sizeof value);
    for (int i = 0; i < 64; i++)
        value[(unsigned char)digits[i]] = i;
    *n = 0;
    for (; *s && *s != '='; s++) {
        uint8_t v = value[(unsigned char)*s];
        if (v > 63)
            return -1;
        acc = acc << 6 | v;
        if ((bits += 6) >= 8)
            out[(*n)++] = acc >> (bits -= 8);
    }
    return 0;
}

/* Takes m->blob, which holds n bytes and room for a NUL. */
static int parse(dt_charsmap *m, int64_t n)
{
    if (n < 4)
        return -1;
    int64_t trie = m->blob[0] | m->blob[1] << 8 | m->blob[2] << 16 | (int64_t)m->blob[3] << 24;
    if (trie % 4 || trie == 0 || trie > n - 4)
        return -1;
    m->units = trie / 4;
    m->unit = dt_alloc(trie);
    for (int64_t i = 0; i < m->units; i++) {
        const uint8_t *p = m->blob + 4 + 4 * i;
        m->unit[i] = p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
    }
    m->blob[n] = 0;
    m->text = (const char *)m->blob + 4 + trie;
    m->text_bytes = n - 4 - trie;
    /* What is copied out of it must be UTF-8, as all text below dt_tokenize() is. */
    for (int64_t i = 0; i < m->text_bytes; i += strlen(m->text + i) + 1) {
        dt_text clean = {0};
        dt_uni_clean(&clean, m->text + i);
        bool same = clean.n == (int64_t)strlen(m->text + i) && (!clean.n || !memcmp(clean.v, m->text + i, clean.n));
        free(clean.v);
        if (!same)
            return -1;
    }
    return 0;
}

int dt_charsmap_open(dt_charsmap **out, const void *blob, int64_t n, bool base64, const char *what, dt_err *err)
{
    dt_charsmap *m = dt_alloc(sizeof *m);
    m->blob = dt_alloc(n + 1);
    if (!base64)
        memcpy(m->blob, blob, n);
    if ((base64 && base64_decode(m->blob, blob, &n) < 0) || parse(m, n) < 0) {
        dt_charsmap_close(&m);
        return dt_err_set(err, DT_EDATA, "%s: 'precompiled_charsmap' is damaged", what);
    }
    *out = m;
    return 0;
}

void dt_charsmap_close(dt_charsmap **m)
{
    if (!*m)
        return;
    free((*m)->blob);
    free((*m)->unit);
    free(*m);
    *m = NULL;
}

static int64_t unit_offset(uint32_t u)
{
    return (int64_t)(u >> 10) << ((u & 1u << 9) >> 6);
}

/* Replacement for the shortest key that begins s[0..n), or NULL. */
static const char *lookup(const dt_charsmap *m, const char *s, int64_t n)
{
    int64_t at = unit_offset(m->unit[0]);
    for (int64_t i = 0; i < n && s[i]; i++) {
        unsigned char c = s[i];
        if ((at ^= c) >= m->units)
            return NULL;
        uint32_t u = m->unit[at];
        if ((u & (1u << 31 | 0xff)) != c)
            return NULL;
        if ((at ^= unit_offset(u)) >= m->units)
            return NULL;
        if (u >> 8 & 1) {
            int64_t off = m->unit[at] & 0x7fffffff;
            /* never into the middle of a character, whatever the file says */
            return off < m->text_bytes && (m->text[off] & 0xc0) != 0x80 ? m->text + off : NULL;
        }
    }
    return NULL;
}

static void run_grapheme(const dt_charsmap *m, dt_text *out, const char *s, int64_t n)
{
    const char *with = n < 6 ? lookup(m, s, n) : NULL;
    if (with) {
        dt_text_add(out, with, strlen(with));
        return;
    }
    for (int64_t i = 0; i < n;) {
        int k = dt_uni_len(s[i]);
        with = lookup(m, s + i, k);
        dt_text_add(out, with ? with : s + i, with ? (int64_t)strlen(with) : k);
        i += k;
    }
}

void dt_charsmap_run(const dt_charsmap *m, dt_text *out, const char *s, int64_t n)
{
    for (int64_t i = 0; i < n;) {
        int64_t start = i;
        int32_t prev, cp, state = 0;
        i += dt_uni_get(s + i, &prev);
        for (; i < n; prev = cp) {
            int k = dt_uni_get(s + i, &cp);
            bool ends = prev < 0x80 && cp < 0x80 ? !(prev == '\r' && cp == '\n')
                                                 : utf8proc_grapheme_break_stateful(prev, cp, &state);
            if (ends)
                break;
            i += k;
        }
        run_grapheme(m, out, s + start, i - start);
    }
}
