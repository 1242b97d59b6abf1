#!/bin/bash
# faults.t - what surrounds a program fails: the disk is full, a folder cannot be written, files shrink or are replaced, clocks
# go backwards, names are odd, pipes break, descriptors are closed.  Memory: faults_alloc.t.  Pictures: pictures.t.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures A=$PWD/tests/golden/lora_all_comfy.safetensors
export OMP_NUM_THREADS=1
${CC:-cc} -O1 -Wall -D_GNU_SOURCE -shared -fPIC -o "$T/shim.so" tests/faults/shim.c -ldl || exit 1
cd "$T" || exit 1
# A preloaded library comes before a sanitizer's, which does not have that.
faulty() { [ -z "${SAN-}" ] && LD_PRELOAD=$T/shim.so "$@"; }

mkdir data
for p in crown rocket; do cp "$E/$p.png" data/; echo "a $p" >data/$p.txt; done
P='-q --image_sample_size 32 --train_batch_size 2 --max_train_steps 2'
C="dt-cache-latents -q --threads 1 --dataloader_num_workers 1 --model $M --max_sequence_length 16"
dt-bucket $P -o plan data && $C -o cache plan || exit 1
R="--pretrained_model_name_or_path $M --max_train_steps 2 --checkpointing_steps 1 --quiet --output_dir out --plan plan"
L="dt-train lora $R --rank 2 --latents cache --max_sequence_length 16"

# What an output holds, without what grows in place.
holds() {
    [ ! -f "$1" ] || cksum "$1"
    (cd "$1" 2>/dev/null && find . -type f ! -name '.*' ! -path '*/logs/*' ! -name metrics.ndjson ! -name run.json ! -path '*.tmp/*' -exec cksum {} + | sort); :
}

# --- the disk is full ---
mkfifo words

# limited KIB COMMAND: no file grows beyond that; as with a full disk, writing fails
limited() { (trap '' XFSZ; ulimit -f "$1"; shift; "$@"); }
# full NAME COMMAND: with room for 0, 1, 2, ... KiB, twice as much each time, until it has enough: exit 7 with one line, and no file
# that is not what it will be
full() {
    local k=0 st why=
    rm -rf out; $2 >o 2>said || { not_ok "$1" "$(cat said)"; return; }
    holds out >want; cksum <o >wanto
    while :; do
        rm -rf out
        # through pipes: a file of theirs would be limited too, as are those of make coverage
        sed '/^libgcov profiling error/d' <words >said &
        limited $k $2 2>words | cat >o; st=${PIPESTATUS[0]}
        wait
        holds out >now
        [ "$st" -ne 0 ] || { cmp -s now want || why="$k KiB: exit 0, but not all is there"; break; }
        [ "$st" -eq 7 ] || why="$k KiB: exit $st: $(tail -n 1 said)"
        [ "$(grep -vc 'tokens$' said)" -eq 1 ] && grep -qE 'File too large|No space|disk is full' said || why="$k KiB: said: $(cat said)"
        # samples, charts and a model's configuration have states before their last; a shard is complete as far as it goes
        extra=$(comm -23 now want | grep -vE '(samples|loss).png|shard-.*tar|config.json')
        [ -z "$extra" ] || why="$k KiB: half-written: $extra"
        [ -z "$why" ] || break
        k=$((k ? k * 2 : 1))
        [ $k -lt 4096 ] || why='never enough'
    done
    if [ -z "$why" ]; then ok "$1, up to $k KiB"; else not_ok "$1" "$why"; fi
}
full 'full disk: dt-bucket' "dt-bucket $P -o out data"
full 'full disk: dt-cache-latents' "$C -o out plan"
full 'full disk: dt-train lora' "$L"
full 'full disk: dt-train full' "dt-train full $R --latents cache --max_sequence_length 16"
full 'full disk: dt-train vae' "dt-train vae $R"
full 'full disk: dt-train tokenizer' "dt-train tokenizer --train_data_meta data --clip_vocab_size 514 --t5_vocab_size 64 --output_dir out"
full 'full disk: dt-sample' "dt-sample --pretrained_model_name_or_path $M --max_sequence_length 16 --steps 1 -q -o out -p one --grid out/sheet.png"
full 'full disk: dt-merge-shards lora' "dt-merge-shards lora -q -o out --lora_format kohya $A"
full 'full disk: dt-merge-shards merge' "dt-merge-shards merge -q -o out $M --lora $A"

