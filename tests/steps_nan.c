/* steps_nan.c - numbers that are none: the run stops with DT_ENAN (exit 6), and says in which op and
 * block the first one was made or from which weight or input it came; and none of them gets into a checkpoint. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "base/file.h"
#include "tensor/safetensors.h"
#include "tests/steps.h"

/* --- (a) a weight of a block --- */

typedef struct hole {
    const char *name;
    enum dt_method method;
    const char *args;
    const char *set, *weight;       /* one number of it becomes NaN, then infinite */
    const char *says[3];            /* parts of the message; the weight's name is one more */
} hole;

#define LOSS "step 1: the loss is not finite; first in '"
#define DIT "transformer"

static const hole holes[] = {
    { "lora, a double block", DT_METHOD_LORA, "", DIT, "transformer_blocks.1.ff.net.2.weight",
      { LOSS "matmul", "of transformer_blocks.1." } },
    { "lora, a single block", DT_METHOD_LORA, "", DIT, "single_transformer_blocks.0.attn.to_v.weight",
      { LOSS "matmul", "of single_transformer_blocks.0.attn.to_v," } },
    { "lora, a norm", DT_METHOD_LORA, "", DIT, "transformer_blocks.0.attn.norm_k.weight",
      { LOSS, "of transformer_blocks.0." } },
    { "lora, a bias", DT_METHOD_LORA, "", DIT, "single_transformer_blocks.1.proj_mlp.bias",
      { LOSS, "of single_transformer_blocks.1." } },
    { "lora, the last layer", DT_METHOD_LORA, "", DIT, "proj_out.bias", { LOSS, "of proj_out," } },
    { "lora, an embedder", DT_METHOD_LORA, "", DIT, "x_embedder.weight", { LOSS "matmul", "of x_embedder," } },
    { "lora, its own matrix", DT_METHOD_LORA, "", "lora", "single_transformer_blocks.1.attn.to_q.lora_A.weight",
      { LOSS, "of single_transformer_blocks.1." } },
    { "lora, recompute", DT_METHOD_LORA, "--gradient_checkpointing", DIT, "transformer_blocks.0.attn.to_q.weight",
      { LOSS "matmul", "of transformer_blocks.0." } },
    { "lora, bf16", DT_METHOD_LORA, "--mixed_precision bf16", DIT, "transformer_blocks.0.attn.to_q.weight",
      { LOSS "matmul", "of transformer_blocks.0." } },
    { "full", DT_METHOD_FULL, "", DIT, "transformer_blocks.1.attn.add_q_proj.weight",
      { LOSS "matmul", "of transformer_blocks.1." } },
    { "full, no clipping", DT_METHOD_FULL, "--max_grad_norm 0", DIT, "transformer_blocks.1.attn.add_q_proj.weight",
      { LOSS "matmul", "of transformer_blocks.1." } },
    { "full, text encoders", DT_METHOD_FULL, "--train_text_encoder", "text_encoder_2",
      "encoder.block.1.layer.1.DenseReluDense.wo.weight", { LOSS "matmul", "of encoder.block.1" } },
    { "vae, encoder", DT_METHOD_VAE, "", "vae", "encoder.mid_block.resnets.0.conv1.weight",
      { LOSS "conv2d", "of encoder.mid_block" } },
    { "vae, decoder", DT_METHOD_VAE, "", "vae", "decoder.up_blocks.1.resnets.0.conv2.bias",
      { LOSS "conv2d", "of decoder.up_blocks.1" } },
};

static dt_param *find(const dt_job *j, const char *set, const char *name, dt_params **of)
{
    for (int k = 0; k <= DT_FLUX_NPART; k++) {
        *of = k < DT_FLUX_NPART ? j->pipe->part[k] : j->lora ? j->lora->params : NULL;
        dt_param *q = *of && !strcmp((*of)->name, set) ? dt_params_find(*of, name) : NULL;
        if (q)
            return q;
    }
    return NULL;
}

