/* tokenizer.h: ids against transformers (tests/golden/tok_make.py), with the small vocabularies beside it always and
 * with real ones when $DT_TOKENIZERS names a folder with clip/, qwen2/ and t5/; and the ways in which a folder can be
 * broken.
 *
 *     text_tokenizer train     writes tests/golden/tok_small_clip and tok_small_t5 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <cmocka.h>
#include "base/file.h"
#include "text/internal.h"
#include "text/tok_train.h"
#include "text/tokenizer.h"
#include "tests/unit/scratch.h"

#define GOLDEN "tests/golden/"
enum { TRAIN = 807, CLIP_SIZE = 1000, T5_SIZE = 800, MAX_IDS = 77, LONG = 64, SHORT = 40 };

static dt_strs strings;             /* what the golden ids are of, as bytes */

/* --- files --- */
static char *read_text(const char *path)
{
    char *s;
    size_t n;
    assert_int_equal(dt_file_read(&s, &n, path, 64 << 20, NULL), 0);
    return s;
}

static int hex(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static void unescape(char *s)
{
    char *to = s;
    for (; *s; s++)
        if (*s != '\\') {
            *to++ = *s;
        } else if (*++s == 'x') {
            *to++ = hex(s[1]) << 4 | hex(s[2]);
            s += 2;
        } else {
            *to++ = *s == 'n' ? '\n' : *s == 'r' ? '\r' : *s == 't' ? '\t' : *s;
        }
    *to = 0;
}

static void read_lines(dt_strs *out, const char *path)
{
    char *all = read_text(path);
    for (char *p = all, *end; *p; p = end + 1) {
        end = strchr(p, '\n');
        assert_non_null(end);
        *end = 0;
        dt_strs_add(out, p);
    }
    free(all);
}

static int read_strings(void **state)
{
    (void)state;
    read_lines(&strings, GOLDEN "tok_strings.txt");
    for (int64_t i = 0; i < strings.n; i++)
        unescape(strings.v[i]);
    return strings.n >= 2000 ? 0 : -1;
}

static int release_strings(void **state)
{
    (void)state;
    dt_strs_release(&strings);
    return 0;
}

static void put_file(const char *dir, const char *name, const void *data, size_t bytes)
{
    char *path = dt_path_join(dir, name);
    assert_int_equal(dt_file_write(path, data, bytes, NULL), 0);
    free(path);
}

static void put(const char *dir, const char *name, const char *text)
{
    put_file(dir, name, text, strlen(text));
}

static char *get(const char *dir, const char *name, size_t *bytes)
{
    char *path = dt_path_join(dir, name), *s;
    assert_int_equal(dt_file_read(&s, bytes, path, 64 << 20, NULL), 0);
    free(path);
    return s;
}

static void copy(const char *to, const char *from, const char *name)
{
    size_t n;
    char *s = get(from, name, &n);
    put_file(to, name, s, n);
    free(s);
}

static dt_tokenizer *open_ok(const char *dir)
{
    dt_tokenizer *t = NULL;
    dt_err e = {0};
    if (dt_tokenizer_open(&t, dir, &e) < 0)
        fail_msg("%s", e.msg);
    return t;
}

/* --- golden ids --- */
static void pack(char *out, const int32_t *ids, int64_t n, int32_t vocab)
{
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
    for (int64_t i = 0; i < n; i++) {
        if (vocab > 64 * 64)
            *out++ = digits[ids[i] >> 12 & 63];
        *out++ = digits[ids[i] >> 6 & 63];
        *out++ = digits[ids[i] & 63];
    }
    *out = 0;
}

/* Number of strings whose ids differ from line i + 1 of the file. */
static int64_t mismatches(dt_tokenizer *t, const char *ids_file, int64_t limit)
{
    dt_strs want = {0};
    int64_t bad = 0;
    read_lines(&want, ids_file);
    assert_int_equal(want.n, strings.n + 1);
    for (int64_t i = 0; i < strings.n; i++) {
        int32_t ids[MAX_IDS];
        char got[3 * MAX_IDS + 1];
        int64_t n = dt_tokenize(t, strings.v[i], limit, false, ids, NULL);
        assert_in_range(n, 0, limit);
        pack(got, ids, n, dt_tokenizer_vocab(t));
        if (strcmp(got, want.v[i + 1])) {
            bad++;
            print_message("# string %lld (line %lld): %s\n", (long long)i, (long long)i + 1, strings.v[i]);
        }
    }
    dt_strs_release(&want);
    return bad;
}

static void same_ids(const char *dir, const char *ids_file, int64_t limit)
{
    dt_tokenizer *t = open_ok(dir);
    assert_int_equal(mismatches(t, ids_file, limit), 0);
    assert_int_equal(mismatches(t, ids_file, limit), 0);       /* again, now from the cache of words */
    dt_tokenizer_close(&t);
    assert_null(t);
}

static void small_clip(void **state)
{
    (void)state;
    same_ids(GOLDEN "tok_small_clip", GOLDEN "tok_small_clip.ids", SHORT);
}

static void small_t5(void **state)
{
    (void)state;
    same_ids(GOLDEN "tok_small_t5", GOLDEN "tok_small_t5.ids", SHORT);
}

/* Caller frees. */
static char *real_folder(const char *name)
{
    return dt_sprintf("%s/%s", getenv("DT_TOKENIZERS"), name);
}

static void real_clip(void **state)
{
    (void)state;
    char *dir = real_folder("clip");
    same_ids(dir, GOLDEN "tok_clip.ids", MAX_IDS);
    dt_tokenizer *t = open_ok(dir);
    assert_int_equal(dt_tokenizer_vocab(t), 49408);
    assert_int_equal(dt_tokenizer_bos(t), 49406);
    assert_int_equal(dt_tokenizer_eos(t), 49407);
    assert_int_equal(dt_tokenizer_pad(t), 49407);
    dt_tokenizer_close(&t);
    free(dir);
}

static void real_qwen2(void **state)
{
    (void)state;
    char *dir = real_folder("qwen2");
    same_ids(dir, GOLDEN "tok_qwen2.ids", LONG);
    dt_tokenizer *t = open_ok(dir);
    assert_int_equal(dt_tokenizer_vocab(t), 151665);
    assert_int_equal(dt_tokenizer_bos(t), -1);
    assert_int_equal(dt_tokenizer_id(t, "<|image_pad|>"), 151655);
    assert_int_equal(dt_tokenizer_id(t, "<|nothing|>"), -1);
    dt_tokenizer_close(&t);
    free(dir);
}

static void real_t5(void **state)
{
    char *dir = real_folder("t5");
    same_ids(dir, GOLDEN "tok_t5.ids", LONG);
    /* without spiece.model the same from tokenizer.json */
    copy(*state, dir, "tokenizer.json");
    same_ids(*state, GOLDEN "tok_t5.ids", LONG);
    dt_tokenizer *t = open_ok(*state);
    assert_int_equal(dt_tokenizer_vocab(t), 32100);
    assert_int_equal(dt_tokenizer_pad(t), 0);
    assert_int_equal(dt_tokenizer_eos(t), 1);
    assert_int_equal(dt_tokenizer_id(t, "<extra_id_99>"), 32000);
    assert_string_equal(dt_tokenizer_name(t), "T5Tokenizer");
    assert_int_equal(dt_tokenizer_max_len(t), INT32_MAX);
    dt_tokenizer_close(&t);
    free(dir);
}

/* --- the other layouts, made from the small vocabularies --- */
static char *base64(const uint8_t *s, int64_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = dt_alloc(n / 3 * 4 + 8), *p = out;
    for (int64_t i = 0; i < n; i += 3) {
        uint32_t v = s[i] << 16 | (i + 1 < n ? s[i + 1] << 8 : 0) | (i + 2 < n ? s[i + 2] : 0);
        for (int k = 0; k < 4; k++)
            *p++ = i + k > n ? '=' : digits[v >> (18 - 6 * k) & 63];
    }
    return out;
}

static cJSON *parse(const char *json)
{
    cJSON *o = cJSON_Parse(json);
    assert_non_null(o);
    return o;
}

static void put_json(const char *dir, const char *name, cJSON *o)
{
    char *line = dt_json_line(o);
    put(dir, name, line);
    free(line);
    cJSON_Delete(o);
}

/* The tokenizer.json that transformers writes for a T5 spiece.model. */
static cJSON *t5_json(void)
{
    size_t bytes;
    char *data = get(GOLDEN "tok_small_t5", "spiece.model", &bytes);
    dt_spiece m;
    assert_int_equal(dt_spiece_parse(&m, data, bytes, "spiece.model", NULL), 0);
    char *map = base64(m.charsmap, m.charsmap_bytes);
    cJSON *root = parse("{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Precompiled\"},"
                        "    {\"type\": \"Replace\", \"pattern\": {\"Regex\": \" {2,}\"}, \"content\": \" \"}]},"
                        " \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"WhitespaceSplit\"},"
                        "    {\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"add_prefix_space\": true}]},"
                        " \"added_tokens\": [{\"id\": 0, \"content\": \"<pad>\", \"normalized\": false},"
                        "    {\"id\": 1, \"content\": \"</s>\", \"normalized\": false},"
                        "    {\"id\": 2, \"content\": \"<unk>\", \"normalized\": false}],"
                        " \"model\": {\"type\": \"Unigram\", \"vocab\": []}}");
    cJSON *norm = cJSON_GetObjectItem(cJSON_GetObjectItem(root, "normalizer"), "normalizers");
    cJSON_AddStringToObject(cJSON_GetArrayItem(norm, 0), "precompiled_charsmap", map);
    cJSON *model = cJSON_GetObjectItem(root, "model"), *vocab = cJSON_GetObjectItem(model, "vocab");
    cJSON_AddNumberToObject(model, "unk_id", m.unk_id);
    for (int64_t i = 0; i < m.n; i++) {
        char *piece = dt_sprintf("%.*s", (int)m.piece[i].len, m.piece[i].text);
        cJSON *pair = cJSON_CreateArray();
        cJSON_AddItemToArray(pair, cJSON_CreateString(piece));
        cJSON_AddItemToArray(pair, cJSON_CreateNumber(m.piece[i].score));
        cJSON_AddItemToArray(vocab, pair);
        free(piece);
    }
    free(map);
    dt_spiece_release(&m);
    free(data);
    return root;
}

static void fast_t5(void **state)
{
    put_json(*state, "tokenizer.json", t5_json());
    same_ids(*state, GOLDEN "tok_small_t5.ids", SHORT);
}

/* vocab.json and merges.txt as the "model" of a tokenizer.json; merges as strings or as pairs. */
static void put_fast_clip(const char *dir, bool pairs)
{
    size_t n;
    char *vocab = get(GOLDEN "tok_small_clip", "vocab.json", &n),
        *merges = get(GOLDEN "tok_small_clip", "merges.txt", &n);
    cJSON *root = parse("{\"model\": {\"type\": \"BPE\", \"end_of_word_suffix\": \"</w>\", \"merges\": []}}");
    cJSON *model = cJSON_GetObjectItem(root, "model"), *list = cJSON_GetObjectItem(model, "merges");
    cJSON_AddItemToObject(model, "vocab", parse(vocab));
    strtok(merges, "\n");
    for (char *line; (line = strtok(NULL, "\n"));) {
        char *gap = strchr(line, ' ');
        cJSON *e = pairs ? cJSON_CreateArray() : cJSON_CreateString(line);
        *gap = 0;
        if (pairs) {
            cJSON_AddItemToArray(e, cJSON_CreateString(line));
            cJSON_AddItemToArray(e, cJSON_CreateString(gap + 1));
        }
        cJSON_AddItemToArray(list, e);
    }
    put_json(dir, "tokenizer.json", root);
    free(vocab);
    free(merges);
}

static void fast_clip(void **state)
{
    copy(*state, GOLDEN "tok_small_clip", "tokenizer_config.json");
    for (int pairs = 0; pairs < 2; pairs++) {
        put_fast_clip(*state, pairs);
        same_ids(*state, GOLDEN "tok_small_clip.ids", SHORT);
    }
}

/* Only the two vocabulary files: CLIP is assumed, its tokens get their usual names. */
static void bare_clip(void **state)
{
    copy(*state, GOLDEN "tok_small_clip", "vocab.json");
    copy(*state, GOLDEN "tok_small_clip", "merges.txt");
    dt_tokenizer *t = open_ok(*state);
    assert_string_equal(dt_tokenizer_name(t), "CLIPTokenizer");
    assert_int_equal(dt_tokenizer_bos(t), CLIP_SIZE - 2);
    assert_int_equal(dt_tokenizer_pad(t), CLIP_SIZE - 1);
    int32_t ids[77];
    assert_int_equal(dt_tokenize(t, "<|STARTOFTEXT|>", 77, false, ids, NULL) > 3, 1);  /* matched before lower-casing */
    dt_tokenizer_close(&t);
    /* the second tokenizer of SDXL */
    put(*state, "tokenizer_config.json", "{\"pad_token\": \"!\", \"model_max_length\": 1e30}");
    t = open_ok(*state);
    assert_int_equal(dt_tokenizer_pad(t), 0);
    assert_int_equal(dt_tokenizer_max_len(t), INT32_MAX);
    dt_tokenizer_close(&t);
}

/* Flags of added tokens; ids of those that the vocabulary lacks. */
static void added_tokens(void **state)
{
    copy(*state, GOLDEN "tok_small_clip", "vocab.json");
    copy(*state, GOLDEN "tok_small_clip", "merges.txt");
    put(*state, "tokenizer_config.json", "{\"tokenizer_class\": \"CLIPTokenizer\", \"added_tokens_decoder\": {"
        " \"1000\": {\"content\": \"[L]\", \"lstrip\": true, \"rstrip\": true, \"normalized\": false},"
        " \"1001\": {\"content\": \"Tok\", \"single_word\": true, \"normalized\": true},"
        " \"1002\": {\"content\": \"[LL]\", \"special\": true},"
        " \"1003\": {\"content\": \"[Y]\"}}}");
    dt_tokenizer *t = open_ok(*state);
    int32_t a[77], b[77];
    assert_int_equal(dt_tokenizer_vocab(t), CLIP_SIZE + 4);
    assert_int_equal(dt_tokenizer_id(t, "[LL]"), 1002);
    assert_int_equal(dt_tokenize(t, "[L][LL][L]", 77, false, a, NULL), 5);
    assert_int_equal(a[1], 1000);
    assert_int_equal(a[2], 1002);
    assert_int_equal(dt_tokenize(t, "tOK", 77, false, a, NULL), 3);
    assert_int_equal(a[1], 1001);
    assert_int_equal(dt_tokenize(t, "tok tokens, a.tok", 77, false, a, NULL),
                     dt_tokenize(t, "tok tokens, a.tok", 77, true, b, NULL));
    assert_int_equal(a[1], 1001);
    static const char *const none[] = { "tokens", "tok_", "_tok", "tok1", "[ll]" };
    for (size_t k = 0; k < sizeof none / sizeof *none; k++)
        for (int64_t i = dt_tokenize(t, none[k], 77, false, b, NULL); i-- > 0;)
            assert_true(b[i] < 1000);
    assert_int_equal(dt_tokenize(t, "-tok-", 77, false, b, NULL), 5);
    assert_int_equal(b[2], 1001);
    assert_int_equal(dt_tokenize(t, "[y]", 77, false, b, NULL), 3);        /* normalised unless it says otherwise */
    assert_int_equal(b[1], 1003);
    dt_tokenizer_close(&t);
}

/* --- length, padding, damaged text --- */
static void cut_and_padded(void **state)
{
    (void)state;
    dt_tokenizer *t = open_ok(GOLDEN "tok_small_clip");
    dt_err e;
    int32_t ids[20], all[77];
    int64_t n = dt_tokenize(t, "a red cat and a blue dog", 77, true, all, NULL);
    assert_true(n > 6 && n < 20);
    assert_int_equal(all[0], dt_tokenizer_bos(t));
    assert_int_equal(all[n - 1], dt_tokenizer_eos(t));
    for (int64_t i = n; i < 77; i++)
        assert_int_equal(all[i], dt_tokenizer_pad(t));
    ids[5] = -7;
    assert_int_equal(dt_tokenize(t, "a red cat and a blue dog", 5, true, ids, NULL), 5);
    assert_memory_equal(ids, all, 4 * sizeof *ids);
    assert_int_equal(ids[4], dt_tokenizer_eos(t));
    assert_int_equal(ids[5], -7);
    assert_int_equal(dt_tokenize(t, "", 2, false, ids, NULL), 2);
    assert_int_equal(dt_tokenize(t, "a", 1, false, ids, &e), DT_EUSAGE);
    assert_int_equal(dt_tokenizer_max_len(t), 77);
    dt_tokenizer_close(&t);
    t = open_ok(GOLDEN "tok_small_t5");
    assert_int_equal(dt_tokenize(t, "a red cat and a blue dog", 3, true, ids, NULL), 3);
    assert_int_equal(ids[2], 1);
    assert_int_equal(dt_tokenize(t, "", 3, true, ids, NULL), 1);
    assert_int_equal(ids[0], 1);
    assert_int_equal(ids[2], 0);
    assert_int_equal(dt_tokenize(t, "a", 0, false, ids, NULL), DT_EUSAGE);
    dt_tokenizer_close(&t);
}

/* As Python's bytes.decode("utf-8", "replace") does it. */
static void bad_utf8(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        { "a\x80z", "a\ufffdz" },               { "\xc3", "\ufffd" },              { "\xe2\x82", "\ufffd" },
        { "\xe2\x82z", "\ufffdz" },             { "\xc0\xaf", "\ufffd\ufffd" },
        { "\xed\xa0\x80", "\ufffd\ufffd\ufffd" },
        { "\xf0\x9f\x98z", "\ufffdz" },         { "\xf5\x80", "\ufffd\ufffd" },
        { "\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd" },
        { "\xe0\x80\x80", "\ufffd\ufffd\ufffd" }, { "\xff\xfe", "\ufffd\ufffd" },
        { "\xc3\xa9\xf0\x9f\x98\x80", "\u00e9\U0001f600" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dt_text out = {0};
        dt_uni_clean(&out, cases[i][0]);
        dt_text_add(&out, "", 1);
        assert_string_equal(out.v, cases[i][1]);
        free(out.v);
    }
}

static uint64_t fnv1a(uint64_t h, const char *s, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3;
    return h;
}

/* Letters, numbers and lower case of all characters: tok_make.py prints the reference's numbers. */
static void classes(void **state)
{
    (void)state;
    static const struct { int64_t n; uint64_t sum; } want[3] = {
        { 141028, 0x0670a59d36347290 }, { 1911, 0xbfa8b5913b2000da }, { 1488, 0x7d95ea57f017a7fc },
    };
    static const char *const pattern[2] = { "[" DT_RE_LETTER "]", "[" DT_RE_NUMBER "]" };
    char version[32];
    pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, version);
    if (atoi(version) > 16 || atoi(utf8proc_unicode_version()) > 17)
        skip();                                     /* they know characters that the reference does not */
    pcre2_code *re[2];
    dt_scratch sc = { .match = pcre2_match_data_create(2, NULL) };
    dt_norm lower = {0};
    dt_text c = {0};
    int64_t n[3] = {0};
    uint64_t sum[3] = { 0xcbf29ce484222325, 0xcbf29ce484222325, 0xcbf29ce484222325 };
    assert_int_equal(dt_norm_add(&lower, DT_NORM_LOWER, "", NULL), 0);
    for (int k = 0; k < 2; k++)
        assert_int_equal(dt_re_compile(&re[k], pattern[k], NULL), 0);
    for (int32_t cp = 1; cp < 0x110000; cp = cp == 0xd7ff ? 0xe000 : cp + 1) {
        const char *s;
        int64_t len;
        c.n = 0;
        dt_text_cp(&c, cp);
        s = c.v, len = c.n;
        for (int k = 0; k < 2; k++)
            if (pcre2_match(re[k], (PCRE2_SPTR)c.v, c.n, 0, PCRE2_NO_UTF_CHECK, sc.match, NULL) > 0) {
                n[k]++;
                sum[k] = fnv1a(sum[k], c.v, c.n);
            }
        assert_int_equal(dt_norm_run(&lower, &sc, &s, &len, NULL), 0);
        if (len != c.n || memcmp(s, c.v, len)) {
            n[2]++;
            sum[2] = fnv1a(fnv1a(sum[2], c.v, c.n), s, len);
        }
    }
    for (int k = 0; k < 3; k++) {
        assert_int_equal(n[k], want[k].n);
        assert_true(sum[k] == want[k].sum);
    }
    pcre2_code_free(re[0]);
    pcre2_code_free(re[1]);
    dt_norm_release(&lower);
    dt_scratch_release(&sc);
    free(c.v);
}

