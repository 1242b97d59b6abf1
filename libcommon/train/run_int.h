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

struct dt_run_kind;

typedef struct dt_job {
    dt_train_opts *o;
    const struct dt_run_kind *kind; /* of o->method */
    const dt_ui   *ui;
    bool           skipped;         /* some items were */
    dt_dtype       act;
    dt_device     *dev;
    int            lock;            /* descriptor of the output folder, -1: none */
    struct dt_resume {
        char *from;                 /* checkpoint folder that the run goes on from; NULL: it begins */
        dt_train_state state;       /* its state, */
        cJSON *manifest;            /* and the whole of it */
        bool  finished;             /* it is the last one, and all that comes of it is there */
    } resume;
    cJSON         *about;           /* this run's settings, as its checkpoints have them */

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

#define DT_LORA_FILE "lora.safetensors"

/* What sets the commands that train apart.  run_model.c has the table. */
struct dt_run_kind {
    const char *chart;              /* title of the loss's curve */
    const char *result;             /* file or folder that a checkpoint and the output folder have of it */
    enum dt_flux_part part;         /* that trains, or that an adapter is of; --train_text_encoder adds to it */
    bool  adapter;                  /* the part's own weights are frozen */
    bool  pictures;                 /* trained on pictures as they are: there is no cache, and captions are not read */
    int (*task)(dt_task *out, const dt_job *j, dt_err *err);
};
const struct dt_run_kind *dt_run_kind(enum dt_method method);
unsigned dt_job_want(const dt_job *j);                      /* enum dt_want */

/* run_data.c: the plan and the cache, made if they were not given; then, once there is a model, whether a cache
 * that was given fits it and its pictures, and the shapes of batches */
int dt_job_data(dt_job *j, dt_err *err);
char *dt_job_cache_dir(const dt_train_opts *o);             /* the one given, or output_dir/cache; caller frees */
int dt_job_check_cache(dt_job *j, dt_err *err);
int dt_job_shapes(dt_job *j, dt_err *err);
dt_text_rows dt_job_text_rows(const dt_job *j, const dt_cache *cache);  /* of batches with captions of
                                                                           `cache` (may be NULL) */
int dt_job_make_plan(dt_job *j, const struct dt_data_settings *s, const char *path, dt_err *err);
int dt_job_make_cache(dt_job *j, const char *plan, const char *dir, dt_err *err);
/* run_resume.c: the checkpoint that the run goes on from, held against the run as its parts become known.  find: what
 * the command line says; plan: the batches behind it, before anything is encoded for a plan; check: all that is left;
 * load: its state, once there are weights.  What a run that begins anew finds there is set aside by load.
 * DT_EUSAGE: of another run. */
int dt_job_resume_find(dt_job *j, dt_err *err);
int dt_job_resume_plan(const dt_job *j, const char *plan, dt_err *err);
int dt_job_resume_check(dt_job *j, dt_err *err);
int dt_job_resume_load(dt_job *j, dt_err *err);
cJSON *dt_job_result(const dt_job *j, const char *checkpoint, dt_err *err);     /* for run.json: by it
                                                                                   `finished` is known again */
void dt_job_resume_release(dt_job *j);
/* run_model.c: declares, chooses what trains; loads or draws weights once the memory plan is accepted */
int dt_job_pipe(dt_job *j, dt_err *err);                /* opened, nothing chosen; by whoever needs it first */
int dt_job_model(dt_job *j, dt_err *err);
int dt_job_place(dt_job *j, enum dt_flux_part k, dt_err *err);     /* dt_flux_pipe_place, as the options ask */
int dt_job_weights(dt_job *j, dt_err *err);
int dt_job_intact(void *job, dt_err *err);          /* dt_flux_pipe_check */
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
void dt_validator_held(const dt_validator *v, const double **step, const double **loss, int64_t *n);
void dt_validator_free(dt_validator **v);

#endif
