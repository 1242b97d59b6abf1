/* params, device, and the loops over flat ranges on the CPU. */
#include <math.h>
#include <omp.h>
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
#include "graph/device.h"
#include "tensor/params.h"
#include "tests/unit/scratch.h"

static dt_device *cpu;

static int open_cpu(void **state)
{
    (void)state;
    return dt_device_open(&cpu, "cpu", NULL);
}

static int close_cpu(void **state)
{
    (void)state;
    dt_device_close(&cpu);
    return cpu != NULL;
}

static dt_params *small(void)
{
    dt_params *p = dt_params_new("net");
    dt_params_declare(p, "a.weight", DT_DIMS(300, 200), DT_INIT_FAN_IN, 0);
    dt_params_declare(p, "a.bias", DT_DIMS(300), DT_INIT_FAN_IN, 200);
    dt_params_declare(p, "n.weight", DT_DIMS(7), DT_INIT_ONE, 0);
    dt_params_declare(p, "n.bias", DT_DIMS(7), DT_INIT_ZERO, 0);
    dt_params_declare(p, "e.weight", DT_DIMS(500, 100), DT_INIT_NORMAL, 0.02);
    return p;
}

static void declare(void **state)
{
    (void)state;
    dt_params *p = small();
    assert_int_equal(p->n, 5);
    dt_param *q = dt_params_find(p, "n.bias");
    assert_true(q && q->index == 3 && q->numel == 7);
    assert_ptr_equal(dt_params_declare(p, "n.bias", DT_DIMS(7), DT_INIT_ZERO, 0), q);
    assert_null(dt_params_declare(p, "n.bias", DT_DIMS(8), DT_INIT_ZERO, 0));
    assert_null(dt_params_declare(p, "n.bias", DT_DIMS(7, 1), DT_INIT_ZERO, 0));
    assert_null(dt_params_find(p, "n"));
    assert_int_equal(p->n, 5);
    for (int i = 0; i < 3; i++) {
        dt_params_add_linear(p, "a");
        dt_params_add_linear(p, "b.c");
    }
    assert_int_equal(p->linears.n, 2);
    assert_string_equal(p->linears.v[1], "b.c");
    char name[32];
    for (int i = 0; i < 2000; i++) {
        snprintf(name, sizeof(name), "x.%d.w", i);
        dt_params_declare(p, name, DT_DIMS(2), DT_INIT_ZERO, 0);
    }
    for (int i = 0; i < 2000; i++) {
        snprintf(name, sizeof(name), "x.%d.w", i);
        assert_int_equal(dt_params_find(p, name)->index, 5 + i);
    }
    dt_params_free(&p);
    assert_null(p);
}

static void layout(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        dt_params *p = small();
        dt_dtype t = bf16 ? DT_BF16 : DT_F32;
        p->v[1]->trainable = p->v[4]->trainable = true;
        assert_int_equal(dt_params_alloc(p, cpu, t, DT_PARAMS_EMA, NULL), 0);
        assert_int_equal(p->n_train, 320 + 50016);
        assert_int_equal(p->n_frozen, 60000 + 32 + 32);
        dt_params_bytes b = dt_params_size(p, t, DT_PARAMS_EMA);
        assert_int_equal(b.weights, (p->n_train + p->n_frozen) * (bf16 ? 2 : 4));
        assert_int_equal(b.master, bf16 ? p->n_train * 4 : 0);
        assert_true(b.grads == p->n_train * 4 && b.moments == p->n_train * 8 && b.ema == p->n_train * 4);
        assert_int_equal(p->v[4]->off, 320);
        assert_ptr_equal(p->v[4]->grad, p->grad + 320);
        assert_ptr_equal(p->v[4]->v, p->v2 + 320);
        assert_true((p->master == p->w_train) == !bf16);
        assert_null(p->v[0]->grad);
        assert_null(p->v[0]->master);
        for (int64_t i = 0; i < p->n; i++)
            assert_int_equal((uintptr_t)p->v[i]->w % 64, 0);
        for (int64_t i = 0; i < p->n_train; i++)
            assert_true(p->grad[i] == 0 && p->m[i] == 0 && p->v2[i] == 0 && p->ema[i] == 0);
        dt_params_free(&p);
    }
    dt_params *p = small();
    p->v[0]->trainable = true;
    assert_int_equal(dt_params_alloc(p, cpu, DT_BF16, DT_PARAMS_NO_OPTIM, NULL), 0);
    assert_true(p->grad && !p->m && !p->v2 && !p->master && !p->ema);
    dt_params_free(&p);

    p = small();
    dt_params_declare(p, "big", DT_DIMS(1 << 20, 1 << 20, 1 << 10), DT_INIT_ZERO, 0);
    dt_err e = { 0 };
    assert_int_equal(dt_params_alloc(p, cpu, DT_F32, 0, &e), DT_ENOMEM);
    assert_non_null(strstr(e.msg, "net: "));
    assert_non_null(strstr(e.msg, "GiB of weights do not fit on cpu"));
    assert_int_equal(dt_params_init(p, 1, &e), DT_ENOMEM);
    assert_string_equal(e.msg, "no memory for fresh values of 'big'");
    dt_params_free(&p);
}