# A real one, where a user may have name spaces of their own.
cat >tmpfs.sh <<'EOF'
mount -t tmpfs -o size=24k none full && mount -t tmpfs -o ro none ro || exit 99
"$@"; st=$?
find full -type f ! -name '.*' -size +0 | grep -vE 'logs/|run.json|metrics.ndjson|config.json|checkpoint-[0-9]*.tmp|plan.ndjson' >>left
exit $st
EOF
mkdir full ro
if unshare -rm sh tmpfs.sh true 2>/dev/null; then
    fails 7 'a small tmpfs: dt-cache-latents' "unshare -rm sh tmpfs.sh $C -o full plan" 'No space left on device'
    fails 7 'a small tmpfs: dt-train' "unshare -rm sh tmpfs.sh ${L/ out / full }" 'No space left on device'
    fails 7 'a small tmpfs: dt-bucket' "unshare -rm sh tmpfs.sh dt-bucket ${P/steps 2/steps 9999} -o full/plan data" 'No space left on device'
    fails 7 'a small tmpfs: dt-sample' "unshare -rm sh tmpfs.sh dt-sample --pretrained_model_name_or_path $M --max_sequence_length 16 --steps 1 -q -p x \
        --width 128 --height 128 -o full/x.png" 'No space left on device|the disk is full'
    fails 7 'a small tmpfs: dt-merge-shards' "unshare -rm sh tmpfs.sh dt-merge-shards merge -q -o full/m $M --lora $A" 'No space left on device'
    check 'and nothing half-written' 'cat left'
    fails 7 'a read-only folder: dt-bucket' "unshare -rm sh tmpfs.sh dt-bucket $P -o ro/plan data" "ro/plan'?: Read-only file system"
    fails 7 'a read-only folder: dt-cache-latents' "unshare -rm sh tmpfs.sh $C -o ro/cache plan" "ro/cache'?: Read-only file system"
    fails 7 'a read-only folder: dt-train' "unshare -rm sh tmpfs.sh ${L/ out / ro/out }" "ro/out'?: Read-only file system"
    fails 7 'a read-only folder: dt-sample' "unshare -rm sh tmpfs.sh dt-sample --pretrained_model_name_or_path $M --steps 1 -q -p x -o ro/x.png" \
        "ro/x.png'?: Read-only file system"
    fails 7 'a read-only folder: dt-merge-shards' "unshare -rm sh tmpfs.sh dt-merge-shards merge -q -o ro/m $M --lora $A" "ro/.m.tmp'?: Read-only file system"
    fails 7 'a read-only folder: a LoRA' "unshare -rm sh tmpfs.sh dt-merge-shards lora -q -o ro/l $A" "ro/l'?: Read-only file system"
else
    skip 'a small tmpfs, a read-only folder' 'no user name spaces here'
fi

# --- files that change ---

