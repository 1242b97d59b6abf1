/* scratch.h - a folder of its own for each test of a file: setup and teardown for cmocka. */
#ifndef DT_TESTS_UNIT_SCRATCH_H
#define DT_TESTS_UNIT_SCRATCH_H
#include <stdlib.h>
#include <string.h>
#include "base/file.h"

static char *dir;

static int set_up(void **state)
{
    (void)state;
    dir = strdup("/tmp/dt-unit-XXXXXX");
    return !mkdtemp(dir);
}

static int tear_down(void **state)
{
    (void)state;
    int rc = dt_rmtree(dir, NULL);
    free(dir);
    return rc;
}

#endif
