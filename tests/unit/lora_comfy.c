/* lora_comfy.c - names and shapes of a LoRA on every layer of FLUX.1 against what ComfyUI looks for in a file.
 *
 * The table is derived from reading ComfyUI (2025: comfy/lora.py, model_lora_keys_unet; comfy/utils.py,
 * flux_to_diffusers; comfy/weight_adapter/lora.py) and the shapes of Black Forest Labs' model.  A pair X.lora_A.weight
 * [r, in], X.lora_B.weight [rows, r] with X.alpha changes rows [first, first + rows) of a weight [out, in] by alpha / r
 * B A; X is "transformer." with diffusers' name of the layer.  A pair X.lora_down.weight, X.lora_up.weight changes all
 * of a weight if X is "lora_unet_" with the weight's own name, dots as underscores.  norm_out.linear: the halves of the
 * rows are exchanged on loading. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "graph/device.h"
#include "models/flux_pipe.h"
#include "tensor/safetensors.h"
#include "train/lora.h"
#include "tests/unit/scratch.h"

enum { D = 3072, PAIRS = 19, SINGLES = 38, LAYERS = 504, WEIGHTS = 314, RANK = 2 };

/* first, rows and out of `to` [out, in], in units of D where they are below 10 */
struct rule { const char *from, *to; int blocks; int64_t first, rows, out, in; };
static const struct rule rules[] = {
    { "transformer_blocks.%d.attn.to_q", "double_blocks.%d.img_attn.qkv", PAIRS, 0, 1, 3, 1 },
    { "transformer_blocks.%d.attn.to_k", "double_blocks.%d.img_attn.qkv", PAIRS, 1, 1, 3, 1 },
    { "transformer_blocks.%d.attn.to_v", "double_blocks.%d.img_attn.qkv", PAIRS, 2, 1, 3, 1 },
    { "transformer_blocks.%d.attn.add_q_proj", "double_blocks.%d.txt_attn.qkv", PAIRS, 0, 1, 3, 1 },
    { "transformer_blocks.%d.attn.add_k_proj", "double_blocks.%d.txt_attn.qkv", PAIRS, 1, 1, 3, 1 },
    { "transformer_blocks.%d.attn.add_v_proj", "double_blocks.%d.txt_attn.qkv", PAIRS, 2, 1, 3, 1 },
    { "transformer_blocks.%d.attn.to_out.0", "double_blocks.%d.img_attn.proj", PAIRS, 0, 1, 1, 1 },
    { "transformer_blocks.%d.attn.to_add_out", "double_blocks.%d.txt_attn.proj", PAIRS, 0, 1, 1, 1 },
    { "transformer_blocks.%d.norm1.linear", "double_blocks.%d.img_mod.lin", PAIRS, 0, 6, 6, 1 },
    { "transformer_blocks.%d.norm1_context.linear", "double_blocks.%d.txt_mod.lin", PAIRS, 0, 6, 6, 1 },
    { "transformer_blocks.%d.ff.net.0.proj", "double_blocks.%d.img_mlp.0", PAIRS, 0, 4, 4, 1 },
    { "transformer_blocks.%d.ff.net.2", "double_blocks.%d.img_mlp.2", PAIRS, 0, 1, 1, 4 },
    { "transformer_blocks.%d.ff_context.net.0.proj", "double_blocks.%d.txt_mlp.0", PAIRS, 0, 4, 4, 1 },
    { "transformer_blocks.%d.ff_context.net.2", "double_blocks.%d.txt_mlp.2", PAIRS, 0, 1, 1, 4 },
    { "single_transformer_blocks.%d.attn.to_q", "single_blocks.%d.linear1", SINGLES, 0, 1, 7, 1 },
    { "single_transformer_blocks.%d.attn.to_k", "single_blocks.%d.linear1", SINGLES, 1, 1, 7, 1 },
    { "single_transformer_blocks.%d.attn.to_v", "single_blocks.%d.linear1", SINGLES, 2, 1, 7, 1 },
    { "single_transformer_blocks.%d.proj_mlp", "single_blocks.%d.linear1", SINGLES, 3, 4, 7, 1 },
    { "single_transformer_blocks.%d.norm.linear", "single_blocks.%d.modulation.lin", SINGLES, 0, 3, 3, 1 },
    { "single_transformer_blocks.%d.proj_out", "single_blocks.%d.linear2", SINGLES, 0, 1, 1, 5 },
    { "time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", 1, 0, 1, 1, 256 },
    { "time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", 1, 0, 1, 1, 1 },
    { "time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", 1, 0, 1, 1, 256 },
    { "time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", 1, 0, 1, 1, 1 },
    { "time_text_embed.text_embedder.linear_1", "vector_in.in_layer", 1, 0, 1, 1, 768 },
    { "time_text_embed.text_embedder.linear_2", "vector_in.out_layer", 1, 0, 1, 1, 1 },
    { "x_embedder", "img_in", 1, 0, 1, 1, 64 },
    { "context_embedder", "txt_in", 1, 0, 1, 1, 4096 },
    { "norm_out.linear", "final_layer.adaLN_modulation.1", 1, 0, 2, 2, 1 },
    { "proj_out", "final_layer.linear", 1, 0, 64, 64, 1 },
};
enum { RULES = sizeof(rules) / sizeof(*rules) };

static int64_t px(int64_t v) { return v < 10 ? v * D : v; }

static dt_params *flux_1(void)
{
    dt_flux_pipe shape = { .dit = { .in_channels = 64, .out_channels = 64, .layers = PAIRS, .single_layers = SINGLES,
                                    .head_dim = 128, .heads = 24, .joint_dim = 4096, .pooled_dim = 768,
                                    .axes = { 16, 56, 56 }, .guidance = true } };
    dt_params *p;
    assert_int_equal(dt_flux_declare(&p, &shape, DT_FLUX_DIT, NULL), 0);
    return p;
}

