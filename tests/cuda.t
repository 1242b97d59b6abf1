#!/bin/bash
# The CUDA plugin, where there is nvcc: it compiles without a warning and links (in a build folder of its own), and it is
# one that this version opens.  Where there is a GPU too: its kernels against the CPU's.
command -v nvcc >/dev/null || { echo '1..0 # SKIP no nvcc'; exit 0; }
. tests/lib.sh
C=$B-cuda
export LD_LIBRARY_PATH=$C/bin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

check 'compiles and links' \
    "env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u SAN make -s -j$(nproc) CUDA=1 B=$C $C/bin/libdt-cuda.so 2>&1"
check 'is loaded; what may be missing is a device' "$B/checkop -d cuda -l >$T/list; st=\$?; grep -i plugin $T/list; [ \$st = 0 ] || [ \$st = 77 ]"
"$B/checkop" -d cuda || [ $? = 77 ] || bad=1
