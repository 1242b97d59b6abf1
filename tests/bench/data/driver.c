/* driver.c - the part of `make bench-data` that is timed here: work on one thread, for data_compare.py.
 *
 *     bench-data probe LIST             headers of the files named in LIST
 *     bench-data bucket SIDE LIST [OUT] decode and resize to the bucket of base SIDE, each said in a comment; OUT gets the pixels
 *     bench-data tokenize DIR LEN TEXT  captions, one a line
 *     bench-data load FILE              the tensors of a safetensors file as frozen parameters of their type, as dt-train does, and
 *                                       reads all of them once; printed is also when they were ready
 *     bench-data copy FILE              the same as dt-train does with those that it trains
 *     bench-data pictures DIR N SIDE    writes N square pictures, all different, and metadata.jsonl: the data of scale.sh
 * Prints one line: seconds, then what was done, for the caller to check that it is the same work. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/file.h"
#include "base/mem.h"
#include "data/bucket.h"
#include "data/media.h"
#include "graph/device.h"
#include "tensor/params.h"
#include "text/tokenizer.h"

enum { FILE_MAX = 256 << 20 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static int lines(dt_strs *s, const char *path, dt_err *err)
{
    char *text;
    size_t bytes;
    int rc = dt_file_read(&text, &bytes, path, FILE_MAX, err);
    if (rc == 0) {
        dt_strs_split(s, text, '\n');
        free(text);
    }
    return rc;
}

static int probe(const dt_strs *s, dt_err *err)
{
    int64_t px = 0;
    double t = now();
    for (int64_t i = 0; i < s->n; i++) {
        dt_image_info info;
        int rc = dt_image_probe(&info, s->v[i], NULL, err);
        if (rc < 0)
            return rc;
        px += (int64_t)info.w * info.h;
    }
    printf("%.6f %lld\n", now() - t, (long long)px);
    return 0;
}

static int bucket_one(dt_image *out, const char *path, int side, dt_err *err)
{
    dt_image_info info;
    dt_image im;
    int rc = dt_image_probe(&info, path, NULL, err);
    if (rc < 0)
        return rc;
    dt_size to = dt_bucket_size(&dt_aspect_512[dt_bucket_closest(info.w, info.h)], side, 1, 16);
    dt_fit fit = dt_fit_cover(info.w, info.h, to);
    if ((rc = dt_image_read(&im, path, NULL, err)) < 0)
        return rc;
    rc = dt_image_resize(out, &im, fit.w, fit.h, fit.x, fit.y, to.w, to.h, err);
    dt_image_release(&im);
    if (rc == 0)
        printf("# %d %d %d %d %d %d\n", fit.w, fit.h, fit.x, fit.y, to.w, to.h);
    return rc;
}

static int bucket(const dt_strs *s, int side, const char *path, dt_err *err)
{
    int64_t bytes = 0;
    FILE *f = path ? fopen(path, "wb") : NULL;
    double t = now();
    for (int64_t i = 0; i < s->n; i++) {
        dt_image im;
        int rc = bucket_one(&im, s->v[i], side, err);
        if (rc < 0)
            return rc;
        if (f)
            fwrite(im.rgb, 3, (size_t)im.w * im.h, f);
        bytes += 3ll * im.w * im.h;
        dt_image_release(&im);
    }
    printf("%.6f %lld\n", now() - t, (long long)bytes);
    return f && fclose(f) ? dt_err_sys(err, DT_EIO, "%s", path) : 0;
}

static int tokenize(const char *dir, int64_t len, const dt_strs *s, dt_err *err)
{
    dt_tokenizer *tok;
    int64_t n = 0, sum = 0;
    int32_t *ids = dt_alloc(len * sizeof *ids);
    int rc = dt_tokenizer_open(&tok, dir, err);
    if (rc < 0)
        return rc;
    double t = now();
    for (int64_t i = 0; i < s->n; i++) {
        int64_t k = dt_tokenize(tok, s->v[i], len, false, ids, err);
        if (k < 0)
            return k;
        n += k;
        for (int64_t j = 0; j < k; j++)
            sum += ids[j] * (j + 1);
    }
    printf("%.6f %lld %lld\n", now() - t, (long long)n, (long long)sum);
    dt_tokenizer_close(&tok);
    free(ids);
    return 0;
}

static uint64_t add_up(const void *data, int64_t n)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t v;
        memcpy(&v, (const char *)data + 8 * i, 8);
        sum += v;
    }
    return sum;
}

static int load(const char *path, bool copy, dt_err *err)
{
    dt_device *dev = NULL;
    dt_st *st = NULL;
    dt_params *p = dt_params_new("bench");
    int rc;
    double t = now();
    if ((rc = dt_cpu_open(&dev, err)) < 0 || (rc = dt_st_open(&st, path, err)) < 0)
        return rc;
    for (int64_t i = 0; i < dt_st_count(st); i++)
        dt_params_declare(p, dt_st_at(st, i)->name, dt_st_at(st, i)->dims, DT_INIT_ZERO, 0);
    dt_dtype type = dt_st_at(st, 0)->dtype;
    if (!copy)
        rc = dt_params_place(p, &st, NULL, NULL, dev, type, false, err);
    if (rc == 0 && (rc = dt_params_alloc(p, dev, type, 0, err)) == 0)
        rc = dt_params_load(p, copy ? st : p->file, NULL, NULL, err);
    double ready = now() - t;
    uint64_t sum = 0;                   /* of all bytes, by eight, which the caller can check */
    for (int64_t i = 0; rc == 0 && i < p->n; i++)
        sum += add_up(p->v[i]->w, p->v[i]->numel * (int64_t)dt_dtype_size(type) / 8);
    printf("%.6f %.6f %llu\n", now() - t, ready, (unsigned long long)sum);
    dt_st_close(&st);
    dt_params_free(&p);
    dt_device_close(&dev);
    return rc;
}

