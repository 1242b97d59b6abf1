/* progress.c - see progress.h. */
#include "base/progress.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "base/json.h"
#include "base/mem.h"
#include "base/tool.h"

#define MAX_NUMS 16
#define BAR_S    0.1            /* least time between two drawings of the bar */
#define LINE_S   10.0           /* and between two lines */
#define BAR_CELLS 20
#define MIN_CELLS 8

struct dt_progress {
    char   *what, *unit;
    int64_t total, done, first; /* first: position at the first report */
    double  opened_s, first_s, shown_s, now_s;
    bool    begun, quiet, tty, stale;   /* stale: something was reported that is not on stderr yet */
    FILE   *ndjson;
    struct { const char *name; double value; bool share; } num[MAX_NUMS];
    int     n;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The time, but never earlier than it was: rates and times left are not negative whatever the clock does. */
static double tick(dt_progress *p)
{
    double t = now_s();
    return p->now_s = t > p->now_s ? t : p->now_s;
}

int dt_progress_open(dt_progress **out, const char *what, const char *unit, int64_t total, const char *ndjson,
                     bool quiet, dt_err *err)
{
    FILE *f = NULL;
    if (ndjson) {
        bool fd = *ndjson && strspn(ndjson, "0123456789") == strlen(ndjson) && strlen(ndjson) < 6;
        int copy = fd ? dup(atoi(ndjson)) : -1;     /* closing ours leaves the caller's open */
        f = !fd ? fopen(ndjson, "ae") : copy < 0 ? NULL : fdopen(copy, "w");
        if (!f) {
            int rc = dt_err_sys(err, DT_EIO, "cannot write progress to '%s'", ndjson);
            if (copy >= 0)
                close(copy);
            return rc;
        }
    }
    dt_progress *p = dt_alloc(sizeof *p);
    *p = (dt_progress){ .what = dt_strdup(what), .unit = dt_strdup(unit), .total = total, .quiet = quiet,
                        .tty = isatty(STDERR_FILENO), .ndjson = f, .opened_s = now_s() };
    p->now_s = p->opened_s;
    p->shown_s = p->tty ? 0 : p->opened_s;
    *out = p;
    return 0;
}

static void set(dt_progress *p, const char *name, double value, bool share)
{
    int i = 0;
    while (i < p->n && strcmp(p->num[i].name, name))
        i++;
    if (i == MAX_NUMS)
        return;
    p->n = i == p->n ? i + 1 : p->n;
    p->num[i].name = name;
    p->num[i].value = value;
    p->num[i].share = share;
}

void dt_progress_num(dt_progress *p, const char *name, double value) { set(p, name, value, false); }
void dt_progress_share(dt_progress *p, const char *name, double value) { set(p, name, value, true); }

/* Units per second since the first report; 0: not known yet. */
static double rate(const dt_progress *p, double t)
{
    return p->done > p->first && t > p->first_s ? (double)(p->done - p->first) / (t - p->first_s) : 0;
}

static void write_ndjson(dt_progress *p, double t)
{
    double r = rate(p, t);
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "job", p->what);
    cJSON_AddNumberToObject(o, "step", (double)p->done);
    if (p->total >= 0)
        cJSON_AddNumberToObject(o, "total", (double)p->total);
    cJSON_AddStringToObject(o, "unit", p->unit);
    cJSON_AddNumberToObject(o, "elapsed_s", (double)(int64_t)((t - p->opened_s) * 1000) / 1000);
    if (r > 0)
        cJSON_AddNumberToObject(o, "rate", r);
    if (r > 0 && p->total >= p->done)
        cJSON_AddNumberToObject(o, "eta_s", (double)(p->total - p->done) / r);
    for (int i = 0; i < p->n; i++)
        cJSON_AddNumberToObject(o, p->num[i].name, p->num[i].value);
    char *line = dt_json_line(o);
    fprintf(p->ndjson, "%s\n", line);
    fflush(p->ndjson);
    free(line);
    cJSON_Delete(o);
}

static int duration(char *buf, size_t size, double s)
{
    long t = (long)(s + 0.5);
    if (t >= 3600)
        return snprintf(buf, size, "%ld:%02ld:%02ld", t / 3600, t / 60 % 60, t % 60);
    return snprintf(buf, size, "%ld:%02ld", t / 60, t % 60);
}