/* A LoRA on every linear layer, written in a layout. */
static dt_st *written(enum dt_lora_layout layout)
{
    char *dir = scratch_new(), *path = dt_path_join(dir, "lora.safetensors");
    dt_params *base = flux_1();
    dt_device *dev;
    dt_lora *l;
    dt_st *st;
    assert_int_equal(dt_device_open(&dev, "cpu", NULL), 0);
    assert_int_equal(dt_lora_new(&l, base, &(dt_lora_config){ .rank = RANK, .alpha = 1, .naming = dt_flux_single_name },
                                 NULL), 0);
    assert_int_equal(l->n, LAYERS);
    for (int64_t i = 0; i < l->params->n; i++)
        l->params->v[i]->trainable = false;
    assert_int_equal(dt_params_alloc(l->params, dev, DT_F32, 0, NULL), 0);
    dt_params_init(l->params, 1, NULL);
    assert_int_equal(dt_lora_save(l, path, layout, DT_BF16, false, NULL, NULL), 0);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    scratch_end(dir);
    free(path);
    dt_lora_free(&l);
    dt_params_free(&base);
    dt_device_close(&dev);
    return st;
}

static void expect(const dt_st *st, const char *stem, const char *half, int64_t a, int64_t b)
{
    char name[300];
    snprintf(name, sizeof(name), "%s%s", stem, half);
    const dt_st_entry *e = dt_st_find(st, name);
    if (!e)
        fail_msg("ComfyUI looks for '%s'", name);
    if (!a ? e->dims.nd != 0 : e->dims.nd != 2 || e->dims.d[0] != a || e->dims.d[1] != b)
        fail_msg("'%s' is not [%lld, %lld]", name, (long long)a, (long long)b);
}

static void comfy_finds_every_key(void **state)
{
    (void)state;
    char name[200], stem[256];
    int64_t n = 0;
    dt_st *st = written(DT_LORA_COMFY);
    for (int i = 0; i < RULES; i++)
        for (int b = 0; b < rules[i].blocks; b++, n++) {
            snprintf(name, sizeof(name), rules[i].from, b);
            snprintf(stem, sizeof(stem), "transformer.%s", name);
            expect(st, stem, ".alpha", 0, 0);
            expect(st, stem, ".lora_A.weight", RANK, px(rules[i].in));
            expect(st, stem, ".lora_B.weight", px(rules[i].rows), RANK);
        }
    assert_int_equal(n, LAYERS);
    assert_int_equal(dt_st_count(st), 3 * n);       /* and no other */
    dt_st_close(&st);
}

static void kohya_finds_every_weight(void **state)
{
    (void)state;
    char name[200], stem[256];
    int64_t n = 0;
    dt_st *st = written(DT_LORA_KOHYA);
    for (int i = 0; i < RULES; i++)
        for (int b = 0; rules[i].first == 0 && b < rules[i].blocks; b++, n++) {
            int parts = 1;
            for (int k = i + 1; k < RULES && !strcmp(rules[k].to, rules[i].to); k++)
                parts++;
            snprintf(name, sizeof(name), rules[i].to, b);
            snprintf(stem, sizeof(stem), "lora_unet_%s", name);
            for (char *s = stem; *s; s++)
                *s = *s == '.' ? '_' : *s;
            expect(st, stem, ".alpha", 0, 0);
            expect(st, stem, ".lora_down.weight", parts * RANK, px(rules[i].in));
            expect(st, stem, ".lora_up.weight", px(rules[i].out), parts * RANK);
        }
    assert_int_equal(n, WEIGHTS);
    assert_int_equal(dt_st_count(st), 3 * n);
    dt_st_close(&st);
}

/* Our own table of names says the same: part, rows, exchange. */
static void our_names_agree(void **state)
{
    (void)state;
    char from[200], to[200];
    dt_other_name o;
    for (int i = 0; i < RULES; i++) {
        int part = 0;
        for (int k = i; rules[k].first && k > 0; k--)
            part++;
        snprintf(from, sizeof(from), rules[i].from, 7);
        snprintf(to, sizeof(to), rules[i].to, 7);
        assert_true(dt_flux_single_name(from, &o));
        assert_string_equal(o.name, to);
        assert_int_equal(o.part, part);
        assert_int_equal(o.swap, !strcmp(from, "norm_out.linear"));
    }
}

/* A file of each layout says what it is for. */
static void the_shape_is_guessed(void **state)
{
    (void)state;
    for (int layout = 0; layout < 3; layout++) {
        dt_st *st = written((enum dt_lora_layout)layout);
        dt_flux_pipe shape = { 0 };
        dt_params *guess, *base = flux_1();
        dt_flux_guess(&shape.dit, st);
        assert_int_equal(dt_flux_declare(&guess, &shape, DT_FLUX_DIT, NULL), 0);
        for (int64_t i = 0; i < base->linears.n; i++) {
            char name[300];
            snprintf(name, sizeof(name), "%s.weight", base->linears.v[i]);
            const dt_param *a = dt_params_find(base, name), *b = dt_params_find(guess, name);
            if (!b || a->dims.d[0] != b->dims.d[0] || a->dims.d[1] != b->dims.d[1])
                fail_msg("%s: %s", dt_lora_layouts[layout], name);
        }
        assert_int_equal(base->linears.n, guess->linears.n);
        dt_params_free(&guess);
        dt_params_free(&base);
        dt_st_close(&st);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(comfy_finds_every_key),
                                               cmocka_unit_test(kohya_finds_every_weight),
                                               cmocka_unit_test(our_names_agree),
                                               cmocka_unit_test(the_shape_is_guessed) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
