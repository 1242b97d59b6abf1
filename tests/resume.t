#!/bin/bash
# resume.t - a run goes on only as itself: the same command again finishes the job and redoes nothing; every option is changed, one
# at a time, and so are pictures, captions, plan, cache and model; what would give other weights is refused with its name before
# anything is encoded or written, and what would not is taken.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures
cd "$T" || exit 1
export OMP_NUM_THREADS=1

mkdir data
for p in crown rocket sun_with_face; do cp "$E/$p.png" data/; echo "a $p" >data/$p.txt; done
cp -r "$M" m
D='--train_data_dir data --image_sample_size 32 --train_batch_size 2'
C='--pretrained_model_name_or_path m --report_to none --max_train_steps 4 --checkpointing_steps 2'
L="dt-train lora $C --max_sequence_length 16 --rank 2"
all() { find "$@" -type f ! -name run.json ! -name '.lock-*' -exec cksum {} + | LC_ALL=C sort -k 3; }
said() { "$@" 2>&1 | sed 's/^dt-train: //'; }

# --- the same command again ---
check 'a run' "$L $D -q --output_dir a && ls a | tr '\n' ' '" 'cache checkpoint-2 checkpoint-4 lora.safetensors loss.png metrics.ndjson plan.ndjson run.json '
find a -type f ! -name run.json ! -path '*/cache/.lock*' -printf '%p %T@ %i\n' | sort >before
check 'again: it is finished, and nothing is written' \
    "said $L $D --output_dir a | grep -c 'a is finished: 4 of 4 steps are done, nothing is left to do'
     find a -type f ! -name run.json ! -path '*/cache/.lock*' -printf '%p %T@ %i\n' | sort | cmp - before" 1
check 'and so for --resume_from_checkpoint latest' "said $L $D --output_dir a --resume_from_checkpoint latest | grep -c 'is finished'" 1
half() { rm -rf b; cp -r a b; rm -rf b/checkpoint-4 b/lora.safetensors b/loss.png; sed -i '$d' b/metrics.ndjson; }
half
check 'one that was stopped goes on, and ends with the same files' \
    "said $L $D --output_dir b | grep -c 'resumed from b/checkpoint-2 at step 2'; (cd b; all .) >x; (cd a; all .) | cmp - x" 1
# What lies behind the checkpoint is found anew with its flips, without its captions and the picture that the cache left out.
mkdir odd; for p in ant crown rocket; do cp "$E/$p.png" odd/; echo "a $p" >odd/$p.txt; done; head -c 2000 "$E/airplane.png" >odd/half.png
odd="-q --train_data_dir odd --image_sample_size 48 --train_batch_size 2 --random_flip --output_dir"
for run in "lora ${C/steps 4/steps 8} --max_sequence_length 16 --rank 2 --caption_dropout 0.4" "vae ${C/steps 4/steps 8}"; do
    check "with flips and a damaged picture, ${run%% *}" \
        "dt-train $run $odd y; echo \$?; cp -r y z; rm -rf z/checkpoint-8 z/lora.safetensors z/vae; dt-train $run $odd z; echo \$?
         cmp y/metrics.ndjson z/metrics.ndjson; cmp y/checkpoint-8/manifest.json z/checkpoint-8/manifest.json; rm -r y z" '3
3'
done
check 'more steps' "rm -rf b; cp -r a b; said ${L/steps 4/steps 6} $D --output_dir b | grep -c 'from b/checkpoint-4'" 1
fails 2 'fewer than there are' "${L/steps 4/steps 3} $D -q --output_dir a" 'a/checkpoint-4 is at step 4, this run ends at step 3'
check 'from an earlier one, by its name' "said $L $D --output_dir b --resume_from_checkpoint a/checkpoint-2 | grep -c 'from a/checkpoint-2 at step 2'" 1
check 'the name is one of the output folder' "said $L $D --output_dir a --resume_from_checkpoint checkpoint-4 | grep -c 'is finished'" 1
fails 4 'a checkpoint that is not there' "$L $D --output_dir a --resume_from_checkpoint checkpoint-5" "'a/checkpoint-5/manifest.json'.*did you mean 'a/checkpoint-[24]/"
for gone in lora.safetensors loss.png; do
    check "$gone is gone: it is made again" "rm b/$gone; cp b/run.json x; ${L/steps 4/steps 6} $D -q --output_dir b; ls b/$gone" "b/$gone"
