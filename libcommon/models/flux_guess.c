/* flux_guess.c - the shape of a FLUX transformer from names and shapes of tensors.  See names.h. */
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

static void look(dt_flux_config *c, const char *name, const dt_dims *d)
{
    static const char *const pair[2] = { "transformer_blocks_", "double_blocks_" };
    static const char *const single[2] = { "single_transformer_blocks_", "single_blocks_" };
    bool down = strstr(name, "lora_A") || strstr(name, "lora_down") || strstr(name, "lora_linear_layer_down");
    bool lora = down || strstr(name, "lora_B") || strstr(name, "lora_up") || strstr(name, "lora_linear_layer_up");
    count_blocks(&c->single_layers, name, single);
    if (!find(name, single[0]))
        count_blocks(&c->layers, name, pair);
    for (size_t i = 0; i < sizeof(sign) / sizeof(*sign); i++) {
        if (!find(name, sign[i].in))
            continue;
        int64_t v = d->d[sign[i].rows ? 0 : 1] / sign[i].times;
        if ((!lora || down != sign[i].rows) && v > 0 && v <= MOST_WIDTH)
            *(int64_t *)((char *)c + sign[i].field) = v;
        return;
    }
}

void dt_flux_guess(dt_flux_config *c, const dt_st *st)
{
    *c = (dt_flux_config){ .in_channels = 64, .layers = 0, .head_dim = 3072, .heads = 1, .joint_dim = 4096,
                           .pooled_dim = 768, .guidance = true };
    for (int64_t i = 0; i < dt_st_count(st); i++) {
        const dt_st_entry *e = dt_st_at(st, i);
        char name[256];
        snprintf(name, sizeof(name), "%s", e->name);
        for (char *s = name; *s; s++)
            *s = *s == '.' ? '_' : *s;
        if (e->dims.nd >= 2)
            look(c, name, &e->dims);
    }
    c->out_channels = c->out_channels ? c->out_channels : c->in_channels;
    while (c->head_dim % 2 == 0 && c->head_dim > 128) {         /* any number of heads gives the same matrices */
        c->head_dim /= 2;
        c->heads *= 2;
    }
    c->axes[0] = c->head_dim;
}
