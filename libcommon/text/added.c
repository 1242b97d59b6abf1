/* added.c - added tokens ("<|endoftext|>", "<extra_id_0>"): leftmost match, the longest one there, as
 * the Aho-Corasick automaton of the tokenizers library finds them; then its strip and whole-word rules. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "text/internal.h"

void dt_added_put(dt_added_set *a, const dt_added *tok)
{
    dt_grow(&a->v, &a->cap, a->n + 1, sizeof *a->v);
    a->v[a->n] = *tok;
    a->v[a->n].text = dt_alloc(tok->len + 1);
    memcpy(a->v[a->n].text, tok->text, tok->len);
    a->n++;
    if (tok->len)
        a->starts[(unsigned char)tok->text[0]] = true;
}

static int longest_first(const void *x, const void *y)
{
    const dt_added *a = x, *b = y;
    return a->len != b->len ? (a->len < b->len) - (a->len > b->len) : strcmp(a->text, b->text);
}

void dt_added_sort(dt_added_set *a)
{
    if (a->n)
        qsort(a->v, a->n, sizeof *a->v, longest_first);
}

void dt_added_release(dt_added_set *a)
{
    for (int64_t i = 0; i < a->n; i++)
        free(a->v[i].text);
    free(a->v);
    *a = (dt_added_set){0};
}

static const dt_added *match_at(const dt_added_set *a, const char *s, int64_t n)
{
    for (int64_t i = 0; i < a->n; i++)
        if (a->v[i].len && a->v[i].len <= n && !memcmp(a->v[i].text, s, a->v[i].len))
            return &a->v[i];
    return NULL;
}

/* Character that ends before s[at], or -1 at the beginning. */
static int32_t char_before(const char *s, int64_t at, int64_t *start)
{
    int32_t cp = -1;
    if (at == 0)
        return -1;
    for (*start = at - 1; (s[*start] & 0xc0) == 0x80; --*start)
        ;
    dt_uni_get(s + *start, &cp);
    return cp;
}

/* \w of the regex library: letters, marks, digits, connectors */
static bool is_word(int32_t cp)
{
    if (cp < 0)
        return false;
    utf8proc_category_t c = utf8proc_category(cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_ND) || c == UTF8PROC_CATEGORY_PC;
}

static bool stands_alone(const char *s, int64_t n, int64_t start, int64_t stop)
{
    int64_t at;
    int32_t right = -1;
    if (stop < n)
        dt_uni_get(s + stop, &right);
    return !is_word(char_before(s, start, &at)) && !is_word(right);
}

bool dt_added_next(const dt_added_set *a, const char *s, int64_t n, int64_t from, int64_t *start, int64_t *stop,
                   int32_t *id)
{
    if (!a->n)
        return false;
    for (int64_t i = from; i < n; i++) {
        if (!a->starts[(unsigned char)s[i]])
            continue;
        const dt_added *tok = match_at(a, s + i, n - i);
        if (!tok)
            continue;
        int64_t x = i, y = i + tok->len, at = 0;
        if (tok->single_word && !stands_alone(s, n, x, y)) {
            i = y - 1;
            continue;
        }
        int32_t cp;
        while (tok->lstrip && x > from && dt_uni_space(char_before(s, x, &at)))
            x = at;
        while (tok->rstrip && y < n && (at = dt_uni_get(s + y, &cp), dt_uni_space(cp)))
            y += at;
        *start = x;
        *stop = y;
        *id = tok->id;
        return true;
    }
    return false;
}
