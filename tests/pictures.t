#!/bin/bash
# pictures.t - pictures that are huge, thin, odd or damaged: bucketed, refused or skipped by the rules of dt-bucket(1), within
# its memory, and listed.  Colours are held to Pillow's in tests/unit/data_media.c.
. tests/lib.sh
I=$PWD/tests/golden/data_images M=$PWD/tests/golden/tiny-flux S=$PWD/tests/pictures
export OMP_NUM_THREADS=1
# shellcheck disable=SC2046
${CC:-cc} -O2 -Wall -o "$T/make" "$S/make.c" $(pkg-config --cflags --libs libpng libjpeg) || exit 1
cd "$T" || exit 1
P='-q --image_sample_size 32 --train_batch_size 1 --num_train_epochs 1 --caption_dropout 0'
C="dt-cache-latents -q --threads 1 --model $M --max_sequence_length 16 --pictures_only"

# at_most MIB COMMAND: its exit status, and whether its largest resident size was below
at_most() { most=$1; shift; ./make peak peak "$@" >out 2>said; echo $? $(($(cat peak) <= most)); }
# Sanitizers have memory of their own.
[ -z "${SAN-}" ] || at_most() { shift; "$@" >out 2>said; echo $? 1; }

mkdir huge limit thin kinds cut
./make png 40000 40000 huge/b.png && ./make jpg 40000 40000 huge/a.jpg && ./make jpg 800 400 huge/c.jpg && cp huge/c.jpg huge/d.jpg || exit 1
echo grey >huge/c.txt           # a data set without any caption is warned about
check '40,000 x 40,000 px: refused by their headers' "at_most 64 dt-bucket $P --verify_images huge; cat said" \
    '3 1
dt-bucket: warning: skipped huge/a.jpg: 40000x40000 is beyond the limit of 65536 px a side and 268435456 px
dt-bucket: warning: skipped huge/b.png: 40000x40000 is beyond the limit of 65536 px a side and 268435456 px
dt-bucket: warning: 2 skipped: 40000x40000 is beyond the limit of 65536 px a side and 268435456 px (huge/a.jpg, huge/b.png)'
check 'the others are planned' "grep -c '^{\"item\"' out" 2
check 'what the metadata says about their size does not let them in' \
    "echo '{\"file_path\":\"huge/b.png\",\"width\":800,\"height\":400}' >m.jsonl && dt-bucket $P --trust_sizes m.jsonl >plan
     at_most 128 $C --max_skipped_fraction 1 -o c0 plan; grep -c 'skipped huge/b.png: 40000x40000 is beyond the limit' said" '3 1
1'

# 12 bytes for a pixel of the largest picture are what all threads together may take; a PNG of grey takes 3 of them.
./make png 16384 16384 limit/1.png && ln limit/1.png limit/2.png && ln limit/1.png limit/3.png
check 'three of the largest that are let in, four threads: one at a time' \
    "at_most 900 dt-bucket $P --verify_images --dataloader_num_workers 4 limit" '0 1'
check 'the same in dt-cache-latents' "dt-bucket $P limit >plan; at_most 900 $C --dataloader_num_workers 4 -o c1 plan" '0 1'

./make png 1 5000 thin/tall.png && ./make png 5000 1 thin/wide.png && ./make png 65535 1 thin/wider.png
check 'strips go to the narrowest shapes' \
    "at_most 64 dt-bucket ${P/size 32/size 512} --enable_bucket --verify_images thin; grep -o '\"size\":.*resize\":[^}]*' out | sort | uniq | cut -c-64 | grep resize" \
