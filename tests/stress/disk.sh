#!/usr/bin/env bash
# A disk that is full or read-only when a run wants to write: the run says what failed, what it needs and where, goes on, and ends in the
# bits of an undisturbed one once there is room; without room it ends with the last whole checkpoint intact, from which the same command
# goes on. Everything happens on small tmpfs of a mount namespace of the test's own.
if [ -z "${POISE_DISK_NAMESPACE:-}" ]; then
    unshare -m true 2>/dev/null || { echo "skipped: no mount namespaces here (unshare -m)"; exit 77; }
    POISE_DISK_NAMESPACE=1 exec unshare -m --propagation private "$0" "$@"
fi
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
[ -x "${POISE_FAULTS:=$POISE_SOURCE_DIR/build/release/tests/poise_faults}" ] || { echo "skipped: $POISE_FAULTS is not built"; exit 77; }
mkdir "$work/try"
mount -t tmpfs -o size=1m poise-disk "$work/try" 2>/dev/null || { echo "skipped: no tmpfs can be mounted here"; exit 77; }
umount "$work/try"

unmount() {
    local code=$?
    kill_all
    awk -v under="$work/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r | while read -r place; do umount -l "$place"; done
    return "$code"
}
trap 'unmount; clean_up' EXIT

# disk SIZE NAME [FOLDER]: a tmpfs where the run NAME will write (or its FOLDER).
disk() {
    mkdir -p "$work/$2/${3:-}"
    mount -t tmpfs -o "size=$1" poise-disk "$work/$2/${3:-}" || fail "cannot mount a disk of $1"
}
resize() { mount -o "remount,size=$1" "$work/$2" || fail "cannot resize the disk of $2"; }
says() { grep -Eq -- "$2" "$work/$1.log" 2>/dev/null; }
wait_for() { # NAME PATTERN
    within "$limit" says "$1" "$2" || fail "$1 does not say \"$2\"" "$work/$1.log"
    holds "$work/$1.log" "$2"
}
same_hash() { has_hash "$1"; same "weights ($1)" "$wanted" "$(hash_of "$1")"; }
only() { # NAME FOLDER NAMES: nothing else is there
    [ "$(ls -A "$work/$1/$2" | tr '\n' ' ')" = "$3 " ] || fail "$1/$2 holds $(ls -A "$work/$1/$2" | tr '\n' ' ')"
}
whole() { "$POISE" inspect "$1" >"$work/out" 2>&1 || fail "$1 is not whole" "$work/out"; }

make_data
sft_settings
settings+=(--set optimizer.steps=4 --set checkpoint.every=1 --set checkpoint.keep=1)
must_job straight 1 sft
wanted=$(hash_of straight)
bytes=$(stat -c %s "$work/straight/checkpoints/step-4.h5")
one=$((bytes + bytes / 2)) # room for one checkpoint, but not for the next beside it
plenty=$((8 * bytes))

for ranks in $(amount 1 "1 2 3"); do
    echo "== full: the last checkpoint waits for room ($ranks learners)"
    disk $one full-$ranks
    start_job full-$ranks $ranks sft
    wait_for full-$ranks "poise: the checkpoint of step 2 could not be written: .*[Nn]o space.* it needs about 19\.[0-9] MB in $work/full-$ranks/checkpoints, [0-9.]+ MB are free there: free space there.*; the run goes on, with the next checkpoint after step 3$"
    wait_for full-$ranks "the checkpoint of step 4 could not be written: .*; trying again for [0-9]+ s more"
    only full-$ranks checkpoints step-1.h5
    whole "$work/full-$ranks/checkpoints/step-1.h5"
    resize $plenty full-$ranks
    end_job
    [ "$code" = 0 ] || fail "the run ended with $code though there was room" "$work/full-$ranks.log"
    same_hash full-$ranks
    only full-$ranks checkpoints step-4.h5
    whole "$work/full-$ranks/checkpoints/step-4.h5"
    stress_count "checkpoints that met a full disk" "$(grep -c 'the checkpoint of .* could not' "$work/full-$ranks.log")"
done

echo "== full to the end: the last whole checkpoint stays, and serves"
disk $one given-up
job given-up 2 sft checkpoint.wait_s=1
code=$?
[ "$code" = 1 ] || fail "a run without its last checkpoint ended with $code" "$work/given-up.log"
wait_for given-up "rank 0\] the checkpoint of step 4 could not be written: .*; given up after 1 s \(checkpoint.wait_s\), the same command goes on"
only given-up checkpoints step-1.h5
holds "$work/given-up/result.json" '"exit": *1'
resize $plenty given-up
must_job given-up 1 sft
holds "$work/given-up.log" "going on after step 1"
same_hash given-up

