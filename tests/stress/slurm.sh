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
pairs=(h0,h1 h2,h3 h4,h5) # of nodes
make_data
make_start 24
hosts_up 6
"$slurmlab" start || fail "Slurm does not start"

limits=(--set deadline.start_s=$start_s --set deadline.heartbeat_s=$heartbeat_s --set deadline.collective_s=$collective_s
    --set deadline.step_s=$step_s --set checkpoint.keep=2)
batch_steps=40
settings_of() { # COMMAND: sets settings, ranks, learners
    local steps=8
    if [ "$1" = batch ]; then steps=$batch_steps; fi
    ranks=4 learners=4
    if [ "$1" = sft ]; then
        sft_settings
    else
        grpo_settings
        settings+=(--set roles.learners=2 --set "optimizer.steps=$steps")
        ranks=5 learners=2
    fi
    settings+=("${limits[@]}" --set checkpoint.every=2)
}
# What runs that nothing happens to end in, under mpirun; and how often their ranks come to each kind of call, for choosing where to strike.
declare -A wanted
plain() { # NAME COMMAND
    settings_of "$1"
    export POISE=$faulty POISE_FAULT_COUNTS=$work/counts-$1
    must_job "plain-$1" $ranks "$2"
    has_hash "plain-$1"
    echo "mpirun, $1: $(hash_of "plain-$1")"
}
cases=()
in_background() { # COMMAND...: a case, which ends the test when it fails
    (trap - EXIT; "$@") &
    cases+=($!)
}
all_of() { # waits for the cases
    local pid bad=0
    for pid in "${cases[@]}"; do wait "$pid" || bad=1; done
    cases=()
    [ "$bad" = 0 ] || fail "a case failed (above)"
}
in_background plain sft sft
in_background plain grpo grpo
in_background plain batch grpo
all_of
for name in sft grpo batch; do wanted[$name]=$(hash_of "plain-$name"); done

