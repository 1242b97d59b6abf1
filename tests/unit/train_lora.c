/* lora: which layers are adapted, and files in all layouts. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "graph/graph.h"
#include "models/flux.h"
#include "train/lora.h"
#include "tests/unit/scratch.h"

static dt_device *cpu;

static int setup(void **state)
{
    return scratch_setup(state) || dt_device_open(&cpu, "cpu", NULL) < 0;
}

static int teardown(void **state)
{
    dt_device_close(&cpu);
    return scratch_teardown(state);
}

static void linear(dt_params *p, const char *path, int64_t out, int64_t in)
{
    char name[220];
    snprintf(name, sizeof(name), "%s.weight", path);
    dt_params_declare(p, name, DT_DIMS(out, in), DT_INIT_FAN_IN, 0);
    dt_params_add_linear(p, path);
}

/* The linear layers of a FLUX transformer with D = 4, by name only. */
static dt_params *flux(void)
{
    static const struct { const char *name; int64_t out, in; } outer[] = {
        { "x_embedder", 4, 6 }, { "context_embedder", 4, 5 }, { "time_text_embed.timestep_embedder.linear_1", 4, 8 },
        { "norm_out.linear", 8, 4 }, { "proj_out", 6, 4 },
    }, twin[] = {
        { "norm1.linear", 24, 4 }, { "norm1_context.linear", 24, 4 }, { "attn.to_q", 4, 4 }, { "attn.to_k", 4, 4 },
        { "attn.to_v", 4, 4 }, { "attn.add_q_proj", 4, 4 }, { "attn.add_k_proj", 4, 4 }, { "attn.add_v_proj", 4, 4 },
        { "attn.to_out.0", 4, 4 }, { "attn.to_add_out", 4, 4 }, { "ff.net.0.proj", 16, 4 }, { "ff.net.2", 4, 16 },
        { "ff_context.net.0.proj", 16, 4 }, { "ff_context.net.2", 4, 16 },
    }, single[] = {
        { "norm.linear", 12, 4 }, { "attn.to_q", 4, 4 }, { "attn.to_k", 4, 4 }, { "attn.to_v", 4, 4 },
        { "proj_mlp", 16, 4 },
        { "proj_out", 4, 20 },
    };
    dt_params *p = dt_params_new("transformer");
    char path[200];
    for (size_t i = 0; i < 5; i++)
        linear(p, outer[i].name, outer[i].out, outer[i].in);
    for (int b = 0; b < 2; b++) {
        for (size_t i = 0; i < 14; i++) {
            snprintf(path, sizeof(path), "transformer_blocks.%d.%s", b, twin[i].name);
            linear(p, path, twin[i].out, twin[i].in);
        }
        for (size_t i = 0; i < 6; i++) {
            snprintf(path, sizeof(path), "single_transformer_blocks.%d.%s", b, single[i].name);
            linear(p, path, single[i].out, single[i].in);
        }
    }
    dt_params_declare(p, "transformer_blocks.0.attn.norm_q.weight", DT_DIMS(2), DT_INIT_ONE, 0);
    return p;
}

static int make(dt_lora **l, dt_params *base, int64_t rank, double alpha, const char *targets, const char *skips,
                dt_err *err)
{
    dt_strs t = { 0 }, s = { 0 };
    dt_strs_split(&t, targets, ',');
    dt_strs_split(&s, skips, ',');
    *l = NULL;
    int rc = dt_lora_new(l, base, &(dt_lora_config){ .rank = rank, .alpha = alpha, .targets = &t, .skips = &s,
                                                     .naming = dt_flux_single_name }, err);
    dt_strs_release(&t);
    dt_strs_release(&s);
    return rc;
}

static void counts(dt_params *base, const char *targets, const char *skips, int64_t n)
{
    dt_lora *l;
    dt_err e = { 0 };
    if (make(&l, base, 2, 1, targets, skips, &e) < 0)
        fail_msg("%s", e.msg);
    if (l->n != n)
        fail_msg("'%s' without '%s': %lld layers", targets, skips, (long long)l->n);
    dt_lora_free(&l);
    assert_null(l);
}

