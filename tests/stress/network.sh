#!/usr/bin/env bash
# A GRPO job over hosts with a network between them (tests/cluster/netlab): learners and reward rank on one, rollout workers on others. Cables
# are pulled for a moment, for longer than a heartbeat, and for good; packets get lost and bandwidth falls. The weights must be those of the
# same run on one quiet machine, every lost worker must be named, and ranks that are cut off must end by themselves. A worker
# that dies while packets get lost is replaced. A job whose learners' host is cut off ends within its deadlines, with one message.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
. "$(dirname "$0")/../lib/hosts.sh"
hosts_probe
heartbeat=4 start=30 steps=30
make_data
make_start 24
grpo_settings
settings+=(--set "optimizer.steps=$steps" --set "deadline.heartbeat_s=$heartbeat" --set checkpoint.every=10 --set checkpoint.keep=2)
must_job undisturbed 6 grpo roles.learners=2
wanted=$(hash_of undisturbed)
has_hash undisturbed
some undisturbed gradient_norm 'x > 0'
echo "undisturbed, on one machine: $wanted"
hosts_up 9

# ---- what crosses the cable in the clear ----
# Counts packets that leave the host's cable with a word in them.
watch_word() { "$netlab" exec "$1" iptables -w -A OUTPUT -o eth0 -m string --algo bm --string "$2" -m comment --comment "word-$2"; }
seen_word() { "$netlab" exec "$1" iptables -w -L OUTPUT -v -n -x | awk -v word="word-$2" '$0 ~ word { print $1 }'; }

# ---- disturbances; each knows host and rank, returns when it is over ----
is_named() { # NAME RANK: the log says that the worker is gone, while what, and why
    grep -Eq "rollout rank $2 is gone while [^:]+: " "$work/$1.log"
}
expect_named() {
    within 60 is_named "$1" "$2" || fail "$1: the loss of rank $2 is not named" "$work/$1.log"
    holds "$work/$1.log" "rollout rank $2 is gone while [^:]+: "
}
ends_itself() { # NAME RANK: a rank that hears nothing ends, though nobody can reach it
    within 90 rank_is_gone "$1" "$2" || fail "$1: rank $2 was cut off and is still there" "$work/$1.log"
}
pause() { # TENTHS: a random moment up to so many tenths of a second
    random "$1"
    sleep "$((drawn / 10)).$((drawn % 10))"
}
disturb() { # NAME KIND HOST RANK
    local percent rates=(500kbit 1mbit 4mbit)
    echo "step $(steps_of "$1"): $2 on $3 (rank $4)"
    case $2 in
    blink) # shorter than a heartbeat: what was under way is sent again
        "$netlab" cut "$3"
        pause 15
        "$netlab" heal "$3"
        ;;
    longer)
        "$netlab" cut "$3"
        expect_named "$1" "$4"
        pause 20
        "$netlab" heal "$3"
        ends_itself "$1" "$4"
        ;;
    forever)
        "$netlab" cut "$3"
        expect_named "$1" "$4"
        ends_itself "$1" "$4"
        ;;
    drop)
        random 26
        percent=$((drawn + 5))
        "$netlab" drop "$3" "0.$(printf %02d $percent)"
        echo "  $percent % of the packets, each way"
        pause 30
        sleep 1
        "$netlab" undrop "$3"
        ;;
    slow)
        random 3
        "$netlab" rate "$3" "${rates[$drawn]}"
        echo "  ${rates[$drawn]}"
        pause 30
        sleep 1
        "$netlab" unrate "$3"
        ;;
    esac
    stress_count "network: $2" 1
}

gone() { ! kill -0 "$background" 2>/dev/null; }
run_is_over() { ! kill -0 "$1" 2>/dev/null; }
nothing_shared() { # NAME HOST...
    local host shared
    for host in "${@:2}"; do
        shared=$("$netlab" exec "$host" find /dev/shm -name '*poise*')
        [ -z "$shared" ] || fail "$1 left shared memory on $host: $shared"
    done
}
nothing_left() { [ -z "$(of_run "$1")" ]; }
shuffle() { # WORD...: sets `shuffled`
    local word list=("$@") n=$#
    shuffled=()
    while [ "$n" -gt 0 ]; do
        random "$n"
        shuffled+=("${list[$drawn]}")
        n=$((n - 1))
        list[drawn]=${list[$n]}
    done
}

