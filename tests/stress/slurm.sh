#!/usr/bin/env bash
# Poise under a real Slurm (tests/cluster/slurmlab): by srun, and by the batch scripts of launch/slurm. Undisturbed runs have the bits of
# mpirun's. A learner or the reward rank that is killed, stands still or hangs ends the step within the deadlines, with one message and a
# code that is not 0, and its last checkpoint resumes. Batch jobs that are asked to stop, or lose a node, queue themselves again and end in
# the same bits. Nothing is left on any node.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
. "$(dirname "$0")/../lib/hosts.sh"
slurmlab=$POISE_SOURCE_DIR/tests/cluster/slurmlab
export SLURMLAB_DIR=$work/slurm
reason=$("$slurmlab" probe) || { echo "skipped: $reason"; exit 77; }
faulty=${POISE_FAULTS:-$(dirname "$POISE")/tests/poise_faults}
[ -x "$faulty" ] || { echo "skipped: $faulty is not built"; exit 77; }
start_s=30 heartbeat_s=5 collective_s=10 step_s=30
make_data
make_start 24
hosts_up 5
"$slurmlab" start || fail "Slurm does not start"

limits=(--set deadline.start_s=$start_s --set deadline.heartbeat_s=$heartbeat_s --set deadline.collective_s=$collective_s
    --set deadline.step_s=$step_s --set checkpoint.keep=2)
settings_of() { # COMMAND: sets settings, ranks, learners
    if [ "$1" = sft ]; then sft_settings; else grpo_settings; fi
    settings+=("${limits[@]}" --set checkpoint.every=2)
    ranks=4 learners=4
    if [ "$1" = grpo ]; then
        settings+=(--set roles.learners=2 --set optimizer.steps=8)
        ranks=5 learners=2
    fi
}
declare -A wanted
for command in sft grpo; do
    settings_of $command
    must_job "plain-$command" $ranks $command
    has_hash "plain-$command"
    wanted[$command]=$(hash_of "plain-$command")
    echo "mpirun, $command: ${wanted[$command]}"
done

left_of() { # NAME: processes of Poise's with the run's output folder
    local pid
    for pid in $(processes "poise poise_faults mpirun orted srun"); do
        tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qx "output=$work/$1" && echo "$pid"
    done
}
nothing_of() { [ -z "$(left_of "$1")" ]; }
nothing_left_anywhere() { # NAME
    local host shared
    within 30 nothing_of "$1" || fail "$1 left processes: $(left_of "$1")" "$work/$1.log"
    for host in h0 h1 h2 h3 h4; do
        shared=$("$netlab" exec $host find /dev/shm "$NETLAB_DIR/local" -name '*poise*' ! -name 'poise-run.*' ! -path '*/poise-run.*')
        [ -z "$shared" ] || fail "$1 left on $host: $shared"
    done
}

