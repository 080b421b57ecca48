#!/usr/bin/env bash
# Scorers that crash, hang, fork, eat memory, answer nonsense or without end, close their connection, stop, talk or leave processes behind,
# in GRPO runs: the run goes on; exactly the completions whose scorers failed are excluded, and counted by outcome; advantages are those of
# the others alone; the weights are the same for two layouts of ranks and scorers; nothing is left behind. Above the share that may fail
# the run ends and says why, also when no scorer can start at all; one that hangs does not outlive a reward rank that is killed.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
faults=${POISE_FAULTS:-$POISE_SOURCE_DIR/build/release/tests/poise_faults}
tools=$(dirname "$faults")
[ -x "$faults" ] || { echo "skipped: $faults is not built"; exit 77; }
make_data
make_start 24
grpo_settings
# Lengths are paid for, in steps of 1/32: rewards differ from the first step on, and their sums are exact.
settings+=(--set grpo.max_new_tokens=32 --set grpo.reward_length=1 --set grpo.reward_answer=0
    --set metrics.trajectories=true --set reward.memory_mb=512 --set deadline.heartbeat_s=20)
export POISE=$faults

left_behind() { [ "$(processes "poise poise_faults mpirun" | wc -l)" -gt 0 ]; }
nothing_left() { ! left_behind; }
check_nothing_left() { within 15 nothing_left || fail "$1 left processes behind: $(processes "poise poise_faults mpirun" | tr '\n' ' ')"; }

