#!/bin/bash
# dt-merge-shards.t - the command: LoRAs through all layouts and back to the bit, LoRAs merged into every kind of base, bad input.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux G=$PWD/tests/golden I=$PWD/examples/pictures
cd "$T" || exit 1
export OMP_NUM_THREADS=1

# data FILE: the tensors of a safetensors file, without its header; header FILE: that
skip_bytes() { echo $(($(head -c 8 "$1" | od -An -tu8 | tr -d ' ') + 8)); }
data() { tail -c +$(($(skip_bytes "$1") + 1)) "$1"; }
header() { head -c "$(skip_bytes "$1")" "$1" | tail -c +9; }
# far A B: relative L2 distance of the fp32 tensors of two files, to one digit: "2e-07"
far() { paste <(data "$1" | od -An -v -w4 -tf4) <(data "$2" | od -An -v -w4 -tf4) | awk '{ d += ($1 - $2) ^ 2; s += $2 ^ 2 } END { printf "%.0e\n", sqrt(d / s) }'; }
near() { far "$1" "$2" | awk '{ print ($1 < 1e-6) }'; }
to() { dt-merge-shards lora -q -o "$1" --lora_format "$2" "$3"; }

# --- layouts: lora_all has every layer, in bf16; t is trained here, with a part of fused layers, another alpha, fp32 ---
mkdir pics; cp "$I/crown.png" "$I/rocket.png" pics; echo a crown >pics/crown.txt; echo a rocket >pics/rocket.txt
train="--pretrained_model_name_or_path $M --max_sequence_length 16 --report_to none --train_data_dir pics --image_sample_size 32 --train_batch_size 2 -q"
check 'a LoRA of some layers' "dt-train lora $train --rank 3 --network_alpha 2 --learning_rate 1e-2 --max_train_steps 2 --checkpointing_steps 1 \
    --target_name to_q,to_v,proj_mlp,ff.0,norm_out.linear --output_dir t && ls t/checkpoint-1/lora.safetensors" 't/checkpoint-1/lora.safetensors'
cp "$G/lora_all_comfy.safetensors" all.comfy; cp t/lora.safetensors some.comfy
for f in all some; do
    for l in peft kohya; do to $f.$l $l $f.comfy; done
    for a in comfy peft kohya; do
        for b in comfy peft kohya; do
            check "$f: $a, $b, $a: the same bits" "to 1 $b $f.$a && to 2 $a 1 && cmp <(data 2) <(data $f.$a) && cmp <(data 1) <(data $f.$b)"
        done
    done
    check "$f: comfy, peft, kohya, comfy: the same bits" "to 1 peft $f.comfy && to 2 kohya 1 && to 3 comfy 2 && cmp <(data 3) <(data $f.comfy)"
done
check 'of its own file every byte' 'to 1 kohya some.comfy && to 2 comfy 1 && cmp 2 some.comfy'
for l in peft kohya; do check "$l is what dt_lora_save writes" "cmp <(data all.$l) <(data $G/lora_all_$l.safetensors)"; done
for f in diffusers kohya; do
    for l in comfy peft kohya; do to $f.$l $l "$G/lora_text_$f.safetensors"; done
    for a in comfy peft kohya; do
        for b in comfy peft kohya; do
            check "text encoders, $f: $a, $b, $a: the same bits" "to 1 $b $f.$a && to 2 $a 1 && cmp <(data 2) <(data $f.$a) && cmp <(data 1) <(data $f.$b)"
        done
    done
