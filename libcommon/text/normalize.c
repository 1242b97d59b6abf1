/* normalize.c - the normalisers that tokenizers are configured with, as steps over UTF-8. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "text/internal.h"

int dt_re_compile(pcre2_code **re, const char *pattern, dt_err *err)
{
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR msg[200];
    *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!*re) {
        pcre2_get_error_message(code, msg, sizeof msg);
        if (code == PCRE2_ERROR_HEAP_FAILED)
            return dt_err_set(err, DT_ENOMEM, "no memory for the pattern '%s'", pattern);
        return dt_err_set(err, DT_EDATA, "pattern '%s': %s at %zu", pattern, (char *)msg, (size_t)at);
    }
    pcre2_jit_compile(*re, PCRE2_JIT_COMPLETE);     /* without JIT it only is slower */
    return 0;
}

static struct dt_norm_step *next_step(dt_norm *m, enum dt_norm_kind kind, const char *what, dt_err *err)
{
    if (m->n == (int)(sizeof m->step / sizeof *m->step)) {
        dt_err_set(err, DT_EDATA, "%s: too many normalizers", what);
        return NULL;
    }
    m->step[m->n] = (struct dt_norm_step){ .kind = kind };
    return &m->step[m->n++];
}

int dt_norm_add(dt_norm *m, enum dt_norm_kind kind, const char *what, dt_err *err)
{
    return next_step(m, kind, what, err) ? 0 : DT_EDATA;
}

int dt_norm_charsmap(dt_norm *m, const void *blob, int64_t n, bool base64, const char *what, dt_err *err)
{
    struct dt_norm_step *s = next_step(m, DT_NORM_CHARSMAP, what, err);
    return s ? dt_charsmap_open(&s->map, blob, n, base64, what, err) : DT_EDATA;
}

void dt_norm_release(dt_norm *m)
{
    for (int i = 0; i < m->n; i++) {
        pcre2_code_free(m->step[i].re);
        free(m->step[i].with);
        dt_charsmap_close(&m->step[i].map);
    }
    *m = (dt_norm){0};
}

/* --- from tokenizer.json --- */
static int add_replace(dt_norm *m, const cJSON *node, const char *what, dt_err *err)
{
    struct dt_norm_step *s = next_step(m, DT_NORM_REPLACE, what, err);
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(node, "pattern");
    const char *re = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(pattern, "Regex"));
    const char *literal = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(pattern, "String"));
    const char *with = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(node, "content"));
    if (!s)
        return DT_EDATA;
    if (!with || (!re && !literal) || (literal && strstr(literal, "\\E")))
        return dt_err_set(err, DT_EDATA, "%s: a Replace normalizer needs a pattern and content", what);
    s->with = dt_strdup(with);
    char *text = re ? dt_strdup(re) : dt_sprintf("\\Q%s\\E", literal);
    int rc = dt_re_compile(&s->re, text, err);
    free(text);
    if (rc < 0)
        dt_err_prefix(err, "%s", what);
    return rc;
}

int dt_norm_json(dt_norm *m, const cJSON *node, const char *what, dt_err *err)
{
    static const struct { const char *type; enum dt_norm_kind kind; } plain[] = {
        { "NFC", DT_NORM_NFC }, { "NFD", DT_NORM_NFD }, { "NFKC", DT_NORM_NFKC }, { "NFKD", DT_NORM_NFKD },
        { "Lowercase", DT_NORM_LOWER },
    };
    if (!node || cJSON_IsNull(node))
        return 0;
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(node, "type"));
    if (!type)
        return dt_err_set(err, DT_EDATA, "%s: a normalizer has no type", what);
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(type, plain[i].type))
            return dt_norm_add(m, plain[i].kind, what, err);
    if (!strcmp(type, "Sequence")) {
        const cJSON *e;
        cJSON_ArrayForEach(e, cJSON_GetObjectItemCaseSensitive(node, "normalizers")) {
            int rc = dt_norm_json(m, e, what, err);
            if (rc < 0)
                return rc;
        }
        return 0;
    }
    if (!strcmp(type, "Replace"))
        return add_replace(m, node, what, err);
    if (!strcmp(type, "Precompiled")) {
        const char *map = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(node, "precompiled_charsmap"));
        return dt_norm_charsmap(m, map ? map : "", map ? strlen(map) : 0, true, what, err);
    }
    if (!strcmp(type, "Strip")) {
        struct dt_norm_step *s = next_step(m, DT_NORM_STRIP, what, err);
        if (!s)
            return DT_EDATA;
        s->left = !cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(node, "strip_left"));
        s->right = !cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(node, "strip_right"));
        return 0;
    }
    return dt_err_set(err, DT_EDATA, "%s: no support for normalizer '%s'", what, type);
}

