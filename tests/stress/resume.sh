#!/usr/bin/env bash
# SIGKILL of the whole job at random moments, then the same command again with other ranks, threads and recompute levels, until it is done:
# weights, optimizer state, completions and metrics are those of a run that nothing happened to. The moments: inside a checkpoint's write,
# its flush and its rename; inside the log of a step's completions and the saved model; in the announcement of new weights and while they are pulled; at the
# second update of a batch; with a group half delivered, to the reward rank or to the learners; and at any time. SFT and GRPO, full and
# LoRA, strict staleness 0, 1 and 2. And a resumed run's ranks need no more memory than those of a fresh one.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
. "$(dirname "$0")/../lib/results.sh"
faults=${POISE_FAULTS:-$POISE_SOURCE_DIR/build/release/tests/poise_faults}
[ -x "$faults" ] || { echo "skipped: $faults is not built"; exit 77; }
poise=$POISE
small_model
make_data
make_start 200

# Sets ranks and layout, at random, for a job of $command under $staleness.
draw_layout() {
    local learners rollouts
    random 3
    learners=$((drawn + 1))
    random 2
    layout=("threads=$((drawn + 1))")
    random 3
    layout+=("recompute=$(echo none cheap block | cut -d ' ' -f $((drawn + 1)))")
    random 2
    layout+=("$command.launch_leaves=$((drawn * 2 + 1))")
    ranks=$learners first_rollout=$learners
    [ "$command" = grpo ] || return
    random 3
    rollouts=$((drawn + 1))
    # Without staleness the learners themselves may generate; aimed faults need a worker's rank.
    if [ "$staleness" = 0 ] && [ "$rollouts" = 3 ] && [ "$1" = any ]; then
        ranks=$((learners + 1))
        layout+=("roles.learners=$learners" roles.colocated=true)
        return
    fi
    ranks=$((learners + rollouts + 1))
    layout+=("roles.learners=$learners" "roles.rollouts=$rollouts")
}

faults_told() { grep '^fault: rank' "$work/$1.log" 2>/dev/null | wc -l; }
fault_came() { # NAME COUNT: it came, or the job is over
    [ "$(faults_told "$1")" -gt "$2" ] || ! kill -0 "$background" 2>/dev/null
}
# aimed_kill NAME FAULT: runs until the fault has killed its rank, and kills all others with it.
aimed_kill() {
    local name=$1 fault=$2 before
    before=$(faults_told "$name")
    POISE=$faults POISE_FAULT=$fault start_job "$name" "$ranks" "$command" "${layout[@]}"
    within "$limit" fault_came "$name" "$before" || fail "$name: $fault did not come" "$work/$name.log"
    kill_all
    end_job
    kill_all
    [ "$(faults_told "$name")" -gt "$before" ] && [ "$code" != 0 ] || fail "$name was done before $fault came (exit code $code)" "$work/$name.log"
    echo "killed $name: $(grep '^fault: rank' "$work/$name.log" | tail -n 1)"
}
temporary() { # FOLDER: how many unfinished files it holds
    find "$work/$name/$1" -name '*.tmp.*' 2>/dev/null | wc -l
}
# Kills at any time of a run: as it starts and goes on, or, every other time, after a step of its own.
random_kill() {
    local name=$1 tries first
    for tries in 1 2 3 4 5 6 7 8; do
        first=$(($(steps_done "$name") + 1))
        start_job "$name" "$ranks" "$command" "${layout[@]}"
        random 2
        # What is left of a tiny run after a step may be shorter than it takes to find and kill its processes on a busy machine.
        [ "$drawn" = 0 ] || [ "$tries" -gt 3 ] || within "$limit" has_steps_or_over "$name" "$first"
        random $((usual * 100 / tries))
        sleep "$((drawn / 100)).$(printf %02d $((drawn % 100)))"
        kill_all
        end_job
        kill_all
        [ "$code" = 0 ] || { echo "killed $name with $(steps_done "$name") steps logged"; return; }
        # It was done: away with it, and from the beginning.
        rm -rf "${work:?}/$name"
    done
    fail "$name is always done before it can be killed"
}
has_steps_or_over() { has_steps "$@" || ! kill -0 "$background" 2>/dev/null; }
steps_done() { if [ -s "$work/$1/metrics.jsonl" ]; then steps_of "$1"; else echo 0; fi; }

