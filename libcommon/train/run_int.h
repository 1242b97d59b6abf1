/* run_int.h - what the run_*.c files share. */
#ifndef DT_TRAIN_RUN_INT_H
#define DT_TRAIN_RUN_INT_H
#include "models/flux_run.h"
#include "train/chart.h"
#include "train/lora.h"
#include "train/manifest.h"
#include "train/memory.h"
#include "train/run.h"
#include "train/task_flux.h"
#include "train/task_vae.h"

typedef struct dt_job {
    dt_train_opts *o;
    const dt_ui   *ui;
    bool           skipped;         /* some items were */
    dt_dtype       act;
    dt_device     *dev;
    int            lock;            /* descriptor of the output folder, -1: none */

    /* data */
    char      *plan;                /* path */
    dt_cache  *cache;
    dt_plan_info info;
    int64_t  (*shape)[4];           /* dt_plan_shapes */
    int        nshape;
    int64_t    batches;

    /* model */
    dt_flux_pipe *pipe;
    dt_lora      *lora;
    dt_optim      optim;
    dt_task       task;
    dt_session   *session;
    void         *arena;
    int64_t       arena_bytes, staged_bytes;        /* staged: what the task holds on the host */
    dt_mem_plan   memory;
    dt_hash       base;             /* of the weights that training begins with; "" until dt_job_base_hash */
    bool          checkpoint;       /* recompute, as asked or as the memory budget wants */

    /* watching */
    dt_manifest  *manifest;
    struct dt_validator *val;
    dt_trainer    t;
    dt_loader    *loader;
} dt_job;

void dt_job_say(const dt_job *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void dt_job_warn(const dt_job *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct dt_loader_params dt_job_loader(const dt_job *j);     /* from the first batch */

/* run_data.c: the plan and the cache, made if they were not given; then, once there is a model, whether a cache that was given fits
 * it and its pictures, and the shapes of batches */
int dt_job_data(dt_job *j, dt_err *err);
int dt_job_check_cache(dt_job *j, dt_err *err);
int dt_job_shapes(dt_job *j, dt_err *err);
dt_text_rows dt_job_text_rows(const dt_job *j, const dt_cache *cache);  /* of batches with captions of `cache` (may be NULL) */
int dt_job_make_plan(dt_job *j, const struct dt_data_settings *s, const char *path, dt_err *err);
int dt_job_make_cache(dt_job *j, const char *plan, const char *dir, dt_err *err);
/* run_model.c: declares, chooses what trains; loads or draws weights once the memory plan is accepted */
int dt_job_model(dt_job *j, dt_err *err);
int dt_job_place(dt_job *j, enum dt_flux_part k, dt_err *err);     /* dt_flux_pipe_place, as the options ask */
int dt_job_weights(dt_job *j, dt_err *err);
int dt_job_intact(void *job, dt_err *err);          /* dt_flux_pipe_check */
int dt_job_task(dt_job *j, dt_err *err);
int dt_job_base_hash(dt_job *j, dt_err *err);           /* once: a checkpoint should not read the model again */
int dt_job_save_extra(void *job, const char *dir, dt_err *err);
int dt_job_fit_scaling(dt_job *j, dt_err *err);         /* of the vae, over the plan's first pictures */
/* run_memory.c: the sessions of all shapes, the memory plan, the budget */
int dt_job_memory(dt_job *j, dt_err *err);
struct dt_chart_params dt_job_chart(const dt_job *j);    /* of the loss */

/* validate.c: samples of fixed prompts from fixed noise, and a held-out loss */
typedef struct dt_validator dt_validator;
int  dt_validator_new(dt_validator **out, dt_job *j, dt_err *err);
int64_t dt_validator_bytes(const dt_validator *v);      /* arena */
/* Adds what it takes to the memory plan: to the moment of training, and one for encoding its prompts. */
void dt_validator_memory(const dt_validator *v, dt_mem_plan *p, dt_mem_moment *training);
int  dt_validator_encode(dt_validator *v, dt_err *err); /* its prompts, before the weights that train are loaded */
int  dt_validator_ready(dt_validator *v, void *arena, dt_err *err);
int  dt_validator_run(void *job, int64_t step, dt_err *err);
int  dt_validator_held(const dt_validator *v, const double **step, const double **loss, int64_t *n);
void dt_validator_free(dt_validator **v);

#endif
