/* oplist.h - the descriptors behind ops.h, alphabetical.  Models never see these. */
#ifndef DT_KERNELS_OPLIST_H
#define DT_KERNELS_OPLIST_H
#include "graph/graph.h"

extern const dt_op dt_op_accumulate;
extern const dt_op dt_op_add;
extern const dt_op dt_op_fill;

#endif