/* A word of a million letters; half a million marks on one letter. */
static void long_words(void **state)
{
    (void)state;
    enum { N = 1000000 };
    char *s = dt_alloc(N + 1);
    int32_t ids[77];
    for (int i = 0; i < N; i++)
        s[i] = "thequickbrownfox"[(i * 7 + i / 13) % 16];
    static const char *const dirs[2] = { GOLDEN "tok_small_clip", GOLDEN "tok_small_t5" };
    for (int i = 0; i < 2; i++) {
        dt_tokenizer *t = open_ok(dirs[i]);
        assert_int_equal(dt_tokenize(t, s, 77, false, ids, NULL), 77);
        dt_tokenizer_close(&t);
    }
    for (int i = 0; i < N; i++)
        s[i] = "\xcc\x81\xcc\xa3"[i % 4];
    dt_tokenizer *t = open_ok(dirs[0]);
    assert_int_equal(dt_tokenize(t, s, 77, false, ids, NULL), 77);
    dt_tokenizer_close(&t);
    free(s);
}

/* --- threads --- */
struct job { dt_tokenizer *t; const char *ids_file; int64_t bad; };

static void *thread_main(void *arg)
{
    struct job *j = arg;
    j->bad = mismatches(j->t, j->ids_file, SHORT);
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    dt_tokenizer *t = open_ok(GOLDEN "tok_small_clip");
    pthread_t id[4];
    struct job job[4];
    for (int i = 0; i < 4; i++) {
        job[i] = (struct job){ t, GOLDEN "tok_small_clip.ids", -1 };
        assert_int_equal(pthread_create(&id[i], NULL, thread_main, &job[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(id[i], NULL);
        assert_int_equal(job[i].bad, 0);
    }
    dt_tokenizer_close(&t);
}

/* --- broken folders --- */
static void refused(const char *dir, const char *says)
{
    dt_tokenizer *t = NULL;
    dt_err e = {0};
    assert_int_equal(dt_tokenizer_open(&t, dir, &e), DT_EDATA);
    assert_null(t);
    if (!strstr(e.msg, says))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, says);
}

static void broken(void **state)
{
    const char *dir = *state;
    refused("/nonexistent/tokenizer", "/nonexistent/tokenizer: no such folder");
    refused(dir, "no tokenizer files");
    copy(dir, GOLDEN "tok_small_clip", "vocab.json");
    refused(dir, "no tokenizer files");                 /* half of the pair */
    put(dir, "merges.txt", "#version: 0.2\na n\nqq qqq\n");
    refused(dir, "merges.txt: merge 2 ('qq qqq') is not in the vocabulary");
    put(dir, "merges.txt", "#version: 0.2\nab\n");
    refused(dir, "merge 1 has no space");
    copy(dir, GOLDEN "tok_small_clip", "merges.txt");
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"LlamaTokenizer\"}");
    refused(dir, "no support for tokenizer_class 'LlamaTokenizer'");
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"T5Tokenizer\"}");
    refused(dir, "no tokenizer files for T5Tokenizer");
    put(dir, "tokenizer_config.json", "{\"tokenizer_class\": ");
    refused(dir, "tokenizer_config.json");
    put(dir, "tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {\"content\": \"a\"}}}");
    refused(dir, "'added_tokens_decoder' has a bad entry 'x'");
    put(dir, "tokenizer_config.json", "{\"added_tokens_decoder\": [\"x\"]}");
    refused(dir, "'added_tokens_decoder' must be an object");
    put(dir, "tokenizer_config.json", "{}");
    put(dir, "added_tokens.json", "[5]");
    refused(dir, "added_tokens.json: '' has no id");
    put(dir, "added_tokens.json", "{}");
    put(dir, "vocab.json", "{\"a\": 0, \"b\": \"c\"}");
    refused(dir, "vocab.json: 'b' has no id");
    put(dir, "vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 2}");
    put(dir, "merges.txt", "#version: 0.2\na b\n");
    refused(dir, "no 'a</w>'");
}

