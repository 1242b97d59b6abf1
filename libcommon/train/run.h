/* run.h - a whole training run from its options: plan, cache, model, memory plan, resume, training, results. */
#ifndef DT_TRAIN_RUN_H
#define DT_TRAIN_RUN_H
#include "data/cache.h"
#include "train/loader.h"
#include "train/train_opts.h"
#include "train/trainer.h"

typedef struct dt_ui {                                  /* the library does not print */
    void *ctx;
    void (*say)(void *ctx, bool warning, const char *line);
    void (*out)(void *ctx, const char *text);           /* the memory plan */
    const volatile int *stop;                           /* the number of a signal, or 0 */
    volatile int *save_now;                             /* set by a signal; cleared when it is done */
    const char *bin_dir;                                /* where the sibling tools are */
    int argc;                                           /* the command line as typed, for run.json; argv[1] is the */
    char *const *argv;                                  /* command */
} dt_ui;

/* 0 done, 1 done with some items skipped, < 0 error. */
int dt_train_run(dt_train_opts *o, const dt_ui *ui, dt_err *err);

#endif
