#!/usr/bin/env bash
# SFT ends in the same weights with any number of learners, packs a launch, threads, recompute level and instruction set.
. "$(dirname "$0")/../lib/jobs.sh"
make_data
sft_settings

# compare KIND RANKS LEAVES THREADS RECOMPUTE DEVICE [KEY=VALUE]...: the first run of a kind sets the hash of all.
declare -A wanted
compare() {
    local kind=$1 name=$1-$2-$3-$4-$5-${6#cpu}
    must_job "$name" "$2" sft "sft.launch_leaves=$3" "threads=$4" "recompute=$5" "device=$6" "${@:7}"
    has_hash "$name"
    all "$name" gradient_norm 'x > 0.25' # clipping is active
    [ "$(steps_of "$name")" = 6 ] || fail "$name has $(steps_of "$name") lines of metrics"
    [ -n "${wanted[$kind]:-}" ] || wanted[$kind]=$(hash_of "$name")
    same "$kind weights ($2 learners, $3 packs a launch, $4 threads, recompute $5, $6)" "${wanted[$kind]}" "$(hash_of "$name")"
}

compare full 1 1 1 none cpu
compare full 2 3 2 cheap cpu
compare full 3 1 2 block cpu
compare full 4 3 1 none cpu
compare full 1 3 1 block cpu:portable
grep -qw avx2 /proc/cpuinfo && compare full 2 1 1 cheap cpu:avx2
compare lora 1 1 1 none cpu lora.rank=4 optimizer.learning_rate=1e-2 optimizer.clip_norm=1e-3
compare lora 4 3 1 block cpu lora.rank=4 optimizer.learning_rate=1e-2 optimizer.clip_norm=1e-3
compare lora 3 1 2 cheap cpu lora.rank=4 optimizer.learning_rate=1e-2 optimizer.clip_norm=1e-3
[ "${wanted[full]}" != "${wanted[lora]}" ] || fail "full and LoRA runs end in the same hash"
# The comparison can tell: another seed gives other weights.
must_job other-seed 1 sft seed=6
[ "$(hash_of other-seed)" != "${wanted[full]}" ] || fail "another seed ends in the same weights"
echo "another seed: $(hash_of other-seed)"
