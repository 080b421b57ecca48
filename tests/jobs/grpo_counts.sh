#!/usr/bin/env bash
# What workers say they generated is what the learners trained on: with few cache pages, with lines of metrics that are left out, and under
# staleness. And a log-prob that a worker recorded is the learner's in every bit. (tests/stress/layouts.sh compares weights.)
. "$(dirname "$0")/../lib/jobs.sh"
small_model
make_data
make_start 200
grpo_settings
counted() { # NAME: step by step
    same "tokens generated and trained on ($1)" "$(metric "$1" rollout/generated_tokens | tr '\n' ' ')" "$(metric "$1" tokens | tr '\n' ' ')"
}
# Too few pages for all that is admitted: sequences are put off and computed again, and their tokens count once.
must_job few-pages 4 grpo roles.learners=1 roles.rollouts=2 rollout.pages=8
some few-pages rollout/preemptions 'x > 0'
all few-pages logprob_max_abs_diff 'x == 0'
echo "preemptions: $(metric few-pages rollout/preemptions | tr '\n' ' ')"
counted few-pages
must_job plenty 3 grpo roles.learners=1 roles.rollouts=1
all plenty rollout/preemptions 'x == 0'
counted plenty
must_job sparse 4 grpo roles.learners=1 roles.rollouts=2 metrics.every=2
[ "$(steps_of sparse)" = 2 ] || fail "sparse has $(steps_of sparse) lines of metrics"
counted sparse
# Under staleness the workers run ahead of the lines, and no token is lost or counted twice.
must_job stale 4 grpo roles.learners=1 roles.rollouts=2 grpo.staleness=1
sum() { metric stale "$1" | awk '{ s += $1 } END { print s }'; }
same "tokens generated and trained on under staleness" "$(sum rollout/generated_tokens)" "$(sum tokens)"
