/* work.h - what is timed: one pass of a network, or one training step, on fresh weights and random inputs.  Weights
 * that do not train are used from a file (in TMPDIR), as the tools use them.
 *
 *   lora     LoRA step of FLUX at D = 768, 4 double and 8 single blocks, 256 image and 128 text tokens: rank 16 on attention
 *            and feed-forward, checkpointing, clipping, AdamW
 *   full     the same step, training all weights, without clipping: dt then updates them during the backward pass, PyTorch's
 *            optimizer after it
 *   sample   one evaluation of that network
 *   encode   FLUX's autoencoder, 512x512 px
 *   decode   back
 *   t5       T5 v1.1 encoder, d = 1024, 24 layers, 256 tokens
 *
 * tests/bench/torch_work.py has the same, from diffusers, transformers and peft. */
#ifndef DT_BENCH_WORK_H
#define DT_BENCH_WORK_H
#include "graph/graph.h"

typedef struct work work;
const char *work_name(int k);                       /* of the k-th, NULL beyond the last */

/* Ready to run: graph planned, weights and inputs filled. */
int      work_new(work **out, const char *name, dt_dtype t, dt_device *dev, dt_err *err);
void     work_free(work **w);
int      work_run(work *w, dt_err *err);
dt_plan *work_plan(const work *w);
int64_t  work_weights(const work *w);               /* bytes of parameters, gradients and moments */

#endif
