#!/usr/bin/env bash
# One SHA-256 of the trained weights for any layout: learners, rollout ranks, micro-batches, threads, recompute levels, kernel sets, engine
# batches, prefill chunks, cache pages and credits; with batches that do not divide by the ranks and with gradients and ratios clipped; SFT
# and GRPO, full and LoRA. Short: rows that hold every pair of settings. Full: every combination of the settings that the contract names.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
. "$(dirname "$0")/../lib/pairs.sh"
. "$(dirname "$0")/../lib/results.sh"
small_model
make_data
form=$(amount short full)
# The kernel sets; portable C takes ten times as long, so the short form has one row of it a mode.
devices=cpu
grep -qw avx512f /proc/cpuinfo && devices=cpu,cpu:avx2
[ "$form" = short ] || devices=$devices,cpu:portable

# rows FILE FACTOR...: the combinations of this form. Short: rows that hold all pairs, and the check that says so is seen to miss the last row.
rows() {
    local file=$1
    shift
    # The full form begins with rows that hold all pairs, then the rest in an order of the seed's: time may be short.
    pairs "$@" >"$file"
    if [ "$form" = full ]; then product "$@" | grep -vxFf "$file" | shuf --random-source=<(yes "$stress_seed") >>"$file"; fi
    [ -z "$(pairs_missing "$file" "$@")" ] || fail "$file lacks pairs: $(pairs_missing "$file" "$@" | tr '\n' ' ')"
    sed '$d' "$file" >"$file.cut"
    [ "$form" = full ] || [ -n "$(pairs_missing "$file.cut" "$@")" ] || fail "the check of pairs does not miss a row"
    echo "$(basename "$file"): $(wc -l <"$file") rows hold every pair of: $*"
}
setting() { # ROW FACTOR
    sed -n "s/.*\b$2=\([^ ]*\).*/\1/p" <<<"$1"
}
declare -A wanted
# compare KIND NAME STEPS: the first run of a kind sets what all leave behind.
compare() {
    local got
    has_hash "$2"
    [ "$(steps_of "$2")" = "$3" ] || fail "$2 has $(steps_of "$2") lines of metrics, not $3"
    got=$(results_of "$2" "$3") || { echo "$got"; exit 1; }
    [ -n "${wanted[$1]:-}" ] || wanted[$1]=$got
    if [ "${wanted[$1]}" != "$got" ]; then
        echo "the first run left: ${wanted[$1]}"
        echo "this one left: $got"
        fail "$1: $2 differs" "$work/$2.log"
    fi
    echo "same: $1: $2"
    compared=$((compared + 1))
    rm -rf "${work:?}/$2"
}
compared=0

# ---- SFT ----
sft_settings
settings+=(--set sft.batch=9 --set sft.pack_tokens=224 --set save_model=true)
sft_run() { # KIND ROW STEPS
    local row=$2 name train lora=()
    train=$(setting "$row" train)
    name=sft-$(echo "$row" | sed 's/[a-z]*=//g; s/[ :]/-/g')-$3
    [ "$train" = full ] || lora=(lora.rank=4 optimizer.learning_rate=1e-2 optimizer.clip_norm=1e-3)
    must_job "$name" "$(setting "$row" learners)" sft "sft.launch_leaves=$(setting "$row" leaves)" "threads=$(setting "$row" threads)" \
        "recompute=$(setting "$row" recompute)" "device=$(setting "$row" device)" "optimizer.steps=$3" ${lora[@]+"${lora[@]}"}
    if [ "$train" = full ]; then all "$name" gradient_norm 'x > 0.25'; else all "$name" gradient_norm 'x > 1e-3'; fi
    for learners in 2 3 4; do some "$name" packs "x % $learners"; done
    compare "$1" "$name" "$3"
}
# Whatever the time, each command has runs of both kinds to compare; SFT leaves half of the time to GRPO.
lacks() { [ -z "${wanted[$1 full]:-}" ] || [ -z "${wanted[$1 lora]:-}" ]; }
half_left() { [ "${POISE_STRESS_SECONDS:-0}" = 0 ] || [ $((2 * (SECONDS - stress_begun))) -lt "$POISE_STRESS_SECONDS" ]; }
factors="learners=1,2,3,4 leaves=1,2 threads=1,2 recompute=none,cheap,block train=full,lora"
[ "$form" = full ] || factors="$factors device=$devices"
# shellcheck disable=SC2086
rows "$work/sft.rows" $factors
number=0
while read -r row <&3 && { lacks sft || half_left; }; do
    # The full form goes through the kernel sets in turn.
    [ "$form" = short ] || row="$row device=$(echo "$devices" | tr , '\n' | sed -n "$((number % $(echo "$devices" | tr , '\n' | wc -l) + 1))p")"
    sft_run "sft $(setting "$row" train)" "$row" 20
    number=$((number + 1))
