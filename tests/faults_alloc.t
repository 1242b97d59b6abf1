#!/bin/bash
# faults_alloc.t - allocations that fail, at random, in every tool: exit 5 with one line, no crash, nothing half-written.
#
# tests/faults/shim.c says which calls fail and why only those.  Half of the points are drawn from all calls, half from
# the kinds of calls (caller and size), so that the rare ones have their turn; every third point fails for good, the
# others once.  FAULTS_SEED=N FAULTS_POINTS=N hunt elsewhere and longer; FAULTS_ONLY=NAME takes one of the tools.
[ -z "${SAN-}" ] || { echo '1..0 # SKIP sanitizers have an allocator of their own'; exit 0; }
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures
seed=${FAULTS_SEED:-1} points=${FAULTS_POINTS:-40}
export OMP_NUM_THREADS=1
${CC:-cc} -O1 -Wall -D_GNU_SOURCE -shared -fPIC -o "$T/shim.so" tests/faults/shim.c -ldl || exit 1
cd "$T" || exit 1
echo "# FAULTS_SEED=$seed FAULTS_POINTS=$points"
RANDOM=$seed
LIBS=libcjson:libpng:libjpeg:libavcodec:libavutil:libswscale:libxxhash:libpcre2:libsentencepiece

mkdir data
for p in crown rocket; do cp "$E/$p.png" data/; echo "a $p" >data/$p.txt; done
echo '{"caption":"a crown"}' >data/crown.json
tar -cf data.tar -C data crown.png crown.json rocket.png rocket.txt
rm data/crown.json
printf '%s\n' '{"file_path":"crown.png","text":"a crown"}' '{"file_path":"rocket.png","text":"a rocket"}' >m.jsonl
printf '%s\n' '[[datasets]]' 'resolution = 32' 'batch_size = 2' '[[datasets.subsets]]' "image_dir = 'data'" \
    'shuffle_caption = true' "caption_prefix = 'x, y,'" 'num_repeats = 2' >c.toml
P='--image_sample_size 32 --train_batch_size 2 --max_train_steps 2'
dt-bucket -q $P -o plan data && dt-cache-latents -q --threads 1 --model "$M" --max_sequence_length 16 -o cache plan || exit 1
R="--pretrained_model_name_or_path $M --max_train_steps 2 --checkpointing_steps 1 --quiet --output_dir out --resume_from_checkpoint latest"

# What an output holds: sums and names, without what tells the time and what nobody takes for a result.
holds() { [ ! -f "$1" ] || cksum "$1"; (cd "$1" 2>/dev/null && find . -type f ! -name '.*' ! -path '*/logs/*' ! -path '*/cache/*' ! -name 'events.out*' ! -name run.json ! -path '*.tmp/*' -exec cksum {} + | LC_ALL=C sort); :; }

# wrong STATUS: what is wrong with the run that left `out` and `said`, or nothing.  Metrics, chart and sheet grow during a
# run, a shard of the cache is complete with what there was time for, a model's folder with its weights, written last: those are
# seen when the run goes on.
wrong() {
    local extra
    [ "$1" -eq 0 ] || [ "$1" -eq 5 ] || { echo "exit status $1"; return; }
    [ "$1" -eq 0 ] || [ -s said ] || { echo 'no message'; return; }
    [ "$1" -eq 0 ] || grep -qiE 'memory|do not fit|cannot allocate' said || { echo 'the message does not speak of memory'; return; }
    [ "$(wc -l <said)" -le 3 ] || { echo 'too many words'; return; }
    holds out >now
    extra=$(comm -23 now want | awk '{ print $3 }' | grep -vE '/(metrics.ndjson|samples.png|loss.png|shard-.*.tar|vae/config.json)$')
    [ -z "$extra" ] || { echo "half-written:" $extra; return; }
    [ "$1" -ne 0 ] || cmp -s now want || echo 'exit 0 without all of the output'
}

