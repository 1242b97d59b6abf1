/* graph.h - tensors, nodes and the passes over them.
 *
 * A model appends nodes; nothing runs until it is planned.  Builders never fail: the first error sticks
 * (dt_graph_error) and later calls return a harmless tensor.  Order of use:
 *
 *   dt_graph *g = dt_graph_new(DT_F32);
 *   dt_tensor *x = dt_input(g, "x", DT_F32, DT_DIMS(B, S, C));
 *   dt_tensor *loss = ...ops.h...;
 *   dt_backward(g, loss);                 autodiff and recompute; parameter gradients are added into dt_param.grad
 *   dt_output(g, y);                      keep y readable after the run
 *   dt_plan_new(&plan, g, dev, &err);     dead-code removal, fuse, order, offsets
 *   dt_plan_bind(plan, arena);            arena of dt_plan_bytes(plan)
 *   dt_plan_write(plan, x, data); dt_plan_run(plan, &err); dt_plan_read(plan, loss, &value);
 */
#ifndef DT_GRAPH_GRAPH_H
#define DT_GRAPH_GRAPH_H
#include <stdbool.h>
#include "base/err.h"
#include "graph/device.h"
#include "tensor/params.h"

#define DT_MAX_IN  8
#define DT_MAX_OUT 8

typedef struct dt_graph  dt_graph;
typedef struct dt_node   dt_node;
typedef struct dt_tensor dt_tensor;
typedef struct dt_op     dt_op;

enum dt_kind {
    DT_ACT,                         /* made by a node, lives in the arena */
    DT_INPUT,                       /* written by the caller before each run, lives in the arena throughout */
    DT_CONST,                       /* values fixed at build time (RoPE tables); the graph owns them */
    DT_PARAM,                       /* reads dt_param.w */
    DT_GRAD,                        /* adds into dt_param.grad; if there is none (dt_update), dt_plan_new makes it a
                                       DT_ACT */
};

struct dt_tensor {
    enum dt_kind kind;
    dt_dtype   dtype;
    dt_dims    dims;
    int        id;                  /* index in the graph */
    dt_node   *node;                /* maker; NULL for leaves */
    dt_tensor *base;                /* a view of base's bytes (reshape): no storage of its own; else NULL */
    dt_param  *param;               /* DT_PARAM, DT_GRAD */
    const char *name;               /* DT_INPUT, DT_CONST, named outputs; owned by the graph */
    const void *values;             /* DT_CONST: owned by the graph */
    bool       needs_grad;          /* a trainable parameter is upstream, or dt_require_grad */
    bool       keep;                /* dt_output */
    dt_tensor *grad;                /* set by dt_backward */
};

typedef struct dt_attr {            /* what an op needs besides tensors; meaning is the op's */
    int64_t i[10];
    double  f[4];
} dt_attr;

struct dt_node {
    const dt_op *op;
    int        nin, nout;
    dt_tensor *in[DT_MAX_IN];       /* NULL: an optional input that is absent, and all from nin on */
    dt_tensor *out[DT_MAX_OUT];
    dt_attr    attr;
    int        id;                  /* position in the graph */
    int        block;               /* recompute unit, -1 outside any */
    const char *scope;              /* "transformer_blocks.3.attn", for messages and profiles */
    dt_graph  *graph;
    dt_node   *clone;               /* recompute: the copy that backward reads */
    bool       recompute;           /* is such a copy */
    bool       backward;            /* made by dt_backward */
    bool       live;                /* plan: reaches an output or a parameter gradient */
};

/* --- ops (kernels/ops.h lists them) --- */

typedef struct dt_prep {            /* plan time, once per node */
    dt_device *dev;
    void      *state;               /* out: primitives, descriptors; given to run and release */
    int64_t    workspace;           /* out: scratch bytes in the arena, live during this node only, 64-byte aligned */
    dt_err    *err;
} dt_prep;

typedef struct dt_run {             /* execution: everything resolved to pointers */
    dt_device   *dev;
    void *const *in;                /* as node->in, NULL where that is */
    void *const *out;               /* as node->out; NULL where nobody reads an output after its node, if
                                       dt_op.optional_out has its bit: the kernel skips it then */
    void        *workspace;
    void        *state;
} dt_run;