echo "== on_failure: stop"
disk $one stopped
job stopped 1 sft checkpoint.on_failure=stop
code=$?
[ "$code" = 1 ] || fail "on_failure: stop ended with $code" "$work/stopped.log"
[ "$(steps_of stopped)" = 2 ] || fail "on_failure: stop went on for $(steps_of stopped) steps" "$work/stopped.log"
only stopped checkpoints step-1.h5

echo "== read-only from the second checkpoint on"
# The process stops itself in that checkpoint's flush, so that the disk changes under a file that is all but there.
disk $plenty read-only checkpoints
POISE=$POISE_FAULTS POISE_FAULT=fsync:3:stop start_job read-only 1 sft
wait_for read-only "fault: rank 0: stop of fsync 3"
victim=$(processes poise_faults)
within 20 grep -q '^State:[[:space:]]*T' "/proc/$victim/status" || fail "process $victim has not stopped" "$work/read-only.log"
mount -o remount,ro "$work/read-only/checkpoints" || fail "cannot make the disk read-only"
kill -CONT "$victim"
wait_for read-only "the checkpoint of step 2 could not be written: .*[Rr]ead-only file system.*: the disk is read-only, make it writable again; the run goes on"
wait_for read-only "the checkpoint of step 4 could not be written: .*; trying again"
whole "$work/read-only/checkpoints/step-1.h5"
mount -o remount,rw "$work/read-only/checkpoints" || fail "cannot make the disk writable"
end_job
[ "$code" = 0 ] || fail "the run ended with $code though the disk was writable again" "$work/read-only.log"
same_hash read-only
stress_count "checkpoints that met a read-only disk" "$(grep -c 'the checkpoint of .* could not' "$work/read-only.log")"

echo "== the trained model waits for room"
disk $((bytes + bytes / 8)) model
start_job model 1 sft checkpoint.every=0 save_model=true
wait_for model "the trained model could not be written: .*[Nn]o space.*; it needs about 7\.[0-9] MB in $work/model, .*; trying again"
[ ! -e "$work/model/model" ] || fail "a model is there that was not written"
resize $plenty model
end_job
[ "$code" = 0 ] || fail "the run ended with $code though there was room" "$work/model.log"
whole "$work/model/model"
[ "$(ls -A "$work/model" | tr '\n' ' ')" = "checkpoints metrics.jsonl model result.json " ] || fail "left: $(ls -A "$work/model")"

echo "== metrics without room"
# One page is left when the run starts.
disk 64k metrics
disk $plenty metrics checkpoints
dd if=/dev/zero of="$work/metrics/ballast" bs=4k count=15 2>/dev/null
start_job metrics 1 sft optimizer.steps=12 checkpoint.every=0
wait_for metrics "cannot write $work/metrics/metrics.jsonl: No space left on device; free space in $work/metrics: the run goes on"
wait_for metrics "the metrics could not be written: .*; trying again"
[ "$(steps_of metrics)" -lt 12 ] || fail "the disk was not full"
[ "$(tail -c 1 "$work/metrics/metrics.jsonl" | od -An -c | tr -d ' ')" = '\n' ] || fail "metrics.jsonl ends in a torn line"
rm "$work/metrics/ballast"
end_job
[ "$code" = 0 ] || fail "the run ended with $code though there was room" "$work/metrics.log"
[ "$(metric metrics step | tr '\n' ' ')" = "1 2 3 4 5 6 7 8 9 10 11 12 " ] || fail "metrics have steps $(metric metrics step | tr '\n' ' ')"
[ "$(grep -c 'metrics.jsonl: No space' "$work/metrics.log")" -le 3 ] || fail "the log is full of the same sentence" "$work/metrics.log"
stress_count "lines of metrics that met a full disk" 1

echo "== GRPO: checkpoints and trajectories"
make_start 24
grpo_settings
settings+=(--set grpo.staleness=1 --set checkpoint.every=1 --set checkpoint.keep=1 --set metrics.trajectories=true)
must_job grpo-straight 3 grpo
wanted=$(hash_of grpo-straight)
bytes=$(stat -c %s "$work/grpo-straight/checkpoints/step-3.h5")
disk $((bytes + bytes / 2)) grpo checkpoints
disk 4k grpo trajectories
start_job grpo 3 grpo
wait_for grpo "the trajectories of step 1 could not be written: .*; the run goes on, without this step's trajectories"
wait_for grpo "the checkpoint of step 2 could not be written: .*; the run goes on"
wait_for grpo "the checkpoint of step 3 could not be written: .*; trying again"
only grpo checkpoints step-1.h5
resize $plenty grpo/checkpoints
end_job
[ "$code" = 0 ] || fail "the run ended with $code though there was room" "$work/grpo.log"
same_hash grpo
only grpo checkpoints step-3.h5
stress_count "trajectories that met a full disk" "$(grep -c 'trajectories of .* could not' "$work/grpo.log")"
