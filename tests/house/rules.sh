#!/usr/bin/env bash
# The house rules that a machine can check: which way includes point, how long files and functions are, no mutable globals.
# Each check is first tried on a made-up offender, so that it is known to see one.
set -u
root=${POISE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
build=${POISE_BINARY_DIR:-$root/build/release}
cd "$root" || exit 2
rooms="kernels common learner rollout launch"
failures=0
complain() {
    echo "house rule broken: $1"
    shift
    printf '%s\n' "$@" | sed 's/^/  /'
    failures=$((failures + 1))
}

sources() { find "$@" -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \); }
# wrong_arrows FOLDER FORBIDDEN: includes of rooms that FOLDER must not know.
wrong_arrows() { grep -rnE "#[[:space:]]*include[[:space:]]*[\"<]($2)/" "$1" 2>/dev/null; }
# Includes that do not start at the root (generated protobuf headers apart).
relative_includes() { grep -rnE '#[[:space:]]*include[[:space:]]*"' "$@" --include='*.[ch]' | grep -vE '"(kernels|common|learner|rollout|launch|tests)/|\.pb-c\.h"'; }
long_files() { sources "$@" | while read -r f; do n=$(wc -l <"$f"); [ "$n" -gt 1000 ] && echo "$f: $n lines"; done; }
# Formatted code: a function's body opens with a line that ends in ") {" and closes with "}" in the first column.
long_functions() {
    sources "$@" | while read -r f; do
        awk -v f="$f" '!begin && /^[A-Za-z_].*[^;]$/ { header = NR }
                       !begin && header && /\) \{$/ { begin = header }
                       /^}/ { if (begin && NR - begin + 1 > 100) print f ":" begin ": " NR - begin + 1 " lines"; begin = 0; header = 0 }
                       !begin && /;$/ { header = 0 }' "$f"
    done
}
# Objects in sections that can be written to; .data.rel.ro holds constants with addresses in them.
mutable_globals() { objdump -t "$@" 2>/dev/null | awk '/file format/ { file = $1 } / O \.(data|bss|tbss|tdata)/ && !/\.data\.rel\.ro/ { print file " " $NF }'; }

trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
mkdir -p "$trial/kernels"
{
    echo '#include "learner/learner.h"'
    printf 'int long_one(int a,\n             int b) {\n'
    for _ in $(seq 1000); do echo '    a += b;'; done
    printf '    return a;\n}\n'
} >"$trial/kernels/offender.c"
echo 'static int counter = 1; int *next(void); int *next(void) { return &counter; }' >"$trial/global.c"
cc -c "$trial/global.c" -o "$trial/global.o"
[ -n "$(wrong_arrows "$trial/kernels" learner)" ] || complain "the check of arrows does not see a wrong one"
[ -n "$(long_files "$trial")" ] || complain "the check of file lengths does not see a long one"
[ -n "$(long_functions "$trial")" ] || complain "the check of function lengths does not see a long one"
[ -n "$(mutable_globals "$trial/global.o")" ] || complain "the check of globals does not see one"

while read -r folder forbidden; do
    found=$(wrong_arrows "$folder" "$forbidden")
    [ -n "$found" ] && complain "$folder must not include $forbidden" "$found"
done <<'ARROWS'
kernels common|learner|rollout|launch
common learner|rollout|launch
learner rollout|launch
rollout learner|launch
ARROWS
# shellcheck disable=SC2086
{
    found=$(relative_includes $rooms tests)
    [ -n "$found" ] && complain "includes are written from the root" "$found"
    found=$(long_files $rooms tests)
    [ -n "$found" ] && complain "no file over 1,000 lines" "$found"
    found=$(long_functions $rooms tests)
    [ -n "$found" ] && complain "no function over 100 lines" "$found"
    found=$(grep -rnE '#[[:space:]]*include[[:space:]]*<assert\.h>|\babort\(\)' $rooms)
    [ -n "$found" ] && complain "no abort, no assert.h" "$found"
}
# The simulator keeps its state per host thread; nvcc's launch stubs are not the source's.
libraries=$(find "$build" -name 'libpoise_*.a' -not -path '*/kernels/sim/*' -not -name libpoise_cuda.a 2>/dev/null)
if [ -n "$libraries" ]; then
    # shellcheck disable=SC2046,SC2086
    found=$(mutable_globals $libraries $(find "$build/launch" -name '*.o' 2>/dev/null) | grep -v '__sanitizer\|LASAN\|__odr_asan')
    [ -n "$found" ] && complain "no mutable globals" "$found"
else
    complain "there are no libraries under $build; build first"
fi
[ "$failures" -eq 0 ] && echo "house rules hold"
exit $((failures > 0))
