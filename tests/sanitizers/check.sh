#!/usr/bin/env bash
# tests/sanitizers/check.sh PRESET: builds the preset beside the release build and runs the unit tests and op list in it.
set -eu
preset=$1
cd "$(dirname "$0")/../.."
cmake --preset "$preset" -DPOISE_FUZZ=OFF >/dev/null
nice cmake --build --preset "$preset" >"build/$preset.log" 2>&1 || { tail -n 40 "build/$preset.log"; exit 1; }
export ASAN_OPTIONS=fast_unwind_on_malloc=0:detect_leaks=1
export LSAN_OPTIONS=suppressions=$PWD/tests/sanitizers/lsan.txt:print_suppressions=0
export TSAN_OPTIONS=suppressions=$PWD/tests/sanitizers/tsan.txt:ignore_noninstrumented_modules=1
export UBSAN_OPTIONS=print_stacktrace=1
cd "build/$preset"
# Threads are what the thread sanitizer is for: there the pool, the links and the weights are run, the rest elsewhere.
case $preset in
tsan) ctest --output-on-failure -R 'unit\.(link|weights|metrics|gemm|threads|engine)' ;;
*) ctest --output-on-failure -L 'unit|ops' ;;
esac
[ "$preset" != asan ] || POISE_FAIL_NTH_PART=leaks ../../tests/stress/fail_nth.sh # runs that fail, each in another place