done 3<"$work/sft.rows"
[ "$form" = full ] || sft_run "sft full" "learners=2 leaves=2 threads=1 recompute=cheap train=full device=cpu:portable" 20
stress_count "SFT layouts of 20 steps compared" "$compared"
[ "${wanted[sft full]:-1}" != "${wanted[sft lora]:-2}" ] || fail "full and LoRA training leave the same"
# The comparison can tell: with another seed nothing is equal.
must_job other-seed 1 sft seed=6 optimizer.steps=20
[ "$(results_of other-seed 20 | cut -d ' ' -f 2)" != "$(echo "${wanted[sft full]}" | cut -d ' ' -f 2)" ] || fail "another seed, the same weights"

# ---- GRPO: two updates a batch, the second with ratios that clip ----
make_start 200
grpo_settings
settings+=(--set grpo.prompts=5 --set grpo.max_new_tokens=20 --set grpo.clip_low=0.1 --set grpo.clip_high=0.1 --set optimizer.clip_norm=0.2
    --set metrics.trajectories=true --set save_model=true)
spread_tokens() { # NAME: what workers generated is what was trained on
    same "tokens generated and trained on ($1)" "$(metric "$1" rollout/generated_tokens | tr '\n' ' ' | sha256sum)" \
        "$(metric "$1" tokens | tr '\n' ' ' | sha256sum)" >/dev/null
}
preempted=0
grpo_run() { # KIND ROW STEPS
    local row=$2 name train learners rollouts ranks lora=() roles
    train=$(setting "$row" train)
    learners=$(setting "$row" learners)
    rollouts=$(setting "$row" rollouts)
    roles=(roles.learners="$learners")
    if [ "$rollouts" = colocated ]; then
        ranks=$((learners + 1)) roles+=(roles.colocated=true)
    else
        ranks=$((learners + rollouts + 1)) roles+=(roles.rollouts="$rollouts")
    fi
    name=grpo-$(echo "$row" | sed 's/[a-z]*=//g; s/[ :]/-/g')-$3
    [ "$train" = full ] || lora=(lora.rank=2 optimizer.learning_rate=3e-3)
    must_job "$name" "$ranks" grpo "${roles[@]}" "grpo.launch_leaves=$(setting "$row" leaves)" "threads=$(setting "$row" threads)" \
        "recompute=$(setting "$row" recompute)" "device=$(setting "$row" device)" "rollout.pages=$(setting "$row" pages)" \
        "rollout.batch_rows=$(setting "$row" rows)" "rollout.prefill_chunk=$(setting "$row" chunk)" \
        "rollout.credits=$(setting "$row" credits)" "optimizer.steps=$3" ${lora[@]+"${lora[@]}"}
    all "$name" logprob_max_abs_diff 'x == 0'
    some "$name" gradient_norm 'x > 0.2'
    some "$name" clip/low 'x > 0'
    some "$name" clip/high 'x > 0'
    some "$name" reward_std 'x > 0'
    spread_tokens "$name"
    preempted=$((preempted + $(metric "$name" rollout/preemptions | awk '{ s += $1 } END { print int(s) }')))
    compare "$1" "$name" "$3"
}
compared=0
number=0
if [ "$form" = full ]; then
    rows "$work/grpo.rows" learners=1,2,3,4 rollouts=1,3,colocated leaves=1,3 threads=1,2 recompute=none,cheap,block train=full,lora
else
    rows "$work/grpo.rows" learners=1,2,3,4 rollouts=1,3,colocated leaves=1,3 threads=1,2 recompute=none,cheap,block train=full,lora \
        "device=$devices" pages=4096,8 rows=256,5 chunk=256,7 credits=16,1
fi
# What the contract does not multiply out is taken from the covering array, in turn.
pairs "device=$devices" pages=4096,8 rows=256,5 chunk=256,7 credits=16,1 >"$work/engine.rows"
steps=20
while read -r row <&3 && { lacks grpo || [ "$preempted" = 0 ] || time_left; }; do
    [ "$form" = short ] || row="$row $(sed -n "$((number % $(wc -l <"$work/engine.rows") + 1))p" "$work/engine.rows")"
    grpo_run "grpo $(setting "$row" train)" "$row" "$steps"
    number=$((number + 1))
done 3<"$work/grpo.rows"
[ "$form" = full ] || grpo_run "grpo full" \
    "learners=2 rollouts=1 leaves=3 threads=1 recompute=cheap train=full device=cpu:portable pages=8 rows=48 chunk=7 credits=1" $steps
stress_count "GRPO layouts of $steps steps and two updates compared" "$compared"
[ "$preempted" -gt 0 ] || fail "no sequence had to give way in any layout"
stress_count "sequences that gave way" "$preempted"
[ "${wanted[grpo full]}" != "${wanted[grpo lora]:-}" ] || fail "full and LoRA training leave the same"
must_job other-seed-grpo 3 grpo seed=6 roles.learners=1 roles.rollouts=1 "optimizer.steps=$steps"
other=$(results_of other-seed-grpo "$steps")
for field in 2 4; do
    [ "$(echo "$other" | head -n 1 | cut -d ' ' -f $field)" != "$(echo "${wanted[grpo full]}" | head -n 1 | cut -d ' ' -f $field)" ] ||
        fail "another seed leaves the same"
done
echo "layouts: $SECONDS s"
