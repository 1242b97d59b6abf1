#!/bin/sh
# data.sh - work on data beside Python's, on one core: `make bench-data PYTHON=...`
#
# PYTHON has Pillow, transformers, tokenizers, safetensors, torch.  FILES pictures (2000), of which DISTINCT (100) differ, and
# GIB (4) of weights are made in SCRATCH, and removed.  TOKENIZERS is a folder with the real clip/ and t5/ (small ones of
# tests/golden).
set -eu
: "${B:=build}" "${PYTHON:=python3}" "${SCRATCH:=${TMPDIR:-/tmp}}" "${FILES:=2000}" "${DISTINCT:=100}" "${GIB:=4}" "${ROUNDS:=7}"
here=$(dirname "$0")
work=$(mktemp -d "$SCRATCH/dt-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
"$PYTHON" "$here/data_make.py" "$work" "$FILES" "$DISTINCT" "$GIB"
B=$B "$PYTHON" "$here/data_compare.py" "$work" --rounds "$ROUNDS"
