/* prompts.h - what to sample: lines of text, or JSON lines with the fields prompt, seed, image, width and height. */
#ifndef DT_DATA_PROMPTS_H
#define DT_DATA_PROMPTS_H
#include <stdint.h>
#include <cjson/cJSON.h>
#include "base/err.h"

typedef struct dt_prompt {
    char   *text;
    int64_t seed;               /* -1: not said */
    int64_t image;              /* number of the first picture of this seed: 0 */
    int64_t w_px, h_px;         /* 0: not said */
    cJSON  *extra;              /* object of the other fields, or NULL */
} dt_prompt;

typedef struct dt_prompts {
    dt_prompt *v;
    int64_t n, cap;
} dt_prompts;

void dt_prompts_add(dt_prompts *p, const char *text);
/* A line that begins with '{' is JSON, any other the prompt itself; empty lines are passed over.  "-" is stdin.
 * DT_EDATA names file, line and field. */
int  dt_prompts_read(dt_prompts *p, const char *path, dt_err *err);
void dt_prompts_release(dt_prompts *p);

#endif
