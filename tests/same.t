#!/bin/bash
# same.t - the same seed gives the same bits, however the data comes and whatever memory there is.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures
cd "$T" || exit 1
export OMP_NUM_THREADS=1

mkdir data
for p in crown rocket sun_with_face airplane; do cp "$E/$p.png" data/; echo "a $p, and what else there is" >data/$p.txt; done
D='--image_sample_size 48 --enable_bucket --random_flip --train_batch_size 2 --caption_dropout 0.3 --max_train_steps 5'
N="--pretrained_model_name_or_path $M --max_train_steps 5 --checkpointing_steps 2 --report_to none --quiet"
L="dt-train lora $N --max_sequence_length 16 --rank 2 --use_ema"
F="dt-train full $N --max_sequence_length 16 --trainable_modules attn"
V="dt-train vae $N"
rest="--train_data_dir data ${D% --max*}"

# What was trained, how it went, and all that a run needs to go on.
same() {
    (cd "$1" && find . -name '*.safetensors' -o -name metrics.ndjson | LC_ALL=C sort) >files
    [ "$(wc -l <files)" -ge 10 ] || { cat files; return 1; }
    while read -r f; do cmp "$1/$f" "$2/$f" || return 1; done <files
}

for w in 0 1 8; do
    check "lora, $w loader threads" "$L $rest --dataloader_num_workers $w --output_dir lora$w && same lora0 lora$w"
done
for w in 0 1 8; do
    check "lora, cached, $w loader threads" \
        "$L --plan lora0/plan.ndjson --latents lora0/cache --dataloader_num_workers $w --output_dir cached$w && same lora0 cached$w"
    check "lora, piped, $w loader threads" \
        "dt-bucket -q $D data | dt-cache-latents --threads 1 --model $M --max_sequence_length 16 -q --dataloader_num_workers $w -o - |
         $L --latents - --dataloader_num_workers $w --output_dir piped$w && same lora0 piped$w"
done
check 'lora, a memory budget that all fits into' "$L $rest --memory_budget 16G --output_dir budget && same lora0 budget"
check 'lora, gone on with otherwise' \
    "cp -r lora1 on && rm -r on/checkpoint-[45] on/lora.safetensors &&
     $L $rest --memory_budget 16G --dataloader_num_workers 8 --low_vram --output_dir on --resume_from_checkpoint latest && same lora0 on"
for w in 0 8; do
    check "full, $w loader threads" "$F --plan lora0/plan.ndjson --latents lora0/cache --dataloader_num_workers $w --output_dir full$w && same full0 full$w"
    check "vae, $w loader threads" "$V --plan lora0/plan.ndjson --dataloader_num_workers $w --output_dir vae$w && same vae0 vae$w"
done
check 'full, piped' "dt-bucket -q $D data | dt-cache-latents --threads 1 --model $M --max_sequence_length 16 -q -o - | $F --latents - --output_dir fullp && same full0 fullp"
check 'full, a memory budget that all fits into' \
    "$F --plan lora0/plan.ndjson --latents lora0/cache --memory_budget 16G --output_dir fullb && same full0 fullb"
check 'vae, a memory budget' "$V --plan lora0/plan.ndjson --memory_budget 16G --output_dir vaeb && same vae0 vaeb"
check 'a plan, 0, 1 and 8 threads that decode' \
    "for w in 0 1 8; do dt-bucket -q $D --verify_images --dataloader_num_workers \$w data | cksum; done | uniq -c | awk '{ print \$1, (\$3 > 500) }'" '3 1'
