/* Captions of any bytes through the tokenizers of CLIP and T5, which the first input learns from fixed captions. */
#include "base/mem.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tok.h"
#include "text/tok_train.h"

static dt_tokenizer *clip, *t5;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const char *const caption[] = { "a photo of a cat on a mat",
                                           "two dogs, 12 birds and a t\xc3\xaate-\xc3\xa0-t\xc3\xaate",
                                           "an oil painting: \"night\" (1889); it's blue",
                                           "\xe7\x8c\xab \xf0\x9f\x90\x88 cats" };
    dt_strs c = { 0 };
    (void)argc;
    (void)argv;
    for (int i = 0; i < 4; i++)
        dt_strs_add(&c, caption[i]);
    fuzz_check(dt_tok_train_clip(&c, 560, 77, fuzz_path("clip"), NULL) > 0);
    fuzz_check(dt_tok_train_t5(&c, 80, 77, fuzz_path("t5"), NULL) > 0);
    fuzz_check(dt_tokenizer_open(&clip, fuzz_path("clip"), NULL) == 0);
    fuzz_check(dt_tokenizer_open(&t5, fuzz_path("t5"), NULL) == 0);
    dt_strs_release(&c);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = fuzz_text(data, size);
    fuzz_tokenize(clip, text);
    fuzz_tokenize(t5, text);
    free(text);
    return 0;
}