static void statistics(const float *x, int64_t n, double *mean, double *sd, double *most)
{
    double s = 0, s2 = 0;
    *most = 0;
    for (int64_t i = 0; i < n; i++) {
        s += x[i];
        s2 += (double)x[i] * x[i];
        *most = fmax(*most, fabs(x[i]));
    }
    *mean = s / (double)n;
    *sd = sqrt(s2 / (double)n - *mean * *mean);
}

static void init(void **state)
{
    (void)state;
    dt_params *p = small();
    for (int i = 0; i < 5; i++)
        p->v[i]->trainable = i != 2;
    assert_int_equal(dt_params_alloc(p, cpu, DT_F32, DT_PARAMS_EMA, NULL), 0);
    dt_params_init(p, 1234, NULL);
    double mean, sd, most, bound = 1 / sqrt(200);
    statistics(p->v[0]->w, p->v[0]->numel, &mean, &sd, &most);
    assert_true(fabs(mean) < 4 * bound / sqrt(3 * 60000.) && fabs(sd * sqrt(3) / bound - 1) < 0.01);
    assert_true(most <= bound && most > 0.999 * bound);
    statistics(p->v[1]->w, 300, &mean, &sd, &most);
    assert_true(fabs(sd * sqrt(3) / bound - 1) < 0.1 && most <= bound);
    statistics(p->v[4]->w, 50000, &mean, &sd, &most);
    assert_true(fabs(mean) < 4 * 0.02 / sqrt(50000) && fabs(sd / 0.02 - 1) < 0.015 && most > 0.06);
    for (int i = 0; i < 7; i++)
        assert_true(((float *)p->v[2]->w)[i] == 1 && ((float *)p->v[3]->w)[i] == 0);
    assert_memory_equal(p->v[0]->ema, p->v[0]->w, 4 * 60000);
    assert_null(p->v[2]->ema);

    /* Only seed and name matter: in another company, order, dtype and trainability the draws are the same. */
    dt_params *q = dt_params_new("other");
    dt_params_declare(q, "z", DT_DIMS(5), DT_INIT_FAN_IN, 0);
    dt_param *w = dt_params_declare(q, "a.weight", DT_DIMS(300, 200), DT_INIT_FAN_IN, 0);
    w->trainable = true;
    assert_int_equal(dt_params_alloc(q, cpu, DT_BF16, 0, NULL), 0);
    dt_params_init(q, 1234, NULL);
    assert_memory_equal(w->master, p->v[0]->w, 4 * 60000);
    for (int i = 0; i < 60000; i++)
        assert_int_equal(((uint16_t *)w->w)[i], dt_f32_to_bf16(w->master[i]));
    dt_params_init(q, 1235, NULL);
    assert_memory_not_equal(w->master, p->v[0]->w, 4 * 60000);
    dt_params_free(&p);
    dt_params_free(&q);
}