# --- weights where they lie in the file, and copied ---
# aligned as their numbers are not, they are copied
cp -r "$M" odd
for f in odd/*/*.safetensors; do
    n=$(($(od -An -tu8 -N8 "$f") + 1))
    { printf "\\$(printf %03o $((n & 255)))\\$(printf %03o $((n >> 8)))\0\0\0\0\0\0"; head -c $((7 + n)) "$f" | tail -c +9; printf ' '; tail -c +$((8 + n)) "$f"; } >new
    mv new "$f"
done
cp -r "$M" oddt; rm -r oddt/transformer; mv odd/transformer oddt; cp -r "$M/transformer" odd        # a cache knows its encoders
for how in '' --low_vram; do
    check "lora, copied weights $how" "$L --plan lora0/plan.ndjson --latents lora0/cache --mixed_precision bf16 --output_dir here$how $how &&
        ${L/"$M"/oddt} --plan lora0/plan.ndjson --latents lora0/cache --mixed_precision bf16 --output_dir there$how $how &&
        cmp here$how/metrics.ndjson there$how/metrics.ndjson && cmp <(tail -c 1000 here$how/lora.safetensors) <(tail -c 1000 there$how/lora.safetensors)"
    S="--max_sequence_length 16 --mixed_precision bf16 --steps 2 -q -p cat $how"
    check "samples $how" "dt-sample --pretrained_model_name_or_path $M $S --save_latents lat1 && dt-sample --pretrained_model_name_or_path oddt $S --save_latents lat2 &&
        cmp lat1 lat2"
    check "a cache $how" "dt-cache-latents --model $M --max_sequence_length 16 --mixed_precision bf16 -q $how -o c1$how lora0/plan.ndjson &&
        dt-cache-latents --model odd --max_sequence_length 16 --mixed_precision bf16 -q $how -o c2$how lora0/plan.ndjson &&
        cmp <(for t in c1$how/*.tar; do tar xOf \$t --wildcards '*.safetensors' | cksum; done) <(for t in c2$how/*.tar; do tar xOf \$t --wildcards '*.safetensors' | cksum; done)"
done
check 'the same, given back or not' 'cmp here/metrics.ndjson here--low_vram/metrics.ndjson'
# 0 does not clip, and 1e9 clips nothing: without clipping, parameters are updated during the backward pass.
# one METHOD OPTION...: both
one() {
    rm -rf now later
    dt-train "$@" $N --max_grad_norm 0 --plan lora0/plan.ndjson --output_dir now && dt-train "$@" $N --max_grad_norm 1e9 --plan lora0/plan.ndjson --output_dir later &&
        same now later
}
T16='--latents lora0/cache --max_sequence_length 16'
check 'lora, updated during the backward pass' "one lora $T16 --rank 2 --use_ema"
check 'full' "one full $T16 --gradient_checkpointing --use_ema"
check 'full, bf16, text encoders too' "one full ${T16#*/cache} --train_text_encoder --mixed_precision bf16 --use_ema"
check 'vae' 'one vae --use_ema'
check 'gone on with' "rm -r now/checkpoint-[45] now/vae && dt-train vae $N --use_ema --max_grad_norm 0 --plan lora0/plan.ndjson --output_dir now --resume_from_checkpoint latest && same now later"
check 'another seed, other bits' "$L $rest --seed 43 --output_dir seed && ! cmp -s seed/lora.safetensors lora0/lora.safetensors"

# --- the number of compute threads is part of a run ---
check 'it is in the checkpoint' "grep -h '\"threads\":' lora0/checkpoint-*/manifest.json | tr -d '\t ,' | sort -u" '"threads":1'
fails 2 'and another one is refused, with both numbers' "$L $rest --threads 3 --output_dir lora0 --resume_from_checkpoint latest" \
    'checkpoint-5 was made with 1 compute threads, this run has 3; add --threads 1 to get the same bits'
check 'as the manual says' "for p in dt.7 dt-train.1 dt-checkpoint.5; do man -l '$OLDPWD/man/'\$p 2>/dev/null | tr -s ' \n' ' ' | grep -c 'number of.*threads'; done | sort -u" 1

# --- what else a run that goes on meets ---
check 'begun anew, what was there is set aside' \
    "cp -r lora0 over && ${L/steps 5 --checkpointing_steps 2/steps 1 --checkpointing_steps 9} $rest --output_dir over --resume_from_checkpoint none 2>&1 |
     grep -c 'what an earlier run has left is in over/old-1 now'" 1
check 'and its checkpoints can still be gone on with' \
    "$L $rest --output_dir over --resume_from_checkpoint over/old-1/checkpoint-4 2>said && cmp over/lora.safetensors lora0/lora.safetensors &&
     grep -c 'earlier lines of this run are missing' said" 1
cp -r "$M" other; f=$(ls other/transformer/*00002-of*)
printf '\0' | dd of="$f" bs=1 seek=$(($(stat -c %s "$f") - 2)) conv=notrunc 2>/dev/null
fails 2 'another model' "${L/"$M"/other} $rest --output_dir lora0 --resume_from_checkpoint latest" 'lora0/checkpoint-5 was made from another model than other'

# What the budget chose is a setting like those of the command line.
B1="dt-train lora ${N/--max_train_steps 5 /} --train_data_dir data --image_sample_size 256 --train_batch_size 2 --rank 2 --max_sequence_length 16"
budget=1M               # each stage says what it needs itself
while said=$($B1 --max_train_steps 1 --memory_budget $budget --output_dir small 2>&1 | sed -n 's/.*budget that would do is \([0-9]*M\).*/\1/p'); [ -n "$said" ]; do
    budget=$said
done
rm -rf small
check 'recompute chosen by the budget: the bits of --gradient_checkpointing' \
    "$B1 --max_train_steps 2 --memory_budget $budget --output_dir small && $B1 --max_train_steps 2 --gradient_checkpointing --output_dir asked &&
     cmp small/lora.safetensors asked/lora.safetensors"
check 'gone on with as it was' "$B1 --max_train_steps 3 --gradient_checkpointing --output_dir small --resume_from_checkpoint latest"
fails 2 'and not otherwise' "$B1 --max_train_steps 4 --output_dir small --resume_from_checkpoint latest" 'made with --gradient_checkpointing true, this run has --gradient_checkpointing false'