static int pictures(const char *dir, int64_t n, int side, dt_err *err)
{
    dt_image im = { 0 };
    char *list = dt_path_join(dir, "metadata.jsonl");
    FILE *meta = fopen(list, "w");
    double t = now();
    int rc = meta ? dt_image_alloc(&im, side, side, err) : dt_err_sys(err, DT_EIO, "%s", list);
    for (int64_t i = 0; i < n && rc == 0; i++) {
        char *name = dt_sprintf("%lld.png", (long long)i), *path = dt_path_join(dir, name);
        for (int k = 0; k < side * side * 3; k++)
            im.rgb[k] = k / 97 * (i % 256) + (k % 3 == 0 ? i >> 8 & 255 : i >> 16);
        FILE *f = fopen(path, "wb");
        rc = f ? dt_png_put(f, &im, NULL, 0, err) : dt_err_sys(err, DT_EIO, "%s", path);
        fprintf(meta, "{\"file_path\": \"%s\", \"text\": \"picture number %lld of a set\"}\n", name, (long long)i);
        if (f)
            fclose(f);
        free(path);
        free(name);
    }
    printf("%.6f %lld\n", now() - t, (long long)n);
    if (meta)
        fclose(meta);
    free(list);
    dt_image_release(&im);
    return rc;
}

int main(int argc, char **argv)
{
    dt_err err = { 0 };
    dt_strs s = { 0 };
    int rc = DT_EUSAGE;
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "probe") && argc == 3 && (rc = lines(&s, argv[2], &err)) == 0)
        rc = probe(&s, &err);
    else if (!strcmp(what, "bucket") && argc >= 4 && (rc = lines(&s, argv[3], &err)) == 0)
        rc = bucket(&s, atoi(argv[2]), argv[4], &err);
    else if (!strcmp(what, "tokenize") && argc == 5 && (rc = lines(&s, argv[4], &err)) == 0)
        rc = tokenize(argv[2], atoi(argv[3]), &s, &err);
    else if ((!strcmp(what, "load") || !strcmp(what, "copy")) && argc == 3)
        rc = load(argv[2], *what == 'c', &err);
    else if (!strcmp(what, "pictures") && argc == 5)
        rc = pictures(argv[2], atoll(argv[3]), atoi(argv[4]), &err);
    dt_strs_release(&s);
    if (rc < 0)
        fprintf(stderr, "bench-data: %s\n", err.code ? err.msg : "see the head of driver.c");
    return rc < 0;
}
