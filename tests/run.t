# The test runner itself: what it must call a failure.
. tests/lib.sh

# prog NAME TEXT: a test script in $T
prog() { printf '%s\n' "$2" >"$T/$1.t"; }
# last NAME...: the closing line for these programs, then the exit status
last() { (for p; do set -- "$@" "$T/$p.t"; shift; done; tests/run "$@" >"$T/log" 2>&1; st=$?; tail -n 1 "$T/log"; echo $st); }

prog good  'echo 1..2; echo ok 1 - a; echo ok 2 - b'
prog skip  'echo ok 1 - a; echo "ok 2 - b # SKIP no device"; echo 1..2'
prog bad   'echo 1..2; echo ok 1 - a; echo not ok 2 - b; echo "# because"; exit 1'
prog quiet 'echo 1..1; echo not ok 1 - exit status 0 all the same'
prog crash 'echo 1..1; echo ok 1 - a; kill -SEGV $$'
prog exit3 'echo 1..1; echo ok 1 - a; exit 3'
prog noplan 'echo ok 1 - a'
prog short 'echo 1..3; echo ok 1 - a'
prog long  'echo 1..1; echo ok 1 - a; echo ok 2 - b'
prog empty ':'
prog none  'echo "1..0 # SKIP nothing here"'
prog dev77 'exit 77'
prog hang  'sleep 30'
prog bail  'echo 1..1; echo ok 1; echo "Bail out! no disk"'
prog words 'echo 1..1; echo okay; echo "# not ok - group"; echo ok 1 - a'
prog broken '. tests/lib.sh
check "fine" true
false'
prog asan  'echo 1..1; echo ok 1 - a; echo "==7==ERROR: AddressSanitizer: lost" >"${ASAN_OPTIONS##*log_path=}.7"'
prog lib   '. tests/lib.sh
check "out" "printf \"a\nb\n\"" "a
b"
check "wrong" "echo x" y
check "status" "echo x; exit 3" x
fails 3 "err" "echo gone >&2; exit 3" "^go+ne$"
fails 3 "other status" "exit 4"
fails 0 "other words" "echo gone >&2" lost
skip "s" "no device"
echo "$T" >"$T.name"'

check 'all pass'                'last good' '2 passed, 0 failed
0'
check 'skips do not pass'       'last skip; grep -cx "1 skipped" "$T/log"' '1 passed, 0 failed
0
1'
check 'failures are counted'    'last good bad' '3 passed, 1 failed
1'
check 'failing lines are shown' 'last bad >/dev/null; grep -A1 "not ok" "$T/log"' '  not ok 2 - b
  # because'
check 'not ok with exit 0'      'last quiet' '0 passed, 1 failed
1'
check 'a crash'                 'last crash; grep -c "signal 11" "$T/log"' '1 passed, 1 failed
1
1'
check 'a silent exit status'    'last exit3' '1 passed, 1 failed
1'
check 'no plan'                 'last noplan' '1 passed, 1 failed
1'
check 'too few'                 'last short' '1 passed, 1 failed
1'
check 'too many'                'last long' '2 passed, 1 failed
1'
check 'says nothing'            'last empty good' '2 passed, 1 failed
1'
check 'skipped as a whole'      'last none dev77 good; grep -cx "2 skipped" "$T/log"' '2 passed, 0 failed
0
1'
check 'only skipped: no pass'   'last none' '0 passed, 1 failed
1'
check 'a hang'                  'TEST_TIMEOUT=1 last hang' '0 passed, 1 failed
1'
check 'bail out'                'last bail' '1 passed, 1 failed
1'
check 'words are no results'    'last words' '1 passed, 0 failed
0'
check 'a report of a sanitizer' 'last asan; last good; grep -c sanitizer "$T/log"; :' '1 passed, 1 failed
1
2 passed, 0 failed
0
0'
check 'a missing program'       'last gone' '0 passed, 1 failed
1'
check 'lib.sh: breaking off'    'last broken' '1 passed, 1 failed
1'
check 'lib.sh: check and fails' 'last lib; grep "not ok" "$T/log"' '2 passed, 4 failed
1
  not ok 2 - wrong
  not ok 3 - status
  not ok 5 - other status
  not ok 6 - other words'
check 'no programs'             'last' '0 passed, 1 failed
1'
prog left  'echo 1..1; : >"${0%left.t}l"; for i in $(seq 200); do [ -e "${0%left.t}r" ] && { echo ok 1; exit; }; sleep 0.05; done; echo not ok 1'
prog right 'echo 1..1; : >"${0%right.t}r"; for i in $(seq 200); do [ -e "${0%right.t}l" ] && { echo ok 1; exit; }; sleep 0.05; done; echo not ok 1'
check 'two at a time wait for each other; results in order' \
    'TEST_JOBS=2 last left right good; sed -n "s/.*\/\([a-z]*\).t: .*/\1/p" "$T/log" | xargs' '4 passed, 0 failed
0
left right good'
