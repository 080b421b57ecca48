#!/usr/bin/env bash
# Stopping: USR1 and Ctrl-C end a run at the next step with a checkpoint and code 0, and it goes on to the same weights; a second Ctrl-C ends
# it at once; the death of a learner ends it with an error, soon, and nothing stays behind.
. "$(dirname "$0")/../lib/jobs.sh"
make_data
make_start 24

# As from a terminal: a process group of its own, whose members all hear Ctrl-C.
start_foreground() { # NAME RANKS COMMAND [KEY=VALUE]...
    local name=$1 ranks=$2 command=$3 more=() word
    shift 3
    for word in "$@"; do more+=(--set "$word"); done
    set -m
    "$launch" -n "$ranks" "$command" "${settings[@]}" --set "output=$work/$name" ${more[@]+"${more[@]}"} >>"$work/$name.log" 2>&1 </dev/null &
    background=$!
    set +m
}
gone() { ! kill -0 "$background" 2>/dev/null; }
nothing_left() { [ -z "$(processes "poise mpirun")" ]; }
ended() { # NAME SECONDS: sets code
    within "$2" gone || fail "$1 did not end within $2 s" "$work/$1.log"
    { wait "$background"; code=$?; } 2>/dev/null
    within 10 nothing_left || fail "$1 left processes: $(processes "poise mpirun")" "$work/$1.log"
}

# stops NAME HOW RANKS COMMAND STEPS [KEY=VALUE]...: asked to stop after the second step, then started again; $wanted is the hash to reach.
stops() {
    local name=$1 how=$2 ranks=$3 command=$4 steps=$5 done_steps
    shift 5
    start_foreground "$name" "$ranks" "$command" "$@"
    within "$limit" has_steps "$name" 2 || fail "$name did not get to step 2" "$work/$name.log"
    if [ "$how" = USR1 ]; then kill -USR1 "$background"; else kill -INT -- "-$background"; fi
    ended "$name" "$limit"
    [ "$code" = 0 ] || fail "$name ended with $code after $how" "$work/$name.log"
    done_steps=$(steps_of "$name")
    [ "$done_steps" -lt "$steps" ] || fail "$name did all its steps in spite of $how"
    [ -s "$work/$name/checkpoints/step-$done_steps.h5" ] || fail "$name left no checkpoint of step $done_steps" "$work/$name.log"
    holds "$work/$name.log" "stopped after step $done_steps of $steps"
    holds "$work/$name/result.json" '"state": *"stopped"'
    must_job "$name" "$ranks" "$command" "$@"
    holds "$work/$name.log" "going on after step $done_steps"
    holds "$work/$name/result.json" '"state": *"done"'
    [ "$(steps_of "$name")" = "$steps" ] || fail "$name has $(steps_of "$name") lines of metrics"
    same "weights ($name)" "$wanted" "$(hash_of "$name")"
}

echo "== SFT"
sft_settings
settings+=(--set optimizer.steps=40)
must_job sft 2 sft
wanted=$(hash_of sft)
stops sft-usr1 USR1 2 sft 40
stops sft-int INT 2 sft 40
echo "== GRPO"
grpo_settings
settings+=(--set optimizer.steps=10)
must_job grpo 4 grpo roles.learners=2
wanted=$(hash_of grpo)
stops grpo-usr1 USR1 4 grpo 10 roles.learners=2
stops grpo-int INT 3 grpo 10
stops grpo-colocated INT 3 grpo 10 roles.colocated=true

echo "== ended at once"
settings+=(--set optimizer.steps=1000)
start_foreground twice 3 grpo
within "$limit" has_steps twice 2 || fail "twice did not get to step 2" "$work/twice.log"
victim=$(process_of_rank 1)
kill -STOP "$victim" # so that the step cannot end
sleep 0.3
kill -INT -- "-$background"
sleep 1
gone && fail "twice ended at the first INT, with a rank standing still" "$work/twice.log"
kill -INT -- "-$background"
ended twice 60
[ "$code" = 130 ] || fail "twice ended with $code" "$work/twice.log"
echo "two INTs: $code"

# dies NAME WORLD_RANK RANKS COMMAND [KEY=VALUE]...: SIGKILL to one rank.
dies() {
    local name=$1 rank=$2 victim
    start_foreground "$name" "${@:3}"
    within "$limit" has_steps "$name" 2 || fail "$name did not get to step 2" "$work/$name.log"
    victim=$(process_of_rank "$rank")
    [ -n "$victim" ] || fail "$name: no process has rank $rank"
    kill -KILL "$victim"
    ended "$name" 60
    [ "$code" != 0 ] || fail "$name lost rank $rank and yet ended with 0" "$work/$name.log"
    echo "$name: rank $rank was killed, code $code, nothing left"
}
sft_settings
settings+=(--set optimizer.steps=100000)
dies sft-learner-dies 1 2 sft
grpo_settings
settings+=(--set optimizer.steps=1000)
dies grpo-learner-dies 0 4 grpo roles.learners=2
dies grpo-reward-dies 3 4 grpo roles.learners=2
