# lib.sh - TAP for tests of commands, in POSIX sh.  A test is run from the top of the tree as
#
#     . tests/lib.sh
#     check   'wide picks wide'  'dt-bucket --ratio 3 wide.png'  '{"w":384}'
#     fails 2 'unknown option'   'dt-bucket --rato 3'            'did you mean .--ratio'
#
# Commands run in a subshell, by eval, with the tools of $B first in PATH.  $T is a scratch folder, removed at the
# end.  The plan is printed at the end too, only if the script got there: a test that breaks off has none.

: "${B:=build}"
case $B in /*) ;; *) B=$PWD/$B ;; esac
PATH=$B/bin:$PATH
LC_ALL=C.UTF-8
export B PATH LC_ALL
T=$(mktemp -d "${TMPDIR:-/tmp}/dt-test.XXXXXX") || exit 1
tests=0 bad=0

trap 'st=$?; rm -rf "$T"; [ $st -ne 0 ] || echo "1..$tests"; [ $bad -eq 0 ] || st=1; exit $st' EXIT
trap 'exit 130' INT TERM

# ok NAME / not_ok NAME [DETAILS]: one result; the details become TAP comments
ok() { tests=$((tests + 1)); echo "ok $tests - $1"; }
not_ok() { tests=$((tests + 1)) bad=$((bad + 1)); echo "not ok $tests - $1"; printf '%s\n' "${2-}" | sed 's/^/# /'; }
skip() { tests=$((tests + 1)); echo "ok $tests - $1 # SKIP $2"; }

# check NAME COMMAND [STDOUT]: exits 0 and prints exactly this (trailing newlines aside)
check() {
    st=0; out=$( (eval "$2") 2>"$T/.stderr" </dev/null) || st=$?
    if [ $st -eq 0 ] && [ "$out" = "${3-}" ]; then ok "$1"; else
        not_ok "$1" "command: $2
exit: $st
stdout: $(printf '%s\n' "$out" | head -c 2000)
wanted: $(printf '%s\n' "${3-}" | head -c 2000)
stderr: $(tail -n 20 "$T/.stderr")"
    fi
}

# fails STATUS NAME COMMAND [REGEX]: exits with STATUS, and a line of stderr matches the extended REGEX
fails() {
    st=0; out=$( (eval "$3") 2>"$T/.stderr" </dev/null) || st=$?
    if [ $st -eq "$1" ] && { [ -z "${4-}" ] || grep -Eq -e "$4" "$T/.stderr"; }; then ok "$2"; else
        not_ok "$2" "command: $3
exit: $st, wanted $1
stderr: $(tail -n 20 "$T/.stderr")
wanted: ${4-}"
    fi
}
