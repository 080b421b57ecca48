#!/usr/bin/env bash
# Registers, shared memory and spills of every GPU kernel, as ptxas told of the last build, against kernels/cuda/registers.txt. A kernel that
# spills fails under any nvcc, but for those of head size 256 that stand there with a spill; the rest is compared where the nvcc is the
# table's. After a change that is meant:
#     tests/house/registers.sh --renew
set -u
root=${POISE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
logs=${POISE_BINARY_DIR:-$root/build/release}/kernels/cuda
table=$root/kernels/cuda/registers.txt
ls "$logs"/*.ptxas >/dev/null 2>&1 || { echo "skipped: this build has no kernels by nvcc"; exit 77; }
for source in "$root"/kernels/cuda/*.cu; do
    log=$logs/$(basename "$source" .cu).ptxas
    [ -e "$log" ] && [ ! "$source" -nt "$log" ] || { echo "skipped: $log is older than its source; build poise_cuda"; exit 77; }
done
compiler=$(sed -n 's/^POISE_NVCC:FILEPATH=//p' "${logs%/kernels/cuda}/CMakeCache.txt")
version=$("$compiler" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')

rows() { # FILE KERNEL ARCHITECTURE REGISTERS SHARED SPILLED, one kernel a line
    local source
    for source in "$root"/kernels/cuda/*.cu; do
        local name
        name=$(basename "$source" .cu)
        c++filt <"$logs/$name.ptxas" | sed -E 's/\([A-Za-z_0-9:]+\)([0-9-])/\1/g' | awk -v file="$name" '
            /Compiling entry function/ {
                split($0, part, "\047"); kernel = part[2]; architecture = part[4]
                sub(/^void /, "", kernel); sub(/\(.*/, "", kernel); gsub(/ /, "", kernel); spilled = 0
            }
            /bytes spill stores/ { match($0, /[0-9]+ bytes spill stores/); spilled = substr($0, RSTART, RLENGTH) + 0 }
            /: Used [0-9]+ registers/ {
                registers = $0; sub(/.*Used /, "", registers); shared = 0
                if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
                if (kernel != "") printf "%-18s %-6s %4d %7d %6d  %s\n", file, architecture, registers, shared, spilled, kernel
                kernel = ""
            }'
    done | LC_ALL=C sort
}
made=$(mktemp)
trap 'rm -f "$made"' EXIT
{
    echo "# Made by tests/house/registers.sh --renew with nvcc $version: file, architecture, registers a thread, bytes of static shared memory,"
    echo "# bytes of spilled registers, kernel"
    rows
} >"$made"
# Head size 256 may spill, and is recorded; no table makes it right for others.
other=$(awk '!/^#/ && $5 > 0 && $6 !~ /,256[,>]/ { print $1, $2, $6, $5 " bytes" }' "$made")
[ -z "$other" ] || { echo "these kernels spill registers, and are not of head size 256:"; echo "$other"; exit 1; }
spilling() { awk '!/^#/ && $5 > 0 { print $1, $2, $6 }' "$1" | LC_ALL=C sort; }
if [ "${1:-}" = --renew ]; then
    spilling "$made" | sed 's/^/spills: /'
    cp "$made" "$table"
    echo "$table: $(grep -vc '^#' "$table") kernels"
    exit 0
fi
[ -e "$table" ] || { echo "there is no $table; make it with tests/house/registers.sh --renew"; exit 1; }
new=$(LC_ALL=C comm -13 <(spilling "$table") <(spilling "$made"))
[ -z "$new" ] || { echo "these kernels spill registers, and the table does not have them so:"; echo "$new"; exit 1; }
grep -q "with nvcc $version:" "$table" || { echo "skipped: the table is of another nvcc than $version (no kernel spills that does not there)"; exit 77; }
if ! diff -u "$table" "$made"; then
    echo "what the kernels take has changed; if that is meant: tests/house/registers.sh --renew"
    exit 1
fi
echo "$(grep -vc '^#' "$table") kernels take what the table says, and none spills but where it says so"