errors="crash+exit+garbage+flood+memory+close+stale"
timeouts="hang+deaf+half+fork+stop"
harmless="daemon+chatter"
declare -A outcome
for kind in ${errors//+/ }; do outcome[$kind]=error; done
for kind in ${timeouts//+/ }; do outcome[$kind]=timeout; done
for kind in ${harmless//+/ }; do outcome[$kind]=ok; done

sum_of() { metric "$1" "$2" | awk '{ s += $1 } END { print s + 0 }'; }
# Lines "GROUP INDEX OUTCOME" of a run's faults, each once however often it was tried.
faults_of() {
    sort -u "$work/$1.faults" | while read -r serial index kind; do echo "$serial $index ${outcome[$kind]}"; done
}
# check_run NAME: what the metrics and the trajectories say is what was injected.
check_run() {
    local name=$1 wanted got
    for kind in error timeout; do
        same "completions with outcome $kind ($name)" "$(faults_of "$name" | grep -c " $kind\$")" "$(sum_of "$name" "completions/$kind")"
    done
    same "completions excluded ($name)" "$(faults_of "$name" | grep -cv ' ok$')" "$(sum_of "$name" completions/excluded)"
    "$tools/tool_trajectory" "$work/$name"/trajectories/step-*.h5 >"$work/$name.txt" || fail "the trajectories of $name cannot be read"
    wanted=$(faults_of "$name" | grep -v ' ok$' | cut -d' ' -f1,2 | sort)
    got=$(awk 'int($3 / 2) % 2 { print $1, $2 }' "$work/$name.txt" | sort)
    [ "$wanted" = "$got" ] || fail "$name excluded other completions than those that were hit: $(diff <(echo "$wanted") <(echo "$got"))"
    # Advantages anew, from the rewards of those that count.
    awk '
        function abs(x) { return x < 0 ? -x : x }
        { n++; g[n] = $1; out[n] = int($3 / 2) % 2; r[n] = $4; a[n] = $5; all[$1] = 1
          if (!out[n]) { count[$1]++; sum[$1] += $4 } }
        END {
            for (i = 1; i <= n; i++) if (!out[i]) squares[g[i]] += (r[i] - sum[g[i]] / count[g[i]]) ^ 2
            for (i = 1; i <= n; i++) {
                spread = count[g[i]] > 1 && squares[g[i]] > 0
                want = out[i] || !spread ? 0 : (r[i] - sum[g[i]] / count[g[i]]) / (sqrt(squares[g[i]] / (count[g[i]] - 1)) + 1e-4)
                if (abs(want - a[i]) > 1e-12) { print "group " g[i] ": advantage " a[i] ", not " want; bad = 1 }
                if (out[i] && r[i] != 0) { print "group " g[i] ": an excluded completion has reward " r[i]; bad = 1 }
                moved += a[i] != 0
            }
            print "advantages that are not 0: " moved " of " n
            exit bad || !moved
        }' "$work/$name.txt" || fail "$name: advantages are not those of the completions that count"
}

# ---- random faults of every kind, twice over the same ----
inject() { # NAME RANKS [KEY=VALUE]...
    local name=$1 ranks=$2
    shift 2
    rm -f "$work/$name.faults"
    POISE_SCORER_FAULT_LOG=$work/$name.faults job "$name" "$ranks" grpo reward.timeout_s="$timeout" grpo.excluded_limit=1 "$@" ||
        fail "$name ended with $?" "$work/$name.log"
    check_nothing_left "$name"
    check_run "$name"
}
timeout=$(amount 3 4)
rounds=$(amount 1 40)
for ((round = 1; round <= rounds; round++)); do
    [ "$round" = 1 ] || time_left || break
    random 1000000
    export POISE_SCORER_FAULT="$errors+$timeouts+$harmless:$(amount 400 300):$drawn"
    echo "round $round: $POISE_SCORER_FAULT"
    inject "one-$round" 3 roles.learners=1 roles.rollouts=1 reward.scorers=$(amount 16 8)
    inject "other-$round" 5 roles.learners=2 roles.rollouts=2 reward.scorers=$(amount 24 5) grpo.launch_leaves=1
    same "faults of round $round" "$(faults_of "one-$round" | sort | md5sum)" "$(faults_of "other-$round" | sort | md5sum)"
    has_hash "one-$round"
    same "weights of round $round" "$(hash_of "one-$round")" "$(hash_of "other-$round")"
    while read -r number kind; do
        stress_count "scorer fault: $kind" "$number"
    done < <(cat "$work/one-$round.faults" "$work/other-$round.faults" | cut -d' ' -f3 | sort | uniq -c)
    rm -rf "${work:?}/one-$round" "${work:?}/other-$round"
done

# ---- more than may fail ----
ends() { # NAME PATTERN PLAN [KEY=VALUE]...
    local name=$1 pattern=$2 code
    export POISE_SCORER_FAULT=$3
    shift 3
    job "$name" 3 grpo roles.learners=1 roles.rollouts=1 "$@"
    code=$?
    same "exit code of $name" 1 "$code"
    holds "$work/$name.log" "$pattern"
    check_nothing_left "$name"
    stress_count "runs ended by the share of failures" 1
}
ends crashing 'completions of step 0 have no reward \(0 ran out of time, [0-9]+ failed\), which is more than grpo.excluded_limit \(0.25\) allows; the most frequent reason, [0-9]+ times: the scorer failed: it was ended by signal 11' \
    "crash:1000" grpo.excluded_limit=0.25
same "completions that were tried before it ended" 5 "$(grep -c 'has no reward: ' "$work/crashing.log")"
ends no-start 'the most frequent reason, [0-9]+ times: the scorer failed: it ended with code 7' start

# ---- a reward rank that is killed while its scorers hang ----
export POISE_SCORER_FAULT="deaf+fork+stop:1000" POISE_SCORER_FAULT_LOG=$work/killed.faults
start_job killed 3 grpo roles.learners=1 roles.rollouts=1 reward.scorers=3 reward.timeout_s=1000
within 60 test -s "$work/killed.faults" || fail "no scorer was hit" "$work/killed.log"
reward=""
for pid in $(processes "poise poise_faults"); do
    grep -qz '^OMPI_COMM_WORLD_RANK=2$' "/proc/$pid/environ" 2>/dev/null && ! grep -qz '^__scorer$' "/proc/$pid/cmdline" && reward=$pid
done
[ -n "$reward" ] || fail "no process has rank 2" "$work/killed.log"
kill -KILL "$reward"
end_job
[ "$code" != 0 ] || fail "a run whose reward rank was killed ended with 0"
check_nothing_left killed
stress_count "reward rank killed while scorers hang" 1
