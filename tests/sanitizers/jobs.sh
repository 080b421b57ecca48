#!/usr/bin/env bash
# tests/sanitizers/jobs.sh asan|ubsan|tsan|valgrind: small jobs of several ranks under that tool (SFT, stopped and gone on; GRPO, which loses
# a worker and gets another; colocated; an evaluation; a run that fails; a replayed step), with every process looked at, no report
# allowed and no leak left. Faults planted in such a job must be reported with the same settings. The tool's programs are built beside
# the release build, which makes data and a model to start from (valgrind looks at the release build itself).
tool=${1:-}
case $tool in asan | ubsan | tsan | valgrind) ;; *) echo "usage: $0 asan|ubsan|tsan|valgrind" >&2; exit 2 ;; esac
. "$(dirname "$0")/../lib/jobs.sh"
here=$POISE_SOURCE_DIR/tests/sanitizers
if [ "$tool" = valgrind ]; then
    command -v valgrind >/dev/null || { echo "skipped: valgrind is not installed; launch/install --tests installs it"; exit 77; }
    program=${POISE_FAULTS:-$POISE_SOURCE_DIR/build/release/tests/poise_faults}
else
    (
        cd "$POISE_SOURCE_DIR" && cmake --preset "$tool" -DPOISE_FUZZ=OFF >/dev/null &&
            nice cmake --build --preset "$tool" --target poise_faults >"build/$tool-jobs.log" 2>&1
    ) || fail "the $tool build failed" "$POISE_SOURCE_DIR/build/$tool-jobs.log"
    program=$POISE_SOURCE_DIR/build/$tool/tests/poise_faults
fi
[ -x "$program" ] || { echo "skipped: $program is not built"; exit 77; }
small_model # each tool makes everything ten to fifty times slower
make_data
make_start 24

# poise_faults does not unload the MPI library's plugins, so that their leaks can be told by name.
reports=$work/reports
mkdir "$reports"
. "$here/options.sh"
ASAN_OPTIONS=$ASAN_OPTIONS:log_path=$reports/asan
TSAN_OPTIONS=$TSAN_OPTIONS:log_path=$reports/tsan
UBSAN_OPTIONS=$UBSAN_OPTIONS:log_path=$reports/ubsan
if [ "$tool" = valgrind ]; then
    cat >"$work/poise-valgrind" <<END
#!/bin/sh
exec valgrind -q --fair-sched=yes --num-callers=40 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \\
    --suppressions=$here/valgrind.supp --log-file=$reports/valgrind.%p "$program" "\$@"
END
    chmod +x "$work/poise-valgrind"
    program=$work/poise-valgrind
