#!/bin/bash
# kill.t - killed with SIGKILL at any moment, the same command again ends with the bits of a run that was never stopped.
#
# tests/kill/killer.c counts the calls that change files - writes, syncs, renames, removals - and kills before, after or,
# of a write, half through the one that was drawn: half of the moments from all calls, half from the kinds of calls
# (name and file), so that the rare ones have their turn.  Others are drawn from the time that a run takes.  Every third run
# is killed a second time while it makes good the first, and every fourth kill spares the children of dt-train.
# KILL_SEED=N KILL_MOMENTS=PERCENT hunt elsewhere and longer; KILL_ALL=1 takes every call in turn; KILL_ONLY=NAME one hunt.
[ -z "${SAN-}" ] || { echo '1..0 # SKIP the leak sanitizer cannot be traced'; exit 0; }
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures
seed=${KILL_SEED:-$((RANDOM * 32768 + RANDOM))} percent=${KILL_MOMENTS:-100} KILL_ALL=${KILL_ALL-}
export OMP_NUM_THREADS=1
${CC:-cc} -O1 -Wall -Wextra -D_GNU_SOURCE -o "$T/killer" tests/kill/killer.c || exit 1
cd "$T" || exit 1
if ! ./killer -d "$T" true 2>said; then skip 'killed at any moment' "no ptrace here: $(cat said)"; exit 0; fi
echo "# KILL_SEED=$seed"
RANDOM=$seed

mkdir data held
for p in crown rocket; do cp "$E/$p.png" data/; echo "a $p" >data/$p.txt; done
cp data/rocket* held/
D='--image_sample_size 32 --train_batch_size 2'
C="--model $M --threads 1 --max_sequence_length 16 -q"

# --- what an output is worth: names and sums of all that a run leaves, but for what tells the time ---
sums() { find "$@" -type f ! -name '.lock-*' ! -name run.json ! -path '*/logs/*' ! -path '*cache/*' -exec cksum {} + | LC_ALL=C sort -k 3; }
# A cache is its entries, in whatever shards they are, and what its indexes say of them.
cache_is() {
    cat "$1"/index-*.ndjson | grep -Ev '"(dt_cache|end)":' | sed 's/,"at":.*//' | LC_ALL=C sort -u
    mkdir x && for f in "$1"/shard-*.tar; do tar xf "$f" -C x; done; find x -type f -exec cksum {} + | LC_ALL=C sort -k 3; rm -r x
    for f in "$1"/shard-*.tar; do tar tf "$f"; done | sort | uniq -d
    find "$1" -name '*.tmp'
}

# A machine that loses its power keeps what was synced: a file before it gets its name, the folder after it, and
# metrics.ndjson before a checkpoint that counts on it.  Prints what was not.
unsynced() {
    awk '$1 == "write" { dirty[$2] = 1 }
        $1 == "fsync" { delete dirty[$2]; if ($2 !~ /^\./) named = "" }
        $1 == "rename" && ("." $2 ".tmp" in dirty) { print "named before it was synced:", $2 }
        $1 == "rename" && $2 ~ /^checkpoint-[0-9]+$/ && ("metrics.ndjson" in dirty) { print "not synced before " $2 ": metrics.ndjson" }
        $1 == "rename" && $2 !~ /tmp$/ { named = $2 }
        END { if (named != "") print "its folder was not synced:", named }' "$1" | sort | uniq -c
}