done
tensors() { header "$1" | grep -o '"[^"]*":{"dtype":"BF16","shape":\[[0-9]*,[0-9]*\]' | sort; }
check "the matrices of sd-scripts' file have their names again" "tensors kohya.kohya | wc -l; cmp <(tensors kohya.kohya) <(tensors $G/lora_text_kohya.safetensors)" 42
check 'metadata are kept' "header some.kohya | grep -o '\"dt_targets\":\"[^\"]*\"\|\"dt_steps\":\"2\"\|\"ss_network_dim\":\"3\"\|\"dt_layout\":\"kohya\"'" \
'"dt_layout":"kohya"
"dt_targets":"to_q,to_v,proj_mlp,ff.0,norm_out.linear"
"dt_steps":"2"
"ss_network_dim":"3"'
check 'those of a layout are not' 'to 1 comfy some.kohya; to 2 comfy some.peft; header 1 | grep -c ss_network; header 2 | grep -c lora_adapter_metadata; :' '0
0'
check 'a checkpoint of dt-train' "to 1 comfy t/checkpoint-1 && cmp 1 t/checkpoint-1/lora.safetensors"
check 'to bf16, which is said' "dt-merge-shards lora -o 1 --save_dtype bf16 some.comfy 2>&1 | grep -c 'rounded to BF16'; header 1 | grep -c '\"BF16\"'" '1
1'
check 'to fp32 and back: the same bits' 'dt-merge-shards lora -q -o 1 --save_dtype fp32 all.comfy && dt-merge-shards lora -q -o 2 --save_dtype bf16 1 && cmp <(data 2) <(data all.comfy)'
check 'says what it did' "dt-merge-shards lora -o 1 all.kohya 2>&1" 'dt-merge-shards: all.kohya: 108 tensors, 50 layers, rank 2, alpha 1 -> 1: comfy, BF16'
# alphas of 0, all that a LoRA of no effect has
cp some.kohya none; dd if=/dev/zero of=none bs=1 seek="$(skip_bytes none)" count=$((4 * $(header none | grep -o '\.alpha"' | wc -l))) conv=notrunc 2>/dev/null
check 'alpha 0: the same bits' "dt-merge-shards lora -o 1 none 2>&1 | grep -c warning; to 2 kohya 1 && cmp <(data 2) <(data none)" 0
# one part of a fused layer with another alpha: an fp32 number of the data, in the order of the names
cp all.comfy odd; k=$(header odd | grep -o '"[^"]*\.alpha"' | grep -n '^"transformer.transformer_blocks.0.attn.to_k.alpha"' | cut -d: -f1)
printf '\0\0\300\77' | dd of=odd bs=1 seek=$(($(skip_bytes odd) + 4 * (k - 1))) conv=notrunc 2>/dev/null
check 'parts of different alpha: what cannot be kept to the bit is said' "dt-merge-shards lora -o 1 --lora_format kohya odd 2>&1 | grep -c 'warning: 1 fused layers have parts of different alpha'" 1
check 'and only there' "dt-merge-shards lora -o 1 --lora_format peft odd 2>&1 | grep -c warning; to 2 comfy 1; cmp <(data 2) <(data odd)" 0
printf '\0\0\0\100' | dd of=odd bs=1 seek=$(($(skip_bytes odd) + 4 * (k - 1))) conv=notrunc 2>/dev/null
check 'twice the alpha can' "dt-merge-shards lora -o 1 --lora_format kohya odd 2>&1 | grep -c warning; :" 0

# --- merged ---
S="dt-sample --max_sequence_length 16 --steps 4 -q -p a --width 32 --height 32 --pretrained_model_name_or_path"
L='all.comfy:0.7 some.kohya:-0.5'
dt-train full $train --learning_rate 1e-4 --max_train_steps 1 --save_dtype fp32 --output_dir full
mkdir model; cp -r "$M"/[mstv]* model/; rm -r model/transformer; cp -r full/transformer model/      # in fp32
# shellcheck disable=SC2086
$S model --save_latents with --lora $L; $S model --save_latents without
check 'the LoRAs have an effect' 'far without with | grep -c e-01' 1
check 'merged into the folder of a transformer: samples as base and LoRAs' \
    "dt-merge-shards merge -q -o tr model/transformer --lora $L && ls tr && $S model --transformer_path tr --save_latents lat && near lat with" \
