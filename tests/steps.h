/* steps.h - a training run inside a test: set up as dt-train does it, stepped and looked into from here. */
#ifndef DT_TESTS_STEPS_H
#define DT_TESTS_STEPS_H
#include "train/run_int.h"

typedef struct steps {
    dt_train_opts o;
    dt_ui  ui;
    dt_job j;                       /* j.t is ready for dt_train */
    char  *line, *dir;
    bool   loud;
} steps;

/* Opens a run of two small pictures with `args` (words) and the options that all have; its output folder is empty. */
int  steps_open(steps *s, enum dt_method method, const char *args, dt_err *err);
void steps_close(steps *s);

/* One TAP result; what it is about, if it is of interest (an argument of the program is a part of it). */
bool steps_wanted(const char *name);
void steps_result(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void steps_moves(void);
void steps_nan(void);

#endif