# --- one kind of run ---
# hunt NAME MOMENTS START RESULT WHOLE COMMAND: START makes the folder out as it is before, RESULT prints what out is worth,
# WHOLE prints what is wrong with out right after the kill.
hunt() {
    local name=$1 moments=$(($2 * percent / 100)) start=$3 result=$4 whole=$5 cmd=$6
    [ "${KILL_ONLY:-$name}" = "$name" ] || return 0
    local i=0 tries=0 n at how took calls rare why text='' fail=0
    local -a kind list ways=(before half after)
    rm -rf out; $start; took=$(date +%s%N)
    $cmd >said 2>&1 </dev/null || { not_ok "$name" "$(cat said)"; return; }
    took=$((($(date +%s%N) - took) / 1000000))
    $result >want
    rm -rf out; $start
    ./killer -d "$T" -l list $cmd >said 2>&1 </dev/null || { not_ok "$name, counted" "$(cat said)"; return; }
    $result >now; cmp -s now want || { not_ok "$name: two runs differ" "$(diff now want)"; return; }
    check "$name: synced in time" 'unsynced list'
    mapfile -t list <list
    calls=${#list[@]}
    mapfile -t kind < <(awk '{ k = $1 " " $2; gsub(/[0-9]+/, "0", k); if (!(k in n)) print NR; n[k] }' list)
    [ -z "$KILL_ALL" ] || moments=$((calls * 3))
    while ((i < moments && tries < 4 * moments + 8)); do
        n=$((RANDOM * 32768 + RANDOM)) how=${ways[n % 3]}
        at=$((n / 3 % calls + 1)); ((tries % 2)) && { rare=${kind[n / 3 % ${#kind[@]}]}; at=$rare; }
        [ -z "$KILL_ALL" ] || { at=$((tries / 3 + 1)) how=${ways[tries % 3]}; }
        ((tries++))
        rm -rf out; $start
        why=
        kill_once
        [ -n "$why$KILL_ALL" ] || ((i % 3)) || { at=$((n / 7 % calls + 1)); kill_once; }
        if [ -z "$why" ]; then
            $cmd >said 2>&1 </dev/null || why="the same command again: status $?: $(tail -n 3 said)"
            $result >now
            [ -n "$why" ] || cmp -s now want || why="another result: $(diff now want | head -n 8)"
        fi
        [ -z "$why" ] || { fail=1 text+="$story: $why"$'\n'; }
        [ -z "$KILL_ALL${KILL_WORDS-}" ] || echo "# $story${why:+: $why}"
        story=
        if [ "$KILL_ALL" ] && ((tries >= moments)); then break; fi
    done
    killed=$((killed + i))
    if ((fail)) || ((i < moments)); then not_ok "$name: $i kills among $calls calls of ${#kind[@]} kinds" "$text"
    else ok "$name: $i kills among $calls calls of ${#kind[@]} kinds"; fi
}

# Kills $cmd at call $at ($how), or after some time; counts in $i if it was still running, sets $why if something is wrong.
kill_once() {
    local st r=() ms
    ((i % 4)) || r=(-r)
    if ((tries % 7 == 0)) && [ -z "$KILL_ALL" ]; then
        ms=$((n % (took + 1)))
        timeout --foreground -s KILL "$((ms / 1000)).$(printf %03d $((ms % 1000)))" $cmd >said 2>&1 </dev/null; st=$?
        ((st != 124)) || st=0           # it ended by itself at that moment
        echo "killed: after $ms ms" >said
    else
        ./killer -d "$T" -n "$at" -w "$how" "${r[@]}" $cmd >said 2>&1 </dev/null; st=$?
    fi
    ((st == 137)) && ((i++))
    story+="$(grep -h ^killed: said | tr '\n' ' ')${r[*]}"
    ((st == 0 || st == 137)) || why="status $st: $(tail -n 2 said)"
    [ -n "$why" ] || why=$($whole)
}
killed=0

# --- dt-bucket: nothing or all; the old one or the new one ---
nothing() { :; }
old() { echo old >out; }
bucket_is() { sums out; find . -maxdepth 1 -name '.out*.tmp'; }
bucket_whole() { [ ! -e out ] || cksum <out | cmp -s - <(sed -n '1s/ out$//p' want) || echo 'half-written'; }
bucket_whole_old() { [ "$(cat out)" = old ] || bucket_whole; }
hunt bucket 4 nothing bucket_is bucket_whole "dt-bucket -q $D --num_train_epochs 2 -o out data"
hunt bucket-again 4 old bucket_is bucket_whole_old "dt-bucket -q $D --num_train_epochs 2 -o out data"

# --- dt-merge-shards: the same of a folder ---
merge_is() { sums out; find . -maxdepth 1 -name '.out*.tmp'; }
merge_whole() { [ ! -e out ] || sums out | cmp -s - want || echo 'half-written'; }
hunt merge 4 nothing merge_is merge_whole "dt-merge-shards merge -q -o out $M --lora $M/../lora_all_comfy.safetensors"

# --- dt-cache-latents: shards and indexes that have their names are complete, so the next run reads them without a word ---
dt-bucket -q $D -o plan data
dt-bucket -q $D -o other held
half_cache() { dt-cache-latents $C -o out other; }
out_is() { cache_is out; }
cache_whole() {
    local f
    for f in out/shard-*.tar; do [ ! -e "$f" ] || tar tf "$f" >/dev/null 2>&1 || echo "half: $f"; done
    for f in out/index-*.ndjson; do [ ! -e "$f" ] || tail -n 1 "$f" | grep -q '"end":true' || echo "half: $f"; done
}
hunt cache 6 nothing out_is cache_whole "dt-cache-latents $C --max_shard_size 64K -o out plan"
hunt cache-again 6 half_cache out_is cache_whole "dt-cache-latents $C -o out plan"

# --- dt-train, all its stages, EMA, validation, old checkpoints removed ---
R="$D --pretrained_model_name_or_path $M --max_sequence_length 16 --max_train_steps 5 --checkpointing_steps 2 --checkpoints_total_limit 2"
V='--use_ema --validation_prompts a --validation_steps 2 --validation_inference_steps 1 --validation_data_dir held --dataloader_num_workers 1'
train_is() { sums out; cache_is out/cache; cache_is out/held-cache; }
# A checkpoint is complete from the moment that it has a manifest.
train_whole() {
    local f
    for f in out/checkpoint-[0-9]/manifest.json; do
        [ ! -e "$f" ] || [ "$(find "${f%/*}" -name '*.safetensors' | wc -l)" -eq 5 ] || echo "incomplete: ${f%/*}"
    done
}
hunt train 22 nothing train_is train_whole \
    "dt-train lora $R $V --train_data_dir data --rank 2 --output_dir out -q"

# Over what another run has left, from its first step: that is set aside, and nothing of it is lost.
finished() { cp -r whole out; }
dt-train lora $R --train_data_dir data --rank 2 --output_dir whole -q --use_ema --learning_rate 1e-3 >said 2>&1 || cat said
old_sums=$(cd whole && sums checkpoint-* metrics.ndjson loss.png lora.safetensors | cut -d' ' -f1,2 | sort)
result_is() { sums out | grep -v ' out/old-[0-9]*/'; }
aside_whole() {
    train_whole
    sums out | cut -d' ' -f1,2 | LC_ALL=C sort -u | LC_ALL=C comm -23 <(LC_ALL=C sort -u <<<"$old_sums") - | sed 's/^/lost: /'
}
hunt train-anew 8 finished result_is aside_whole \
    "dt-train lora $R --train_data_dir data --rank 2 --output_dir out -q --use_ema --resume_from_checkpoint none"
hunt vae 4 nothing result_is : "dt-train vae ${R/--max_sequence_length 16/} --use_ema --train_data_dir data --output_dir out -q"
hunt text-encoders 3 nothing result_is : \
    "dt-train full $R --train_text_encoder --trainable_modules norm_out final_layer_norm --train_data_dir data --output_dir out -q"
hunt full 4 nothing result_is : "dt-train full $R --use_ema --trainable_modules norm_out --train_data_dir data --output_dir out --resume_from_checkpoint latest -q"
hunt full-unclipped 3 nothing result_is : "dt-train full $R --max_grad_norm 0 --trainable_modules norm_out --train_data_dir data --output_dir out -q"
echo "# $killed kills"