'0 1
"size":[1024,256],"items":[{"item":1,"resize":[1280000,256],"cro
"size":[1024,256],"items":[{"item":2,"resize":[16776960,256],"cr
"size":[256,1024],"items":[{"item":0,"resize":[256,1280000],"cro'
check 'and are encoded' "dt-bucket $P --enable_bucket --multiple 16 thin >plan; at_most 128 $C -o c2 plan; cat said" '0 1'
check 'squares of them too' "dt-bucket $P thin >plan; at_most 128 $C -o c3 plan; cat said" '0 1'

for f in "$I"/*; do case $f in *.ppm) ;; *) cp "$f" kinds ;; esac; done
echo red >kinds/rgb.txt; cp "$I/rgb.png" kinds/really_a_png.jpg; cp "$I/gray.jpg" kinds/really_a_jpeg.webp
n=$(find kinds -type f ! -name "*.txt" | wc -l)
check 'CMYK, 16 bits, 1 bit, palette, alpha, animation, wrong extension: all are taken' \
    "at_most 64 dt-bucket $P --verify_images kinds; grep -c '^{\"item\"' out; cat said" "0 1
$n"
check 'and encoded' "dt-bucket $P kinds >plan; at_most 128 $C -o c4 plan; cat said" '0 1'

cp "$I/rgb.png" cut/good.png; for k in 1 2 3 4 5 6 7 8 9; do cp cut/good.png cut/good$k.png; done
cp "$I/exif1.jpg" j; head -c $(($(wc -c <j) - 60)) j >cut/half.jpg; head -c $(($(wc -c <"$I/rgb.png") - 30)) "$I/rgb.png" >cut/half.png
head -c $(($(wc -c <"$I/anim.gif") / 2)) "$I/anim.gif" >cut/half.gif
: >cut/nothing.png; : >cut/nothing.jpg; echo 'no picture at all' >cut/text.png; head -c 20 j >cut/stub.jpg
mkfifo cut/fifo.png; ln -s loop.png cut/loop.png; ln -s gone.png cut/dangling.png; mkdir cut/folder.png
check 'damaged ones: what headers show' "timeout 10 dt-bucket $P cut 2>&1 >p | grep ' [0-9]* skipped'; grep -c '^{\"item\"' p" \
'dt-bucket: warning: 2 skipped: empty file (cut/nothing.jpg, cut/nothing.png)
dt-bucket: warning: 1 skipped: cannot open: No such file or directory (cut/dangling.png)
dt-bucket: warning: 1 skipped: not a regular file (cut/fifo.png)
dt-bucket: warning: 1 skipped: cannot open: Too many levels of symbolic links (cut/loop.png)
dt-bucket: warning: 1 skipped: damaged JPEG header (cut/stub.jpg)
dt-bucket: warning: 1 skipped: not a picture of a known kind (JPEG, PNG, WebP, GIF, TIFF, BMP) (cut/text.png)
13'
check 'and what decoding shows, with --verify_images' \
    "timeout 10 dt-bucket $P --verify_images cut 2>&1 >p2 | grep 'skipped cut/half'; grep -c '^{\"item\"' p2" \
'dt-bucket: warning: skipped cut/half.gif: damaged GIF: it ends early
dt-bucket: warning: skipped cut/half.jpg: damaged JPEG: Premature end of JPEG file
dt-bucket: warning: skipped cut/half.png: damaged PNG: it ends early
10'
check 'or later, in dt-cache-latents' "timeout 20 $C -o c5 p 2>&1 | sort; tail -n 1 c5/index-*.ndjson | grep -c end" \
'dt-cache-latents: warning: skipped cut/half.gif: damaged GIF: it ends early
dt-cache-latents: warning: skipped cut/half.jpg: damaged JPEG: Premature end of JPEG file
dt-cache-latents: warning: skipped cut/half.png: damaged PNG: it ends early
1'
check 'a picture that became a FIFO does not hang' "rm cut/good9.png; mkfifo cut/good9.png; timeout 10 $C -o c6 p 2>&1 | grep -c 'good9.png: not a regular file'" 1
mkdir vae; cp cut/good[1-4].png cut/half.png vae
check 'dt-train vae finds them before its first step, and goes on without' \
    "dt-train vae --pretrained_model_name_or_path $M --train_data_dir vae --num_train_epochs 1 --train_batch_size 2 --image_sample_size 32 --quiet \
     --output_dir v 2>&1 | grep -o 'skipped vae.*'; ls v/vae/*.safetensors" \
'skipped vae/half.png: damaged PNG: it ends early
v/vae/diffusion_pytorch_model.safetensors'
mkdir many; for k in {1..30}; do head -c "$k" j >"many/$k.jpg"; cp "$I/rgb.png" "many/$k.png"; done; echo one >many/1.txt
check 'many: a line for each reason, with the first names' "dt-bucket $P many 2>&1 >p | sort" \
'dt-bucket: warning: 11 skipped: too short to be a picture (many/1.jpg, many/10.jpg, many/11.jpg, ...)
dt-bucket: warning: 19 skipped: damaged JPEG header (many/12.jpg, many/13.jpg, many/14.jpg, ...)'
check 'all are at the end of the plan' "tail -n 1 p | grep -o 'many/[0-9]*.jpg' | wc -l" 30
