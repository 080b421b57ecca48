#!/usr/bin/env bash
# poise canary: all canaries pass; with every fault injected each of them fails, is named, and the exit code is 1; on the user's own model
# and data (full and with adapters, alone, by mpirun and colocated) those pass that are for it, and fail when injected.
. "$(dirname "$0")/../lib/jobs.sh"

# canary NAME CODE ARGUMENTS...: its table goes to $work/NAME.
canary() {
    local name=$1 wanted=$2 ranks=4 code
    shift 2
    case ${1:-} in [0-9]*) ranks=$1; shift ;; esac
    timeout -k 5 "$limit" "$launch" -n "$ranks" canary "$@" >"$work/$name" 2>"$work/$name.log" </dev/null
    code=$?
    cat "$work/$name"
    [ "$code" = "$wanted" ] || fail "canary $* ended with $code, not $wanted" "$work/$name.log"
}
# verdicts NAME PASS|FAIL ROW...: the table has these rows and no others, all with this verdict.
verdicts() {
    local name=$1 verdict=$2 row
    shift 2
    same "rows of $name" $# "$(grep -cE '^.{17} (PASS|FAIL|SKIP)  ' "$work/$name")"
    for row in "$@"; do
        grep -qE "^$row +$verdict  " "$work/$name" || fail "$name: $row is not $verdict" "$work/$name"
    done
}
every=('lr0 \(sft\)' 'lr0 \(grpo\)' ratio 'length \(longer\)' 'length \(shorter\)' 'segments \(0,1\)' 'segments \(1,0\)' images)

canary clean 0 --output "$work/kept"
verdicts clean PASS "${every[@]}"
grep -q '"passed": true' "$work/kept/canary.json" || fail "canary.json does not say so" "$work/kept/canary.json"
same "rows of canary.json" 8 "$(grep -c '"verdict": "PASS"' "$work/kept/canary.json")"

canary faulty 1 --inject lr0,ratio,length,segments,images --output "$work/faulty-kept"
verdicts faulty FAIL "${every[@]}"
holds "$work/faulty.log" '8 of 8 canaries failed: lr0 \(sft\), lr0 \(grpo\), ratio, length \(longer\), length \(shorter\), segments'
grep -q '"passed": false' "$work/faulty-kept/canary.json" || fail "canary.json does not say so" "$work/faulty-kept/canary.json"

# The user's own model and data.
make_data
own=('lr0 \(sft\)' 'lr0 \(grpo\)' ratio 'segments \(0,1\)' 'segments \(1,0\)')
cat >"$work/own.yaml" <<YAML
model: $work/kept/start/model
data:
  train: $work/data/sft.h5
lora:
  rank: 2
optimizer:
  learning_rate: 1e-3
grpo:
  max_new_tokens: 16
YAML
canary own 0 -c "$work/own.yaml"
verdicts own PASS "${own[@]}"
canary own-faulty 1 2 -c "$work/own.yaml" --set roles.colocated=true --set lora.rank=0 --inject ratio
# A fault is found by its own canary alone.
verdicts own-faulty '(PASS|FAIL)' "${own[@]}"
same "failed by the fault in the ratio" "ratio" "$(sed -n 's/^\(.*[^ ]\)  *FAIL .*/\1/p' "$work/own-faulty")"

# Started without a launcher it starts itself; wrong use is refused before anything runs.
"$POISE" canary --only segments >"$work/self" 2>"$work/self.log" || fail "poise canary alone failed" "$work/self.log"
verdicts self PASS 'segments \(0,1\)' 'segments \(1,0\)'
canary unknown 2 --only bird
holds "$work/unknown.log" "there is no canary 'bird'"
canary full 2 --output "$work/kept"
holds "$work/full.log" 'is not empty'
