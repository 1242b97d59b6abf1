/* GIF, TIFF and BMP, and what is told apart by its first bytes. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_image(data, size);
    return 0;
}
