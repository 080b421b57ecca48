#!/usr/bin/env bash
# device: sim, whole: SFT and GRPO with the GPU's kernels, and host code over the runtime's stand-ins, beside the same runs on the CPU. At every
# step losses, gradient norms, entropies and rewards are the CPU's within a part of their size: 1e-4 in fp32, where some sums run in another
# order, 5e-3 in bf16, where the order moves roundings. To the bit: the sampler's log-probs are the learner's; one and two learners,
# forward and in reverse, end in the same weights. Nothing is left on the device, and misuse is an error.
. "$(dirname "$0")/../lib/jobs.sh"
"$POISE" doctor 2>/dev/null | grep -q 'device: sim runs' || { echo "skipped: $("$POISE" doctor 2>/dev/null | grep -m1 'simulator')"; exit 77; }
small_model
make_data
# close A B TOLERANCE KEY...: at every step, and not by being 0 everywhere
close() {
    local a=$1 b=$2 tolerance=$3 key worst
    shift 3
    for key in "$@"; do
        [ "$(metric "$a" "$key" | wc -l)" = "$(metric "$b" "$key" | wc -l)" ] || fail "$a and $b have $key at other steps"
        worst=$(paste <(metric "$a" "$key") <(metric "$b" "$key") | awk -v t="$tolerance" '
            { d = $1 - $2; s = $1; if (d < 0) d = -d; if (s < 0) s = -s; if (!(d <= t * s + 1e-6)) bad = 1; if (s > 0 && d / s > worst) worst = d / s }
            END { printf "%.1e%s", worst, bad || !NR ? " too far" : "" }')
        case $worst in *far) fail "$key of $a and $b part ($worst): $(paste <(metric "$a" "$key") <(metric "$b" "$key") | tr '\n\t' ' /')" ;; esac
        echo "close $key ($a, $b): within $worst of $tolerance: $(paste <(metric "$a" "$key") <(metric "$b" "$key") | tr '\n\t' ' /')"
    done
}
# both NAME RANKS COMMAND [KEY=VALUE]...: on the CPU as NAME, on the simulator as NAME-sim, with what it leaves there.
both() {
    local name=$1
    shift
    must_job "$name" "$@"
    must_job "$name-sim" "$@" device=sim
    grep '^sim: ' "$work/$name-sim.log" && fail "$name-sim left something on the device" "$work/$name-sim.log"
    echo "$name after $SECONDS s"
}

echo "== SFT"
sft_settings
settings+=(--set optimizer.steps=2 --set sft.batch=2)
both vanilla 1 sft sft.objective=vanilla
close vanilla vanilla-sim 1e-4 loss gradient_norm
both scale 1 sft sft.objective=scale sft.think_start=0.8
close scale scale-sim 1e-4 loss loss/think loss/answer weight/think gradient_norm
[ "$(metric vanilla loss)" != "$(metric scale loss)" ] || fail "vanilla SFT and SCALe have one loss"
must_job scale-two 2 sft sft.objective=scale sft.think_start=0.8 device=sim:reverse
same "weights (two learners, threads in reverse)" "$(hash_of scale-sim)" "$(hash_of scale-two)"
"$POISE" sft "${settings[@]}" --set device=sim --set "output=$work/dry" --dry-run >"$work/dry.log" 2>&1 || fail "the dry run failed" "$work/dry.log"
holds "$work/dry.log" '^kernels +sim'

echo "== SFT in bf16, with adapters"
settings+=(--set precision=bf16 --set lora.rank=4)
both lora 1 sft
close lora lora-sim 5e-3 loss gradient_norm
POISE_CUBLAS=good must_job lora-cublas 2 sft device=sim
holds "$work/lora-cublas.log" 'cuBLASLt 130002'
close lora lora-cublas 5e-3 loss gradient_norm

echo "== GRPO"
make_start 100
# Frequent tokens end a completion, so that lengths and their rewards differ inside a group.
sed -i 's/"eos_token_id": .*/"eos_token_id": [1282, 1280, 13, 11, 25, 259, 272, 266],/' "$work/start/model/generation_config.json"
grpo_settings
settings+=(--set optimizer.steps=2 --set grpo.prompts=2 --set grpo.completions=4 --set grpo.updates=1 --set grpo.max_new_tokens=8
    --set grpo.reward_length=1 --set optimizer.learning_rate=3e-4)
both grpo 3 grpo
all grpo-sim logprob_max_abs_diff 'x == 0'
some grpo-sim gradient_norm 'x > 0'
close grpo grpo-sim 1e-4 loss gradient_norm entropy reward tokens
# In bf16 roundings of the two devices differ now and then, which moves a draw among near tokens: completions are not compared.
POISE_CUBLAS=good must_job bf16 4 grpo device=sim roles.learners=2 precision=bf16 lora.rank=4
holds "$work/bf16.log" 'cuBLASLt 130002'
all bf16 logprob_max_abs_diff 'x == 0'
some bf16 gradient_norm 'x > 0'
echo "GRPO in bf16: gradient norms $(metric bf16 gradient_norm | tr '\n' ' '), log-prob differences $(metric bf16 logprob_max_abs_diff | tr '\n' ' ')"

echo "== misuse"
unit_sim=${POISE_BINARY_DIR:-$POISE_SOURCE_DIR/build/release}/tests/unit_sim
[ -x "$unit_sim" ] || { echo "not here: $unit_sim is not built; it shows that misuse is an error"; exit 0; }
"$unit_sim" runtime >"$work/misuse.log" 2>&1 || fail "misuse of the device passes" "$work/misuse.log"
for said in 'of host memory' 'of a freed allocation'; do holds "$work/misuse.log" "$said"; done
echo "all of it after $SECONDS s"