# ---- one round: a job with a worker on each of h1, h2, h3, and every kind of disturbance in random order ----
round() { # NAME
    local name=$1 kind host left=(1 2 3) at code rank
    limit=600 start_on_hosts "$name" "h0 h0 h1 h2 h3 h0" grpo roles.learners=2
    within "$limit" has_steps "$name" 1 || fail "$name did not get to step 1" "$work/$name.log"
    # As mpirun's daemon on a host that has lost the others does before it kills its ranks: no request to stop the run.
    kill -TERM "$(rank_of_run "$name" 2)"
    stress_count "network: TERM to a worker" 1
    "$netlab" rate h0 80mbit # weights take their time, so that a step is long enough to be hit
    shuffle blink longer drop slow forever
    for kind in "${shuffled[@]}"; do
        pause 10
        gone && fail "$name was done before it could be disturbed: ask for more steps" "$work/$name.log"
        random ${#left[@]}
        at=$drawn
        host=${left[$at]}
        disturb "$name" "$kind" "h$host" $((host + 1))
        case $kind in longer | forever) left=("${left[@]:0:at}" "${left[@]:at+1}") ;; esac
    done
    { wait "$background"; code=$?; } 2>/dev/null
    [ "$code" = 0 ] || fail "$name ended with $code" "$work/$name.log"
    holds "$work/$name/result.json" '"exit": *0'
    [ "$(steps_of "$name")" = "$steps" ] || fail "$name has $(steps_of "$name") steps" "$work/$name.log"
    holds "$work/$name.log" "rollout rank 2 was sent TERM"
    all "$name" groups 'x == 4'
    all "$name" completions/excluded 'x == 0'
    all "$name" logprob_max_abs_diff 'x == 0'
    same "weights ($name)" "$wanted" "$(hash_of "$name")"
    for rank in 0 1 2 3 4 5; do ends_itself "$name" $rank; done
    nothing_shared "$name" h0 h1 h2 h3
    # A daemon of mpirun on a host that is cut off has news it cannot get rid of, and waits for the cable.
    for host in h1 h2 h3; do "$netlab" heal $host; done
    "$netlab" unrate h0
    within 90 nothing_left "$name" || fail "$name left processes: $(of_run "$name")" "$work/$name.log"
}

# ---- the learners' own host is cut off ----
cut_learners() { # NAME: in the background; $work/NAME.end says when and how it ended
    local name=$1
    # (It outlives the round that is run meanwhile.)
    limit=840 start_on_hosts "$name" "h4 h4 h5 h6 h4" grpo roles.learners=2 optimizer.steps=100000 "deadline.start_s=$start"
    cut_job=$background
    within "$limit" has_steps "$name" 2 || fail "$name did not get to step 2" "$work/$name.log"
    # The ranks must end by themselves: the script that would end what is left stands still meanwhile.
    cut_script=$(script_of "$name")
    [ -n "$cut_script" ] || fail "$name: launch/run is not to be found"
    kill -STOP "$cut_script"
    "$netlab" cut h4
    cut_at=$SECONDS
    stress_count "network: learners' host" 1
    (trap - EXIT; time_ranks "$name") & # the round that follows may take longer than they have
    cut_watch=$!
}
ranks_are_gone() { # NAME
    local rank
    for rank in 0 1 2 3 4; do rank_is_gone "$1" $rank || return 1; done
}
time_ranks() { # NAME: $work/NAME.took says how long they took
    while ! ranks_are_gone "$1" && [ $((SECONDS - cut_at)) -lt 200 ]; do sleep 1; done
    echo $((SECONDS - cut_at)) >"$work/$1.took"
}
cut_learners_ended() { # NAME
    local name=$1 code took
    wait "$cut_watch"
    took=$(cat "$work/$name.took")
    [ "$took" -le $((heartbeat + start + 40)) ] && ranks_are_gone "$name" || fail "$name: ranks are still there, $took s after the cut" "$work/$name.log"
    echo "$name: all ranks have ended by themselves, $took s after the cut"
    kill -CONT "$cut_script"
    within $((heartbeat + start + 60)) run_is_over "$cut_job" || fail "$name has not ended, $((SECONDS - cut_at)) s after the cut" "$work/$name.log"
    { wait "$cut_job"; code=$?; } 2>/dev/null
    [ "$code" = 1 ] || fail "$name ended with $code" "$work/$name.log"
    holds "$work/$name.log" "0 of 2 rollout workers"
    [ "$(grep -c '^poise: .*0 of 2 rollout workers' "$work/$name.log")" = 1 ] || fail "$name says it more than once" "$work/$name.log"
    nothing_shared "$name" h4 h5 h6
    "$netlab" heal h4
    within 90 nothing_left "$name" || fail "$name left processes: $(of_run "$name")" "$work/$name.log"
    echo "$name: code $code, nothing left, $((SECONDS - cut_at)) s after the cut at most"
}

