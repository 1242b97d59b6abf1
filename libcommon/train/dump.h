/* dump.h - what an outsider needs to check a training step: DIR/step-NNNNNN.safetensors with
 *   micro.M.<input or output name>   every input of micro-batch M, "prediction", "loss", "per_sample"
 *   grad.<set>.<parameter>           after accumulation, before clipping
 *   weight.<set>.<parameter>         fp32 master after the update
 *   lr, grad_norm                    scalars
 */
#ifndef DT_TRAIN_DUMP_H
#define DT_TRAIN_DUMP_H
#include "graph/graph.h"
#include "train/optim.h"

typedef struct dt_dump dt_dump;

dt_dump *dt_dump_new(void);
void     dt_dump_free(dt_dump **d);
/* Host memory that a step of `micros` micro-batches takes until it is written. */
int64_t  dt_dump_bytes(const dt_graph *g, int64_t micros, const dt_optim *o);
/* Copies every input and output of a plan that has just run. */
int      dt_dump_micro(dt_dump *d, dt_graph *g, dt_plan *p, int64_t micro, dt_err *err);
int      dt_dump_grads(dt_dump *d, const dt_optim *o, dt_err *err);
int      dt_dump_weights(dt_dump *d, const dt_optim *o, dt_err *err);
int      dt_dump_scalar(dt_dump *d, const char *name, double value, dt_err *err);
/* Writes the file and empties d. */
int      dt_dump_write(dt_dump *d, const char *dir, int64_t step, dt_err *err);

#endif
