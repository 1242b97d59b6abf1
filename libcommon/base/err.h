/* err.h - how a fallible call says what went wrong.
 *
 * A call returns 0 (or a non-negative result) or a negative DT_E code and fills the caller's
 * dt_err with one line for the user: lower case, no full stop, naming file and field.
 * The code is minus the exit status of dt(7), so a tool ends with `return dt_die_err(&err)`.
 * Passing err = NULL is allowed everywhere: only the code is reported then. */
#ifndef DT_BASE_ERR_H
#define DT_BASE_ERR_H

enum {
    DT_EFAIL   = -1,    /* anything else */
    DT_EUSAGE  = -2,    /* the command line asks for something that cannot be */
    DT_EDATA   = -4,    /* bad input: a file that is missing, unreadable, malformed or misfitting */
    DT_ENOMEM  = -5,    /* does not fit in memory */
    DT_ENAN    = -6,    /* a loss or gradient is not finite */
    DT_EIO     = -7,    /* a write failed, the disk is full, a device went away */
    DT_ESIGNAL = -130,  /* stopped on request, state saved */
};

typedef struct dt_err {
    int  code;          /* 0 or a DT_E code */
    char msg[1024];     /* one line, no trailing newline */
} dt_err;

/* Fills err (unless NULL) and returns code. */
int dt_err_set(dt_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* As dt_err_set, then appends ": " and strerror(errno).  ENOMEM is DT_ENOMEM, whatever the code. */
int dt_err_sys(dt_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "text: " in front of the message that is there, if err is not NULL. */
void dt_err_prefix(dt_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
