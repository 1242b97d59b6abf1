/* lora: files that adapt text encoders: names of all kinds, what fits nowhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "models/flux_pipe.h"
#include "train/lora.h"
#include "tests/unit/scratch.h"

enum { DIT, CLIP, T5, PARTS };
#define CLIP_LAYER "text_model.encoder.layers.11"
#define T5_LAYER "encoder.block.0.layer."
static dt_params *base[PARTS];
static char *dir, *file;

static void linear(dt_params *p, const char *path)
{
    char *name = dt_sprintf("%s.weight", path);
    dt_params_declare(p, name, DT_DIMS(4, 4), DT_INIT_FAN_IN, 0);
    dt_params_add_linear(p, path);
    free(name);
}

static int setup(void **state)
{
    (void)state;
    for (int k = 0; k < PARTS; k++)
        base[k] = dt_params_new(dt_lora_parts[k].name);
    linear(base[DIT], "proj_out");
    linear(base[CLIP], CLIP_LAYER ".self_attn.q_proj");
    linear(base[CLIP], CLIP_LAYER ".self_attn.out_proj");
    linear(base[CLIP], CLIP_LAYER ".mlp.fc1");
    linear(base[T5], T5_LAYER "0.SelfAttention.q");
    linear(base[T5], T5_LAYER "1.DenseReluDense.wi_0");
    dir = scratch_new();
    file = dir ? dt_path_join(dir, "lora.safetensors") : NULL;
    return !file;
}

static int teardown(void **state)
{
    (void)state;
    for (int k = 0; k < PARTS; k++)
        dt_params_free(&base[k]);
    free(file);
    return scratch_end(dir);
}

/* A file with these pairs, of rank 2, each with alpha 1 unless `meta`, the value of lora_adapter_metadata, says it. */
static void write_pairs(const char *const (*stem)[3], int n, const char *meta)
{
    static const float x[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, alpha = 1;
    dt_st_entry e[12];
    const dt_st_kv kv[] = { { "lora_adapter_metadata", meta }, { NULL, NULL } };
    int64_t k = 0;
    dt_strs names = { 0 };
    for (int i = 0; i < n; i++)
        for (int h = 0; h < (meta ? 2 : 3); h++) {
            char *name = h == 2 ? dt_sprintf("%s.alpha", stem[i][0]) : dt_sprintf("%s%s", stem[i][0], stem[i][1 + h]);
            dt_strs_add(&names, name);
            free(name);
            e[k++] = h == 2 ? (dt_st_entry){ .dtype = DT_F32, .data = &alpha }
                            : (dt_st_entry){ .dtype = DT_F32, .data = x, .dims = h ? DT_DIMS(4, 2) : DT_DIMS(2, 4) };
        }
    for (int64_t i = 0; i < k; i++)
        e[i].name = names.v[i];
    assert_int_equal(dt_st_write(file, e, k, meta ? kv : NULL, NULL), 0);
    dt_strs_release(&names);
}

#define PEFT ".lora_A.weight", ".lora_B.weight"
#define SGM ".lora_down.weight", ".lora_up.weight"
#define OLD ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"

static void names(void **state)
{
    (void)state;
    static const struct { const char *key[3]; int part; const char *path; } v[] = {
        { { "text_encoder." CLIP_LAYER ".self_attn.q_proj", PEFT }, CLIP,
          CLIP_LAYER ".self_attn.q_proj" },
        { { "text_encoder.encoder.layers.11.mlp.fc1", PEFT }, CLIP, CLIP_LAYER ".mlp.fc1" },
        { { "text_encoder." CLIP_LAYER ".self_attn.q_proj", OLD }, CLIP,
          CLIP_LAYER ".self_attn.q_proj" },
        { { "text_encoder." CLIP_LAYER ".self_attn.to_out_lora", ".down.weight", ".up.weight" }, CLIP,
          CLIP_LAYER ".self_attn.out_proj" },
        { { "lora_te1_text_model_encoder_layers_11_self_attn_out_proj", SGM }, CLIP,
          CLIP_LAYER ".self_attn.out_proj" },
        { { "lora_te_text_model_encoder_layers_11_mlp_fc1", SGM }, CLIP, CLIP_LAYER ".mlp.fc1" },
        { { "text_encoders.clip_l.transformer." CLIP_LAYER ".mlp.fc1", SGM }, CLIP, CLIP_LAYER ".mlp.fc1" },
        { { "lora_te3_encoder_block_0_layer_0_SelfAttention_q", SGM }, T5, T5_LAYER "0.SelfAttention.q" },
        { { "lora_te2_encoder_block_0_layer_1_DenseReluDense_wi_0", SGM }, T5,
          T5_LAYER "1.DenseReluDense.wi_0" },
        { { "text_encoders.t5xxl.transformer." T5_LAYER "0.SelfAttention.q", PEFT }, T5,
          T5_LAYER "0.SelfAttention.q" },
        { { "text_encoder_2." T5_LAYER "0.SelfAttention.q", PEFT }, T5,
          T5_LAYER "0.SelfAttention.q" },
        { { "transformer.proj_out", PEFT }, DIT, "proj_out" },
    };
    for (size_t i = 0; i < sizeof(v) / sizeof(*v); i++) {
        dt_lora *l[PARTS];
        dt_err e = { 0 };
        bool old = strstr(v[i].key[0], "_lora");        /* diffusers' first files have no alphas beside these */
        write_pairs((const char *const (*)[3])&v[i].key, 1, old ? "{}" : NULL);
        if (dt_lora_open_parts(l, base, PARTS, file, &e) < 0)
            fail_msg("%s: %s", v[i].key[0], e.msg);
        for (int k = 0; k < PARTS; k++)
            assert_int_equal(l[k] != NULL, k == v[i].part);
        const dt_lora *own = l[v[i].part];
        assert_int_equal(own->n, 1);
        assert_string_equal(own->v[0].path, v[i].path);
        assert_true(own->v[0].scale == (old ? 1 : 0.5));
        for (int k = 0; k < PARTS; k++)
            dt_lora_free(&l[k]);
    }
}

/* Each network's alphas are its own. */
static void metadata(void **state)
{
    (void)state;
    static const char *const key[][3] = {
        { "transformer.proj_out", PEFT }, { "text_encoder." CLIP_LAYER ".mlp.fc1", PEFT },
        { "text_encoder." CLIP_LAYER ".self_attn.q_proj", PEFT },
        { "text_encoder_2." T5_LAYER "0.SelfAttention.q", PEFT },
    };
    dt_lora *l[PARTS];
    write_pairs(key, 4, "{\"transformer.lora_alpha\":8,\"text_encoder.lora_alpha\":4,"
                "\"text_encoder.alpha_pattern\":{\"encoder.layers.11.mlp.fc1\":1}}");
    assert_int_equal(dt_lora_open_parts(l, base, PARTS, file, NULL), 0);
    assert_true(l[DIT]->v[0].scale == 4 && l[T5]->v[0].scale == 1);
    assert_true(dt_lora_find(l[CLIP], CLIP_LAYER ".mlp.fc1")->scale == 0.5);
    assert_true(dt_lora_find(l[CLIP], CLIP_LAYER ".self_attn.q_proj")->scale == 2);
    for (int k = 0; k < PARTS; k++)
        dt_lora_free(&l[k]);
}

static void refused(void **state)
{
    (void)state;
    static const struct { const char *key[3]; bool no_t5; const char *why; } v[] = {
        { { "lora_te1_text_model_encoder_layers_12_mlp_fc1", SGM }, false,
          "are no linear layers of text_encoder, first 'lora_te1_" },
        { { "text_encoder_2.text_model.encoder.layers.11.mlp.fc1", PEFT }, false,
          "are no linear layers of text_encoder_2, first" },
        { { "lora_te4_encoder_block_0_layer_0_SelfAttention_q", SGM }, false,
          "are no linear layers of transformer, first" },
        { { "lora_te3_encoder_block_0_layer_0_SelfAttention_q", SGM }, true,
          "3 of its tensors are for text_encoder_2, which is not here" },
        { { "lora_te1_text_model_encoder_layers_11_mlp_fc1", ".lora_down.weight", ".lora_mid.weight" }, false,
          "1 tensors are no part of a LoRA that can be read here, first 'lora_te1_" },
    };
    for (size_t i = 0; i < sizeof(v) / sizeof(*v); i++) {
        dt_lora *l[PARTS];
        dt_err e = { 0 };
        write_pairs((const char *const (*)[3])&v[i].key, 1, NULL);
        assert_int_equal(dt_lora_open_parts(l, base, v[i].no_t5 ? T5 : PARTS, file, &e), DT_EDATA);
        for (int k = 0; k < (v[i].no_t5 ? T5 : PARTS); k++)
            assert_null(l[k]);
        if (!strstr(e.msg, v[i].why) || !strstr(e.msg, file))
            fail_msg("'%s' does not say '%s'", e.msg, v[i].why);
    }
}

/* --- written --- */

/* Random adapters on every layer of CLIP-L's and T5-XXL's widths, and of nothing else. */
static void make(dt_lora *l[DT_FLUX_NPART], dt_params *set[DT_FLUX_NPART], dt_device *dev)
{
    const dt_flux_pipe shape = {
        .clip = { .vocab = 8, .hidden = 768, .mlp = 3072, .layers = 2, .heads = 12, .positions = 77 },
        .t5 = { .vocab = 8, .d_model = 4096, .d_kv = 64, .d_ff = 10240, .layers = 2, .heads = 64, .buckets = 32,
                .max_distance = 128, .gated = true },
    };
    for (int k = DT_FLUX_CLIP; k <= DT_FLUX_T5; k++) {
        assert_int_equal(dt_flux_declare(&set[k], &shape, (enum dt_flux_part)k, NULL), 0);
        assert_int_equal(dt_lora_new(&l[k], set[k], &(dt_lora_config){ .rank = 1 + k % 2, .alpha = 3 }, NULL), 0);
        assert_int_equal(dt_params_alloc(l[k]->params, dev, DT_F32, 0, NULL), 0);
        for (int64_t i = 0; i < l[k]->params->n; i++) {
            dt_param *p = l[k]->params->v[i];
            dt_rng_fill_normal(p->w, p->numel, 5, DT_RNG_TEST, (uint32_t)k, (uint32_t)i);
        }
    }
}

static void same_layers(const dt_lora *a, const dt_lora *b)
{
    assert_int_equal(a->n, b->n);
    for (int64_t i = 0; i < a->n; i++) {
        const dt_adapter *x = &a->v[i], *y = &b->v[i];
        assert_string_equal(x->path, y->path);
        assert_true(x->rank == y->rank && x->scale == y->scale);
        for (int h = 0; h < 2; h++) {
            const dt_param *p = h ? x->b : x->a, *q = h ? y->b : y->a;
            assert_int_equal(p->numel, q->numel);
            assert_memory_equal(p->w, q->w, (size_t)p->numel * sizeof(float));
        }
    }
}

/* In each layout: the names that ComfyUI, diffusers and sd-scripts have, from which the widths are guessed. */
static void layouts(void **state)
{
    (void)state;
    static const char *const name[][2] = {
        { "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_B.weight",
          "text_encoders.t5xxl.transformer.encoder.block.1.layer.1.DenseReluDense.wi_0.lora_A.weight" },
        { "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_B.weight",
          "text_encoder_2.encoder.block.1.layer.1.DenseReluDense.wi_0.lora_A.weight" },
        { "lora_te1_text_model_encoder_layers_1_self_attn_out_proj.lora_up.weight",
          "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0.lora_down.weight" },
    };
    dt_device *dev = NULL;
    dt_lora *l[DT_FLUX_NPART] = { NULL };
    dt_params *set[DT_FLUX_NPART] = { NULL };
    assert_int_equal(dt_device_open(&dev, "cpu", NULL), 0);
    make(l, set, dev);
    for (int layout = 0; layout < 3; layout++) {
        dt_flux_pipe shape = { 0 };
        dt_st *st = NULL;
        assert_int_equal(dt_lora_save_parts((const dt_lora *const *)l, DT_FLUX_NPART, file,
                                            (enum dt_lora_layout)layout, DT_F32, false, NULL, NULL), 0);
        assert_int_equal(dt_st_open(&st, file, NULL), 0);
        assert_non_null(dt_st_find(st, name[layout][0]));
        assert_non_null(dt_st_find(st, name[layout][1]));
        dt_text_guess(&shape.clip, &shape.t5, st);
        dt_st_close(&st);
        for (int k = DT_FLUX_CLIP; k <= DT_FLUX_T5; k++) {
            dt_params *guess = NULL;
            assert_int_equal(dt_flux_declare(&guess, &shape, (enum dt_flux_part)k, NULL), 0);
            assert_int_equal(guess->linears.n, set[k]->linears.n);
            dt_params *both[] = { guess, k == DT_FLUX_CLIP ? set[DT_FLUX_T5] : set[DT_FLUX_CLIP] };
            dt_lora *out[2];
            assert_int_equal(dt_lora_open_parts(out, both, 2, file, NULL), 0);
            assert_int_equal(dt_params_alloc(out[0]->params, dev, DT_F32, 0, NULL), 0);
            assert_int_equal(dt_lora_fill(out[0], NULL), 0);
            same_layers(l[k], out[0]);
            dt_lora_free(&out[0]);
            dt_lora_free(&out[1]);
            dt_params_free(&guess);
        }
    }
    for (int k = 0; k < DT_FLUX_NPART; k++) {
        dt_lora_free(&l[k]);
        dt_params_free(&set[k]);
    }
    dt_device_close(&dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names), cmocka_unit_test(metadata), cmocka_unit_test(refused), cmocka_unit_test(layouts),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("train/lora: text encoders", tests, setup, teardown);
}
