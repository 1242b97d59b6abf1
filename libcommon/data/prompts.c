/* prompts.c - see prompts.h. */
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "data/prompts.h"

enum { MAX_BYTES = 64 << 20 };

static dt_prompt *append(dt_prompts *p)
{
    dt_grow(&p->v, &p->cap, p->n + 1, sizeof(*p->v));
    p->v[p->n] = (dt_prompt){ .seed = -1 };
    return &p->v[p->n++];
}

void dt_prompts_add(dt_prompts *p, const char *text) { append(p)->text = dt_strdup(text); }

void dt_prompts_release(dt_prompts *p)
{
    for (int64_t i = 0; i < p->n; i++) {
        free(p->v[i].text);
        cJSON_Delete(p->v[i].extra);
    }
    free(p->v);
    *p = (dt_prompts){ 0 };
}

static int read_object(dt_prompts *p, const char *line, size_t bytes, const char *what, dt_err *err)
{
    cJSON *o = NULL;
    const char *text = NULL;
    int64_t seed, image, w, h;
    int rc = dt_json_parse(&o, line, bytes, what, err);
    if (rc == 0)
        rc = dt_json_str_or(&text, o, "prompt", NULL, what, err);
    if (rc == 0 && !text)
        rc = dt_err_set(err, DT_EDATA, "%s: 'prompt' must be a string", what);
    if (rc == 0)
        rc = dt_json_int_or(&seed, o, "seed", -1, 0, (int64_t)1 << 53, what, err);
    if (rc == 0)
        rc = dt_json_int_or(&image, o, "image", 0, 0, 1000000, what, err);
    if (rc == 0)
        rc = dt_json_int_or(&w, o, "width", 0, 1, 1 << 16, what, err);
    if (rc == 0)
        rc = dt_json_int_or(&h, o, "height", 0, 1, 1 << 16, what, err);
    if (rc == 0) {
        static const char *const known[] = { "prompt", "seed", "image", "width", "height" };
        dt_prompt *q = append(p);
        q->text = dt_strdup(text);
        q->seed = seed, q->image = image, q->w_px = w, q->h_px = h;
        for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
            cJSON_DeleteItemFromObjectCaseSensitive(o, known[i]);
        if (o->child)
            q->extra = o, o = NULL;
    }
    cJSON_Delete(o);
    return rc;
}

int dt_prompts_read(dt_prompts *p, const char *path, dt_err *err)
{
    char *data = NULL;
    size_t bytes = 0;
    int64_t number = 0;
    int rc = dt_file_read(&data, &bytes, path, MAX_BYTES, err);
    if (rc == 0 && strlen(data) != bytes)
        rc = dt_err_set(err, DT_EDATA, "%s: is not text", path);
    for (char *next = data, *line; rc == 0 && next && (line = strsep(&next, "\n"));) {
        char *what = dt_sprintf("%s: line %lld", path, (long long)++number);
        size_t n = strlen(line);
        if (n && line[n - 1] == '\r')
            line[--n] = '\0';
        if (*line == '{')
            rc = read_object(p, line, n, what, err);
        else if (n)
            dt_prompts_add(p, line);
        free(what);
    }
    free(data);
    return rc;
}
