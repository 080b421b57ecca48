#!/usr/bin/env bash
# Rollout workers die, stand still, come back, never finish, and their frames are lost, doubled, delayed and sent again; launch/run replaces
# the dead. Whatever happens, the run ends with 0, every fault is named in its events, each step has exactly its groups (the trajectories are
# the undisturbed run's, byte for byte) and so have the weights.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
POISE_FAULTS=${POISE_FAULTS:-$POISE_SOURCE_DIR/build/release/tests/poise_faults}
[ -x "$POISE_FAULTS" ] || { echo "skipped: $POISE_FAULTS is not built"; exit 77; }
limit=${POISE_JOB_LIMIT:-900}
small_model
make_data
make_start 200
grpo_settings
settings+=(--set roles.learners=1 --set roles.rollouts=3 --set grpo.prompts=6 --set grpo.max_new_tokens=48 --set metrics.trajectories=true
    --set optimizer.steps="$(amount 120 600)" --set rollout.credits=3 --set deadline.heartbeat_s=3 --set deadline.group_s=3)
export POISE_STUCK=1 POISE_WORKING=$work/working
mkdir "$POISE_WORKING"

# Ids of living workers that have delivered something, one a line: the death of one that is still starting is no event of the run.
workers() {
    local pid
    for pid in $(processes poise_faults); do [ ! -e "$POISE_WORKING/$pid" ] || echo "$pid"; done
}
some_work() { ended || [ -n "$(workers)" ]; }
is_over() { ! grep -q '^State:[[:space:]]*[^Z]' "/proc/$1/status" 2>/dev/null; }
# One that was given up is no victim any more; what it does itself when it hears of it is to end.
given_up() { # NAME PID KIND
    within "$limit" is_over "$2" || fail "$1: $3: process $2 does not end, though it was given up" "$work/$1.log"
}
kill_faulty() {
    local pid
    for pid in $(processes "mpirun poise_faults"); do kill -KILL "$pid" 2>/dev/null; done
}
events() { # NAME KIND PATTERN: how many
    local number
    number=$(grep -c "\"kind\":\"$2\".*$3" "$work/$1/events.jsonl" 2>/dev/null)
    echo "${number:-0}"
}
ended() { ! kill -0 "$background" 2>/dev/null; }
here() { echo $(($(events "$1" worker_joined "") - $(events "$1" worker_gone "") - $(events "$1" worker_left ""))); }
enough() { ended || [ "$(here "$1")" -ge "$2" ]; }
more_than() { ended || [ "$(events "$1" "$3" "$4")" -gt "$2" ]; } # NAME COUNT KIND PATTERN
silences() { echo $(($(events "$1" worker_back "$2") + $(events "$1" worker_gone "$2.*no heartbeat"))); } # NAME RANK-PATTERN
came_back() { ended || [ "$(silences "$1" "$3")" -gt "$2" ]; }
# named_as PID: how a line of events names that worker; one that joined later has some number behind the run's five.
named_as() {
    local line number
    line=$({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null)
    number=$({ tr '\0' '\n' <"/proc/$1/environ"; } 2>/dev/null | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')
    case $line in *" --join "*) number='\([5-9]\|[1-9][0-9][0-9]*\)' ;; esac
    echo "\"rank\":$number,"
}

# fault NAME: one fault, of each kind in turn, to a random worker; waits until the run's events name it. Sets `kind`; empty when the run was done
# before that.
fault() {
    local name=$1 pids=() pid event=worker_gone pattern before gone who
    within "$limit" enough "$name" 2 || fail "$name: dead workers are not replaced" "$work/$name.log"
    within "$limit" some_work || fail "$name: no worker delivers anything" "$work/$name.log"
    mapfile -t pids < <(workers)
    kind=""
    [ ${#pids[@]} -gt 0 ] || return
    random ${#pids[@]}
    pid=${pids[$drawn]}
    who=$(named_as "$pid")
    case $who in *:[0-9]*)
        # Given up by now, on a busy machine: about to end by itself.
        [ "$(events "$name" worker_gone "$who")" = 0 ] || { sleep 0.2; return; }
        ;;
    *'":,') return ;; # it is no more
    esac
    case $(((faults + stress_seed) % 6)) in
    0) kind="SIGKILL at a random time" pattern="no \\(heartbeat\\|completion\\)" ;; # whichever deadline is first
    1) kind="SIGKILL while a group is partly delivered" pattern="no \\(heartbeat\\|completion\\)" ;; # whichever deadline is first
    2) kind="SIGSTOP past the heartbeat, and back" pattern="no \\(heartbeat\\|completion\\)" ;; # whichever deadline is first
    3) kind="SIGSTOP within the heartbeat, and back" pattern="" ;;
    4) kind="work loop stuck while heartbeats go on" pattern="no completion" ;;
    *) kind="work loop alive, group never finished" pattern="no completion" ;;
    esac
    pattern="$who.*$pattern"
    before=$(events "$name" $event "$pattern")
    case $kind in
    *random*) kill -KILL "$pid" 2>/dev/null ;;
    *partly*) kill -RTMIN+3 "$pid" 2>/dev/null ;;
    *stuck*) kill -RTMIN+1 "$pid" 2>/dev/null ;;
    *alive*) kill -RTMIN+2 "$pid" 2>/dev/null ;;
    *within*)
        before=$(silences "$name" "$who")
        gone=$(events "$name" worker_gone "$who.*no heartbeat")
        kill -STOP "$pid" 2>/dev/null
        sleep 2.4
        kill -CONT "$pid" 2>/dev/null
        within "$limit" came_back "$name" "$before" "$who" || fail "$name: $kind: no event names it" "$work/$name.log"
        [ "$(silences "$name" "$who")" -gt "$before" ] || kind=""
        # On a busy machine it may have been given up: that counts as what it was.
        [ "$(events "$name" worker_gone "$who.*no heartbeat")" = "$gone" ] || { kind=${kind/within/past} && sleep 1; }
        return
        ;;
    *) kill -STOP "$pid" 2>/dev/null ;;
    esac
    within "$limit" more_than "$name" "$before" $event "$pattern" ||
        fail "$name: $kind (process $pid, $who): no event names it" "$work/$name.log"
    case $kind in
    *past*)
        kill -CONT "$pid" 2>/dev/null # it finds that it was given up, and ends
        given_up "$name" "$pid" "$kind"
        ;;
    *stuck* | *alive*) kill -KILL "$pid" 2>/dev/null ;;
    esac
    [ "$(events "$name" "$event" "$pattern")" -gt "$before" ] || kind="" # the run was done before it
}