static void refused(dt_params *base, const char *targets, const char *skips, const char *why)
{
    dt_lora *l;
    dt_err e = { 0 };
    assert_int_equal(make(&l, base, 2, 1, targets, skips, &e), DT_EUSAGE);
    assert_null(l);
    if (!strstr(e.msg, why))
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void targets(void **state)
{
    (void)state;
    dt_params *p = flux();
    counts(p, "", "", 45);
    counts(p, "to_q", "", 4);
    counts(p, "attn.to_q,to_k", "", 8);
    counts(p, "transformer_blocks.0.attn.to_q", "", 1);     /* single_transformer_blocks.0... ends so
                                                               too, but not after a dot */
    counts(p, "proj_out", "", 3);
    counts(p, "0.attn.to_q", "", 2);
    counts(p, "*transformer_blocks.1.*", "", 20);
    counts(p, "transformer_blocks.*.attn.to_?", "", 6);
    counts(p, "ff.0,ff.2,ff_context.0,ff_context.2", "", 8);
    counts(p, "to_q,to_k,to_v,ff.0,ff.2,ff_context.0,ff_context.2", "single_*", 14);
    counts(p, "to_q", "transformer_blocks.1.attn.to_q", 3);
    counts(p, "", "norm.linear,norm1.linear,norm1_context.linear,norm_out.linear", 38);
    refused(p, "k", "", "target 'k' matches no linear layer of transformer");
    refused(p, "to_q,to_w", "", "target 'to_w' matches no linear layer of transformer; did you mean to_");
    refused(p, "norm_q", "", "matches no linear layer");
    refused(p, "to_q", "to_p", "skip 'to_p' matches no");
    refused(p, "to_q", "to_q", "no linear layer of transformer is left");
    dt_lora *l;
    dt_err e = { 0 };
    assert_int_equal(make(&l, p, 0, 1, "to_q", "", &e), DT_EUSAGE);
    assert_int_equal(make(&l, p, 8, 0, "ff.0,to_q", "", &e), 0);
    assert_true(l->alpha == 8 && l->v[0].scale == 1);
    assert_string_equal(l->report.v[0], "target ff.0 (ff.net.0.proj): 2 layers");
    assert_string_equal(l->report.v[1], "target to_q: 4 layers");
    assert_null(dt_lora_find(l, "proj_out"));
    const dt_adapter *a = dt_lora_find(l, "transformer_blocks.1.ff.net.0.proj");
    assert_true(a && a->a->dims.d[0] == 8 && a->a->dims.d[1] == 4 && a->b->dims.d[0] == 16 && a->b->dims.d[1] == 8);
    assert_true(a->a->trainable && a->b->trainable && a->a->init == DT_INIT_FAN_IN && a->b->init == DT_INIT_ZERO);
    dt_lora_free(&l);
    dt_params_free(&p);
}

/* Values that bf16 holds, different everywhere. */
static void fill(dt_lora *l)
{
    int k = 0;
    assert_int_equal(dt_params_alloc(l->params, cpu, DT_F32, 0, NULL), 0);
    for (int64_t i = 0; i < l->params->n; i++)
        for (int64_t j = 0; j < l->params->v[i]->numel; j++, k++)
            ((float *)l->params->v[i]->w)[j] = dt_bf16_to_f32(dt_f32_to_bf16(1 + (float)(k % 5003) / 1000));
}

static void same(const dt_lora *a, const dt_lora *b)
{
    assert_int_equal(a->n, b->n);
    for (int64_t i = 0; i < a->n; i++) {
        assert_string_equal(a->v[i].path, b->v[i].path);
        assert_int_equal(a->v[i].rank, b->v[i].rank);
        assert_true(fabs(a->v[i].scale - b->v[i].scale) < 1e-7);
        const dt_param *pa[] = { a->v[i].a, a->v[i].b }, *pb[] = { b->v[i].a, b->v[i].b };
        for (int k = 0; k < 2; k++) {
            assert_int_equal(pa[k]->numel, pb[k]->numel);
            if (memcmp(pa[k]->w, pb[k]->w, 4 * (size_t)pa[k]->numel))
                fail_msg("'%s' differs", pa[k]->name);
        }
    }
}

static dt_lora *open_lora(dt_params *base, const char *path)
{
    dt_lora *l = NULL;
    dt_err e = { 0 };
    if (dt_lora_open_parts(&l, &base, 1, path, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(dt_params_alloc(l->params, cpu, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_lora_fill(l, NULL), 0);
    return l;
}

/* Saved in one layout, read, saved in the next, ..., read: nothing has changed. */
static void layouts(void **state)
{
    static const char *const sets[] = { "", "to_q,proj_mlp,add_v_proj,to_add_out",
                                        "norm_out.linear,linear_1,x_embedder" };
    dt_params *p = flux();
    char path[200];
    for (size_t k = 0; k < 3; k++)
        for (int first = 0; first < 3; first++) {
            dt_lora *l, *now = NULL;
            dt_err e = { 0 };
            assert_int_equal(make(&l, p, 3, 1.5, sets[k], "", NULL), 0);
            fill(l);
            for (int i = 0; i < 4; i++) {
                int layout = (first + i) % 3;
                snprintf(path, sizeof(path), "%s/%zu.%d.%d.safetensors", (char *)*state, k, first, i);
                if (dt_lora_save(now ? now : l, path, (enum dt_lora_layout)layout, i == 3 ? DT_BF16 : DT_F32, false,
                                 &(dt_lora_info){ "abc", 7 }, &e) < 0)
                    fail_msg("%s", e.msg);
                dt_lora_free(&now);
                now = open_lora(p, path);
                same(l, now);
            }
            dt_lora_free(&now);
            dt_lora_free(&l);
        }
    dt_st *st;
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    assert_string_equal(dt_st_meta(st, "dt_steps"), "7");
    assert_string_equal(dt_st_meta(st, "dt_base_hash"), "abc");
    assert_string_equal(dt_st_meta(st, "dt_rank"), "3");
    dt_st_close(&st);
    dt_params_free(&p);
}

/* y += s B A x, from a file's matrices: what a loader does that knows nothing of us. */
static void names_in_files(void **state)
{
    dt_params *p = flux();
    dt_lora *l;
    dt_st *st;
    char path[200];
    snprintf(path, sizeof(path), "%s/names.safetensors", (char *)*state);
    assert_int_equal(make(&l, p, 2, 3, "transformer_blocks.0.attn.to_k,norm_out.linear", "single*", NULL), 0);
    assert_int_equal(l->n, 2);
    fill(l);
    const float *a = dt_lora_find(l, "norm_out.linear")->b->w, *up;
    assert_int_equal(dt_lora_save(l, path, DT_LORA_COMFY, DT_F32, false, NULL, NULL), 0);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    assert_int_equal(dt_st_count(st), 6);
    assert_true(*(const float *)dt_st_find(st, "transformer.norm_out.linear.alpha")->data == 3);
    assert_non_null(dt_st_find(st, "transformer.transformer_blocks.0.attn.to_k.lora_A.weight"));
    assert_null(dt_st_meta(st, "lora_adapter_metadata"));
    dt_st_close(&st);

    assert_int_equal(dt_lora_save(l, path, DT_LORA_PEFT, DT_F32, false, NULL, NULL), 0);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    assert_int_equal(dt_st_count(st), 4);
    assert_non_null(strstr(dt_st_meta(st, "lora_adapter_metadata"), "\"transformer.lora_alpha\":3"));
    dt_st_close(&st);

    assert_int_equal(dt_lora_save(l, path, DT_LORA_KOHYA, DT_F32, false, NULL, NULL), 0);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    assert_int_equal(dt_st_count(st), 6);
    up = dt_st_find(st, "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight")->data;
    assert_memory_equal(up, a + 8, 32);             /* halves of [8, 2] */
    assert_memory_equal(up + 8, a, 32);
    const dt_st_entry *e = dt_st_find(st, "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight");
    assert_true(e->dims.d[0] == 12 && e->dims.d[1] == 6);
    assert_true(*(const float *)dt_st_find(st, "lora_unet_double_blocks_0_img_attn_qkv.alpha")->data == 9);
    up = e->data;
    const float *b = dt_lora_find(l, "transformer_blocks.0.attn.to_k")->b->w;
    for (int y = 0; y < 12; y++)
        for (int x = 0; x < 6; x++)
            assert_true(up[6 * y + x] == (y / 4 == 1 && x / 2 == 1 ? b[2 * (y - 4) + x - 2] : 0));
    dt_st_close(&st);
    dt_lora_free(&l);
    dt_params_free(&p);
}

struct key { const char *name; int64_t rows, cols; };

static void write_keys(const char *path, const struct key *k, const dt_st_kv *meta)
{
    static float x[400];
    dt_st_entry e[8];
    int64_t n = 0;
    for (int i = 0; i < 400; i++)
        x[i] = (float)(i + 1);
    for (; k[n].name; n++)
        e[n] = (dt_st_entry){ .name = k[n].name, .dtype = DT_F32, .data = x,
                              .dims = k[n].rows ? DT_DIMS(k[n].rows, k[n].cols) : (dt_dims){ 0 } };
    assert_int_equal(dt_st_write(path, e, n, meta, NULL), 0);
}

/* Parts of a fused layer with ranks of their own go through it and come back as they were. */
static void ranks_of_parts(void **state)
{
#define PAIR(module, r) { "transformer." module ".lora_A.weight", r, 4 }, { "transformer." module ".lora_B.weight", 4, r }
    static const struct key keys[] = { PAIR("transformer_blocks.0.attn.to_q", 3),
                                       PAIR("transformer_blocks.0.attn.to_v", 1),
                                       PAIR("single_transformer_blocks.0.attn.to_k", 2), { 0 } };
    dt_params *p = flux();
    char path[200];
    snprintf(path, sizeof(path), "%s/ranks.safetensors", (char *)*state);
    write_keys(path, keys, NULL);
    dt_lora *l = open_lora(p, path);
    assert_int_equal(l->n, 3);
    assert_int_equal(dt_lora_rounds(l, DT_LORA_KOHYA), 0);
    assert_int_equal(dt_lora_save(l, path, DT_LORA_KOHYA, DT_F32, false, NULL, NULL), 0);
    dt_lora *now = open_lora(p, path);
    same(l, now);
    dt_lora_free(&now);
    l->v[0].scale *= 3;                 /* to_q: now 3 times that of to_v */
    assert_int_equal(dt_lora_rounds(l, DT_LORA_KOHYA), 1);
    assert_int_equal(dt_lora_rounds(l, DT_LORA_PEFT), 0);
    dt_lora_free(&l);
    dt_params_free(&p);
}

static void variants(void **state)
{
    static const struct { struct key k[4]; const char *layer; double scale; } v[] = {
        { { { "base_model.model.proj_out.lora_A.default.weight", 2, 4 },
            { "base_model.model.proj_out.lora_B.default.weight", 6, 2 } }, "proj_out", 1 },
        { { { "proj_out.lora_A.weight", 2, 4 }, { "proj_out.lora_B.weight", 6, 2 } }, "proj_out", 1 },
        { { { "diffusion_model.final_layer.linear.lora_A.weight", 2, 4 },
            { "diffusion_model.final_layer.linear.lora_B.weight", 6, 2 },
            { "diffusion_model.final_layer.linear.alpha" } }, "proj_out", 0.5 },
        { { { "lora_unet__transformer_blocks_1_ff_net_2.lora_down.weight", 4, 16 },
            { "lora_unet__transformer_blocks_1_ff_net_2.lora_up.weight", 4, 4 },
            { "lora_unet__transformer_blocks_1_ff_net_2.alpha" } }, "transformer_blocks.1.ff.net.2", 0.25 },
        { { { "lora_transformer_transformer_blocks_1_ff_net_2.lora_down.weight", 4, 16 },
            { "lora_transformer_transformer_blocks_1_ff_net_2.lora_up.weight", 4, 4 } },
            "transformer_blocks.1.ff.net.2", 1 },
        { { { "lycoris_context_embedder.lora_down.weight", 1, 5 },
            { "lycoris_context_embedder.lora_up.weight", 4, 1 } }, "context_embedder", 1 },
        { { { "transformer.x_embedder.lora.down.weight", 2, 6 }, { "transformer.x_embedder.lora.up.weight", 4, 2 } },
          "x_embedder", 1 },
        { { { "model.diffusion_model.double_blocks.1.txt_mlp.0.lora_down.weight", 2, 4 },
            { "model.diffusion_model.double_blocks.1.txt_mlp.0.lora_up.weight", 16, 2 } },
          "transformer_blocks.1.ff_context.net.0.proj", 1 },
    };
    char path[200];
    dt_params *p = flux();
    snprintf(path, sizeof(path), "%s/v.safetensors", (char *)*state);
    for (size_t i = 0; i < sizeof(v) / sizeof(*v); i++) {
        write_keys(path, v[i].k, NULL);
        dt_lora *l = open_lora(p, path);
        assert_int_equal(l->n, 1);
        assert_string_equal(l->v[0].path, v[i].layer);
        assert_true(l->v[0].scale == v[i].scale);
        assert_true(((float *)l->v[0].a->w)[1] == 2);
        dt_lora_free(&l);
    }
    /* fused with one down for all: every part gets it, and its rows of up; saved again it is the same pair */
    const struct key fused[] = { { "lora_unet_single_blocks_1_linear1.lora_down.weight", 2, 4 },
                                 { "lora_unet_single_blocks_1_linear1.lora_up.weight", 28, 2 },
                                 { "lora_unet_single_blocks_1_linear1.alpha" }, { NULL } };
    write_keys(path, fused, NULL);
    dt_lora *l = open_lora(p, path);
    assert_int_equal(l->n, 4);
    const dt_adapter *mlp = dt_lora_find(l, "single_transformer_blocks.1.proj_mlp");
    assert_true(mlp->scale == 0.5 && mlp->rank == 2 && ((float *)mlp->b->w)[0] == 25 && ((float *)mlp->a->w)[0] == 1);
    char again[200];
    snprintf(again, sizeof(again), "%s/again.safetensors", (char *)*state);
    assert_int_equal(dt_lora_save(l, again, DT_LORA_KOHYA, DT_F32, false, NULL, NULL), 0);
    dt_st *st;
    assert_int_equal(dt_st_open(&st, again, NULL), 0);
    assert_int_equal(dt_st_count(st), 3);
    const float *up = dt_st_find(st, fused[1].name)->data;
    for (int i = 0; i < 56; i++)
        assert_true(up[i] == (float)(i + 1));
    dt_st_close(&st);
    dt_lora_free(&l);
    dt_params_free(&p);
}

static void alphas(void **state)
{
    char path[200];
    dt_params *p = flux();
    dt_lora *l;
    snprintf(path, sizeof(path), "%s/a.safetensors", (char *)*state);
    const struct key k[] = { { "transformer.proj_out.lora_A.weight", 4, 4 },
                             { "transformer.proj_out.lora_B.weight", 6, 4 },
                             { "transformer.x_embedder.lora_A.weight", 4, 6 },
                             { "transformer.x_embedder.lora_B.weight", 4, 4 },
                             { "transformer.single_transformer_blocks.0.proj_out.lora_A.weight", 4, 20 },
                             { "transformer.single_transformer_blocks.0.proj_out.lora_B.weight", 4, 4 },
                             { NULL } };
    static const struct { const char *json; double proj, x, single; } v[] = {
        { "{\"transformer.r\":4,\"transformer.lora_alpha\":2}", 0.5, 0.5, 0.5 },
        { "{\"transformer.lora_alpha\":2,\"transformer.alpha_pattern\":{\"^x_embedder\":1}}", 0.5, 0.25, 0.5 },
        { "{\"transformer.lora_alpha\":2,\"transformer.alpha_pattern\":{\"proj_out\":1}}", 0.25, 0.5, 0.25 },
        { "{\"transformer.lora_alpha\":2,\"transformer.alpha_pattern\":{\"^proj_out$\":1}}", 0.25, 0.5, 0.5 },
        { "{\"transformer.lora_alpha\":2,\"transformer.alpha_pattern\":{\"0\\\\.proj_out\":1}}", 0.5, 0.5, 0.25 },
        { "{\"transformer.lora_alpha\":2,\"transformer.alpha_pattern\":[1]}", 0.5, 0.5, 0.5 },
        { "{\"transformer.lora_alpha\":2,\"transformer.use_rslora\":true}", 1, 1, 1 },
        { "{\"unet.lora_alpha\":2}", 1, 1, 1 },
    };
    for (size_t i = 0; i < sizeof(v) / sizeof(*v); i++) {
        write_keys(path, k, (dt_st_kv[]){ { "lora_adapter_metadata", v[i].json }, { NULL, NULL } });
        l = open_lora(p, path);
        if (dt_lora_find(l, "proj_out")->scale != v[i].proj || dt_lora_find(l, "x_embedder")->scale != v[i].x ||
            dt_lora_find(l, "single_transformer_blocks.0.proj_out")->scale != v[i].single)
            fail_msg("%s", v[i].json);
        dt_lora_free(&l);
    }
    char config[200];                               /* peft's own folder */
    const char *json = "{\"r\": 4, \"lora_alpha\": 1, \"alpha_pattern\": {}}";
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", (char *)*state);
    snprintf(config, sizeof(config), "%s/adapter_config.json", (char *)*state);
    write_keys(path, k, NULL);
    assert_int_equal(dt_file_write(config, json, strlen(json), NULL), 0);
    l = open_lora(p, path);
    assert_true(l->v[0].scale == 0.25);
    dt_lora_free(&l);
    dt_params_free(&p);
}

static void bad_files(void **state)
{
    static const struct { struct key k[5]; const char *why; } v[] = {
        { { { NULL } }, "holds no LoRA" },
        { { { "transformer.proj_out.lora_A.weight", 2, 4 } }, "'transformer.proj_out' has no up matrix" },
        { { { "transformer.proj_out.alpha" } }, "has no down matrix" },
        { { { "transformer.proj_ouch.lora_A.weight", 2, 4 }, { "transformer.proj_ouch.lora_B.weight", 6, 2 } },
          "1 of 1 modules are no linear layers of transformer, first 'transformer.proj_ouch'" },
        { { { "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", 2, 4 } },
          "1 of its tensors are for text_encoder, which is not here" },
        { { { "transformer.proj_out.dora_scale", 2, 4 } }, "1 tensors are no part of a LoRA" },
        { { { "transformer.proj_out.lora_A.weight", 2, 4 }, { "transformer.proj_out.lora_B.weight", 6, 3 } },
          "'transformer.proj_out' is [2, 4] and [6, 3], but layer 'proj_out' is [6, 4]" },
        { { { "transformer.proj_out.lora_A.weight", 2, 5 }, { "transformer.proj_out.lora_B.weight", 6, 2 } },
          "is [6, 4]" },
        { { { "transformer.proj_out.lora_A.weight", 2, 4 }, { "transformer.proj_out.lora_B.weight", 7, 2 } },
          "is [6, 4]" },
        { { { "transformer.proj_out.lora_A.weight", 2, 4 }, { "transformer.proj_out.lora_B.weight", 6, 2 },
            { "final_layer.linear.lora_A.weight", 2, 4 }, { "final_layer.linear.lora_B.weight", 6, 2 } },
            "'proj_out' is adapted twice" },
        { { { "transformer.proj_out.lora_A.weight", 2, 4 }, { "transformer.proj_out.lora_B.weight", 6, 2 },
            { "transformer.proj_out.alpha", 2, 2 } }, "'transformer.proj_out.alpha' is not a number" },
    };
    char path[200];
    dt_params *p = flux();
    snprintf(path, sizeof(path), "%s/bad.safetensors", (char *)*state);
    for (size_t i = 0; i < sizeof(v) / sizeof(*v); i++) {
        dt_lora *l = NULL;
        dt_err e = { 0 };
        write_keys(path, v[i].k, NULL);
        assert_int_equal(dt_lora_open_parts(&l, &p, 1, path, &e), DT_EDATA);
        assert_null(l);
        if (!strstr(e.msg, v[i].why) || !strstr(e.msg, path))
            fail_msg("'%s' does not say '%s'", e.msg, v[i].why);
    }
    dt_params_free(&p);
}

/* --- against peft, diffusers and ComfyUI: tests/golden/lora_check.py --- */

#define GOLDEN "tests/golden/"

static dt_st *open_st(const char *path)
{
    dt_st *st = NULL;
    dt_err e = { 0 };
    if (dt_st_open(&st, path, &e) < 0)
        fail_msg("%s", e.msg);
    return st;
}

static int with_prefix(const dt_st *st, const dt_param *p, dt_st_entry *out, void *ctx, dt_err *err)
{
    (void)ctx;
    char name[256];
    snprintf(name, sizeof(name), "w.%s", p->name);
    int rc = dt_st_need(st, name, out, err);
    return rc < 0 ? rc : 1;
}

static dt_tensor *input(dt_graph *g, const dt_st *st, const char *name)
{
    char full[64];
    snprintf(full, sizeof(full), "in.%s", name);
    return dt_input(g, name, DT_F32, dt_st_find(st, full)->dims);
}

/* flux_b with the adapters that base->lora has. */
static dt_graph *flux_graph(const dt_st *st, dt_params *base)
{
    dt_flux_config c;
    cJSON *config = cJSON_Parse(dt_st_meta(st, "config"));
    assert_int_equal(dt_flux_config_parse(&c, config, "flux_b", NULL), 0);
    cJSON_Delete(config);
    dt_graph *g = dt_graph_new(DT_F32);
    dt_graph_use(g, base);
    dt_flux_in in = { input(g, st, "img"), input(g, st, "txt"), input(g, st, "pooled"), input(g, st, "t"),
                      input(g, st, "guidance"), NULL, NULL };
    dt_flux_rope_grid(g, &c, in.txt->dims.d[1], 6, 10, &in.cos, &in.sin);
    dt_output(g, dt_flux(g, &c, &in), "y");
    if (dt_graph_error(g))
        fail_msg("%s", dt_graph_error(g));
    return g;
}

/* Relative L2 distance of the prediction from want. */
static double distance(const dt_st *st, dt_params *base, const dt_st_entry *want)
{
    static const char *const names[] = { "img", "txt", "pooled", "t", "guidance" };
    dt_graph *g = flux_graph(st, base);
    dt_plan *plan;
    assert_int_equal(dt_plan_new(&plan, g, cpu, NULL), 0);
    void *arena = cpu->alloc(cpu, dt_plan_bytes(plan));
    dt_plan_bind(plan, arena);
    for (int i = 0; i < 5; i++) {
        char full[64];
        snprintf(full, sizeof(full), "in.%s", names[i]);
        dt_plan_write(plan, dt_find(g, names[i]), dt_st_find(st, full)->data);
    }
    assert_int_equal(dt_plan_run(plan, NULL), 0);
    int64_t n = dt_numel(want->dims);
    float *y = malloc(4 * (size_t)n);
    const float *w = want->data;
    dt_plan_read(plan, dt_find(g, "y"), y);
    double d = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        d += (y[i] - w[i]) * (y[i] - w[i]);
        norm += w[i] * w[i];
    }
    free(y);
    dt_plan_free(&plan);
    cpu->free(cpu, arena);
    dt_graph_free(&g);
    return sqrt(d / norm);
}

static void same_tensors(const char *a, const char *b)
{
    dt_st *x = open_st(a), *y = open_st(b);
    assert_int_equal(dt_st_count(x), dt_st_count(y));
    for (int64_t i = 0; i < dt_st_count(x); i++) {
        const dt_st_entry *e = dt_st_at(x, i), *f = dt_st_find(y, e->name);
        if (!f || f->dtype != e->dtype || f->bytes != e->bytes || memcmp(e->data, f->data, e->bytes))
            fail_msg("'%s' of %s is not as in %s", e->name, a, b);
    }
    dt_st_close(&x);
    dt_st_close(&y);
}

/* A fused layer as other trainers have it, one A for all parts: taken apart and joined again to the bit. */
static void fused_files(void **state)
{
    static const struct key keys[] = {
        { "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", 2, 4 },
        { "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", 12, 2 },
        { "lora_unet_double_blocks_0_img_attn_qkv.alpha", 0, 0 },
        { "lora_unet_single_blocks_0_linear1.lora_down.weight", 3, 4 },
        { "lora_unet_single_blocks_0_linear1.lora_up.weight", 28, 3 },
        { "lora_unet_single_blocks_0_linear1.alpha", 0, 0 }, { 0 } };
    dt_params *p = flux();
    char path[3][200];
    for (int i = 0; i < 3; i++)
        snprintf(path[i], sizeof(path[i]), "%s/fused%d.safetensors", (char *)*state, i);
    write_keys(path[0], keys, NULL);
    dt_lora *l = open_lora(p, path[0]);
    assert_int_equal(l->n, 7);
    assert_int_equal(dt_lora_save(l, path[1], DT_LORA_COMFY, DT_F32, false, NULL, NULL), 0);
    dt_lora_free(&l);
    l = open_lora(p, path[1]);
    assert_int_equal(l->n, 7);
    assert_int_equal(dt_lora_save(l, path[2], DT_LORA_KOHYA, DT_F32, false, NULL, NULL), 0);
    same_tensors(path[0], path[2]);
    dt_lora_free(&l);
    dt_params_free(&p);
}

static void readers(void **state)
{
    const char *keep = getenv("DT_LORA_KEEP");
    dt_st *st = open_st(GOLDEN "flux_b.safetensors"), *all = open_st(GOLDEN "lora_all.safetensors");
    const dt_st_entry *want = dt_st_find(all, "out.y");
    dt_params *base = dt_params_new("transformer");
    dt_graph *g = flux_graph(st, base);
    dt_graph_free(&g);
    assert_int_equal(dt_params_alloc(base, cpu, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_params_load(base, st, with_prefix, NULL, NULL), 0);
    assert_true(distance(st, base, want) > 1e-2);

    dt_lora *l;
    assert_int_equal(make(&l, base, 2, 1, "", "", NULL), 0);
    assert_int_equal(2 * l->n + 1, dt_st_count(all));
    assert_int_equal(dt_params_alloc(l->params, cpu, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_params_load(l->params, all, with_prefix, NULL, NULL), 0);
    base->lora = l;
    assert_true(distance(st, base, want) < 2e-6);
    for (int i = 0; dt_lora_layouts[i]; i++) {
        char path[200], golden[200];
        snprintf(path, sizeof(path), "%s/lora_all_%s.safetensors", keep ? keep : (char *)*state, dt_lora_layouts[i]);
        snprintf(golden, sizeof(golden), GOLDEN "lora_all_%s.safetensors", dt_lora_layouts[i]);
        assert_int_equal(dt_lora_save(l, path, (enum dt_lora_layout)i, DT_BF16, false, NULL, NULL), 0);
        same_tensors(path, golden);
        dt_lora *again = open_lora(base, golden);
        same(l, again);
        base->lora = again;
        assert_true(distance(st, base, want) < 2e-6);
        dt_lora_free(&again);
    }
    dt_lora_free(&l);
    dt_params_free(&base);
    dt_st_close(&st);
    dt_st_close(&all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(targets), cmocka_unit_test_setup_teardown(layouts, setup, teardown),
        cmocka_unit_test_setup_teardown(names_in_files, setup, teardown),
        cmocka_unit_test_setup_teardown(variants, setup, teardown),
        cmocka_unit_test_setup_teardown(alphas, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_files, setup, teardown),
        cmocka_unit_test_setup_teardown(readers, setup, teardown),
        cmocka_unit_test_setup_teardown(ranks_of_parts, setup, teardown),
        cmocka_unit_test_setup_teardown(fused_files, setup, teardown),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("train/lora", tests, NULL, NULL);
}
