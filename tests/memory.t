#!/bin/bash
# memory.t - the memory plan is true: the peak that the system saw is within 5 % of it, for three kinds of run.
[ -z "${SAN-}" ] || { echo '1..0 # SKIP sanitizers have memory of their own'; exit 0; }
. tests/lib.sh
E=$PWD/examples M=$PWD/examples/tiny-flux D=$PWD/examples/pictures/metadata.json
cd "$T" || exit 1
export OMP_NUM_THREADS=1
C="--pretrained_model_name_or_path $M --train_data_meta $D --max_train_samples 32 --max_train_steps 2 --report_to none"

near() {
    dt-train "$@" --output_dir "run$tests" >said 2>&1 || { cat said; return; }
    sed -n 's/.*peak memory \([0-9.]*\) MiB, planned \([0-9.]*\) MiB.*/\1 \2/p' said |
        awk '{ r = $1 / $2; print (r > 0.95 && r < 1.05) ? "within 5 %" : "peak " $1 ", planned " $2 }'
}
check 'lora' "near lora $C --image_sample_size 128 --train_batch_size 16 --rank 16" 'within 5 %'
check 'lora, recompute, bf16' "near lora $C --image_sample_size 128 --train_batch_size 32 --rank 16 --gradient_checkpointing --mixed_precision bf16" 'within 5 %'
check 'full, text encoders too, ema' "near full $C --image_sample_size 64 --train_batch_size 24 --train_text_encoder --use_ema" 'within 5 %'
check 'vae' "near vae $C --image_sample_size 64 --train_batch_size 16" 'within 5 %'

# What `make demo` does: samples of prompts with their sheet, a held-out loss, a chart, events for TensorBoard.
dt-bucket --train_data_meta "$E/concept/demo.json" --image_sample_size 64 --train_batch_size 8 --max_train_steps 2 -q -o plan.ndjson &&
    dt-cache-latents --model "$M" -q -o cache plan.ndjson || exit 1
check 'lora, samples, held-out loss' "near lora --pretrained_model_name_or_path $M --plan plan.ndjson --latents cache --max_train_steps 2 --rank 16 \
    --validation_data_meta $E/concept/heldout.json --validation_prompts 'a cat' 'a dog' --validation_steps 1" 'within 5 %'
