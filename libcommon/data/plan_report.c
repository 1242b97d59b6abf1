/* plan_report.c - what could not be used, in few words. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include "data/plan.h"

enum { MAX_REASONS = 64, NAMES = 3 };

struct reason {
    char       *why;            /* without its numbers, so that entries of all lines and sizes are one reason */
    const char *text;           /* as it was first met */
    const char *name[NAMES];    /* of the first; each up to its ": " */
    int64_t     n, first;
};

/* What follows the name.  (A name with ": " in it only makes a reason of its own.) */
static const char *why_of(const char *line)
{
    const char *colon = strstr(line, ": ");
    return colon ? colon + 2 : line;
}

static char *without_numbers(const char *s)
{
    char *out = dt_strdup(s), *to = out;
    while (*s) {
        *to++ = isdigit((unsigned char)*s) ? '#' : *s;
        s += isdigit((unsigned char)*s) ? strspn(s, "0123456789") : 1;
    }
    *to = '\0';
    return out;
}

static int by_count(const void *a, const void *b)
{
    const struct reason *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n ? 1 : -1) : x->first < y->first ? -1 : 1;
}

static void add_line(dt_strs *lines, const struct reason *r)
{
    char *names = dt_strdup("");
    for (int i = 0; i < NAMES && i < r->n; i++) {
        char *more = dt_sprintf("%s%s%.*s", names, i ? ", " : "", (int)(why_of(r->name[i]) - r->name[i] - 2),
                                r->name[i]);
        free(names);
        names = more;
    }
    char *line = dt_sprintf("%lld skipped: %s (%s%s)", (long long)r->n, r->text, names, r->n > NAMES ? ", ..." : "");
    dt_strs_add(lines, line);
    free(line);
    free(names);
}

void dt_plan_reasons(dt_strs *lines, const dt_strs *skipped)
{
    struct reason *r = dt_alloc(MAX_REASONS * sizeof *r);
    int n = 0;
    for (int64_t i = 0; i < skipped->n; i++) {
        const char *text = why_of(skipped->v[i]);
        if (text == skipped->v[i])
            continue;
        char *why = without_numbers(text);
        int k = 0;
        while (k < n && strcmp(r[k].why, why))
            k++;
        if (k == MAX_REASONS) {                 /* the rest counts as the last */
            k--;
        } else if (k == n) {
            r[n++] = (struct reason){ .why = why, .text = text, .first = i };
            why = NULL;
        }
        free(why);
        if (r[k].n < NAMES)
            r[k].name[r[k].n] = skipped->v[i];
        r[k].n++;
    }
    qsort(r, (size_t)n, sizeof *r, by_count);
    for (int k = 0; k < n; k++) {
        add_line(lines, &r[k]);
        free(r[k].why);
    }
    free(r);
}
