/* encode_recipe.c - the networks and tokenizers that entries of a cache depend on, by content.  See encode_int.h. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "train/encode_int.h"

const struct dt_enc_part_kind dt_enc_parts[] = {
    { "vae", DT_FLUX_VAE, false },   { "text_encoder", DT_FLUX_CLIP, true }, { "text_encoder_2", DT_FLUX_T5, true },
    { "tokenizer", -1, true },       { "tokenizer_2", -1, true },            { 0 },
};

static int add_file(dt_hasher *h, const char *path, bool contents, dt_err *err)
{
    dt_hash one = { "" };
    int rc = 0;
    if (!contents)
        one = dt_hash_stat(path);
    if (!*one.hex)
        rc = dt_hash_file(&one, path, err);
    if (rc == 0) {
        dt_hasher_str(h, dt_path_base(path));
        dt_hasher_str(h, one.hex);
    }
    return rc;
}

/* Files of a folder in the order of their names; `contents`: what is in them, otherwise what stat says. */
static int add_folder(dt_hasher *h, const char *dir, bool contents, dt_err *err)
{
    struct dirent **entry;
    int n = scandir(dir, &entry, NULL, alphasort);
    int rc = n < 0 ? dt_err_sys(err, DT_EDATA, "cannot open folder '%s'", dir) : 0;
    for (int i = 0; i < n; i++) {
        char *path = dt_path_join(dir, entry[i]->d_name);
        if (rc == 0 && entry[i]->d_name[0] != '.' && !dt_is_dir(path))
            rc = add_file(h, path, contents, err);
        free(path);
        free(entry[i]);
    }
    if (n >= 0)
        free(entry);
    return rc;
}

int dt_enc_part(dt_cache_part *part, const dt_flux_pipe *pipe, const struct dt_enc_part_kind *kind,
                bool (*known)(void *ctx, dt_cache_part *part), void *ctx, dt_err *err)
{
    char *dir = dt_path_join(pipe->dir, kind->name);
    const char *w = kind->k < 0 ? NULL : pipe->weights[kind->k];
    *part = (dt_cache_part){ .text = kind->text };
    snprintf(part->name, sizeof(part->name), "%s", kind->name);
    dt_hasher *h = dt_hasher_new();
    int rc = add_folder(h, dir, false, err);
    if (rc == 0 && w)
        rc = dt_is_dir(w) ? add_folder(h, w, false, err) : add_file(h, w, false, err);
    part->stat = dt_hasher_end(&h);
    if (rc == 0 && !known(ctx, part)) {
        if (kind->k >= 0) {
            rc = dt_flux_pipe_hash(pipe, (enum dt_flux_part)kind->k, &part->hash, err);
        } else {
            h = dt_hasher_new();
            rc = add_folder(h, dir, true, err);
            part->hash = dt_hasher_end(&h);
        }
    }
    free(dir);
    return rc;
}
