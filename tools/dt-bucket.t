#!/bin/sh
# dt-bucket.t - the command: where data comes from, what is said about bad data, exit codes.
. tests/lib.sh
I=$PWD/tests/golden/data_images
cd "$T" || exit 1

mkdir good mixed bad empty
for k in 1 2 3; do cp "$I/rgb.png" good/$k.png; echo "caption $k" >good/$k.txt; done
cp good/* "$I/exif6.jpg" mixed
head -c 20 "$I/rgb.png" >mixed/cut.png
echo 'this is no picture' >mixed/text.jpg
head -c 300 "$I/exif1.jpg" | tail -c 250 >bad/a.jpg
cat >m.json <<E
[{"file_path": "1.png", "text": "one", "width": "20", "height": 12, "artist": "Ann"},
 {"file_path": "2.png", "text": "two", "width": 99, "height": 99},
 {"file_path": "none.png", "text": "three"}]
E
printf 'file_path,text\n1.png,"a, b"\n' >m.csv
printf '{"file_path":"1.png"}\n{"file_path":\n' >broken.jsonl
P='--image_sample_size 64 --num_train_epochs 2 --train_batch_size 2 --caption_dropout 0'

check 'a folder gives header, items, batches, footer' \
    "dt-bucket -q $P good | cut -c3-7 | uniq | tr '\n' ' '" 'dt_pl item" batch end": '
check 'captions come from .txt' "dt-bucket -q $P good | grep -c '\"text\":\"caption [123]\"'" 3
check 'EXIF rotation is in the size' "cp '$I/exif6.jpg' good/r.jpg; dt-bucket -q $P good | grep -c '\"size\":\\[12,20\\]'; rm good/r.jpg" 1
check 'without buckets: square' "dt-bucket -q $P good | grep '\"batch\":0' | cut -c10-46" '0,"epoch":0,"size":[64,64],"items":[{'
check 'with buckets: 20x12 is 80x48' "dt-bucket -q $P --enable_bucket good | grep '\"batch\":0' | cut -c22-36" '"size":[80,48],'
check 'fixed size' "dt-bucket -q $P --fix_sample_size 40 70 -- good | grep -c '\"size\":\\[64,32\\].*\"resize\":\\[64,32\\],\"crop\":\\[0,0\\]'" 3
check 'the same seed, the same bytes, any number of threads' \
    "dt-bucket -q $P good >a; dt-bucket -q $P --dataloader_num_workers 7 good | cmp - a"
check 'another seed, another plan' "dt-bucket -q $P --seed 43 good | cmp -s - a; [ \$? = 1 ]"
check '-o writes the same' "dt-bucket -q $P -o b good && cmp a b && ls | grep -c tmp; :" 0
check 'metadata through a FIFO' \
    "mkfifo f; cat m.csv >f & dt-bucket -q $P --train_data_dir good --train_data_meta f | grep -c '\"text\":\"a, b\"'" 1
check 'metadata on stdin' "dt-bucket -q $P --train_data_dir good - <m.csv | grep -c '\"path\":\"good/1.png\"'" 1
check 'paths are relative to the metadata' "cp m.csv good/; dt-bucket -q $P good/m.csv | grep -c '\"path\":\"good/1.png\"'; rm good/m.csv" 1
check 'the reference command line' "dt-bucket -q --train_data_dir=good --train_data_meta=m.csv --train_batch_size=1 \
    --image_sample_size=1024 --gradient_accumulation_steps=1 --dataloader_num_workers=8 --num_train_epochs=1 --seed=42 \
    --enable_bucket | grep -c '\"size\":\\[1280,768\\]'" 2

fails 3 'bad pictures are skipped and listed' "dt-bucket $P mixed >p" 'skipped mixed/cut.png: '
fails 3 'a file that is no picture' "dt-bucket $P mixed >p" 'skipped mixed/text.jpg: not a picture'
check 'and the others are in the plan' "grep -c '^{\"item\"' p" 4
check 'and the footer lists them' "tail -n 1 p | grep -c 'mixed/cut.png.*mixed/text.jpg'" 1
fails 3 'a missing file in the metadata' "dt-bucket $P --train_data_dir=good m.json >p" 'skipped good/none.png: cannot open'
fails 3 'a size that differs' "dt-bucket $P --train_data_dir=good m.json >p" '1 whose size in the metadata is not'
check 'unknown fields are kept' "grep -c '\"extra\":{\"artist\":\"Ann\"}' p" 1
fails 3 'a picture cut short, found by --verify_images' \
    "mkdir v; cp good/1.png v; head -c 100 good/1.png >v/2.png; dt-bucket $P v >p && dt-bucket $P --verify_images v >p" 'skipped v/2.png: damaged PNG'

# metadata of more than is read at once
awk 'BEGIN { printf "[" >"long.json"; for (i = 1; i <= 4000; i++) { o = sprintf("{\"file_path\":\"%d.png\",\"text\":\"[ \\\"%d\\\", ]}%0150d\",\"width\":%d,\"height\":64,\"n\":{\"k\":[1,\"]\"]}}", i, i, i, 64 + i % 9)
    print o >"long.jsonl"; print (i > 1 ? "," : "") o >"long.json" } print "]" >"long.json" }'
L="-q --trust_sizes --train_data_dir= $P"
check 'a long list, and long lines, one way and another' "dt-bucket $L long.json | tail -n +2 >a1; grep -c '\"text\":\"\[ .*,\"extra\":{\"n\":{\"k\":\[1,\"]\"]}}}' a1
    dt-bucket $L long.jsonl | tail -n +2 | cmp - a1; cat long.json | dt-bucket $L - | tail -n +2 | cmp - a1; dt-bucket $L - <long.jsonl | tail -n +2 | cmp - a1" 4000
fails 4 'what is wrong far behind: a list' "sed '3900s/\"n\":/\"n\"/' long.json >wrong.json; dt-bucket $L wrong.json" 'wrong.json: not valid JSON at line 3900, column 226'
fails 4 'from a pipe' "cat wrong.json | dt-bucket $L -" 'standard input: not valid JSON at line 3900, column 226'
fails 4 'a line' "sed '3900s/.\$//' long.jsonl >wrong.jsonl; dt-bucket $L wrong.jsonl" 'wrong.jsonl: line 3900 is not valid JSON'
fails 4 'a list with more behind it' "(cat long.json; echo x) >wrong.json; dt-bucket $L wrong.json" 'wrong.json: not valid JSON at line 4002, column 1'
fails 4 'a NUL, whatever else is wrong before it' "(cat wrong.jsonl; printf 'a\\0b') >nul.jsonl; dt-bucket $L nul.jsonl" 'nul.jsonl: byte [0-9]+ is NUL: this is not text'

# what kohya's scripts and musubi-tuner read
mkdir -p k/3_sks\ cat k/1_dog w/10_a; cp good/1.png 'k/3_sks cat'; cp good/2.png k/1_dog; echo 'a dog, b, c, d' >k/1_dog/2.caption
cp good/3.png w; cp good/1.* w/10_a
check 'folders with numbers: repeats, and words for captions' \
    "dt-bucket -q $P k >p; grep -c '\"text\":\"sks cat\"' p; grep -c '\"text\":\"a dog, b, c, d\"' p; head -n 1 p | grep -o '\"samples\":[0-9]*'" '1
1
"samples":8'
check 'or ordinary folders' "dt-bucket -q $P --no_folder_repeats k | head -n 1 | grep -o '\"samples\":[0-9]*'" '"samples":4'
check 'a folder with pictures of its own is an ordinary one' "dt-bucket -q $P w | head -n 1 | grep -o '\"samples\":[0-9]*'" '"samples":4'
check 'and it is said' "dt-bucket $P k 2>&1 >p | grep -c 'sks cat: 1 pictures, each 3 times an epoch'" 1
cat >c.toml <<'E'
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = '.caption'
caption_dropout_every_n_epochs = 2
[[datasets]]
resolution = 64
batch_size = 4
  [[datasets.subsets]]
  image_dir = 'k/1_dog'
  num_repeats = 2
  flip_aug = true
[[datasets]]
resolution = [64, 48]
  [[datasets.subsets]]
  image_dir = 'k/3_sks cat'
  class_tokens = 'x'
E
check 'a dataset_config: each data set has its size and batches' \
    "dt-bucket -q --num_train_epochs 2 c.toml >p; grep '^{.batch' p | grep -o '\"size\":.*,\"items\"' | sort | uniq -c | sed 's/^ *//'" \
    '2 "size":[64,48],"items"