/* --- the steps: each appends to an empty `out` --- */

/* Stable sort of a run of marks by combining class; tmp holds n. */
static void order_marks(int32_t *cp, int32_t *tmp, int64_t n)
{
    int64_t at[257] = {0};
    if (n < 2)
        return;
    for (int64_t i = 0; i < n; i++)
        at[utf8proc_get_property(cp[i])->combining_class + 1]++;
    for (int c = 0; c < 256; c++)
        at[c + 1] += at[c];
    for (int64_t i = 0; i < n; i++)
        tmp[at[utf8proc_get_property(cp[i])->combining_class]++] = cp[i];
    memcpy(cp, tmp, n * sizeof *cp);
}

/* Canonical decomposition into sc->cps, which also gets as much room behind.  Not utf8proc_decompose(): that one takes
 * a time quadratic in the number of marks in a row. */
static int64_t decompose(dt_scratch *sc, const char *s, int64_t n, utf8proc_option_t how)
{
    enum { MOST = 32 };                         /* code points that one becomes, 18 for U+FDFA */
    int32_t cp;
    int64_t k = 0, start = 0;
    int boundary = 0;
    for (int64_t i = 0; i < n;) {
        i += dt_uni_get(s + i, &cp);
        dt_grow(&sc->cps, &sc->cps_cap, 2 * (k + MOST), sizeof *sc->cps);
        utf8proc_ssize_t got = utf8proc_decompose_char(cp, sc->cps + k, MOST, how, &boundary);
        if (got < 0 || got > MOST)
            return got < 0 ? got : UTF8PROC_ERROR_OVERFLOW;
        for (; got-- > 0; k++)
            if (!utf8proc_get_property(sc->cps[k])->combining_class) {
                order_marks(sc->cps + start, sc->cps + sc->cps_cap / 2, k - start);
                start = k + 1;
            }
    }
    order_marks(sc->cps + start, sc->cps + sc->cps_cap / 2, k - start);
    return k;
}

/* The reference orders marks by the combining classes of Unicode 9: two neighbouring marks, one of them newer than that
 * (U+07FD, U+0898, U+1ABF, ...), may change places here and not there. */
static int compose(dt_scratch *sc, dt_text *out, const char *s, int64_t n, utf8proc_option_t how, dt_err *err)
{
    int64_t i = 0;
    /* Below U+0300 nothing composes and NFC changes nothing. */
    if (how == UTF8PROC_COMPOSE) {
        while (i < n && (unsigned char)s[i] < 0xcc)
            i++;
        if (i == n) {
            dt_text_add(out, s, n);
            return 0;
        }
    }
    how |= UTF8PROC_STABLE;
    utf8proc_ssize_t k = decompose(sc, s, n, how);
    if (k > 0)
        k = utf8proc_normalize_utf32(sc->cps, k, how);
    if (k < 0)
        return dt_err_set(err, DT_EFAIL, "unicode normalization: %s", utf8proc_errmsg(k));
    for (i = 0; i < k; i++)
        dt_text_cp(out, sc->cps[i]);
    return 0;
}

/* Lower case of Unicode 17, as the reference has it, where utf8proc 2.8 (Debian 12) does not know the pair yet. */
static int32_t lower_char(int32_t cp)
{
    static const struct { int32_t from, to, count, step; } late[] = {
        { 0x1c89, 0x1c8a, 1, 1 },    { 0xa7cb, 0x264, 1, 1 },     { 0xa7cc, 0xa7cd, 2, 2 },
        { 0xa7d2, 0xa7d3, 2, 2 },    { 0xa7da, 0xa7db, 1, 1 },    { 0xa7dc, 0x19b, 1, 1 },
        { 0x10d50, 0x10d70, 22, 1 }, { 0x16ea0, 0x16ebb, 25, 1 },
    };
    for (size_t i = 0; cp >= late[0].from && i < sizeof late / sizeof *late; i++) {
        int32_t d = cp - late[i].from;
        if (d >= 0 && d % late[i].step == 0 && d / late[i].step < late[i].count)
            return late[i].to + d;
    }
    return utf8proc_tolower(cp);
}

