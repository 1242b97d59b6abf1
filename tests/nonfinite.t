#!/bin/bash
# nonfinite.t - a weight that is no number, in each tool: exit 6, the op and the block that show it first, nothing written.
# What training does with numbers that are none is in tests/steps_nan.c.
. tests/lib.sh
M=$PWD/tests/golden/tiny-flux E=$PWD/examples/pictures
cd "$T" || exit 1
export OMP_NUM_THREADS=1
mkdir data
cp "$E/crown.png" data/; echo 'a crown' >data/crown.txt
dt-bucket -q --image_sample_size 32 --max_train_steps 2 -o plan data
dt-cache-latents -q --threads 1 --model "$M" --max_sequence_length 16 -o good plan

# nan_in FOLDER TENSOR: a copy of the model, called bad, with NaN (0xffff, in bf16 as in fp16) for the tensor's first number
nan_in() {
    local f at n
    rm -rf bad; cp -r "$M" bad
    f=$(grep -la "\"$2\":" bad/"$1"/*.safetensors) || return
    n=$(od -An -tu8 -N8 "$f" | tr -d ' ')
    at=$(head -c $((n + 8)) "$f" | tail -c "$n" | sed "s/.*\"$2\":{[^}]*\"data_offsets\": *\[\([0-9]*\).*/\1/")
    printf '\377\377' | dd of="$f" bs=1 seek=$((n + 8 + at)) conv=notrunc 2>/dev/null
}
C='dt-cache-latents -q --threads 1 --model bad --max_sequence_length 16 -o c plan'
S='dt-sample -q --pretrained_model_name_or_path bad --max_sequence_length 16 --steps 2 --height 32 --width 32 -o s -p'
L='dt-train lora --pretrained_model_name_or_path bad --max_sequence_length 16 --rank 2 --report_to none -q --plan plan --latents good --output_dir t'

nan_in vae encoder.conv_in.weight
fails 6 'caching: the autoencoder' "$C" \
    "the latent of a picture is not finite; first in 'conv2d[a-z_]*' of encoder.conv_in, from 'encoder.conv_in.weight'"
check 'the captions before it are kept, the picture is not there' 'tar tf c/shard-*.tar | wc -l | tr -d " "' 2
nan_in vae decoder.conv_out.bias
fails 6 'sampling: the autoencoder' "$S x" "a decoded picture is not finite; first in '[a-z0-9_]+' of decoder.conv_out, from 'decoder.conv_out.bias'"
nan_in text_encoder_2 encoder.block.1.layer.0.SelfAttention.q.weight
fails 6 'caching: a text encoder' "rm -rf c; $C" "T5's output for a caption is not finite; first in '[a-z_]+' of encoder.block.1"
nan_in transformer single_transformer_blocks.1.attn.to_q.weight
fails 6 'sampling: the transformer' "$S x" \
    "sampling step 1: the transformer's prediction is not finite; first in '[a-z_]+' of single_transformer_blocks.1.attn.to_q, from"
check 'no picture' 'ls s 2>/dev/null | wc -l' 0
for how in '' --gradient_checkpointing --low_vram '--mixed_precision bf16'; do
    fails 6 "training $how" "$L $how" \
        "step 1: the loss is not finite; first in '[a-z_]+' of single_transformer_blocks.1.attn.to_q, from 'single_transformer_blocks.1.attn.to_q.weight'"
done
fails 6 'the held-out loss, before the first step' "$L --validation_data_dir data" \
    "the held-out loss is not finite; first in '[a-z_]+' of single_transformer_blocks.1.attn.to_q, from 'single_transformer_blocks.1.attn.to_q.weight'"
check 'no checkpoint, no adapter' 'ls t | grep -cE "checkpoint|lora"; :' 0