check() { # NAME: what must hold in the end
    local name=$1 file
    end_job
    kill_faulty
    [ "$code" = 0 ] || fail "$name ended with $code" "$work/$name.log"
    same "weights ($name)" "$wanted" "$(hash_of "$name")"
    [ "$(steps_of "$name")" = "$(steps_of undisturbed)" ] || fail "$name did $(steps_of "$name") steps"
    all "$name" logprob_max_abs_diff 'x == 0'
    for file in "$work"/undisturbed/trajectories/*; do
        cmp "$file" "$work/$name/trajectories/$(basename "$file")" || fail "$name: its groups are not the undisturbed run's"
    done
    [ ! -e "$work/$name/join.json" ] || fail "$name left its join.json"
    grep -Eq '"kind":"[^"]*"' "$work/$name/events.jsonl" || fail "$name has no events"
    # Every line of events about a rank names it and what it was at.
    if grep -E '"kind":"(worker|group|duplicate)' "$work/$name/events.jsonl" | grep -Evq '"rank":[0-9]+.*"phase":"[^"]'; then
        fail "$name: an event without rank or phase" "$work/$name/events.jsonl"
    fi
}

# Trajectories hold the configuration: all runs write to a folder of the same name.
begin() { # NAME
    mkdir "$work/$1"
    ln -sfn "$work/$1" "$work/run"
}
begin undisturbed
must_job undisturbed 5 grpo "output=$work/run"
has_hash undisturbed
some undisturbed gradient_norm 'x > 0'
wanted=$(hash_of undisturbed)
echo "undisturbed: $wanted, $(steps_of undisturbed) steps"

# Unlike within a job of a user, deaths here have no end.
launch_disturbed() { # NAME
    local name=$1
    begin "$name"
    POISE=$POISE_FAULTS timeout -k 5 "$limit" "$launch" --replace 100000 -n 5 grpo "${settings[@]}" --set "output=$work/run" \
        >>"$work/$name.log" 2>&1 </dev/null &
    background=$!
}

echo "== faults of workers"
faults=0
wanted_faults=$(amount 6 200)
declare -A by_kind=()
for ((round = 1; faults < wanted_faults; round++)); do
    [ "$round" = 1 ] || time_left || break
    name=round-$round
    launch_disturbed "$name"
    within "$limit" enough "$name" 3 || fail "$name: its workers do not come" "$work/$name.log"
    while [ "$faults" -lt "$wanted_faults" ] && ! ended; do
        fault "$name"
        [ -n "$kind" ] || continue
        by_kind[$kind]=$((${by_kind[$kind]:-0} + 1))
        faults=$((faults + 1))
        time_left || wanted_faults=$faults
    done
    check "$name"
    echo "$name: $(events "$name" worker_gone "") gone, $(events "$name" worker_joined "") joined, $(events "$name" group_reissued "") groups issued" \
        "again, $(events "$name" duplicate_dropped "") duplicates dropped, $(events "$name" worker_back "") back; $faults faults so far"
    # One may have held none; not all of several.
    [ "$(events "$name" worker_gone "")" -lt 4 ] || [ "$(events "$name" group_reissued "")" -gt 0 ] || fail "$name: no group was issued again"
    rm -rf "${work:?}/$name"
done
for kind in "${!by_kind[@]}"; do stress_count "$kind" "${by_kind[$kind]}"; done

echo "== frames lost, doubled, delayed, sent again"
rounds=$(amount 1 10)
for ((round = 1; round <= rounds; round++)); do
    [ "$round" = 1 ] || time_left || break
    name=frames-$round
    random 100000
    export POISE_FRAMES="lose=0.02,twice=0.03,delay=0.04,replay=0.03,seed=$((drawn + 1))" POISE_FRAMES_COUNTS=$work/$name.counts
    launch_disturbed "$name"
    # Meanwhile a worker is killed: the one that replaces it joins, pulls weights and works through the same.
    within "$limit" enough "$name" 3 || fail "$name: its workers do not come" "$work/$name.log"
    joined=$(events "$name" worker_joined "")
    faults=$((6 - stress_seed % 6)) # the first kind
    kind=""
    until [ -n "$kind" ] || ended; do fault "$name"; done
    [ -n "$kind" ] && within "$limit" more_than "$name" "$joined" worker_joined "" && ! ended ||
        fail "$name: no worker was replaced while frames were disturbed" "$work/$name.log"
    stress_count "$kind while frames are disturbed" 1
    check "$name"
    holds "$work/$name.log" "launch/run: starting a rollout worker in place of rank"
    unset POISE_FRAMES POISE_FRAMES_COUNTS
    read -r sent lost doubled delayed replayed <<<"$(od -An -v -w40 -N40 -td8 "$work/$name.counts")"
    [ "$lost" -gt 0 ] && [ "$doubled" -gt 0 ] && [ "$delayed" -gt 0 ] && [ "$replayed" -gt 0 ] || fail "$name: frames went undisturbed"
    echo "$name: of $sent frames $lost lost, $doubled doubled, $delayed delayed, $replayed sent again long after"
    stress_count "frames lost" "$lost"
    stress_count "frames doubled" "$doubled"
    stress_count "frames delayed past others" "$delayed"
    stress_count "frames sent again long after" "$replayed"
    rm -rf "${work:?}/$name"
done

echo "== wire and coordinator by themselves"
soak=${POISE_BINARY_DIR:-$POISE_SOURCE_DIR/build/release}/tests/unit_soak
if [ -x "$soak" ]; then
    rounds=$(amount 1 20)
    for ((round = 1; round <= rounds; round++)); do
        [ "$round" = 1 ] || time_left || break
        random 1000000
        POISE_STRESS_SEED=$drawn POISE_SOAK_FAULTS=$(amount 500 5000) timeout -k 5 "$limit" "$soak" >"$work/soak.out" 2>"$work/soak.log" ||
            fail "the soak failed (POISE_STRESS_SEED=$drawn)" "$work/soak.log"
        while IFS=$'\t' read -r _ what number; do stress_count "$what" "$number"; done < <(grep "^count" "$work/soak.out")
    done
fi
