#!/usr/bin/env bash
# Asked to stop, by USR1 (to launch/run, to mpirun, to one rank) or by launch/run's first INT, TERM or HUP, at any moment from before MPI
# starts to the final save: a checkpoint, code 0, and on to the bits of a run that was never stopped. A second INT ends it at once, and what
# was whole stays whole. The moment is made exact by a rank that stands still there until the signal has been sent.
. "$(dirname "$0")/../lib/jobs.sh"
. "$POISE_SOURCE_DIR/tests/lib/leftovers.sh"
. "$POISE_SOURCE_DIR/tests/lib/stress.sh"
faulty=${POISE_FAULTS:-$(dirname "$POISE")/tests/poise_faults}
[ -x "$faulty" ] || { echo "skipped: $faulty is not built"; exit 77; }
export POISE=$faulty
make_data
make_start 6
at_once=${POISE_SIGNALS_AT_ONCE:-3}

case_settings() { # COMMAND: sets settings, ranks, steps
    ranks=4 steps=5
    case $1 in
    sft) sft_settings; settings+=(--set optimizer.steps=$steps --set checkpoint.every=2 --set save_model=true) ;;
    grpo) steps=4; grpo_settings; settings+=(--set optimizer.steps=$steps --set roles.learners=2 --set checkpoint.every=1 --set save_model=true) ;;
    esac
}
declare -A wanted
for command in sft grpo; do
    case_settings $command
    POISE_FAULT_COUNTS=$work/counts-$command must_job "plain-$command" $ranks $command
    wanted[$command]=$(hash_of "plain-$command")
    [ ${#wanted[$command]} -ge 16 ] || fail "the plain $command run has no hash"
done
# place COMMAND WHERE: sets `point` of rank 0.
place() {
    local class share count
    case $2 in
    before-mpi) point=alloc:4; return ;;
    loading) point=collective:6; return ;;
    step) class=collective share=40 ;;
    second-update) class=collective share=52 ;;
    checkpoint) class=fsync share=40 ;;
    final-save) class=fsync share=95 ;;
    esac
    count=$(sed -n "s/^$class //p" "$work/counts-$1.0")
    point=$class:$((count * share / 100 > 0 ? count * share / 100 : 1))
}
stands_still() { [ "$(case_ranks "$1" | sed -n 's/^0 [0-9]* //p')" = T ]; }
launcher_gone() { ! kill -0 "$child" 2>/dev/null; }
# USR1 waits for the process, which stands still.
has_request() { [ $((0x$(sed -n 's/^ShdPnd:[[:space:]]*//p' "/proc/$1/status") & 0x200)) -ne 0 ]; }
rank_pid() { case_ranks "$1" | sed -n "s/^$2 \([0-9]*\) .*/\1/p"; }
mpirun_pid() {
    local pid
    for pid in $(case_processes "$1"); do [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = mpirun ] && echo "$pid" && return; done
}

