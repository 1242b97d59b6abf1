/* names: files with other names give what diffusers' own folders give; what the names of a file say of its network. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "graph/device.h"
#include "models/flux_pipe.h"
#include "models/names.h"
#include "tests/unit/scratch.h"

static dt_device *cpu;
static const char *const stems[] = { "diffusion_pytorch_model", NULL };

static dt_st *open_st(const char *path, bool folder)
{
    dt_st *st = NULL;
    dt_err e = { 0 };
    if ((folder ? dt_st_open_folder(&st, path, stems, &e) : dt_st_open(&st, path, &e)) < 0)
        fail_msg("%s", e.msg);
    return st;
}

/* A set with the tensors of st, whose names begin with `prefix` there. */
static dt_params *like(const dt_st *st, const char *prefix, dt_dtype t)
{
    dt_params *p = dt_params_new("x");
    size_t k = strlen(prefix);
    for (int64_t i = 0; i < dt_st_count(st); i++)
        if (!strncmp(dt_st_at(st, i)->name, prefix, k))
            dt_params_declare(p, dt_st_at(st, i)->name + k, dt_st_at(st, i)->dims, DT_INIT_ZERO, 0);
    assert_true(p->n > 10);
    assert_int_equal(dt_params_alloc(p, cpu, t, 0, NULL), 0);
    return p;
}

static void same(const dt_params *p, const dt_st *st, const char *prefix)
{
    char name[256];
    for (int64_t i = 0; i < p->n; i++) {
        snprintf(name, sizeof(name), "%s%s", prefix, p->v[i]->name);
        const dt_st_entry *e = dt_st_find(st, name);
        assert_int_equal(e->dtype, p->dtype);
        if (memcmp(e->data, p->v[i]->w, e->bytes))
            fail_msg("'%s' differs", name);
    }
}

static void load(dt_params *p, const dt_st *st, dt_rename_fn rename)
{
    dt_err e = { 0 };
    for (int64_t i = 0; i < p->n; i++)
        memset(p->v[i]->w, 0xff, (size_t)p->v[i]->numel * dt_dtype_size(p->dtype));
    if (dt_params_load(p, st, rename, NULL, &e) < 0)
        fail_msg("%s", e.msg);
}

/* All tensors of st again, names through a function.  Caller frees *mem after closing. */
static dt_st *renamed(const dt_st *st, void (*name)(char *buf, const char *name), void **mem)
{
    int64_t n = dt_st_count(st);
    dt_st_entry *e = calloc((size_t)n, sizeof(*e));
    char (*buf)[256] = calloc((size_t)n, sizeof(*buf));
    for (int64_t i = 0; i < n; i++) {
        e[i] = *dt_st_at(st, i);
        name(buf[i], e[i].name);
        e[i].name = buf[i];
    }
    size_t bytes;
    dt_st *out;
    assert_int_equal(dt_st_pack(mem, &bytes, e, n, NULL, NULL), 0);
    assert_int_equal(dt_st_open_mem(&out, *mem, bytes, "renamed", NULL), 0);
    free(buf);
    free(e);
    return out;
}

static void in_checkpoint(char *buf, const char *name) { snprintf(buf, 256, "model.diffusion_model.%s", name); }

