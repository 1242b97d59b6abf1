#!/bin/bash
# stale.t - nothing stale: every input of the cache is changed, one at a time.  What depends on it is encoded again, counted, and
# nothing else; and dt-train refuses to train on what was encoded before.  The inputs are listed from the sources and from a
# model folder, so that a new one without a mutation here fails.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures S=$PWD/libcommon
cd "$T" || exit 1
export OMP_NUM_THREADS=1

# 6 pictures, two of which have the same bytes; 4 captions.
mkdir pics
i=0
for f in crown rocket sun_with_face airplane ambulance; do
    i=$((i + 1)); cp "$E/$f.png" pics/$i.png; echo "caption $((i / 2))" >pics/$i.txt
done
cp pics/5.png pics/6.png; echo 'caption 3' >pics/6.txt
plan() { dt-bucket -q --image_sample_size 32 --train_batch_size 2 --caption_dropout 0 --num_train_epochs 1 -o "$@"; }
plan p pics
cp -r "$M" m
Q='--max_sequence_length 16' N='--rank 2 --report_to none --max_train_steps 1 --quiet'

# encoded CACHE PLAN OPTION...: "pictures captions" that a run encodes
encoded() {
    c=$1 pl=$2; shift 2
    dt-cache-latents --threads 1 --model m $Q -o "$c" "$@" "$pl" >log 2>&1; st=$?
    sed -n 's/.* \(pictures\|captions\): \([0-9]*\) encoded.*/\2/p' log | paste -sd ' '
    [ $st -eq 0 ] || { echo "exit $st"; tail -n 1 log; }
}
# train CACHE PLAN OPTION...: trains on it as it is; says only why not
train() {
    c=$1 pl=$2; shift 2
    rm -rf run
    dt-train lora --pretrained_model_name_or_path m $Q $N --plan "$pl" --latents "$c" --output_dir run "$@" >log 2>&1; st=$?
    [ $st -eq 0 ] || sed 's/^dt-train: //' log
    [ $st -eq 0 ] || [ ! -e run/lora.safetensors ] || echo 'but it trained'
}
# changed NAME "PICTURES CAPTIONS" REFUSAL PLAN OPTION...: a copy of the cache c needs so many again, after which it is complete; the old
# one is refused with this (an extended regular expression), or used if it is empty.  Options are of both programs.
changed() {
    name=$1 want=$2 refusal=$3 pl=$4; shift 4
    rm -rf k; cp -r c k
    check "$name: what depends on it is encoded again" "encoded k $pl $*" "$want"
    check "$name: once" "encoded k $pl $*" '0 0'
    if [ -z "$refusal" ]; then
        check "$name: nothing to refuse" "train c $pl $*" ''
    else
        check "$name: the old cache is refused" "train c $pl $* | grep -cE '$refusal'; :" 1
    fi
    check "$name: the new one is not" "train k $pl $*" ''
    done_with="$done_with ${name%% *}"
}

check 'a cache' 'encoded c p' '5 4'
check 'again' 'encoded c p' '0 0'
check 'trained on' 'train c p' ''
done_with=

# --- pictures ---
AGAIN='run dt-cache-latents again'
stash() { rm -rf stash; cp -a "$1" stash; }
restore() { rm -rf "$1"; cp -a stash "$1"; }

stash pics
printf x >>pics/1.png
changed 'source, a byte more in a picture' '1 0' "pics/1.png. is not what it was.*$AGAIN" p
restore pics
cp "$E/rocket.png" pics/1.png
changed 'source, now the same as another picture' '0 0' "pics/1.png. is not what it was.*$AGAIN" p
restore pics
printf x >>pics/5.png
changed 'source, one of two with the same bytes' '1 0' "pics/5.png. is not what it was.*1 such.*$AGAIN" p
restore pics
stash pics
sed 's/IEND/IEND/;$s/$/x/' pics/2.png >t; touch -r pics/2.png t; cat t >pics/2.png; touch -r t pics/2.png
changed 'source, with its time put back' '1 0' "pics/2.png. is not what it was.*$AGAIN" p
restore pics
touch pics/*.png
changed 'source, only touched' '0 0' '' p
mv pics moved; plan pm moved
changed 'path, a folder renamed' '0 0' 'is not in cache .c.; run dt-cache-latents' pm
mv moved pics
rm -rf k; cp -r c k; mv pics/3.png gone.png
check 'a picture that is not here cannot be compared, which is said' \
    "dt-train lora --pretrained_model_name_or_path m $Q ${N% --quiet} --plan p --latents k --output_dir run 2>&1 | grep -c '1 pictures are not here'" 1
mv gone.png pics/3.png

rm -rf k; cp -r c k; cp -a pics/4.png saved; head -c 100 saved >pics/4.png; dt-cache-latents -q --threads 1 --model m $Q -o k p 2>/dev/null
check 'a picture that could not be used is left out, which is said' \
    "dt-train lora --pretrained_model_name_or_path m $Q ${N% --quiet} --plan p --latents k --output_dir run 2>&1 | grep -c \"1 pictures are left out.*first: 'pics/4.png'\"" 1
cp -a saved pics/4.png
check 'until it is whole again' 'encoded k p; train k p' '0 0'

# --- in a tar ---
(cd pics && tar --sort=name -cf ../t.tar 1.* 2.*)
plan pt t.tar; rm -rf t.c
at=$(sed -n 's/.*"offset":\([0-9]*\),.*/\1/p' pt | head -n 1)
check 'pictures of a tar' 'encoded t.c pt; encoded t.c pt; train t.c pt' '2 2
0 0'
touch -r t.tar t; printf '\377' | dd of=t.tar bs=1 seek=$((at + 1000)) conv=notrunc 2>/dev/null; touch -r t t.tar
check 'a byte of one changed, with its time put back' "train t.c pt | grep -c \"t.tar/1.png. is not what it was.*$AGAIN\"" 1
(cd pics && tar --sort=name -cf ../t.tar 2.* 3.*)
plan pt t.tar
check 'another picture in its place' 'encoded t.c pt; train t.c pt' '1 0'

