/* spiece.model. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tok.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "spiece.model", "tokenizer_config.json", "text" };
    fuzz_files(name, 3, data, size);
    fuzz_tokenizer_folder("text");
    return 0;
}
