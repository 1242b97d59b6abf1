/* lora_merge.h - what is done to LoRA files without training: into another layout, or into the
 * weights they are on.  See dt-merge-shards(1) and dt-lora(5). */
#ifndef DT_TRAIN_LORA_MERGE_H
#define DT_TRAIN_LORA_MERGE_H
#include "graph/device.h"
#include "train/lora.h"

struct dt_merge_params {
    const char  *base;              /* model folder, folder of a transformer, or a file in either naming */
    const char  *out;               /* NAME.safetensors, or a folder like the base; one that is there is left alone */
    char *const *lora;              /* [n] paths */
    const double *strength;         /* [n] */
    int64_t      n;
    const volatile int *stop;
};

struct dt_merge_report {            /* release always */
    int64_t tensors, changed;
    dt_strs loras;                  /* lines for each, one for each network that it adapts */
    dt_strs left_out;               /* weights beside the merged ones that are not copied: they would be unmerged;
                                       folders deeper than a network's */
    bool    done;                   /* the folder is there, made of these files as they are: nothing was written */
};
void dt_merge_report_release(struct dt_merge_report *r);

/* Every LoRA must fit the base to the last tensor: one with a part for text encoders needs a model folder, and makes
 * one.  DT_EUSAGE: the folder is there and was made of something else.  DT_ENAN: a sum is not finite.
 * DT_ESIGNAL: stopped, nothing is written. */
int dt_lora_merge(const struct dt_merge_params *p, struct dt_merge_report *r, dt_err *err);

struct dt_convert_params {
    const char *in, *out;
    enum dt_lora_layout layout;
    int         dtype;              /* -1: the file's own, fp32 if it has several */
};

struct dt_convert_report {
    int64_t  tensors, layers, rank; /* tensors of the input; rank and alpha of the largest layer */
    double   alpha;
    dt_dtype dtype;
    int64_t  rounded;               /* dt_lora_rounds */
    bool     narrowed;              /* by the dtype */
};

/* Into another layout.  Values are the same bits unless the report says otherwise. */
int dt_lora_convert(const struct dt_convert_params *p, struct dt_convert_report *r, dt_err *err);

#endif
