/* WebP: lossy, lossless, with alpha, animated. */
#include <string.h>
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 16 && !memcmp(data, "RIFF", 4))
        fuzz_image(data, size);
    return 0;
}
