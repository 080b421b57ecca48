#!/bin/sh
# compile.sh LOG COMMAND...: keeps what the compiler says in LOG, and shows it where it fails.
log=$1
shift
"$@" >"$log" 2>&1 && exit 0
cat "$log" >&2
exit 1