typedef struct dt_kernel {
    int  (*prepare)(const dt_node *n, dt_prep *p);      /* may be NULL; 0 or DT_E with p->err */
    void (*run)(const dt_node *n, const dt_run *r);
    void (*release)(void *state);                       /* may be NULL */
} dt_kernel;

typedef struct dt_cost { double flops, bytes; } dt_cost;

/* Functions of one element, which a kernel may apply while its result is at hand. */
enum dt_epilogue { DT_EPI_NONE, DT_EPI_SILU, DT_EPI_GELU_TANH, DT_EPI_GELU_ERF, DT_EPI_QUICK_GELU };

struct dt_op {
    const char *name;
    /* Checks inputs and attributes and declares outputs with dt_node_out(); returns NULL or the complaint. */
    const char *(*shape)(dt_node *n);
    /* dy[o] is the gradient of out[o] (NULL if none reaches it); sets dx[i] for the inputs with dt_wants(n,
     * i).  A gradient has its tensor's dims; of an activation its dtype, of a parameter fp32.  NULL:
     * not differentiable. */
    void (*grad)(dt_graph *g, const dt_node *n, dt_tensor *const *dy, dt_tensor **dx);
    void (*cost)(const dt_node *n, dt_cost *c);         /* NULL, or changes *c: no FLOPs, inputs and outputs once */
    unsigned inplace;               /* bit i: out[0] may take over the bytes of in[i] if that dies here (equal size) */
    unsigned optional_out;          /* bit o: kernel accepts out[o] == NULL */
    bool     accumulates;           /* with attr.i[DT_ATTR_ACC] set, run adds to out[0] (fp32) instead of writing it */
    unsigned epilogues;             /* bit e (dt_epilogue): with attr.i[DT_ATTR_EPI] == e, run writes that
                                       function of its result */
    enum dt_epilogue epilogue;      /* this op is that function of in[0]; else DT_EPI_NONE */
    dt_kernel cpu;
};
enum { DT_ATTR_EPI = 8, DT_ATTR_ACC = 9 };      /* set by autodiff and the passes alone */

