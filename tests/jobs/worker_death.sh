#!/usr/bin/env bash
# A rollout rank that is killed, or stands still past its heartbeat, while it holds open groups costs the run nothing but time: the others
# take its groups over and the weights come out the same. mpirun --enable-recovery lets the job outlive a rank; it may itself not return, so
# the result is judged by the files that the run leaves.
. "$(dirname "$0")/../lib/jobs.sh"
make_data
make_start 24
grpo_settings
settings+=(--set roles.learners=1 --set roles.rollouts=2 --set optimizer.steps=8 --set grpo.max_new_tokens=48 --set deadline.heartbeat_s=2)

start_recovering() { # NAME
    timeout -k 5 "$limit" mpirun --enable-recovery -n 4 "$POISE" grpo "${settings[@]}" --set "output=$work/$1" \
        >>"$work/$1.log" 2>&1 </dev/null &
    background=$!
}
has_result() { [ -s "$work/$1/result.json" ]; }
names_rank() { grep -q "rollout rank 2 is gone" "$work/$1.log"; }

# disturb NAME SIGNAL: the signal goes to rollout rank 2 after the second step.
disturb() {
    local name=$1 signal=$2 victim
    start_recovering "$name"
    within "$limit" has_steps "$name" 1 || fail "$name did not get to step 1" "$work/$name.log"
    victim=$(process_of_rank 2)
    within "$limit" has_steps "$name" 2 || fail "$name did not get to step 2" "$work/$name.log"
    [ -n "$victim" ] || fail "$name: no process has rank 2" "$work/$name.log"
    kill "-$signal" "$victim"
    echo "sent $signal to rank 2 (process $victim) after step $(steps_of "$name")"
    within "$limit" has_result "$name" || fail "$name left no result after $signal" "$work/$name.log"
    kill -KILL "$victim" 2>/dev/null
    holds "$work/$name/result.json" '"exit": *0'
    kill_all # what mpirun does not end by itself
    { wait "$background"; } 2>/dev/null
    [ "$(steps_of "$name")" = 8 ] || fail "$name did $(steps_of "$name") steps" "$work/$name.log"
    holds "$work/$name.log" "rollout rank 2 is gone"
    has_hash "$name"
    all "$name" logprob_max_abs_diff 'x == 0'
    same "weights ($name)" "$wanted" "$(hash_of "$name")"
}

start_recovering undisturbed
within "$limit" has_result undisturbed || fail "the undisturbed run left no result" "$work/undisturbed.log"
wait "$background"
has_hash undisturbed
grep -q "is gone" "$work/undisturbed.log" && fail "a rank went away undisturbed" "$work/undisturbed.log"
some undisturbed gradient_norm 'x > 0'
wanted=$(hash_of undisturbed)
echo "undisturbed: $wanted"
disturb killed KILL
disturb stalled STOP
