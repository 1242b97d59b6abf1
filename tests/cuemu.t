#!/bin/sh
# The CUDA kernels against the CPU's, without a GPU.
exec "${B:-build}/checkop" -d cuemu