if [ -z "${SAN-}" ]; then
    cp -r "$M" m; w=$(ls m/transformer/*00001-of*.safetensors)
    fails 4 'a weight file that shrinks while it is mapped: its name, no core' \
        "rm -rf out; FAULT_WATCH=metrics.ndjson FAULT_THEN='truncate -s 4096 $w' faulty dt-train lora ${R/$M/m} --low_vram --rank 2 --latents cache --max_sequence_length 16" \
        "dt-train: .*${w##*/}: cannot be read any more: it was cut short"
    # In bf16 they are used where they lie.
    I="${R/$M/m} --rank 2 --latents cache --max_sequence_length 16 --mixed_precision bf16"
    for how in '' --low_vram; do
        rm -r m; cp -r "$M" m
        fails 4 "one in use $how" "rm -rf out; FAULT_WATCH=metrics.ndjson FAULT_THEN='truncate -s 4096 $w' faulty dt-train lora $I $how" \
            "dt-train: .*${w##*/}.*(cannot be read any more: it was cut short|was written to while it was in use)"
        rm -r m; cp -r "$M" m
        fails 4 "one that is written to $how" \
            "rm -rf out; FAULT_WATCH=metrics.ndjson FAULT_THEN='printf x | dd of=$w bs=1 seek=20000 conv=notrunc' faulty dt-train lora $I $how" \
            "^dt-train: '.*${w##*/}' was written to while it was in use$"
        check 'before anything made with it is kept' 'ls -d out/checkpoint* out/lora* 2>/dev/null; wc -c <out/metrics.ndjson' 0
    done
    check 'one that another is renamed over goes on as it was' \
        "rm -r m; cp -r '$M' m; cp $w new; printf x | dd of=new bs=1 seek=20000 conv=notrunc; dt-train lora $I; cp out/metrics.ndjson as-it-was
         rm -rf out; FAULT_WATCH=metrics.ndjson FAULT_THEN='mv new $w' faulty dt-train lora $I; ls new 2>/dev/null; cmp out/metrics.ndjson as-it-was"
    t=$(ls m/text_encoder_2/*.safetensors)
    fails 4 'a text encoder that is written to while it encodes' \
        "rm -rf c4; FAULT_WATCH=.shard-000001-0of1-0000.tar.tmp FAULT_THEN='printf x | dd of=$t bs=1 seek=20000 conv=notrunc' faulty ${C/$M/m} --mixed_precision bf16 -o c4 plan" \
        "^dt-cache-latents: '$t' was written to while it was in use$"
    fails 4 'a transformer that is, while it samples' \
        "FAULT_WATCH=n.ndjson FAULT_THEN='printf x | dd of=$w bs=1 seek=20000 conv=notrunc' faulty dt-sample --pretrained_model_name_or_path m --steps 2 \
            --mixed_precision bf16 --max_sequence_length 16 -q --progress n.ndjson -p x -o written.png" \
        "^dt-sample: .*${w##*/}' was written to while it was in use$"
    check 'with no picture' 'ls written.png 2>/dev/null; :'
    for how in "truncate -s 4096 $w" "printf x | dd of=$w bs=1 seek=20000 conv=notrunc"; do
        fails 4 "weights while a LoRA is merged into them: ${how%% *}" \
            "rm -rf m merged; cp -r $M m; FAULT_WATCH=.config.json.tmp FAULT_THEN='$how' faulty dt-merge-shards merge -q -o merged m --lora $A" \
            "dt-merge-shards: .*${w##*/}.*(cannot be read any more: it was cut short|was written to while it was in use)"
        check 'into nothing' 'ls merged 2>/dev/null; :'
    done
    fails 143 'asked to stop while it merges' \
        "rm -rf m merged; cp -r $M m; FAULT_WATCH=.config.json.tmp FAULT_THEN='kill -TERM \$PPID' faulty dt-merge-shards merge -q -o merged m --lora $A" 'stopped; nothing is written'
    check 'nothing is' 'ls -d merged .merged.tmp 2>/dev/null; :'
    cp -r cache c1; s=$(ls c1/shard*.tar)
    fails 4 'a shard of the cache too' "rm -rf out; FAULT_WATCH=${s##*/} FAULT_THEN='truncate -s 4096 $s' faulty ${L/cache/c1}" \
        "dt-train: .*${s##*/}: (cannot be read any more|cut off at byte)"
    cp -r data d2; sed 's/data\//d2\//' plan >plan2; cp -r data d3
    sed 's/data\//d3\//' plan >plan3; cp "$E/sun_with_face.png" d3/crown.png
    cp d3/crown.png new.png
    # The second opening is that of the pass that hashes and decodes: the file is another one from then on.
    check 'a picture replaced while it is cached: the old one, whole, under its own hash' \
        "FAULT_WATCH=crown.png FAULT_TIMES=1 FAULT_THEN='mv new.png d2/crown.png' faulty $C -o c2 plan2; ls new.png 2>&1 | grep -c 'No such'
         grep -o '\"key\":\"[0-9a-f]*\",\"sum\":\"[0-9a-f]*\"' c2/index-* | sort >a; grep -o '\"key\":\"[0-9a-f]*\",\"sum\":\"[0-9a-f]*\"' cache/index-* | sort >b; cmp a b" 1
    check 'and the next run finds that it is new' "${C/-q /} -o c2 plan2 2>&1 | grep -c '2 pictures: 1 encoded, 1 there already'" 1
    check 'which is what a cache of the new one holds' \
        "$C -o c3 plan3; grep -o '\"key\":\"[0-9a-f]*\",\"sum\":\"[0-9a-f]*\"' c3/index-* | sort >a; cat c2/index-* | grep -o '\"key\":\"[0-9a-f]*\",\"sum\":\"[0-9a-f]*\"' | sort >b
         comm -23 a b"

    # --- file systems ---
    check 'a checkpoint that is there is written anew, also where folders cannot be exchanged' \
        "rm -rf out; $L && holds out >want && FAULT_EXCHANGE=1 faulty $L --resume_from_checkpoint checkpoint-1 && holds out | cmp - want
         rm -r out/checkpoint-2; ls out | grep checkpoint" checkpoint-1
    fails 4 'an output folder that cannot be looked into: what is there is not written over' \
        "cp out/metrics.ndjson as-it-was; FAULT_FOLDER=out faulty $L" "cannot open 'out': Permission denied"
    check 'it is as it was' 'cmp out/metrics.ndjson as-it-was; ls out | grep checkpoint' checkpoint-1