# ---- by srun ----
by_srun() { # NAME RANKS EXECUTABLE COMMAND [srun's options...]: returns srun's code
    local name=$1 ranks=$2 executable=$3 command=$4 code try
    shift 4
    for try in 1 2 3; do
        timeout -k 5 "$limit" "$slurmlab" exec srun --mpi=pmix --kill-on-bad-exit=1 -n "$ranks" "$@" \
            "$executable" "$command" "${settings[@]}" --set "output=$work/$name" >"$work/$name.try" 2>&1 </dev/null
        code=$?
        cat "$work/$name.try" >>"$work/$name.log"
        # Now and then, on a machine that is full, Open MPI crashes inside MPI_Init (its TCP part takes a message before anything is set
        # up for it), in programs that do nothing else, too. No rank of Poise's has begun by then.
        [ "$code" = 139 ] && ! grep -q '^part .*trainable' "$work/$name.try" || return "$code"
        stress_count "slurm: Open MPI crashed inside MPI_Init, started again" 1
    done
    return "$code"
}
undisturbed() { # COMMAND
    local name=srun-$1
    settings_of "$1"
    by_srun "$name" $ranks "$POISE" "$1" -N 3 || fail "$name ended with $?" "$work/$name.log"
    same "weights ($name)" "${wanted[$1]}" "$(hash_of "$name")"
    nothing_left_anywhere "$name"
}
# ends NAME COMMAND RANK ACTION SHARE NODES: on these two nodes, which no other job has (Open MPI jobs that start beside each other on a node may
# take each other's connections). The rank does that after so many hundredths of its collectives. In a subshell
# of its own.
ends() {
    local name=$1 command=$2 rank=$3 action=$4 begun=$SECONDS code took count point
    settings_of "$command"
    count=$(sed -n 's/^collective //p' "$work/counts-$command.$rank")
    point=$((count * $5 / 100))
    echo "$command, rank $rank: $action at collective $point of $count" >"$work/$name.log"
    POISE_FAULT=collective:$point:$action@$rank by_srun "$name" $ranks "$faulty" "$command" -N 2 "--nodelist=$6"
    code=$?
    took=$((SECONDS - begun))
    holds "$work/$name.log" "^fault: rank $rank: $action"
    case $code in 0 | 124) fail "$name ended with $code" "$work/$name.log" ;; esac
    [ $took -le $((start_s + 25 + 60)) ] || fail "$name took $took s" "$work/$name.log"
    [ "$(grep -c '^poise: .*start the run again to go on' "$work/$name.log")" -le 1 ] || fail "$name says it more than once" "$work/$name.log"
    # Who is lost, or (two learners, of which one hangs) who waits for it, and in which phase.
    holds "$work/$name.log" "^poise: .*(rank $rank (is gone|has been in|stands still|did not).*|waited .* s )in \""
    nothing_left_anywhere "$name"
    # The same command, with another number of ranks, goes on.
    settings_of "$command"
    [ "$command" = sft ] && ranks=3
    by_srun "$name" $ranks "$POISE" "$command" -N 2 "--nodelist=$6" || fail "$name does not go on" "$work/$name.log"
    same "weights ($name)" "${wanted[$command]}" "$(hash_of "$name")"
    echo "$name: code $code after $took s, resumed to the same weights"
    stress_count "slurm: $command, $action" 1
}
all_of() { # waits for the background cases of this shell; each ends the test when it fails
    local pid
    for pid in "${cases[@]}"; do
        wait "$pid" || fail "a case failed (above)"
    done
    cases=()
}
case_of() { # in the background: ends ...
    (trap - EXIT; ends "$@") &
    cases+=($!)
}
cases=()
for command in sft grpo; do # counts of collectives, for choosing where to strike
    settings_of $command
    (POISE=$faulty POISE_FAULT_COUNTS=$work/counts-$command must_job "counted-$command" $ranks $command) || exit 1
done
undisturbed sft
undisturbed grpo
if [ "${POISE_STRESS:-short}" = full ]; then
    for ((n = 0; n < 100; n++)); do
        time_left || break
        for command in sft grpo; do
            settings_of $command
            random $learners
            rank=$drawn
            random 2
            if [ $command = grpo ] && [ "$drawn" = 1 ]; then rank=$((ranks - 1)); fi
            actions=(kill stop hang)
            random 3
            action=${actions[$drawn]}
            # The reward rank meets the others in a few collectives only, at the start and the end.
            random 60
            share=$((drawn + 30))
            nodes=h0,h1
            [ $command = grpo ] && nodes=h2,h3
            case_of "srun-$n-$command" $command $rank $action $share $nodes
        done
        all_of
    done
else
    case_of srun-learner-killed sft 1 kill 60 h0,h1
    case_of srun-learner-hangs grpo 0 hang 60 h2,h3
    all_of
fi

