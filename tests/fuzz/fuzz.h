/* fuzz.h - what the fuzz targets share.
 *
 * tests/fuzz/fuzz_NAME.c feeds one kind of input to the code that reads it in the tools.  What that may say about the
 * input is an error or a result that holds together (fuzz_check); what it may not do is what the sanitizers and
 * libFuzzer's limits on time and memory catch.  tests/fuzz/run builds nothing and runs them; `make fuzz` does both. */
#ifndef DT_FUZZ_H
#define DT_FUZZ_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#define fuzz_check(x) do { \
    if (!(x)) { fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #x); abort(); } } while (0)

/* A folder of this process, under TMPDIR; removed when it exits.  Borrowed. */
const char *fuzz_dir(void);
/* Its path of `name`, which the next call but seven overwrites. */
const char *fuzz_path(const char *name);
/* Writes DIR/name, whose folders must be there. */
void fuzz_put(const char *name, const void *data, size_t bytes);

/* Several files in one input: a line "=== N" (one digit) begins the file name[N]; what stands before the first is
 * name[0].  Files that it does not hold are removed. */
void fuzz_files(const char *const *name, int n, const uint8_t *data, size_t size);

/* The input as text that ends in NUL; caller frees. */
char *fuzz_text(const uint8_t *data, size_t size);
/* Reads every byte, so that the sanitizer sees them. */
void fuzz_touch(const void *data, size_t bytes);

#endif
