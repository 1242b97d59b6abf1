/* tokenizer.json, Unigram or BPE, with its normaliser, and the files beside it. */
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tok.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json", "text" };
    fuzz_files(name, 5, data, size);
    fuzz_tokenizer_folder("text");
    return 0;
}
