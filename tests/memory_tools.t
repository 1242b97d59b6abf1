#!/bin/bash
# memory_tools.t - the memory plans of dt-sample and dt-cache-latents are true within 5 %, and their budgets are kept or refused.
[ -z "${SAN-}" ] || { echo '1..0 # SKIP sanitizers have memory of their own'; exit 0; }
. tests/lib.sh
E=$PWD/examples M=$PWD/examples/tiny-flux G=$PWD/tests/golden
cd "$T" || exit 1
export OMP_NUM_THREADS=1

# near COMMAND...
near() {
    "$@" >out 2>said </dev/null || { cat said; return; }
    sed -n 's/.*peak memory \([0-9.]*\) MiB, planned \([0-9.]*\) MiB.*/\1 \2/p' said |
        awk '{ r = $1 / $2; print (r > 0.95 && r < 1.05) ? "within 5 %" : "peak " $1 ", planned " $2 }'
}
# kept COMMAND...: the budget that a refused run names is enough, and the run stays within it; a little less is refused
kept() {
    n=$("$@" --memory_budget 1M 2>&1 >out | sed -n 's/.*the smallest memory budget that would do is \([0-9]*\)M.*/\1/p')
    near "$@" --memory_budget "${n}M" >near
    sed -n 's/.*peak memory \([0-9.]*\) MiB.*/\1/p' said | awk -v n="$n" '{ print ($1 <= n) ? "kept" : "peak " $1 " of " n }'
}
less() { "$@" --memory_budget "$((n - 8))M" 2>&1 | grep -o 'smallest memory budget that would do'; }
twice='kept
smallest memory budget that would do'

# --- sampling ---
S="dt-sample --pretrained_model_name_or_path $M --steps 1 -p cat"
for how in '' --low_vram '--mixed_precision bf16'; do
    for size in '64 64' '256 256' '512 320'; do
        set -- $size
        check "sampling, $1x$2 $how" "near $S --width $1 --height $2 -o one.png $how" 'within 5 %'
    done
done
dt-bucket --train_data_dir "$E/pictures" --max_train_samples 2 --num_train_epochs 1 --image_sample_size 64 -q -o plora 2>/dev/null &&
    dt-train lora --pretrained_model_name_or_path "$M" --plan plora --rank 128 --max_train_steps 1 --output_dir lora -q 2>/dev/null || exit 1
for size in '64 64' '256 256' '512 320'; do
    set -- $size
    check "sampling, a LoRA as large as the network, $1x$2" "near $S --lora lora/lora.safetensors --width $1 --height $2 -o one.png" 'within 5 %'
done
check 'sampling with and without it' "near $S --lora lora/lora.safetensors --compare_base --width 128 --height 128 -o both" 'within 5 %'
check 'sampling in tiles' "near $S --width 512 --height 512 --vae_tile 128 -o one.png" 'within 5 %'
check 'many pictures, a sheet, latents' "near $S -p dog -n 4 --width 128 --height 128 --grid sheet.png --save_latents l.safetensors -o many" 'within 5 %'
check 'sampling: the smallest budget is enough, and kept' "kept $S --width 256 --height 256 -o one.png; less $S --width 256 --height 256 -o one.png" "$twice"

# --- caching ---
for s in 64 128 256; do
    dt-bucket --train_data_meta "$E/pictures/metadata.json" --max_train_samples 12 --num_train_epochs 1 --image_sample_size $s -q -o p$s || exit 1
done
C="dt-cache-latents --model $M --vae_mini_batch"
for how in 1 8 '4 --mixed_precision bf16'; do
    for s in 64 128 256; do
        check "caching, $s px, by $how" "near $C $how --plan p$s -o c-$s-${how%% *}" 'within 5 %'
    done