1 "size":[64,64],"items"'
check 'its captions are shuffled behind the first tag' "grep -o '\"text\":\"a dog, [bcd], [bcd], [bcd]\"}' p | wc -l" 2
check 'every second epoch has none' "grep -o '\"drop\":true' p | wc -l" 3
flips() { awk -v i="$1" '/^{"batch"/ { n += gsub("\"item\":" i ",[^}]*\"flip\":true", "") } END { print (n > 0) }'; }
check 'only one data set is mirrored' "dt-bucket -q --num_train_epochs 20 c.toml >q; flips 0 <q; flips 1 <q" '1
0'
check 'of repeats in one epoch each has its own draw' \
    "dt-bucket -q --image_sample_size 64 --random_flip --train_batch_size 4 --num_train_epochs 20 k | awk '/^{\"batch\"/ { n = gsub(/\"item\":1,[^}]*\"flip\":true/, \"\"); some += n == 1 || n == 2 } END { print (some > 0) }'" 1
check 'small pictures are left out' "sed '2s/.*/skip_image_resolution = [20, 12]/;/resolution = 64\$/s/.*/resolution = 64\nskip_image_resolution = [20, 11]/' c.toml >d.toml
    dt-bucket d.toml 2>&1 >q | grep -o '1 pictures left out by skip_image_resolution'; grep -c '^{\"item\"' q" '1 pictures left out by skip_image_resolution
