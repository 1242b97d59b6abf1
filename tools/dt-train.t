#!/bin/bash
# dt-train.t - the command: bad input and its exit codes, the memory plan, resume bit for bit, dumps, signals.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux I=$PWD/examples/pictures E=$PWD/examples/concept
cd "$T" || exit 1
export OMP_NUM_THREADS=1

mkdir data held empty
for p in crown sun_with_face rocket; do cp "$I/$p.png" data/; echo "a $p" >"data/$p.txt"; done
cp data/sun* held/
echo '[{"file_path": "a.png", "text": "x"},' >broken.json
D='--train_data_dir data --image_sample_size 32 --train_batch_size 2'
N="--rank 4 --network_alpha 4 --max_train_steps 6 --checkpointing_steps 2 --lr_scheduler constant_with_warmup --lr_warmup_steps 2 --report_to none"
C="--pretrained_model_name_or_path $M $D --quiet"
L="$C $N"
P="--pretrained_model_name_or_path $M --quiet $N"      # with --plan and --latents: what they decided is not said again

# --- what a user meets in the first hour ---
fails 2 'no command' 'dt-train' 'Usage: dt-train'
fails 2 'mistyped command' 'dt-train lorra' 'did you mean .lora'
fails 2 'unknown flag' "dt-train lora $L --learning_rat 1" 'did you mean .*learning_rate'
fails 2 'flag given twice' "dt-train lora $L --rank 8" 'rank'
fails 2 'number out of range' "dt-train lora $C --rank 0" 'rank'
fails 2 'refused flags say why' "dt-train lora $L --use_8bit_adam" 'fp32'
fails 2 'no model' 'dt-train lora --train_data_dir data' 'pretrained_model_name_or_path'
fails 2 'no data' "dt-train lora --pretrained_model_name_or_path $M" 'train_data_dir'
fails 4 'model folder that is not there' 'dt-train lora --pretrained_model_name_or_path nowhere --train_data_dir data --output_dir o1' 'nowhere'
fails 4 'folder that is no model' 'dt-train lora --pretrained_model_name_or_path data --train_data_dir data --output_dir o1' 'scheduler_config.json'
fails 4 'data folder that is not there' "dt-train lora --pretrained_model_name_or_path $M --train_data_dir nowhere --output_dir o1" 'nowhere'
fails 7 'no folder for --progress, before any work' "dt-train lora --pretrained_model_name_or_path $M --train_data_dir data --progress no/x --output_dir o1" \
    "cannot write 'no/x': there is no folder 'no'"
fails 4 'empty data set' "dt-train lora --pretrained_model_name_or_path $M --train_data_dir empty --output_dir o1" 'empty'
fails 4 'broken JSON' "dt-train lora --pretrained_model_name_or_path $M --train_data_meta broken.json --output_dir o1" 'broken.json.*line'
fails 2 'target that matches nothing' "dt-train lora $L --target_name to_qq --output_dir o1" 'to_qq.*to_q'
fails 2 'a cache without its plan' "dt-train lora $P --output_dir o1 --latents x" 'no plan.ndjson in it'
for f in '--train_data_dir data' '--train_data_meta m.json' '--max_train_samples 2' '--caption_dropout 0' --random_flip '--train_batch_size 2' \
         '--num_train_epochs 2' '--seed 1' --trust_sizes --verify_images '--max_skipped_fraction 0' '--image_sample_size 32' --enable_bucket \
         --random_ratio_crop --random_hw_adapt '--fix_sample_size 32 32' '--multiple 16'; do
    fails 2 "${f%% *} beside a plan" "dt-train lora $P --output_dir o1 --plan p.ndjson $f" "${f%% *} is in the plan already"
    fails 2 "${f%% *} beside a stream" "dt-train lora $P --output_dir o1 --latents - $f" "${f%% *} is in the plan already"
