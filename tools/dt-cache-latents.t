#!/bin/sh
# dt-cache-latents.t - the command: pipes, resuming after a kill, parts, explanations, bad input, exit codes.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux
I=$PWD/tests/golden/data_images
E=$PWD/examples/pictures
cd "$T" || exit 1

mkdir pics mixed
n=0
for f in "$E"/*.png; do
    n=$((n + 1)); [ $n -gt 40 ] && break
    cp "$f" pics/; echo "picture $n" >"pics/$(basename "$f" .png).txt"
done
cp pics/a*.png mixed; cp "$I/rgb.png" mixed/same.png; cp "$I/rgb.png" mixed/twin.png
one=$(ls pics/*.png | head -n 1)
dt-bucket -q --image_sample_size 32 --train_batch_size 4 --num_train_epochs 2 -o p pics
dt-bucket -q --image_sample_size 32 --train_batch_size 4 --num_train_epochs 1 -o m mixed
total=$(($(ls mixed/*.png | wc -l)))
B1="dt-cache-latents --threads 1"
C="$B1 --model $M --max_sequence_length 16"

# What a cache means, without where it lies: its lines less header and places, sorted.
means() { cat "$1"/index-*.ndjson | grep -Ev '"(dt_cache|end)":' | sed 's/,"at":.*//' | sort -u; }

check 'a pipe from dt-bucket' \
    "dt-bucket -q --image_sample_size 32 --train_batch_size 4 --num_train_epochs 2 pics | $C -q -o c; ls c | tr '\n' ' '" \
    'index-000001-0of1.ndjson plan.ndjson shard-000001-0of1-0000.tar '
check 'the plan is kept' 'cmp p c/plan.ndjson'
check 'shards are tar files of safetensors' "tar tf c/shard-*.tar | grep -vc '^[0-9a-f]\\{32\\}.safetensors\$'; :" 0
check 'one entry for each picture and caption, and one for none' "tar tf c/shard-*.tar | wc -l | tr -d ' '" 81
check 'again: nothing to do' "$C -o c p 2>&1 | grep -c ' 0 encoded, 4[01] there already'; ls c | wc -l | tr -d ' '" '2
3'
check 'the same bytes for other threads and groups' "$C -q -o c2 --vae_mini_batch 3 --dataloader_num_workers 5 --plan p && cmp c/shard-*.tar c2/shard-*.tar"
check 'the memory plan, of what is missing' "$C -o c4 --memory_plan p | awk 'NR == 1 { print \$4, \$5, \$6 }'; $C -o c --memory_plan p | awk 'NR == 1 { print \$4 }'; ls c4 | wc -l | tr -d ' '" \
'captions pictures index
index
0'
fails 5 'a budget that cannot be kept' "$C -o c4 --memory_budget 1M p" 'smallest memory budget that would do is [0-9]+M'
check 'bf16 halves it' "$C -q -o c3 --cache_dtype bf16 p && [ \$(cat c3/shard-*.tar | wc -c) -lt \$((\$(cat c/shard-*.tar | wc -c) * 3 / 4)) ]"
check 'a stream: plan, entries, index' "$C -q -o - p >s && tar tf s | sed -n '1p;\$p' | tr '\n' ' '" 'plan.ndjson index.ndjson '
check 'a stream is reproducible' "$C -q -o - p | cmp - s"

(cd pics && tar --format=pax -cf ../pics.tar *)
dt-bucket -q --image_sample_size 32 --train_batch_size 4 --num_train_epochs 2 -o pt pics.tar
check 'pictures in a tar: the entries of the same pictures in files are found' "cp -r c ct; $C -o ct pt 2>&1 | grep -c ' 0 encoded, 4[01] there already'" 2
fails 3 'a picture changed in the tar' "cp -r c ct2; (printf '\\000%.0s' 1 2 3 4 5 6 7 8 | dd of=pics.tar bs=1 seek=\$((\$(grep -m1 -o '\"offset\":[0-9]*' pt | tr -dc 0-9) + 16)) conv=notrunc 2>/dev/null); $C -o ct2 pt" 'skipped pics.tar/'