done
check 'asked for in another layout: it is made' \
    "cp b/lora.safetensors x; ${L/steps 4/steps 6} $D -q --output_dir b --lora_format peft; cmp -s x b/lora.safetensors || echo another" another
check 'without run.json: it is made again, the same' "cp a/lora.safetensors x; rm a/run.json; $L $D -q --output_dir a; cmp x a/lora.safetensors"
check 'the chart is drawn with every checkpoint' \
    "${L/steps 4/steps 100000} $D -q --output_dir c 2>/dev/null & pid=\$!
     for i in \$(seq 600); do [ -e c/checkpoint-4 ] && break; sleep 0.05; done; kill -KILL \$pid; wait \$pid; ls c/loss.png" c/loss.png

# --- a fresh start ---
half
check 'none: what was there is set aside whole' \
    "(cd b; all checkpoint-2 metrics.ndjson) >x; said $L $D --output_dir b --resume_from_checkpoint none | grep -c 'is in b/old-1 now'; (cd b/old-1; all .) | sed 's, \./, ,' | LC_ALL=C sort -k 3 | cmp - x" 1
check 'and the run is a new one' "rm -r b/old-1; (cd b; all .) >x; (cd a; all .) | cmp - x"
check 'none with other settings, and removing old checkpoints: only its own count' \
    "cp -r a n; $L $D -q --output_dir n --resume_from_checkpoint none --checkpoints_total_limit 1 --learning_rate 2e-4; ls -d n/checkpoint-* n/old-1/checkpoint-* | tr '\n' ' '" \
    'n/checkpoint-4 n/old-1/checkpoint-2 n/old-1/checkpoint-4 '
check 'a second time' "$L $D -q --output_dir n --resume_from_checkpoint none; ls -d n/old-2/checkpoint-4 n/old-1" 'n/old-1
n/old-2/checkpoint-4'
F="dt-train full $C --max_sequence_length 16 --trainable_modules norm_out $D -q --output_dir f" W=transformer/diffusion_pytorch_model.safetensors
check 'weights of the earlier run go with it' \
    "$F && cp f/$W x && $F --resume_from_checkpoint none --learning_rate 2e-4 && cmp x f/old-1/$W && ! cmp -s x f/$W"
check 'but stay if the new one begins with them' \
    "$F --resume_from_checkpoint none --transformer_path f/transformer && ls -d f/old-*/transformer f/old-2/checkpoint-2" 'f/old-1/transformer
f/old-2/checkpoint-2'
rm -rf f
check 'later checkpoints do not push out those of a run that goes on before them' \
    "rm -rf n; cp -r a n; rm -r n/checkpoint-2; cp -r a/checkpoint-2 from; mv n/checkpoint-4 n/checkpoint-9
     $L $D -q --output_dir n --resume_from_checkpoint from --checkpoints_total_limit 1; ls -d n/checkpoint-* | tr '\n' ' '" 'n/checkpoint-4 n/checkpoint-9 '
check 'killed before it removed: that is done by the next run' \
    "rm -rf n; cp -r a n; rm n/lora.safetensors; cp -r n/checkpoint-2 n/checkpoint-4.tmp
     $L $D -q --output_dir n --checkpoints_total_limit 1; ls -d n/checkpoint-*" n/checkpoint-4
rm -rf n from

