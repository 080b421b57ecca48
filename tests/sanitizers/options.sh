# tests/sanitizers/options.sh, sourced: the settings of every sanitizer, for whatever runs a sanitizer's build. A caller adds its own at
# the end of a variable.
POISE_SANITIZERS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export ASAN_OPTIONS=fast_unwind_on_malloc=0:detect_leaks=1
# use_tls=0: the leak check itself crashes now and then on the thread-local blocks of Open MPI's unloaded plugins.
export LSAN_OPTIONS=suppressions=$POISE_SANITIZERS/lsan.txt:print_suppressions=0:use_tls=0
export TSAN_OPTIONS=suppressions=$POISE_SANITIZERS/tsan.txt:ignore_noninstrumented_modules=1
export UBSAN_OPTIONS=print_stacktrace=1