/* ", loss 0.123", ", 17.5 img/s", ", 42 % of peak" */
static int describe_num(const dt_progress *p, int i, char *buf, size_t size)
{
    const char *name = p->num[i].name;
    double v = p->num[i].value;
    char words[33];
    if (strchr(name, '/'))
        return snprintf(buf, size, ", %.3g %.32s", v, name);
    if (!p->num[i].share)
        return snprintf(buf, size, ", %.32s %.4g", name, v);
    snprintf(words, sizeof words, "%s", name);
    for (char *c = words; *c; c++)
        *c = *c == '_' ? ' ' : *c;
    return snprintf(buf, size, ", %.3g %% %s", 100 * v, words);
}

/* "12/100 img, 3.2 img/s, eta 0:28, loss 0.123" */
static void describe(const dt_progress *p, double t, bool last, char *buf, size_t size)
{
    char time[32];
    double r = rate(p, t);
    size_t n = (size_t)snprintf(buf, size, "%lld", (long long)p->done);
    if (p->total >= 0)
        n += (size_t)snprintf(buf + n, size - n, "/%lld", (long long)p->total);
    n += (size_t)snprintf(buf + n, size - n, " %.32s", p->unit);
    if (r > 0)
        n += (size_t)(r >= 1 ? snprintf(buf + n, size - n, ", %.3g %.32s/s", r, p->unit)
                             : snprintf(buf + n, size - n, ", %.3g s/%.32s", 1 / r, p->unit));
    if (last) {
        duration(time, sizeof time, t - p->opened_s);
        n += (size_t)snprintf(buf + n, size - n, ", took %s", time);
    } else if (r > 0 && p->total >= p->done) {
        duration(time, sizeof time, (double)(p->total - p->done) / r);
        n += (size_t)snprintf(buf + n, size - n, ", eta %s", time);
    }
    for (int i = 0; i < p->n && n + 64 < size; i++)
        n += (size_t)describe_num(p, i, buf + n, size - n);
}

static void show(dt_progress *p, double t, bool last)
{
    char text[1024], bar[BAR_CELLS + 4] = "";
    describe(p, t, last, text, sizeof text);
    if (!p->tty || last) {
        fprintf(stderr, "%s%s: %s %s\n", p->tty ? "\r\033[K" : "", dt_argv0, p->what, text);
    } else {
        struct winsize w = { 0 };
        int width = !ioctl(STDERR_FILENO, TIOCGWINSZ, &w) && w.ws_col > 20 ? w.ws_col : 80;
        int room = width - (int)(strlen(dt_argv0) + strlen(p->what) + strlen(text)) - 8;
        int cells = room < MIN_CELLS ? MIN_CELLS : room < BAR_CELLS ? room : BAR_CELLS;
        if (p->total > 0 && width >= 60) {
            int64_t full = p->done >= p->total ? cells : p->done * cells / p->total;
            memset(bar, '.', (size_t)cells + 2);
            bar[0] = '[';
            memset(bar + 1, '#', (size_t)(full < 0 ? 0 : full));
            memcpy(bar + cells + 1, "] ", 3);
        }
        char line[1200];
        snprintf(line, sizeof line, "%s: %s %s%s", dt_argv0, p->what, bar, text);
        if ((int)strlen(line) >= width)                     /* as many whole numbers as fit */
            line[width - 1] = '\0';
        char *comma = (int)strlen(line) == width - 1 ? strrchr(line, ',') : NULL;
        if (comma)
            *comma = '\0';
        fprintf(stderr, "\r%s\033[K", line);
    }
    fflush(stderr);
    p->shown_s = t;
    p->stale = false;
}

void dt_progress_step(dt_progress *p, int64_t done)
{
    double t = tick(p);
    if (!p->begun) {
        p->begun = true;
        p->first = done;
        p->first_s = t;
    }
    p->done = done;
    p->stale = true;
    if (p->ndjson)
        write_ndjson(p, t);
    if (!p->quiet && t - p->shown_s >= (p->tty ? BAR_S : LINE_S))
        show(p, t, false);
}

void dt_progress_close(dt_progress **pp)
{
    dt_progress *p = *pp;
    if (!p)
        return;
    if (!p->quiet && p->begun && (p->stale || p->tty))
        show(p, tick(p), true);
    if (p->ndjson)
        fclose(p->ndjson);
    free(p->what);
    free(p->unit);
    free(p);
    *pp = NULL;
}
