/* samples.h - the files of validation samples, output_dir/samples/step-N-prompt-I.png, and the sheet of them,
 * output_dir/samples.png.  The sheet is drawn from the files, so that a resumed run continues it. */
#ifndef DT_TRAIN_SAMPLES_H
#define DT_TRAIN_SAMPLES_H
#include "train/train_opts.h"

typedef struct dt_samples {
    const dt_train_opts *o;         /* borrowed: prompts, output_dir and what the sheet's subtitle says */
    int64_t seed, side_px;
    char   *dir;                    /* output_dir/samples; owned by the caller */
} dt_samples;

char *dt_samples_path(const dt_samples *s, int64_t step, int64_t prompt);   /* caller frees */
/* Makes the folder, and removes samples of this step and of later ones: another run's.  DT_EIO. */
int   dt_samples_drop_later(const dt_samples *s, int64_t step, dt_err *err);
/* Columns are prompts, rows are steps: the first, the last, and some evenly between. */
int   dt_samples_draw(const dt_samples *s, dt_err *err);
/* Memory that drawing takes when there are samples of `rows` steps, one sample's pixels included. */
int   dt_samples_bytes(const dt_samples *s, int64_t rows, int64_t *bytes, dt_err *err);

#endif
