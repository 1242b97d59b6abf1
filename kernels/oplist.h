/* oplist.h - the descriptors behind ops.h, alphabetical.  Models never see these. */
#ifndef DT_KERNELS_OPLIST_H
#define DT_KERNELS_OPLIST_H
#include "graph/graph.h"

extern const dt_op dt_op_accumulate;
extern const dt_op dt_op_add;
extern const dt_op dt_op_attention;
extern const dt_op dt_op_attention_bwd;
extern const dt_op dt_op_col_sum;
extern const dt_op dt_op_conv2d;
extern const dt_op dt_op_conv2d_dw;
extern const dt_op dt_op_conv2d_dx;
extern const dt_op dt_op_fill;
extern const dt_op dt_op_matmul_add;
extern const dt_op dt_op_matmul_dw;
extern const dt_op dt_op_matmul_dx;
extern const dt_op dt_op_matmul_wt;
extern const dt_op dt_op_upsample2;
extern const dt_op dt_op_upsample2_bwd;

#endif
