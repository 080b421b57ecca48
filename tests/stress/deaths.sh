#!/usr/bin/env bash
# A learner, a rank of an evaluation or the reward rank is killed, crashes, stands still or hangs, at any point from start-up to the last
# step: the job ends within its deadlines, by itself or by its launcher; one sentence says who and where; nothing is left behind; and the same
# command goes on to the bits of a run that nothing happened to.
. "$(dirname "$0")/../lib/jobs.sh"
. "$POISE_SOURCE_DIR/tests/lib/leftovers.sh"
. "$POISE_SOURCE_DIR/tests/lib/stress.sh"
faulty=${POISE_FAULTS:-$(dirname "$POISE")/tests/poise_faults}
[ -x "$faulty" ] || { echo "skipped: $faulty is not built"; exit 77; }
export POISE=$faulty
make_data
make_start 6
at_once=${POISE_DEATHS_AT_ONCE:-4}

# Short, so that hangs are found soon, and long enough for a busy machine. What the manual promises is the longest of them plus 40 s from the
# fault on; the rest is for reaching it.
start_s=30 heartbeat_s=5 collective_s=20 step_s=30
promised=$((start_s + 40)) bound=$((start_s + 40 + 120))
deadlines=(deadline.start_s=$start_s deadline.heartbeat_s=$heartbeat_s deadline.collective_s=$collective_s deadline.step_s=$step_s)
case_settings() { # COMMAND: sets settings, ranks
    ranks=4
    case $1 in
    sft) sft_settings; settings+=(--set optimizer.steps=5 --set checkpoint.every=2) ;;
    grpo) grpo_settings; settings+=(--set roles.learners=2 --set checkpoint.every=1) ;;
    eval)
        settings=(--set "model=$work/start/model" --set "data.test=$work/data/test.h5" --set eval.max_new_tokens=24 --set seed=5)
        ;;
    esac
    for word in "${deadlines[@]}"; do settings+=(--set "$word"); done
}

# How often each rank comes to each kind of call, in a run that nothing happens to; and what that run ends in.
declare -A wanted
outcome() { # NAME COMMAND: what must be equal
    case $2 in eval) sort "$work/$1/samples.jsonl" | sed 's/"seconds":[^,}]*//' | sha256sum | cut -c1-16 ;; *) hash_of "$1" ;; esac
}
for command in sft grpo eval; do
    case_settings $command
    POISE_FAULT_COUNTS=$work/counts-$command must_job "plain-$command" $ranks $command
    wanted[$command]=$(outcome "plain-$command" $command)
    [ "$(printf %s "${wanted[$command]}" | wc -c)" -ge 16 ] || fail "the plain $command run has no outcome"
    echo "plain $command: ${wanted[$command]}"
done
# place COMMAND RANK WHERE LUCK: sets `point`, CLASS:N.
place() {
    local class share
    case $3 in
    start) point=collective:1; return ;; # before the ranks know of each other
    join) point=collective:5; return ;;
    middle) class=collective share=50 ;;
    last) class=collective share=93 ;;
    checkpoint) class=write share=$((40 + $4 % 40)) ;;
    fsync) class=fsync share=60 ;;
    send) class=send share=$((30 + $4 % 50)) ;;
    esac
    local count
    count=$(sed -n "s/^$class //p" "$work/counts-$1.$2")
    [ "${count:-0}" -gt 0 ] || fail "rank $2 of $1 never comes to $class"
    point=$class:$((count * share / 100 > 0 ? count * share / 100 : 1))
}

settled() { # CASE VICTIM: for a bare mpirun that lets deaths be: every rank but the victim has ended
    ! case_ranks "$1" | grep -qv "^$2 "
}
launcher_gone() { ! kill -0 "$child" 2>/dev/null; }

