#!/usr/bin/env bash
# The table in docs/configuration.md is what `poise config --reference` prints.
set -u
root=${POISE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
poise=${POISE:-$root/build/release/poise}
page=$root/docs/configuration.md
[ -x "$poise" ] || { echo "there is no program $poise; build first, or set POISE"; exit 1; }
printed=$("$poise" config --reference) || { echo "'poise config --reference' failed"; exit 1; }
[ "$(printf '%s\n' "$printed" | wc -l)" -gt 50 ] || { echo "the printed reference is too short to be one"; exit 1; }
if ! difference=$(diff <(printf '%s\n' "$printed") <(sed -n '/^|/p' "$page")); then
    echo "docs/configuration.md differs from 'poise config --reference' (<: printed, >: in the page):"
    printf '%s\n' "$difference"
    exit 1
fi
echo "the reference table is up to date"