# one_case NAME COMMAND WHERE HOW: in a subshell of its own. HOW: usr1, int, term, hup (to launch/run), mpirun, rank (USR1), twice (INT).
one_case() {
    local name=$1 command=$2 where=$3 how=$4 log=$work/$1.log words begun still state
    case_settings "$command"
    place "$command" "$where"
    mkdir -p "$work/tmp/$name"
    words=("$command" "${settings[@]}" --set "output=$work/$name")
    export POISE_CASE=$name TMPDIR=$work/tmp/$name
    set -m # a process group of its own
    # What a caller ignores (nohup, a background job of a script) a shell could not trap.
    POISE_FAULT=$point:stop@0 env --default-signal=HUP,INT "$launch" -n $ranks "${words[@]}" >>"$log" 2>&1 </dev/null &
    child=$!
    set +m
    within "$limit" stands_still "$name" || fail "$name: rank 0 never stood still at $where ($point)" "$log"
    note_numbers "$name"
    still=$(rank_pid "$name" 0)
    case $how in
    usr1) kill -USR1 "$child" ;;
    int) kill -INT "$child" ;;
    term) kill -TERM "$child" ;;
    hup) kill -HUP "$child" ;;
    mpirun) kill -USR1 "$(mpirun_pid "$name")" ;;
    rank)
        random $ranks
        kill -USR1 "$(rank_pid "$name" "$drawn")"
        ;;
    twice) kill -INT "$child" ;;
    esac
    case $how-$where in
    rank-* | *-before-mpi) sleep 0.5 ;; # the others pass it on meanwhile; launch/run keeps it until all can take it
    *) within 30 has_request "$still" || fail "$name: rank 0 got no request ($where, $how)" "$log" ;;
    esac
    if [ "$how" = twice ]; then
        launcher_gone && fail "$name ended at the first INT" "$log"
        begun=${EPOCHREALTIME/./}
        kill -INT "$child"
    else
        kill -CONT "$still"
    fi
    within "$limit" launcher_gone || fail "$name: not over after $limit s ($where, $how)" "$log"
    { wait "$child"; } 2>/dev/null
    code=$?
    if [ "$how" = twice ]; then
        begun=$(((${EPOCHREALTIME/./} - begun) / 1000))
        # 0: the last flushes are those of the result, first of the launcher's copy, and then all is done.
        [ "$code" = 130 ] || { [ "$code-$where" = 0-final-save ] && [ -s "$work/$name/model/model.safetensors" ]; } ||
            fail "$name ended with $code at the second INT ($where)" "$log"
        [ "$begun" -lt 6000 ] || fail "$name took $begun ms to end at the second INT" "$log"
        echo "$command: the second INT at $where ($point) ended it after $begun ms"
    else
        [ "$code" = 0 ] || fail "$name ended with $code ($where, $how)" "$log"
        # Asked during the last step's saving there is nothing left to stop.
        state=stopped
        [ "$where" != final-save ] && [ "$where" != checkpoint ] || state="(stopped|done)"
        grep -Eq "\"state\": *\"$state\"" "$work/$name/result.json" || fail "$name is not $state ($where, $how)" "$log"
        [ -s "$work/$name/checkpoints/step-$(steps_of "$name").h5" ] || fail "$name left no checkpoint of its last step" "$log"
    fi
    within 10 nothing_is_left "$name" || fail "$name left something: $(what_is_left "$name")" "$log"
    "$launch" -n $ranks "${words[@]}" >>"$log" 2>&1 </dev/null || fail "$name does not go on" "$log"
    [ "$(hash_of "$name")" = "${wanted[$command]}" ] || fail "$name ends in $(hash_of "$name"), not ${wanted[$command]} ($where, $how)" "$log"
    [ -z "$(find "$work/$name" -name '*.tmp.*')" ] || fail "$name left $(find "$work/$name" -name '*.tmp.*')" "$log"
    echo "$command: $how at $where ($point): code $code, and on to the same bits"
}

run_cases() {
    local spec number=0 running=0 bad=0
    for spec in "${cases[@]}"; do
        [ "$number" = 0 ] || time_left || break
        number=$((number + 1))
        random 100000 # each case draws on its own
        # shellcheck disable=SC2086
        (trap - EXIT INT TERM; RANDOM=$((drawn % 32768)); one_case "case-$number" $spec) &
        running=$((running + 1))
        if [ "$running" -ge "$at_once" ]; then
            wait -n || bad=1
            running=$((running - 1))
        fi
        [ "$bad" = 0 ] || break
        set -- $spec
        counts[$3]=$((${counts[$3]:-0} + 1))
    done
    while [ "$running" -gt 0 ]; do
        wait -n || bad=1
        running=$((running - 1))
    done
    [ "$bad" = 0 ] || fail "see above"
}
declare -A counts
cases=("sft before-mpi usr1" "grpo second-update int" "sft checkpoint twice" "grpo step rank" "sft loading mpirun" "grpo final-save term" "grpo before-mpi hup")
if [ "$(amount short full)" = full ]; then
    cases=()
    for command in sft grpo; do
        for where in before-mpi loading step second-update checkpoint final-save; do
            for how in usr1 int term hup mpirun rank twice; do
                # A rank that has not blocked signals yet cannot be asked; launch/run waits until it can.
                [ "$where" = before-mpi ] && [ "$how" = mpirun ] && continue
                cases+=("$command $where $how")
            done
        done
    done
    shuffle_cases
fi
run_cases
for how in "${!counts[@]}"; do stress_count "asked to stop: $how" "${counts[$how]}"; done