1'
check 'the same bytes again' "dt-bucket -q --dataset_config c.toml --num_train_epochs 2 | cmp - p"
fails 2 'an option that it says itself' 'dt-bucket --train_batch_size 2 c.toml' '--train_batch_size has no effect with --dataset_config'
fails 4 'a key that cannot be honoured' "sed '2s/.*/color_aug = true/' c.toml >d.toml; dt-bucket d.toml" "d.toml: general: 'color_aug': latents are cached"
fails 4 'a key that nobody knows' "sed '2s/.*/shufle_caption = true/' c.toml >d.toml; dt-bucket d.toml" "unknown key 'shufle_caption' .did you mean 'shuffle_caption'"

# webdataset
mkdir wds
for k in 1 2 3; do cp good/$k.png wds/00$k.png; echo "caption $k" >wds/00$k.txt; done
cp "$I/exif6.jpg" wds/004.jpg; echo '{"caption": "from json"}' >wds/004.json; echo 3 >wds/004.cls; echo none >wds/005.txt
long=$(printf 'long%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32)
cp good/1.png wds/$long.png; echo 'long' >wds/$long.txt
(cd wds && tar --format=gnu -cf ../s-00.tar 00* && tar --format=pax -cf ../s-01.tar long*)
check 'a tar: pictures and captions by key' "dt-bucket -q $P --verify_images s-00.tar | grep -o '\"text\":[^,]*,\"size\":[^]]*\\]'" \
    '"text":"caption 1","size":[20,12]
"text":"caption 2","size":[20,12]
"text":"caption 3","size":[20,12]
"text":"from json","size":[12,20]'
check 'what is in it besides is said' "dt-bucket $P s-00.tar 2>&1 >p | grep -o '4 pictures; 1 members.* not used'" \
    '4 pictures; 1 members of other kinds and 1 samples without a picture are not used'
check 'the plan says where a picture is' "o=\$(grep -o '\"tar\":{\"file\":\"s-00.tar\",\"offset\":[0-9]*,\"bytes\":132}' p | head -n 1 | grep -o '[0-9]*,\"bytes' | tr -dc 0-9)
    tail -c +\$((o + 1)) s-00.tar | head -c 132 | cmp - good/1.png"
check 'several, by braces, long names too' "dt-bucket -q $P --verify_images 's-{00..01}.tar' | grep -c '\"tar\":'" 5
check 'or one by one, or a folder of them' "dt-bucket -q $P s-00.tar s-01.tar >p; mkdir t; mv s-0?.tar t; dt-bucket -q $P t >q; grep -c '\"tar\":' p q" 'p:5
q:5'
mkdir badtext; for k in 1 2 3; do cp good/$k.png badtext/00$k.png; echo '{"caption"' >badtext/00$k.json; done
rm badtext/003.json; printf 'a\0b\0' >badtext/003.txt; (cd badtext && tar -cf ../badtext.tar 00*)
fails 3 'captions that are none are listed' "dt-bucket $P badtext.tar >p" 'skipped badtext.tar/003.txt: a caption that holds a NUL byte'
check 'and no reason to refuse their pictures' "grep -c '\"text\":\"\",\"size\":\[20,12\]' p" 3
fails 3 'a tar cut short: what is whole is used' "head -c 6000 t/s-00.tar >t/cut.tar; dt-bucket $P t >p" 'skipped t/cut.tar: '
fails 4 'a compressed tar' "gzip -c t/s-00.tar >gz.tar; dt-bucket $P gz.tar" 'gz.tar: '

fails 4 'all pictures bad' "dt-bucket $P bad >p" 'bad: none of its 1 pictures can be used; the first: bad/a.jpg'
check 'then nothing is written' 'wc -c <p' 0
fails 4 'too many bad' "dt-bucket $P --max_skipped_fraction 0.1 mixed" '2 of 6 pictures cannot be used, more than --max_skipped_fraction 0.1'
fails 4 'an empty folder' "dt-bucket empty" 'empty: no pictures in it'
fails 4 'a folder that is not there' "dt-bucket --train_data_dir=nowhere" "nowhere"
fails 4 'broken JSON' "dt-bucket broken.jsonl" 'broken.jsonl: line 2 is not valid JSON'
fails 4 'a table without paths' "echo a,b >t.csv; dt-bucket t.csv" "t.csv: line 1: the header has no column 'file_path'"
fails 2 'no data' 'dt-bucket' 'no data: name a folder or a metadata file'
fails 2 'two data' 'dt-bucket good bad' "one DATA at a time, not also 'bad'"
fails 2 'data twice' 'dt-bucket --train_data_meta m.json good' 'name the data once'
fails 2 'a misspelt flag' 'dt-bucket --enable_buket good' "did you mean '--enable_bucket'?"
fails 2 'a flag without effect' 'dt-bucket --random_hw_adapt good' '--random_hw_adapt needs --enable_bucket'
fails 2 'a root without effect' 'dt-bucket --train_data_dir x good' "--train_data_dir has no effect: 'good' is a folder"
fails 2 'a shard out of range' 'dt-bucket --shard 2/2 good' '--shard takes I/N'
fails 2 'too small' "dt-bucket --image_sample_size 16 --enable_bucket good" 'too small'
if [ -w /dev/full ]; then fails 7 'full disk' "dt-bucket $P good >/dev/full" 'No space left'; else skip 'full disk' 'no /dev/full'; fi
fails 7 'a folder that cannot be written' "dt-bucket $P -o nowhere/p good" 'nowhere/p'
