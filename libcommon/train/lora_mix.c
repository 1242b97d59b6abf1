/* lora_mix.c - several LoRAs at once: on a layer that more than one adapts they are one of the sum of their ranks,
 *
 *   sum_k s_k (x A_k^T) B_k^T  =  (x [A_1; A_2; ..]^T) [s_1 B_1, s_2 B_2, ..]^T
 */
#include <math.h>
#include <stdlib.h>
#include "train/lora.h"

char *dt_lora_split(const char *word, double *strength)
{
    const char *colon = strrchr(word, ':');
    char *end = NULL;
    *strength = colon ? strtod(colon + 1, &end) : 1;
    if (colon && end > colon + 1 && !*end && isfinite(*strength))
        return dt_sprintf("%.*s", (int)(colon - word), word);
    *strength = 1;
    return dt_strdup(word);
}

static int64_t place(const dt_lora *l, const char *path)
{
    const dt_adapter *a = l ? dt_lora_find(l, path) : NULL;
    return a ? a - l->v : -1;
}

static int mix_layer(dt_lora *out, const char *path, int64_t rank, dt_lora *const *v, const double *strength, int64_t n,
                     dt_err *err)
{
    int64_t at = 0, k = out->n;
    const dt_adapter *o = dt_lora_add(out, path, rank, 1.0);
    int64_t in = o->a->dims.d[1], rows = o->b->dims.d[0];
    float *a = out->values[2 * k] = dt_try_alloc((size_t)(rank * in) * sizeof(float));
    float *b = out->values[2 * k + 1] = dt_try_alloc((size_t)(rows * rank) * sizeof(float));
    if (!a || !b)
        return dt_err_set(err, DT_ENOMEM, "no memory to add up LoRAs");
    for (int64_t i = 0; i < n; i++) {
        int64_t p = place(v[i], path);
        if (p < 0)
            continue;
        int64_t r = v[i]->v[p].rank;
        const float *up = v[i]->values[2 * p + 1], s = (float)(strength[i] * v[i]->v[p].scale);
        memcpy(a + at * in, v[i]->values[2 * p], (size_t)(r * in) * sizeof(float));
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < r; x++)
                b[y * rank + at + x] = s * up[y * r + x];
        at += r;
    }
    return 0;
}

int dt_lora_mix(dt_lora **out, dt_lora **v, const double *strength, int64_t n, dt_err *err)
{
    int64_t first = -1, there = 0;
    int rc = 0;
    *out = NULL;
    for (int64_t i = n - 1; i >= 0; i--)
        if (v[i])
            first = i, there++;
    if (!there)
        return 0;
    if (there == 1) {
        for (int64_t i = 0; i < v[first]->n; i++)
            v[first]->v[i].scale *= strength[first];
        *out = v[first];
        v[first] = NULL;
        return 0;
    }
    const dt_strs *linears = &v[first]->base->linears;
    dt_lora *o = dt_lora_make(v[first]->base, v[first]->naming);
    o->values = dt_alloc((size_t)(2 * linears->n) * sizeof(*o->values));
    for (int64_t i = 0; i < linears->n && rc == 0; i++) {
        int64_t rank = 0;
        for (int64_t k = 0; k < n; k++) {
            const dt_adapter *a = v[k] ? dt_lora_find(v[k], linears->v[i]) : NULL;
            rank += a ? a->rank : 0;
        }
        if (rank)
            rc = mix_layer(o, linears->v[i], rank, v, strength, n, err);
        if (rank > o->rank)
            o->rank = rank, o->alpha = (double)rank;
    }
    if (rc < 0)
        dt_lora_free(&o);
    *out = o;
    return rc;
}
