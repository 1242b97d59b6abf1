/* Byte-level BPE: vocab.json, merges.txt and the files beside them. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tok.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json", "text" };
    fuzz_files(name, 6, data, size);
    fuzz_tokenizer_folder("text");
    return 0;
}