# Killed at any moment, the next run finishes; together they make each entry once.
for s in 0.05 0.1 0.2 0.3; do
    timeout -s KILL $s $C -q -o k --max_shard_size 64K p </dev/null >/dev/null 2>&1 || :
done
check 'killed four times, it finishes' "$C -q -o k --max_shard_size 64K p && means k >k.means; means c | cmp - k.means"
check 'and made no entry twice' "for f in k/shard-*.tar; do tar tf \$f; done | sort | uniq -d | wc -l | tr -d ' '" 0
check 'and left no temporary file' "ls -A k | grep -c tmp; :" 0
check 'entries are those of an uninterrupted run' \
    "mkdir x y; for f in k/shard-*.tar; do tar xf \$f -C x; done; tar xf c/shard-*.tar -C y; diff -r x y"

check 'three parts fill one folder' "for i in 0 1 2; do $C -q -o parts --shard \$i/3 p & done; wait; means parts | cmp - k.means"
check 'and a whole run agrees' "$C -o parts p 2>&1 | grep -c ' 0 encoded'" 2
fails 1 'two at once' "mkdir lock && flock lock/.lock-0of1 $C -q -o lock p" "'lock' is being filled by another process"

# Waits until a process, which may not even be loaded yet, catches SIGTERM.
caught() {
    tries=0
    until [ $((tries += 1)) -gt 600 ] || grep -q '^SigCgt:.*[4-7c-f]...$' "/proc/$1/status"; do sleep 0.1; done
    sleep 0.1
}
mkfifo f
for sig in INT:130 TERM:143; do
    fails ${sig#*:} "SIG${sig%:*}" "$C -o int <f & pid=\$!; (caught \$pid; kill -${sig%:*} \$pid; cat p) >f; wait \$pid" \
        'stopped with 0 of 40 pictures and 0 of 41 captions; the same command goes on from here'
done
check 'goes on after a signal' "$C -q -o int p && means int | cmp - k.means"

check 'explain: reused' "$C -o c --explain $one p | grep -c 'reused: entry [0-9a-f]\\{32\\} in shard-000001-0of1-0000.tar'" 2
check 'explain: nothing there' "$C -o new --explain $one p | grep -c 'to be made: no index knows it'" 2
check 'explain: dtype' "$C -o c --explain $one --cache_dtype bf16 p | grep -c 'to be made again: dtype (F32, now BF16)\$'" 2
check 'explain: tokens' "$B1 --model $M -o c --explain $one --max_sequence_length 12 p | grep -c 'made again: tokens (16, now 12)\$'" 1
check 'explain: padding' "$C -o c --explain $one --text_padding none p | grep -c 'made again: text_padding (max, now none)\$'" 1
check 'without padding captions are as long as they are' \
    "$C -q -o short --text_padding none p && [ \$(cat short/shard-*.tar | wc -c) -lt \$((\$(cat c/shard-*.tar | wc -c) - 41 * 8 * 4 * 32)) ]
     sed -n 's/.*\"text_len\":\([0-9]*\),\"text_padding\":\"\([a-z]*\)\".*/\1 \2/p' c/index-*.ndjson short/index-*.ndjson" '16 max
16 none'
# The naive layout, counted: each picture's entry, and one of its caption as long as they come, both as often as there are pictures.
mkdir -p z; tar xf c/shard-*.tar -C z
naive=$(sed -n 's/^{"image".*"key":"\([0-9a-f]*\)".*/\1/p' c/index-*.ndjson | while read -r k; do cat "z/$k.safetensors"; done | wc -c)
padded=$(cat "z/$(sed -n 's/^{"text".*"key":"\([0-9a-f]*\)".*/\1/p' c/index-*.ndjson | head -n 1).safetensors" | wc -c)
naive=$((naive + 40 * padded))
check 'the last line is the size, beside the naive layout' "$C -o short --text_padding none p 2>&1 | tail -n 1 | sed 's/ ([0-9.]* MiB)//g;s/, [0-9.]* times/, x times/'" \
    "dt-cache-latents: size: $(($(cat short/shard-*.tar | wc -c) - 1024)) bytes; a file for each picture and one of its caption padded to 16 tokens would be 80 files, $naive bytes, x times as much"
check 'without captions' "$C -o only --pictures_only p 2>&1 | tail -n 1 | grep -c 'a file for each picture would be 40 files, '" 1
check 'and made once' "$C -o short --text_padding none p 2>&1 | grep -c ' 0 encoded'" 2
cp -r "$M" M2; sed -i 's/0.3611/0.3612/' M2/vae/config.json
check 'explain: encoder' "$B1 --model M2 --max_sequence_length 16 -o c --explain $one p | grep -c 'made again: encoder vae ('" 1
cp "$(ls "$E"/*.png | tail -n 1)" "$one"
dt-bucket -q --image_sample_size 32 --train_batch_size 4 --num_train_epochs 2 -o p2 pics
check 'explain: bytes' "$C -o c --explain $one p2 | grep -c 'to be made again: bytes of the file ([0-9a-f]\\{8\\}, now [0-9a-f]\\{8\\})\$'" 1
fails 4 'explain: no such file' "$C -o c --explain nowhere.png p" "cannot open 'nowhere.png'"
fails 4 'explain: not in the plan' "$C -o c --explain p p" "'p' is not in the plan"

check 'the same bytes are encoded once' "$C -o mixed-c m 2>&1 | grep -c ' 1 the same as another'" 1
head -c 100 mixed/same.png >t; mv t mixed/same.png
rm -r mixed-c
fails 3 'a damaged picture is skipped and listed' "$C -o mixed-c m" "skipped mixed/same.png: "
check 'the others are there' "grep -c '{\"image\"' mixed-c/index-*.ndjson" $((total - 1))
check 'the index lists it' "grep -c '{\"skip\":\"mixed/same.png\",\"why\":' mixed-c/index-*.ndjson" 1
fails 3 'again' "$C -o mixed-c m" ' 0 encoded, '
fails 4 'too many damaged' "$C -o mixed-c m --max_skipped_fraction 0.01" "1 of $total pictures cannot be used, more than --max_skipped_fraction 0.01"
cp "$one" mixed/same.png
fails 3 'another size than in the plan' "$C -o mixed-c m" 'skipped mixed/same.png: is .* px, the plan says'
fails 4 'the wrong folder' "cd pics && $C -o c ../p" "paths are relative to the folder that dt-bucket ran in"

fails 4 'a cut plan' "head -n 45 p | $C -o d" "<stdin>: cut off"
fails 4 'no plan' "$C -o d </dev/null" '<stdin>: empty, not a plan'
fails 4 'a plan that is not there' "$C -o d nowhere" "cannot open 'nowhere'"
fails 4 'a model that is not there' "dt-cache-latents --model nowhere -o d p" "cannot open 'nowhere'"
cp -r "$M" M3; rm M3/vae/diffusion_pytorch_model.safetensors
fails 4 'a missing part' "$B1 --model M3 -o d p" 'M3/vae'
fails 4 'a missing tokenizer' "rm -r M3/tokenizer_2; $B1 --model M3 -o d p" 'tokenizer_2'
fails 4 'weights that are not there' "$C --vae_path nowhere -o d p" "there is no 'nowhere'"
fails 2 'no model' "dt-cache-latents -o d p" 'pretrained_model_name_or_path is missing'
fails 2 'no cache' "dt-cache-latents --model M2 p" 'output is missing'
fails 2 'the plan twice' "$C -o d --plan p p" 'name the plan once'
fails 2 'a shard out of range' "$C -o d --shard 3/3 p" 'takes I/N with 0 <= I < N'
fails 2 'a part of a stream' "$C -o - --shard 0/3 p" '--shard needs a cache folder'
fails 2 'a padding that is none' "$C -o d --text_padding longest p" 'text_padding'
fails 2 'explain a stream' "$C -o - --explain $one p" '--explain needs a cache folder'
fails 4 'explain a name mistyped' "$C -o c --explain ${one%.*}x.png p" "cannot open .* .did you mean '$one'"
fails 2 'an unknown flag' "$C -o d --vae_mini_bach 3 p" "did you mean '--vae_mini_batch'"
fails 7 'a folder that cannot be made' "$C -o /dev/null/c p" 'cannot make folder'
if [ -w /dev/full ]; then fails 7 'a stream to a full disk' "$C -o - p >/dev/full" 'No space left'; else skip 'a stream to a full disk' 'no /dev/full'; fi
