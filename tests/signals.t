#!/bin/bash
# signals.t - SIGINT, SIGTERM, SIGUSR1 at each stage of dt-train, as dt(7) has them.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures
cd "$T" || exit 1
export OMP_NUM_THREADS=1

mkdir data many held
for p in crown rocket; do cp "$E/$p.png" data/; echo "a $p" >data/$p.txt; done
cp "$E"/a*.png "$E"/b*.png many/
cp data/rocket* held/
R="dt-train lora --pretrained_model_name_or_path $M --max_sequence_length 16 --rank 2 --use_ema --report_to none"
D="--train_data_dir data --image_sample_size 32 --train_batch_size 1 --num_train_epochs 100000"
V='--validation_prompts a --validation_steps 1 --validation_data_dir held'

until_there() { for _ in $(seq 1200); do [ -e "$1" ] && return; sleep 0.05; done; echo "no $1"; return 1; }
until_caught() { for _ in $(seq 1200); do grep -q '^SigCgt:.*[4-7c-f]...$' "/proc/$1/status" && break; sleep 0.05; done; sleep 0.05; }
steps() { wc -l <"$1/metrics.ndjson"; }
asked() { grep -c 'stopped on request' "$1"; }
same() { cmp "$1/lora.safetensors" "$2/lora.safetensors" && cmp "$1/metrics.ndjson" "$2/metrics.ndjson"; }

# --- stopped while training: the step is finished, saved, and the same command goes on to the same bits ---
for sig in INT:130 TERM:143; do
    name=${sig%:*}
    # bash starts what is in the background with SIGINT ignored; a tool that it starts catches it all the same
    check "SIG$name: exit ${sig#*:}, with a checkpoint of the last step" \
        "$R $D --max_train_steps 100000 --output_dir $name 2>$name.said & pid=\$!
         until_there $name/metrics.ndjson; kill -$name \$pid; wait \$pid; echo \$? \$(asked $name.said)
         ls -d $name/checkpoint-\$(steps $name)/manifest.json | wc -l; ls -A $name | grep -c tmp; :" "${sig#*:} 1
1
0"
    n=$(($(steps $name) + 2))
    check "SIG$name: gone on with, the bits of a run that was not stopped" \
        "$R $D --max_train_steps $n -q --output_dir $name --resume_from_checkpoint latest &&
         $R $D --max_train_steps $n -q --output_dir whole-$name && same $name whole-$name"
done

# --- a second signal ends at once what cannot leave by itself: here it waits for a stream that does not come ---
mkfifo stream
check 'the first signal waits for the moment to leave, a second one does not' \
    "$R --latents - --output_dir two <stream 2>two.said & pid=\$!
     exec 9>stream; until_caught \$pid; kill -TERM \$pid; sleep 0.7; kill -0 \$pid && kill -TERM \$pid; wait \$pid; echo \$? \$(wc -c <two.said)" '143 0'
check 'a stream that is broken off when all are asked to stop is no error' \
    "$R --latents - --output_dir two <stream 2>two.said & pid=\$!
     exec 9>stream; until_caught \$pid; kill -INT \$pid; exec 9>&-; wait \$pid; echo \$? \$(asked two.said)" '130 1'

check 'while it waits, another run in its folder is refused' \
    "$R --latents - --output_dir two <stream 2>two.said & pid=\$!
     exec 9>stream; until_caught \$pid; $R $D --output_dir two 2>said; echo \$?; grep -c \"another dt-train is at work in 'two'\" said
     kill -KILL \$pid; exec 9>&-; wait \$pid 2>/dev/null; $R $D --max_train_steps 1 -q --output_dir two; echo \$?" '1
1
0'

# --- SIGUSR1: saves once, goes on ---
check 'SIGUSR1: one checkpoint more, and the run goes on' \
    "$R $D --max_train_steps 400 --checkpointing_steps 400 --output_dir usr -q & pid=\$!
     until_there usr/metrics.ndjson; kill -USR1 \$pid; wait \$pid; echo \$?; ls -d usr/checkpoint-* | wc -l; steps usr" '0
2
400'
check 'SIGUSR1: the bits of a run that was not asked' \
    "$R $D --max_train_steps 400 --checkpointing_steps 400 --output_dir whole-usr -q && same usr whole-usr"

# --- in other stages ---
check 'SIGTERM while sampling: the validation is left, the state saved' \
    "$R $D --max_train_steps 3 $V --validation_inference_steps 1000 --output_dir val 2>val.said & pid=\$!
     until_there val/metrics.ndjson; kill -TERM \$pid; wait \$pid; echo \$? \$(asked val.said); ls -A val | grep -c tmp; :" '143 1
0'
check 'gone on with, the validation is made up for' \
    "for o in val whole-val; do $R $D --max_train_steps 3 $V --validation_inference_steps 2 -q --output_dir \$o --resume_from_checkpoint latest; done &&
     same val whole-val && diff -r val/samples whole-val/samples && cmp val/validation.ndjson whole-val/validation.ndjson; steps val" 3
for to in 'dt-train alone' 'the process group, as a terminal does'; do
    [ "${to#the}" = "$to" ] && k='kill -TERM $pid' || k='kill -TERM -- -$pid'
    rm -rf cache
    check "SIGTERM while caching, to $to" \
        "setsid $R --train_data_dir many --image_sample_size 256 --max_train_steps 1 --output_dir cache 2>cache.said & pid=\$!
         until_there cache/cache/.lock-0of1; sleep 0.3; $k; wait \$pid; echo \$? \$(asked cache.said); ls -A cache/cache | grep -c tmp; :" '143 1
0'
done
check 'what was encoded is kept' \
    "dt-cache-latents --model $M --max_sequence_length 16 -o cache/cache --plan cache/plan.ndjson 2>&1 | grep -Eq ' [1-9][0-9]* there already'"

# --- the other tools ---
mkfifo meta
check 'SIGINT to dt-bucket: nothing is written' \
    "dt-bucket -q --train_data_dir many --train_data_meta meta -o plan.out 2>bucket.said & pid=\$!
     exec 9>meta; until_caught \$pid; kill -INT \$pid; printf 'file_path\nairplane.png\nant.png\n' >&9; exec 9>&-
     wait \$pid; echo \$?; ls -A | grep -c plan.out; :" '130
0'
check 'SIGTERM to dt-sample: no half of a picture' \
    "dt-sample --pretrained_model_name_or_path $M --max_sequence_length 16 --steps 1000 --height 128 --width 128 -q -o pictures -p x y 2>sample.said & pid=\$!
     until_caught \$pid; sleep 0.3; kill -TERM \$pid; wait \$pid; echo \$? \$(asked sample.said); ls -A pictures 2>/dev/null | wc -l" '143 1
0'
