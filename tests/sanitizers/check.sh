#!/usr/bin/env bash
# tests/sanitizers/check.sh asan|ubsan|tsan: builds that preset beside the release build, runs the unit tests and the op list in it, then
# the jobs of several ranks (tests/sanitizers/jobs.sh).
set -eu
preset=$1
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
# Threads are what the thread sanitizer is for: there the pool, the links and the weights are run, the rest elsewhere.
threaded="link weights metrics gemm threads engine soak flood"
case $preset in
tsan) targets="poise_faults" && for name in $threaded; do targets="$targets unit_$name"; done ;;
*) targets=checked ;;
esac
cmake --preset "$preset" -DPOISE_FUZZ=OFF >/dev/null
# shellcheck disable=SC2086
nice cmake --build --preset "$preset" --target $targets >"build/$preset.log" 2>&1 || { tail -n 40 "build/$preset.log"; exit 1; }
(
    . "$here/options.sh"
    cd "build/$preset"
    case $preset in
    tsan) ctest --output-on-failure --no-tests=error -R "^unit\.(${threaded// /|})\$" ;;
    # Every size on every kernel set takes minutes here; the engine's and the gradients' own tests run the same code. On the simulated GPU
    # the comparison with the reference runs every row's forward and backward; finite differences and more orders run no other code.
    *) ctest --output-on-failure --no-tests=error -L 'unit|ops' -E '^unit\.(neighbours|sim_gradients|sim_bits)$' ;;
    esac
    # Runs that fail, each in another place.
    [ "$preset" != asan ] || POISE_FAIL_NTH_PART=leaks "$here/../stress/fail_nth.sh"
)
code=0
env -u POISE -u POISE_FAULTS "$here/jobs.sh" "$preset" || code=$?
[ "$code" = 77 ] && exit 0 # there is no mpirun, and it has said so
exit "$code"
