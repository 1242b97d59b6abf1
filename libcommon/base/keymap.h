/* keymap.h - bytes -> index, without keeping the bytes: 16 bytes a slot.  Of a key 96 bits of its XXH3-128 hash
 * are kept, so that two keys of a million are taken for one with a probability of 1e-17. */
#ifndef DT_BASE_KEYMAP_H
#define DT_BASE_KEYMAP_H
#include <stddef.h>
#include <stdint.h>

typedef struct dt_keymap dt_keymap;

dt_keymap *dt_keymap_new(void);
void       dt_keymap_free(dt_keymap **m);
/* Adds key -> value, 0 <= value < 2^32 - 1, unless the key is there.  Returns the value now held. */
int64_t    dt_keymap_add(dt_keymap *m, const void *key, size_t bytes, int64_t value);
int64_t    dt_keymap_get(const dt_keymap *m, const void *key, size_t bytes);    /* -1 if absent */
/* Bytes of a map of n keys while it grows to that. */
int64_t    dt_keymap_bytes(int64_t n);

#endif
