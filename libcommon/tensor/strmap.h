/* strmap.h - name -> index, open addressing.  Keys are borrowed and must not move or change. */
#ifndef DT_TENSOR_STRMAP_H
#define DT_TENSOR_STRMAP_H
#include <stdint.h>

typedef struct dt_strmap dt_strmap;

dt_strmap *dt_strmap_new(void);
void       dt_strmap_free(dt_strmap **m);
/* Adds key -> value unless the key is there.  Returns the value now held. */
int64_t    dt_strmap_add(dt_strmap *m, const char *key, int64_t value);
int64_t    dt_strmap_get(const dt_strmap *m, const char *key);      /* -1 if absent; m may be NULL */

#endif