# --- every option, changed.  other NAME VALUE: refused by that name.  taken NAME VALUE: it may be another ---
base="$L $D -q --weighting_scheme logit_normal --lr_scheduler cosine --lr_warmup_steps 2 --use_ema --validation_prompts x --validation_steps 100 --validation_inference_steps 1"
dir=o
eval "$base --output_dir o" || exit 1
all o >o.all
done_with=
other() {
    fails 2 "$1: refused" "$(echo "$base" | sed -E "s/ --$1( [^-][^ ]*)?//") --$1${2:+ }$2 --output_dir $dir" "checkpoint-4 was made with --$1 "
    done_with="$done_with $1"
}
other_data() {
    fails 2 "$1: refused" "$(echo "$base" | sed -E "s/ --$1( [^-][^ ]*)?//") --$1${2:+ }$2 --output_dir $dir" \
        "checkpoint-4 was trained on other data: the [0-9]+ batches behind it are not the first of this run's plan${3:+ \($1 was .*, is .*\)}"
    done_with="$done_with $1"
}
taken() {
    check "$1: taken" "$(echo "$base" | sed -E "s/ --$1( [^-][^ ]*)?//") --$1${2:+ }$2 --output_dir $dir"
    done_with="$done_with $1"
}
other max_sequence_length 12
other text_padding none
other rank 4
other network_alpha 8
other target_name to_q
other lora_skip_name to_q
other gradient_accumulation_steps 2
other uniform_sampling ''
other train_sampling_steps 500
other logit_mean 1
other logit_std 2
other guidance_scale 1
other noise_offset 0.1
other input_perturbation 0.1
other outlier_limit 9
other learning_rate 2e-4
other scale_lr ''
other lr_warmup_steps 3
other lr_num_cycles 1
other adam_beta1 0.8
other adam_beta2 0.9
other adam_weight_decay 0
other adam_epsilon 1e-7
other max_grad_norm 2
other ema_decay 0.9
other mixed_precision bf16
other gradient_checkpointing ''
other train_batch_size 1
other seed 1
other_data image_sample_size 48 why
other_data enable_bucket '' why
other_data caption_dropout 0.9 why
other_data random_flip '' why
other_data max_train_samples 2 why
other_data fix_sample_size '32 64' why
other_data multiple 24 why
all o | cmp -s - o.all && ok 'what was refused has changed nothing' || not_ok 'what was refused has changed nothing' "$(all o | diff - o.all)"
fails 2 'threads: refused' "$base --threads 2 --output_dir o" 'made with 1 compute threads, this run has 2; add --threads 1'
fails 2 'use_ema: refused' "${base/--use_ema/} --output_dir o" 'made with --use_ema true, this run has --use_ema false'
fails 2 'weighting_scheme: refused' "${base/logit_normal/cosmap} --output_dir o" 'made with --weighting_scheme logit_normal, this run has --weighting_scheme cosmap'
fails 2 'lr_scheduler: refused' "${base/cosine/linear} --output_dir o" 'made with --lr_scheduler cosine, this run has --lr_scheduler linear'
fails 2 'the command: refused' "dt-train full $C --max_sequence_length 16 $D -q --output_dir o" 'made by dt-train lora, this is dt-train full'
taken dataloader_num_workers 2
taken vae_mini_batch 1
taken low_vram ''
taken memory_budget 4G
taken checkpointing_steps 3
taken checkpoints_total_limit 9
taken validation_steps 3
taken validation_inference_steps 2
taken validation_size 48
taken validation_data_dir data
taken save_dtype bf16
taken lora_format kohya
taken use_peft_lora ''
taken progress /dev/null
taken dump_steps 1
taken trust_sizes ''
taken verify_images ''
taken max_skipped_fraction 0
taken vae_tile 64
taken pretrained_model_name_or_path "$M"
check 'a longer run on a curve: taken, and it is said' \
    "cp -r o o6; base=${base/ -q/}; said ${base/steps 4/steps 6} --output_dir o6 | grep -c 'made for 4 steps, this run has 6: until step 4 the learning rate was that of the other length'" 1
done_with="$done_with threads use_ema weighting_scheme lr_scheduler max_train_steps resume_from_checkpoint device"
done_with="$done_with train_data_dir train_data_meta dataset_config folder_repeats random_ratio_crop random_hw_adapt num_train_epochs plan latents"    # data: below
done_with="$done_with transformer_path vae_path validation_prompts validation_epochs validation_data_meta output_dir dump_dir quiet memory_plan"
done_with="$done_with logging_dir tracker_project_name report_to"
base="$L $D -q --weighting_scheme mode --lr_scheduler polynomial"
dir=p
eval "$base --output_dir p" || exit 1
other mode_scale 1
other lr_power 2
options() { for c in lora full vae; do dt-train $c --print_config=json | grep -o '"[a-z_0-9]*":{"value"' | cut -d'"' -f2; done | sort -u; }

# --- the other commands ---
base="dt-train full $C --max_sequence_length 16 $D -q --trainable_modules norm_out"
dir=f
eval "$base --output_dir f" || exit 1
other trainable_modules proj_out
other train_text_encoder ''
other from_config ''
base="dt-train vae $C $D -q"
dir=v
eval "$base --output_dir v" || exit 1
other kl_weight 1e-3
taken fit_scaling ''
check 'every option was changed' 'for o in $(options); do case " $done_with " in *" $o "*) ;; *) echo "$o" ;; esac; done; options | wc -l | sed "s/[0-9]$/+/"' '9+'