'config.json
diffusion_pytorch_model.safetensors
dt-merge.json
1'
check 'into one file' "dt-merge-shards merge -q -o m.safetensors model --lora $L && cmp <(data m.safetensors) <(data tr/*.safetensors) && $S model --transformer_path m.safetensors --save_latents y && cmp lat y"
check 'into a model folder' "dt-merge-shards merge -q -o new/ model --lora $L && $S new --save_latents y && cmp lat y && { diff -rq model new; :; }" \
'Only in new: dt-merge.json
Files model/transformer/diffusion_pytorch_model.safetensors and new/transformer/diffusion_pytorch_model.safetensors differ'
check 'threads do not matter' "dt-merge-shards merge -q -o m3.safetensors model --threads 3 --lora $L && cmp m.safetensors m3.safetensors"
check 'one after the other: the same but for rounding' \
    "dt-merge-shards merge -q -o 1.safetensors model --lora all.comfy:0.7 && dt-merge-shards merge -q -o 2.safetensors 1.safetensors --lora some.kohya:-0.5 && near 2.safetensors m.safetensors" 1
check 'and taken out again' "dt-merge-shards merge -q -o 3.safetensors 1.safetensors --lora all.comfy:-0.7 && near 3.safetensors model/transformer/*.safetensors" 1
check 'strength 0 changes no bit' "dt-merge-shards merge -q -o 1.safetensors model --lora all.comfy:0 && cmp <(data 1.safetensors) <(data model/transformer/*.safetensors)"
check 'metadata say so, those of the base are kept' "header m.safetensors | grep -o '\"dt_steps\":\"1\"\|\"dt_merged\":\"[^\"]*\"'" '"dt_steps":"1"
"dt_merged":"all.comfy:0.7, some.kohya:-0.5"'
# text encoders: lora_text_diffusers adapts CLIP (fp32) and the transformer, lora_text_kohya T5 (bf16) too
D=$G/lora_text_diffusers.safetensors K=$G/lora_text_kohya.safetensors
check 'into the text encoders of a model folder: samples as base and LoRA' \
    "$S model --save_latents y --lora $D:0.7 && dt-merge-shards merge -q -o te1 model --lora $D:0.7 && $S te1 --save_latents lat && near lat y; { diff -rq model te1; :; }" \
'1
Only in te1: dt-merge.json
Files model/text_encoder/model.safetensors and te1/text_encoder/model.safetensors differ
Files model/transformer/diffusion_pytorch_model.safetensors and te1/transformer/diffusion_pytorch_model.safetensors differ'
check 'into T5 of a model folder, in bf16' \
    "$S model --save_latents z --lora $K:0.7 && dt-merge-shards merge -o te2 model --lora $K:0.7 2>&1 | sed 's/.*kohya.safetensors: //' && $S te2 --save_latents lat && far lat z; far y z; header te2/text_encoder_2/model.safetensors | grep -c '\"dt_merged\":\"lora_text_kohya.safetensors:0.7\"'" \
'1 layers, rank 2, alpha 4, strength 0.7
12 layers of text_encoder, rank 4, alpha 1, strength 0.7
8 layers of text_encoder_2, rank 2, alpha 3, strength 0.7
dt-merge-shards: te2: 21 of 169 tensors changed
3e-04
1e-01
1'
check 'other weights of an encoder that is merged are left out, and named' \
    "cp -r model more; echo >more/text_encoder/model.fp16.safetensors; dt-merge-shards merge -o te3 more --lora $D 2>&1 | grep warning; ls te3/text_encoder" \
'dt-merge-shards: warning: more/text_encoder/model.fp16.safetensors is left out: it is not what was merged
config.json
model.safetensors'
# the same weights in bf16, as shards in diffusers' names and as the single file
check 'shards stay shards' "dt-merge-shards merge -q -o sh $M/transformer --lora all.comfy && ls sh && for f in config.json diffusion_pytorch_model.safetensors.index.json; do cmp sh/\$f $M/transformer/\$f; done" \
'config.json
diffusion_pytorch_model-00001-of-00002.safetensors
diffusion_pytorch_model-00002-of-00002.safetensors
diffusion_pytorch_model.safetensors.index.json
dt-merge.json'
check 'the single file: the same weights' \
    "dt-merge-shards merge -q -o one.safetensors $M/flux1-tiny.safetensors --lora all.comfy && for t in sh one.safetensors; do $S $M --transformer_path \$t --save_latents l.\$t; done; cmp l.sh l.one.safetensors; header one.safetensors | tr '{' '\n' | grep -c '\"BF16\"'" 84
