#!/usr/bin/env bash
# Rollout pools of a running job: one joins, works, leaves when asked; one is killed; strangers that come with the wrong keys, other data or
# settings of their own are told why. The job's weights come out as if nobody had been there.
. "$(dirname "$0")/../lib/jobs.sh"
make_data
make_start 24
grpo_settings
settings+=(--set roles.learners=1 --set roles.rollouts=1 --set optimizer.steps=80 --set grpo.max_new_tokens=48
    --set deadline.heartbeat_s=4 --set roles.pools_elsewhere=true)

is_there() { [ -s "$1" ]; }
event() { grep -q "\"kind\":\"$2\".*$3" "$work/$1/events.jsonl" 2>/dev/null; } # NAME KIND PATTERN
pool() { # LOG ARGUMENTS...
    local log=$1
    shift
    exec timeout -k 5 "$limit" "$POISE" rollout "$@" >>"$work/$log" 2>&1 </dev/null
}
ends() { # CODE LOG ARGUMENTS...: a pool that ends with this code
    local wanted=$1 log=$2 got
    shift 2
    (pool "$log" "$@")
    got=$?
    [ "$got" = "$wanted" ] || fail "poise rollout $* ended with $got, not $wanted" "$work/$log"
}

must_job alone 3 grpo
has_hash alone
wanted=$(hash_of alone)

start_job joined 3 grpo
run=$work/joined
within "$limit" is_there "$run/join.json" || fail "no join.json came" "$work/joined.log"
[ "$(stat -c %a "$run/join.json")" = 600 ] || fail "join.json can be read by others"
cp "$run/join.json" "$work/kept.json"

echo "== works, and leaves when asked"
(pool first.log --join "$run") &
first=$!
within "$limit" event joined worker_joined '"rank":3' || fail "the pool did not join" "$work/first.log"
echo "== is killed"
(pool second.log --join "$run/join.json" --set threads=2) &
within "$limit" event joined worker_joined '"rank":4' || fail "the second pool did not join" "$work/second.log"
second=$(processes poise | while read -r pid; do grep -qz '^threads=2$' "/proc/$pid/cmdline" && echo "$pid"; done)
[ -n "$second" ] || fail "the second pool is not running" "$work/second.log"
kill -KILL "$second"
within "$limit" event joined worker_gone '"rank":4' || fail "nobody noticed the death of the second pool" "$work/joined.log"
for pid in $(processes poise); do
    grep -qz '^rollout$' "/proc/$pid/cmdline" && kill -USR1 "$pid"
done
wait "$first" || fail "the first pool ended with $?" "$work/first.log"
holds "$work/first.log" "leaves as asked"
within "$limit" event joined worker_left '"rank":3' || fail "nobody noticed that the first pool left" "$work/joined.log"

echo "== strangers"
endpoint=$(sed -n 's/.*"endpoint": "\(.*\)".*/\1/p' "$work/kept.json")
ends 2 data.log --join "$run" --set "data.train=$work/data/sft.h5"
holds "$work/data.log" "another data file than the job's"
ends 2 settings.log --join "$run" --set grpo.temperature=0.5
holds "$work/settings.log" "settings that shape training"
ends 2 nokeys.log --join "$endpoint"
holds "$work/nokeys.log" "there are no keys"
sed 's/"secret_key": "./"secret_key": "!/; s/"public_key": "./"public_key": "!/' "$work/kept.json" >"$work/wrong.json"
ends 1 wrong.log --join "$endpoint" --keys "$work/wrong.json" --set deadline.start_s=2
grep -Eq "refused the keys|nothing answers" "$work/wrong.log" || fail "wrong keys: no clear error" "$work/wrong.log"
end_job joined
[ "$code" = 0 ] || fail "the job ended with $code" "$work/joined.log"
same "weights with pools" "$wanted" "$(hash_of joined)"
all joined logprob_max_abs_diff 'x == 0'
[ ! -e "$run/join.json" ] || fail "join.json is still there"

echo "== nobody there"
ends 1 late.log --join "$endpoint" --keys "$work/kept.json" --set deadline.start_s=2
holds "$work/late.log" "nothing answers there"
ends 2 never.log --join "$run"
holds "$work/never.log" "has not begun yet, or has ended"
