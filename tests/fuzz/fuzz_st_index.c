/* A model folder of two safetensors files and their index; what it holds fills the parameters of a network. */
#include <string.h>
#include "graph/device.h"
#include "tensor/params.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const name[] = { "model.safetensors.index.json", "a.safetensors", "b.safetensors",
                                        "model.safetensors" };
    static const char *const stems[] = { "diffusion_pytorch_model", "model", NULL };
    dt_st *st = NULL;
    dt_err err = { 0 };
    fuzz_files(name, 4, data, size);
    if (dt_st_open_folder(&st, fuzz_dir(), stems, &err) < 0) {
        fuzz_check(!st && *err.msg);
        return 0;
    }
    for (int64_t i = 0; i < dt_st_count(st); i++)
        fuzz_touch(dt_st_at(st, i)->data, dt_st_at(st, i)->bytes);

    dt_device *dev = NULL;
    dt_params *p = dt_params_new("model");
    dt_params_declare(p, "x", DT_DIMS(2, 3), DT_INIT_ZERO, 0);
    dt_params_declare(p, "y", DT_DIMS(4), DT_INIT_ZERO, 0);
    fuzz_check(dt_device_open(&dev, "cpu", &err) == 0 && dt_params_alloc(p, dev, DT_F32, 0, &err) == 0);
    dt_params_load(p, st, NULL, NULL, &err);
    dt_params_free(&p);
    dt_device_close(&dev);
    dt_st_close(&st);
    return 0;
}