# ---- by batch scripts ----
batch() { # NAME SCRIPT "SBATCH OPTIONS" [ARGUMENTS of poise]: sets `job_id`
    local name=$1 script=$2 options=$3
    shift 3
    # shellcheck disable=SC2086
    job_id=$("$slurmlab" exec env "TMPDIR=$NETLAB_DIR/local" sbatch --parsable --cpus-per-task=1 --output="$work/$name.log" $options \
        "$POISE_SOURCE_DIR/launch/slurm/$script" "$@" "${settings[@]}" --set "output=$work/$name") || fail "sbatch refuses $name"
}
state_of() { "$slurmlab" exec scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -n 1; }
is_over() { case $(state_of "$1") in COMPLETED | FAILED | TIMEOUT | CANCELLED | NODE_FAIL) return 0 ;; *) return 1 ;; esac }
says() { grep -Eq -- "$2" "$work/$1.log" 2>/dev/null; }
batch_ended_well() { # NAME COMMAND JOB STEPS
    within "$limit" is_over "$3" || fail "$1 is not over: $(state_of "$3")" "$work/$1.log"
    [ "$(state_of "$3")" = COMPLETED ] || fail "$1 is $(state_of "$3")" "$work/$1.log"
    holds "$work/$1.log" "going on after step"
    [ "$(steps_of "$1")" = "$4" ] || fail "$1 has $(steps_of "$1") steps" "$work/$1.log"
    nothing_left_anywhere "$1"
}
batch_steps=40
settings_of grpo
settings+=(--set optimizer.steps=$batch_steps)
must_job plain-batch 5 grpo
wanted_batch=$(hash_of plain-batch)

# A worker dies, the run goes on; asked to stop, it queues itself again and ends in the same bits.
batch asked grpo.sbatch "--nodelist=h0,h1 -N 2 -n 5"
asked_job=$job_id
within "$limit" has_steps asked 2 || fail "asked did not get to step 2" "$work/asked.log"
victim=$(rank_of_run asked 2)
[ -n "$victim" ] || fail "asked: no process has rank 2" "$work/asked.log"
kill -KILL "$victim"
stress_count "slurm: worker killed in a batch job" 1
within 60 says asked "rollout rank 2 is gone" || fail "the worker's death is not named" "$work/asked.log"
"$slurmlab" exec scancel --signal=USR1 --batch "$asked_job"
stress_count "slurm: USR1 and requeue" 1

# A node is lost with the reward rank on it: the run ends, the job queues itself again and goes on elsewhere.
batch lost grpo.sbatch "--exclude=h0,h1 -N 2 -n 5"
lost_job=$job_id
within "$limit" has_steps lost 4 || fail "lost did not get to step 4" "$work/lost.log"
lost_node=$("$slurmlab" exec scontrol show job "$lost_job" | sed -n 's/^ *NodeList=//p')
lost_node=$("$slurmlab" exec scontrol show hostnames "$lost_node" | tail -n 1) # the last ranks' one; the script runs on the first
echo "$lost_node is cut off after step $(steps_of lost)"
"$netlab" cut "$lost_node"
stress_count "slurm: node lost" 1

batch_ended_well asked grpo "$asked_job" $batch_steps
holds "$work/asked.log" "queueing job $asked_job again"
same "weights (asked)" "$wanted_batch" "$(hash_of asked)"
# Meanwhile: rollout workers that are a component of their own, on a node of their own.
batch pools grpo-pools.sbatch "--nodelist=h0 -n 4 : --nodelist=h1 -n 2 --cpus-per-task=1"
pools_job=$job_id

within 120 says lost "queueing job|going on after step" || fail "lost is not queued again" "$work/lost.log"
batch_ended_well lost grpo "$lost_job" $batch_steps
same "weights (lost)" "$wanted_batch" "$(hash_of lost)"

within "$limit" is_over "$pools_job" || fail "pools is not over: $(state_of "$pools_job")" "$work/pools.log"
[ "$(state_of "$pools_job")" = COMPLETED ] || fail "pools is $(state_of "$pools_job")" "$work/pools.log"
holds "$work/pools.log" "rollout rank [45] has joined from outside"
same "weights (pools)" "$wanted_batch" "$(hash_of pools)"
nothing_left_anywhere pools
