#!/bin/bash
# memory.t - the memory plan of training is true: the peak that the system saw is within 5 % of it, for LoRA, full and
# autoencoder training, with and without recomputation, at three shapes each; and a budget is kept, or refused.
[ -z "${SAN-}" ] || { echo '1..0 # SKIP sanitizers have memory of their own'; exit 0; }
. tests/lib.sh
E=$PWD/examples M=$PWD/examples/tiny-flux
cd "$T" || exit 1
export OMP_NUM_THREADS=1

# peak OUTPUT: what a run said of itself
peak() {
    sed -n 's/^dt-train: peak memory \([0-9.]*\) MiB, planned \([0-9.]*\) MiB.*/\1 \2/p' "$1" |
        awk '{ r = $1 / $2; print (r > 0.95 && r < 1.05) ? "within 5 %" : "peak " $1 ", planned " $2 }'
}
# near METHOD OPTION...: one step
near() {
    dt-train "$@" --pretrained_model_name_or_path "$M" --output_dir "run$tests" >said 2>&1 || { cat said; return; }
    peak said
    rm -rf "run$tests"
}
# data NAME DT-BUCKET-OPTION...: a plan of one batch and its cache
data() {
    name=$1; shift
    dt-bucket --train_data_meta "$E/pictures/metadata.json" --max_train_steps 1 --gradient_accumulation_steps 1 "$@" -q -o "$name" &&
        dt-cache-latents --model "$M" --vae_mini_batch 4 -q -o "$name.cache" "$name" || exit 1
}
data a --image_sample_size 64 --train_batch_size 4 --max_train_samples 4
data b --image_sample_size 128 --train_batch_size 2 --max_train_samples 2
data c --fix_sample_size 64 160 --train_batch_size 3 --max_train_samples 3

for how in '' --gradient_checkpointing; do
    for d in a b c; do
        check "lora, plan $d $how" "near lora --plan $d --latents $d.cache --rank 16 $how" 'within 5 %'
        check "full, plan $d $how" "near full --plan $d --latents $d.cache $how" 'within 5 %'
    done
    for s in '64 2' '64 8' '128 1'; do
        set -- $s
        check "vae, $1 px, batch of $2 $how" "near vae --train_data_meta $E/pictures/metadata.json --max_train_steps 1 \
            --image_sample_size $1 --train_batch_size $2 --max_train_samples $2 $how" 'within 5 %'
    done
done

# --- what else takes memory ---
check 'text encoders too, bf16, ema' "near full --plan a --latents a.cache --train_text_encoder --use_ema --mixed_precision bf16" 'within 5 %'
check 'weights left in their file' "near lora --plan a --latents a.cache --rank 16 --low_vram" 'within 5 %'
check 'and given back after each use' "near lora --plan a --latents a.cache --rank 16 --low_vram --mixed_precision bf16" 'within 5 %'
check 'readers, and a step that is dumped' "near full --plan a --latents a.cache --dataloader_num_workers 8 --dump_steps 1" 'within 5 %'
# What `make demo` does: samples of prompts with their sheet, a held-out loss, a chart, events for TensorBoard.
check 'samples, held-out loss' "near lora --plan a --latents a.cache --rank 16 --validation_data_meta $E/concept/heldout.json \
    --validation_prompts 'a cat' 'a dog' --validation_steps 1 --validation_inference_steps 4" 'within 5 %'

# --- without clipping a gradient is there until its parameter is updated ---
# gradients OPTION...: MiB of them in the plan of a full run
gradients() {
    dt-train full --pretrained_model_name_or_path "$M" --plan a --latents a.cache --output_dir no --memory_plan "$@" 2>/dev/null |
        sed -n 's/^  gradients *\([0-9.]*\) MiB.*/\1/p'
}
# saved: by how much the peak of such a run is less
saved() {
    for norm in 1 0; do
        near full --plan a --latents a.cache --max_grad_norm $norm
        sed -n 's/^dt-train: peak memory \([0-9.]*\) MiB.*/\1/p' said >peak$norm
    done
    gradients --max_grad_norm 1 | paste peak1 peak0 - | awk '{ print ($1 - $2 > 0.8 * $3) ? "the gradients, about" : "peaks " $1 " and " $2 ", gradients " $3 }'
}
check 'full' saved 'within 5 %
within 5 %
the gradients, about'
check 'lora' "near lora --plan a --latents a.cache --rank 16 --max_grad_norm 0" 'within 5 %'
check 'vae' "near vae --train_data_meta $E/pictures/metadata.json --max_train_steps 1 --image_sample_size 64 --train_batch_size 2 \
    --max_train_samples 2 --max_grad_norm 0" 'within 5 %'
check 'text encoders too, bf16, ema' "near full --plan a --latents a.cache --train_text_encoder --use_ema --mixed_precision bf16 --max_grad_norm 0" 'within 5 %'
check 'not kept' 'gradients --max_grad_norm 0' ''
for how in '--max_grad_norm 1' '--max_grad_norm 0 --gradient_accumulation_steps 2' '--max_grad_norm 0 --dump_steps 1'; do
    check "kept with $how" "gradients $how | grep -c ." 1
done

# --- budgets ---
# smallest OPTION...: the budget that a refused run names
smallest() { dt-train "$@" --memory_budget 1M --output_dir no 2>&1 | sed -n 's/.*the smallest memory budget that would do is \([0-9]*\)M.*/\1/p'; }
# kept METHOD OPTION...: it is enough, and the run stays within it; a little less is not
kept() {
    n=$(smallest "$@" --pretrained_model_name_or_path "$M") || return
    near "$@" --memory_budget "${n}M" >near
    sed -n 's/^dt-train: peak memory \([0-9.]*\) MiB.*/\1/p' said | awk -v n="$n" '{ print ($1 <= n) ? "kept" : "peak " $1 " of " n }'
    near "$@" --memory_budget "$((n - 8))M" | grep -o 'smallest memory budget that would do'
}
check 'lora: the smallest budget is enough, and kept' "kept lora --plan b --latents b.cache --rank 16" 'kept
smallest memory budget that would do'
check 'full' "kept full --plan a --latents a.cache" 'kept
smallest memory budget that would do'
check 'full, without clipping' "kept full --plan a --latents a.cache --max_grad_norm 0" 'kept
smallest memory budget that would do'
check 'vae' "kept vae --train_data_meta $E/pictures/metadata.json --max_train_steps 1 --image_sample_size 64 --train_batch_size 4 --max_train_samples 4" 'kept
smallest memory budget that would do'
check 'which recomputes' "dt-train lora --pretrained_model_name_or_path $M --plan b --latents b.cache --rank 16 --output_dir no \
    --memory_budget \$(smallest lora --pretrained_model_name_or_path $M --plan b --latents b.cache --rank 16)M --memory_plan | grep -c 'gradient checkpointing is on'" 1
check 'with the caching that the run does itself, which a refusal comes before' "kept lora --train_data_meta $E/pictures/metadata.json --max_train_steps 1 \
    --image_sample_size 64 --train_batch_size 4 --max_train_samples 4 --rank 4; ls no | grep -c cache; :" 'kept
smallest memory budget that would do
0'
