#!/bin/bash
# pipelines/flux-lora.mk: its stages, what makes one run anew, signals; with tools that only leave traces, then with the
# real ones on a few pictures.
. tests/lib.sh

# --- tools that write what they are asked for and leave a line in $T/log ---
mkdir "$T/bin" "$T/pictures"
cat >"$T/bin/tool" <<'E2'
#!/bin/sh
echo "${0##*/}" >>"$LOG"
for a; do
    case $a in
    --output=*.ndjson|--grid=*) echo x >"${a#*=}" ;;
    --output=*)     mkdir -p "${a#*=}" ;;
    --output_dir=*) echo x >"${a#*=}/lora.safetensors" ;;
    esac
done
case ${0##*/} in
dt-bucket) echo '{"item":0,"path":"p","text":"a \"b\"","size":[1,1]}' >"$OUT/plan.ndjson"; exit 3 ;;
dt-train)  [ ! -e "$OUT/slow" ] || { trap 'echo saved >>"$LOG"; exit 143' TERM; echo ready >>"$LOG"; sleep 30 & wait; } ;;
esac
E2
chmod +x "$T/bin/tool"
for t in dt-bucket dt-cache-latents dt-train dt-sample; do ln -s tool "$T/bin/$t"; done
export LOG=$T/log OUT=$T/out
touch "$T/pictures/a.png"
make=(env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make --no-print-directory -f pipelines/flux-lora.mk MODEL_NAME=model
    DATASET_NAME="$T/pictures" OUTPUT_DIR="$OUT" DT="$T/bin/")
pipe() { "${make[@]}" "$@"; }
# ran ARGUMENTS: the tools that a run of the pipeline starts
ran() { : >"$LOG"; pipe "$@" >/dev/null 2>"$T/.err" || cat "$T/.err"; xargs <"$LOG"; }

check 'make -n lists the stages in order' "pipe -n | grep -o 'bin/dt-[a-z-]*' | xargs" \
    'bin/dt-bucket bin/dt-cache-latents bin/dt-train bin/dt-sample'
check 'and does nothing' "ls $OUT 2>/dev/null; :"
check 'a stage is a target' "pipe -n $OUT/plan.ndjson | grep -c dt-"  1
fails 2 'a variable is missing' 'make -f pipelines/flux-lora.mk DATASET_NAME=x' 'MODEL_NAME is not set'
check 'all stages' 'ran' 'dt-bucket dt-cache-latents dt-train dt-sample'
check 'captions become prompts' "cat $OUT/prompts.ndjson" '{"prompt":"a \"b\""}'
check 'nothing twice' 'ran' ''
check 'another rank: train and sample' 'ran RANK=4' 'dt-train dt-sample'
check 'the same rank' 'ran RANK=4' ''
check 'other prompts: sample' "echo x >$T/p; ran RANK=4 PROMPTS=$T/p" 'dt-sample'
check 'a result that is gone' "rm $OUT/lora.safetensors; ran RANK=4 PROMPTS=$T/p" 'dt-train dt-sample'
check 'another picture: everything' "sleep 0.01; touch $T/pictures/b.png; ran RANK=4 PROMPTS=$T/p" \
    'dt-bucket dt-cache-latents dt-train dt-sample'
check 'shards' 'ran -j4 RANK=4 SHARDS=3 | tr " " "\n" | sort | uniq -c | xargs' '3 dt-cache-latents 1 dt-sample 1 dt-train'
check 'each has its part' "cat $OUT/.cache-*of3.cmd | grep -o 'shard=[^ ]*' | sort | xargs" 'shard=0/3 shard=1/3 shard=2/3'

# --- the wrapper of a stage ---
check 'skipped items are no failure' "pipelines/stage $T/s/.r sh -c 'exit 3'; cat $T/s/.r" 'sh -c exit 3'
fails 4 'a failure is one' "pipelines/stage $T/s/.f sh -c 'exit 4'"
check 'and leaves no record' "ls -A $T/s" '.r'
touch "$OUT/slow"
: >"$LOG"
"${make[@]}" RANK=5 >/dev/null 2>&1 &
for _ in $(seq 100); do grep -q ready "$LOG" && break; sleep 0.1; done
kill -TERM $!
wait $!
check 'SIGTERM to make reaches the tool' "xargs <$LOG" 'dt-train ready saved'
rm "$OUT/slow"
check 'and the next make goes on' 'ran RANK=5 SHARDS=1' 'dt-train dt-sample'

# --- the other pipelines ---
plan_of() { env -u MAKEFLAGS -u MFLAGS make -n -f "pipelines/$1" OUTPUT_DIR="$T/n"; }
check 'the tiny base: its stages' "plan_of tiny-flux.mk | grep -o 'dt-train [a-z]*' | cut -c10- | xargs" 'tokenizer vae full full full'
check 'the demo: its stages' "plan_of demo.mk | grep -o ' [^ ]*dt-[a-z-]* ' | sed 's,.*/,,' | xargs" 'dt-bucket dt-cache-latents dt-train dt-sample'

# --- the real tools: four pictures, 40 steps, stopped in the middle ---
export OMP_NUM_THREADS=1
real() { # OUTPUT_DIR ARGUMENTS; run=exec: this shell becomes make
    ${run-} "${make[@]}" MODEL_NAME=tests/golden/tiny-flux DATASET_NAME=examples/concept DATASET_META_NAME=examples/concept/metadata.json \
        OUTPUT_DIR="$1" DT="$B/bin/" IMAGE_SAMPLE_SIZE=32 MIXED_PRECISION=no BUCKET_FLAGS=--max_train_samples=4 RANK=2 ALPHA=2 \
        TRAIN_BATCH_SIZE=2 STEPS=40 SAMPLE_STEPS=2 "${@:2}"
}
files() { (cd "$1" && find . -type f ! -name '.lock*' -printf '%p %T@\n' | sort); }
check 'pictures to samples' "real $T/a >/dev/null && cd $T/a && ls" 'cache
checkpoint-40
logs
lora.safetensors
loss.png
metrics.ndjson
plan.ndjson
prompts.ndjson
run.json
samples.png'
check 'pictures without captions are sampled with the empty prompt' "${make[*]} MODEL_NAME=tests/golden/tiny-flux \
    DATASET_NAME=examples/pictures OUTPUT_DIR=$T/n DT=$B/bin/ BUCKET_FLAGS=--max_train_samples=3 EPOCHS=1 $T/n/prompts.ndjson \
    >/dev/null 2>&1; cat $T/n/prompts.ndjson" '{"prompt":""}'
files "$T/a" >"$T/before"
check 'again: nothing is done' "real $T/a 2>&1; files $T/a | cmp - $T/before" "make: Nothing to be done for 'all'."
run='exec' real "$T/b" >/dev/null 2>&1 &
for _ in $(seq 600); do [ -s "$T/b/metrics.ndjson" ] && break; sleep 0.05; done
kill -TERM $!
wait $!
check 'stopped: a checkpoint, no LoRA' "ls -d $T/b/checkpoint-* $T/b/lora* 2>/dev/null | grep -vc checkpoint-40" 1
check 'again: training goes on, the plan and the cache are not made anew' \
    "real $T/b 2>&1 >/dev/null | sed -n 's/^\(dt-[a-z-]*\):.*\(resumed\).*/\1 \2/p; s/^\(dt-bucket\|dt-cache-latents\):.*/\1/p' | sort -u" 'dt-train resumed'
check 'and ends with the bits of the run that was not stopped' "cmp $T/a/lora.safetensors $T/b/lora.safetensors && cmp $T/a/samples.png $T/b/samples.png"