check 'a single file beside the folders is not copied, which is said' \
    "dt-merge-shards merge -o whole $M --lora all.comfy 2>&1 | grep -c 'flux1-tiny.safetensors is left out'; ls whole | grep -c safetensors; :" '1
0'
check 'says what it did' "dt-merge-shards merge -o 1.safetensors $M/flux1-tiny.safetensors --lora all.peft some.peft:0.5 2>&1" \
'dt-merge-shards: all.peft: 50 layers, rank 2, alpha 1, strength 1
dt-merge-shards: some.peft: 13 layers, rank 3, alpha 2, strength 0.5
dt-merge-shards: 1.safetensors: 36 of 84 tensors changed'
# the same command again: the result knows what it was made of
again='dt-merge-shards merge -o again model --lora all.comfy'
$again -q; touch stamp; sleep 0.02
check 'again: nothing to do' "$again 2>&1 | tail -n 1; find again -newer stamp" 'dt-merge-shards: again is this merge already: nothing to do'
check 'nor with other times of the base, or a slash' "cp again/dt-merge.json was; find model -exec touch {} +; dt-merge-shards merge -q -o again/ model/ --lora all.comfy --threads 2 && cmp was again/dt-merge.json; find again -newer stamp"
check 'a base that is a result gives a record of its own' \
    "dt-merge-shards merge -q -o twice again --lora some.kohya && grep -c some.kohya twice/dt-merge.json; grep -c all.comfy twice/dt-merge.json; header twice/transformer/*.safetensors | grep -o '\"dt_merged\":\"[^\"]*\"'" \
'1
0
"dt_merged":"all.comfy:1, some.kohya:1"'
check 'whose own record does not count' "echo >>again/dt-merge.json; dt-merge-shards merge -o twice again --lora some.kohya 2>&1 | grep -c 'nothing to do'" 1
fails 2 'another strength' "${again}:0.5" "'again' is there already, and is not this merge"
fails 2 'another order' "$again some.kohya" 'is not this merge'
fails 2 'another base' "rm -rf based; cp -r model based; echo >>based/vae/config.json; ${again/ model / based }" 'is not this merge'
fails 2 'one more file in the base' "rm based/vae/config.json; cp model/vae/config.json based/vae; echo >based/LICENSE; ${again/ model / based }" 'is not this merge'
fails 2 'one less in the result' "mv again/vae/config.json held; $again" 'is not this merge'
check 'and with all of them it is' "mv held again/vae/config.json; rm based/LICENSE; ${again/ model / based } -q"
fails 2 'a record that is none' "echo '{}' >again/dt-merge.json; $again" 'is not this merge'
check 'the folder of a transformer, with a slash' "dt-merge-shards merge -q -o slash model/transformer/ --lora all.comfy && ls slash && cmp slash/*.safetensors again/transformer/*.safetensors" \
'config.json
diffusion_pytorch_model.safetensors
dt-merge.json'