# --- what the plan says of them ---
edit() { sed "$1" p >p2; cmp -s p p2 && not_ok "the plan has no '$1'"; }
first='0,/"item":0,"resize"/'
edit "$first s/\"item\":0,\"resize\":\[34,32\]/\"item\":0,\"resize\":[36,32]/"
changed 'resize_w' '1 0' 'pics/1.png. at 32x32 px is not in cache' p2
edit "$first s/\"item\":0,\"resize\":\[34,32\],\"crop\":\[1,0\]/\"item\":0,\"resize\":[34,34],\"crop\":[1,0]/"
changed 'resize_h' '1 0' 'pics/1.png. at 32x32 px is not in cache' p2
edit "$first s/\"item\":0,\"resize\":\[34,32\],\"crop\":\[1,0\]/\"item\":0,\"resize\":[34,32],\"crop\":[2,0]/"
changed 'crop_x' '1 0' 'pics/1.png. at 32x32 px is not in cache' p2
edit "$first s/\"item\":0,\"resize\":\[34,32\],\"crop\":\[1,0\]/\"item\":0,\"resize\":[34,40],\"crop\":[1,8]/"
changed 'crop_y' '1 0' 'pics/1.png. at 32x32 px is not in cache' p2
edit "$first s/\"item\":0,\"resize\":\[34,32\],\"crop\":\[1,0\]/&,\"flip\":true/"
changed 'flip' '1 0' 'pics/1.png. at 32x32 px is not in cache' p2
edit "$first s/\"item\":0,\"resize\":\[34,32\],\"crop\":\[1,0\]/&,\"drop\":true/"
changed 'drop' '0 1' 'caption .. is not in cache' p2
edit 's/"item":0,\(.*\)"text":"caption 0"/"item":0,\1"text":"caption O"/'
changed 'text, a byte of a caption' '0 1' 'caption .caption O. is not in cache' p2
dt-bucket -q --image_sample_size 48 --train_batch_size 2 --caption_dropout 0 --num_train_epochs 1 -o p2 pics
changed 'w and h: image_sample_size' '5 0' 'is not in cache' p2
done_with="$done_with h item at"            # item: its fields are those below; at: its number

