/* gemm.h - products of fp32 matrices with a frozen or trained weight, on a CPU with AVX-512.
 *
 * oneDNN packs the weight before it multiplies, and waits for memory meanwhile.  Here a panel of the weight is packed
 * while the next is on its way, and the activations are read where they lie.
 * Method: Goto & van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34 (2008). */
#ifndef DT_KERNELS_GEMM_H
#define DT_KERNELS_GEMM_H
#include "kernels/onednn.h"

/* Whether dt_gemm_run can do this product, and is the faster way to.  It does not depend on k: a LoRA's product ends
 * with the activation of the layer that it is added to, and with weight 0 it is to change no bit. */
bool    dt_gemm_takes(const struct dt_dnn_matmul *p);
int64_t dt_gemm_workspace(const struct dt_dnn_matmul *p, int threads);     /* bytes */
/* Operands as for dt_dnn_run; `threads` as for the workspace ws, which is 64-byte aligned.  The bits of c do not depend
 * on it. */
void    dt_gemm_run(const struct dt_dnn_matmul *p, int threads, const float *a, const float *b, const float *bias,
                    float *c, void *ws);

#endif
