#!/usr/bin/env bash
# A logged GRPO step is done again from its trajectories, to equal bits: by another number of processes and threads, with several updates a
# batch, KL, LoRA and staleness, from a checkpoint or from the start; and what cannot be replayed is said.
. "$(dirname "$0")/../lib/jobs.sh"
make_data
make_start 24
grpo_settings

replay() { # NAME STEP [ARGUMENT]...: the exit code; the report is in $work/report
    local name=$1 step=$2
    shift 2
    timeout "$limit" "$POISE" replay "$work/$name" --step "$step" "$@" >"$work/report" 2>&1 </dev/null
}
agrees() { # NAME STEP FROM [ARGUMENT]...
    local name=$1 step=$2 from=$3
    shift 3
    replay "$name" "$step" "$@" || fail "replay of $name, step $step, ended with $?" "$work/report"
    holds "$work/report" "step $step: repeated .* from $from"
    holds "$work/report" "^bits agree"
}
refused() { # NAME STEP PATTERN [ARGUMENT]...
    local name=$1 step=$2 pattern=$3 code=0
    shift 3
    replay "$name" "$step" "$@" || code=$?
    [ "$code" = 2 ] || fail "replay of $name, step $step, ended with $code, not 2" "$work/report"
    holds "$work/report" "$pattern"
}

settings+=(--set metrics.trajectories=true --set grpo.kl=0.02)
steps="optimizer.steps=5 checkpoint.every=2"
# shellcheck disable=SC2086
must_job logged 4 grpo $steps roles.learners=2 roles.rollouts=1 optimizer.stop_after=3
# The rest by other ranks: checkpoints of steps 2 and 3 are replaced by those of 4 and 5.
# shellcheck disable=SC2086
must_job logged 3 grpo $steps
all logged logprob_max_abs_diff 'x == 0'
some logged ratio/max_deviation 'x > 0'
start="the run's starting weights"
agrees logged 1 "$start"
agrees logged 4 "$start" --set threads=2 --set grpo.launch_leaves=1 --set recompute=block
agrees logged 5 "the checkpoint of step 4"
holds "$work/report" "and the step's checkpoint"
agrees logged 5 "the checkpoint of step 4" --set device=cpu:portable
mpirun -n 2 "$POISE" replay "$work/logged" --step 5 >"$work/report" 2>&1 || fail "replay by two processes ended with $?" "$work/report"
holds "$work/report" "^bits agree"
cp "$work/logged/checkpoints/step-5.h5" "$work/kept.h5"
truncate -s 4000 "$work/logged/checkpoints/step-5.h5"
replay logged 5 && fail "bits agree with a checkpoint that cannot be read" "$work/report"
holds "$work/report" "^poise: the checkpoint of step 5 cannot be compared; move it away to do without: .*step-5.h5"
mv "$work/kept.h5" "$work/logged/checkpoints/step-5.h5"
replay logged 5 --json || fail "replay with --json ended with $?" "$work/report"
holds "$work/report" '"agrees": true'
# Keeping trajectories changes no weights.
# shellcheck disable=SC2086
must_job silent 3 grpo $steps metrics.trajectories=false
same "weights with and without trajectories" "$(hash_of logged)" "$(hash_of silent)"

must_job stale 4 grpo grpo.staleness=2 lora.rank=2 grpo.kl=0 roles.learners=1 roles.rollouts=2 optimizer.steps=5 checkpoint.every=3
some stale logprob_max_abs_diff 'x > 0' # sampled from older weights
agrees stale 5 "the checkpoint of step 3"
agrees stale 3 "$start"

refused silent 3 "holds no trajectories.*metrics.trajectories: true"
refused logged 9 "step 9 is not among the trajectories .* can be replayed: 1 to 5"
refused logged 5 "another configuration" --set optimizer.learning_rate=1e-3
refused logged 0 "step"
refused nowhere 1 "there is no run folder"
refused logged 5 "--step N or --bad-step N" --bad-step 3
rm "$work/logged/trajectories/step-2.h5"
refused logged 3 "step 3 .* cannot be reached.* can be replayed: 1, 5"
agrees logged 5 "the checkpoint of step 4"
rm "$work/logged/checkpoints/step-4.h5"
refused logged 5 "can be replayed: 1$"