# one_case NAME LAUNCHER COMMAND RANK WHERE ACTION LUCK: in a subshell of its own, where RANDOM would not follow the seed.
one_case() {
    local name=$1 launcher=$2 command=$3 rank=$4 where=$5 action=$6 log=$work/$1.log took words hit=""
    case_settings "$command"
    place "$command" "$rank" "$where" "$7"
    mkdir -p "$work/tmp/$name"
    words=("$command" "${settings[@]}" --set "output=$work/$name")
    echo "$launcher, $command: rank $rank, $action at $where ($point)" >"$log"
    export POISE_CASE=$name TMPDIR=$work/tmp/$name
    local begun=$SECONDS
    code=1
    case $launcher in
    run) POISE_FAULT=$point:$action@$rank "$launch" -n $ranks "${words[@]}" >>"$log" 2>&1 </dev/null & ;;
    mpirun) POISE_FAULT=$point:$action@$rank mpirun -n $ranks "$POISE" "${words[@]}" >>"$log" 2>&1 </dev/null & ;;
    recovery) POISE_FAULT=$point:$action@$rank mpirun --enable-recovery -n $ranks "$POISE" "${words[@]}" >>"$log" 2>&1 </dev/null & ;;
    esac
    child=$!
    until [ -n "$(case_ranks "$name")" ] || launcher_gone; do sleep 0.1; done
    note_numbers "$name"
    until launcher_gone || { [ "$launcher" = recovery ] && grep -q '^fault: ' "$log" && settled "$name" "$rank"; }; do
        if [ -z "$hit" ] && grep -q '^fault: ' "$log"; then hit=$SECONDS; fi
        if [ $((SECONDS - begun)) -gt $bound ] || [ $((SECONDS - ${hit:-$SECONDS})) -gt $promised ]; then
            case_ranks "$name" >>"$log"
            fail "$name: not over $((SECONDS - ${hit:-$begun})) s after it: $launcher $command rank $rank $action $where" "$log"
        fi
        sleep 0.3
    done
    took=$((SECONDS - begun))
    if [ "$launcher" = recovery ]; then # such an mpirun may stay; it is its user's to end
        kill -KILL $(case_processes "$name") 2>/dev/null
        { wait "$child"; } 2>/dev/null
    else
        { wait "$child"; } 2>/dev/null
        code=$?
        # How often a rank sends depends on time, so the send may come so late that the run is done without it.
        [ "$code" != 0 ] || [ "$where" = send ] ||
            fail "$name ended with 0: $launcher $command rank $rank $action $where" "$log"
    fi
    # A rank may also end badly when the run's result was written: nothing is lost then, and nobody is named.
    grep -qs '"exit": *0' "$work/$name/result.json" && code=0
    [ "$code" != 0 ] || [ "$(outcome "$name" "$command")" = "${wanted[$command]}" ] || fail "$name ended with 0, but not as it should" "$log"
    if [ "$where-$code" = send-0 ] && ! grep -q '^fault: ' "$log"; then
        echo "$launcher, $command: rank $rank was done before it came to $point"
        return
    fi
    grep -q '^fault: ' "$log" || fail "$name: rank $rank never came to $point" "$log"
    [ "$code" = 0 ] || check_words "$name" "$launcher" "$rank" "$where"
    if [ "$launcher" = run ]; then
        within 10 nothing_is_left "$name" || fail "$name left something: $(what_is_left "$name")" "$log"
    else
        within 10 no_process "$name" || fail "$name left processes: $(case_processes "$name")" "$log"
        note_numbers "$name"
        sort -u "$work/$name.numbers" | while read -r number; do rm -f /dev/shm/vader_segment.*."$number".*; done
    fi
    # On from the last whole checkpoint, or anew.
    rm -rf "${TMPDIR:?}"/*
    "$launch" -n $ranks "${words[@]}" >>"$log" 2>&1 </dev/null || fail "$name does not go on" "$log"
    [ "$(outcome "$name" "$command")" = "${wanted[$command]}" ] ||
        fail "$name ends in $(outcome "$name" "$command"), not ${wanted[$command]}" "$log"
    [ -z "$(find "$work/$name" -name '*.tmp.*')" ] || fail "$name left $(find "$work/$name" -name '*.tmp.*')" "$log"
    within 10 nothing_is_left "$name" || fail "$name, going on, left something: $(what_is_left "$name")" "$log"
    echo "$launcher, $command: rank $rank, $action at $where ($point): over after $took s, and on to the same bits"
}
no_process() { [ -z "$(case_processes "$1")" ]; }

# One sentence with the rank and what it was in: ranks that only notice say nothing. A bare mpirun that kills the others at once leaves them no
# time for it, and says itself which rank died.
check_words() { # NAME LAUNCHER RANK WHERE
    local log=$work/$1.log said
    said=$(grep -c '^poise: \[rank' "$log")
    [ "$said" -le 1 ] || fail "$1: $said ranks speak" "$log"
    sed '1d; /^fault: /d' "$log" | grep -Eq "rank $3( |:|\$)" || fail "$1: nothing names rank $3" "$log"
    [ "$2" = run ] || return 0
    tail -n 1 "$log" | grep -q "^launch/run: .*rank $3 .*\"" || fail "$1: the last line does not name rank $3 and its phase" "$log"
}

# run_cases: the specifications in `cases`, several at a time: they mostly wait.
run_cases() {
    local spec number=0 running=0 bad=0
    for spec in "${cases[@]}"; do
        [ "$number" = 0 ] || time_left || break
        number=$((number + 1))
        random 1000
        # shellcheck disable=SC2086
        (trap - EXIT INT TERM; one_case "case-$number" $spec "$drawn") &
        running=$((running + 1))
        if [ "$running" -ge "$at_once" ]; then
            wait -n || bad=1
            running=$((running - 1))
        fi
        [ "$bad" = 0 ] || break
        set -- $spec
        counts["$5 ($2, $1)"]=$((${counts["$5 ($2, $1)"]:-0} + 1))
    done
    while [ "$running" -gt 0 ]; do
        wait -n || bad=1
        running=$((running - 1))
    done
    [ "$bad" = 0 ] || fail "see above"
}
declare -A counts
cases=(
    "run sft 2 start kill"
    "run sft 0 middle stop"
    "recovery sft 1 middle kill"
    "run sft 3 last hang"
    "mpirun sft 0 fsync hang"
    "run sft 0 checkpoint crash"
    "run grpo 0 send hang"
    "run grpo 3 send stop"
    "mpirun grpo 1 middle stop"
    "recovery grpo 3 send kill"
    "run grpo 0 fsync kill"
    "run eval 2 last hang"
)
if [ "$(amount short full)" = full ]; then
    cases=()
    for launcher in run recovery mpirun; do
        for action in kill stop hang crash; do
            for where in start join middle last; do
                for rank in 0 1 3; do cases+=("$launcher sft $rank $where $action"); done
                for rank in 0 1; do cases+=("$launcher grpo $rank $where $action"); done
                for rank in 0 2; do cases+=("$launcher eval $rank $where $action"); done
            done
            for where in checkpoint fsync; do cases+=("$launcher sft 0 $where $action" "$launcher grpo 0 $where $action"); done
            for rank in 0 1 3; do cases+=("$launcher grpo $rank send $action"); done
            cases+=("$launcher grpo 3 start $action")
        done
    done
    # In another order each time, so that a run that is cut short by the clock covers another part.
    shuffle_cases
fi
run_cases
for what in "${!counts[@]}"; do stress_count "$what" "${counts[$what]}"; done