left_of() { # NAME: processes of Poise's with the run's output folder
    local pid
    for pid in $(processes "poise poise_faults mpirun orted srun"); do
        { tr '\0' '\n' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qx "output=$work/$1" && echo "$pid"
    done
}
nothing_of() { [ -z "$(left_of "$1")" ]; }
nothing_left() { # NAME NODES: no process anywhere, and nothing on its nodes (comma between), which no other job has meanwhile
    local host shared
    within 30 nothing_of "$1" || fail "$1 left processes: $(left_of "$1")" "$work/$1.log"
    for host in ${2//,/ }; do
        shared=$("$netlab" exec "$host" find /dev/shm "$NETLAB_DIR/local" -name '*poise*' ! -name 'poise-run.*' ! -path '*/poise-run.*')
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
undisturbed() { # COMMAND NODES
    local name=srun-$1
    settings_of "$1"
    by_srun "$name" $ranks "$POISE" "$1" -N 2 "--nodelist=$2" || fail "$name ended with $?" "$work/$name.log"
    same "weights ($name)" "${wanted[$1]}" "$(hash_of "$name")"
    nothing_left "$name" "$2"
}
# ends NAME NODES COMMAND RANK ACTION CLASS SHARE: on these two nodes, which no other job has (Open MPI jobs that start beside each other on a
# node may take each other's connections). The rank does that after so many hundredths of its calls of the class. In a subshell of its own.
ends() {
    local name=$1 nodes=$2 command=$3 rank=$4 action=$5 class=$6 begun=$SECONDS code took count point
    settings_of "$command"
    count=$(sed -n "s/^$class //p" "$work/counts-$command.$rank")
    point=$((count * $7 / 100))
    [ "$point" -gt 0 ] || fail "$name: rank $rank of $command does not come to $class often enough (${count:-0})"
    echo "$command, rank $rank: $action at $class $point of $count" >"$work/$name.log"
    POISE_FAULT=$class:$point:$action@$rank by_srun "$name" $ranks "$faulty" "$command" -N 2 "--nodelist=$nodes"
    code=$?
    took=$((SECONDS - begun))
    holds "$work/$name.log" "^fault: rank $rank: $action"
    case $code in 0 | 124) fail "$name ended with $code" "$work/$name.log" ;; esac
    [ $took -le $((start_s + 40 + 60)) ] || fail "$name took $took s" "$work/$name.log"
    [ "$(grep -c '^poise: .*start the run again to go on' "$work/$name.log")" -le 1 ] || fail "$name says it more than once" "$work/$name.log"
    holds "$work/$name.log" "^poise: .*rank $rank (is gone|has been in|hangs in|has hung in|stands still).*\""
    nothing_left "$name" "$nodes"
    # The same command, with another number of ranks, goes on.
    settings_of "$command"
    [ "$command" = sft ] && ranks=3
    by_srun "$name" $ranks "$POISE" "$command" -N 2 "--nodelist=$nodes" || fail "$name does not go on" "$work/$name.log"
    same "weights ($name)" "${wanted[$command]}" "$(hash_of "$name")"
    nothing_left "$name" "$nodes"
    echo "$name: code $code after $took s, resumed to the same weights"
    if [ "$command" = grpo ] && [ "$rank" -ge $learners ]; then command="reward rank"; fi
    stress_count "slurm: $command, $action" 1
}
in_background undisturbed sft "${pairs[0]}"
in_background undisturbed grpo "${pairs[1]}"
all_of
# The reward rank meets the others in a few collectives only, at the start and the end; all along it sends, and writes trajectories.
strikes=("sft 1 kill collective 60" "grpo 0 hang collective 60" "grpo 4 stop send 50")
if [ "${POISE_STRESS:-short}" = full ]; then
    strikes+=("sft 2 stop collective 50" "grpo 4 kill send 60" "grpo 4 hang write 50" "grpo 1 kill collective 70" "grpo 0 stop collective 40"
        "sft 3 hang collective 80")
fi
strike_at_random() {
    local command=sft class=collective actions=(kill stop hang) rank action
    random 3
    action=${actions[$drawn]}
    random 4
    rank=$drawn
    random 2
    if [ "$drawn" = 1 ]; then
        command=grpo
        rank=$((rank < 2 ? rank : 4))
        if [ $rank = 4 ]; then class=send; fi
        if [ $rank-$action = 4-hang ]; then class=write; fi
    fi
    random 60
    strikes+=("$command $rank $action $class $((drawn + 30))")
}
struck=0
while [ $struck -lt ${#strikes[@]} ]; do
    for nodes in "${pairs[@]}"; do
        # shellcheck disable=SC2086
        [ $struck -ge ${#strikes[@]} ] || in_background ends "srun-$struck" "$nodes" ${strikes[$struck]}
        struck=$((struck + 1))
    done
    all_of
    # The batch jobs below want their part of the time.
    if [ "${POISE_STRESS:-short}" = full ] && [ $struck -lt 120 ] && time_left 300; then
        while [ ${#strikes[@]} -lt $((struck + 3)) ]; do strike_at_random; done
    fi
done

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
batch_ended_well() { # NAME NODES JOB STEPS HASH
    within "$limit" is_over "$3" || fail "$1 is not over: $(state_of "$3")" "$work/$1.log"
    [ "$(state_of "$3")" = COMPLETED ] || fail "$1 is $(state_of "$3")" "$work/$1.log"
    holds "$work/$1.log" "queueing job $3 again"
    holds "$work/$1.log" "going on after step"
    [ "$(steps_of "$1")" = "$4" ] || fail "$1 has $(steps_of "$1") steps" "$work/$1.log"
    nothing_left "$1" "$2"
    same "weights ($1)" "$5" "$(hash_of "$1")"
}
# A worker dies, the run goes on; asked to stop, it queues itself again and ends in the same bits.
asked() {
    local victim
    settings_of batch
    batch asked grpo.sbatch "--nodelist=h0,h1 -N 2 -n 5"
    within "$limit" has_steps asked 2 || fail "asked did not get to step 2" "$work/asked.log"
    victim=$(rank_of_run asked 2)
    [ -n "$victim" ] || fail "asked: no process has rank 2" "$work/asked.log"
    kill -KILL "$victim"
    stress_count "slurm: worker killed in a batch job" 1
    within 60 says asked "rollout rank 2 is gone" || fail "the worker's death is not named" "$work/asked.log"
    "$slurmlab" exec scancel --signal=USR1 --batch "$job_id"
    stress_count "slurm: USR1 and requeue" 1
    batch_ended_well asked h0,h1 "$job_id" $batch_steps "${wanted[batch]}"
}
# A node is lost with the reward rank on it: the run ends, the job queues itself again and goes on elsewhere.
lost() {
    local node
    settings_of batch
    batch lost grpo.sbatch "--exclude=h0,h1,h4 -N 2 -n 5" # on h2 and h3; h5 is there for what comes after
    within "$limit" has_steps lost 4 || fail "lost did not get to step 4" "$work/lost.log"
    node=$("$slurmlab" exec scontrol show job "$job_id" | sed -n 's/^ *NodeList=//p')
    node=$("$slurmlab" exec scontrol show hostnames "$node" | tail -n 1) # the last ranks' one; the script runs on the first
    echo "$node is cut off after step $(steps_of lost)"
    "$netlab" cut "$node"
    stress_count "slurm: node lost" 1
    batch_ended_well lost h2,h3,h5 "$job_id" $batch_steps "${wanted[batch]}"
    "$netlab" heal "$node"
}
# Rollout workers that are a component of their own, on a node of their own.
pools() {
    settings_of batch
    batch pools grpo-pools.sbatch "--nodelist=h0 -n 4 : --nodelist=h1 -n 2 --cpus-per-task=1"
    within "$limit" is_over "$job_id" || fail "pools is not over: $(state_of "$job_id")" "$work/pools.log"
    [ "$(state_of "$job_id")" = COMPLETED ] || fail "pools is $(state_of "$job_id")" "$work/pools.log"
    holds "$work/pools.log" "rollout rank [45] has joined from outside"
    same "weights (pools)" "${wanted[batch]}" "$(hash_of pools)"
    nothing_left pools h0,h1
}
# Slurm itself sends USR1 when the time is nearly up, here 15 to 45 s after the start; weights take more than a second a step until then.
time_is_up() {
    settings_of batch
    "$netlab" rate h0 40mbit
    "$netlab" rate h1 40mbit
    batch time-limit grpo.sbatch "--nodelist=h0,h1 -N 2 -n 5 --time=2 --signal=B:USR1@75"
    within "$limit" says time-limit "queueing job $job_id again" || fail "time-limit is not queued again" "$work/time-limit.log"
    "$netlab" unrate h0
    "$netlab" unrate h1
    batch_ended_well time-limit h0,h1 "$job_id" $batch_steps "${wanted[batch]}"
    stress_count "slurm: time limit and requeue" "$(grep -c "queueing job $job_id again" "$work/time-limit.log")"
}
in_background lost
in_background asked
if [ "${POISE_STRESS:-short}" = full ]; then
    all_of
    in_background pools
    all_of
    in_background time_is_up
fi
all_of
