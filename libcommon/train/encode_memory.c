/* encode_memory.c - the memory plan of filling a cache.  See memory.h.
 *
 *   captions     those that are missing go through the text encoders, which then go
 *   pictures     those that are missing go through the autoencoder, which then goes
 *   index        written, and the plan beside it
 */
#include <stdlib.h>
#include "train/encode_int.h"

/* A mark for every entry; and what older indexes say, if there are any, while it is compared. */
static int64_t index_bytes(const dt_enc *e)
{
    int64_t n = e->n + e->texts;
    if (!dt_cache_store_index(e->store, 0))
        return n;
    return n + dt_keymap_bytes(e->n) + dt_keymap_bytes(e->texts) + 2 * n * (int64_t)sizeof(uint64_t);
}

static void count(dt_enc *e)
{
    const struct dt_encode_params *p = e->p;
    const dt_flux_pipe *pipe = p->pipe;
    int64_t process = dt_mem_resident(), arena, host;
    e->memory = (dt_mem_plan){ 0 };
    if (e->text_run) {
        dt_mem_moment *m = dt_mem_add(&e->memory, "captions", process);
        int64_t states = pipe->t5_len * pipe->dit.joint_dim + pipe->dit.pooled_dim;
        dt_mem_add_params(m, dt_params_size(pipe->part[DT_FLUX_CLIP], p->compute, DT_PARAMS_NO_OPTIM));
        dt_mem_add_params(m, dt_params_size(pipe->part[DT_FLUX_T5], p->compute, DT_PARAMS_NO_OPTIM));
        m->kind[DT_MEM_ACTIVATIONS] = dt_flux_run_bytes(e->text_run);
        /* and an entry, packed */
        m->kind[DT_MEM_BATCHES] = states * (int64_t)(sizeof(float) + 2 * dt_dtype_size(p->store));
    }
    dt_enc_images_bytes(e, &arena, &host);
    if (arena) {
        dt_mem_moment *m = dt_mem_add(&e->memory, "pictures", process);
        dt_mem_add_params(m, dt_params_size(pipe->part[DT_FLUX_VAE], p->compute, DT_PARAMS_NO_OPTIM));
        m->kind[DT_MEM_ACTIVATIONS] = arena;
        m->kind[DT_MEM_BATCHES] = host;
    }
    dt_mem_add(&e->memory, "index", process)->kind[DT_MEM_BATCHES] = index_bytes(e);
    dt_mem_add_start(&e->memory);
}

int dt_enc_memory(dt_enc *e, dt_err *err)
{
    const struct dt_encode_params *p = e->p;
    int64_t at_once = p->vae_mini_batch;
    bool gave_back = false;
    int rc;
    if (dt_enc_stopped(e))
        return 0;
    dt_enc_rehearse_image(e);
    while ((rc = dt_enc_plan_images(e, at_once, err)) == 0) {
        count(e);
        if (!dt_mem_fits(&e->memory, p->memory_budget) && dt_flux_pipe_give_back(p->pipe)) {
            gave_back = true;
            count(e);
        }
        if (dt_mem_fits(&e->memory, p->memory_budget) || at_once == 1)
            break;
        at_once = (at_once + 1) / 2;
    }
    if (rc < 0)
        return rc;
    if (gave_back && dt_mem_fits(&e->memory, p->memory_budget))
        dt_enc_say(e, false, "%s", DT_MEM_GIVEN_BACK);
    if (at_once < p->vae_mini_batch && dt_mem_fits(&e->memory, p->memory_budget))
        dt_enc_say(e, false, "pictures are encoded %lld at a time, so that the budget is kept", (long long)at_once);
    char *text = NULL, *line = dt_mem_line(&e->memory);
    size_t bytes = 0;
    FILE *f = p->memory_plan && p->table ? dt_must(open_memstream(&text, &bytes)) : NULL;
    if (f) {
        dt_mem_table(f, &e->memory);
        fclose(f);
        p->table(p->ctx, text);
    } else {
        dt_enc_say(e, false, "%s", line);
    }
    free(text);
    free(line);
    return dt_mem_accept(&e->memory, p->memory_budget, p->dev, err);
}