fi
plain=$POISE
POISE=$program
limit=600
# What valgrind runs has another name in the list of processes.
rank_process() { # RANK: the process of that rank of the test's only running job
    local pid
    for pid in $(processes "poise_faults memcheck-amd64- poise-valgrind"); do
        grep -qz "^OMPI_COMM_WORLD_RANK=$1\$" "/proc/$pid/environ" 2>/dev/null || continue
        grep -qz '^__scorer$' "/proc/$pid/cmdline" 2>/dev/null || { echo "$pid"; return; }
    done
}
clean() { # NAME: no process has reported anything
    local file found=""
    for file in "$reports"/*; do [ ! -s "$file" ] || found=$file; done
    [ -z "$found" ] || fail "$1: $tool reports: $(grep -hEm1 'ERROR|WARNING|runtime error|==' "$found")" "$found"
    echo "clean under $tool after $SECONDS s: $1"
}
# planted KINDS PATTERN...: a job of two ranks whose second commits these faults; each pattern is in a report that names the place.
planted() {
    local kinds=$1 pattern
    shift
    # shellcheck disable=SC2086
    POISE_PLANT=$kinds@1 job "planted-${kinds%%,*}" 2 sft $small sft.batch=2 optimizer.steps=1
    for pattern in "$@"; do
        grep -qE -- "$pattern" "$reports"/* || fail "$tool does not report what was planted ($pattern)" "$work/planted-${kinds%%,*}.log"
    done
    grep -qE "plant_|increment" "$reports"/* || fail "$tool does not say where it was planted"
    [ "$(find "$reports" -size +0 | grep -c "/$tool\.")" = 1 ] || fail "$tool reports more than what was planted"
    rm -f "$reports"/*
    echo "$tool reports what was planted after $SECONDS s: $kinds"
}
# start NAME RANKS COMMAND [KEY=VALUE]...: as start_job, but `background` is launch/run itself, which takes USR1.
start() {
    local name=$1 ranks=$2 command=$3 more=() word
    shift 3
    for word in "$@"; do more+=(--set "$word"); done
    "$launch" -n "$ranks" "$command" "${settings[@]}" --set "output=$work/$name" ${more[@]+"${more[@]}"} >>"$work/$name.log" 2>&1 </dev/null &
    background=$!
}
# stop NAME: asks it to, and waits for its end.
stop() {
    kill -USR1 "$background"
    end_job
    [ "$code" = 0 ] || fail "$1 ended with $code when asked to stop" "$work/$1.log"
    holds "$work/$1.log" "stopped after step"
}
small="deadline.start_s=300 deadline.step_s=300 deadline.collective_s=300 checkpoint.every=1 threads=2"

# shellcheck disable=SC2086 # lists of settings
sft() {
    local before
    sft_settings
    small="$small deadline.heartbeat_s=120"
    case $tool in
    asan) planted leak 'leak of 123 byte' && planted overflow heap-buffer-overflow ;;
    ubsan) planted undefined 'signed integer overflow' ;;
    tsan) planted race 'data race' ;;
    valgrind) planted leak,uninitialised '123 bytes in 1 blocks are definitely lost' 'depends on uninitialised value' ;;
    esac
    # valgrind sees one run that goes on and is stopped, for the time; the others one that is stopped and one that goes on.
    [ "$tool" != valgrind ] || POISE=$plain must_job sft 3 sft $small sft.batch=3 optimizer.steps=1000 optimizer.stop_after=1
    before=$(has_steps sft 1 && steps_of sft || echo 0)
    start sft 3 sft $small sft.batch=3 optimizer.steps=1000
    within "$limit" has_steps sft $((before + 1)) || fail "sft did not get to step $((before + 1))" "$work/sft.log"
    stop sft
    clean "SFT with 3 ranks that was asked to stop"
    [ "$tool" != valgrind ] || return
    must_job sft 3 sft $small sft.batch=3 optimizer.steps=1000 optimizer.stop_after=$(($(steps_of sft) + 1))
    holds "$work/sft.log" "going on after step"
    clean "SFT with 3 ranks that went on"
}

replaced() { [ -s "$work/grpo/events.jsonl" ] && grep -q '"kind":"worker_joined".*"rank":4' "$work/grpo/events.jsonl"; }
# shellcheck disable=SC2086
grpo() {
    local victim before
    grpo_settings
    # Scorers of the address and thread sanitizers have no limit of memory; valgrind's need more than any test would give.
    settings+=(--set reward.memory_mb=1000000000 --set reward.timeout_s=120 --set grpo.prompts=2 --set grpo.completions=3
        --set grpo.max_new_tokens=8 --set metrics.trajectories=true)
    start grpo 4 grpo $small roles.learners=2 roles.rollouts=1 optimizer.steps=1000 deadline.heartbeat_s=15
    within "$limit" has_steps grpo 1 || fail "grpo did not get to step 1" "$work/grpo.log"
    victim=$(rank_process 2)
    [ -n "$victim" ] || fail "no process has rank 2" "$work/grpo.log"
    kill -KILL "$victim"
    within "$limit" replaced || fail "no worker came in place of rank 2" "$work/grpo.log"
    before=$(steps_of grpo)
    within "$limit" has_steps grpo $((before + 2)) || fail "grpo did not go on with another worker" "$work/grpo.log"
    stop grpo
    clean "GRPO with 2 learners whose worker was killed and replaced"
    [ "$tool" != valgrind ] || return 0 # minutes for each of the rest, which the other tools see
    small="$small deadline.heartbeat_s=120"
    must_job colocated 3 grpo $small optimizer.steps=2 roles.colocated=true
    clean "GRPO, colocated"
    POISE_FAULT=update:2@1 job failing 4 grpo $small optimizer.steps=1000 roles.learners=2 &&
        fail "failing ended with 0, in spite of its fault" "$work/failing.log"
    holds "$work/failing.log" "an injected fault"
    clean "GRPO that fails"
    timeout "$limit" "$launch" -n 2 replay "$work/colocated" --step 2 >"$work/replay.log" 2>&1
    code=$?
    clean "replay with 2 ranks"
    [ "$code" = 0 ] || fail "replay ended with $code" "$work/replay.log"
}

evaluation() {
    settings=(--set "model=$work/start/model" --set "data.test=$work/data/test.h5" --set eval.max_new_tokens=8)
    must_job eval 3 eval threads=2
    clean "evaluation with 3 ranks"
}

sft
grpo
evaluation
