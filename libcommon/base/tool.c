/* tool.c - words on stderr, exit codes and signals, for the mains in tools/. */
#include "base/tool.h"
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SAME_MS = 500,                              /* signals closer than this are one request */
    SOME_SKIPPED = 3,                           /* exit status of what is done but for some items */
};

const char *dt_argv0 = "dt";
bool dt_quiet;
volatile int dt_stop, dt_save;

/* One write per line, so that the lines of several processes do not mix.  On a terminal it first clears what
 * dt_progress may have drawn. */
static void say(const char *kind, const char *fmt, va_list ap)
{
    char line[2048];
    int e = errno;
    size_t max = sizeof line - 2, n;
    n = (size_t)snprintf(line, max, "%s%s: %s", isatty(STDERR_FILENO) ? "\r\033[K" : "", dt_argv0, kind);
    n = n < max ? n : max - 1;
    int got = vsnprintf(line + n, max - n, fmt, ap);
    n = got < 0 ? n : n + (size_t)got < max ? n + (size_t)got : max - 1;
    if (*fmt && fmt[strlen(fmt) - 1] == ':') {
        got = snprintf(line + n, max - n, " %s", strerror(e));
        n = n + (size_t)got < max ? n + (size_t)got : max - 1;
    }
    for (size_t i = *line == '\r' ? 4 : 0; i < n; i++)      /* names of files may hold anything */
        line[i] = (unsigned char)line[i] < 0x20 || line[i] == 0x7f ? '?' : line[i];
    line[n++] = '\n';
    fflush(stdout);
    fwrite(line, 1, n, stderr);
    fflush(stderr);
}

void dt_info(const char *fmt, ...)
{
    va_list ap;
    if (dt_quiet)
        return;
    va_start(ap, fmt);
    say("", fmt, ap);
    va_end(ap);
}

void dt_warn(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("warning: ", fmt, ap);
    va_end(ap);
}

void dt_tool_say(void *ctx, bool warning, const char *line)
{
    (void)ctx;
    if (warning)
        dt_warn("%s", line);
    else
        dt_info("%s", line);
}

void dt_tool_out(void *ctx, const char *text)
{
    (void)ctx;
    fputs(text, stdout);
    fflush(stdout);
}

void dt_die(int status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("", fmt, ap);
    va_end(ap);
    exit(status);
}

int dt_die_err(const dt_err *err)
{
    int status = err->code < 0 ? -err->code : 1;
    if (err->code == DT_ESIGNAL && dt_stop)
        status = 128 + dt_stop;
    fflush(stdout);
    fprintf(stderr, "%s%s: %s\n", isatty(STDERR_FILENO) ? "\r\033[K" : "", dt_argv0, *err->msg ? err->msg : "failed");
    return status;
}

int dt_finish(int status)
{
    errno = 0;
    bool bad = fflush(stdout) < 0;
    if (!bad && !ferror(stdout))
        return status;
    if (errno)
        fprintf(stderr, "%s: cannot write standard output: %s\n", dt_argv0, strerror(errno));
    else
        fprintf(stderr, "%s: cannot write standard output\n", dt_argv0);
    return status && status != SOME_SKIPPED ? status : -DT_EIO;
}

void dt_malloc_install(void)
{
    mallopt(M_MMAP_THRESHOLD, 128 << 10);       /* what it begins with; setting it stops glibc from raising it */
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
    mallopt(M_ARENA_MAX, 1);
}

/* --- descriptors --- */

/* A parent may have closed them: then the first file that we open would be "standard output", and words would end up in
 * it.  What stands in their place can be neither read nor written, so that using it is an error.
 * Before main, for mains open files early. */
__attribute__((constructor)) static void fill_descriptors(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

/* --- signals --- */

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);        /* async-signal-safe */
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* A launcher and make pass on a signal that the process group has got already: at once means not twice. */
static void on_stop(int sig)
{
    static volatile int64_t first;
    if (!dt_stop) {
        first = now_ms();
        dt_stop = sig;
    } else if (now_ms() - first > SAME_MS) {    /* asked twice: leave now, as if never caught */
        signal(sig, SIG_DFL);
        raise(sig);
    }
}

static void on_save(int sig)
{
    (void)sig;
    dt_save = 1;
}

/* A mapped file has become shorter, or its disk fails: the page at `at` cannot be had.  Finds the
 * file in /proc/self/maps ("lo-hi perms offset dev inode path") with what a handler may call. */
static size_t mapped_file(char *name, size_t max, uintptr_t at)
{
    char buf[4096], line[4096];
    size_t len = 0, found = 0;
    ssize_t n;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && !found && (n = read(fd, buf, sizeof buf)) > 0)
        for (ssize_t i = 0; i < n && !found; i++) {
            if (buf[i] != '\n') {
                line[len] = buf[i];
                len += len < sizeof line - 1;
                continue;
            }
            line[len] = '\0';
            uintptr_t lo = 0, hi = 0;
            const char *p = line, *path = memchr(line, '/', len);
            for (; *p && *p != '-'; p++)
                lo = lo * 16 + (uintptr_t)(*p <= '9' ? *p - '0' : *p - 'a' + 10);
            for (p += *p == '-'; *p && *p != ' '; p++)
                hi = hi * 16 + (uintptr_t)(*p <= '9' ? *p - '0' : *p - 'a' + 10);
            if (at >= lo && at < hi && path)
                for (; *path && found < max; path++)
                    name[found++] = *path;
            len = 0;
        }
    if (fd >= 0)
        close(fd);
    return found;
}

static void on_bus(int sig, siginfo_t *info, void *context)
{
    static const char why[] = ": cannot be read any more: it was cut short, or its disk fails\n";
    char line[4600];
    size_t n = strnlen(dt_argv0, 64), got;
    (void)context;
    memcpy(line, dt_argv0, n);
    line[n++] = ':', line[n++] = ' ';
    got = mapped_file(line + n, 4096, (uintptr_t)info->si_addr);
    if (!got) {                                 /* no file: a fault of ours */
        signal(sig, SIG_DFL);
        raise(sig);
        return;
    }
    memcpy(line + n + got, why, sizeof why - 1);
    (void)!write(STDERR_FILENO, line, n + got + sizeof why - 1);
    _exit(-DT_EDATA);
}

void dt_signals_install(void)
{
    struct sigaction bus = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
    sigaction(SIGBUS, &bus, NULL);

    struct sigaction stop = { .sa_handler = on_stop, .sa_flags = SA_RESTART };
    struct sigaction save = { .sa_handler = on_save, .sa_flags = SA_RESTART };
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGUSR1, &save, NULL);
    signal(SIGPIPE, SIG_DFL);                   /* parents such as Python start us with it ignored */
}
