/* tok.c - see tok.h. */
#include <string.h>
#include "base/file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tok.h"

enum { LONG = 300 };

void fuzz_tokenize(dt_tokenizer *t, const char *text)
{
    static const int64_t limit[] = { 1, 7, LONG };
    int32_t ids[LONG], again[LONG];
    dt_err err = { 0 };
    for (int i = 0; i < 3; i++)
        for (int pad = 0; pad < 2; pad++) {
            int64_t n = dt_tokenize(t, text, limit[i], pad, ids, &err);
            if (n < 0) {
                fuzz_check(*err.msg);
                continue;
            }
            fuzz_check(n <= limit[i]);
            for (int64_t k = 0; k < (pad ? limit[i] : n); k++)
                fuzz_check(ids[k] >= 0 && ids[k] < dt_tokenizer_vocab(t));
            fuzz_check(dt_tokenize(t, text, limit[i], pad, again, &err) == n);
            fuzz_check(!memcmp(ids, again, (size_t)(pad ? limit[i] : n) * sizeof(*ids)));
        }
}

void fuzz_tokenizer_folder(const char *name)
{
    dt_tokenizer *t = NULL;
    dt_err err = { 0 };
    char *text = NULL;
    size_t bytes;
    if (dt_tokenizer_open(&t, fuzz_dir(), &err) < 0) {
        fuzz_check(!t && *err.msg);
        return;
    }
    fuzz_tokenize(t, "");
    fuzz_tokenize(t,
                  "A photo of two cats, 3 dogs\tand \xc3\xa9t\xc3\xa9 <pad> </s><extra_id_1><|endoftext|> \xf0\x9f\x90\x88!");
    if (dt_exists(fuzz_path(name)) && dt_file_read(&text, &bytes, fuzz_path(name), 1 << 16, &err) == 0)
        fuzz_tokenize(t, text);
    free(text);
    dt_tokenizer_close(&t);
}
