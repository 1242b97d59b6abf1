/* err.c - filling in a dt_err. */
#include "base/err.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A message stands on one line of a terminal or log: control characters of file names and foreign
 * texts become '?'. */
static void one_line(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = '?';
}

int dt_err_set(dt_err *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    one_line(err->msg);
    return err->code = code;
}

int dt_err_sys(dt_err *err, int code, const char *fmt, ...)
{
    if (!err)
        return errno == ENOMEM ? DT_ENOMEM : code;
    int e = errno;
    char reason[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    size_t n = strlen(err->msg);
    const char *why = strerror_r(e, reason, sizeof reason);     /* GNU form */
    snprintf(err->msg + n, sizeof err->msg - n, ": %s", why);
    one_line(err->msg);
    return err->code = e == ENOMEM ? DT_ENOMEM : code;
}

void dt_err_prefix(dt_err *err, const char *fmt, ...)
{
    if (!err)
        return;
    char old[sizeof err->msg];
    memcpy(old, err->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    size_t n = strlen(err->msg);
    snprintf(err->msg + n, sizeof err->msg - n, ": %s", old);
    one_line(err->msg);
}