static void flux(void **state)
{
    (void)state;
    dt_st *ours = open_st("tests/golden/tiny-flux/transformer", true);
    dt_st *single = open_st("tests/golden/tiny-flux/flux1-tiny.safetensors", false);
    dt_params *p = like(ours, "", DT_BF16);
    load(p, ours, dt_flux_rename);
    same(p, ours, "");
    load(p, single, dt_flux_rename);
    same(p, ours, "");
    void *mem;
    dt_st *full = renamed(single, in_checkpoint, &mem);
    load(p, full, dt_flux_rename);
    same(p, ours, "");
    dt_st_close(&full);
    free(mem);

    /* every tensor of the single file is read by somebody, all of it */
    int64_t n = 0, m = 0;
    for (int64_t i = 0; i < p->n; i++) {
        dt_st_entry e[DT_MAX_PIECES];
        int k = dt_flux_rename(single, p->v[i], e, NULL, NULL);
        for (int j = 0; j < k; j++)
            n += dt_numel(e[j].dims);
    }
    for (int64_t i = 0; i < dt_st_count(single); i++)
        m += dt_numel(dt_st_at(single, i)->dims);
    assert_int_equal(n, m);

    dt_err e = { 0 };
    dt_params_declare(p, "transformer_blocks.77.attn.to_q.weight", DT_DIMS(32, 32), DT_INIT_ZERO, 0);
    assert_int_equal(dt_params_load(p, single, dt_flux_rename, NULL, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, "flux1-tiny.safetensors: no tensor 'double_blocks.77.img_attn.qkv.weight'"));
    dt_params_free(&p);
    dt_st_close(&ours);
    dt_st_close(&single);
}

static void module_names(void **state)
{
    (void)state;
    dt_other_name o;
    assert_true(dt_flux_single_name("single_transformer_blocks.12.proj_mlp", &o));
    assert_string_equal(o.name, "single_blocks.12.linear1");
    assert_true(o.part == 3 && o.parts == 4 && !o.swap);
    assert_true(dt_flux_single_name("norm_out.linear", &o));
    assert_true(o.swap && o.parts == 1);
    assert_true(dt_flux_single_name("transformer_blocks.3.ff.net.2.bias", &o));
    assert_string_equal(o.name, "double_blocks.3.img_mlp.2.bias");
    assert_false(dt_flux_single_name("transformer_blocks.3.ff.net.20", &o));
    assert_false(dt_flux_single_name("transformer_blocks.x.ff.net.2", &o));
    assert_false(dt_flux_single_name("nothing", &o));
}

static void old_attention(char *buf, const char *name)
{
    const struct { const char *from, *to; } r[] = {
        { ".to_q.", ".query." }, { ".to_k.", ".key." }, { ".to_v.", ".value." }, { ".to_out.0.", ".proj_attn." } };
    snprintf(buf, 256, "%s", name + 2);             /* "w." */
    for (int i = 0; i < 4; i++) {
        char *at = strstr(buf, r[i].from);
        if (at) {
            char rest[256];
            snprintf(rest, sizeof(rest), "%s", at + strlen(r[i].from));
            sprintf(at, "%s%s", r[i].to, rest);
        }
    }
}

static void vae(void **state)
{
    (void)state;
    dt_st *golden = open_st("tests/golden/vae_a.safetensors", false);
    dt_st *single = open_st("tests/golden/vae_single.safetensors", false);
    dt_params *p = like(golden, "w.", DT_BF16);
    assert_int_equal(p->n, dt_st_count(single));
    load(p, single, dt_vae_rename);
    same(p, golden, "w.");

    void *mem;
    dt_st *old = renamed(golden, old_attention, &mem);
    assert_non_null(dt_st_find(old, "encoder.mid_block.attentions.0.query.weight"));
    load(p, old, dt_vae_rename);
    same(p, golden, "w.");
    dt_st_close(&old);
    free(mem);
    dt_params_free(&p);
    dt_st_close(&golden);
    dt_st_close(&single);
}

static void other_embedding(char *buf, const char *name)
{
    snprintf(buf, 256, "%s", strcmp(name, "shared.weight") ? name : "encoder.embed_tokens.weight");
}

static void without_prefix(char *buf, const char *name) { snprintf(buf, 256, "%s", name + strlen("text_model.")); }

