#!/usr/bin/env bash
# Hostile input. Every target of tests/fuzz runs under libFuzzer with address and undefined-behaviour sanitizers: first its committed
# corpus and what once made it crash, then as many changed inputs as fit the time. Short: 4 s a target; full: the part's share of the
# minutes, 10 minutes a target without a limit. What crashes is kept in tests/fuzz/crashes/TARGET, where it is a test from then on
# (`unit.corpus_TARGET` replays it in every build); new inputs of the full form are merged into tests/fuzz/corpus by
#   tests/stress/fuzz.sh --merge
# FUZZ_TARGETS="store message": only these.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/lib/stress.sh
root=$PWD build=$PWD/build/fuzz

command -v clang >/dev/null || { echo "skipped: libFuzzer needs clang"; exit 77; }
probe=$(mktemp -d "${TMPDIR:-/tmp}/poise-fuzz.XXXXXX")
trap 'rm -rf "$probe"' EXIT
echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n); int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n ? 0 : 0; }' >"$probe/probe.c"
clang -fsanitize=fuzzer,address,undefined "$probe/probe.c" -o "$probe/probe" 2>/dev/null || { echo "skipped: this clang has no libFuzzer or no sanitizers"; exit 77; }

launcher=
if command -v ccache >/dev/null; then launcher=-DCMAKE_C_COMPILER_LAUNCHER=ccache; fi
mkdir -p build
{ cmake -S . -B "$build" -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Debug -DPOISE_FUZZ=ON -DPOISE_SANITIZE=address,undefined $launcher &&
    nice cmake --build "$build" --target fuzz; } >"$build.log" 2>&1 || { tail -n 30 "$build.log"; echo "FAILED: the fuzz programs do not build"; exit 1; }

. "$root/tests/sanitizers/options.sh"
ASAN_OPTIONS=$ASAN_OPTIONS:allocator_may_return_null=1:handle_abort=1:fast_unwind_on_malloc=1 # the slow unwinder is too slow for fuzzing
LSAN_OPTIONS=$LSAN_OPTIONS:use_tls=1 # the fast one does not name what HDF5 keeps for a thread; there are no plugins of MPI here
targets=${FUZZ_TARGETS:-$(cd tests/fuzz && echo *.c | sed 's/\.c//g')}
count=$(echo $targets | wc -w)
share=$(amount 4 600)
if [ "${POISE_STRESS:-short}" = full ] && [ "${POISE_STRESS_SECONDS:-0}" -gt 0 ]; then
    share=$(((POISE_STRESS_SECONDS - (SECONDS - stress_begun)) / count))
    [ "$share" -ge 1 ] || share=1
fi
failed=0 total=0
for target in $targets; do
    found=$build/found/$target kept=tests/fuzz/crashes/$target
    mkdir -p "$found" "$kept" tests/fuzz/corpus/"$target"
    if [ "${1:-}" = --merge ]; then
        mkdir "$probe/merged"
        nice "$build/tests/fuzz_$target" -merge=1 -max_len=8192 "$probe/merged" tests/fuzz/corpus/"$target" "$found" >"$probe/log" 2>&1 || { tail "$probe/log"; exit 1; }
        rm -rf tests/fuzz/corpus/"$target"
        mv "$probe/merged" tests/fuzz/corpus/"$target"
        continue
    fi
    nice "$build/tests/fuzz_$target" -max_total_time="$share" -seed=$((stress_seed % 2147483647 + 1)) -max_len=8192 -timeout=25 -rss_limit_mb=2560 \
        -malloc_limit_mb=1024 -print_final_stats=1 -artifact_prefix="$kept/" "$found" tests/fuzz/corpus/"$target" "$kept" >"$probe/log" 2>&1
    code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$probe/log")
    total=$((total + ${runs:-0}))
    echo "$target: ${runs:-0} inputs in $share s"
    stress_count "inputs: $target" "${runs:-0}"
    if [ "$code" != 0 ]; then
        grep -a -m 5 -E 'ERROR|SUMMARY|runtime error|does not hold|justifies' "$probe/log"
        grep -a 'Test unit written' "$probe/log"
        echo "FAILED: $target (the input is kept; replay it by $build/tests/fuzz_$target FILE)"
        failed=1
    fi
    rmdir "$kept" 2>/dev/null
done
[ "${1:-}" = --merge ] && { du -sh tests/fuzz/corpus; exit 0; }
[ "$failed" = 0 ] || exit 1
echo "$total inputs, $count targets, nothing found"
