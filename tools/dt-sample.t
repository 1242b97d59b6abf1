#!/bin/sh
# dt-sample.t - the command: where prompts come from, what is written, exit codes.  Numbers: tests/unit/train_sample.c.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux G=$PWD/tests/golden
cd "$T" || exit 1
S="dt-sample --pretrained_model_name_or_path $M --steps 2 --max_sequence_length 16 -q"

# safetensors FILE HEADER FLOAT COUNT: tensors that all hold the bytes FLOAT (octal escapes)
safetensors() {
    n=$(printf %s "$2" | wc -c)
    { printf "$(printf '\\%03o\\%03o' $((n % 256)) $((n / 256)))\\0\\0\\0\\0\\0\\0%s" "$2"; i=0
      while [ $i -lt "$4" ]; do printf "$3"; i=$((i + 1)); done; } >"$1"
}
Q=transformer.transformer_blocks.0.attn.to_q
safetensors a.safetensors "{\"$Q.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[1,32],\"data_offsets\":[0,128]},\"$Q.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[32,1],\"data_offsets\":[128,256]}}" '\0\0\200\076' 64
safetensors wide.safetensors "{\"$Q.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[1,64],\"data_offsets\":[0,256]},\"$Q.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[32,1],\"data_offsets\":[256,384]}}" '\0\0\200\076' 96
TE=lora_te1_text_model_encoder_layers_0_self_attn_q_proj
pair() { echo "\"$1\":{\"dtype\":\"F32\",\"shape\":[1,32],\"data_offsets\":[$3,$(($3 + 128))]},\"$2\":{\"dtype\":\"F32\",\"shape\":[32,1],\"data_offsets\":[$(($3 + 128)),$(($3 + 256))]}"; }
safetensors both.safetensors "{$(pair $Q.lora_A.weight $Q.lora_B.weight 0),$(pair $TE.lora_down.weight $TE.lora_up.weight 256)}" '\0\0\200\076' 128
safetensors te.safetensors "{$(pair $TE.lora_down.weight $TE.lora_up.weight 0)}" '\0\0\200\076' 64
safetensors te9.safetensors "{$(pair $Q.lora_A.weight $Q.lora_B.weight 0),$(pair lora_te1_text_model_encoder_layers_9_self_attn_q_proj.lora_down.weight lora_te1_text_model_encoder_layers_9_self_attn_q_proj.lora_up.weight 256)}" '\0\0\200\076' 128
safetensors te4.safetensors "{$(pair lora_te4_x.lora_down.weight lora_te4_x.lora_up.weight 0)}" '\0\0\200\076' 64
safetensors lat.safetensors '{"latents":{"dtype":"F32","shape":[1,4,8,12],"data_offsets":[0,1536]}}' '\0\0\0\077' 384
safetensors nan.safetensors '{"latents":{"dtype":"F32","shape":[1,4,8,12],"data_offsets":[0,1536]}}' '\0\0\300\177' 384
printf 'one\n\ntwo\r\n{"prompt": "three", "seed": 7, "width": 40, "height": 24, "id": 17}\n' >prompts.txt

check 'lines, empty lines, JSON lines' "$S -o out prompts.txt" \
'{"path":"out/0000.png","prompt":"one","seed":42,"image":0,"width":32,"height":32}
{"path":"out/0001.png","prompt":"two","seed":42,"image":0,"width":32,"height":32}
{"path":"out/0002.png","prompt":"three","seed":7,"image":0,"width":40,"height":24,"id":17}'
check 'the pictures are PNGs of that size' "for i in 0 1 2; do od -An -j16 -N8 -tx1 out/000\$i.png; done" \
' 00 00 00 20 00 00 00 20
 00 00 00 20 00 00 00 20
 00 00 00 28 00 00 00 18'
check 'how they were made is in them' "grep -ac 'prompt.three' out/0002.png; grep -ao 'seed.7' out/0002.png | tr '\\0' ' '" '1
seed 7'
check 'a record makes its picture again' \
    "$S -o twice -n 2 -p same | tail -n 1 >rec && $S -o again <rec - >/dev/null && cmp twice/0001.png again/0000.png && ! cmp -s twice/0000.png twice/0001.png"
check 'a picture does not depend on the others' "$S -o one.png -p two >/dev/null && cmp one.png out/0001.png"
check 'on standard output' "$S -o - -p two | cmp - one.png"
check 'another seed, another picture' "$S -o - -p two --seed 43 | cmp -s - one.png; echo \$?" 1
check 'prompts add up' "$S -o more -p a b -p c --seed 1 prompts.txt | wc -l" 6
check 'another thread count' "$S -o - -p two --threads 1 >t1.png && od -An -j16 -N8 -tx1 t1.png" ' 00 00 00 20 00 00 00 20'
check 'a LoRA changes it, with strength 0 it does not' \
    "$S -o a.png -p two --lora a.safetensors >/dev/null; $S -o z.png -p two --lora a.safetensors:0 >/dev/null
     cmp -s a.png one.png; echo \$?; grep -ac 'lora.a.safetensors:1 xxh3' a.png" '1
