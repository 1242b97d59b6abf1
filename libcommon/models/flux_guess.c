/* flux_guess.c - the shape of a FLUX transformer and of its text encoders from names and shapes of tensors.  See
 * names.h. */
#include <stdio.h>
#include <stdlib.h>
#include "models/names.h"

/* Where a width shows: the columns of a layer's weight or of a LoRA's down matrix, or the rows of its
 * weight or up matrix, over `times`.  Names with underscores for dots; of the outer layers the whole name counts, so
 * that they come behind the blocks'. */
static const struct { const char *in; size_t field; bool rows; int times; } sign[] = {
#define AT(f) offsetof(dt_flux_config, f)
    { "ff_net_2", AT(head_dim), false, 4 },         { "ff_context_net_2", AT(head_dim), false, 4 },
    { "img_mlp_2", AT(head_dim), false, 4 },        { "txt_mlp_2", AT(head_dim), false, 4 },
    { "linear2", AT(head_dim), false, 5 },          { "blocks_#_proj_out", AT(head_dim), false, 5 },
    { "blocks_", AT(head_dim), false, 1 },
    { "x_embedder", AT(in_channels), false, 1 },    { "img_in", AT(in_channels), false, 1 },
    { "context_embedder", AT(joint_dim), false, 1 },{ "txt_in", AT(joint_dim), false, 1 },
    { "text_embedder_linear_1", AT(pooled_dim), false, 1 }, { "vector_in_in_layer", AT(pooled_dim), false, 1 },
    { "final_layer_linear", AT(out_channels), true, 1 },    { "proj_out", AT(out_channels), true, 1 },
#undef AT
};

enum { MOST_BLOCKS = 1000, MOST_WIDTH = 65536 };

/* strstr, in which '#' stands for a number. */
static const char *find(const char *s, const char *what)
{
    for (; *s; s++) {
        const char *a = s, *b = what;
        while (*b && *a && (*b == '#' ? *a >= '0' && *a <= '9' : *a == *b)) {
            if (*b == '#')
                strtol(a, (char **)&a, 10);
            else
                a++;
            b++;
        }
        if (!*b)
            return s;
    }
    return NULL;
}

static void count_blocks(int64_t *n, const char *name, const char *const names[2])
{
    for (int i = 0; i < 2; i++) {
        const char *at = find(name, names[i]);
        if (!at || (at > name && at[-1] != '_'))
            continue;
        long k = strtol(at + strlen(names[i]), NULL, 10);
        if (k >= *n && k < MOST_BLOCKS)
            *n = k + 1;
    }
}

enum half { WEIGHT, DOWN, UP };

static enum half half_of(const char *name)
{
    if (strstr(name, "lora_A") || strstr(name, "lora_down") || strstr(name, "lora_linear_layer_down"))
        return DOWN;
    return strstr(name, "lora_B") || strstr(name, "lora_up") || strstr(name, "lora_linear_layer_up") ? UP : WEIGHT;
}

static void look(dt_flux_config *c, const char *name, const dt_dims *d)
{
    static const char *const pair[2] = { "transformer_blocks_", "double_blocks_" };
    static const char *const single[2] = { "single_transformer_blocks_", "single_blocks_" };
    enum half half = half_of(name);
    count_blocks(&c->single_layers, name, single);
    if (!find(name, single[0]))
        count_blocks(&c->layers, name, pair);
    for (size_t i = 0; i < sizeof(sign) / sizeof(*sign); i++) {
        if (!find(name, sign[i].in))
            continue;
        int64_t v = d->d[sign[i].rows ? 0 : 1] / sign[i].times;
        if ((half == WEIGHT || (half == DOWN) != sign[i].rows) && v > 0 && v <= MOST_WIDTH)
            *(int64_t *)((char *)c + sign[i].field) = v;
        return;
    }
}

/* Its name with underscores for dots; false if it is no matrix. */
static bool plain_name(const dt_st_entry *e, char *name, size_t bytes)
{
    snprintf(name, bytes, "%s", e->name);
    for (char *s = name; *s; s++)
        *s = *s == '.' ? '_' : *s;
    return e->dims.nd >= 2;
}

void dt_flux_guess(dt_flux_config *c, const dt_st *st)
{
    *c = (dt_flux_config){ .in_channels = 64, .layers = 0, .head_dim = 3072, .heads = 1, .joint_dim = 4096,
                           .pooled_dim = 768, .guidance = true };
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        const dt_st_entry *e = dt_st_at(st, i);
        char name[256];
        if (plain_name(e, name, sizeof(name)))
            look(c, name, &e->dims);
    }
    c->out_channels = c->out_channels ? c->out_channels : c->in_channels;
    while (c->head_dim % 2 == 0 && c->head_dim > 128) {         /* any number of heads gives the same matrices */
        c->head_dim /= 2;
        c->heads *= 2;
    }
    c->axes[0] = c->head_dim;
}

/* --- text encoders --- */

struct width { const char *in; size_t columns, rows; };     /* fields, of a layer's weight */
#define AT(f) offsetof(dt_clip_config, f)
static const struct width clip_widths[] = {
    { "layers_#_self_attn_", AT(hidden), AT(hidden) },
    { "layers_#_mlp_fc1", AT(hidden), AT(mlp) },
    { "layers_#_mlp_fc2", AT(mlp), AT(hidden) },
    { NULL, 0, 0 },
};
#undef AT
#define AT(f) offsetof(dt_t5_config, f)
static const struct width t5_widths[] = {       /* heads of one each */
    { "SelfAttention_q", AT(d_model), AT(heads) },
    { "SelfAttention_k", AT(d_model), AT(heads) },
    { "SelfAttention_v", AT(d_model), AT(heads) },
    { "SelfAttention_o", AT(heads), AT(d_model) },
    { "DenseReluDense_wi_", AT(d_model), AT(d_ff) },
    { "DenseReluDense_wo", AT(d_ff), AT(d_model) },
    { NULL, 0, 0 },
};
#undef AT

static void measure(void *config, int64_t *layers, const char *count, const struct width *w, const char *name,
                    const dt_dims *d)
{
    const char *const counts[2] = { count, count };
    enum half half = half_of(name);
    while (w->in && !find(name, w->in))
        w++;
    if (!w->in || d->d[0] < 1 || d->d[1] < 1 || d->d[0] > MOST_WIDTH || d->d[1] > MOST_WIDTH)
        return;
    if (half != DOWN)
        *(int64_t *)((char *)config + w->rows) = d->d[0];
    if (half != UP)
        *(int64_t *)((char *)config + w->columns) = d->d[1];
    count_blocks(layers, name, counts);
}

void dt_text_guess(dt_clip_config *clip, dt_t5_config *t5, const dt_st *st)
{
    *clip = (dt_clip_config){ .vocab = 49408, .hidden = 768, .mlp = 3072, .heads = 1, .positions = 77, .eps = 1e-5 };
    *t5 = (dt_t5_config){ .vocab = 32128, .d_model = 4096, .d_kv = 1, .d_ff = 10240, .heads = 4096, .buckets = 32,
                          .max_distance = 128, .eps = 1e-6, .gated = true };
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        const dt_st_entry *e = dt_st_at(st, i);
        char name[256];
        if (!plain_name(e, name, sizeof(name)))
            continue;
        measure(clip, &clip->layers, "layers_", clip_widths, name, &e->dims);
        measure(t5, &t5->layers, "block_", t5_widths, name, &e->dims);
    }
}