/* a.weight from fp16, everything else from bf16 and fp32 */
static void write_net(const char *path, int64_t bias)
{
    static uint16_t h[60000], b[300];
    static float f[50000];
    for (int i = 0; i < 60000; i++)
        h[i] = dt_f32_to_f16((float)(i % 2000) / 8);
    for (int i = 0; i < 300; i++)
        b[i] = dt_f32_to_bf16((float)-i);
    for (int i = 0; i < 50000; i++)
        f[i] = (float)i / 3;
    const dt_st_entry e[] = {
        { .name = "a.weight", .dtype = DT_F16, .dims = DT_DIMS(300, 200), .data = h },
        { .name = "a.bias", .dtype = DT_BF16, .dims = DT_DIMS(bias), .data = b },
        { .name = "n.weight", .dtype = DT_F32, .dims = DT_DIMS(7), .data = f },
        { .name = "n.bias", .dtype = DT_F32, .dims = DT_DIMS(7), .data = f },
        { .name = "e.weight", .dtype = DT_F32, .dims = DT_DIMS(500, 100), .data = f },
    };
    assert_int_equal(dt_st_write(path, e, 5, NULL, NULL), 0);
}

static void load_save(void **state)
{
    char *path = dt_path_join(*state, "net.safetensors"), *again = dt_path_join(*state, "again.safetensors");
    write_net(path, 300);
    dt_st *st;
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    dt_params *p = small();
    p->v[4]->trainable = true;
    assert_int_equal(dt_params_alloc(p, cpu, DT_BF16, DT_PARAMS_EMA, NULL), 0);
    assert_int_equal(dt_params_load(p, st, NULL, NULL, NULL), 0);
    for (int i = 0; i < 60000; i++)
        assert_int_equal(((uint16_t *)p->v[0]->w)[i], dt_f32_to_bf16((float)(i % 2000) / 8));
    for (int i = 0; i < 50000; i++) {
        float x = (float)i / 3;
        assert_true(p->v[4]->master[i] == x && p->v[4]->ema[i] == x);
        assert_int_equal(((uint16_t *)p->v[4]->w)[i], dt_f32_to_bf16(x));
        p->v[4]->master[i] = -x;
    }
    dt_params_sync(p);
    assert_int_equal(((uint16_t *)p->v[4]->w)[999], dt_f32_to_bf16(-333));
    dt_st_close(&st);

    /* master is what is saved, in full; or the average */
    for (int ema = 0; ema < 2; ema++) {
        assert_int_equal(dt_params_save(p, again, DT_F32, ema, NULL, NULL), 0);
        assert_int_equal(dt_st_open(&st, again, NULL), 0);
        assert_true(((float *)dt_st_find(st, "e.weight")->data)[1000] == (ema ? 1000.f : -1000.f) / 3);
        assert_true(((float *)dt_st_find(st, "a.bias")->data)[17] == -17);
        dt_st_close(&st);
    }
    assert_int_equal(dt_params_save(p, again, DT_BF16, false, NULL, NULL), 0);
    assert_int_equal(dt_st_open(&st, again, NULL), 0);
    assert_int_equal(dt_st_find(st, "e.weight")->dtype, DT_BF16);
    assert_memory_equal(dt_st_find(st, "e.weight")->data, p->v[4]->w, 100000);
    dt_st_close(&st);
    dt_params_free(&p);
    free(path);
    free(again);
}