1'
check 'without padding: another picture, which says so' \
    "$S -o n.png -p two --text_padding none >/dev/null; cmp -s n.png one.png; echo \$?; grep -ac 'text_padding.none' n.png; grep -ac text_padding one.png; :" '1
1
0'
check 'without padding the limit does not matter' "dt-sample --pretrained_model_name_or_path $M --steps 2 -q -o - -p two --text_padding none | cmp - n.png"
check 'without padding a picture does not depend on the others' \
    "$S -o none -p 'a longer prompt' two --text_padding none >/dev/null && cmp n.png none/0001.png"
check 'base and LoRA side by side' "$S -o cmp -p two --lora a.safetensors --compare_base --grid g.png | grep -c '\"base\":true'; ls cmp g.png" \
'1
g.png

cmp:
0000-base.png
0000.png'
check 'latents in and out' "$S -p x --init_latents lat.safetensors --save_latents l.safetensors && wc -c <l.safetensors && $S -o - -p x --init_latents lat.safetensors | od -An -j16 -N8 -tx1" \
'1664
 00 00 00 18 00 00 00 10'
check 'the same with weights left in their files' "$S -o - -p two --low_vram | cmp - one.png"
check 'of which less is in memory' "{ $S --width 8 -p x --memory_plan; $S -p x --width 8 --memory_plan --low_vram; } | awk '/^  weights/ { n[++k] = \$4 } END { print (n[2] < n[1] / 2) }'" 1
check 'the memory plan loads nothing' "$S -p x --memory_plan --transformer_path /dev/null --width 64 | grep -cE '^  (process|weights|activations|pictures|total) .*MiB .*MiB'" 5
check 'and has the sheet' "$S -p x --memory_plan --grid g2.png | awk 'NR == 1 { print \$4, \$5, \$6 }'" 'captions pictures sheet'
fails 5 'a budget that cannot be kept is refused' "dt-sample --pretrained_model_name_or_path $M -p x -o z.png --memory_budget 1M" 'smallest memory budget that would do is [0-9]+M'
check 'progress' "$S -p x -o p.png --progress prog >/dev/null; tail -n 1 prog | grep -c '\"job\":\"sample\",\"step\":2,\"total\":2'" 1
check 'nothing but files named' "ls -A | grep -c tmp; :" 0

fails 2 'no model' "dt-sample -p x -o x.png" 'pretrained_model_name_or_path is missing'
fails 4 'model folder that is not there' "dt-sample --pretrained_model_name_or_path nowhere -p x -o x.png" "cannot open 'nowhere'"
fails 2 'no prompt' "$S -o x.png" 'nothing to sample'
fails 2 'nowhere to write' "$S -p x" 'nowhere to write'
fails 2 'two pictures, one file' "$S -p x -n 2 -o x.png" '2 pictures do not go into one file'
check 'a folder with a slash behind it' "$S -p x -o slash/ | grep -o '\"path\":\"[^\"]*'" '"path":"slash/0000.png'
for o in '-o no/x.png' '--grid no/x.png' '--save_latents no/x' '--progress no/x -o x.png'; do
    fails 7 "no such folder, said before any work: ${o%% *}" "$S -p x $o" "cannot write 'no/x.*': there is no folder 'no'"
    check 'in one line' "$S -p x $o 2>&1 | wc -l" 1
done
check 'but for the folder of the pictures' "$S -p x -o made/ --grid made/sheet.png --save_latents made/l >/dev/null && ls made" '0000.png
l
sheet.png'
fails 2 'a kind that is not written' "$S -p x -o x.jpg" "'x.jpg': pictures are written as .png"
fails 2 'unknown flag' "$S -p x --guidance_scal 3 -o x.png" 'did you mean .--guidance_scale'
fails 2 'size that does not fit' "$S -p x --width 30 -o x.png" 'sides must be multiples of 4'
fails 2 'tiles that do not fit' "$S -p x --vae_tile 30 -o x.png" 'tiles of 30 px: must be a multiple of 8'
fails 6 'not finite' "$S -p x --init_latents nan.safetensors -o x.png" "sampling step 1: .* is not finite; first in 'permute' of the objective, from 'in'"
cp -r "$M" schnell; sed -i 's/"guidance_embeds": true/"guidance_embeds": false/' schnell/transformer/config.json
fails 2 'guidance that the model is not told' "dt-sample --pretrained_model_name_or_path schnell -p x --guidance_scale 3 -o x.png" "'schnell' has no guidance input: --guidance_scale has no effect"
fails 2 'steps twice' "$S -p x --num_inference_steps 3 -o x.png" 'give one'
check 'a LoRA of a text encoder too is applied whole, without a word' \
    "for l in a te both; do $S -p two --save_latents \$l.l --lora \$l.safetensors 2>&1; done; $S -p two --save_latents l; cmp -s a.l both.l; echo \$?; cmp -s te.l both.l; echo \$?; cmp -s te.l l; echo \$?" \
