#!/bin/bash
# What a reviewer should not have to look for.  Code aims at 100 columns, tables and comments at 120; the limit here is
# where a line is no longer read.
. tests/lib.sh

# The files of the project; in an unpacked archive, all but build folders.
list() {
    if [ -e .git ]; then git ls-files -co --exclude-standard; else find . -path './build*' -prune -o -type f -print; fi
}
list | while read -r f; do [ -f "$f" ] && [ ! -L "$f" ] && echo "${f#./}"; done >"$T/all"
grep -E '\.(c|h|cu|cuh|cc|proto)$' "$T/all" >"$T/code"
# programs of the shell, whatever their names
tr '\n' '\0' <"$T/all" | xargs -0 awk 'FNR == 1 && /^#!.*[\/ ](ba)?sh$/ { print FILENAME } { nextfile }' >"$T/scripts"
{ grep -E '\.(c|h|cu|cuh|cc|proto|sh|t|mk|md|py|[157])$|(^|/)Makefile$' "$T/all" | grep -vE '^(examples|tests/golden)/.*\.md$'
    cat "$T/scripts"; } | sort -u >"$T/text"

# none NAME LIST GREP-ARGS...: no line of the listed files matches
none() {
    local name=$1 files=$2 hits
    shift 2
    hits=$(tr '\n' '\0' <"$files" | xargs -0 -r grep -nH "$@" | cut -c1-150 | sed -n 1,20p)
    if [ -s "$files" ] && [ -z "$hits" ]; then ok "$name"; else not_ok "$name" "$hits"; fi
}

none 'no tabs in code'         "$T/code" -P '\t'
none 'no trailing whitespace'  "$T/text" -P '[ \t\r]$'
none 'no invisible characters' "$T/text" -P '[\x{a0}\x{ad}\x{200b}-\x{200f}\x{2028}-\x{202e}\x{2060}-\x{206f}\x{feff}\x{fff9}-\x{fffb}]'
none 'at most 140 columns'     "$T/code" -P '^.{141}'

ends=$(while read -r f; do [ ! -s "$f" ] || [ -z "$(tail -c 1 "$f")" ] || echo "$f"; done <"$T/text")
if [ -z "$ends" ]; then ok 'newline at the end of file'; else not_ok 'newline at the end of file' "$ends"; fi

# Every header can be the first that a file includes.  cuda_*.h are C++.
flags=$(env -u MAKEFLAGS -u MFLAGS make -s --no-print-directory B="$B" cppflags)
while read -r h; do
    case $h in */cuda_*.h) cc='g++ -std=c++17 -Itests/cuemu' lang=c++ ;; *) cc='gcc -std=gnu11' lang=c ;; esac
    errors=$(echo "#include \"$h\"" | $cc -Wall -Wextra -fsyntax-only $flags -Itests -x $lang - 2>&1) ||
        { echo "$h"; echo "$errors" | head -n 3; }
done < <(grep '\.h$' "$T/code") >"$T/headers"
if [ -s "$T/headers" ]; then not_ok 'every header compiles alone' "$(cat "$T/headers")"; else ok 'every header compiles alone'; fi

# Shell, where there is shellcheck; nothing else needs it.
if command -v shellcheck >/dev/null; then
    if d=$(xargs shellcheck -S warning -x <"$T/scripts" 2>&1); then ok 'shellcheck'; else not_ok 'shellcheck' "$d"; fi
else
    skip 'shellcheck' 'not installed'
fi
