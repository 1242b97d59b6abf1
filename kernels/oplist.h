/* oplist.h - the descriptors behind ops.h, alphabetical.  Models never see these. */
#ifndef DT_KERNELS_OPLIST_H
#define DT_KERNELS_OPLIST_H
#include "graph/graph.h"

extern const dt_op dt_op_accumulate;
extern const dt_op dt_op_add;
extern const dt_op dt_op_add_rows;
extern const dt_op dt_op_affine;
extern const dt_op dt_op_attention;
extern const dt_op dt_op_attention_bwd;
extern const dt_op dt_op_cast;
extern const dt_op dt_op_chunk;
extern const dt_op dt_op_chunk_bwd;
extern const dt_op dt_op_col_sum;
extern const dt_op dt_op_concat;
extern const dt_op dt_op_conv2d;
extern const dt_op dt_op_conv2d_dw;
extern const dt_op dt_op_conv2d_dx;
extern const dt_op dt_op_embedding;
extern const dt_op dt_op_embedding_dw;
extern const dt_op dt_op_fill;
extern const dt_op dt_op_flow_noise;
extern const dt_op dt_op_gated_add;
extern const dt_op dt_op_gather_rows;
extern const dt_op dt_op_gather_rows_bwd;
extern const dt_op dt_op_gelu_erf;
extern const dt_op dt_op_gelu_erf_bwd;
extern const dt_op dt_op_gelu_tanh;
extern const dt_op dt_op_gelu_tanh_bwd;
extern const dt_op dt_op_groupnorm;
extern const dt_op dt_op_groupnorm_dw;
extern const dt_op dt_op_groupnorm_dx;
extern const dt_op dt_op_kl_loss;
extern const dt_op dt_op_kl_loss_bwd;
extern const dt_op dt_op_l1_loss;
extern const dt_op dt_op_l1_loss_bwd;
extern const dt_op dt_op_layernorm;
extern const dt_op dt_op_matmul_add;
extern const dt_op dt_op_matmul_dw;
extern const dt_op dt_op_matmul_dx;
extern const dt_op dt_op_matmul_wt;
extern const dt_op dt_op_modulate;
extern const dt_op dt_op_mse_loss;
extern const dt_op dt_op_mse_loss_bwd;
extern const dt_op dt_op_mul;
extern const dt_op dt_op_norm_dw;
extern const dt_op dt_op_norm_dx;
extern const dt_op dt_op_permute;
extern const dt_op dt_op_posterior_sample;
extern const dt_op dt_op_posterior_sample_bwd;
extern const dt_op dt_op_quick_gelu;
extern const dt_op dt_op_quick_gelu_bwd;
extern const dt_op dt_op_relu;
extern const dt_op dt_op_relu_bwd;
extern const dt_op dt_op_rmsnorm;
extern const dt_op dt_op_rope;
extern const dt_op dt_op_silu;
extern const dt_op dt_op_silu_bwd;
extern const dt_op dt_op_slice;
extern const dt_op dt_op_slice_bwd;
extern const dt_op dt_op_sub;
extern const dt_op dt_op_sum_mid;
extern const dt_op dt_op_t5_bias;
extern const dt_op dt_op_t5_bias_dw;
extern const dt_op dt_op_timestep_embed;
extern const dt_op dt_op_upsample2;
extern const dt_op dt_op_upsample2_bwd;
extern const dt_op dt_op_weighted_sum;

#endif