# --- data ---
check 'a picture changed, of an autoencoder in training' "cp -r data d2; printf x >>d2/rocket.png; said dt-train vae $C ${D/_dir data/_dir d2} --output_dir v | grep -c 'the 4 batches behind it had other pictures;'" 1
check 'and of what is cached' "said $L ${D/_dir data/_dir d2} --output_dir a | grep -c 'the 4 batches behind it had other pictures, or were encoded otherwise;'" 1
check 'the folder moved: the same run' "rm -r d2; cp -r data d2; $L ${D/_dir data/_dir d2} -q --output_dir a && dt-train vae $C ${D/_dir data/_dir d2} -q --output_dir v"
check 'a caption changed: nothing is encoded' "echo another >d2/crown.txt; said $L ${D/_dir data/_dir d2} --output_dir a | grep -cE 'are not the first|encoded,'" 1
check 'which an autoencoder in training does not see' "dt-train vae $C ${D/_dir data/_dir d2} -q --output_dir v"
check 'a picture more' "rm -r d2; cp -r data d2; cp $E/airplane.png d2; said $L ${D/_dir data/_dir d2} --output_dir a | grep -c 'are not the first'" 1
check 'metadata changed: it is named' "printf 'file_path,text\ncrown.png,a crown\nrocket.png,x\n' >m.csv; said $L --train_data_dir data --train_data_meta m.csv ${D#--train_data_dir data} -q --output_dir meta
    sed -i 's/a crown/A crown/' m.csv; said $L --train_data_dir data --train_data_meta m.csv ${D#--train_data_dir data} -q --output_dir meta | grep -c 'not the first of this run.s plan (m.csv was '" 1
check 'given as a plan and its cache: the same run' "$L -q --plan a/plan.ndjson --latents a/cache --output_dir a && said $L --latents a/cache --output_dir a | grep -c finished" 1
check 'as a stream: the same run' \
    "dt-bucket -q ${D#--train_data_dir data} --max_train_steps 4 data | dt-cache-latents -q --model m --threads 1 --max_sequence_length 16 -o - >stream
     said $L --latents - --output_dir a <stream | grep -c finished" 1
dt-bucket -q ${D#--train_data_dir data} --max_train_steps 4 --random_flip -o flip data
dt-bucket -q ${D#--train_data_dir data} --max_train_steps 9 -o longer data
check 'another plan, in a file and in a stream' \
    "cp -r a s; dt-cache-latents -q --model m --threads 1 --max_sequence_length 16 -o flip.c flip; dt-cache-latents -q --model m --threads 1 --max_sequence_length 16 -o - flip >stream
     said $L --plan flip --latents flip.c --output_dir s | grep -c 'random_flip was false, is true'; said $L --latents - --output_dir s <stream | grep -c 'random_flip was false, is true'" '1
1'
check 'a plan that goes on behind the batches that are used up: taken' \
    "rm -rf s; cp -r a s; dt-cache-latents -q --model m --threads 1 --max_sequence_length 16 -o longer.c longer; said ${L/steps 4/steps 9} --plan longer --latents longer.c --output_dir s | grep -c 'from s/checkpoint-4'" 1
check 'the same run in one go' "${L/steps 4/steps 9} -q --plan longer --latents longer.c --output_dir w && cmp w/lora.safetensors s/lora.safetensors && cmp w/loss.png s/loss.png &&
    cmp w/checkpoint-8/manifest.json s/checkpoint-8/manifest.json"
fails 2 'more epochs than the plan has' "$L -q --plan flip --latents flip.c --output_dir s --resume_from_checkpoint w/checkpoint-8" 'w/checkpoint-8 is at step 8, this run ends at step 4'

# --- model ---
cp m/scheduler/scheduler_config.json x; sed -i 's/"max_shift": [0-9.]*/"max_shift": 1.3/' m/scheduler/scheduler_config.json
fails 2 'another noise schedule' "$L $D -q --output_dir a" 'made with another scheduler/scheduler_config.json than that of m'
cp x m/scheduler/scheduler_config.json
check 'the autoencoder of the cache' \
    "cp m/vae/config.json x; sed -i 's/\"scaling_factor\": [0-9.]*/\"scaling_factor\": 0.5/' m/vae/config.json; said $L $D --output_dir a | grep -c 'or were encoded otherwise'; cp x m/vae/config.json" 1

# --- a checkpoint that does not say what it was trained on ---
for gone in options batches_hash data_hash; do
    rm -rf b; cp -r a b; rm -r b/checkpoint-2 b/run.json
    sed -i "/\"${gone%_hash}_hash\"/d; /\"$gone\": {/,/^ *}/d" b/checkpoint-4/manifest.json
    fails 4 "without $gone" "$L $D -q --output_dir b" "b/checkpoint-4/manifest.json: '$gone' is missing"
done