# --- the model folder: every file ---
mutate() {                                  # one byte of FILE
    case $1 in
    *.safetensors) n=$(stat -c %s "$1"); b=$(tail -c 1 "$1" | od -An -tu1 | tr -d ' ')
        # shellcheck disable=SC2059
        printf "\\x$(printf %x $((b ^ 1)))" | dd of="$1" bs=1 seek=$((n - 1)) conv=notrunc 2>/dev/null ;;
    *.model) printf '\x80' | dd of="$1" bs=1 seek=$(($(grep -abo '▁the' "$1" | head -n 1 | cut -d: -f1) + 8)) conv=notrunc 2>/dev/null ;;
    *) echo >>"$1" ;;
    esac
}
touch m/vae/README.md
for f in $(cd m && find . -type f | sed 's,^\./,,' | LC_ALL=C sort); do
    cp -a "m/$f" saved; mutate "m/$f"; touch -r saved "m/$f"
    cmp -s saved "m/$f" && not_ok "$f was not changed"
    case $f in
    vae/config.json | vae/*.safetensors) changed "part vae: $f" '5 0' "made with another vae than.*$AGAIN" p ;;
    text_encoder/config.json | text_encoder/*.safetensors) changed "part: $f" '0 4' "made with another text_encoder than.*$AGAIN" p ;;
    text_encoder_2/config.json | text_encoder_2/*.safetensors) changed "part: $f" '0 4' "made with another text_encoder_2 than.*$AGAIN" p ;;
    tokenizer/*) changed "part: $f" '0 4' "made with another tokenizer than.*$AGAIN" p ;;
    tokenizer_2/*) changed "part: $f" '0 4' "made with another tokenizer_2 than.*$AGAIN" p ;;
    transformer/* | scheduler/* | model_index.json | flux1-tiny.safetensors | vae/README.md) changed "other: $f" '0 0' '' p ;;
    *) not_ok "no mutation for $f" ;;
    esac
    cp -a saved "m/$f"
done
rm m/vae/README.md
cp -r m m2; mv m m1; mv m2 m
changed 'stat: the same model elsewhere' '0 0' '' p
rm -rf m; mv m1 m
mv m/text_encoder_2/model.safetensors .
check 'weights that are not here cannot be compared, which is said' \
    "dt-train lora --pretrained_model_name_or_path m $Q ${N% --quiet} --plan p --latents c --output_dir run 2>&1 | grep -c 'no weights of text_encoder_2 here'" 1
mv model.safetensors m/text_encoder_2
done_with="$done_with name hash n"          # of a part; all of them were changed above

# --- options of dt-cache-latents ---
cp m/vae/diffusion_pytorch_model.safetensors vae.safetensors
changed 'vae_path, the same weights' '0 0' '' p --vae_path vae.safetensors
mutate vae.safetensors
changed 'vae_path' '5 0' "made with another vae than.*$AGAIN" p --vae_path vae.safetensors
changed 'text_padding' '0 4' 'made with --text_padding max, this run has --text_padding none' p --text_padding none
keep=$Q Q=
changed 'text_len: max_sequence_length' '0 4' 'made with --max_sequence_length 16, this run has 12' p --max_sequence_length 12
changed 'max_sequence_length, the same' '0 0' '' p --max_sequence_length 16
Q=$keep
# alone NAME "PICTURES CAPTIONS" OPTION...: options that dt-train has not, or that say something else there
alone() {
    name=$1 want=$2; shift 2
    rm -rf k; cp -r c k
    check "$name" "encoded k p $*" "$want"
    check "$name: once" "encoded k p $*" "$(echo "$want" | sed 's/[0-9]/0/g')"
    done_with="$done_with ${name%% *}"
}
alone 'dtype: cache_dtype' '5 4' --cache_dtype bf16
alone 'cache_dtype, the same' '0 0' --cache_dtype fp32
alone 'compute: mixed_precision' '5 4' --mixed_precision bf16 --cache_dtype fp32
alone 'mixed_precision' '5 4' --mixed_precision bf16
alone 'tile_px: vae_tile' '5 0' --vae_tile 16
alone 'vae_tile, larger than any picture' '0 0' --vae_tile 64
alone 'pictures_only' '0 0' --pictures_only
alone 'max_skipped_fraction' '0 0' --max_skipped_fraction 0
alone 'shard' '0 0' --shard 0/2
alone 'device' '0 0' --device cpu
alone 'memory_budget' '0 0' --memory_budget 4G
alone 'low_vram' '0 0' --low_vram
alone 'vae_mini_batch' '0 0' --vae_mini_batch 1
alone 'threads' '0 0' ''
alone 'dataloader_num_workers' '0 0' --dataloader_num_workers 1
alone 'max_shard_size' '0 0' --max_shard_size 4K
alone 'progress' '0 0' --progress /dev/null
done_with="$done_with pretrained_model_name_or_path model plan output explain quiet memory_plan"    # where, and what is said

# --- old entries beside new ones ---
rm -rf k; cp -r c k
printf x >>pics/1.png
check 'an old plan and a new one in one cache' 'encoded k p2' '5 0'
check 'the old one is refused' "train k p | grep -c 'pics/1.png. is not what it was'" 1
check 'the new one is not' 'train k p2' ''
restore pics
rm -rf k; cp -r c k
check 'another precision for another plan' 'encoded k p2 --cache_dtype bf16' '5 4'
check 'entries of two precisions are not mixed' "train k p | grep -c 'is not in cache'" 1
rm -rf k; cp -r c k; sed -i '1s/"code":[0-9]*/"code":0/' k/index-*
check 'code: a cache of another version' "train k p | grep -c 'made by another version of dt'" 1
done_with="$done_with code"

