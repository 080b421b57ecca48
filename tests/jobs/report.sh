#!/usr/bin/env bash
# The report, inspect and doctor on what real (tiny) runs leave: SFT, GRPO, evaluation, shuffled control, checkpoints.
set -u
poise=${POISE:?POISE is the executable to test}
root=${POISE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
cd "$root" || exit 2
[ -e /usr/share/datasets/fashion-mnist ] || { echo "dataset-fashion-mnist is not installed"; exit 77; }
. launch/env
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failures=0
fail() { echo "FAILED: $1"; failures=$((failures + 1)); }
must() { "$@" >"$dir/log" 2>&1 || { echo "FAILED: $*"; cat "$dir/log"; exit 1; }; }
# has TEXT COMMAND...: the command ends well and prints a line with TEXT (a basic regular expression).
has() {
    local text=$1
    shift
    "$@" >"$dir/log" 2>&1 || { fail "$* ended with $?"; cat "$dir/log"; return; }
    grep -q -- "$text" "$dir/log" || { fail "'$*' does not print '$text'"; cat "$dir/log"; }
}
# refuses CODE TEXT COMMAND...
refuses() {
    local code=$1 text=$2
    shift 2
    "$@" >"$dir/log" 2>&1
    local got=$?
    [ $got = "$code" ] || fail "'$*' ended with $got, not $code"
    grep -q -- "$text" "$dir/log" || { fail "'$*' does not print '$text'"; cat "$dir/log"; }
}

model=configs/quickstart
must "$poise" quickstart-data --output "$dir/data" --seed 1 --base 16 --text 8 --sft 24 --rl 12 --dev 2 --test 8
must "$poise" pack --model $model --input "$dir/data/sft.jsonl" --output "$dir/sft.h5"
must "$poise" pack --prompts --model $model --input "$dir/data/rl.jsonl" --output "$dir/rl.h5"
must "$poise" pack --prompts --model $model --input "$dir/data/test.jsonl" --output "$dir/test.h5"
must "$poise" sft -c $model/sft.yaml --set model=$model --set init_std=0.05 --set "output=$dir/sft" --set "data.train=$dir/sft.h5" \
    --set sft.batch=8 --set optimizer.steps=3 --set optimizer.warmup_steps=1
must timeout 120 mpirun -n 3 "$poise" grpo -c $model/grpo.yaml --set "model=$dir/sft/model" --set "output=$dir/grpo" \
    --set "data.train=$dir/rl.h5" --set grpo.prompts=4 --set grpo.completions=4 --set grpo.max_new_tokens=8 --set optimizer.steps=2 \
    --set roles.learners=1 --set roles.rollouts=1 --set metrics.trajectories=true
for what in sft grpo; do
    must "$poise" eval -c $model/eval.yaml --set "model=$dir/$what/model" --set "output=$dir/${what}_eval" --set "data.test=$dir/test.h5" \
        --set eval.max_new_tokens=8
done
must "$poise" eval -c $model/eval.yaml --set "model=$dir/grpo/model" --set "output=$dir/shuffled" --set "data.test=$dir/test.h5" \
    --set eval.max_new_tokens=8 --set eval.shuffle_images=3

# ---- report ----
report() {
    "$poise" report --output "$dir/report" --seed 1 --title 'A <tiny> "run"' --note $model/note.txt --control "shuffled=$dir/shuffled" \
        "sft=$dir/sft_eval,$dir/sft" "sft_grpo=$dir/grpo_eval,$dir/grpo"
}
has '24 questions on 8 pictures, seed 1' report
has '^sft_grpo  *0.0 ' cat "$dir/report/report.txt"
has '"rollout_learner_logprob_max_abs_diff": 0.0' cat "$dir/report/report.json"
has '"difference": 0.0' cat "$dir/report/report.json"
has '"shuffled_images": 0.0' cat "$dir/report/report.json"
has 'A &lt;tiny&gt; &quot;run&quot;' cat "$dir/report/report.html"
grep -q '"warnings": \[\]' "$dir/report/report.json" || fail "the report has warnings"
cp "$dir/report/report.json" "$dir/first.json"
must report
cmp -s "$dir/first.json" "$dir/report/report.json" || fail "the same inputs gave another report"
if command -v gnuplot >/dev/null; then
    for plot in accuracy kinds loss loss_segments reward reward_parts lengths tokens; do
        [ -s "$dir/report/plots/$plot.svg" ] && [ -s "$dir/report/plots/$plot.png" ] || fail "plots/$plot is missing"
    done
    [ "$(grep -c '<svg ' "$dir/report/report.html")" = 8 ] || fail "the page does not hold 8 pictures"
    repeated=$(grep -o " id=['\"][^'\"]*" "$dir/report/report.html" | sort | uniq -d)
    [ -z "$repeated" ] || fail "ids are used twice in the page: $repeated"
fi
refuses 2 'not finished' "$poise" report --output "$dir/r2" "a=$dir/sft"

# ---- inspect ----
has 'parameters in 92 tensors' "$poise" inspect "$dir/sft/model"
has 'f32 1598912' "$poise" inspect "$dir/sft/model"
if "$poise" inspect "$dir/sft/model" | grep -q lacking; then fail "a whole model is said to lack tensors"; fi
has '24 with a response' "$poise" inspect "$dir/sft.h5"
has '8, used 24 times' "$poise" inspect "$dir/test.h5"
has 'think .* "<think"' "$poise" inspect "$dir/sft.h5" --model $model --sample 0
# The weights of a segment add up to the segment's weight, 1 at SCALe's start.
"$poise" inspect "$dir/sft.h5" --model $model --sample 0 |
    awk '$3 == "think" || $3 == "answer" || $3 == "prompt" { sum[$3] += $4 }
         END { exit !(sum["prompt"] == 0 && sum["think"] > 0.999 && sum["think"] < 1.001 && sum["answer"] > 0.999 && sum["answer"] < 1.001) }' ||
    fail "the weights of a sample's tokens do not add up to 1 a segment"
has 'completed steps  *3' "$poise" inspect "$dir/sft/checkpoints/step-3.h5"
has '50 with 953472 elements' "$poise" inspect "$dir/sft/checkpoints/step-3.h5"
has '4 with 16 completions' "$poise" inspect "$dir/grpo/trajectories/step-1.h5"
has 'result  *done' "$poise" inspect "$dir/grpo"
has 'samples  *24' "$poise" inspect "$dir/sft_eval"
has 'LORA' "$poise" inspect tests/goldens/lora/attention
refuses 2 'none of what Poise reads or writes' "$poise" inspect tests
refuses 2 'no HDF5 file' "$poise" inspect CMakeLists.txt
refuses 2 'is for packed data' "$poise" inspect "$dir/sft/checkpoints/step-3.h5" --sample 0
refuses 2 'there is no number 99' "$poise" inspect "$dir/sft.h5" --model $model --sample 99
head -c 5000 "$dir/sft.h5" >"$dir/torn.h5"
refuses 2 'torn' "$poise" inspect "$dir/torn.h5"

# ---- doctor ----
has '^0 problems' "$poise" doctor
few_files() { (ulimit -n 128 && "$poise" doctor); }
refuses 1 "^problem  open files .*ulimit -n" few_files
[ $failures = 0 ] && echo "report, inspect and doctor work"
exit $((failures > 0))