/* A weight in its file, which nobody but a test writes to: into pages of our own. */
static int write_mapped(const dt_param *q, const float *v, dt_err *err)
{
    uintptr_t page = 4096, from = (uintptr_t)q->w / page * page, bytes = (uintptr_t)q->numel * dt_dtype_size(q->dtype);
    if (mprotect((void *)from, (uintptr_t)q->w + bytes - from, PROT_READ | PROT_WRITE))
        return dt_err_sys(err, DT_EFAIL, "mprotect");
    dt_convert(q->w, q->dtype, v, DT_F32, q->numel);
    return 0;
}

/* Number `at` of a weight becomes `value`; at < 0: all are multiplied by it. */
static int poke(const dt_job *j, const char *set, const char *name, int64_t at, float value, dt_err *err)
{
    dt_params *of;
    dt_param *q = find(j, set, name, &of);
    if (!q)
        return dt_err_set(err, DT_EFAIL, "no '%s' in '%s'", name, set);
    float *v = dt_alloc((size_t)q->numel * sizeof(*v));
    int rc = dt_params_read(of, q, false, v, err);
    for (int64_t i = 0; i < q->numel; i++)
        v[i] = at < 0 ? v[i] * value : i == at ? value : v[i];
    if (rc == 0)
        rc = q->place == DT_IN_FILE ? write_mapped(q, v, err) : dt_params_write(of, q, v, err);
    free(v);
    return rc;
}

/* Files of checkpoints and of the output with a number that is none. */
static int unsound_files(const char *dir, int64_t last, int *checkpoints)
{
    int bad = 0;
    for (int64_t k = 0; k <= last; k++)
        for (int r = 0; r < 3; r++) {
            static const char *const role[] = { "master", "m", "v" };
            static const char *const set[] = { "lora", "transformer", "vae" };
            for (int i = 0; i < 3; i++) {
                char *path = dt_sprintf("%s/checkpoint-%lld/%s.%s.safetensors", dir, (long long)k, set[i], role[r]);
                dt_st *st = NULL;
                if (dt_exists(path) && dt_st_open(&st, path, NULL) == 0) {
                    *checkpoints += r == 0;
                    for (int64_t e = 0; e < dt_st_count(st); e++) {
                        const dt_st_entry *t = dt_st_at(st, e);
                        for (int64_t x = 0; x < dt_numel(t->dims); x++)
                            bad += !isfinite(((const float *)t->data)[x]);
                    }
                    dt_st_close(&st);
                }
                free(path);
            }
        }
    return bad;
}

static void judge(const char *name, const char *kind, int rc, const dt_err *err, const char *const says[3],
                  const char *from)
{
    bool ok = rc == DT_ENAN;
    for (int i = 0; i < 3 && says[i]; i++)
        ok &= strstr(err->msg, says[i]) != NULL;
    if (from)
        ok &= strstr(err->msg, from) != NULL;
    steps_result(ok, "%s: %s", name, kind);
    if (!ok || getenv("VERBOSE"))
        printf("# %d: %s\n", rc, err->msg);
}

static void one_hole(const hole *h, float value, const char *kind)
{
    steps s;
    dt_err err = { 0 };
    char *from = dt_sprintf(", from '%s'; batch 0 of the plan", h->weight);
    int checkpoints = 0, rc = steps_open(&s, h->method, h->args, &err);
    if (rc == 0)
        rc = poke(&s.j, h->set, h->weight, 1, value, &err);
    s.j.t.max_steps = 1;
    if (rc == 0)
        rc = dt_train(&s.j.t, &err);
    unsound_files(s.dir, 1, &checkpoints);
    judge(h->name, kind, checkpoints ? 0 : rc, &err, h->says, from);
    steps_close(&s);
    free(from);
}

/* --- (b) what the data brings --- */

