#!/usr/bin/env bash
# Strangers without the job's keys flood a hub's port while peers of the job exchange messages: tests/unit/flood.c, longer.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/lib/stress.sh
program=${POISE_BINARY_DIR:-$PWD/build/release}/tests/unit_flood
[ -x "$program" ] || { echo "skipped: $program is not built"; exit 77; }
seconds=$(amount 8 300)
if [ "${POISE_STRESS_SECONDS:-0}" -gt 0 ] && [ "$POISE_STRESS_SECONDS" -lt "$seconds" ]; then seconds=$POISE_STRESS_SECONDS; fi
log=$(mktemp "${TMPDIR:-/tmp}/poise-flood.XXXXXX")
trap 'rm -f "$log"' EXIT
FLOOD_SECONDS=$seconds timeout $((seconds + 400)) "$program" >"$log" 2>&1
code=$?
while IFS= read -r line; do
    case $line in
    "count: "*) line=${line#count: } && stress_count "${line%: *}" "${line##*: }" ;;
    *) echo "$line" ;;
    esac
done <"$log"
exit "$code"