done
fails 2 'how to encode, beside a cache' "dt-train lora $P --output_dir o1 --plan p --latents c --vae_mini_batch 2" 'vae_mini_batch has no effect'
fails 2 'tiles, beside a cache' "dt-train lora $P --output_dir o1 --plan p --latents c --vae_tile 64" 'vae_tile has no effect'
for f in '--validation_steps 2' '--validation_epochs 2' '--validation_inference_steps 2' '--validation_size 32' '--lr_num_cycles 2' \
         '--lr_power 2' '--ema_decay 0.9' '--logit_mean 1' '--logit_std 2' '--mode_scale 1' '--dump_dir x' '--logging_dir x' \
         '--tracker_project_name x'; do
    fails 2 "${f%% *} alone" "dt-train lora $L --output_dir o1 $f" "${f%% *} needs --"
done
fails 2 'a warm-up that constant has not' "dt-train lora $C --output_dir o1 --lr_warmup_steps 9" 'lr_warmup_steps has no effect.*constant_with_warmup'
fails 4 'checkpoint that is not there' "dt-train lora $L --output_dir o2 --resume_from_checkpoint gone" 'gone'
cp -r "$M" m1 && rm m1/transformer/*00002-of*
fails 4 'shard missing' "dt-train lora ${L/$M/m1} --output_dir o3" '00002'
cp -r "$M" m2 && sed -i 's/"num_layers": [0-9]*/"num_layers": 9/' m2/transformer/config.json
fails 4 'missing tensor' "dt-train lora ${L/$M/m2} --output_dir o3" "no tensor 'transformer_blocks"
cp -r "$M" m3 && sed -i 's/"pooled_projection_dim": [0-9]*/"pooled_projection_dim": 7/' m3/transformer/config.json
fails 4 'parts that do not fit' "dt-train lora ${L/$M/m3} --output_dir o3" 'pooled_projection_dim'
fails 2 'sides that the model cannot take' "dt-train lora ${L/size 32/size 33} --multiple 1 --output_dir o3" 'multiples of'

# --- memory plan ---
check 'memory plan names every kind' \
    "dt-train lora $L --output_dir o4 --use_ema --mixed_precision bf16 --plan |
     grep -cE '^  (process|weights|gradients|master weights|optimiser moments|ema|activations|batches|pictures|total) '" 10
check 'and encodes nothing' 'ls o4' plan.ndjson
fails 5 'a budget that cannot be kept is refused with the smallest that can' \
    "dt-train lora $L --output_dir o4 --memory_budget 1M" 'smallest memory budget that would do is [0-9]+M'

# --- the documented command line ---
check 'the reference command line' \
    "dt-train lora --pretrained_model_name_or_path=$M --train_data_dir=$E --train_data_meta=$E/metadata.json --train_batch_size=1 \
     --image_sample_size=1024 --gradient_accumulation_steps=1 --dataloader_num_workers=8 --num_train_epochs=100 --checkpointing_steps=50 \
     --learning_rate=1e-04 --seed=42 --output_dir=ref --gradient_checkpointing --mixed_precision=bf16 --adam_weight_decay=3e-2 \
     --adam_epsilon=1e-10 --vae_mini_batch=1 --max_grad_norm=0.05 --enable_bucket --uniform_sampling --plan | grep -c '^1024x960, 1 '" 1

# --- training ---
check 'lora runs' "dt-train lora $L --output_dir a && ls a | tr '\n' ' '" \
    'cache checkpoint-2 checkpoint-4 checkpoint-6 lora.safetensors loss.png metrics.ndjson plan.ndjson run.json '
