#!/usr/bin/env bash
# tests/sanitizers/jobs.sh asan|ubsan|tsan|valgrind: a small SFT and a small GRPO job of several ranks under that tool, with every process
# looked at, no report allowed and no leak left. The tool's programs are built beside the release build, which makes data and a model to
# start from (valgrind looks at the release build itself).
tool=${1:-}
case $tool in asan | ubsan | tsan | valgrind) ;; *) echo "usage: $0 asan|ubsan|tsan|valgrind" >&2; exit 2 ;; esac
. "$(dirname "$0")/../lib/jobs.sh"
here=$POISE_SOURCE_DIR/tests/sanitizers
if [ "$tool" = valgrind ]; then
    command -v valgrind >/dev/null || { echo "skipped: valgrind is not installed"; exit 77; }
    program=$POISE_SOURCE_DIR/build/release/tests/poise_faults
else
    (
        cd "$POISE_SOURCE_DIR" && cmake --preset "$tool" -DPOISE_FUZZ=OFF >/dev/null &&
            nice cmake --build --preset "$tool" --target poise_faults >"build/$tool-jobs.log" 2>&1
    ) || fail "the $tool build failed" "$POISE_SOURCE_DIR/build/$tool-jobs.log"
    program=$POISE_SOURCE_DIR/build/$tool/tests/poise_faults
fi
[ -x "$program" ] || { echo "skipped: $program is not built"; exit 77; }
make_data
make_start 24

# poise_faults does not unload the MPI library's plugins, so that their leaks can be told by name.
reports=$work/reports
mkdir "$reports"
export ASAN_OPTIONS=fast_unwind_on_malloc=0:detect_leaks=1:log_path=$reports/asan
export LSAN_OPTIONS=suppressions=$here/lsan.txt:print_suppressions=0
export TSAN_OPTIONS=suppressions=$here/tsan.txt:ignore_noninstrumented_modules=1:log_path=$reports/tsan
export UBSAN_OPTIONS=print_stacktrace=1:log_path=$reports/ubsan
if [ "$tool" = valgrind ]; then
    cat >"$work/poise-valgrind" <<END
#!/bin/sh
exec valgrind -q --error-exitcode=66 --num-callers=40 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \\
    --suppressions=$here/valgrind.supp --log-file=$reports/valgrind.%p "$program" "\$@"
END
    chmod +x "$work/poise-valgrind"
    program=$work/poise-valgrind
fi
clean() { # NAME: no process has reported anything
    local file found=""
    for file in "$reports"/*; do [ -s "$file" ] && found=$file; done
    [ -z "$found" ] || fail "$1: $tool reports: $(grep -hEm1 'ERROR|WARNING|runtime error|==' "$found")" "$found"
    echo "clean under $tool: $1"
}
POISE=$program
export POISE
limit=400
patient="deadline.start_s=300 deadline.step_s=300 deadline.heartbeat_s=120 deadline.collective_s=300"
small="$patient optimizer.steps=2 checkpoint.every=1"
ranks=4 threads=2
# valgrind runs one thread at a time, and a pool that waits by spinning takes its turns.
[ "$tool" = valgrind ] && ranks=2 threads=1

sft_settings
# shellcheck disable=SC2086
must_job sft $ranks sft $small threads=$threads sft.batch=2
clean "SFT with $ranks ranks"
# shellcheck disable=SC2086
must_job sft $((ranks - 1)) sft $patient optimizer.steps=2 checkpoint.every=1 sft.batch=2
clean "SFT that has nothing left to do"
grpo_settings
# Sanitizers reserve far more address space than they use.
settings+=(--set reward.memory_mb=1000000000 --set reward.timeout_s=120 --set grpo.prompts=2 --set grpo.completions=3 --set grpo.max_new_tokens=8 --set metrics.trajectories=true)
if [ "$tool" = valgrind ]; then layout="roles.learners=1 roles.rollouts=1"; else layout="roles.learners=2 roles.rollouts=1"; fi
# shellcheck disable=SC2086
must_job grpo $([ "$tool" = valgrind ] && echo 3 || echo 4) grpo $small $layout
clean "GRPO ($layout)"
[ "$tool" = valgrind ] || {
    # shellcheck disable=SC2086
    must_job colocated 3 grpo $small roles.colocated=true threads=2
    clean "GRPO, colocated"
    timeout "$limit" "$POISE" replay "$work/grpo" --step 2 >"$work/replay.log" 2>&1 || fail "replay ended with $?" "$work/replay.log"
    clean "replay"
}
