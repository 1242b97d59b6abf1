/* tfread.h - a reader of event files for tests: wire format and checksums, sharing nothing with the
 * writer but the CRC. */
#ifndef DT_TESTS_TFREAD_H
#define DT_TESTS_TFREAD_H
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "train/tfevents.h"

typedef struct span { const uint8_t *p; size_t n; } span;

typedef struct field {
    int      number, wire;
    uint64_t value;         /* varint or fixed bits */
    span     bytes;         /* wire type 2 */
} field;

static inline uint64_t varint(span *s)
{
    uint64_t v = 0;
    for (int shift = 0; ; shift += 7) {
        assert_true(s->n > 0 && shift < 64);
        uint8_t b = *s->p++;
        s->n--;
        v |= (uint64_t)(b & 127) << shift;
        if (b < 128)
            return v;
    }
}

static inline uint64_t fixed(span *s, size_t bytes)
{
    uint64_t v = 0;
    assert_true(s->n >= bytes);
    memcpy(&v, s->p, bytes);
    s->p += bytes;
    s->n -= bytes;
    return v;
}

static inline int next_field(span *s, field *f)
{
    if (!s->n)
        return 0;
    uint64_t key = varint(s);
    f->number = (int)(key >> 3);
    f->wire = (int)(key & 7);
    if (f->wire == 0) {
        f->value = varint(s);
    } else if (f->wire == 2) {
        f->bytes.n = varint(s);
        assert_true(f->bytes.n <= s->n);
        f->bytes.p = s->p;
        s->p += f->bytes.n;
        s->n -= f->bytes.n;
    } else {
        assert_true(f->wire == 1 || f->wire == 5);
        f->value = fixed(s, f->wire == 1 ? 8 : 4);
    }
    return 1;
}

/* Field `number` of a message; fails the test if it is absent. */
static inline field get(span msg, int number)
{
    field f = { 0 };
    while (next_field(&msg, &f))
        if (f.number == number)
            return f;
    fail_msg("no field %d", number);
    return f;
}

static inline int has(span msg, int number)
{
    field f = { 0 };
    while (next_field(&msg, &f))
        if (f.number == number)
            return 1;
    return 0;
}

static inline void assert_bytes(span s, const char *want)
{
    assert_int_equal(s.n, strlen(want));
    assert_memory_equal(s.p, want, s.n);
}

/* The next record, with both checksums verified. */
static inline span next_record(span *file)
{
    span head = *file;
    uint64_t len = fixed(file, 8);
    assert_int_equal(fixed(file, 4), dt_crc32c_masked(head.p, 8));
    assert_true(file->n >= len + 4);
    span rec = { file->p, len };
    file->p += len;
    file->n -= len;
    assert_int_equal(fixed(file, 4), dt_crc32c_masked(rec.p, rec.n));
    return rec;
}

#endif