# hunt NAME COMMAND [out]: COMMAND writes into the folder out, or to stdout.  Every fourth time it is run again, and goes
# on with what is there.
hunt() {
    [ "${FAULTS_ONLY:-$1}" = "$1" ] || return 0
    local calls n at kinds i st why bad=0 text=
    rm -rf out count
    FAULT_LIBS=$LIBS FAULT_COUNT=$T/count LD_PRELOAD=$T/shim.so $2 >o 2>said || { not_ok "$1" "$(cat said)"; return; }
    [ -z "$3" ] || mv o out
    holds out >want
    calls=$(awk 'NF == 2 { n = $1 } END { print n + 0 }' count)
    mapfile -t kinds < <(awk 'NF == 1' count | sort -n)
    for ((i = 0; i < points; i++)); do
        n=$((RANDOM * 32768 + RANDOM))
        at=$((i % 2 ? n % calls + 1 : kinds[n % ${#kinds[@]}]))
        ((i % 3)) || at=$at+
        rm -rf out
        FAULT_LIBS=$LIBS FAULT_ALLOC=$at timeout 60 env LD_PRELOAD="$T/shim.so" $2 >o 2>said
        st=$?
        [ -z "$3" ] || [ $st -ne 0 ] || mv o out
        why=$(wrong $st)
        if [ -z "$why$3" ] && ((i % 4 == 0)); then
            $2 >o 2>said && holds out >now && { [ "$1" = cache ] || cmp -s now want; } || why="run again without faults, status $?"
        fi
        [ -z "$why" ] || { bad=1; text+="FAULT_ALLOC=$at: $why: $(tail -n 2 said)"$'\n'; }
    done
    rm -rf out                  # and once more, with memory
    $2 >o 2>said && { [ -z "$3" ] || mv o out; } && holds out >now && cmp -s now want || { bad=1; text+="then, without faults: $(cat said)"; }
    if ((bad)); then not_ok "$1: $calls calls of ${#kinds[@]} kinds" "$text"; else ok "$1: $calls calls of ${#kinds[@]} kinds"; fi
}

hunt bucket "dt-bucket -q $P --verify_images --dataloader_num_workers 2 -o out data"
LIBS=$LIBS:libarchive:libstdc++ hunt toml "dt-bucket -q --max_train_steps 2 -o out c.toml"
hunt tar "dt-bucket -q $P --verify_images --dataloader_num_workers 2 -o out data.tar"
hunt metadata "dt-bucket -q $P --train_data_dir data -o out m.jsonl"
hunt cache "dt-cache-latents -q --threads 1 --dataloader_num_workers 2 --model $M --max_sequence_length 16 -o out plan"
hunt stream "dt-cache-latents -q --threads 1 --dataloader_num_workers 2 --model $M --max_sequence_length 16 -o - plan" out
hunt lora "dt-train lora $R --rank 2 --plan plan --latents cache --max_sequence_length 16 --report_to tensorboard --use_ema"
hunt full "dt-train full $R --plan plan --latents cache --max_sequence_length 16 --validation_prompts x --validation_steps 1"
hunt vae "dt-train vae $R --plan plan --dataloader_num_workers 2"
hunt stages "dt-train lora $R --rank 2 --train_data_dir data --image_sample_size 32 --train_batch_size 2"
hunt tokenizer "dt-train tokenizer --train_data_meta data --clip_vocab_size 520 --t5_vocab_size 64 --output_dir out"
hunt sample "dt-sample --pretrained_model_name_or_path $M --max_sequence_length 16 --steps 1 -q -o out -p one --grid out/sheet.png \
    --compare_base --lora $M/../lora_text_kohya.safetensors"
hunt convert "dt-merge-shards lora -q -o out --lora_format kohya $M/../lora_all_comfy.safetensors"
hunt merge "dt-merge-shards merge -q -o out $M --lora $M/../lora_all_comfy.safetensors"
