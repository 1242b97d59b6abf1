/* checkop.h - test cases of kernels.  A case is a few shapes and a builder; checkop knows the rest: gradients against
 * central differences, bf16 against fp32, in place and accumulating variants, adversarial values, guards around every
 * buffer, every other device against the CPU, time.
 *
 *   static dt_tensor *rms(dt_graph *g, dt_tensor **in) { return dt_rmsnorm(g, in[0], in[1], 1e-6); }
 *
 *   const check_case norm_cases[] = {
 *       { "rmsnorm 3x64",   rms, { ACT(3, 64),    WEIGHT(64) }, .k = 64 },
 *       { "rmsnorm odd C",  rms, { ACT(2, 5, 77), WEIGHT(77) }, .k = 77 },
 *       { "rmsnorm 4096 x 3072", rms, { ACT(4096, 3072), WEIGHT(3072) }, .k = 3072, .flags = CHECK_LARGE },
 *       { 0 }
 *   };
 *
 * A family X exports X_cases and is listed in checkop.c.  Differences do not show what is wrong in forward and backward
 * alike, nor a constant: for that a case has a reference, or tests/golden.c the op. */
#ifndef DT_TESTS_CHECKOP_H
#define DT_TESTS_CHECKOP_H
#include "kernels/ops.h"

enum check_kind {
    CHECK_NONE,                     /* end of the list */
    CHECK_ACT,                      /* activation of the graph's dtype; gradient checked */
    CHECK_ACT_F32,                  /* fp32 whatever the graph's dtype; gradient checked */
    CHECK_WEIGHT,                   /* trainable parameter: its gradient is added to what is there */
    CHECK_FROZEN,                   /* frozen parameter: must get no gradient */
    CHECK_CONST,                    /* activation of the graph's dtype without gradient */
    CHECK_CONST_F32,                /* fp32 without gradient: sigmas, tables, targets */
    CHECK_INT,                      /* i32, uniform in [lo, hi) */
    CHECK_MASK,                     /* u8: 1 with probability 3/4, the last row of a batch all 0 */
};

typedef struct check_in {
    enum check_kind kind;
    int64_t d[DT_MAX_DIMS];         /* ends at the first 0 */
    double  lo, hi;                 /* lo < hi: uniform in [lo, hi); else N(0, 1) */
} check_in;

#define ACT(...)       { .kind = CHECK_ACT, .d = { __VA_ARGS__ } }
#define ACT_F32(...)   { .kind = CHECK_ACT_F32, .d = { __VA_ARGS__ } }
#define WEIGHT(...)    { .kind = CHECK_WEIGHT, .d = { __VA_ARGS__ } }
#define FROZEN(...)    { .kind = CHECK_FROZEN, .d = { __VA_ARGS__ } }
#define CONST(...)     { .kind = CHECK_CONST, .d = { __VA_ARGS__ } }
#define CONST_F32(...) { .kind = CHECK_CONST_F32, .d = { __VA_ARGS__ } }
#define MASK(...)      { .kind = CHECK_MASK, .d = { __VA_ARGS__ } }
#define INTS(max, ...) { .kind = CHECK_INT, .d = { __VA_ARGS__ }, .hi = (max) }
#define RANGE(k, l, h, ...) { .kind = CHECK_##k, .d = { __VA_ARGS__ }, .lo = (l), .hi = (h) }   /* RANGE(ACT, -1, 1, 3, 64) */

enum {
    CHECK_LARGE   = 1,              /* compare and time only: too big for central differences */
    CHECK_NO_GRAD = 2,              /* the op has no gradient */
    CHECK_NO_HUGE = 4,              /* values of 1e4 overflow by nature (exp) */
    CHECK_MASKED  = 8,              /* all there is is masked: a NaN in the gradient goes nowhere */
    CHECK_INF     = 16,             /* an infinity in an input is passed on as a NaN is */
};

typedef struct check_case {
    const char *name;               /* NULL ends a family */
    dt_tensor *(*build)(dt_graph *g, dt_tensor **in);
    check_in    in[DT_MAX_IN];
    int64_t     k;                  /* reduction length, for the tolerance; 0 = 1 */
    unsigned    flags;
    int         nkink;              /* float inputs without a range keep 0.1 away from these values (relu, clamp) */
    double      kink[2];
    /* Forward in plain loops; in and y as fp32.  NULL = none. */
    void      (*reference)(const struct check_case *c, const float *const *in, float *y);
} check_case;

static inline int64_t check_numel(const check_in *in)
{
    int64_t n = 1;
    for (int i = 0; i < DT_MAX_DIMS && in->d[i]; i++)
        n *= in->d[i];
    return n;
}

double check_epilogue(enum dt_epilogue e, double x);    /* e of x */

#endif