done
# 24 files that are one picture, and one that is another
mkdir same
set -- "$E"/pictures/*.png
for i in {01..24}; do cp "$1" same/$i.png; done
cp "$2" same/25.png
dt-bucket --train_data_dir same --num_train_epochs 1 --image_sample_size 256 --train_batch_size 8 -q -o psame || exit 1
check 'caching one picture under many names' "near $C 8 --plan psame -o c-same; grep -o '25 pictures:.*another' said" 'within 5 %
25 pictures: 2 encoded, 0 there already, 23 the same as another'
check 'again, where some are there' "rm c-same/index* same/25.png; cp '$3' same/26.png; cp '$3' same/27.png
    dt-bucket --train_data_dir same --num_train_epochs 1 --image_sample_size 256 --train_batch_size 8 -q -o psame
    near $C 8 --plan psame -o c-same; grep -o '26 pictures:.*another' said" 'within 5 %
26 pictures: 1 encoded, 24 there already, 1 the same as another'
check 'caching in tiles, eight readers' "near $C 1 --vae_tile 64 --dataloader_num_workers 8 --plan p256 -o tiles" 'within 5 %'
check 'caching, weights left in their files' "near $C 4 --low_vram --plan p128 -o left" 'within 5 %'
check 'and given back' "near $C 4 --low_vram --mixed_precision bf16 --plan p128 -o back" 'within 5 %'
check 'nothing is missing' "near $C 1 --plan p64 -o c-64-1" 'within 5 %'
check 'caching: the smallest budget is enough, and kept' "kept $C 8 --plan p64 -o b; less $C 8 --plan p64 -o b2" "$twice"
check 'by encoding fewer pictures at once, which changes nothing' "kept $C 8 --plan p64 -o b3 >/dev/null; grep -cE 'pictures are encoded [1-7] at a time' said
    cmp b3/shard-000001-0of1-0000.tar c-64-8/shard-000001-0of1-0000.tar" 1

# --- scale: 100,000 entries of metadata take as much memory as 1,000, but for a few bytes each; 20,000 pictures of a folder as 200 ---
# shellcheck disable=SC2046
${CC:-cc} -O2 -o make "$OLDPWD/tests/pictures/make.c" $(pkg-config --cflags --libs libpng libjpeg) || exit 1
# grows MIB FEW MANY: by less than that, as `dt-bucket` reads them
grows() {
    for i in "$2" "$3"; do
        ./make peak "peak.$i" dt-bucket -q --trust_sizes --enable_bucket --num_train_epochs 2 --train_data_dir= --train_data_meta "$i" -o plan
        echo "$?: $(tail -n 1 plan | grep -o '"items":[0-9]*' | awk -F : '{ n += $2 } END { print n }') items"
    done
    awk -v most="$1" '{ v[NR] = $1 } END { print (v[1] > 0 && v[2] < v[1] + most) ? "flat" : v[1] " MiB, " v[2] " MiB" }' "peak.$2" "peak.$3"
}
for n in 1000 100000; do
    awk -v n=$n 'BEGIN { print "file_path,text,width,height" >"b" n ".csv"; printf "[" >"b" n ".json"
        for (i = 0; i < n; i++) {
            o = sprintf("{\"file_path\":\"%06d/picture.png\",\"text\":\"a caption of its own, as long as captions are: number %d\",\"width\":%d,\"height\":%d}",
                        i, i, 512 + i % 7 * 64, 512 + i % 5 * 64)
            print o >"b" n ".jsonl"
            print (i ? "," : "") o >"b" n ".json"
            printf "%06d/picture.png,\"a caption of its own, as long as captions are: number %d\",%d,%d\n", i, i, 512 + i % 7 * 64, 512 + i % 5 * 64 >"b" n ".csv" }
        print "]" >"b" n ".json" }'
done
for form in jsonl json csv; do
    check "many entries: $form" "grows 4 b1000.$form b100000.$form" '0: 1000 items
0: 100000 items
flat'
done
check 'many entries: through a pipe' "cat b100000.json | grows 4 b1000.json -" '0: 1000 items
0: 100000 items
flat'
check 'a plan is the same in whatever form and way its metadata comes' \
    "for f in b100000.jsonl b100000.json b100000.csv -; do cat b100000.csv | dt-bucket -q --trust_sizes --num_train_epochs 1 --train_data_dir= --train_data_meta \$f |
        tail -n +2 | cksum; done | uniq -c | awk '{ print \$1, (\$3 > 10000000) }'" '4 1'
bytes=$(wc -c <"$G/data_images/rgb.png")
for n in 200 20000; do
    mkdir folder$n
    for ((i = 0; i < n / 200; i++)); do for ((k = 0; k < 200; k++)); do echo "$G/data_images/rgb.png"; done; done | xargs cat |
        split -b "$bytes" -a 5 --additional-suffix=.png - folder$n/ || exit 1
done
check 'many pictures in a folder' "for n in 200 20000; do ./make peak peak.\$n dt-bucket -q --num_train_epochs 1 -o plan folder\$n; tail -n 1 plan | grep -o '\"items\":[0-9]*'; done
    paste peak.200 peak.20000 | awk '{ print (\$1 > 0 && \$2 < \$1 + 2) ? \"flat\" : \$0 }'" '"items":200
"items":20000
flat'

# --- 3,000 captions take as much memory as 200 ---
peak() { "$@" 2>&1 >/dev/null </dev/null | sed -n 's/.*peak memory \([0-9.]*\) MiB.*/\1/p'; }
for n in 200 3000; do
    for ((i = 0; i < n; i++)); do
        echo "{\"file_path\":\"$E/pictures/ant.png\",\"text\":\"a caption of its own, one of many, as long as captions are: number $i\",\"width\":72,\"height\":72}"
    done >m$n.jsonl
    dt-bucket --train_data_meta m$n.jsonl --num_train_epochs 1 --image_sample_size 64 --caption_dropout 0 -q -o many$n || exit 1
    peak dt-cache-latents --model "$G/tiny-flux" --max_sequence_length 16 --text_padding none --plan many$n -o many.$n >cache$n
    peak dt-cache-latents --model "$G/tiny-flux" --max_sequence_length 16 --text_padding none --plan many$n -o many.$n >again$n
    peak dt-train lora --pretrained_model_name_or_path "$G/tiny-flux" --max_sequence_length 16 --text_padding none --report_to none --rank 2 \
        --plan many$n --latents many.$n --max_train_steps 1 --output_dir run$n >train$n
done
for what in cache again train; do
    check "many captions: $what" "paste ${what}200 ${what}3000 | awk '{ print (\$2 > 0 && \$2 < \$1 + 2) ? \"flat\" : \$0 }'" flat
done