struct spoil { dt_source of; int what; float value; int64_t batch; void *copy; };

static int spoiled(void *ctx, dt_micro **b, dt_err *err)
{
    struct spoil *p = ctx;
    int rc = p->of.next(p->of.ctx, b, err);
    if (rc != 1 || (*b)->index != p->batch)
        return rc;
    dt_sample *s = &(*b)->s[(*b)->n - 1];
    const void **v = p->what == 0 ? &s->mean : p->what == 1 ? &s->logvar : p->what == 2 ? &s->states : &s->pooled;
    int64_t n = p->what < 2 ? s->C * s->h * s->w : p->what == 2 ? s->T * s->D : s->P;
    dt_dtype t = p->what < 2 ? s->lat_dtype : s->txt_dtype;
    p->copy = dt_alloc((size_t)n * dt_dtype_size(t));
    memcpy(p->copy, *v, (size_t)n * dt_dtype_size(t));
    dt_convert((char *)p->copy + dt_dtype_size(t) * (size_t)(n / 2), t, &p->value, DT_F32, 1);
    *v = p->copy;
    return rc;
}

static void given_back(void *ctx, dt_micro *b)
{
    struct spoil *p = ctx;
    p->of.done(p->of.ctx, b);
}

static void data(void)
{
    static const char *const what[] = { "mean", "variance", "text state", "pooled state" };
    static const char *const input[] = { "latents", "latents", "text_states", "pooled" };
    for (int w = 0; w < 4; w++)
        for (int v = 0; v < 2; v++) {
            steps s;
            dt_err err = { 0 };
            char *name = dt_sprintf("data, %s of a cached sample", what[w]);
            char *from = dt_sprintf(", from '%s'; batch 1 of the plan", input[w]);
            if (steps_wanted(name)) {
                int rc = steps_open(&s, DT_METHOD_LORA, v ? "--mixed_precision bf16" : "", &err);
                struct spoil p = { s.j.t.source, w, v ? INFINITY : NAN, 1, NULL };
                s.j.t.source = (dt_source){ &p, spoiled, given_back };
                s.j.t.max_steps = 2;
                if (rc == 0)
                    rc = dt_train(&s.j.t, &err);
                judge(name, v ? "infinite" : "NaN", rc, &err,
                      (const char *const[3]){ "step 2: the loss is not finite; first in '" }, from);
                steps_close(&s);
                free(p.copy);
            }
            free(from);
            free(name);
        }
}

/* --- (c) overflow --- */

/* A learning rate that blows the weights up: what was saved before it shows is finite. */
static void blown_up(const char *name, enum dt_method method, const char *args, double lr)
{
    steps s;
    dt_err err = { 0 };
    int checkpoints = 0;
    if (!steps_wanted(name))
        return;
    int rc = steps_open(&s, method, args, &err);
    s.j.t.lr.base = lr;
    s.j.t.max_steps = 8;
    s.j.t.save_every = 1;
    if (rc == 0)
        rc = dt_train(&s.j.t, &err);
    judge(name, "it stops", rc, &err, (const char *const[3]){ "not finite" }, NULL);
    int bad = unsound_files(s.dir, 8, &checkpoints);
    steps_result(!bad, "%s: %d checkpoints are finite", name, checkpoints);
    steps_close(&s);
}

/* Finite in fp32, not in what is saved. */
static void beyond_fp16(const char *name, enum dt_method method, const char *set, const char *weight)
{
    steps s;
    dt_err err = { 0 };
    int checkpoints = 0;
    if (!steps_wanted(name))
        return;
    int rc = steps_open(&s, method, "--save_dtype fp16", &err);
    if (rc == 0)
        rc = poke(&s.j, set, weight, 1, 1e5f, &err);
    s.j.t.max_steps = 1;
    s.j.t.ctx = &s.j;
    s.j.t.save_extra = dt_job_save_extra;
    if (rc == 0)
        rc = dt_train(&s.j.t, &err);
    unsound_files(s.dir, 1, &checkpoints);
    judge(name, "not saved", checkpoints ? 0 : rc, &err,
          (const char *const[3]){ "is not finite in F16, or beyond its range" }, NULL);
    steps_close(&s);
}