/* --- building --- */
dt_graph   *dt_graph_new(dt_dtype act);             /* dtype of activations and working weights: DT_F32 or DT_BF16 */
void        dt_graph_free(dt_graph **g);
dt_dtype    dt_graph_dtype(const dt_graph *g);
const char *dt_graph_error(const dt_graph *g);      /* NULL if all is well */
void        dt_graph_fail(dt_graph *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Parameters are declared where they are used: name and shape stand beside the equation.  The set in use collects
 * them on the first build and is looked up on later ones; scopes are dotted prefixes. */
void       dt_graph_use(dt_graph *g, dt_params *p); /* borrowed until the graph is freed; resets the scope */
dt_params *dt_graph_params(const dt_graph *g);      /* the set in use; NULL before the first dt_graph_use */
/* The tensor that reads parameter p (one per graph and parameter). */
dt_tensor *dt_param_tensor(dt_graph *g, dt_param *p);
void       dt_scope(dt_graph *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void       dt_scope_end(dt_graph *g);
dt_tensor *dt_weight(dt_graph *g, const char *name, dt_dims dims, dt_init init, double scale);
const char *dt_scope_path(dt_graph *g, const char *name);   /* full dotted path; valid until the next call */

/* A recompute unit (gradient checkpointing): what is inside is run again before its backward, if asked. */
void       dt_block(dt_graph *g);
void       dt_block_end(dt_graph *g);
void       dt_graph_checkpoint(dt_graph *g, bool on);       /* before dt_backward; default off */

dt_tensor *dt_input(dt_graph *g, const char *name, dt_dtype t, dt_dims dims);
dt_tensor *dt_const(dt_graph *g, const char *name, dt_dtype t, dt_dims dims, const void *values);   /* copies */
dt_tensor *dt_find(dt_graph *g, const char *name);          /* input, const or named output; NULL if absent */
dt_tensor *dt_reshape(dt_graph *g, dt_tensor *x, dt_dims dims);     /* a view; one dim may be -1 */
dt_tensor *dt_output(dt_graph *g, dt_tensor *x, const char *name);  /* readable after the run; returns x */
void       dt_require_grad(dt_graph *g, dt_tensor *x);      /* golden tests: gradient of an input */

/* For op files.  dt_apply appends a node; trailing NULL inputs may be left out.  Returns the node (never
 * NULL; on failure a dummy whose outs are harmless). */
dt_node   *dt_apply(dt_graph *g, const dt_op *op, const dt_attr *a, int nin, dt_tensor *const *in);
void       dt_node_out(dt_node *n, int i, dt_dtype t, dt_dims dims);
bool       dt_wants(const dt_node *n, int i);               /* input i exists and needs a gradient */

/* --- autodiff --- */
/* Appends the gradient of the scalar fp32 `loss` times the value of input `scale` (fp32 [1], NULL = 1) for
 * everything that needs one.  Accumulation is over runs: gradients are added to dt_param.grad. */
void dt_backward(dt_graph *g, dt_tensor *loss, dt_tensor *scale);

/* Updates during the backward pass.  Where dt_param.update is set before dt_plan_new, a run updates the
 * parameter with AdamW, its average and its working copy too, when its gradient is complete and nobody reads the
 * parameter any more, and the gradient lives in the arena until then (Lv et al., "Full parameter fine-tuning for large
 * language models with limited resources", 2023).  The owner sets the numbers before each run (train/optim.h).
 * From the first loss or gradient that is not finite on, nothing is updated. */
typedef struct dt_update {
    dt_adamw adamw;
    double   ema_decay;
    bool     begun, stopped;        /* false before a run; begun: the loss was looked at */
} dt_update;
/* w, moments, average and working copy of q, once; grad NULL: 0. */
void dt_param_update(dt_device *d, const dt_param *q, const float *grad, const dt_adamw *a, double ema_decay);

/* --- plan --- */
typedef struct dt_plan dt_plan;
typedef struct dt_plan_stats {
    int64_t arena, activations, workspace, inputs, consts;  /* bytes; arena >= what lives at once */
    double  flops, bytes;                           /* one run */
    double  flops_recompute;
    int     nodes;
} dt_plan_stats;

/* g is borrowed until the plan is freed; its dead nodes are dropped, and nodes are fused (fuse.c)
 * unless the environment has DT_FUSE=0: results are the same within rounding, so that a wrong number or time can be
 * laid at fusion's door. */
int   dt_plan_new(dt_plan **out, dt_graph *g, dt_device *dev, dt_err *err);
void  dt_plan_free(dt_plan **p);
int64_t dt_plan_bytes(const dt_plan *p);
const dt_plan_stats *dt_plan_stat(const dt_plan *p);
/* The arena is device memory, borrowed; plans of several shapes may share one, used in turn.  Uploads consts. */
void  dt_plan_bind(dt_plan *p, void *arena);
void  dt_plan_write(dt_plan *p, const dt_tensor *input, const void *data);      /* host data of the input's dtype */
void  dt_plan_read(dt_plan *p, const dt_tensor *t, void *data);                 /* inputs and outputs, after a run */
int   dt_plan_run(dt_plan *p, dt_err *err);
/* Runs node by node on the inputs as they are, up to the first node with an output that is not finite; NULL: there is
 * none.  *from is the input or the parameter that it had it from, or NULL: it made it itself.  Gradients are added to:
 * zero them first. */
const dt_node *dt_plan_find_nan(dt_plan *p, const dt_tensor **from);
/* DT_ENAN: "WHAT is not finite; first in 'matmul' of single_transformer_blocks.3 (backward), from 'latents'". */
int   dt_plan_blame(dt_plan *p, const char *what, dt_err *err);
/* What an op does: floating-point operations and bytes of memory moved; of ops that do not say, the
 * bytes of its tensors. */
dt_cost dt_node_cost(const dt_node *n);
/* One run with the seconds of each op, for `make bench`. */
void  dt_plan_profile(dt_plan *p, void (*fn)(void *ctx, const dt_node *n, double seconds), void *ctx);

#endif
