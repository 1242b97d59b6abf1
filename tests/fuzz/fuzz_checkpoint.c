/* A checkpoint folder, dt-checkpoint(5): its manifest and the states of one set of parameters. */
#include "train/checkpoint.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "manifest.json", "lora.master.safetensors", "lora.m.safetensors",
                                        "lora.v.safetensors" };
    dt_err err = { 0 };
    dt_train_state s;
    dt_device *dev = NULL;
    dt_params *p = dt_params_new("lora");
    dt_param *q = dt_params_declare(p, "x.lora_A.weight", DT_DIMS(2, 3), DT_INIT_ZERO, 0);
    dt_optim o = { .set = { p }, .nset = 1 };
    q->trainable = true;
    fuzz_check(dt_device_open(&dev, "cpu", &err) == 0 && dt_params_alloc(p, dev, DT_F32, 0, &err) == 0);
    fuzz_files(name, 4, data, size);
    if (dt_checkpoint_state(fuzz_dir(), &s, NULL, &err) == 0) {
        fuzz_check(s.step >= 0 && s.batch >= 0 && s.metrics_bytes >= 0 && s.threads > 0);
        dt_checkpoint_load(fuzz_dir(), &o, &s, &err);
    }
    dt_params_free(&p);
    dt_device_close(&dev);
    return 0;
}
