#!/usr/bin/env bash
# GRPO ends in the same weights in any layout of ranks, groups a launch, engine batches and cache pages (also when sequences must give way),
# and the sampler's log-probs are the learner's in every bit.
. "$(dirname "$0")/../lib/jobs.sh"
make_data
make_start 24
grpo_settings

wanted=""
# What the workers say they generated is what the step trained on, step by step.
counted() { # NAME
    same "tokens generated and trained on ($1)" "$(metric "$1" rollout/generated_tokens | tr '\n' ' ')" "$(metric "$1" tokens | tr '\n' ' ')"
}
compare() { # NAME RANKS [KEY=VALUE]...
    local name=$1 ranks=$2
    shift 2
    must_job "$name" "$ranks" grpo "$@"
    has_hash "$name"
    [ "$(steps_of "$name")" = 3 ] || fail "$name has $(steps_of "$name") lines of metrics"
    all "$name" logprob_max_abs_diff 'x == 0'
    some "$name" gradient_norm 'x > 0'
    some "$name" reward_std 'x > 0'
    some "$name" ratio/max_deviation 'x > 0' # the second update's ratios have moved
    counted "$name"
    [ -n "$wanted" ] || wanted=$(hash_of "$name")
    same "weights ($name: $*)" "$wanted" "$(hash_of "$name")"
}

compare one-one 3 roles.learners=1 roles.rollouts=1 grpo.launch_leaves=1
compare two-one 4 roles.learners=2 roles.rollouts=1 grpo.launch_leaves=4 rollout.batch_rows=48 rollout.prefill_chunk=7
compare one-three 5 roles.learners=1 roles.rollouts=3 rollout.credits=1 threads=2 recompute=block
compare two-two 5 roles.learners=2 roles.rollouts=2 rollout.batch_rows=5 rollout.prefill_chunk=64 grpo.launch_leaves=1
compare colocated 3 roles.colocated=true grpo.launch_leaves=3 recompute=cheap
# Too few pages for all that is admitted: sequences are put off and computed again.
compare few-pages 4 roles.learners=1 roles.rollouts=2 rollout.pages=${FEW_PAGES:-14}
some few-pages rollout/preemptions 'x > 0'
echo "preemptions: $(metric few-pages rollout/preemptions | tr '\n' ' ')"
all one-one rollout/preemptions 'x == 0'
must_job sparse 4 grpo roles.learners=1 roles.rollouts=2 metrics.every=2
[ "$(steps_of sparse)" = 2 ] || fail "sparse has $(steps_of sparse) lines of metrics"
counted sparse
# Under staleness the workers run ahead of the lines, and no token is lost or counted twice.
must_job stale 4 grpo roles.learners=1 roles.rollouts=2 grpo.staleness=1
sum() { metric stale "$1" | awk '{ s += $1 } END { print s }'; }
same "tokens generated and trained on under staleness" "$(sum rollout/generated_tokens)" "$(sum tokens)"
# The comparison can tell: another seed samples other completions.
must_job other-seed 3 grpo seed=6
[ "$(hash_of other-seed)" != "$wanted" ] || fail "another seed ends in the same weights"
echo "another seed: $(hash_of other-seed)"
# Adapters alone are trained, published and sampled with: the same holds.
full=$wanted
wanted=""
compare lora-one-one 3 roles.learners=1 roles.rollouts=1 lora.rank=2
compare lora-two-two 5 roles.learners=2 roles.rollouts=2 lora.rank=2 rollout.batch_rows=17 grpo.launch_leaves=1
[ "$wanted" != "$full" ] || fail "adapters end in the weights of full training"