static void broken_json(void **state)
{
    const char *dir = *state;
    cJSON *root = t5_json(), *model = cJSON_GetObjectItem(root, "model");
    cJSON *map = cJSON_GetObjectItem(cJSON_GetArrayItem(
        cJSON_GetObjectItem(cJSON_GetObjectItem(root, "normalizer"), "normalizers"), 0), "precompiled_charsmap");
    char *was = dt_strdup(map->valuestring);
    static const char *const maps[] = { "", "AA", "!!!!", "////AAAA", "BAAAAA==", "CAAAAAAAAAD//w==" };
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
        cJSON_SetValuestring(map, maps[i]);
        put_json(dir, "tokenizer.json", cJSON_Duplicate(root, true));
        refused(dir, "'precompiled_charsmap' is damaged");
    }
    cJSON_SetValuestring(map, was);
    free(was);
    cJSON_SetNumberValue(cJSON_GetObjectItem(model, "unk_id"), 1e6);
    put_json(dir, "tokenizer.json", cJSON_Duplicate(root, true));
    refused(dir, "'unk_id'");
    cJSON_DeleteItemFromObject(root, "normalizer");
    cJSON_AddItemToObject(root, "normalizer", parse("{\"type\": \"BertNormalizer\"}"));
    cJSON_SetNumberValue(cJSON_GetObjectItem(model, "unk_id"), 2);
    put_json(dir, "tokenizer.json", root);
    refused(dir, "no support for normalizer 'BertNormalizer'");
    put(dir, "tokenizer.json", "{\"model\": {\"type\": \"Unigram\", \"unk_id\": 0, \"vocab\": [[\"a\", \"b\"]]}}");
    refused(dir, "entry 0 of 'model.vocab' is no [piece, score]");
}