'1
1
1'
check 'as its parts in two files are' "$S -p two --save_latents sum.l --lora te.safetensors a.safetensors && cmp sum.l both.l && $S -p two --save_latents half.l --lora te.safetensors:0.5 a.safetensors && ! cmp -s half.l both.l"
K=$G/lora_text_kohya.safetensors        # of the transformer, CLIP and T5
check 'with strength 0 it changes no bit' "$S -p two --save_latents zero.l --lora $K:0 te.safetensors:0 && cmp zero.l l && $S -p two --save_latents k.l --lora $K && ! cmp -s k.l l"
check 'weights left in their files or not' "$S -p two --save_latents v.l --low_vram --lora $K && cmp v.l k.l"
check 'the base beside it is encoded without it' "$S -o both -p two one --lora $K --compare_base >/dev/null; $S -o base -p two one >/dev/null; $S -o with -p two one --lora $K >/dev/null
    for i in 0 1; do cmp base/000\$i.png both/000\$i-base.png && cmp with/000\$i.png both/000\$i.png && ! cmp -s base/000\$i.png with/000\$i.png; done"
check 'of CLIP alone, too' "$S -o both2 -p two one --lora te.safetensors --compare_base >/dev/null; $S -o with2 -p two one --lora te.safetensors >/dev/null
    for i in 0 1; do cmp base/000\$i.png both2/000\$i-base.png && cmp with2/000\$i.png both2/000\$i.png; done"
safetensors big.safetensors "{\"$TE.lora_down.weight\":{\"dtype\":\"F32\",\"shape\":[32768,32],\"data_offsets\":[0,4194304]},\"$TE.lora_up.weight\":{\"dtype\":\"F32\",\"shape\":[32,32768],\"data_offsets\":[4194304,8388608]}}" '' 0
head -c 8388608 /dev/zero >>big.safetensors
check 'its 8 MiB are in the memory plan while prompts are encoded, not while pictures are made' \
    "{ $S -p x --memory_plan; $S -p x --memory_plan --lora big.safetensors; } | awk '/^  weights/ { c[++k] = \$2; p[k] = \$4 } END { print c[2] - c[1], p[2] - p[1] }'" '8 0'
check 'it is named, network by network' "dt-sample --pretrained_model_name_or_path $M --memory_plan -p x --lora $K:0.5 2>&1 | grep -o 'kohya.safetensors: .*'" \
'kohya.safetensors: 1 layers, rank 2, alpha 4, strength 0.5
kohya.safetensors: 12 layers of text_encoder, rank 4, alpha 1, strength 0.5
kohya.safetensors: 8 layers of text_encoder_2, rank 2, alpha 3, strength 0.5'
fails 4 'a layer that the text encoder has not' "$S -p x --lora te9.safetensors -o x.png" "te9.safetensors: 1 of 1 modules are no linear layers of text_encoder, first 'lora_te1_text_model_encoder_layers_9_self_attn_q_proj'"
fails 4 'of an encoder that there is not' "$S -p x --lora te4.safetensors -o x.png" "te4.safetensors: 1 of 1 modules are no linear layers of transformer, first 'lora_te4_x'"
fails 2 'compare with what' "$S -p x --compare_base -o x" '--compare_base needs --lora'
fails 4 'no such LoRA' "$S -p x --lora none.safetensors:0.5 -o x.png" 'none.safetensors'
fails 4 'LoRA of another model' "$S -p x --lora wide.safetensors -o x.png" 'wide.safetensors.*attn.to_q'
fails 4 'a LoRA that is none' "$S -p x --lora lat.safetensors -o x.png" 'lat.safetensors: 1 tensors are no part'
fails 4 'other weights that are not there' "$S -p x --vae_path none.safetensors -o x.png" "cannot open 'none.safetensors'"
fails 4 'file of prompts that is not there' "$S -o x none.txt" 'none.txt'
fails 4 'broken JSON line' "printf 'ok\\n{\"prompt\": \\n' >b.txt; $S -o x b.txt" 'b.txt: line 2: '
fails 4 'JSON line without prompt' "printf '{\"text\": \"x\"}\\n' >b.txt; $S -o x b.txt" "b.txt: line 1: 'prompt' must be a string"
fails 4 'latents of another shape' "$S -p x y --init_latents lat.safetensors -o x" "'latents' must be \\[2, 4, height, width\\]"
fails 2 'latents of another size' "$S -p x --width 64 --init_latents lat.safetensors -o x" 'not of --width and --height'
fails 4 'of another size than a line asks for' "echo '{\"prompt\":\"x\",\"width\":40}' >w.json; $S --init_latents lat.safetensors -o x w.json" "'x' is asked for at 40x16 px, but the latents of lat.safetensors are of 24x16 px"
fails 2 'sizes of saved latents' "$S --save_latents x.safetensors prompts.txt" 'needs pictures of one size'
fails 7 'folder that cannot be made' "$S -p x -o one.png/x" 'one.png'
[ -e x ] || [ -e x.png ] && not_ok 'failures leave nothing' "$(ls -A)" || ok 'failures leave nothing'
