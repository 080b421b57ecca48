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
[ "$(metric nccl loss | sort -u | wc -l)" = 2 ] || fail "no step has changed the loss" "$work/nccl.log"

echo "== failures"
# breaks NAME FAULT SENTENCE: the job ends with 1, and with this one sentence.
breaks() {
    local code ranks=2
    [ -z "${4:-}" ] || ranks=4
    POISE_SIM_NCCL=$2 job "$1" $ranks sft collectives=nccl sft.batch=1 deadline.collective_s=60
    code=$?
    echo "-- $2"
    [ "$code" = 1 ] || fail "$1 ended with $code" "$work/$1.log"
    holds "$work/$1/result.json" "$3"
    [ "$(grep -Ec '^poise: .*(rank [0-9]|NCCL).*(fail|died|gone|waited)' "$work/$1.log")" -le 1 ] || fail "$1 says more than one sentence" "$work/$1.log"
}
breaks init init@2 'rank 2 in ."opening NCCL.": ncclCommInitRankConfig failed: unhandled system error' four
breaks async async@1:3 'rank 1 in ."(gradient sum|weight gather).": a collective of NCCL failed: unhandled system error'
breaks die die@1 'learner rank 1 .*"gradient sum'

echo "== GPUs"
outnumber() { # NAME RANKS SENTENCE: too few GPUs
    job "$1" "$2" sft
    local code=$?
    [ "$code" = 2 ] || fail "$1 ended with $code" "$work/$1.log"
    holds "$work/$1.log" "$3"
}
POISE_SIM_GPUS=2 outnumber few 4 "4 ranks of machine $(uname -n) compute on GPUs, and together they see 2 of them; start at most 2"
POISE_SIM_GPUS=8 CUDA_VISIBLE_DEVICES=5 outnumber same 2 "2 ranks of machine $(uname -n) compute on GPUs, and together they see 1 of them"

echo "== GRPO, two learners and two rollout workers on four GPUs; the reward rank takes none"
make_start 200
grpo_settings
settings+=(--set device=sim --set roles.learners=2 --set roles.rollouts=2 --set optimizer.steps=1 --set optimizer.warmup_steps=0
    --set grpo.prompts=2 --set grpo.completions=2 --set grpo.updates=1 --set grpo.max_new_tokens=6)
POISE_SIM_GPUS=4 must_job grpo-mpi 5 grpo collectives=mpi
POISE_SIM_GPUS=4 must_job grpo-nccl 5 grpo # auto
carried grpo-nccl "NCCL's stand-in"
same "weights (GRPO, mpi and nccl)" "$(hash_of grpo-mpi)" "$(hash_of grpo-nccl)"
all grpo-nccl logprob_max_abs_diff 'x == 0'