# --- clocks ---
    rm -rf out; $L; cp out/lora.safetensors ref.safetensors
    for k in 3 10 30 60; do
        check "clocks that go backwards from their reading $k on" \
            "rm -rf out n.ndjson; FAULT_CLOCK=$k faulty timeout -k 1 20 $L --report_to tensorboard --progress n.ndjson; grep -c '\"step\":2,' n.ndjson
             grep -E '\":-|inf|nan' n.ndjson; cmp out/lora.safetensors ref.safetensors" 1
    done
    for k in 2 20; do
        check "of the other tools, from reading $k on" \
            "rm -rf back; FAULT_CLOCK=$k faulty timeout -k 1 20 dt-bucket $P -o back data && cmp back plan && rm back
             FAULT_CLOCK=$k faulty timeout -k 1 20 ${C/-q /} --progress c.ndjson -o back plan 2>/dev/null && cmp <(cat back/shard*) <(cat cache/shard*)
             FAULT_CLOCK=$k faulty timeout -k 1 20 dt-sample --pretrained_model_name_or_path $M --max_sequence_length 16 --steps 1 --progress s.ndjson -p x -o back.$k.png >said 2>&1 || cat said
             cmp back.2.png back.$k.png; grep -E '\":-|inf|nan' c.ndjson s.ndjson; :"
    done
    check 'events are in order over a resume after the clock was set back' \
        "rm -rf out; ${L/max_train_steps 2/max_train_steps 1} --report_to tensorboard; FAULT_CLOCK=1 faulty $L --report_to tensorboard --resume_from_checkpoint latest
         find out/logs -name 'events*' | sort >files; wc -l <files; find out/logs -name 'events*' -newer \$(head -n 1 files) | cmp - <(tail -n 1 files)" 2
fi

# --- names ---
mkdir odd; n=0
for name in 'with "quotes"' "with 'a quote'" $'with\na newline' $'with\ta tab and \\ a backslash' $'not \xff\xfe UTF-8' '%s%n%d' ' leading' '-dash' '{"a":1}' 'a: b' 'grün' '$(false) `false` * ?'; do
    cp "$E/rocket.png" "odd/$name.png"; printf 'caption of %d' $n >"odd/$name.txt"; n=$((n + 1))
done
O='-q --image_sample_size 32 --train_batch_size 4 --num_train_epochs 1'
check 'names with newlines, quotes, bytes that are not UTF-8, ...: planned, each on a line' \
    "dt-bucket $O -o oddplan odd; grep -c '^{\"item\"' oddplan; LC_ALL=C grep -vc '^{.*}\$' oddplan; :" "$n
0"
check 'encoded' "${C/-q /} -o oddcache oddplan 2>&1 | grep -o '$n pictures: 1 encoded, 0 there already, $((n - 1)) the same'" \
    "$n pictures: 1 encoded, 0 there already, $((n - 1)) the same"
check 'and there the next time' "${C/-q /} -o oddcache oddplan 2>&1 | grep -o '$n pictures: 0 encoded, [0-9]* there'" "$n pictures: 0 encoded, $n there"
check 'trained on' "rm -rf out; dt-train lora ${R/--plan plan/--plan oddplan} --rank 2 --latents oddcache --max_sequence_length 16 >said 2>&1; cat said; ls out/lora.safetensors" \
    out/lora.safetensors