static void text_encoders(void **state)
{
    (void)state;
    static const struct {
        enum dt_flux_part k;
        dt_dtype t;
        const char *path;
        void (*other)(char *buf, const char *name);
    } part[] = {
        { DT_FLUX_CLIP, DT_F32, "tests/golden/tiny-flux/text_encoder/model.safetensors", without_prefix },
        { DT_FLUX_T5, DT_BF16, "tests/golden/tiny-flux/text_encoder_2/model.safetensors", other_embedding },
    };
    for (int i = 0; i < 2; i++) {
        dt_st *ours = open_st(part[i].path, false);
        dt_params *p = like(ours, "", part[i].t);
        void *mem;
        dt_st *theirs = renamed(ours, part[i].other, &mem);
        load(p, ours, dt_flux_part_rename[part[i].k]);
        same(p, ours, "");
        load(p, theirs, dt_flux_part_rename[part[i].k]);
        same(p, ours, "");
        dt_err e = { 0 };
        dt_params_declare(p, "text_model.none", DT_DIMS(1), DT_INIT_ZERO, 0);
        assert_int_equal(dt_params_load(p, theirs, dt_flux_part_rename[part[i].k], NULL, &e), DT_EDATA);
        assert_string_equal(e.msg, "renamed: no tensor 'text_model.none'");
        dt_st_close(&theirs);
        free(mem);
        dt_params_free(&p);
        dt_st_close(&ours);
    }
}

static void rope_axes(void **state)
{
    (void)state;
    static const struct { int head_dim; const char *axes; int rc; } c[] = {
        { 16, ",\"axes_dims_rope\":[4,4,8]", 0 },           { 16, ",\"axes_dims_rope\":[0,8,8]", 0 },
        { 128, "", 0 },                                    { 16, "", DT_EDATA },
        { 16, ",\"axes_dims_rope\":[4,4]", DT_EDATA },      { 16, ",\"axes_dims_rope\":[4,4,4]", DT_EDATA },
        { 16, ",\"axes_dims_rope\":[3,5,8]", DT_EDATA },    { 16, ",\"axes_dims_rope\":[-4,12,8]", DT_EDATA },
        { 16, ",\"axes_dims_rope\":[4,4,4,4]", DT_EDATA },
    };
    for (size_t i = 0; i < sizeof(c) / sizeof(*c); i++) {
        char *text = dt_sprintf("{\"in_channels\":16,\"num_layers\":1,\"num_single_layers\":1,"
                                "\"attention_head_dim\":%d,\"num_attention_heads\":2,\"joint_attention_dim\":32,"
                                "\"pooled_projection_dim\":32%s}", c[i].head_dim, c[i].axes);
        cJSON *j = cJSON_Parse(text);
        dt_flux_config config;
        dt_err e = { 0 };
        assert_int_equal(dt_flux_config_parse(&config, j, "config.json", &e), c[i].rc);
        assert_true(!c[i].rc || strstr(e.msg, "config.json: 'axes_dims_rope' must be"));
        cJSON_Delete(j);
        free(text);
    }
}