static void load_errors(void **state)
{
    char *path = dt_path_join(*state, "net.safetensors");
    write_net(path, 299);
    dt_st *st;
    dt_err e = { 0 };
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    dt_params *p = small();
    assert_int_equal(dt_params_alloc(p, cpu, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_params_load(p, st, NULL, NULL, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, path));
    assert_non_null(strstr(e.msg, "tensor 'a.bias' is [299], [300] was expected for 'a.bias'"));
    dt_params_free(&p);
    p = dt_params_new("net");
    dt_params_declare(p, "a.gamma", DT_DIMS(3), DT_INIT_ZERO, 0);
    assert_int_equal(dt_params_alloc(p, cpu, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_params_load(p, st, NULL, NULL, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, path));
    assert_non_null(strstr(e.msg, "no tensor 'a.gamma'"));
    dt_params_free(&p);
    dt_st_close(&st);

    const int32_t ints[3] = { 0 };
    const dt_st_entry i = { .name = "a.gamma", .dtype = DT_I32, .dims = DT_DIMS(3), .data = ints };
    assert_int_equal(dt_st_write(path, &i, 1, NULL, NULL), 0);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    p = dt_params_new("net");
    dt_params_declare(p, "a.gamma", DT_DIMS(3), DT_INIT_ZERO, 0);
    assert_int_equal(dt_params_alloc(p, cpu, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_params_load(p, st, NULL, NULL, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, "of type I32"));
    dt_params_free(&p);
    dt_st_close(&st);
    free(path);
}

/* Rows 1..2 then row 0 of "w", for a parameter called "r". */
static int swapped(const dt_st *st, const dt_param *q, dt_st_entry *out, void *ctx, dt_err *err)
{
    (void)q;
    int rc = dt_st_need(st, "w", &out[0], err);
    if (rc < 0)
        return rc;
    out[1] = out[0];
    if ((rc = dt_st_rows(&out[0], 1, 2, err)) < 0 || (rc = dt_st_rows(&out[1], 0, *(int *)ctx, err)) < 0)
        return rc;
    return 2;
}

static void rename_pieces(void **state)
{
    (void)state;
    float w[6] = { 1, 2, 3, 4, 5, 6 };
    const dt_st_entry e = { .name = "w", .dtype = DT_F32, .dims = DT_DIMS(3, 2), .data = w };
    void *mem;
    size_t n;
    dt_st *st;
    assert_int_equal(dt_st_pack(&mem, &n, &e, 1, NULL, NULL), 0);
    assert_int_equal(dt_st_open_mem(&st, mem, n, "mem", NULL), 0);
    dt_params *p = dt_params_new("net");
    dt_param *r = dt_params_declare(p, "r", DT_DIMS(3, 2), DT_INIT_ZERO, 0);
    assert_int_equal(dt_params_alloc(p, cpu, DT_F32, 0, NULL), 0);
    assert_int_equal(dt_params_load(p, st, swapped, &(int){ 1 }, NULL), 0);
    assert_memory_equal(r->w, ((float[]){ 3, 4, 5, 6, 1, 2 }), 24);
    dt_err err = { 0 };
    assert_int_equal(dt_params_load(p, st, swapped, &(int){ 2 }, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "mem: tensor 'w'"));
    dt_params_free(&p);
    dt_st_close(&st);
    free(mem);
}

/* --- parameters that stay in their file --- */

/* A file with "f32" [4, 8], "bf16" [4, 8], "rows" [8, 8] of which a rename takes two halves, "bias" [8].
 * The header's length modulo 8 is `odd`, so that data is as badly aligned as the format allows. */
static void write_places(const char *path, int odd)
{
    char head[600];
    const char *fmt = "{\"rows\":{\"dtype\":\"F32\",\"shape\":[8,8],\"data_offsets\":[0,256]},"
                      "\"f32\":{\"dtype\":\"F32\",\"shape\":[4,8],\"data_offsets\":[256,384]},"
                      "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[4,8],\"data_offsets\":[384,448]},"
                      "\"bias\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[448,480]}}";
    int n = snprintf(head, sizeof(head), "%s", fmt);
    while (n % 8 != odd)
        head[n++] = ' ';
    uint64_t len = (uint64_t)n;
    unsigned char data[480];
    for (int i = 0; i < 480; i += 4)
        memcpy(data + i, &(float){ (float)i }, 4);
    FILE *f = fopen(path, "w");
    assert_int_equal(fwrite(&len, 8, 1, f) + fwrite(head, (size_t)n, 1, f) + fwrite(data, sizeof(data), 1, f), 3);
    fclose(f);
}

/* "halves": the rows in order; "turned": the last ones first; "tail": the last four. */
static int take_rows(const dt_st *st, const dt_param *q, dt_st_entry *out, void *ctx, dt_err *err)
{
    (void)ctx;
    bool tail = !strcmp(q->name, "tail"), turned = !strcmp(q->name, "turned"), whole = !tail && !turned &&
                strcmp(q->name, "halves");
    int rc = dt_st_need(st, whole ? q->name : "rows", &out[0], err);
    if (rc < 0 || whole)
        return rc < 0 ? rc : 1;
    out[1] = out[0];
    if ((rc = dt_st_rows(&out[0], tail || turned ? 4 : 0, 4, err)) == 0 && !tail)
        rc = dt_st_rows(&out[1], turned ? 0 : 4, 4, err);
    return rc < 0 ? rc : tail ? 1 : 2;
}

static dt_params *places(const char *path, dt_dtype t, bool fetch, int train)
{
    dt_params *p = dt_params_new("net");
    dt_st *st;
    dt_params_declare(p, "f32", DT_DIMS(4, 8), DT_INIT_ZERO, 0);
    dt_params_declare(p, "bf16", DT_DIMS(4, 8), DT_INIT_ZERO, 0);
    dt_params_declare(p, "halves", DT_DIMS(8, 8), DT_INIT_ZERO, 0);
    dt_params_declare(p, "turned", DT_DIMS(8, 8), DT_INIT_ZERO, 0);
    dt_params_declare(p, "tail", DT_DIMS(4, 8), DT_INIT_ZERO, 0);
    dt_params_declare(p, "bias", DT_DIMS(8), DT_INIT_ZERO, 0);
    if (train >= 0)
        p->v[train]->trainable = true;
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    assert_int_equal(dt_params_place(p, &st, take_rows, NULL, cpu, t, fetch, NULL), 0);
    assert_null(st);
    for (int64_t i = 0; i < p->n; i++)
        p->v[i]->read = true;
    assert_int_equal(dt_params_alloc(p, cpu, t, 0, NULL), 0);
    assert_int_equal(dt_params_load(p, p->file, take_rows, NULL, NULL), 0);
    dt_params_loaded(p);
    return p;
}

/* One letter for each: b in a block, f in the file, x fetched. */
static void placed(const char *path, dt_dtype t, bool fetch, int train, const char *want)
{
    dt_params *p = places(path, t, fetch, train), *q = dt_params_new("copy");
    dt_st *st;
    char got[8] = { 0 };
    float a[64], b[64];
    for (int64_t i = 0; i < p->n; i++) {
        got[i] = "bfx"[p->v[i]->place];
        dt_params_declare(q, p->v[i]->name, p->v[i]->dims, DT_INIT_ZERO, 0);
    }
    assert_string_equal(got, want);
    assert_int_equal(p->file != NULL, strpbrk(want, "fx") != NULL);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    assert_int_equal(dt_params_alloc(q, cpu, t, 0, NULL), 0);
    assert_int_equal(dt_params_load(q, st, take_rows, NULL, NULL), 0);
    for (int64_t i = 0; i < p->n; i++) {            /* the same numbers as copies have, also row by row */
        dt_param *u = p->v[i];
        assert_int_equal(dt_params_read(p, u, false, a, NULL) | dt_params_read(q, q->v[i], false, b, NULL), 0);
        if (u->place == DT_FETCHED)                 /* which rounds once less */
            for (int64_t k = 0; k < u->numel && t == DT_BF16; k++)
                a[k] = dt_bf16_to_f32(dt_f32_to_bf16(a[k]));
        assert_memory_equal(a, b, u->numel * 4);
        for (int64_t r = 0; u->place != DT_IN_BLOCK && r < u->dims.d[0]; r++) {
            char row[32];
            dt_param_row(u, r, row, t);
            assert_memory_equal(row, (char *)q->v[i]->w + (size_t)(r * 8) * dt_dtype_size(t), 8 * dt_dtype_size(t));
        }
    }
    dt_params_free(&p);
    dt_params_free(&q);
    dt_st_close(&st);
}

static void place(void **state)
{
    char *path = dt_path_join(*state, "net.safetensors");
    /* f32, bf16, halves that follow each other, turned ones, rows of a tensor, a vector */
    write_places(path, 0);
    placed(path, DT_F32, false, -1, "fbfbfb");
    placed(path, DT_F32, true, -1, "fxfxfb");
    placed(path, DT_F32, true, 0, "bxfxfb");        /* what trains is written to */
    placed(path, DT_BF16, false, -1, "bfbbbb");
    placed(path, DT_BF16, true, -1, "xfxxxb");
    placed(path, DT_F16, false, -1, "bbbbbb");
    write_places(path, 4);                          /* whole numbers of both types begin here, */
    placed(path, DT_F32, false, -1, "fbfbfb");
    write_places(path, 2);                          /* of the smaller one, */
    placed(path, DT_F32, false, -1, "bbbbbb");
    placed(path, DT_F32, true, -1, "xxxxxb");
    placed(path, DT_BF16, false, -1, "bfbbbb");
    write_places(path, 1);                          /* of none */
    placed(path, DT_BF16, false, -1, "bbbbbb");
    placed(path, DT_F32, true, -1, "xxxxxb");
    free(path);
}

static void place_memory(void **state)
{
    char *path = dt_path_join(*state, "net.safetensors");
    write_places(path, 0);
    dt_params *p = places(path, DT_F32, false, -1);
    dt_param *q = dt_params_find(p, "f32");
    dt_err e = { 0 };
    float v[32] = { 0 };
    assert_int_equal(dt_params_in_file(p), 128 + 256 + 128);
    q->read = false;
    assert_int_equal(dt_params_in_file(p), 256 + 128);
    /* and what has memory of its own */
    assert_int_equal(dt_params_size(p, DT_F32, 0).weights, 256 + 128 + 4 * (32 + 64 + 32));
    assert_int_equal(dt_params_write(p, q, v, &e), DT_EFAIL);
    assert_non_null(strstr(e.msg, "'f32' lies in its file"));

    /* The file may be replaced, but what is in it may not change. */
    char *other = dt_path_join(*state, "other");
    assert_int_equal(dt_params_check(p, NULL), 0);
    write_places(other, 4);
    assert_int_equal(rename(other, path), 0);
    assert_int_equal(dt_params_check(p, NULL), 0);
    assert_true(((float *)q->w)[0] == 256);
    dt_params_free(&p);
    p = places(path, DT_F32, false, -1);
    FILE *f = fopen(path, "r+");
    fputc('x', f);
    fclose(f);
    assert_int_equal(dt_params_check(p, &e), DT_EDATA);
    assert_non_null(strstr(e.msg, path) && strstr(e.msg, "was written to while it was in use"));
    dt_params_free(&p);
    write_places(path, 0);
    p = places(path, DT_F32, false, -1);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(dt_params_check(p, NULL), DT_EDATA);
    assert_true(dt_params_give_back(p) && !dt_params_give_back(p));
    dt_params_free(&p);
    free(path);
    free(other);
}

/* A row of the widest type, longer than what is converted at a time. */
static void long_rows(void **state)
{
    enum { N = 3000 };
    double values[2 * N];
    float row[N];
    for (int i = 0; i < 2 * N; i++)
        values[i] = i * 0.5;
    const dt_st_entry w = { .name = "w", .dtype = DT_F64, .dims = DT_DIMS(2, N), .data = values };
    char *path = dt_path_join(*state, "w.safetensors");
    dt_st *st;
    assert_int_equal(dt_st_write(path, &w, 1, NULL, NULL), 0);
    assert_int_equal(dt_st_open(&st, path, NULL), 0);
    dt_params *p = dt_params_new("net");
    dt_params_declare(p, "w", w.dims, DT_INIT_ZERO, 0);
    assert_int_equal(dt_params_place(p, &st, NULL, NULL, cpu, DT_F32, true, NULL), 0);
    assert_int_equal(p->v[0]->place, DT_FETCHED);
    dt_param_row(p->v[0], 1, row, DT_F32);
    for (int i = 0; i < N; i++)
        assert_true(row[i] == (float)values[N + i]);
    dt_params_free(&p);
    free(path);
}

/* What is beyond the range of the type that it is saved in is told, wherever it lies. */
static void save_beyond(void **state)
{
    static const float values[4] = { 1, 2, 3, 1e5f };
    const dt_st_entry w = { .name = "w", .dtype = DT_F32, .dims = DT_DIMS(2, 2), .data = values };
    char *path = dt_path_join(*state, "w.safetensors"), *out = dt_path_join(*state, "out.safetensors");
    assert_int_equal(dt_st_write(path, &w, 1, NULL, NULL), 0);
    for (int fetch = 0; fetch < 2; fetch++) {
        dt_params *p = dt_params_new("net");
        dt_st *st;
        dt_err e = { 0 };
        dt_params_declare(p, "w", w.dims, DT_INIT_ZERO, 0);
        assert_int_equal(dt_st_open(&st, path, NULL), 0);
        assert_int_equal(dt_params_place(p, &st, NULL, NULL, cpu, DT_BF16, fetch, NULL), 0);
        assert_int_equal(p->v[0]->place, fetch ? DT_FETCHED : DT_IN_BLOCK);
        assert_int_equal(dt_params_alloc(p, cpu, DT_BF16, 0, NULL), 0);
        assert_int_equal(dt_params_load(p, p->file, NULL, NULL, NULL), 0);
        assert_int_equal(dt_params_save(p, out, DT_F16, false, NULL, &e), DT_ENAN);
        assert_string_equal(e.msg, "'w' is not finite in F16, or beyond its range");
        assert_false(dt_exists(out));
        assert_int_equal(dt_params_save(p, out, DT_F32, false, NULL, NULL), 0);
        assert_int_equal(unlink(out), 0);
        dt_params_free(&p);
    }
    free(path);
    free(out);
}

static void devices(void **state)
{
    (void)state;
    dt_device *d = NULL;
    dt_err e = { 0 };
    assert_int_equal(dt_device_open(&d, "gpu", &e), DT_EUSAGE);
    assert_int_equal(dt_device_open(&d, "cuda:x", &e), DT_EUSAGE);
    assert_int_equal(dt_device_open(&d, "cuda:", &e), DT_EUSAGE);
    assert_int_equal(dt_device_open(&d, "cuda:1000000", &e), DT_EUSAGE);
    assert_non_null(strstr(e.msg, "'cuda:1000000' is none of cpu, cuda, cuda:N"));
    if (dt_device_open(&d, "cuda:999", &e) == 0)    /* no machine has so many */
        fail();
    assert_int_equal(e.code, DT_EFAIL);
    assert_null(d);
    assert_true(cpu->kind == DT_CPU && cpu->threads > 0 && cpu->mem_bytes > 1 << 20);
    assert_null(cpu->alloc(cpu, cpu->mem_bytes + 1));
    assert_null(cpu->alloc_params(cpu, cpu->mem_bytes + 1));
    for (int64_t n = 0, k = 0; n < 20 << 20; n = k % 2 ? n * 7 + 1 : n, k++) {
        char *b = k % 2 ? cpu->alloc_params(cpu, n) : cpu->alloc(cpu, n);
        assert_true(b && (uintptr_t)b % 256 == 0);
        cpu->zero(cpu, b, n);
        for (int64_t i = 0; i < n; i += 997)
            assert_int_equal(b[i], 0);
        cpu->free(cpu, b);
    }
}

/* The same bits whatever the number of threads, and right. */
static void sumsq(void **state)
{
    (void)state;
    enum { N = 1000003 };
    float *x = malloc(4 * N);
    long double want = 0;
    for (int i = 0; i < N; i++) {
        x[i] = (float)sin(i) * (i % 100 ? 1 : 1e4f);
        want += (long double)x[i] * x[i];
    }
    int threads = omp_get_max_threads();
    double first = cpu->flat->sumsq(cpu, x, N);
    assert_true(fabs(first / (double)want - 1) < 1e-13);
    for (int t = 1; t <= 5; t++) {
        omp_set_num_threads(t);
        assert_true(cpu->flat->sumsq(cpu, x, N) == first);
    }
    omp_set_num_threads(threads);
    x[N / 2] = INFINITY;
    assert_true(isinf(cpu->flat->sumsq(cpu, x, N)));
    x[N - 1] = NAN;
    assert_true(isnan(cpu->flat->sumsq(cpu, x, N)));
    assert_true(cpu->flat->sumsq(cpu, x, 0) == 0);
    free(x);
}

static void ema_convert(void **state)
{
    (void)state;
    enum { N = 200001 };
    float *e = malloc(4 * N), *w = malloc(4 * N);
    uint16_t *h = malloc(2 * N);
    for (int i = 0; i < N; i++)
        e[i] = 1, w[i] = (float)i;
    cpu->flat->ema(cpu, e, w, N, 0.75);
    cpu->flat->convert(cpu, h, DT_BF16, w, DT_F32, N);
    for (int i = 0; i < N; i++) {
        assert_true(fabsf(e[i] - (1 + 0.25f * ((float)i - 1))) <= 1e-6f * (float)i);
        assert_int_equal(h[i], dt_f32_to_bf16((float)i));
    }
    free(e);
    free(w);
    free(h);
}

/* fmt takes a string and two numbers, or one. */
static const float *tensor(const dt_st *st, const char *fmt, const char *c, int k, int i, int64_t *n)
{
    char name[64];
    snprintf(name, sizeof(name), fmt, c, k, i);
    const dt_st_entry *e = dt_st_find(st, name);
    assert_non_null(e);
    *n = dt_numel(e->dims);
    return e->data;
}

/* Ten steps of torch.optim.AdamW with clipping (tests/golden/schedule.py). */
static void adamw(void **state)
{
    (void)state;
    dt_st *st;
    dt_err err = { 0 };
    if (dt_st_open(&st, "tests/golden/adamw.safetensors", &err) < 0)
        fail_msg("%s", err.msg);
    cJSON *cases = cJSON_Parse(dt_st_meta(st, "cases")), *c;
    assert_int_equal(cJSON_GetArraySize(cases), 2);
    cJSON_ArrayForEach(c, cases) {
        double b1 = cJSON_GetArrayItem(cJSON_GetObjectItem(c, "betas"), 0)->valuedouble;
        double b2 = cJSON_GetArrayItem(cJSON_GetObjectItem(c, "betas"), 1)->valuedouble;
        double max = cJSON_GetObjectItem(c, "max_grad_norm")->valuedouble;
        char norms[64];
        snprintf(norms, sizeof(norms), "out.%s.norm", c->string);
        const float *norm = dt_st_find(st, norms)->data;
        float w[3][64], m[3][64] = { 0 }, v[3][64] = { 0 };
        int64_t n;
        for (int i = 0; i < 3; i++) {
            const float *x = tensor(st, "in.%s.w.%d", c->string, i, 0, &n);
            memcpy(w[i], x, 4 * (size_t)n);
        }
        for (int k = 0; k < 10; k++) {
            double sum = 0;
            for (int i = 0; i < 3; i++) {
                const float *g = tensor(st, "in.%s.grad.%d.%d", c->string, k, i, &n);
                sum += cpu->flat->sumsq(cpu, g, n);
            }
            assert_true(fabs(sqrt(sum) / norm[k] - 1) < 1e-6);
            dt_adamw a = {
                .lr = cJSON_GetObjectItem(c, "lr")->valuedouble, .beta1 = b1, .beta2 = b2,
                .eps = cJSON_GetObjectItem(c, "eps")->valuedouble,
                .weight_decay = cJSON_GetObjectItem(c, "weight_decay")->valuedouble,
                .bias1 = 1 - pow(b1, k + 1), .bias2 = 1 - pow(b2, k + 1),
                .grad_scale = fmin(1, max / (sqrt(sum) + 1e-6)),
            };
            for (int i = 0; i < 3; i++) {
                const float *g = tensor(st, "in.%s.grad.%d.%d", c->string, k, i, &n);
                cpu->flat->adamw(cpu, w[i], m[i], v[i], g, n, &a);
                const float *want = tensor(st, "out.%s.w.%d.%d", c->string, k, i, &n);
                for (int64_t j = 0; j < n; j++)
                    if (!(fabsf(w[i][j] - want[j]) <= 1e-6f * fmaxf(1, fabsf(want[j]))))
                        fail_msg("case %s step %d: %.9g, torch has %.9g", c->string, k, w[i][j], want[j]);
            }
        }
    }
    cJSON_Delete(cases);
    dt_st_close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(declare), cmocka_unit_test(layout), cmocka_unit_test(init), scratch_test(load_save),
        scratch_test(load_errors), cmocka_unit_test(rename_pieces), scratch_test(place),
        scratch_test(place_memory), scratch_test(long_rows), scratch_test(save_beyond),
        cmocka_unit_test(devices), cmocka_unit_test(sumsq),
        cmocka_unit_test(ema_convert), cmocka_unit_test(adamw),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("tensor/params", tests, open_cpu, close_cpu);
}