# ---- a worker dies while packets get lost ----
# launch/run, on another host than the reward rank, replaces it, and the new one joins, gets its weights and delivers across the loss.
replacement_works() { # NAME STEPS: it is here, and so many are done
    grep -q "rollout rank 3 has joined from outside" "$work/$1.log" && has_steps "$1" "$2"
}
replaced() { # NAME
    local name=$1 percent before code
    random 11
    percent=$((drawn + 5))
    replace=2 start_on_hosts "$name" "h8 h7 h7" grpo
    within "$limit" has_steps "$name" 1 || fail "$name did not get to step 1" "$work/$name.log"
    "$netlab" drop h8 "0.$(printf %02d $percent)"
    kill -KILL "$(rank_of_run "$name" 1)"
    before=$(steps_of "$name")
    # What the dead worker had delivered may be enough for one step.
    within 90 replacement_works "$name" $((before + 2)) || fail "$name: no worker came in place of rank 1, with $percent % of the packets lost" "$work/$name.log"
    "$netlab" undrop h8
    { wait "$background"; code=$?; } 2>/dev/null
    [ "$code" = 0 ] || fail "$name ended with $code" "$work/$name.log"
    holds "$work/$name.log" "rollout rank 1 is gone while [^:]+: "
    holds "$work/$name.log" "launch/run: starting a rollout worker in place of rank 1"
    holds "$work/$name.log" "rollout rank 3 has joined from outside"
    [ "$(steps_of "$name")" = "$steps" ] || fail "$name has $(steps_of "$name") steps" "$work/$name.log"
    same "weights ($name, $percent % of the packets lost)" "$wanted" "$(hash_of "$name")"
    within 90 nothing_left "$name" || fail "$name left processes: $(of_run "$name")" "$work/$name.log"
    stress_count "network: worker killed and replaced while packets get lost" 1
}

# The reward rank, which writes the result, away from launch/run, on a host with temporary files of its own.
start_on_hosts away "h7 h7 h8 h8" grpo roles.learners=2 optimizer.stop_after=2
away_job=$background

rounds=$(amount 1 40)
for ((n = 1; n <= rounds; n++)); do
    [ "$n" = 1 ] || time_left || break
    cut_learners "cut-learners-$n"
    if [ "$n" = 1 ]; then
        for word in CURVE NULL logprobs checksum; do watch_word h1 "$word"; done
    fi
    round "round-$n"
    if [ "$n" = 1 ]; then
        [ "$(seen_word h1 CURVE)" -gt 0 ] || fail "no stream on the cable names CURVE"
        for word in logprobs checksum; do
            [ "$(seen_word h1 $word)" = 0 ] || fail "\"$word\" crosses the cable in the clear"
        done
        echo "on the cable: CURVE in $(seen_word h1 CURVE) packets, no message in the clear"
    fi
    if [ "$n" = 1 ]; then
        { wait "$away_job"; code=$?; } 2>/dev/null
        [ "$code" = 0 ] || fail "a run whose reward rank is on another host ended with $code" "$work/away.log"
        has_hash away
        grep "cannot write events" "$work/away.log" && fail "the reward rank looks for the folder of launch/run on its own host" "$work/away.log"
    fi
    replaced "replaced-$n"
    cut_learners_ended "cut-learners-$n"
    rm -rf "${work:?}/round-$n" "$work/replaced-$n" "$work/cut-learners-$n"
done
