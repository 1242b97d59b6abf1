/* tok_config.c - tokenizer_config.json, special_tokens_map.json, added_tokens.json and the added_tokens of
 * tokenizer.json, with the precedence of transformers:
 *   added_tokens_decoder of the config, if there, is all there is to know about added tokens;
 *   otherwise special_tokens_map.json overrides the config's own names, and a name given as an object carries its
 *   flags, one given as a string means "matched before normalising".  Of names with the same text the last wins. */
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "text/internal.h"

enum { CONFIG_MAX_BYTES = 64 << 20 };

static const char *const names[DT_TOK_NAMED] = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
};

static dt_added *find_added(dt_added_set *a, const char *text)
{
    for (int64_t i = 0; i < a->n; i++)
        if (!strcmp(a->v[i].text, text))
            return &a->v[i];
    return NULL;
}

static bool flag(const cJSON *o, const char *key, bool def)
{
    const cJSON *e = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsBool(e) ? cJSON_IsTrue(e) : def;
}

/* A token by its object {"content": ..., flags} or its string; false if it is neither. */
static bool token_of(dt_added *t, const cJSON *node)
{
    const char *text = cJSON_GetStringValue(cJSON_IsObject(node) ? cJSON_GetObjectItemCaseSensitive(node, "content")
                                                                 : node);
    if (!text)
        return false;
    *t = (dt_added){
        .text = (char *)text, .len = strlen(text), .id = -1,
        .lstrip = flag(node, "lstrip", false), .rstrip = flag(node, "rstrip", false),
        .single_word = flag(node, "single_word", false),
        .normalized = flag(node, "normalized", cJSON_IsObject(node) && !flag(node, "special", false)),
    };
    return true;
}

static void put_token(dt_tok_config *c, const dt_added *t)
{
    dt_added *old = find_added(&c->added, t->text);
    if (!old) {
        dt_added_put(&c->added, t);
    } else if (!old->listed) {
        char *text = old->text;
        int32_t id = t->id >= 0 ? t->id : old->id;
        *old = *t;
        old->text = text;
        old->id = id;
    }
}

static int by_id(const void *x, const void *y)
{
    const dt_added *a = x, *b = y;
    return (a->id > b->id) - (a->id < b->id);
}

/* {"49406": {"content": ...}, ...} */
static int read_decoder(dt_tok_config *c, const cJSON *node, const char *what, dt_err *err)
{
    const cJSON *e;
    if (!cJSON_IsObject(node) && !cJSON_IsNull(node))
        return dt_err_set(err, DT_EDATA, "%s: 'added_tokens_decoder' must be an object", what);
    cJSON_ArrayForEach(e, node) {
        dt_added t;
        char *end;
        long id = strtol(e->string, &end, 10);
        if (*end || end == e->string || id < 0 || id >= DT_TOK_MAX_ID || !token_of(&t, e))
            return dt_err_set(err, DT_EDATA, "%s: 'added_tokens_decoder' has a bad entry '%s'", what, e->string);
        t.id = id;
        t.listed = true;
        dt_added_put(&c->added, &t);
    }
    if (c->added.n)
        qsort(c->added.v, c->added.n, sizeof *c->added.v, by_id);
    c->listed = true;
    return 0;
}

/* added_tokens.json: {"<|im_end|>": 151645, ...} */
static int read_added_file(dt_tok_config *c, const char *dir, dt_err *err)
{
    char *path = dt_path_join(dir, "added_tokens.json");
    cJSON *root = NULL;
    const cJSON *e;
    int rc = dt_exists(path) ? dt_json_read(&root, path, CONFIG_MAX_BYTES, err) : 0;
    cJSON_ArrayForEach(e, root) {
        double id = e->string && cJSON_IsNumber(e) ? e->valuedouble : -1;
        if (!(id >= 0 && id < DT_TOK_MAX_ID)) {
            rc = dt_err_set(err, DT_EDATA, "%s: '%s' has no id", path, e->string ? e->string : "");
            break;
        }
        dt_added t = { .text = e->string, .len = strlen(e->string), .id = id, .normalized = true };
        put_token(c, &t);
    }
    cJSON_Delete(root);
    free(path);
    return rc;
}