# --- a cache that brings its plan; a stream of before ---
dt-cache-latents -q --threads 1 --model m $Q -o - p >stream
check 'a stream is trained on' "rm -rf run; dt-train lora --pretrained_model_name_or_path m $Q $N --latents - --output_dir run <stream"
printf x >>pics/2.png
REFUSED="pics/2.png. is not what it was.*$AGAIN"
check 'not when a picture is another' \
    "rm -rf run; dt-train lora --pretrained_model_name_or_path m $Q $N --latents - --output_dir run <stream 2>&1 | grep -c '$REFUSED'; ls run/lora.safetensors 2>&1 | grep -c 'No such'" '1
1'
check 'nor a cache without --plan' "dt-train lora --pretrained_model_name_or_path m $Q $N --latents c --output_dir run 2>&1 | grep -c '$REFUSED'" 1
restore pics

# --- dt-train that makes its own cache ---
own() {
    rm -rf own/checkpoint-*                 # otherwise it is another run, and refused: resume.t
    dt-train lora --pretrained_model_name_or_path m $Q ${N% --quiet} --train_data_dir pics --image_sample_size 32 --train_batch_size 6 \
        --caption_dropout 0 --output_dir own >log 2>&1; echo "exit $?"
    sed -n 's/.* \(pictures\|captions\): \([0-9]*\) encoded.*/\2/p' log
}
check 'one command encodes' "own | paste -sd ' '" 'exit 0 5 4'
printf x >>pics/4.png; echo 'another caption' >pics/6.txt; cp -a m/vae/config.json saved
check 'again: what changed' "own | paste -sd ' '" 'exit 0 1 1'
echo >>m/vae/config.json
check 'another vae' "own | paste -sd ' '" 'exit 0 5 0'
cp -a saved m/vae/config.json
check 'the old one: nothing is lost' "own | paste -sd ' '" 'exit 0 0 0'
restore pics

# --- metadata that was edited behind the plan ---
printf '{"file_path": "1.png", "text": "caption 0"}\n{"file_path": "2.png", "text": "caption 1"}\n' >m.jsonl
plan pj --train_data_dir pics --train_data_meta m.jsonl
warned() { "$@" 2>&1 | grep -c 'warning: m.jsonl has changed since the plan was made; run dt-bucket again'; }
T2="dt-train lora --pretrained_model_name_or_path m $Q $N --plan pj --output_dir edited --resume_from_checkpoint none"
check 'metadata as it was' "warned dt-cache-latents -q --threads 1 --model m $Q -o j.c pj; warned $T2 --latents j.c; :" '0
0'
cp -p m.jsonl x; sed -i 's/caption 1/caption I/' m.jsonl; touch -r x m.jsonl
check 'edited, with its size and time as before: it is said, once, and the plan counts' \
    "warned dt-cache-latents -q --threads 1 --model m $Q -o j.c pj; warned $T2 --latents j.c; warned $T2; warned dt-train vae --pretrained_model_name_or_path m ${N#--rank 2} --plan pj --output_dir edited.v; ls edited/lora.safetensors" '1
1
1
1
edited/lora.safetensors'
check 'not where it is not' "mv m.jsonl away; warned $T2 --latents j.c; :" 0
check 'a plan made from a pipe says nothing of it' "dt-bucket -q --image_sample_size 32 --train_data_dir pics --train_data_meta - <away | head -n 1 | grep -c metadata; :" 0

# --- is that all? ---
# fields FILE STRUCT: names of its members
fields() {
    awk -v s="typedef struct $2 {" '$0 == s { on = 1; next } on && /^}/ { exit } on' "$S/$1" | sed 's,/\*.*,,;s,^ *\*.*,,' | tr '\n' ' ' |
        tr ';' '\n' | sed 's/\[[^]]*\]//g;s/^ *\(const \|enum \|struct \)*[a-z_0-9]* *//;s/[*,]/ /g'
}
missing() { for x in $1; do case " $done_with " in *" $x "* | *" $x: "* | *" $x, "*) ;; *) echo "$x" ;; esac; done; }
done_with=$(echo "$done_with" | tr -d ',:')
check 'every field of a recipe was changed' 'missing "$(fields data/cache_write.h dt_cache_recipe)"' ''
check 'every field of an encoder' 'missing "$(fields data/cache_write.h dt_cache_part)"' ''
check 'every field of a picture in a batch' 'missing "$(fields data/plan.h dt_batch_item)"' ''
options() { dt-cache-latents --print_config=json | grep -o '"[a-z_]*":{"value"' | cut -d'"' -f2; }
check 'every option of dt-cache-latents' 'missing "$(options)"' ''
check 'the lists are not empty' 'fields data/cache_write.h dt_cache_recipe | wc -w; fields data/plan.h dt_batch_item | wc -w; options | wc -l | sed "s/[0-9]\$/+/"' '8
9
2+'
