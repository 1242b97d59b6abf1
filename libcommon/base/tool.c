/* tool.c - words on stderr, exit codes and signals, for the mains in tools/. */
#include "base/tool.h"
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SAME_MS = 500 };                         /* signals closer than this are one request */

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
    return status ? status : -DT_EIO;
}

void dt_malloc_install(void)
{
    mallopt(M_MMAP_THRESHOLD, 128 << 10);       /* what it begins with; setting it stops glibc from raising it */
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
    mallopt(M_ARENA_MAX, 1);
}

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

void dt_signals_install(void)
{
    struct sigaction stop = { .sa_handler = on_stop, .sa_flags = SA_RESTART };
    struct sigaction save = { .sa_handler = on_save, .sa_flags = SA_RESTART };
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGUSR1, &save, NULL);
    signal(SIGPIPE, SIG_DFL);                   /* parents such as Python start us with it ignored */
}