/* Whatever happens to a spiece.model, opening it ends well, and so does using what opened. */
static void broken_spiece(void **state)
{
    const char *dir = *state;
    size_t n;
    char *data = get(GOLDEN "tok_small_t5", "spiece.model", &n), *copy_of = dt_alloc(n);
    uint32_t r = 1;
    put_file(dir, "spiece.model", data, 0);
    refused(dir, "spiece.model");
    put_file(dir, "spiece.model", data, n / 2);
    refused(dir, "spiece.model");
    put(dir, "spiece.model", "this is a text file\n");
    refused(dir, "spiece.model: no SentencePiece model, or a damaged one");
    for (int i = 0; i < 60; i++) {
        dt_tokenizer *t = NULL;
        dt_err e;
        int32_t ids[77];
        memcpy(copy_of, data, n);
        for (int k = 0; k < 1 << i % 12; k++) {
            r = r * 1664525 + 1013904223;
            copy_of[(uint64_t)r * n >> 32] ^= 1 << (r >> 3 & 7);
        }
        put_file(dir, "spiece.model", copy_of, n);
        if (dt_tokenizer_open(&t, dir, &e) == 0) {
            for (int64_t k = 0; k < strings.n; k += 9)
                assert_in_range(dt_tokenize(t, strings.v[k], 77, false, ids, NULL), 1, 77);
        } else {
            assert_int_equal(e.code, DT_EDATA);
        }
        dt_tokenizer_close(&t);
    }
    free(copy_of);
    free(data);
}

