/* mem.c - small host allocations, lists of strings, the nearest word. */
#include "base/mem.h"
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALIGN 64                /* a cache line, and the widest vector */

/* The one place where the library ends the process. */
void *dt_must(void *p)
{
    if (p)
        return p;
    const char *who = program_invocation_short_name;
    char line[64];                          /* one write, so that lines do not mix; stdio may want memory itself */
    size_t n = strnlen(who, sizeof line - 17);
    memcpy(line, who, n);
    memcpy(line + n, ": out of memory\n", 16);
    ssize_t done = write(STDERR_FILENO, line, n + 16);
    (void)done;
    _exit(5);
}

void *dt_alloc(size_t bytes)
{
    return dt_must(calloc(1, bytes ? bytes : 1));
}

void *dt_realloc(void *p, size_t bytes)
{
    return dt_must(realloc(p, bytes ? bytes : 1));
}

char *dt_strdup(const char *s)
{
    return s ? dt_must(strdup(s)) : NULL;
}

char *dt_sprintf(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return dt_must(n < 0 ? NULL : s);
}

void *dt_try_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX - ALIGN)
        return NULL;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return aligned_alloc(ALIGN, bytes ? bytes : ALIGN);
}

void dt_grow(void *p, int64_t *cap, int64_t n, size_t size)
{
    if (n <= *cap)
        return;
    int64_t want = *cap > 0 ? *cap : 8;
    while (want < n)
        want = want > INT64_MAX / 2 ? n : want * 2;
    size_t bytes;
    void *old;
    memcpy(&old, p, sizeof old);            /* p is a T **, of any T */
    void *grown = dt_must(__builtin_mul_overflow((size_t)want, size, &bytes) ? NULL : realloc(old, bytes));
    memcpy(p, &grown, sizeof grown);
    *cap = want;
}

static void add_n(dt_strs *s, const char *str, size_t len)
{
    dt_grow(&s->v, &s->cap, s->n + 1, sizeof *s->v);
    s->v[s->n++] = dt_must(strndup(str, len));
}

void dt_strs_add(dt_strs *s, const char *str)
{
    add_n(s, str, strlen(str));
}

void dt_strs_split(dt_strs *s, const char *str, char sep)
{
    for (const char *end; ; str = end + 1) {
        end = strchrnul(str, sep);
        const char *a = str, *b = end;
        while (a < b && isspace((unsigned char)*a))
            a++;
        while (b > a && isspace((unsigned char)b[-1]))
            b--;
        if (b > a)
            add_n(s, a, (size_t)(b - a));
        if (!*end)
            return;
    }
}

void dt_strs_release(dt_strs *s)
{
    for (int64_t i = 0; i < s->n; i++)
        free(s->v[i]);
    free(s->v);
    *s = (dt_strs){ 0 };
}

static int min2(int a, int b)
{
    return a < b ? a : b;
}

/* Edits (insert, delete, replace, swap of neighbours) that turn a into b.  row: 3 * (nb + 1) ints. */
static int distance(const char *a, int na, const char *b, int nb, int *row)
{
    int *prev2 = row, *prev = row + nb + 1, *cur = row + 2 * (nb + 1);
    for (int j = 0; j <= nb; j++)
        prev[j] = j;
    for (int i = 1; i <= na; i++) {
        cur[0] = i;
        for (int j = 1; j <= nb; j++) {
            int d = min2(prev[j], cur[j - 1]) + 1;
            d = min2(d, prev[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d = min2(d, prev2[j - 2] + 1);
            cur[j] = d;
        }
        int *t = prev2;
        prev2 = prev, prev = cur, cur = t;
    }
    return prev[nb];
}

int dt_nearest(const char *word, const char *const *cand, int n)
{
    size_t len = strlen(word);
    if (len > 256)                          /* nobody mistypes that much */
        return -1;
    int limit = len < 4 ? ((int)len + 1) / 2 : 2 + ((int)len - 4) / 4, best = -1, best_d = limit + 1;
    int *row = NULL;
    for (int i = 0; i < n; i++) {
        size_t m = strlen(cand[i]);
        if (m > len + (size_t)limit || len > m + (size_t)limit)
            continue;
        row = dt_realloc(row, 3 * (m + 1) * sizeof *row);
        int d = distance(word, (int)len, cand[i], (int)m, row);
        /* A word that shares nothing with the candidate is no misspelling of it, however short. */
        if (d < best_d && d < (int)(m > len ? m : len))
            best = i, best_d = d;
    }
    free(row);
    return best;
}
