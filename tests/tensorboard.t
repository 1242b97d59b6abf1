#!/bin/bash
# tensorboard.t - a run's log folder, read by TensorBoard's own reader: curves, held-out loss, sample pictures; and after the
# run was stopped and gone on with.  PYTHON: one that has tensorboard; without it this is skipped, dt needs none.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures PYTHON=${PYTHON:-python3} read=$PWD/tests/tensorboard_check.py
if ! "$PYTHON" -c 'import tensorboard.backend.event_processing.event_accumulator' 2>/dev/null; then
    skip 'TensorBoard reads the logs' 'no Python with tensorboard (PYTHON)'
    exit 0
fi
cd "$T" || exit 1
export OMP_NUM_THREADS=1

mkdir data held
for p in crown rocket; do cp "$E/$p.png" data/; echo "a $p" >data/$p.txt; done
cp data/rocket* held/
train() {
    dt-train lora --pretrained_model_name_or_path "$M" --max_sequence_length 16 --rank 2 --train_data_dir data -q \
        --image_sample_size 32 --train_batch_size 1 --num_train_epochs 100 --validation_prompts a --validation_steps 2 \
        --validation_inference_steps 1 --validation_data_dir held --output_dir out --resume_from_checkpoint latest "$@"
}
tb() { "$PYTHON" "$read" out/logs/* >said || { cat said; return 1; }; grep -oE "$1" said; }

check 'a run of four steps' 'train --max_train_steps 4'
check 'every curve has its four points' 'tb "^scalar (train|performance)/[^:]*: 4 points, steps 1..4" | sort' \
"scalar performance/TFLOP_per_s: 4 points, steps 1..4
scalar performance/img_per_s: 4 points, steps 1..4
scalar performance/memory_MiB: 4 points, steps 1..4
scalar performance/of_peak: 4 points, steps 1..4
scalar train/grad_norm: 4 points, steps 1..4
scalar train/loss: 4 points, steps 1..4
scalar train/lr: 4 points, steps 1..4"
check 'the last loss is that of metrics.ndjson' \
    'tb "train/loss: .* last [0-9.e-]+" | sed "s/.* //" >tb; sed -n "\$s/.*\"loss\":\([^,]*\),.*/\1/p" out/metrics.ndjson | xargs printf "%.6g\n" | cmp - tb'
check 'the held-out loss and a sample picture of each validation' 'tb "validation/loss: 3 points, steps 0..4|image samples/0: .*"' \
"validation/loss: 3 points, steps 0..4
image samples/0: step 0, 32x32
image samples/0: step 2, 32x32
image samples/0: step 4, 32x32"
check 'gone on with, the curves go on and no point is there twice' \
    'train --max_train_steps 6 && tb "train/loss: 6 points, steps 1..6"' 'train/loss: 6 points, steps 1..6'
