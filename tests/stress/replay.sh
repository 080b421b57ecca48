#!/usr/bin/env bash
# What a replay must notice, and what NaN must not do. One bit of a run's files is changed: the replay names exactly that quantity. Broken
# weights, a diverging optimizer and a division of 0 by 0 make NaN in a step: it is named and saved, the run stops or leaves the step out, to
# the same bits in any layout and after a resume, and its replay shows where the NaN begins.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
poke=${POISE_BINARY_DIR:-$POISE_SOURCE_DIR/build/release}/tests/tool_poke
[ -x "$poke" ] || { echo "skipped: $poke is not built"; exit 77; }
make_data
make_start 24

# ---- one changed bit ----
grpo_settings
must_job logged 4 grpo roles.learners=2 roles.rollouts=1 metrics.trajectories=true checkpoint.every=1 checkpoint.keep=9 grpo.kl=0.02
logged=$work/logged
trajectory=$logged/trajectories/step-3.h5
replay() { "$POISE" replay "$logged" --step "$1" --json >"$work/report" 2>"$work/why" </dev/null; }
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},*\$/\1/p" "$work/report" | sed -n "${2:-1}p"; }
replay 3 || fail "the untouched run does not replay" "$work/why"
get() { "$poke" h5 "$trajectory" "$1" "${2:-0}" "${3:-get}"; }
tokens=$(get tokens 0 count)
tensors=$(get tensors/after 0 count)
completions=$(get completions/index 0 count)
names=$(get tensors/names 0 text)
# The completion (from 0) and the token inside it that hold token $1 of the file.
locate() {
    for ((at = 0; at < completions; at++)); do
        begin=$((16#$(get completions/token_start "$at")))
        [ $((16#$(get completions/token_start $((at + 1))))) -le "$1" ] || { place="$((at / 4)) $((16#$(get completions/index "$at"))) $(($1 - begin))"; return; }
    done
    fail "token $1 is in no completion"
}
differs() { # WHAT QUANTITY: the first difference of a replay of step 3
    local code=0
    replay 3 || code=$?
    [ "$code" = 1 ] || fail "$1: the replay ended with $code" "$work/why"
    [ "$(field quantity)" = "$2" ] || fail "$1: the first difference is $(field quantity), not $2" "$work/report"
    changed=$((changed + 1))
}
changed=0
tamper() { # KIND
    cp "$trajectory" "$work/kept.h5"
    case $1 in
    log-prob | token)
        random "$tokens"
        locate "$drawn"
        if [ "$1" = token ]; then
            "$poke" h5 "$trajectory" tokens "$drawn" xor 1
        else
            "$poke" h5 "$trajectory" logprobs "$drawn" xor 1
        fi
        differs "$1 $drawn" "sampler's log-prob"
        same "place of the changed $1" "$place" "$(($(field group) - 8)) $(field completion) $(field token)"
        ;;
    advantage)
        random "$completions"
        "$poke" h5 "$trajectory" exact/advantage "$drawn" set 3fd5555555555555
        differs "advantage $drawn" "policy loss"
        ;;
    hash | before)
        random "$tensors"
        if [ "$1" = hash ]; then place="weights after the step" set=tensors/after; else place="weights before the step" set=tensors/before; fi
        "$poke" h5 "$trajectory" $set "$drawn" xor 10
        differs "$1 $drawn" "$place"
        same "tensor of the changed $1" "$(sed -n "$((drawn + 1))p" <<<"$names")" "$(field tensor)"
        [ "$1" = before ] || same "elements unlike the checkpoint's" 0 "$(field elements)"
        ;;
    norm)
        "$poke" h5 "$trajectory" updates/gradient_norm 1 xor 1
        differs norm "gradient norm"
        same "update of the changed norm" 2 "$(field update)"
        ;;
    learner)
        random "$completions"
        "$poke" h5 "$trajectory" updates/logprob_hash $((completions + drawn)) xor 1
        differs "learner's log-probs $drawn" "learner's log-probs"
        same "completion of the changed hash" "$((drawn / 4)) $((16#$(get completions/index "$drawn")))" "$(($(field group) - 8)) $(field completion)"
        ;;
    checkpoint | start)
        random "$tensors"
        place=$(sed -n "$((drawn + 1))p" <<<"$names")
        if [ "$1" = start ]; then file=$logged/checkpoints/step-2.h5; else file=$logged/checkpoints/step-3.h5; fi
        cp "$file" "$work/kept-checkpoint.h5"
        "$poke" h5 "$file" "optimizer/master/$place" 3 xor 1
        if [ "$1" = start ]; then differs "$1 $place" "weights before the step"; else differs "$1 $place" "weights in the checkpoint"; fi
        same "tensor of the changed $1" "$place" "$(field tensor)"
        [ "$1" = start ] || same "elements unlike the checkpoint's" 1 "$(field elements)"
        cp "$work/kept-checkpoint.h5" "$file"
        ;;
    esac
    cp "$work/kept.h5" "$trajectory"
}
for ((round = 0; round < $(amount 1 25); round++)); do
    [ "$round" = 0 ] || time_left || break
    for kind in log-prob token advantage hash before norm learner checkpoint start; do tamper $kind; done
done
replay 3 || fail "the run that was put back does not replay" "$work/why"
stress_count "bits changed in a run's files, each named by the replay" "$changed"

