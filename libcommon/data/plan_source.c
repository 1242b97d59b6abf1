/* plan_source.c - which metadata files a plan was made from, by content: a plan outlives them, and whoever reads
 * it can say that they have changed. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/hash.h"
#include "data/plan_int.h"

static bool is_file(const char *path, struct stat *st)
{
    return path && strcmp(path, "-") && stat(path, st) == 0 && S_ISREG(st->st_mode);
}

/* A FIFO can be read but once, and a folder has no contents of its own. */
static void add(cJSON *list, const char *path)
{
    const cJSON *e;
    struct stat st;
    dt_hash h;
    if (!is_file(path, &st))
        return;
    cJSON_ArrayForEach(e, list)
        if (!strcmp(cJSON_GetObjectItem(e, "path")->valuestring, path))
            return;
    if (dt_hash_file(&h, path, NULL) < 0)
        return;
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "path", path);
    cJSON_AddNumberToObject(o, "bytes", (double)st.st_size);
    cJSON_AddStringToObject(o, "xxh3_128", h.hex);
    cJSON_AddItemToArray(list, o);
}

static void add_named(cJSON *list, const char *named_in, const char *named)
{
    char *path = named ? dt_dataset_locate(named_in, named) : NULL;
    add(list, path);
    free(path);
}

cJSON *dt_plan_sources(const struct dt_rules *r)
{
    cJSON *list = cJSON_CreateArray();
    add(list, r->s->train_data_meta);
    add(list, r->s->dataset_config);
    for (int i = 0; r->sets && i < r->sets->n_sub; i++) {
        add_named(list, r->sets->path, r->sets->sub[i].meta);
        add_named(list, r->sets->path, r->sets->sub[i].jsonl);
    }
    return list;
}

const char *dt_batches_stale(const dt_batches *b)
{
    const cJSON *e;
    struct stat st;
    cJSON_ArrayForEach(e, cJSON_GetObjectItemCaseSensitive(dt_batches_header(b), "metadata")) {
        const char *path = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(e, "path"));
        const char *was = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(e, "xxh3_128"));
        const cJSON *bytes = cJSON_GetObjectItemCaseSensitive(e, "bytes");
        dt_hash h;
        if (!was || !cJSON_IsNumber(bytes) || !is_file(path, &st))
            continue;
        if ((double)st.st_size != bytes->valuedouble || (dt_hash_file(&h, path, NULL) == 0 && strcmp(h.hex, was)))
            return path;
    }
    return NULL;
}