check 'six steps were logged' "sed 's/\"loss\":[0-9].*,\"lr\":[0-9].*,\"grad_norm\":[0-9].*}/L/' a/metrics.ndjson" '{"step":1,"epoch":0,L
{"step":2,"epoch":1,L
{"step":3,"epoch":1,L
{"step":4,"epoch":2,L
{"step":5,"epoch":3,L
{"step":6,"epoch":3,L'
check 'running it again changes nothing' \
    "cp a/lora.safetensors x; dt-train lora $L --output_dir a && cmp x a/lora.safetensors && grep -c loss a/metrics.ndjson" 6

same() { for f in lora.safetensors metrics.ndjson checkpoint-6/lora.master.safetensors checkpoint-6/lora.v.safetensors; do cmp "a/$f" "$1/$f" || return 1; done; }
check 'resumed from step 2 is bit for bit the uninterrupted run' \
    "cp -r a b && rm -rf b/checkpoint-[46] b/lora.safetensors && dt-train lora $L --output_dir b && same b"
check 'killed at any moment and run again: the same bits' \
    "for d in 0.05 0.2 0.4; do timeout -s KILL \$d dt-train lora $L --output_dir k --resume_from_checkpoint latest; done >/dev/null 2>&1
     dt-train lora $L --output_dir k --resume_from_checkpoint latest && same k"
check 'loader threads do not matter' "dt-train lora $L --dataloader_num_workers 3 --output_dir w && same w"
check 'given plan and cache: the same' "dt-train lora $P --output_dir g --plan a/plan.ndjson --latents a/cache && same g"
check 'a cache has its plan' "dt-train lora $P --output_dir h --latents a/cache && same h"
check 'recompute does not change the loss, but for how fused kernels round' \
    "dt-train lora $L --gradient_checkpointing --output_dir rc && paste -d, a/metrics.ndjson rc/metrics.ndjson | tr ':' ',' |
     awk -F, '{ d = \$6 / \$16 - 1; if (d < -1e-5 || d > 1e-5) bad++; n++ } END { print n, bad + 0 }'" '6 0'
check 'weights left in their file give the same bits' "dt-train lora $L --low_vram --output_dir lv && cmp a/lora.safetensors lv/lora.safetensors"
check 'as one pipe' \
    "dt-bucket --train_data_dir data --image_sample_size 32 --train_batch_size 2 --max_train_steps 6 -q |
     dt-cache-latents --model $M -q -o - | dt-train lora $P --latents - --output_dir s && same s"
check 'accumulation is the plan'"'"'s' \
    "dt-bucket $D --gradient_accumulation_steps 3 --max_train_steps 2 -q -o acc.ndjson
     dt-cache-latents --model $M -q -o a/cache acc.ndjson && dt-train lora ${P/steps 6/steps 2} --plan acc.ndjson --latents a/cache --output_dir acc &&
     dt-train lora ${L/steps 6/steps 2} --gradient_accumulation_steps 3 --output_dir acc2 && cmp acc/lora.safetensors acc2/lora.safetensors &&
     grep -c loss acc/metrics.ndjson" 2
check 'without padding' "dt-train lora $L --text_padding none --output_dir n && ! cmp -s a/lora.safetensors n/lora.safetensors &&
     [ \$(cat n/cache/*.tar | wc -c) -lt \$((\$(cat a/cache/*.tar | wc -c) / 4)) ]"
check 'without padding the memory plan knows every length' \
    "dt-train lora $L --text_padding none --output_dir np --plan | sed -n 's/^\(32x32, [0-9]*, [0-9]*\) .*/\1/p' && ls np" '32x32, 2, 16
plan.ndjson'
mkdir long; cp data/crown.png long/; echo 'a crown on a very long caption of which there is more than fits' >long/crown.txt
check 'nor more rows than --max_sequence_length' \
    "dt-train lora ${L/_dir data/_dir long} --text_padding none --max_sequence_length 20 --output_dir np --plan |
     sed -n 's/^\(32x32, [0-9]*, [0-9]*\) .*/\1/p'" '32x32, 2, 20'
check 'without padding, resumed: bit for bit' \
    "cp -r n nr && rm -rf nr/checkpoint-[46] nr/lora.safetensors && dt-train lora $L --text_padding none --output_dir nr --resume_from_checkpoint latest &&
     cmp n/lora.safetensors nr/lora.safetensors && cmp n/metrics.ndjson nr/metrics.ndjson"
check 'without padding, loader threads do not matter' \
    "dt-train lora $L --text_padding none --dataloader_num_workers 3 --output_dir nw && cmp n/lora.safetensors nw/lora.safetensors"
fails 2 'a cache of the other padding' "dt-train lora $P --output_dir no --plan a/plan.ndjson --latents n/cache" \
    "'n/cache' was made with --text_padding none, this run has --text_padding max"
fails 2 'and the other way' "dt-train lora $P --text_padding none --output_dir no --plan a/plan.ndjson --latents a/cache" \
    "'a/cache' was made with --text_padding max, this run has --text_padding none"
fails 2 'more text states than this run takes' \
    "dt-train lora $P --text_padding none --max_sequence_length 2 --output_dir no --plan a/plan.ndjson --latents n/cache" 'made with --max_sequence_length 512, this run has 2'
fails 2 'resume with the other padding' "dt-train lora $L --output_dir n --resume_from_checkpoint latest" 'made with --text_padding none, this run has --text_padding max'
fails 2 'resume with other settings' "dt-train lora ${L/rank 4/rank 8} --output_dir a" 'made with --rank 4, this run has --rank 8'
fails 4 'a changed checkpoint is noticed' \
    "cp -r a c && rm c/lora.safetensors && printf x | dd of=c/checkpoint-6/lora.m.safetensors bs=1 seek=9000 conv=notrunc 2>/dev/null
     dt-train lora $L --output_dir c --resume_from_checkpoint latest" 'not what the checkpoint'
fails 4 'and one whose manifest lists nothing' \
    "cp -r a ce && sed -i ':a;N;\$!ba;s/\"files\":.*\]/\"files\": []/' ce/checkpoint-6/manifest.json
     dt-train lora $L --output_dir ce --resume_from_checkpoint latest" 'does not list it'
fails 2 'another number of threads is refused' "dt-train lora $L --threads 2 --output_dir a --resume_from_checkpoint latest" 'made with 1 compute threads, this run has 2; add --threads 1'
check 'checkpoints_total_limit' "dt-train lora $L --checkpoints_total_limit 1 --output_dir lim && ls -d lim/checkpoint-*" lim/checkpoint-6
fails 3 'a corrupt picture among good ones is skipped and listed' \
    "cp -r data some; head -c 60 data/crown.png >some/bad.png; dt-train lora ${L/data_dir data/data_dir some} --output_dir sk" 'bad.png'
check 'SIGTERM: the step is finished, the state saved, 143' \
    "dt-train lora ${L/steps 6/steps 100000} --num_train_epochs 100000 --output_dir t 2>/dev/null & p=\$!
     for i in \$(seq 600); do [ -s t/metrics.ndjson ] && break; sleep 0.1; done
     kill -TERM \$p; wait \$p; s=\$?; n=\$(wc -l <t/metrics.ndjson); [ -f t/checkpoint-\$n/manifest.json ] && echo \$s" 143

cp -r "$M" m4 && f=$(ls m4/transformer/*00002-of*) &&
    printf '\377\377' | dd of="$f" bs=1 seek=$(($(stat -c %s "$f") - 2)) conv=notrunc 2>/dev/null
fails 6 'a weight that is no number: the first op and block that show it' "dt-train lora ${L/$M/m4} --output_dir nan" \
    "step 1: the loss is not finite; first in '[a-z0-9_]+' of [a-z_.0-9]+"

# --- dumps ---
check 'dumps hold inputs, gradients, weights' \
    "dt-train lora $L --dump_steps 1 --output_dir d && ls d/dump && for k in micro.0.latents micro.0.noise micro.0.sigma micro.0.text_states \
     micro.0.prediction micro.0.loss grad.lora weight.lora; do grep -c -a \"\$k\" d/dump/step-000001.safetensors; done | sort -u" 'step-000001.safetensors
1'

# --- full and vae ---
cat >kohya.toml <<'E'
[[datasets]]
resolution = 32
batch_size = 2
  [[datasets.subsets]]
  image_dir = 'data'
  caption_prefix = 'x, y, z,'
  shuffle_caption = true
  num_repeats = 2
E
check 'a dataset_config, its captions shuffled, from the plan to the adapter' \
    "dt-train lora --pretrained_model_name_or_path $M --quiet --rank 4 --max_train_steps 3 --report_to none --dataset_config kohya.toml \
         --output_dir toml && grep -c '\"text\":\".*x' toml/plan.ndjson && ls toml/lora.safetensors" '6
toml/lora.safetensors'
fails 2 'an option that the dataset_config says' "dt-train lora --pretrained_model_name_or_path $M --dataset_config kohya.toml --enable_bucket --output_dir o1" \
    'enable_bucket has no effect with --dataset_config'
check 'run.json: what was run, from what, how it ended' \
    "grep -oE '\"(status|version|started|ended|cpu|hash|last_step|last_loss|planned_steps)\":' toml/run.json | sort | uniq -c | sed 's/^ *//'
     tr -d ' \t\n' <toml/run.json | grep -oE '\"command\":\[\"[^,]*\",\"lora\"|\"rank\":.[^}]*|\"lora_format\":[{][^}]*|\"multiple\":.[^}]*' | sed 's|/.*/||'" '1 "cpu":
1 "ended":
3 "hash":
1 "last_loss":
1 "last_step":
1 "planned_steps":
1 "started":
1 "status":
1 "version":
"command":["dt-train","lora"
"multiple":{"value":16,"from":"default"
"rank":{"value":4,"from":"flag"
"lora_format":{"value":"comfy","from":"default"'
fails 2 'a run that fails' "dt-train lora $L --output_dir toml --resume_from_checkpoint none --target_name nonsense"
check 'is in it too, behind the first' "grep -o '\"status\":.*' toml/run.json | tr -d ' \t\n'; grep -c 'matches no linear' toml/run.json" '"status":"done","status":"failed",1'
mkdir tars && (cd data && tar -cf ../tars/0.tar crown.* rocket.* && tar -cf ../tars/1.tar sun*)
check 'pictures in tars, cached: the same adapter as from files' \
    "dt-train lora ${L/_dir data/_dir tars} --output_dir wds && cmp wds/lora.safetensors a/lora.safetensors"
check 'and read while training' "dt-train vae ${C/_dir data/_dir tars} --max_train_steps 2 --report_to none --output_dir wv &&
    dt-train vae $C --max_train_steps 2 --report_to none --output_dir fv && cmp wv/metrics.ndjson fv/metrics.ndjson"
check 'full training of chosen modules' \
    "dt-train full $C --trainable_modules norm_q --max_train_steps 2 --report_to none --output_dir f && ls f/transformer" 'config.json
diffusion_pytorch_model.safetensors'
fails 2 'trainable_modules that match nothing' "dt-train full $C --trainable_modules nonsense --output_dir f2" 'matches no parameter'
fails 2 'and what was meant' "dt-train full $C --trainable_modules atn --output_dir f2" "did you mean 'attn'"
fails 4 'a model folder mistyped' "cp -r $M flux1; dt-train lora --pretrained_model_name_or_path flux_1 --train_data_dir data --output_dir mis" \
    "cannot open 'flux_1'.*did you mean 'flux1'"
check 'before anything is made' 'ls -d mis 2>&-; :'
fails 4 'a data folder mistyped' "dt-train lora --pretrained_model_name_or_path $M --train_data_dir dta --output_dir o1" "did you mean 'data'"
check 'in one line' "dt-train lora --pretrained_model_name_or_path $M --train_data_dir dta --output_dir o1 2>&1 | wc -l" 1
check 'full training from a config, text encoders too, ema, bf16' \
    "cp -r $M blank && rm blank/transformer/*.safetensors* blank/text_encoder*/model*
     dt-train full ${C/$M/blank} --from_config --train_text_encoder --use_ema --mixed_precision bf16 --max_train_steps 2 --report_to none --output_dir f3 && ls f3 | tr '\n' ' '" \
    'cache checkpoint-2 loss.png metrics.ndjson plan.ndjson run.json text_encoder text_encoder_2 transformer '
check 'vae' "dt-train vae $C --from_config --fit_scaling --max_train_steps 2 --report_to none --output_dir v && grep -c scaling_factor v/vae/config.json" 1
check 'full training of text encoders without padding' \
    "dt-train full $C --train_text_encoder --text_padding none --max_train_steps 2 --report_to none --output_dir f4 && ls -d f4/text_encoder_2" f4/text_encoder_2
check 'validation without padding' \
    "dt-train lora $L --text_padding none --validation_prompts 'a crown' 'a sun that rises' --validation_steps 3 --validation_inference_steps 2 \
     --validation_data_dir held --output_dir nv && ls nv/samples.png nv/samples/* | wc -l; wc -l <nv/validation.ndjson" '7
3'
V="dt-train lora $L --validation_prompts 'a crown' 'a sun' --validation_steps 3 --validation_inference_steps 2 --validation_data_dir held"
check 'validation: samples and held-out loss' \
    "$V --output_dir val &&
     ls val/samples.png val/samples/* | wc -l; wc -l <val/validation.ndjson" '7
3'
check 'validation, resumed from before it: the same' \
    "cp -r val vr && rm -rf vr/checkpoint-[46] vr/lora.safetensors && $V --output_dir vr && for f in validation.ndjson loss.png samples.png; do cmp val/\$f vr/\$f; done"
# Without learning every validation and every batch size has about the loss of training; a part of a picture too much or too
# little would be a quarter off.
check 'the held-out loss is the mean over the pictures' \
    "for b in 1 2 3; do dt-train lora ${L/batch_size 2/batch_size \$b} --learning_rate 0 --validation_data_dir data --validation_steps 3 --output_dir hl\$b || exit
         sed 's/.*loss\":\([0-9.]*\).*/\1/' hl\$b/validation.ndjson | sort -u; done >held.losses
     sed 's/.*loss\":\([0-9.]*\).*/\1/' hl1/metrics.ndjson | awk '{ s += \$1 } END { print s / NR }' >>held.losses
     awk 'NR == 1 { a = \$1 } \$1 < 0.8 * a || \$1 > 1.2 * a { print } END { print NR }' held.losses" 4
check 'held-out pictures and samples have the size of the plan' \
    "dt-train lora $P --plan a/plan.ndjson --latents a/cache --validation_steps 3 --validation_data_dir held --validation_prompts x \
         --validation_inference_steps 1 --output_dir val2 &&
     cmp val/held-plan.ndjson val2/held-plan.ndjson && grep -o '\"batch\".*\"size\":.32,32.' val2/held-plan.ndjson | wc -l
     od -An -j16 -N8 -tx1 val2/samples/step-0-prompt-0.png" '1
 00 00 00 20 00 00 00 20'

# --- tokenizer ---
check 'vocabularies from captions' \
    "dt-train tokenizer --train_data_meta $I/metadata.json --clip_vocab_size 600 --t5_vocab_size 200 --output_dir tok && ls tok/tokenizer tok/tokenizer_2 | xargs" \
    'tok/tokenizer: merges.txt special_tokens_map.json tokenizer_config.json vocab.json tok/tokenizer_2: spiece.model tokenizer_config.json'
fails 2 'a tokenizer from nothing' 'dt-train tokenizer --output_dir tok' 'train_data_meta and --output_dir'
fails 4 'a tokenizer from captions that are not there' 'dt-train tokenizer --train_data_meta gone.json --output_dir tok' 'gone.json'
check 'version' 'dt-train --version | cut -d " " -f 1' dt-train
