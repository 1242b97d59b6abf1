/* names.c - tables of names.  FLUX: diffusers' convert_flux_transformer_checkpoint_to_diffusers and the model of
 * github.com/black-forest-labs/flux; autoencoder: diffusers' convert_ldm_vae_checkpoint. */
#include "models/names.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

/* --- rules --- */

/* A table of rules turns a dotted name into another.  '#' stands for a number, taken over in order ('~' in `to`:
 * counted from the end of n).  A rule matches a whole name or a beginning of it that ends at a dot; the rest is kept.
 * First match wins. */
struct rule {
    const char *from, *to;
    int  part, parts;               /* parts 0 = 1 */
    bool swap;
};

enum { MAX_NUMBERS = 4 };

/* Length of the beginning of name that `from` matches, or -1.  Numbers go to num. */
static int match(const char *from, const char *name, long num[MAX_NUMBERS])
{
    const char *s = name;
    int k = 0;
    for (; *from; from++) {
        if (*from == '#' && isdigit((unsigned char)*s) && k < MAX_NUMBERS) {
            char *end;
            num[k++] = strtol(s, &end, 10);
            s = end;
        } else if (*from != *s++) {
            return -1;
        }
    }
    return *s && *s != '.' ? -1 : (int)(s - name);
}

static bool expand(const char *to, const long *num, int n, const char *rest, char *out, size_t bytes)
{
    size_t at = 0;
    int k = 0;
    for (; *to && at + 1 < bytes; to++) {
        if (*to == '#' || *to == '~') {
            at += (size_t)snprintf(out + at, bytes - at, "%ld", *to == '~' ? n - 1 - num[k] : num[k]);
            k++;
        } else {
            out[at++] = *to;
        }
    }
    return !*to && at < bytes && (size_t)snprintf(out + at, bytes - at, "%s", rest) < bytes - at;
}

static bool apply(const struct rule *rules, const char *name, int n, dt_other_name *out)
{
    for (const struct rule *r = rules; r->from; r++) {
        long num[MAX_NUMBERS] = { 0 };
        int len = match(r->from, name, num);
        if (len < 0)
            continue;
        *out = (dt_other_name){ .part = r->part, .parts = r->parts ? r->parts : 1, .swap = r->swap };
        return expand(r->to, num, n, name + len, out->name, sizeof(out->name));
    }
    return false;
}

/* Tries the prefixes until prefix + probe is in st; NULL if none. */
static const char *find_prefix(const dt_st *st, const char *const *prefix, const char *probe)
{
    char name[200];
    for (; *prefix; prefix++) {
        snprintf(name, sizeof(name), "%s%s", *prefix, probe);
        if (dt_st_find(st, name))
            return *prefix;
    }
    return NULL;
}

static int need(const dt_st *st, const char *prefix, const char *name, dt_st_entry *out, dt_err *err)
{
    char full[256];
    snprintf(full, sizeof(full), "%s%s", prefix, name);
    return dt_st_need(st, full, out, err);
}

/* --- FLUX --- */

#define EMBEDDER(ours, theirs) \
    { "time_text_embed." ours ".linear_1", theirs ".in_layer" }, \
    { "time_text_embed." ours ".linear_2", theirs ".out_layer" }
#define DOUBLE(ours, theirs) { "transformer_blocks.#." ours, "double_blocks.#." theirs }
#define SINGLE(ours, theirs) { "single_transformer_blocks.#." ours, "single_blocks.#." theirs }
#define PART(i, n) .part = i, .parts = n

