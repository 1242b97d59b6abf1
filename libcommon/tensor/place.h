/* place.h - private: what load and place share.  See params.h. */
#ifndef DT_TENSOR_PLACE_H
#define DT_TENSOR_PLACE_H
#include "tensor/params.h"

/* The pieces of q, one after the other along the first dimension, which make its shape.  Their
 * number, or a DT_E code. */
int dt_param_find(const dt_param *q, const dt_st *st, dt_rename_fn rename, void *ctx, dt_st_entry out[DT_MAX_PIECES],
                  dt_err *err);

#endif
