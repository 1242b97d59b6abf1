/* scratch.h - folders of a test's own, under TMPDIR. */
#ifndef DT_TESTS_UNIT_SCRATCH_H
#define DT_TESTS_UNIT_SCRATCH_H
#include <stdlib.h>
#include "base/file.h"

/* A new one; NULL if it cannot be made.  Freed by scratch_end. */
static inline char *scratch_new(void)
{
    const char *tmp = getenv("TMPDIR");
    char *dir = dt_path_join(tmp && *tmp ? tmp : "/tmp", "dt-test-XXXXXX");
    if (mkdtemp(dir))
        return dir;
    free(dir);
    return NULL;
}

/* Removes it with all that is in it. */
static inline int scratch_end(char *dir)
{
    int rc = dt_rmtree(dir, NULL);
    free(dir);
    return rc;
}

/* For cmocka: *state is the folder of the test. */
static inline int scratch_setup(void **state) { return !(*state = scratch_new()); }
static inline int scratch_teardown(void **state) { return scratch_end(*state); }
#define scratch_test(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

#endif
