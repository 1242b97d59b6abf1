/* task_vae.h - training of a KL autoencoder: L1 + kl_weight * KL on pictures. */
#ifndef DT_TRAIN_TASK_VAE_H
#define DT_TRAIN_TASK_VAE_H
#include "models/vae_kl.h"
#include "train/task.h"

struct dt_vae_task_params {
    const dt_vae_config *config;    /* borrowed */
    dt_params *params;              /* borrowed */
    dt_dtype   act;
    bool       checkpoint;
    double     kl_weight;           /* 1e-6 */
};

/* dt_task_release frees it. */
void dt_vae_task_new(dt_task *out, const struct dt_vae_task_params *p);

#endif