check 'or from the folder at once' "rm -rf out; dt-train lora ${R/--plan plan/--train_data_dir odd} --image_sample_size 32 --rank 2 --max_sequence_length 16"
printf 'no picture' >$'odd/bad\n"one".png'
check 'a message about one is one line' "dt-bucket $O odd 2>&1 >p | head -n 1" \
    'dt-bucket: warning: skipped odd/bad?"one".png: too short to be a picture'
check 'the same through metadata' \
    "printf '[{\"file_path\":\"with \\\\\"quotes\\\\\".png\"},{\"file_path\":\"with\\\\na newline.png\"},{\"file_path\":\"gr\\\\u00fcn.png\"}]' >odd/m.json; dt-bucket $O odd/m.json | grep -c '^{\"item\"'" 3
check 'and CSV' "printf 'file_path\n\"with \"\"quotes\"\".png\"\n\"with\na newline.png\"\n' >odd/m.csv; dt-bucket $O odd/m.csv | grep -c '^{\"item\"'" 2

# In a tar: each name is its own, links and members with holes are listed.
(cd odd || exit; rm -f bad* m.json m.csv; for f in gnu pax; do tar --format=$f --sort=name -cf ../$f.tar .; done)
check 'names in tars' "for f in gnu pax; do dt-bucket $O \$f.tar | LC_ALL=C grep '^{\"item\"' | LC_ALL=C sed 's/\"path\":\"[a-z]*.tar//;s/,\"tar\".*//' >\$f.items; wc -l <\$f.items; done; LC_ALL=C cmp gnu.items pax.items" "$n
$n"
mkdir t; cp "$E/rocket.png" t/a.png; ln t/a.png t/b.png; ln -s a.png t/c.png; echo '{"caption": none' >t/a.json; cp "$E/crown.png" t/d.png; echo '{"caption": "d"}' >t/d.json
{ printf BM; head -c 5000 /dev/zero; } >t/e.bmp; truncate -s 1M t/e.bmp
(cd t || exit; tar -S -cf ../t.tar a.png a.json b.png c.png d.png d.json e.bmp)
check 'links and holes in tars, captions that are no JSON' "dt-bucket $O --max_skipped_fraction 0.9 t.tar 2>&1 >p | grep -v ' [0-9] skipped:'; grep -c '^{\"item\"' p" \
'dt-bucket: warning: skipped t.tar/a.json: a caption that is not valid JSON
dt-bucket: warning: skipped t.tar/b.png: a link to another member
dt-bucket: warning: skipped t.tar/c.png: a link to another member
dt-bucket: warning: skipped t.tar/e.bmp: a sparse member
2'

# --- links and FIFOs ---
mkdir -p loop/a; cp "$E/rocket.png" loop; ln -s .. loop/a/up; ln -s a loop/b; ln -s c loop/c; ln -s self.json self.json
check 'folders that contain themselves are read once' "timeout 10 dt-bucket $O loop | grep -c '^{\"item\"'" 1
fails 4 'a link to itself as metadata' "dt-bucket self.json" 'self.json.*Too many levels of symbolic links'
check 'a link to itself as output is replaced' "ln -s o1 o1; dt-bucket $O -o o1 loop; [ ! -L o1 ] && grep -c '^{\"item\"' o1" 1
fails 7 'as output folder it is an error' "ln -s o2 o2; ${L/ out / o2/x }" 'cannot make folder .o2'
mkfifo pipe
check 'a plan through a FIFO' "cat plan >pipe & timeout -k 1 20 $C -o c7 pipe; cmp plan c7/plan.ndjson"
check 'metadata through a FIFO' "printf '{\"file_path\":\"rocket.png\"}\n' >pipe & timeout 20 dt-bucket $O --train_data_dir data pipe | grep -c '^{\"item\"'" 1
fails 4 'a FIFO as a model file does not hang' "cp -r $M m4; rm m4/vae/*.safetensors; mkfifo m4/vae/diffusion_pytorch_model.safetensors; timeout -k 1 20 ${C/$M/m4} -o c8 plan" 'not a regular file'
cp -r "$M" m6
for f in transformer/config.json tokenizer/vocab.json tokenizer/merges.txt tokenizer_2/spiece.model text_encoder_2/config.json; do
    mv "m6/$f" away; mkfifo "m6/$f"
    fails 4 "nor does $f" "timeout -s KILL 20 dt-sample --pretrained_model_name_or_path m6 --max_sequence_length 16 --steps 1 -q -p x -o no.png" "$f: not a regular file"
    rm "m6/$f"; mv away "m6/$f"