static const struct rule flux_rules[] = {
    { "x_embedder", "img_in" },
    { "context_embedder", "txt_in" },
    EMBEDDER("timestep_embedder", "time_in"),
    EMBEDDER("guidance_embedder", "guidance_in"),
    EMBEDDER("text_embedder", "vector_in"),
    DOUBLE("norm1.linear", "img_mod.lin"),
    DOUBLE("norm1_context.linear", "txt_mod.lin"),
    { "transformer_blocks.#.attn.to_q", "double_blocks.#.img_attn.qkv", PART(0, 3) },
    { "transformer_blocks.#.attn.to_k", "double_blocks.#.img_attn.qkv", PART(1, 3) },
    { "transformer_blocks.#.attn.to_v", "double_blocks.#.img_attn.qkv", PART(2, 3) },
    { "transformer_blocks.#.attn.add_q_proj", "double_blocks.#.txt_attn.qkv", PART(0, 3) },
    { "transformer_blocks.#.attn.add_k_proj", "double_blocks.#.txt_attn.qkv", PART(1, 3) },
    { "transformer_blocks.#.attn.add_v_proj", "double_blocks.#.txt_attn.qkv", PART(2, 3) },
    DOUBLE("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
    DOUBLE("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    DOUBLE("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    DOUBLE("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    DOUBLE("attn.to_out.0", "img_attn.proj"),
    DOUBLE("attn.to_add_out", "txt_attn.proj"),
    DOUBLE("ff.net.0.proj", "img_mlp.0"),
    DOUBLE("ff.net.2", "img_mlp.2"),
    DOUBLE("ff_context.net.0.proj", "txt_mlp.0"),
    DOUBLE("ff_context.net.2", "txt_mlp.2"),
    SINGLE("norm.linear", "modulation.lin"),
    { "single_transformer_blocks.#.attn.to_q", "single_blocks.#.linear1", PART(0, 4) },
    { "single_transformer_blocks.#.attn.to_k", "single_blocks.#.linear1", PART(1, 4) },
    { "single_transformer_blocks.#.attn.to_v", "single_blocks.#.linear1", PART(2, 4) },
    { "single_transformer_blocks.#.proj_mlp", "single_blocks.#.linear1", PART(3, 4) },
    SINGLE("attn.norm_q.weight", "norm.query_norm.scale"),
    SINGLE("attn.norm_k.weight", "norm.key_norm.scale"),
    SINGLE("proj_out", "linear2"),
    /* (shift, scale) there, (scale, shift) here */
    { "norm_out.linear", "final_layer.adaLN_modulation.1", .swap = true },
    { "proj_out", "final_layer.linear" },
    { NULL, NULL },
};

static const char *const flux_prefixes[] = { "", "model.diffusion_model.", NULL };

static const char *flux_prefix(const dt_st *st)
{
    return find_prefix(st, flux_prefixes, "double_blocks.0.img_attn.qkv.weight");
}

bool dt_flux_single_name(const char *name, dt_other_name *out) { return apply(flux_rules, name, 0, out); }

int dt_flux_rename(const dt_st *st, const dt_param *p, dt_st_entry out[DT_MAX_PIECES], void *unused, dt_err *err)
{
    (void)unused;
    const char *prefix = flux_prefix(st);
    dt_other_name o;
    int rc;
    if (!prefix || !dt_flux_single_name(p->name, &o))
        return (rc = dt_st_need(st, p->name, out, err)) < 0 ? rc : 1;
    if ((rc = need(st, prefix, o.name, out, err)) < 0)
        return rc;
    int64_t own = p->dims.d[0], all = out->dims.nd ? out->dims.d[0] : 0;
    if (o.swap) {
        out[1] = out[0];
        if ((rc = dt_st_rows(&out[0], own / 2, own - own / 2, err)) < 0 ||
            (rc = dt_st_rows(&out[1], 0, own / 2, err)) < 0)
            return rc;
        return 2;
    }
    /* q, k and v are of one size; what follows them, of another, ends the fused tensor. */
    if (o.parts > 1 && (rc = dt_st_rows(out, o.part == 3 ? all - own : o.part * own, own, err)) < 0)
        return rc;
    return 1;
}

/* --- CLIP --- */

#define ATTN "text_model.encoder.layers.#.self_attn."
#define PROJ(ours, theirs) { ATTN ours, ATTN theirs }

static const struct rule clip_old_rules[] = {
    PROJ("q_proj", "to_q"), PROJ("k_proj", "to_k"), PROJ("v_proj", "to_v"), PROJ("out_proj", "to_out"), { NULL, NULL },
};

bool dt_clip_old_name(const char *name, dt_other_name *out) { return apply(clip_old_rules, name, 0, out); }

/* --- AutoencoderKL --- */

#define VAE_COMMON(side) \
    { side ".conv_norm_out", side ".norm_out" }, \
    { side ".mid_block.resnets.0.conv_shortcut", side ".mid.block_1.nin_shortcut" }, \
    { side ".mid_block.resnets.1.conv_shortcut", side ".mid.block_2.nin_shortcut" }, \
    { side ".mid_block.resnets.0", side ".mid.block_1" }, \
    { side ".mid_block.resnets.1", side ".mid.block_2" }, \
    { side ".mid_block.attentions.0.group_norm", side ".mid.attn_1.norm" }, \
    { side ".mid_block.attentions.0.to_q", side ".mid.attn_1.q" }, \
    { side ".mid_block.attentions.0.to_k", side ".mid.attn_1.k" }, \
    { side ".mid_block.attentions.0.to_v", side ".mid.attn_1.v" }, \
    { side ".mid_block.attentions.0.to_out.0", side ".mid.attn_1.proj_out" }

static const struct rule vae_rules[] = {
    VAE_COMMON("encoder"),
    VAE_COMMON("decoder"),
    { "encoder.down_blocks.#.resnets.#.conv_shortcut", "encoder.down.#.block.#.nin_shortcut" },
    { "encoder.down_blocks.#.resnets.#", "encoder.down.#.block.#" },
    { "encoder.down_blocks.#.downsamplers.0.conv", "encoder.down.#.downsample.conv" },
    { "decoder.up_blocks.#.resnets.#.conv_shortcut", "decoder.up.~.block.#.nin_shortcut" },
    { "decoder.up_blocks.#.resnets.#", "decoder.up.~.block.#" },
    { "decoder.up_blocks.#.upsamplers.0.conv", "decoder.up.~.upsample.conv" },
    { NULL, NULL },
};

#define VAE_OLD(side) \
    { side ".mid_block.attentions.0.to_q", side ".mid_block.attentions.0.query" }, \
    { side ".mid_block.attentions.0.to_k", side ".mid_block.attentions.0.key" }, \
    { side ".mid_block.attentions.0.to_v", side ".mid_block.attentions.0.value" }, \
    { side ".mid_block.attentions.0.to_out.0", side ".mid_block.attentions.0.proj_attn" }

static const struct rule vae_old_rules[] = { VAE_OLD("encoder"), VAE_OLD("decoder"), { NULL, NULL } };

static const char *const vae_prefixes[] = { "", "first_stage_model.", "vae.", NULL };

static const char *vae_prefix(const dt_st *st)
{
    return find_prefix(st, vae_prefixes, "encoder.down.0.block.0.norm1.weight");
}

/* The decoder's levels are numbered from the outside there. */
static int up_blocks(const dt_st *st, const char *prefix)
{
    char name[200];
    int n = 0;
    do
        snprintf(name, sizeof(name), "%sdecoder.up.%d.block.0.norm1.weight", prefix, n++);
    while (dt_st_find(st, name));
    return n - 1;
}

/* A 1x1 convolution is the linear layer that we have. */
static void drop_ones(dt_st_entry *e, int nd)
{
    while (e->dims.nd > nd && e->dims.d[e->dims.nd - 1] == 1)
        e->dims.nd--;
}

int dt_vae_rename(const dt_st *st, const dt_param *p, dt_st_entry out[DT_MAX_PIECES], void *unused, dt_err *err)
{
    (void)unused;
    const char *prefix = vae_prefix(st), *name = p->name;
    dt_other_name o;
    if (prefix && apply(vae_rules, name, up_blocks(st, prefix), &o))
        name = o.name;
    else if (!prefix && !dt_st_find(st, name) && apply(vae_old_rules, name, 0, &o) && dt_st_find(st, o.name))
        name = o.name;
    int rc = need(st, prefix ? prefix : "", name, out, err);
    if (rc < 0)
        return rc;
    drop_ones(out, p->dims.nd);
    return 1;
}
