#!/usr/bin/env bash
# The memory table of --dry-run is what a run takes of its device: a device that has exactly that much is enough, one with 64 KiB less is refused
# before the first step, with one sentence that names the biggest part and what makes it smaller. And `poise doctor` of machines with GPUs.
. "$(dirname "$0")/../lib/jobs.sh"
"$POISE" doctor 2>/dev/null | grep -q 'device: sim runs' || { echo "skipped: $("$POISE" doctor 2>/dev/null | grep -m1 'simulator')"; exit 77; }

echo "== doctor"
doctor() { # PATTERN [NAME=VALUE]...
    local pattern=$1
    shift
    env "$@" "$POISE" doctor >"$work/doctor" 2>&1
    holds "$work/doctor" "$pattern"
}
doctor '^ok +CUDA +.*(no GPU|no .cuda. kernels|runs sm_|driver)'
doctor '^ok +GPU +1: simulated GPU \(0000:01:00.0\), compute capability 8.0 \(kernels for 80, 90\), 64 MiB, of them 64 free' POISE_SIM_GPUS=2 POISE_SIM_MEMORY=64
holds "$work/doctor" '^ok +CUDA +the driver is for CUDA 12.8, this program.s runtime is 12.8'
holds "$work/doctor" '^ok +CUDA +device: sim runs sim kernels; .*cuBLASLt'
holds "$work/doctor" '^ok +NCCL +[0-9]+\.[0-9]+\.[0-9]+'
holds "$work/doctor" '^ok +placement +rank 0, local rank 0 of .*: sim:0 \(0000:00:00.0\)'
doctor '^problem +GPU +0: .*capability 7.5.*built for 80, 90; the kernels need 8.0' POISE_SIM_GPUS=1 POISE_SIM_CAPABILITY=7.5
doctor '^problem +GPU +0: .*capability 12.0.*POISE_CUDA_ARCHITECTURES' POISE_SIM_GPUS=1 POISE_SIM_CAPABILITY=12.0
doctor '^problem +CUDA +the driver is for CUDA 11.8.*install a newer driver' POISE_SIM_GPUS=1 POISE_SIM_DRIVER=11080
POISE_SIM_GPUS=2 "$launch" -n 2 doctor >"$work/doctor" 2>&1
holds "$work/doctor" '^ok +placement +rank 1, local rank 1 of .*: sim:1 \(0000:01:00.0\)'
POISE_SIM_GPUS=1 "$launch" -n 2 doctor >"$work/doctor" 2>&1
holds "$work/doctor" '^problem +placement +2 ranks of machine .*together they see 1'

echo "== memory"
small_model
make_data
sft_settings
settings+=(--set optimizer.steps=1 --set sft.batch=2 --set device=sim)
run() { "$POISE" sft "${settings[@]}" --set "output=$work/$1" >"$work/$1.log" 2>&1; }
"$POISE" sft "${settings[@]}" --set "output=$work/dry" --dry-run >"$work/dry.log" 2>&1 || fail "the dry run failed" "$work/dry.log"
planned=$(awk '$1 == "sum" { print $2 }' "$work/dry.log")
for part in weights "masters and moments" "gradient sums" "values kept for backward" "gradients of activations" "scratch of kernels"; do
    holds "$work/dry.log" "^  $part +[0-9.]+ +[0-9.]+$"
done
holds "$work/dry.log" "^  rank 0 +learner 0 .*: $planned MiB of 16384.0 that are free; host: [0-9.]+ MiB"
export POISE_SIM_REPORT=1
run whole || fail "the run failed" "$work/whole.log"
most=$(sed -n 's/^simulated device: at most \([0-9]*\) bytes.*/\1/p' "$work/whole.log")
awk -v m="$most" -v p="$planned" 'BEGIN { d = m / 1048576 - p; exit !(d < 0.06 && d > -0.06) }' ||
    fail "the dry run says $planned MiB and the run took $most bytes" "$work/whole.log"
echo "planned $planned MiB, taken $most bytes"
POISE_SIM_MEMORY=$(awk -v m="$most" 'BEGIN { printf "%.9f", (m + 1) / 1048576 }') run exact || fail "exactly enough memory is not enough" "$work/exact.log"
POISE_SIM_MEMORY=$(awk -v m="$most" 'BEGIN { printf "%.9f", (m - 65536) / 1048576 }') run less && fail "a run got more than its device has" "$work/less.log"
same "sentences of a refusal" 1 "$(grep -c 'of the memory of the simulated GPU' "$work/less.log")"
holds "$work/less.log" 'needs [0-9.]+ MiB .* the biggest part is masters and moments \([0-9.]+ MiB\): train on more GPUs'
[ -s "$work/less/metrics.jsonl" ] && fail "a step was computed before the refusal"
POISE_SIM_MEMORY=8 "$POISE" sft "${settings[@]}" --set "output=$work/dry" --dry-run >"$work/dry.log" 2>&1 && fail "the dry run finds room for $planned MiB in 8"
holds "$work/dry.log" 'the biggest part is masters and moments'