/* Character by character, as Rust's char::to_lowercase: U+0130 is the only one that becomes two. */
static void lower(dt_text *out, const char *s, int64_t n)
{
    int32_t cp;
    dt_grow(&out->v, &out->cap, out->n + n, 1);
    for (int64_t i = 0; i < n;) {
        if ((unsigned char)s[i] < 0x80) {
            char c = s[i++];
            c += c >= 'A' && c <= 'Z' ? 'a' - 'A' : 0;
            dt_text_add(out, &c, 1);
            continue;
        }
        i += dt_uni_get(s + i, &cp);
        if (cp == 0x130)
            dt_text_add(out, "i\xcc\x87", 3);
        else
            dt_text_cp(out, lower_char(cp));
    }
}

static void collapse_spaces(dt_text *out, const char *s, int64_t n)
{
    bool in = false;
    int32_t cp;
    for (int64_t i = 0; i < n;) {
        int k = dt_uni_get(s + i, &cp);
        bool space = dt_uni_space(cp);
        if (!space)
            dt_text_add(out, s + i, k);
        else if (!in)
            dt_text_add(out, " ", 1);
        in = space;
        i += k;
    }
}

static void strip(dt_text *out, const char *s, int64_t n, bool left, bool right)
{
    int64_t a = 0, b = n;
    int32_t cp;
    for (int k; left && a < b && (k = dt_uni_get(s + a, &cp), dt_uni_space(cp)); a += k)
        ;
    while (right && b > a) {
        int64_t c = b - 1;
        while ((s[c] & 0xc0) == 0x80)
            c--;
        dt_uni_get(s + c, &cp);
        if (!dt_uni_space(cp))
            break;
        b = c;
    }
    dt_text_add(out, s + a, b - a);
}

static int replace(dt_scratch *sc, const struct dt_norm_step *step, dt_text *out, const char *s, int64_t n, dt_err *err)
{
    int64_t i = 0;
    for (int64_t at = 0; at <= n;) {
        int rc = pcre2_match(step->re, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, sc->match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return dt_err_set(err, DT_EFAIL, "pattern matching failed (PCRE2 error %d)", rc);
        const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(sc->match);
        if (ov[1] == ov[0])
            break;                              /* an empty match replaces nothing */
        dt_text_add(out, s + i, (int64_t)ov[0] - i);
        dt_text_add(out, step->with, strlen(step->with));
        at = i = ov[1];
    }
    dt_text_add(out, s + i, n - i);
    return 0;
}

static int run_step(const struct dt_norm_step *st, dt_scratch *sc, dt_text *out, const char *s, int64_t n, dt_err *err)
{
    switch (st->kind) {
    case DT_NORM_NFC:      return compose(sc, out, s, n, UTF8PROC_COMPOSE, err);
    case DT_NORM_NFD:      return compose(sc, out, s, n, UTF8PROC_DECOMPOSE, err);
    case DT_NORM_NFKC:     return compose(sc, out, s, n, UTF8PROC_COMPOSE | UTF8PROC_COMPAT, err);
    case DT_NORM_NFKD:     return compose(sc, out, s, n, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, err);
    case DT_NORM_LOWER:    lower(out, s, n); return 0;
    case DT_NORM_SPACES:   collapse_spaces(out, s, n); return 0;
    case DT_NORM_STRIP:    strip(out, s, n, st->left, st->right); return 0;
    case DT_NORM_REPLACE:  return replace(sc, st, out, s, n, err);
    case DT_NORM_CHARSMAP: dt_charsmap_run(st->map, out, s, n); return 0;
    }
    return 0;
}

int dt_norm_run(const dt_norm *m, dt_scratch *sc, const char **s, int64_t *n, dt_err *err)
{
    for (int i = 0; i < m->n; i++) {
        dt_text *out = &sc->norm[i & 1];
        out->n = 0;
        int rc = run_step(&m->step[i], sc, out, *s, *n, err);
        if (rc < 0)
            return rc;
        *s = out->v;
        *n = out->n;
    }
    return 0;
}
