#!/bin/bash
# Completion as bash does it: the installed scripts are loaded, the words of a line set as readline would, and the functions
# called.  The scripts of the other shells are read by those, where they are there.
. tests/lib.sh
make -s install B="$B" DESTDIR="$T/root" PREFIX=/usr >"$T/log" 2>&1 || { cat "$T/log"; exit 1; }
C=$T/root/usr/share
mkdir "$T/work" && cd "$T/work" && mkdir photos pics && touch plan.ndjson 'a b.txt'

# complete_words WORD...: what TAB offers behind the last word
complete_words() {
    bash --norc -c '
        for f in "$0"/bash-completion/completions/dt-*; do . "$f"; done
        compopt() { :; }
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
        fn=$(complete -p "$1" | sed "s/.* -F \([^ ]*\) .*/\1/")
        "$fn"
        printf "%s\n" "${COMPREPLY[@]}"' "$C" "$@" | sort | tr '\n' ' '
}

check 'commands' 'complete_words dt-train ""' 'full lora tokenizer vae '
check 'a command by its first letters' 'complete_words dt-train lo' 'lora '
check 'options of a command' 'complete_words dt-train lora --lora' '--lora_format= --lora_skip_name= '
check 'not those of another' 'complete_words dt-train vae --lora' ' '
check 'options of a tool without commands' 'complete_words dt-bucket --enable' '--enable_bucket '
check 'commands and options of another tool' 'complete_words dt-merge-shards ""; complete_words dt-merge-shards merge --l' 'lora merge --lora '
check 'options that are refused are not offered' 'complete_words dt-train lora --use_8' ' '
check 'values of a choice' 'complete_words dt-train lora --lora_format ""' 'comfy kohya peft '
check 'behind =' 'complete_words dt-train lora --lr_scheduler = cosine_' 'cosine_with_restarts '
check 'folders for DIR' 'complete_words dt-train lora --output_dir p' 'photos pics '
check 'files by the default for FILE' 'complete_words dt-train lora --plan p' ' '
check 'nothing for a number' 'complete_words dt-train lora --rank ""' ' '
check 'every option of --help all is offered' \
    "dt-train lora --help all | sed -nE 's/^  (   |-.,) --([a-z_0-9]+).*/\2/p' | sort -u >o
    complete_words dt-train lora -- | tr ' ' '\n' | sed -n 's/^--\([a-z_0-9]*\).*/\1/p' | sort -u | comm -23 o - | tr '\n' ' '"
for sh in zsh fish; do
    case $sh in zsh) files="$C/zsh/site-functions/_dt-*" ;; fish) files="$C/fish/vendor_completions.d/dt-*.fish" ;; esac
    if command -v $sh >/dev/null; then
        check "$sh can read its scripts" "for f in $files; do $sh -n \$f || exit 1; done"
    else
        skip "$sh can read its scripts" "no $sh"
    fi
done
check 'a script for each tool and shell' "ls $C/bash-completion/completions $C/zsh/site-functions $C/fish/vendor_completions.d | grep -Ec '^_?dt-'" \
    "$((3 * $(ls "$B"/bin/dt-* | wc -l)))"