mkdir -p .late.tmp/transformer; echo x >.late.tmp/transformer/left
check 'what a killed run has left is taken over' "dt-merge-shards merge -q -o late model --lora all.comfy && ls -A late/transformer" \
'config.json
diffusion_pytorch_model.safetensors'
mkdir .busy.tmp
fails 1 'two at once' "flock .busy.tmp dt-merge-shards merge -q -o busy model --lora all.comfy" "'.busy.tmp' is being written by another process"
rmdir .busy.tmp
check 'several at once: each is the one that writes, or says so' \
    "for i in 1 2 3 4 5 6; do dt-merge-shards merge -q -o many model --lora all.comfy 2>>many.said & p=\"\$p \$!\"; done
     bad=0; for i in \$p; do wait \$i; [ \$? -le 1 ] || bad=1; done; echo \$bad; cmp many/transformer/*.safetensors late/transformer/*.safetensors
     grep -vc 'is being written by another' many.said; :" '0
0'
check 'nothing but files named' 'ls -A | grep -c tmp; :' 0

# --- bad input ---
fails 2 'no command' 'dt-merge-shards' 'Usage: dt-merge-shards'
fails 2 'mistyped command' 'dt-merge-shards marge' 'did you mean .merge'
fails 2 'no LoRA' 'dt-merge-shards lora -o x' 'the LoRA is missing'
fails 2 'no output' 'dt-merge-shards lora all.comfy' '--output is missing'
fails 2 'two' 'dt-merge-shards lora -o x all.comfy all.peft' 'one at a time'
fails 2 'no such layout' 'dt-merge-shards lora -o x --lora_format diffusers all.comfy' 'lora_format'
fails 2 'base swallowed by --lora' "dt-merge-shards merge -o x --lora all.comfy $M" 'the base is missing: it stands before --lora'
fails 2 'nothing to merge' "dt-merge-shards merge -o x $M" '--lora is missing'
fails 2 'a folder that is there' "dt-merge-shards merge -o pics $M --lora all.comfy" "'pics' is there already"
fails 2 'the base itself' 'dt-merge-shards merge -o m.safetensors m.safetensors --lora all.comfy' 'is the base'
fails 2 'the base by another name' 'dt-merge-shards merge -o ./m.safetensors m.safetensors --lora all.comfy' 'is the base'
fails 2 'a file into a folder' 'dt-merge-shards merge -o x m.safetensors --lora all.comfy' 'so must the result be'
fails 4 'a LoRA that is not there' 'dt-merge-shards lora -o x nowhere' 'nowhere'
fails 4 'a LoRA that is none' "dt-merge-shards lora -o x $M/vae/diffusion_pytorch_model.safetensors" 'are no part of a LoRA'
K=$G/lora_text_kohya.safetensors        # of the transformer, CLIP and T5
for f in "-o x.safetensors $M" "-o x.safetensors $M/transformer" "-o x $M/transformer"; do
    fails 4 "not cut down: $f" "dt-merge-shards merge $f --lora $K" '60 of its tensors are for text_encoder, which is not here'
done
sed 's/lora_te1_text_model_encoder_layers_0_mlp_fc1/lora_te1_text_model_encoder_layers_0_mlp_gcl/g' "$K" >te
fails 4 'a layer that a text encoder has not' 'dt-merge-shards lora -o x te' '1 of 12 modules are no linear layers of text_encoder, first'
fails 4 'nor in merging' "dt-merge-shards merge -o x $M --lora te" '1 of 12 modules are no linear layers of text_encoder, first'
fails 4 'half a LoRA' 'head -c 5000 all.comfy >half; dt-merge-shards lora -o x half' 'half'
fails 4 'a base that is not there' 'dt-merge-shards merge -o x.safetensors nowhere --lora all.comfy' 'nowhere'
fails 4 'a base that is none' "dt-merge-shards merge -o x.safetensors $M/vae --lora all.comfy" 'layer|tensor'
fails 4 'a LoRA of another model' "dt-merge-shards merge -o x.safetensors $M --lora $G/lora_1.safetensors" 'lora_1.safetensors'
fails 4 'a layer that the base has not' "sed 's/transformer_blocks.1.ff.net.2/transformer_blocks.7.ff.net.2/g' all.comfy >other; dt-merge-shards merge -o x.safetensors $M --lora other" 'other: 1 of 50 modules are no linear layers'
fails 4 'a strength that is no number' "dt-merge-shards merge -o x $M --lora all.comfy:nan" "cannot open 'all.comfy:nan'"
fails 6 'a sum beyond the range' "dt-merge-shards merge -o x $M --lora all.comfy:1e39" 'is not finite in BF16'
fails 7 'nowhere to write' "dt-merge-shards merge -o gone/x.safetensors $M --lora all.comfy" 'gone/x.safetensors'
fails 7 'nor a folder' "dt-merge-shards merge -o /dev/null/x $M --lora all.comfy" '/dev/null'
if [ -e x ] || [ -e x.safetensors ]; then not_ok 'failures leave nothing' "$(ls -A)"; else ok 'failures leave nothing'; fi
