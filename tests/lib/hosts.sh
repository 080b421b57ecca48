# Sourced after jobs.sh by tests that need several hosts (tests/cluster/netlab): hosts_up N, then run_on, start_on_hosts and end_on_hosts.
netlab=$POISE_SOURCE_DIR/tests/cluster/netlab
export NETLAB_DIR=$work/net

hosts_probe() { # skips the test where hosts cannot be made
    local reason
    reason=$("$netlab" probe) || { echo "skipped: $reason"; exit 77; }
}
hosts_down() {
    local code=$?
    trap - EXIT
    kill_all
    "$netlab" down 2>/dev/null
    (exit "$code")
    clean_up
}
hosts_up() { # COUNT
    trap hosts_down EXIT
    "$netlab" up "$1" || fail "the hosts could not be made"
}

# start_on_hosts NAME "HOST HOST ..." COMMAND [KEY=VALUE]...: a run under launch/run, started on the first rank's host; rank i runs on the
# i-th host named. Daemons of mpirun find out within seconds, not minutes, that a host is gone for good.
start_on_hosts() {
    local name=$1 hosts=$2 command=$3 more=() word
    shift 3
    for word in "$@"; do more+=(--set "$word"); done
    # shellcheck disable=SC2086
    printf '%s\n' $hosts >"$work/$name.hosts"
    TMPDIR=$NETLAB_DIR/local "$netlab" exec "${hosts%% *}" timeout -k 5 "$limit" "$launch" --replace "${replace:-0}" -n "$(wc -l <"$work/$name.hosts")" \
        --mca plm_rsh_agent "$netlab rsh" --map-by seq --hostfile "$work/$name.hosts" --mca oob_tcp_keepalive_time 3 \
        --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3 -- \
        "$command" "${settings[@]}" --set "output=$work/$name" ${more[@]+"${more[@]}"} >>"$work/$name.log" 2>&1 </dev/null &
    background=$!
}
# The living poise process of a world rank of a run, of whatever starter (its scorers have its environment, but are not it).
rank_of_run() { # NAME RANK
    local pid
    for pid in $(processes "poise poise_faults"); do
        grep -qzE "^(OMPI_COMM_WORLD_RANK|PMIX_RANK)=$2\$" "/proc/$pid/environ" 2>/dev/null || continue
        grep -qzx "output=$work/$1" "/proc/$pid/cmdline" 2>/dev/null || continue
        grep -qz '^__scorer$' "/proc/$pid/cmdline" 2>/dev/null || echo "$pid"
    done
}
# The process of launch/run itself.
script_of() { # NAME
    local pid
    for pid in $(processes bash); do
        tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "launch/run .*output=$work/$1 " && echo "$pid" && return
    done
}
rank_is_gone() { [ -z "$(rank_of_run "$1" "$2")" ]; }
# Every living process of a run on hosts, mpirun and its daemons included.
of_run() { # NAME
    local pid address
    read -r address <"$work/$1.hosts"
    address=$(awk -v host="$address" '$2 == host { print $1 }' "$NETLAB_DIR/hosts")
    for pid in $(processes "poise poise_faults mpirun orted"); do
        case $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) in *"/$1 "* | *"/$1.hosts "* | *orted*"tcp://$address"[:,]*) echo "$pid" ;; esac
    done
}
