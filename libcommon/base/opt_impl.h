/* opt_impl.h - what opt.c (parsing) and opt_*.c (printing the table) share.  For these only. */
#ifndef DT_BASE_OPT_IMPL_H
#define DT_BASE_OPT_IMPL_H
#include <stdio.h>
#include "base/opt.h"

/* The options that every tool has; `off` is one of these. */
enum { DT_CLI_HELP, DT_CLI_VERSION, DT_CLI_CONFIG, DT_CLI_COMPLETION, DT_CLI_MAN };
extern const dt_opt dt_cli_common[];        /* starts with a group heading, ends as a table does */

static inline bool dt_opt_is_end(const dt_opt *o)
{
    return !o->name && !o->help;
}

static inline bool dt_opt_in_range(const dt_opt *o, double v)
{
    return o->min == o->max || (v >= o->min && v <= o->max);
}

void dt_cli_man(const dt_cli *cli, FILE *out);

#endif