static int read_fast_added(dt_tok_config *c, const cJSON *fast, const char *what, dt_err *err)
{
    const cJSON *e;
    cJSON_ArrayForEach(e, cJSON_GetObjectItemCaseSensitive(fast, "added_tokens")) {
        dt_added t;
        int64_t id;
        if (!token_of(&t, e))
            return dt_err_set(err, DT_EDATA, "%s: an added token has no content", what);
        int rc = dt_json_int(&id, e, "id", 0, DT_TOK_MAX_ID - 1, what, err);
        if (rc < 0)
            return rc;
        t.id = id;
        put_token(c, &t);
        find_added(&c->added, t.text)->listed = true;
    }
    return 0;
}

/* Names in `node` override those read before; a later name overrides the flags of an earlier one. */
static void read_names(dt_tok_config *c, const cJSON *node)
{
    for (int i = 0; i < DT_TOK_NAMED; i++) {
        dt_added t;
        if (!token_of(&t, cJSON_GetObjectItemCaseSensitive(node, names[i])))
            continue;
        free(c->named[i]);
        c->named[i] = dt_strdup(t.text);
        put_token(c, &t);
    }
    static const char *const lists[2] = { "extra_special_tokens", "additional_special_tokens" };
    for (int i = 0; i < 2; i++) {
        const cJSON *e, *list = cJSON_GetObjectItemCaseSensitive(node, lists[i]);
        cJSON_ArrayForEach(e, list) {
            dt_added t;
            if (cJSON_IsArray(list) && token_of(&t, e) && !find_added(&c->added, t.text))
                put_token(c, &t);
        }
    }
}

static int read_plain(dt_tok_config *c, const cJSON *o, const char *what, dt_err *err)
{
    const char *class;
    int rc;
    const cJSON *len = cJSON_GetObjectItemCaseSensitive(o, "model_max_length");
    if (cJSON_IsNumber(len) && len->valuedouble >= 1 && len->valuedouble < INT32_MAX)
        c->max_len = len->valuedouble;          /* 1e30 is how transformers writes "unlimited" */
    if ((rc = dt_json_str_or(&class, o, "tokenizer_class", NULL, what, err)) < 0
        || (rc = dt_json_int_or(&c->extra_ids, o, "extra_ids", -1, -1, 1 << 16, what, err)) < 0)
        return rc;
    c->class = dt_strdup(class);
    return 0;
}

static int read_optional(cJSON **out, char **path, const char *dir, const char *name, dt_err *err)
{
    *path = dt_path_join(dir, name);
    return dt_exists(*path) ? dt_json_read(out, *path, CONFIG_MAX_BYTES, err) : 0;
}

int dt_tok_config_read(dt_tok_config *c, const char *dir, const cJSON *fast, dt_err *err)
{
    char *config_path = NULL, *map_path = NULL;
    cJSON *config = NULL, *map = NULL, *decoder;
    int rc;
    *c = (dt_tok_config){ .max_len = INT32_MAX, .extra_ids = -1 };
    if ((rc = read_optional(&config, &config_path, dir, "tokenizer_config.json", err)) < 0
        || (rc = read_optional(&map, &map_path, dir, "special_tokens_map.json", err)) < 0
        || (rc = read_plain(c, config, config_path, err)) < 0)
        goto out;
    decoder = cJSON_GetObjectItemCaseSensitive(config, "added_tokens_decoder");
    if (decoder) {
        if ((rc = read_decoder(c, decoder, config_path, err)) < 0)
            goto out;
        read_names(c, config);
    } else {
        if ((rc = read_added_file(c, dir, err)) < 0 || (rc = read_fast_added(c, fast, dir, err)) < 0)
            goto out;
        /* the map's names replace the config's, also for the flags */
        for (const cJSON *e = map ? map->child : NULL; e && cJSON_IsObject(config); e = e->next)
            cJSON_DeleteItemFromObjectCaseSensitive(config, e->string);
        read_names(c, config);
        read_names(c, map);
    }
out:
    cJSON_Delete(config);
    cJSON_Delete(map);
    free(config_path);
    free(map_path);
    return rc;
}

void dt_tok_config_default(dt_tok_config *c, int which, const char *token)
{
    if (c->named[which])
        return;
    c->named[which] = dt_strdup(token);
    put_token(c, &(dt_added){ .text = (char *)token, .len = strlen(token), .id = -1 });
}

void dt_tok_config_release(dt_tok_config *c)
{
    free(c->class);
    for (int i = 0; i < DT_TOK_NAMED; i++)
        free(c->named[i]);
    dt_added_release(&c->added);
    *c = (dt_tok_config){0};
}
