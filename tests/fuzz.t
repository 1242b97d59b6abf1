#!/bin/bash
# The fuzz targets (tests/fuzz): each on its corpus, then for FUZZ_SECONDS (4) on what libFuzzer makes of it.
. tests/lib.sh
case $B in */build) ;; *) echo '1..0 # SKIP fuzzed with the plain build only, by clang with its sanitizers'; exit 0 ;; esac
command -v clang++ >/dev/null || { echo '1..0 # SKIP no clang'; exit 0; }
echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { (void)d; return n > 3; }' >"$T/t.c"
clang -fopenmp -fsanitize=fuzzer,address,undefined -o "$T/t" "$T/t.c" 2>"$T/log" ||
    { echo "1..0 # SKIP clang here has no libFuzzer or OpenMP: $(tail -n 1 "$T/log")"; exit 0; }

check 'targets are built' "env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s -j$(nproc) FUZZ_BUILD=1 B=$B-fuzz fuzzers 2>&1"
B=$B-fuzz FINDINGS=$T tests/fuzz/run -s "${FUZZ_SECONDS:-4}" -j $(($(nproc) + 1)) >"$T/fuzz" 2>&1
while IFS= read -r line; do
    case $line in
    *', no finding') ok "${line%, no finding}" ;;
    *': FINDING '*) not_ok "$line" "$(grep -A 20 -F "$line" "$T/fuzz" | grep '^ ')" ;;
    esac
done <"$T/fuzz"
check 'every target has a corpus' 'for t in tests/fuzz/fuzz_*.c; do t=${t##*/fuzz_}; [ "$(ls "tests/fuzz/corpus/${t%.c}")" ] || echo "$t"; done'