/* --- training --- */
static dt_strs training_set(void)
{
    return (dt_strs){ .v = strings.v, .n = TRAIN };
}

static void same_file(const char *a, const char *b, const char *name)
{
    size_t n, m;
    char *x = get(a, name, &n), *y = get(b, name, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static void train_clip(void **state)
{
    dt_strs set = training_set();
    static const char *const files[] = { "vocab.json", "merges.txt", "tokenizer_config.json",
                                         "special_tokens_map.json" };
    assert_int_equal(dt_tok_train_clip(&set, CLIP_SIZE, 77, *state, NULL), CLIP_SIZE);
    for (int i = 0; i < 4; i++)
        same_file(*state, GOLDEN "tok_small_clip", files[i]);
}

static void train_t5(void **state)
{
    dt_strs set = training_set();
    char *again = dt_path_join(*state, "again");
    int n = dt_tok_train_t5(&set, T5_SIZE, 512, *state, NULL);
    assert_in_range(n, T5_SIZE / 2, T5_SIZE);
    assert_int_equal(dt_tok_train_t5(&set, T5_SIZE, 512, again, NULL), n);
    same_file(*state, again, "spiece.model");
    same_file(*state, again, "tokenizer_config.json");
    dt_tokenizer *t = open_ok(*state);
    assert_int_equal(dt_tokenizer_pad(t), 0);
    assert_int_equal(dt_tokenizer_eos(t), 1);
    assert_int_equal(dt_tokenizer_id(t, "<unk>"), 2);
    assert_int_equal(dt_tokenizer_id(t, "<extra_id_0>"), -1);
    assert_int_equal(dt_tokenizer_max_len(t), 512);
    dt_tokenizer_close(&t);
    free(again);
}

static void train_refused(void **state)
{
    dt_strs none = {0}, set = training_set();
    dt_err e;
    assert_int_equal(dt_tok_train_clip(&none, 1000, 77, *state, &e), DT_EDATA);
    assert_int_equal(dt_tok_train_clip(&set, 513, 77, *state, &e), DT_EUSAGE);
    assert_int_equal(dt_tok_train_t5(&none, 1000, 77, *state, &e), DT_EDATA);
    assert_int_equal(dt_tok_train_t5(&set, 3, 77, *state, &e), DT_EUSAGE);
    assert_int_equal(dt_tok_train_t5(&set, 10, 77, *state, &e), DT_EDATA);     /* fewer than the letters */
    /* a word that occurs once teaches nothing: bytes and the two special tokens remain */
    dt_strs_add(&none, "abc");
    assert_int_equal(dt_tok_train_clip(&none, 1000, 77, *state, &e), 514);
    dt_strs_add(&none, "abc");
    assert_int_equal(dt_tok_train_clip(&none, 1000, 77, *state, &e), 516);
    dt_strs_release(&none);
}

static int write_small(void)
{
    dt_strs set;
    dt_err e = {0};
    read_strings(NULL);
    set = training_set();
    int a = dt_tok_train_clip(&set, CLIP_SIZE, 77, GOLDEN "tok_small_clip", &e);
    int b = dt_tok_train_t5(&set, T5_SIZE, 512, GOLDEN "tok_small_t5", &e);
    print_message("%d %d %s\n", a, b, e.msg);
    release_strings(NULL);
    return a < 0 || b < 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_clip), cmocka_unit_test(small_t5),
        scratch_test(fast_t5),
        scratch_test(fast_clip),
        scratch_test(bare_clip),
        scratch_test(added_tokens),
        cmocka_unit_test(cut_and_padded), cmocka_unit_test(bad_utf8), cmocka_unit_test(classes),
        cmocka_unit_test(long_words), cmocka_unit_test(threads),
        scratch_test(broken),
        scratch_test(broken_json),
        scratch_test(broken_spiece),
        scratch_test(train_clip),
        scratch_test(train_t5),
        scratch_test(train_refused),
    };
    const struct CMUnitTest real[] = {
        cmocka_unit_test(real_clip), cmocka_unit_test(real_qwen2),
            scratch_test(real_t5),
    };
    if (argc > 1 && !strcmp(argv[1], "train"))
        return write_small();
    cmocka_set_message_output(CM_OUTPUT_TAP);
    int bad = cmocka_run_group_tests(tests, read_strings, release_strings);
    if (getenv("DT_TOKENIZERS"))
        bad += cmocka_run_group_tests(real, read_strings, release_strings);
    else
        print_message("1..1\nok 1 - real vocabularies # SKIP DT_TOKENIZERS is not set\n");
    return bad;
}