done
mkfifo l.safetensors; ln -s l2.safetensors l2.safetensors
fails 4 'nor as a LoRA' "timeout -s KILL 20 dt-merge-shards lora -o no l.safetensors" "'l.safetensors' is not a regular file"
fails 4 'nor as one of a picture' "timeout -s KILL 20 dt-sample --pretrained_model_name_or_path $M --steps 1 -q -p x -o no.png --lora l.safetensors" "'l.safetensors' is not a regular file"
fails 4 'a LoRA that is a link to itself' "dt-merge-shards lora -o no l2.safetensors" "l2.safetensors.*Too many levels of symbolic links"
cp -r data d9; mkfifo d9/fifo.txt; ln -s dangling.txt d9/dangling.txt; mkdir d9/folder.txt
for k in fifo dangling folder; do cp "$E/rocket.png" d9/$k.png; done
check 'captions that are none: listed, and their pictures are not taken without' "timeout -s KILL 20 dt-bucket $O --max_skipped_fraction 0.9 d9 2>&1 >p | sort; grep -c '^{\"item\"' p" \
'dt-bucket: warning: 1 skipped: cannot open: Too many levels of symbolic links (d9/dangling.txt)
dt-bucket: warning: 2 skipped: not a regular file (d9/fifo.txt, d9/folder.txt)
dt-bucket: warning: skipped d9/dangling.txt: cannot open: Too many levels of symbolic links
dt-bucket: warning: skipped d9/fifo.txt: not a regular file
dt-bucket: warning: skipped d9/folder.txt: not a regular file
2'
fails 7 'some skipped, and the disk is full: that counts' "dt-bucket $O --max_skipped_fraction 0.9 d9 >/dev/full" 'No space left on device'
fails 2 'a FIFO as the plan of a training run is refused' "timeout -k 1 20 ${L/--plan plan/--plan pipe}" "'pipe' is not a file"

# --- pipes and descriptors ---
check 'a pipe that breaks ends a program quietly' "dt-bucket -q --image_sample_size 32 --train_batch_size 1 --max_train_steps 99999 data 2>said | head -n 1 | cut -c1-11; cat said; echo \${PIPESTATUS[0]}" '{"dt_plan":
0'
check 'also where the parent ignores it' "(trap '' PIPE; dt-bucket -q --image_sample_size 32 --train_batch_size 1 --max_train_steps 99999 data 2>said; echo \$? >st) | head -n 1 | cut -c1-3; cat st said" '{"d
141'
fails 7 'standard output is closed' "dt-bucket $P data >&-" 'standard output'
fails 7 'for pictures' "dt-sample --pretrained_model_name_or_path $M --max_sequence_length 16 --steps 1 -q -p one -o s1 >&-" 'standard output'
check 'words do not end up in a file that took its place' "dt-sample --pretrained_model_name_or_path $M --max_sequence_length 16 --steps 1 -q -p one -o s2 >o; cmp s1/0000.png s2/0000.png"
fails 4 'standard input is closed' "dt-bucket - <&-" 'standard input|stdin'
check 'standard error is closed' "dt-bucket $P -o p9 data 2>&-; cmp p9 plan"

# --- 100,000 entries ---
awk 'BEGIN { for (i = 0; i < 100000; i++) printf "{\"file_path\":\"%06d/picture.png\",\"text\":\"a caption of some length, number %d\",\"width\":%d,\"height\":%d}\n", i, i, 512 + i % 7 * 64, 512 + i % 5 * 64 }' >big.jsonl
# shellcheck disable=SC2046
${CC:-cc} -O2 -o make "$OLDPWD/tests/pictures/make.c" $(pkg-config --cflags --libs libpng libjpeg) || exit 1
check '100,000 entries of metadata: under 10 s and 400 MiB' \
    "s=\$(date +%s); ./make peak peak dt-bucket -q --trust_sizes --enable_bucket --num_train_epochs 2 -o bigplan big.jsonl; echo \$? \$((\$(date +%s) - s < 10)) \$((\$(cat peak) < 400)); grep -c '^{\"item\"' bigplan" '0 1 1
100000'
echo "# peak memory $(cat peak) MiB"
