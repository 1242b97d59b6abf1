/* util.c - see fuzz.h. */
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>
#include "base/file.h"
#include "base/mem.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/scratch.h"

static char *dir;

static void clean_up(void) { scratch_end(dir); }

const char *fuzz_dir(void)
{
    if (!dir) {
        fuzz_check(dir = scratch_new());
        atexit(clean_up);
    }
    return dir;
}

const char *fuzz_path(const char *name)
{
    static char path[8][4096];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof(path[next]), "%s/%s", fuzz_dir(), name);
    return path[next];
}

void fuzz_put(const char *name, const void *data, size_t bytes)
{
    int fd = open(fuzz_path(name), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    fuzz_check(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    close(fd);
}

/* The next line "=== N" with N < n from p on, or `end`. */
static const uint8_t *next_mark(const uint8_t *p, const uint8_t *start, const uint8_t *end, int n)
{
    for (; end - p >= 6; p++)
        if (!memcmp(p, "=== ", 4) && p[4] >= '0' && p[4] < '0' + n && p[5] == '\n' && (p == start || p[-1] == '\n'))
            return p;
    return end;
}

void fuzz_files(const char *const *name, int n, const uint8_t *data, size_t size)
{
    const uint8_t *p = data, *end = data + size, *mark = next_mark(p, data, end, n);
    bool there[10] = { false };
    int k = mark == data && mark < end ? -1 : 0;
    for (;;) {
        if (k >= 0) {
            /* the newline before a mark belongs to the mark */
            fuzz_put(name[k], p, (size_t)(mark - p) - (mark < end && mark > p));
            there[k] = true;
        }
        if (mark == end)
            break;
        k = mark[4] - '0';
        p = mark + 6;
        mark = next_mark(p, data, end, n);
    }
    for (k = 0; k < n; k++)
        if (!there[k])
            unlink(fuzz_path(name[k]));
}

char *fuzz_text(const uint8_t *data, size_t size)
{
    char *s = dt_alloc(size + 1);
    if (size)
        memcpy(s, data, size);
    return s;
}

void fuzz_touch(const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        (void)((const volatile uint8_t *)data)[i];
}
