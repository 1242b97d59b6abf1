#!/bin/bash
# scale.sh - time and memory of dt-bucket and dt-cache-latents as data sets grow: `make bench-scale`
#
# SIZES (1000 10000 100000) pictures of 32 px, all different, each with a caption of its own, and networks that are next to nothing:
# what is left is what the programs do for each sample.  Everything is made in SCRATCH and removed; 100,000 take 2 GB.
set -euo pipefail
: "${B:=build}" "${SCRATCH:=${TMPDIR:-/tmp}}" "${SIZES:=1000 10000 100000}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
model=$(dirname "$0")/../golden/tiny-flux
work=$(mktemp -d "$SCRATCH/dt-scale.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Runs a command and prints "seconds, microseconds per sample, peak MiB".
measure() {
    local n=$1
    shift
    if ! /usr/bin/time -o "$work/time" -f '%e %M' "$@" 2>"$work/err"; then
        cat "$work/err" >&2
        exit 1
    fi
    awk -v n="$n" '{ printf "%9.2f s %7.0f us %6.0f MiB", $1, 1e6 * $1 / n, $2 / 1024 }' "$work/time"
}

printf '%8s  %-32s  %-32s  %-32s\n' pictures dt-bucket dt-cache-latents 'the same again'
for n in $SIZES; do
    data=$work/data
    mkdir "$data"
    "$B/bench-data" pictures "$data" "$n" 32 >/dev/null
    plan=(--train_data_dir="$data" --train_data_meta="$data/metadata.jsonl" --image_sample_size=32 --num_train_epochs=1)
    cache=(--model "$model" --plan "$work/plan" --output "$work/cache" --max_sequence_length=16 --text_padding=none -q)
    first=$(measure "$n" "$B/bin/dt-bucket" "${plan[@]}" --output "$work/plan" -q)
    second=$(measure "$n" "$B/bin/dt-cache-latents" "${cache[@]}")
    third=$(measure "$n" "$B/bin/dt-cache-latents" "${cache[@]}")
    printf '%8d  %s  %s  %s\n' "$n" "$first" "$second" "$third"
    rm -rf "$data" "$work/cache"
done
