# Sourced by tests/stress/*.sh after jobs.sh: how much to do, for how long, with which seed, and what was done.
#
# A part runs in one of two forms. Short, the default and what ctest runs: a fixed small amount, a minute or two. Full, under
# tests/stress/run: the whole amount, or whatever fits the part's share of --minutes.
#   POISE_STRESS=full           the full form
#   POISE_STRESS_SECONDS=S      the part's share of the time, 0: no limit
#   POISE_STRESS_SEED=S         seeds RANDOM, the one source of randomness in a part
#   POISE_STRESS_COUNTS=FILE    gets a line "PART<tab>WHAT<tab>NUMBER" for each stress_count
# A part prints the seed it used, so that a failure is run again by POISE_STRESS_SEED=... tests/stress/PART.sh.
stress_part=$(basename "$0" .sh)
stress_seed=${POISE_STRESS_SEED:-1}
stress_begun=$SECONDS
RANDOM=$((stress_seed % 32768))
echo "$stress_part: ${POISE_STRESS:-short} form, POISE_STRESS_SEED=$stress_seed"

# amount SHORT FULL: how many of something this form does.
amount() { if [ "${POISE_STRESS:-short}" = full ]; then echo "$2"; else echo "$1"; fi; }
# time_left [SECONDS]: whether the part's share of the time is not used up (always, where there is none), but for so many seconds.
time_left() { [ "${POISE_STRESS_SECONDS:-0}" = 0 ] || [ $((SECONDS - stress_begun + ${1:-0})) -lt "$POISE_STRESS_SECONDS" ]; }
# random BOUND: sets `drawn` to 0 .. BOUND - 1 (not a command substitution, in which RANDOM would start anew each time).
random() { drawn=$(((RANDOM * 32768 + RANDOM) % $1)); }
# Puts the array `cases` into an order of the seed's. POISE_STRESS_SKIP: that many of the first are left out, to go on where a run ended.
shuffle_cases() {
    local i word
    for ((i = ${#cases[@]} - 1; i > 0; i--)); do
        random $((i + 1))
        word=${cases[$i]}
        cases[$i]=${cases[$drawn]}
        cases[$drawn]=$word
    done
    cases=("${cases[@]:${POISE_STRESS_SKIP:-0}}")
}
# stress_count WHAT NUMBER: for the table at the end ("killed while a checkpoint is written" 3).
stress_count() {
    echo "count: $1: $2"
    if [ -n "${POISE_STRESS_COUNTS:-}" ]; then printf '%s\t%s\t%s\n' "$stress_part" "$1" "$2" >>"$POISE_STRESS_COUNTS"; fi
}
