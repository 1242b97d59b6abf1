/* gold.h - reading golden files (their form: common.py) and reporting in TAP.  A file that is not as expected and an
 * error of the library end the program. */
#ifndef DT_TESTS_GOLD_H
#define DT_TESTS_GOLD_H
#include "base/json.h"
#include "base/mem.h"
#include "graph/graph.h"
#include "tests/tolerance.h"

typedef struct gold {
    const char *name;               /* "flux_b" */
    dt_st *st, *weights;            /* weights: another file if this one's metadata says so, else st */
    cJSON *config;                  /* NULL if it has none */
} gold;

void gold_open(gold *f, const char *name);
void gold_close(gold *f);
char *gold_path(const char *name);                          /* in tests/golden or $GOLDEN_DIR; caller frees */

/* The entry of this name, or the end of the program. */
const dt_st_entry *gold_entry(const gold *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
float  *gold_f32(const gold *f, const char *name);          /* all its elements; caller frees */
cJSON  *gold_json(const gold *f, const char *key);          /* metadata as JSON; caller deletes */
int64_t gold_int(const gold *f, const char *key);           /* metadata as a number */
void    gold_load(const dt_st *st, dt_params *p, const char *prefix);   /* parameters from PREFIX + name */

/* [B, C, H, W] -> [B, H, W, C], or back. */
void gold_channels_last(float *dst, const float *src, dt_dims torch_dims, bool back);

void must(int rc, const dt_err *err);                       /* ends the program with err's line if rc < 0 */

/* --- a graph that is planned and can be run --- */
typedef struct job {
    dt_device *dev;
    dt_graph  *g;                   /* owned */
    dt_plan   *plan;
    void      *arena;
} job;

void job_start(job *j, dt_device *dev, dt_graph *g, const char *what);  /* takes g; an error in it ends the program */
void job_stop(job *j);
void job_write(job *j, const char *input, const float *values);         /* converted to the input's dtype */
void job_read(job *j, const char *name, float *values);
void job_run(job *j);
float job_scalar(job *j, const char *name);

/* --- results --- */
typedef struct tally {              /* of the comparisons behind one TAP line */
    int    n, bad;
    double worst;                   /* largest error as a share of its tolerance */
    char   where[128];
    char   notes[1000];             /* the first failures, as TAP comments */
} tally;

/* |a - ref| / max(|ref|, floor) against tol.  `floor` keeps values that are zero in exact arithmetic from mattering. */
void tally_add(tally *t, const char *what, const float *a, const float *ref, int64_t n, double floor, double tol);
/* The same against the file's tensor of that name, which has n elements. */
void tally_tensor(tally *t, const gold *f, const char *name, const float *a, int64_t n, double tol);
/* The same of a block of parameters, on its device. */
void tally_block(tally *t, const gold *f, const dt_params *set, const float *block, int64_t n, double tol,
                 const char *fmt, ...) __attribute__((format(printf, 7, 8)));
void tally_error(tally *t, const char *what, double error, double tol);         /* measured by the caller */
void tally_num(tally *t, const char *what, double a, double ref, double tol);   /* |a - ref| / |ref| */
/* One TAP line: "ok 3 - NAME (n compared, worst 0.12 of the tolerance at WHERE)". */
void tap(const tally *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int  tap_done(void);                /* prints the plan; exit status */

/* --- groups of tests --- */
void golden_models(dt_device *dev);         /* flux, vae, clip, t5: outputs and all gradients */
void golden_schedules(void);                /* sigmas, densities, weights, learning rates */
void golden_objectives(dt_device *dev);     /* losses, noise mixing, the posterior */
void golden_training(dt_device *dev);       /* AdamW, ten steps of LoRA and of full training */
void golden_training_vae(dt_device *dev);   /* ten steps of an autoencoder, EMA */
void golden_folder(dt_device *dev);         /* a model folder, text states, samples */
void golden_lora_text(dt_device *dev);      /* LoRA files for the text encoders too */

#endif