# kill_in PHASE NAME: one kill. N is small, so that every life of a run is hit within its first two steps; where the moment is one of
# several, chance picks it. Says so if the phase was not the one meant.
kill_in() {
    local phase=$1 name=$2 n
    draw_layout "$(case $phase in any) echo any ;; *) echo aimed ;; esac)"
    case $phase in
    any) random_kill "$name" ;;
    checkpoint-write)
        random $((2 * writes))
        aimed_kill "$name" "write.checkpoints/step-:$((drawn + 2)):kill@0"
        [ "$(temporary checkpoints)" -gt 0 ] || fail "$name: no unfinished checkpoint is left"
        ;;
    checkpoint-flush)
        aimed_kill "$name" "fsync.checkpoints/step-:1:kill@0"
        [ "$(temporary checkpoints)" -gt 0 ] || fail "$name: no unfinished checkpoint is left"
        ;;
    checkpoint-rename)
        aimed_kill "$name" "rename.checkpoints/step-:2:kill@0"
        [ "$(temporary checkpoints)" -gt 0 ] || fail "$name: no unfinished checkpoint is left"
        ;;
    trajectory-write)
        random 30
        aimed_kill "$name" "write.trajectories/step-:$((drawn + 2)):kill@0"
        [ "$(temporary trajectories)" -gt 0 ] || fail "$name: no unfinished log of completions is left"
        ;;
    model-save) # the last thing that a run does; its checkpoint is there
        aimed_kill "$name" "rename./$([ -d "$work/$reference/model" ] && echo model || echo adapter):1:kill@0"
        [ "$(temporary .)" -gt 0 ] || fail "$name: no unfinished model is left"
        ;;
    announcement) # of the version after the first step, or in the pull of it
        random 2
        if [ "$drawn" = 0 ]; then
            aimed_kill "$name" "send.weights:2:kill@0"
        else
            aimed_kill "$name" "send.chunk:2:kill@0"
        fi
        ;;
    second-update)
        random "$(echo "${layout[*]}" | sed 's/.*roles.learners=\([0-9]*\).*/\1/')"
        local before rank=$drawn
        before=$(find "$work/$name/checkpoints" -name 'step-*.h5' 2>/dev/null | sed 's/.*step-//; s/.h5$//' | sort -n | tail -n 1)
        before=${before:-0}
        n=$(second_update "$before")
        aimed_kill "$name" "update:$n:kill@$rank"
        [ "$(steps_done "$name")" -le $((before + 2)) ] || fail "$name: the kill came too late"
        ;;
    half-group) # G is 4: after 4 k + 1 or 4 k + 2 completions some group has had one, two or three
        random 2
        n=$((drawn + 2))
        random 3
        aimed_kill "$name" "send.completion:$((4 * drawn + n)):kill@$first_rollout"
        ;;
    half-batch) # groups on their way from the reward rank to the learners
        random 4
        aimed_kill "$name" "send.group:$((drawn + 2)):kill@$((ranks - 1))"
        ;;
    *) fail "there is no phase $phase" ;;
    esac
    stress_count "killed: $phase" 1
    kills=$((kills + 1))
}
# The beginning, counted from the process's start, of the second update of the second step that it does after $1 steps. The undisturbed
# run's log says which of them summed leaves again ("redone": both updates' together; where it is 0 there is no doubt).
second_update() {
    local first=$(($1 + 1)) n
    n=$(metric "$reference" redone | awk -v first="$first" 'NR < first { next }
        { n += 2 + $1; if ($1 == 0) { print n; exit } }')
    [ -n "$n" ] || fail "the undisturbed run summed the leaves of every step again"
    echo "$n"
}

# scenario NAME COMMAND STALENESS STEPS "PHASES" [KEY=VALUE]...: a run killed in each phase in turn, then left alone, beside one that never was.
scenario() {
    local name=$1 phase begun
    command=$2 staleness=$3
    local steps=$4 phases=$5
    shift 5
    echo "== $name: $phases"
    if [ "$command" = sft ]; then
        sft_settings
        settings+=(--set sft.batch=9 --set sft.pack_tokens=224)
    else
        grpo_settings
        settings+=(--set grpo.prompts=3 --set grpo.max_new_tokens=16 --set "grpo.staleness=$staleness" --set metrics.trajectories=true)
    fi
    settings+=(--set "optimizer.steps=$steps" --set save_model=true --set checkpoint.every=1 --set checkpoint.keep=2)
    for word in "$@"; do settings+=(--set "$word"); done
    reference=$name-straight
    begun=$SECONDS
    if [ "$command" = sft ]; then must_job "$reference" 1 sft; else must_job "$reference" 3 grpo; fi
    usual=$((SECONDS - begun + 1))
    some "$reference" gradient_norm 'x > 0'
    wanted=$(results_of "$reference" "$steps") || { echo "$wanted"; exit 1; }
    # How many writes a checkpoint takes, from a run that counts them.
    POISE=$faults POISE_FAULT=write.checkpoints/step-:1000000000@0 POISE_FAULT_COUNTS=$work/$name.counts \
        must_job "$name-counted" "$([ "$command" = sft ] && echo 1 || echo 3)" "$command" optimizer.stop_after=1
    writes=$(sed -n 's/^write.checkpoints[^ ]* //p' "$work/$name.counts.0")
    [ "${writes:-0}" -gt 10 ] || fail "a checkpoint is said to take ${writes:-no} writes" "$work/$name-counted.log"
    for phase in $phases; do kill_in "$phase" "$name"; done
    draw_layout any
    must_job "$name" "$ranks" "$command" "${layout[@]}"
    same "steps ($name)" "$(seq -s ' ' "$steps")" "$(metric "$name" step | tr '\n' ' ' | sed 's/ $//')"
    local got
    got=$(results_of "$name" "$steps") || { echo "$got"; exit 1; }
    [ "$wanted" = "$got" ] || fail "$name: undisturbed $wanted; killed and resumed $got" "$work/$name.log"
    [ -z "$(find "$work/$name" -name '*.tmp.*')" ] || fail "$name: unfinished files are left: $(find "$work/$name" -name '*.tmp.*' | tr '\n' ' ')"
    echo "same: $name: $(echo "$got" | head -n 1)"
}

# ---- memory: each rank's own peak (VmHWM), a run that is resumed beside one that is not, with weights of 50 MB ----

# counted LOG NAME RANKS COMMAND [KEY=VALUE]...: sets `peaks`, kB of each rank.
counted() {
    local log=$1
    shift
    POISE=$faults POISE_FAULT_COUNTS=$work/$log must_job "$@"
    peaks=$(cat "$work/$log".* | sed -n 's/^peak_kb //p' | tr '\n' ' ')
}
# Fresh: all steps. Resumed: the same command after all steps but one.
memory() { # NAME RANKS COMMAND STEPS [KEY=VALUE]...
    local name=$1 ranks=$2 command=$3 steps=$4 fresh rank
    shift 4
    counted "$name-fresh.counts" "$name-fresh" "$ranks" "$command" "optimizer.steps=$steps" "$@"
    fresh=$peaks
    must_job "$name-resumed" "$ranks" "$command" "optimizer.steps=$steps" "optimizer.stop_after=$((steps - 1))" "$@"
    counted "$name-resumed.counts" "$name-resumed" "$ranks" "$command" "optimizer.steps=$steps" "$@"
    holds "$work/$name-resumed.log" "going on after step $((steps - 1))" >/dev/null
    same "weights ($name)" "$(hash_of "$name-fresh")" "$(hash_of "$name-resumed")"
    echo "peak kB of the ranks: $name: fresh $fresh, resumed $peaks"
    for rank in $(seq "$ranks"); do
        awk -v a="$(echo "$fresh" | cut -d ' ' -f "$rank")" -v b="$(echo "$peaks" | cut -d ' ' -f "$rank")" \
            'BEGIN { exit !(a > 20000 && b > 20000 && b <= a * 1.02 + 1024) }' || fail "$name: rank $((rank - 1)) needs more memory when it resumes"
    done
}
measure_memory() {
    cp -r "$POISE_SOURCE_DIR/configs/quickstart" "$work/large"
    sed -i 's/"hidden_size": 128/"hidden_size": 512/; s/"intermediate_size": 384/"intermediate_size": 1536/; s/\[4, 6, 6\]/[16, 24, 24]/
        s/"out_hidden_size": 128/"out_hidden_size": 512/' "$work/large/config.json"
    sft_settings
    settings+=(--set "model=$work/large" --set sft.batch=2 --set sft.pack_tokens=128 --set checkpoint.every=1)
    memory memory-sft 2 sft 2
    # Older versions of the weights are what a resumed run has to read in addition.
    grpo_settings
    settings+=(--set "model=$work/large" --set init_std=0.05 --set grpo.prompts=2 --set grpo.completions=2 --set grpo.max_new_tokens=4
        --set checkpoint.every=1 --set rollout.pages=64 --set roles.learners=1 --set grpo.updates=1 --set train.vision=false)
    memory memory-grpo 3 grpo 4 grpo.staleness=2
}

kills=0
if [ "$(amount short full)" = short ]; then
    scenario sft-full sft 0 6 "checkpoint-write any model-save"
    scenario grpo-0-lora grpo 0 7 "second-update trajectory-write" lora.rank=2 optimizer.learning_rate=3e-3
    scenario grpo-1-full grpo 1 7 "announcement checkpoint-rename"
    scenario grpo-2-full grpo 2 7 "half-group any"
else
    round=0
    while [ "$round" = 0 ] || { [ "$kills" -lt 60 ] && time_left; }; do
        scenario "sft-full-$round" sft 0 9 "checkpoint-write checkpoint-rename any"
        scenario "sft-lora-$round" sft 0 9 "any checkpoint-write checkpoint-flush model-save" lora.rank=4 optimizer.learning_rate=1e-2
        scenario "grpo-0-full-$round" grpo 0 14 "second-update half-group checkpoint-write announcement any"
        scenario "grpo-0-lora-$round" grpo 0 12 "any half-batch trajectory-write second-update" lora.rank=2 optimizer.learning_rate=3e-3
        scenario "grpo-1-full-$round" grpo 1 14 "announcement half-batch any second-update checkpoint-flush"
        scenario "grpo-1-lora-$round" grpo 1 12 "half-group checkpoint-rename any announcement" lora.rank=2 optimizer.learning_rate=3e-3
        scenario "grpo-2-full-$round" grpo 2 14 "checkpoint-write second-update announcement half-group any model-save"
        scenario "grpo-2-lora-$round" grpo 2 12 "any half-batch second-update trajectory-write" lora.rank=2 optimizer.learning_rate=3e-3
        round=$((round + 1))
    done
fi
echo "kills: $kills"
measure_memory
echo "resume: $SECONDS s"
