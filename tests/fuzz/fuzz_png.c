/* PNG; the mutator puts right the checksums of its chunks, so that what is in them comes to be read. */
#include <string.h>
#include <zlib.h>
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image.h"

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, max_size);
    for (size_t at = 8; seed % 8 && at + 12 <= size;) {
        uint8_t *p = data + at;
        size_t n = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        if (n > size - at - 12)
            break;
        unsigned long crc = crc32(0, p + 4, (unsigned)n + 4);
        for (int i = 0; i < 4; i++)
            p[8 + n + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += 12 + n;
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 8 && !memcmp(data, "\x89PNG", 4))
        fuzz_image(data, size);
    return 0;
}