/* Halves of adapters, and weights, whose sides all differ: each number of the configurations shows where it should. */
static void guesses(void **state)
{
    (void)state;
    enum { D = 384 };
    static const float zeros[4 * D * 5];
    const dt_st_entry e[] = {
        { .name = "transformer.transformer_blocks.1.ff.net.2.lora_A.weight", .dims = DT_DIMS(2, 4 * D) },
        { .name = "transformer.single_transformer_blocks.4.proj_out.lora_A.weight", .dims = DT_DIMS(2, 5 * D) },
        { .name = "x_embedder.weight", .dims = DT_DIMS(D, 16) },
        { .name = "context_embedder.lora_A.weight", .dims = DT_DIMS(2, 48) },
        { .name = "time_text_embed.text_embedder.linear_1.lora_A.weight", .dims = DT_DIMS(2, 40) },
        { .name = "proj_out.lora_B.weight", .dims = DT_DIMS(12, 2) },
        { .name = "lora_te1_text_model_encoder_layers_2_mlp_fc2.lora_down.weight", .dims = DT_DIMS(2, 96) },
        { .name = "lora_te1_text_model_encoder_layers_2_mlp_fc2.lora_up.weight", .dims = DT_DIMS(40, 2) },
        { .name = "lora_te3_encoder_block_1_layer_0_SelfAttention_o.lora_down.weight", .dims = DT_DIMS(2, 56) },
        { .name = "lora_te3_encoder_block_1_layer_0_SelfAttention_o.lora_up.weight", .dims = DT_DIMS(32, 2) },
        { .name = "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0.lora_up.weight", .dims = DT_DIMS(80, 2) },
        { .name = "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0.alpha", .dims = DT_DIMS(1) },
    };
    enum { N = sizeof(e) / sizeof(*e) };
    dt_st_entry filled[N];
    for (int i = 0; i < N; i++) {
        filled[i] = e[i];
        filled[i].data = zeros;
    }
    void *mem;
    size_t bytes;
    dt_st *st;
    assert_int_equal(dt_st_pack(&mem, &bytes, filled, N, NULL, NULL), 0);
    assert_int_equal(dt_st_open_mem(&st, mem, bytes, "guess", NULL), 0);
    dt_flux_config c;
    dt_clip_config clip;
    dt_t5_config t5;
    dt_flux_guess(&c, st);
    dt_text_guess(&clip, &t5, st);
    assert_int_equal(c.layers, 2);
    assert_int_equal(c.single_layers, 5);
    assert_int_equal(c.heads * c.head_dim, D);
    assert_true(c.head_dim <= 128 && c.axes[0] == c.head_dim);
    assert_int_equal(c.in_channels, 16);
    assert_int_equal(c.out_channels, 12);
    assert_int_equal(c.joint_dim, 48);
    assert_int_equal(c.pooled_dim, 40);
    assert_true(clip.layers == 3 && clip.hidden == 40 && clip.mlp == 96);
    assert_true(t5.layers == 2 && t5.d_model == 32 && t5.d_ff == 80 && t5.heads * t5.d_kv == 56);
    dt_st_close(&st);
    free(mem);
}

/* With the tokenizer of another model. */
static void tokens_beyond(void **state)
{
    (void)state;
    dt_flux_pipe *p = NULL;
    dt_err e = { 0 };
    int32_t clip[77], t5[512], eos;
    assert_int_equal(dt_flux_pipe_open(&p, "tests/golden/tiny-flux", 0, &e), 0);
    assert_int_equal(dt_flux_pipe_tokenizers(p, &e), 0);
    assert_int_equal(dt_flux_tokenize(p, "a red cat", clip, &eos, t5, &e), p->t5_len);
    p->t5.vocab = 2;
    assert_int_equal(dt_flux_tokenize(p, "a red cat", clip, &eos, t5, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, "text_encoder_2 knows 2"));
    p->clip.vocab = clip[0];                        /* the begin token is the last but one */
    assert_int_equal(dt_flux_tokenize(p, "a red cat", clip, &eos, t5, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, "tiny-flux: a caption has token") && strstr(e.msg, "text_encoder knows"));
    dt_flux_pipe_close(&p);
}

/* Asked again after a failure it fails again: it does not go on with one of the two. */
static void both_tokenizers(void **state)
{
    char *clip = realpath("tests/golden/tiny-flux/tokenizer", NULL), *link = dt_path_join(*state, "tokenizer");
    dt_err e = { 0 };
    dt_flux_pipe p = { .dir = *state };
    assert_int_equal(symlink(clip, link), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(dt_flux_pipe_tokenizers(&p, &e), DT_EDATA);
        assert_non_null(strstr(e.msg, "tokenizer_2: no such folder"));
        assert_null(p.clip_tok);
    }
    free(clip);
    free(link);
}

static int open_cpu(void **state)
{
    (void)state;
    return dt_device_open(&cpu, "cpu", NULL);
}

static int close_cpu(void **state)
{
    (void)state;
    dt_device_close(&cpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flux), cmocka_unit_test(module_names), cmocka_unit_test(vae), cmocka_unit_test(text_encoders),
        cmocka_unit_test(rope_axes), cmocka_unit_test(guesses), cmocka_unit_test(tokens_beyond),
        scratch_test(both_tokenizers),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("models/names", tests, open_cpu, close_cpu);
}
