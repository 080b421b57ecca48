#!/usr/bin/env bash
# A run that was stopped or killed and started again, also with other ranks, ends in the same weights as one that was not; a torn
# checkpoint is passed over. (tests/stress/resume.sh kills at every kind of moment.)
. "$(dirname "$0")/../lib/jobs.sh"
make_data

# finished NAME WANTED_HASH STEPS
finished() {
    has_hash "$1"
    [ "$(steps_of "$1")" = "$3" ] || fail "$1 has $(steps_of "$1") lines of metrics, not $3" "$work/$1.log"
    same "weights ($1)" "$2" "$(hash_of "$1")"
}

echo "== SFT"
sft_settings
steps=optimizer.steps=10
must_job straight 1 sft $steps
wanted=$(hash_of straight)
must_job stopped 2 sft $steps optimizer.stop_after=4
[ "$(steps_of stopped)" = 4 ] || fail "stop_after=4 did $(steps_of stopped) steps"
must_job stopped 3 sft $steps
holds "$work/stopped.log" "going on after step 4"
finished stopped "$wanted" 10
killed_job 3 killed 2 sft $steps checkpoint.every=1
# The newest checkpoint is torn as well: the one before it serves.
newest=$(ls "$work/killed/checkpoints"/step-*.h5 | sort -V | tail -n 1)
truncate -s $(($(stat -c %s "$newest") / 2)) "$newest"
must_job killed 1 sft $steps checkpoint.every=1 recompute=block
holds "$work/killed.log" "passing over .*$(basename "$newest")"
finished killed "$wanted" 10
ls "$work/killed/checkpoints" | grep -qv '^step-[0-9]*\.h5$' && fail "files are left in the checkpoint folder: $(ls "$work/killed/checkpoints" | tr '\n' ' ')"
must_job lora 1 sft $steps lora.rank=4
must_job lora-stopped 2 sft $steps lora.rank=4 optimizer.stop_after=3
must_job lora-stopped 1 sft $steps lora.rank=4
finished lora-stopped "$(hash_of lora)" 10

make_start 24
for staleness in 0 1; do
    echo "== GRPO, staleness $staleness"
    grpo_settings
    settings+=(--set "grpo.staleness=$staleness" --set optimizer.steps=5)
    must_job grpo-$staleness 3 grpo
    some grpo-$staleness gradient_norm 'x > 0'
    wanted=$(hash_of grpo-$staleness)
    must_job grpo-stopped-$staleness 3 grpo optimizer.stop_after=2
    must_job grpo-stopped-$staleness 5 grpo roles.learners=2 roles.rollouts=2
    holds "$work/grpo-stopped-$staleness.log" "going on after step 2"
    finished grpo-stopped-$staleness "$wanted" 5
done
[ "$(hash_of grpo-0)" != "$(hash_of grpo-1)" ] || fail "staleness 0 and 1 end in the same weights"