# ---- NaN in SFT: pictures go through a broken weight, texts do not ----
{
    grep '"image' "$work/data/base.jsonl" | head -n 4
    grep -v '"image' "$work/data/base.jsonl" | head -n 20
} >"$work/data/mixed.jsonl"
"$POISE" pack --model "$model" --input "$work/data/mixed.jsonl" --output "$work/data/mixed.h5" >>"$work/data.log" 2>&1 || fail "pack failed" "$work/data.log"
cp -r "$work/start/model" "$work/broken"
"$poke" safetensors "$work/broken/model.safetensors" visual.blocks.0.attn.proj.weight 7 set 7f800000
sft_settings
settings+=(--set init_std=0 --set "model=$work/broken" --set "data.train=$work/data/mixed.h5" --set sft.batch=2 --set train.vision=false
    --set train.projector=false --set optimizer.steps=12)
skip="optimizer.nonfinite=skip optimizer.nonfinite_limit=9"
nans=0
# shellcheck disable=SC2086
must_job skipping 1 sft $skip
skipped=$(metric skipping skipped | grep -c '^1')
nans=$((nans + skipped))
[ "$skipped" -gt 0 ] && [ "$skipped" -lt 12 ] || fail "$skipped of 12 steps were skipped" "$work/skipping.log"
same "steps told of and counted" "$skipped" "$(grep -c 'is skipped: NaN or infinity in a log-prob: pack [0-9]*, sample ".*", token 0' "$work/skipping.log")"
# Stopped right after a skipped step, and gone on with by other ranks.
first=$(metric skipping skipped | grep -n '^1' | head -n 1 | cut -d: -f1)
# shellcheck disable=SC2086
must_job resumed 2 sft $skip optimizer.stop_after="$first"
# shellcheck disable=SC2086
must_job resumed 3 sft $skip
same "weights after skipped steps, by other ranks and resumed" "$(hash_of skipping)" "$(hash_of resumed)"
job stopping 2 sft && fail "a NaN did not stop the run"
holds "$work/stopping.log" "step $first: NaN or infinity in a log-prob: pack .*the run stops"
nans=$((nans + 1))
[ -e "$work/stopping/bad_steps/step-$first.h5" ] || fail "the inputs of step $first were not saved"
[ "$first" = 1 ] || [ -e "$work/stopping/checkpoints/step-$((first - 1)).h5" ] || fail "there is no checkpoint of the step before"
"$POISE" replay "$work/stopping" --bad-step "$first" >"$work/report" || fail "the bad step is another" "$work/report"
holds "$work/report" "tensor visual.blocks.0.attn.proj.weight holds 1 of .* first element 7: inf"
holds "$work/report" "first such value of an op: output of linear visual.blocks.0.attn.proj.weight"
# Told to skip, the same run goes on where it stopped.
# shellcheck disable=SC2086
must_job stopping 1 sft $skip
same "weights of the run that stopped and then skipped" "$(hash_of skipping)" "$(hash_of stopping)"
# Pictures only: the limit ends it.
head -n 4 "$work/data/mixed.jsonl" >"$work/data/pictures.jsonl"
"$POISE" pack --model "$model" --input "$work/data/pictures.jsonl" --output "$work/data/pictures.h5" >>"$work/data.log" 2>&1 || fail "pack failed"
job limited 2 sft optimizer.nonfinite=skip optimizer.nonfinite_limit=2 "data.train=$work/data/pictures.h5" && fail "the limit did not end the run"
holds "$work/limited.log" "step 3: .*2 steps in a row were skipped"
nans=$((nans + 3))

# ---- NaN in GRPO ----
grpo_settings
# A diverging optimizer, inside a step's updates, with groups on two learners.
job diverging 4 grpo roles.learners=2 roles.rollouts=1 optimizer.learning_rate=100 optimizer.weight_decay=10 grpo.updates=12 && fail "a NaN did not stop the run"
holds "$work/diverging.log" "step 1: NaN or infinity in .*group [0-9]+ .*learner [01]; the run stops"
"$POISE" replay "$work/diverging" --bad-step 1 --json >"$work/report" || fail "the bad step is another" "$work/report"
holds "$work/report" '"first_op": ".*group [0-9]'
nans=$((nans + 1))
# 0 / 0 in the update of adapters whose gradient is still 0: the weights stay.
job dividing 3 grpo lora.rank=2 optimizer.eps=0 && fail "a NaN did not stop the run"
holds "$work/dividing.log" "NaN or infinity in the weights after the update: tensor .*lora_A"
"$POISE" replay "$work/dividing" --bad-step 1 >"$work/report" || fail "the bad step is another" "$work/report"
must_job dividing-skips 3 grpo lora.rank=2 optimizer.eps=0 optimizer.nonfinite=skip metrics.trajectories=true
all dividing-skips skipped 'x == 1'
"$POISE" replay "$work/dividing-skips" --step 3 >"$work/report" || fail "skipped steps do not replay" "$work/report"
nans=$((nans + 4))
# The sampler never makes tokens of NaN.
job sampling 3 grpo "model=$work/broken" && fail "broken weights were sampled from"
holds "$work/sampling.log" "weights version 0.*not finite|weights \(version 0\) are damaged"
nans=$((nans + 1))
stress_count "steps with NaN or infinity, each named and left out or stopped at" "$nans"
