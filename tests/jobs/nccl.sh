#!/usr/bin/env bash
# collectives: nccl, whole, with NCCL's stand-in over MPI and the simulated GPU: SFT of four learners and GRPO of two end in the weights of
# collectives: mpi, bit for bit. Where NCCL fails on one rank, or a rank dies in it, the job ends with one sentence that says which rank and in
# which phase. Ranks that outnumber a machine's GPUs end with how many there are; a GPU shown to each rank alone is taken.
. "$(dirname "$0")/../lib/jobs.sh"
"$POISE" doctor 2>/dev/null | grep -q 'device: sim runs' || { echo "skipped: $("$POISE" doctor 2>/dev/null | grep -m1 'simulator')"; exit 77; }
small_model
make_data
carried() { # NAME BY: what the run says of its collectives
    holds "$work/$1.log" "learners exchange gradients and weights by $2"
}

echo "== SFT, four learners"
sft_settings
settings+=(--set device=sim --set optimizer.steps=2 --set optimizer.warmup_steps=0 --set sft.batch=2 --set sft.pack_tokens=128)
must_job mpi 4 sft collectives=mpi
grep 'learners exchange' "$work/mpi.log" && fail "collectives: mpi has opened NCCL"
must_job nccl 4 sft collectives=nccl
carried nccl "NCCL's stand-in"
has_hash nccl
same "weights (SFT, mpi and nccl)" "$(hash_of mpi)" "$(hash_of nccl)"
[ "$(metric nccl weights_hash | uniq | wc -l)" = 2 ] || fail "the weights have not changed from step to step" "$work/nccl.log"
metric nccl gradient_norm | grep -q '[1-9]' || fail "there was no gradient"
