/* golden.c - the library against PyTorch, diffusers, transformers and peft: networks, schedules, training, sampling.
 * The files and how they were made: tests/golden/common.py.  Run from the top folder, or with GOLDEN_DIR.
 *
 *   golden [DEVICE]             cpu unless named */
#include <stdio.h>
#include "tests/golden/gold.h"

int main(int argc, char **argv)
{
    dt_err err = { 0 };
    dt_device *dev = NULL;
    must(dt_device_open(&dev, argc > 1 ? argv[1] : "cpu", &err), &err);
    golden_schedules();
    golden_models(dev);
    golden_objectives(dev);
    golden_training(dev);
    golden_training_vae(dev);
    golden_folder(dev);
    golden_lora_text(dev);
    dt_device_close(&dev);
    return tap_done();
}
