#!/usr/bin/env bash
# A line that is no UTF-8 ends every command that reads lines with exit code 2, the line's number, and no output.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=$POISE_SOURCE_DIR/tests/goldens/score/model
refused() { # COMMAND FIELDS
    local good="{\"id\":\"a\",$2}" bad="{\"id\":\"b\",$2}" code=0
    for wrong in $'\xff' $'\xc3' $'\xed\xa0\x80' $'\xf4\x90\x80\x80' $'\xc0\xaf'; do
        printf '%s\n%s\n\n%s\n' "${good//WORD/fine}" "${good//WORD/fine}" "${bad//WORD/a${wrong}b}" >"$work/in.jsonl"
        code=0
        timeout 60 "$POISE" "$1" --model "$model" --input "$work/in.jsonl" --output "$work/out" >"$work/log" 2>&1 </dev/null || code=$?
        [ "$code" = 2 ] || { echo "$1: exit code $code for $(printf %s "$wrong" | od -An -tx1)"; cat "$work/log"; exit 1; }
        grep -Eq '(line 4|:4)' "$work/log" || { echo "$1 does not name line 4:"; cat "$work/log"; exit 1; }
        [ ! -e "$work/out" ] || { echo "$1 left an output"; exit 1; }
    done
    echo "$1 refuses what is no UTF-8"
}
refused tokenize '"text":"WORD"'
refused tokenize '"messages":[{"role":"user","content":"WORD"}]'
refused score '"messages":[{"role":"user","content":"WORD"}],"completion":"x"'
refused score '"messages":[{"role":"user","content":"x"}],"completion":"WORD"'
refused generate '"messages":[{"role":"user","content":"WORD"}]'
refused pack '"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"WORD"}]'
