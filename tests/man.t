#!/bin/bash
# The manual agrees with the tools.  A page holds the options of a command between two comment lines,
#
#     .\" options: dt-train lora
#     .\" end options
#
# and what stands there is what `dt-train lora --help-man` prints (libcommon/base/opt.h).  Run as `tests/man.t -u`, or
# `make man`, it writes these parts anew instead.
. tests/lib.sh

# expand PAGE: the page as it should be
expand() {
    awk '
        /^\.\\" options: dt-[a-z0-9 -]+$/ {
            print
            cmd = substr($0, index($0, "dt-")) " --help-man"
            while ((cmd | getline line) > 0)
                print line
            if (close(cmd))
                print ".\\\" " cmd " failed"
            inside = 1
        }
        /^\.\\" end options$/ { inside = 0 }
        !inside' "$1"
}

if [ "${1-}" = -u ]; then
    for page in man/*.1; do
        expand "$page" >"$T/page" && { cmp -s "$T/page" "$page" || { cat "$T/page" >"$page"; echo "# $page"; }; }
    done
    exit
fi

# Commands that must be documented: every tool, or each command of a tool that lists some.
for tool in "$B"/bin/dt-*; do
    [ -x "$tool" ] || continue
    name=${tool##*/}
    page=man/$name.1
    if [ ! -f "$page" ]; then
        not_ok "$name has a page" "no $page"
        continue
    fi
    commands=$("$tool" --help 2>/dev/null </dev/null | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z0-9-]*\) .*/\1/p')
    missing=
    if [ -n "$commands" ]; then
        for c in $commands; do
            grep -qx "\.\\\\\" options: $name $c" "$page" || missing="$missing $c"
        done
    else
        grep -qx "\.\\\\\" options: $name" "$page" || missing=" $name"
    fi
    if [ -z "$missing" ]; then ok "$name has a page"; else not_ok "$name has a page" "no options of:$missing"; fi
done

for page in man/*.[157]; do
    [ -f "$page" ] || continue
    if d=$(expand "$page" 2>&1 | diff -u "$page" - 2>&1); then ok "$page: options"; else not_ok "$page: options" "$d"; fi
    # A word behind a flag without a macro of its own is printed as a second flag.
    if d=$(grep -nE 'Fl -[a-z_]+ [a-z]' "$page"); then not_ok "$page: values of options" "$d"; else ok "$page: values of options"; fi
    if d=$(mandoc -Tlint -W warning "$page" 2>&1); then ok "$page: mandoc"; else not_ok "$page: mandoc" "$d"; fi
done