/* Halves of a bias: scale and shift of a modulation. */
static int set_halves(const dt_job *j, const char *name, float scale, float shift, dt_err *err)
{
    dt_params *of;
    dt_param *q = find(j, DIT, name, &of);
    float *v = q ? dt_alloc((size_t)q->numel * sizeof(*v)) : NULL;
    for (int64_t i = 0; v && i < q->numel; i++)
        v[i] = i < q->numel / 2 ? scale : shift;
    int rc = v ? dt_params_write(of, q, v, err) : DT_EFAIL;
    free(v);
    return rc;
}

/* The last layer gets 1e-21 and multiplies it by 1e38: the loss is a number, its gradient by the
 * layer's input is none. */
static void backward(const char *name, enum dt_method method, const char *args)
{
    steps s;
    dt_err err = { 0 };
    if (!steps_wanted(name))
        return;
    int rc = steps_open(&s, method, args, &err);
    if (rc == 0)
        rc = poke(&s.j, DIT, "norm_out.linear.weight", -1, 0, &err);
    if (rc == 0)
        rc = set_halves(&s.j, "norm_out.linear.bias", -1, 1e-21f, &err);
    if (rc == 0)
        rc = poke(&s.j, DIT, "proj_out.weight", -1, 1e38f, &err);
    s.j.t.max_steps = 1;
    if (rc == 0)
        rc = dt_train(&s.j.t, &err);
    judge(name, "the gradient overflows", rc, &err,
          (const char *const[3]){ "step 1: the gradient is not finite; first in 'matmul", "of proj_out (backward)",
                                  "batch 0 of" }, NULL);
    steps_close(&s);
}

void steps_nan(void)
{
    for (size_t i = 0; i < sizeof(holes) / sizeof(holes[0]); i++)
        if (steps_wanted(holes[i].name)) {
            one_hole(&holes[i], NAN, "a NaN in a weight");
            one_hole(&holes[i], INFINITY, "an infinite weight");
        }
    data();
    blown_up("overflow, lora", DT_METHOD_LORA, "", 1e30);
    blown_up("overflow, lora, bf16", DT_METHOD_LORA, "--mixed_precision bf16", 1e38);
    blown_up("overflow, full", DT_METHOD_FULL, "", 1e20);
    blown_up("overflow, full, weights at once", DT_METHOD_FULL, "", 1e39);
    blown_up("overflow, full, no clipping", DT_METHOD_FULL, "--max_grad_norm 0", 1e20);
    blown_up("overflow, full, no clipping, weights at once", DT_METHOD_FULL, "--max_grad_norm 0 --use_ema", 1e39);
    blown_up("overflow, vae", DT_METHOD_VAE, "", 1e25);
    beyond_fp16("overflow, lora, beyond fp16", DT_METHOD_LORA, "lora", "transformer_blocks.0.attn.to_q.lora_A.weight");
    beyond_fp16("overflow, full, beyond fp16", DT_METHOD_FULL, DIT, "norm_out.linear.bias");
    backward("backward, full", DT_METHOD_FULL, "--outlier_limit 0");
    backward("backward, full, two batches a step", DT_METHOD_FULL, "--outlier_limit 0 --gradient_accumulation_steps 2");
    backward("backward, full, no clipping", DT_METHOD_FULL, "--outlier_limit 0 --max_grad_norm 0");
    backward("backward, lora, recompute, no clipping", DT_METHOD_LORA,
             "--outlier_limit 0 --gradient_checkpointing --max_grad_norm 0");
    backward("backward, lora, recompute", DT_METHOD_LORA, "--outlier_limit 0 --gradient_checkpointing");
}
