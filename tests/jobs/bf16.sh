#!/usr/bin/env bash
# precision: bf16 keeps the contract of fp32: one set of weights whatever the layout of ranks, after a stop, and with any recompute level; the
# sampler's log-probs are the learner's in every bit. What is saved is bf16 and says so.
. "$(dirname "$0")/../lib/jobs.sh"
small_model
make_data
made() { # NAME WANTED
    has_hash "$1"
    same "weights ($1)" "$2" "$(hash_of "$1")"
}

echo "== SFT"
sft_settings
must_job sft-fp32 1 sft
settings+=(--set precision=bf16)
must_job sft 1 sft save_model=true
wanted=$(hash_of sft)
[ "$wanted" != "$(hash_of sft-fp32)" ] || fail "bf16 and fp32 end in the same weights"
must_job sft-three 3 sft threads=2 recompute=cheap sft.launch_leaves=1
made sft-three "$wanted"
must_job sft-stopped 2 sft optimizer.stop_after=3 recompute=block
must_job sft-stopped 1 sft
made sft-stopped "$wanted"
job sft-stopped 1 sft precision=fp32 optimizer.steps=8 && fail "a bf16 run was resumed in fp32"
holds "$work/sft-stopped.log" "configuration"
# The loss falls as in fp32.
loss() { metric "$1" loss | awk '{ l[NR] = $1 } END { print l[1], l[NR] }'; }
echo "loss, first and last step: fp32 $(loss sft-fp32), bf16 $(loss sft)"
paste <(metric sft-fp32 loss) <(metric sft loss) | awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > 0.02 * $1) bad = 1 } END { exit bad || !NR }' ||
    fail "the losses of bf16 and fp32 part: $(paste <(metric sft-fp32 loss) <(metric sft loss) | tr '\n\t' ' /')"
sizes() { "$POISE" inspect "$work/$1/model" | grep -Ei 'bf16|f32'; }
sizes sft | grep -qi bf16 || fail "the saved model is not bf16: $(sizes sft)"
holds "$work/sft/model/config.json" '"bfloat16"'

echo "== tools"
lines() { "$POISE" "$@" --model "$work/sft/model" 2>>"$work/tools.log" || fail "poise $1 failed" "$work/tools.log"; }
echo '{"id": 1, "prompt_ids": [5, 300, 17, 42, 99, 260]}' >"$work/prompt.jsonl"
lines generate --dtype bf16 --temperature 1 --seed 3 --max-tokens 24 --input "$work/prompt.jsonl" --output "$work/drawn.jsonl"
array() { sed "s/.*\"$1\": *\(\[[^]]*\]\).*/\1/" "$2"; }
echo "{\"id\": 1, \"prompt_ids\": [5, 300, 17, 42, 99, 260], \"completion_ids\": $(array tokens "$work/drawn.jsonl")}" >"$work/drawn.in"
for dtype in bf16 fp32; do lines score --dtype $dtype --threads 2 --input "$work/drawn.in" --output "$work/$dtype.jsonl"; done
same "log-probs drawn and scored in bf16" "$(array logprobs "$work/drawn.jsonl")" "$(array logprobs "$work/bf16.jsonl")"
[ "$(array logprobs "$work/bf16.jsonl")" != "$(array logprobs "$work/fp32.jsonl")" ] || fail "bf16 and fp32 score alike"
"$POISE" score --dtype fp16 --model "$work/sft/model" --input "$work/drawn.in" --output "$work/none.jsonl" 2>"$work/refused.log"
[ $? = 2 ] || fail "--dtype fp16 is not refused with 2" "$work/refused.log"
holds "$work/refused.log" "fp32 or bf16"

echo "== evaluation"
settings=(--set "model=$work/sft/model" --set "data.test=$work/data/test.h5" --set precision=bf16 --set eval.max_new_tokens=12)
must_job eval 2 eval
[ -s "$work/eval/summary.json" ] || fail "the evaluation in bf16 has no summary" "$work/eval.log"
sft_settings
settings+=(--set precision=bf16)

echo "== adapters"
must_job lora 1 sft lora.rank=4
must_job lora-three 3 sft lora.rank=4 recompute=block
made lora-three "$(hash_of lora)"

must_job start 1 sft save_model=true optimizer.steps=200 optimizer.clip_norm=1 optimizer.schedule=constant
for staleness in 0 1; do
    echo "== GRPO, staleness $staleness"
    grpo_settings
    settings+=(--set precision=bf16 --set "grpo.staleness=$staleness")
    must_job grpo-$staleness 3 grpo
    [ $staleness = 1 ] || all grpo-$staleness logprob_max_abs_diff 'x == 0'
    some grpo-$staleness gradient_norm 'x > 0'
    wanted=$(hash_of grpo-$staleness)
    must_job grpo-five-$staleness 6 grpo roles.learners=3 roles.rollouts=2 rollout.pages=8
    made grpo-five-$staleness "$wanted"
    must_job grpo-stopped-$staleness 3 grpo optimizer.stop_after=1
    must_job grpo-stopped-$staleness 5 grpo roles.learners=2 roles.rollouts=2
    made grpo-stopped-$staleness "$wanted"
done
