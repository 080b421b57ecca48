# Sourced by tests/jobs/*.sh: a temporary folder, tiny data, tiny runs, and what comparing them needs. ctest sets POISE and POISE_SOURCE_DIR;
# by hand both are found from here.
set -u
POISE_SOURCE_DIR=${POISE_SOURCE_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
POISE=${POISE:-$POISE_SOURCE_DIR/build/release/poise}
export POISE POISE_SOURCE_DIR
. "$POISE_SOURCE_DIR/launch/env"
model=$POISE_SOURCE_DIR/configs/quickstart
launch=${POISE_LAUNCH:-$POISE_SOURCE_DIR/launch/run}
limit=${POISE_JOB_LIMIT:-240} # seconds that one job may take on a busy machine

[ -x "$POISE" ] || { echo "skipped: $POISE is not built"; exit 77; }
command -v mpirun >/dev/null || { echo "skipped: there is no mpirun"; exit 77; }

work=$(mktemp -d "${TMPDIR:-/tmp}/poise-jobs.XXXXXX")
export POISE_TEST_WORK=$work # marks every process that this test starts, whoever its parent is by now

# Ids of the test's living processes whose name is among $1 ("poise mpirun"), one a line.
processes() {
    local folder name
    for folder in /proc/[0-9]*; do
        read -r name 2>/dev/null <"$folder/comm" || continue
        case " $1 " in *" $name "*) ;; *) continue ;; esac
        grep -qz "^POISE_TEST_WORK=$work\$" "$folder/environ" 2>/dev/null || continue
        grep -q '^State:[[:space:]]*Z' "$folder/status" 2>/dev/null || echo "${folder#/proc/}"
    done
}
# The living process of a world rank of the test's only running job (its scorers have its environment, but are not it).
process_of_rank() {
    local pid
    for pid in $(processes poise); do
        grep -qz "^OMPI_COMM_WORLD_RANK=$1\$" "/proc/$pid/environ" 2>/dev/null || continue
        grep -qz '^__scorer$' "/proc/$pid/cmdline" 2>/dev/null && continue
        echo "$pid"
        return
    done
}
kill_all() {
    local pid
    for pid in $(processes "mpirun poise poise_faults memcheck-amd64-"); do kill -KILL "$pid" 2>/dev/null; done
}
clean_up() {
    local code=$?
    trap - EXIT
    kill_all
    wait 2>/dev/null
    if [ -n "${POISE_KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

fail() { # SENTENCE [LOG]: ends the test
    echo "FAILED: $1"
    if [ -n "${2:-}" ] && [ -e "$2" ]; then
        echo "the end of $2:"
        tail -n 25 "$2"
    fi
    exit 1
}
same() { # WHAT A B
    [ "$2" = "$3" ] || fail "$1: $2 and $3"
    echo "same $1: $2"
}
holds() { # FILE PATTERN: a line of the file matches
    grep -Eq -- "$2" "$1" || fail "no line of $1 matches \"$2\"" "$1"
    echo "says: $(grep -Em1 -- "$2" "$1" | cut -c1-220)"
}
# within SECONDS COMMAND...: tries until the command is true.
within() {
    local end=$((SECONDS + $1))
    shift
    while ! "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}

# A model of a tenth of a megabyte, for tests that start it a hundred times: $work/small, which `model` names from here on.
small_model() {
    cp -r "$model" "$work/small"
    # The vision tower's sizes come after the decoder's.
    sed -i 's/"hidden_size": 128/"hidden_size": 48/; s/"intermediate_size": 384/"intermediate_size": 96/; s/"num_attention_heads": 4/"num_attention_heads": 3/
        s/"num_hidden_layers": 4/"num_hidden_layers": 2/; s/"num_key_value_heads": 2/"num_key_value_heads": 1/; s/\[4, 6, 6\]/[2, 3, 3]/
        s/"depth": 3/"depth": 2/; s/"fullatt_block_indexes": \[2\]/"fullatt_block_indexes": [1]/; s/"hidden_size": 96/"hidden_size": 32/
        s/"intermediate_size": 256/"intermediate_size": 64/; s/"num_heads": 3/"num_heads": 2/; s/"out_hidden_size": 128/"out_hidden_size": 48/' \
        "$work/small/config.json"
    model=$work/small
}

# Pictures, questions and packed files in $work/data.
make_data() {
    "$POISE" quickstart-data --output "$work/data" --seed 3 --base 96 --text 32 --sft 48 --rl 24 --dev 2 --test 8 \
        >"$work/data.log" 2>&1 || fail "quickstart-data failed" "$work/data.log"
    local name
    for name in sft rl test; do
        local prompts=--prompts
        [ $name = sft ] && prompts=""
        # shellcheck disable=SC2086
        "$POISE" pack $prompts --model "$model" --input "$work/data/$name.jsonl" --output "$work/data/$name.h5" \
            >>"$work/data.log" 2>&1 || fail "pack failed on $name.jsonl" "$work/data.log"
    done
}

# Settings that all tiny runs share, as --set arguments in the array `settings`.
sft_settings() {
    settings=(--set "model=$model" --set init_std=0.05 --set "data.train=$work/data/sft.h5" --set seed=5
        --set metrics.tensorboard=false --set save_model=false --set sft.batch=8 --set sft.pack_tokens=512
        --set optimizer.steps=6 --set optimizer.learning_rate=2e-3 --set optimizer.warmup_steps=1
        --set optimizer.beta2=0.95 --set optimizer.clip_norm=0.25)
}
grpo_settings() {
    settings=(--set "model=$work/start/model" --set "data.train=$work/data/rl.h5" --set seed=5
        --set metrics.tensorboard=false --set save_model=false --set grpo.prompts=4 --set grpo.completions=4
        --set grpo.updates=2 --set grpo.max_new_tokens=24 --set optimizer.steps=3 --set optimizer.learning_rate=2e-3
        --set deadline.start_s=100 --set deadline.step_s=100)
}

# job NAME RANKS COMMAND [KEY=VALUE]...: one run under launch/run with the array `settings` and these; its folder is $work/NAME, its log
# $work/NAME.log. Returns the exit code; must_job ends the test unless it is 0.
job() {
    local name=$1 ranks=$2 command=$3 more=() word
    shift 3
    for word in "$@"; do more+=(--set "$word"); done
    timeout -k 5 "$limit" "$launch" -n "$ranks" "$command" "${settings[@]}" --set "output=$work/$name" ${more[@]+"${more[@]}"} \
        >>"$work/$name.log" 2>&1 </dev/null
}
must_job() { job "$@" || fail "$1 ended with $?" "$work/$1.log"; }

# A model that has seen enough traces to open its tags now and then, so that rewards differ inside a group: $work/start/model.
make_start() {
    sft_settings
    must_job start 1 sft save_model=true optimizer.steps=${1:-24} optimizer.clip_norm=1 optimizer.schedule=constant
}

hash_of() { # NAME: the weights' hash in the last line of a run's metrics
    sed -n '$s/.*"weights_hash":"\([0-9a-f]*\)".*/\1/p' "$work/$1/metrics.jsonl"
}
metric() { # NAME KEY: its values, one a line for each step
    sed -n "s|.*\"$2\":\([^,}]*\).*|\1|p" "$work/$1/metrics.jsonl"
}
steps_of() { wc -l <"$work/$1/metrics.jsonl"; }
# all NAME KEY CONDITION: every step has the metric, and awk's condition on x holds for each.
all() {
    [ "$(metric "$1" "$2" | wc -l)" = "$(steps_of "$1")" ] || fail "$1: not every step has $2"
    metric "$1" "$2" | awk "{ x = \$1; if (!($3)) bad = 1 } END { exit bad || !NR }" ||
        fail "$1: $2 is not always ($3): $(metric "$1" "$2" | tr '\n' ' ')"
}
# some NAME KEY CONDITION: the condition holds in one step at least.
some() {
    metric "$1" "$2" | awk "{ x = \$1; if ($3) good = 1 } END { exit !good }" ||
        fail "$1: $2 is never ($3): $(metric "$1" "$2" | tr '\n' ' ')"
}
has_hash() { # NAME
    [ ${#1} -gt 0 ] && [ "$(hash_of "$1" | wc -c)" -ge 17 ] || fail "$1 wrote no weights hash" "$work/$1.log"
}
# In the background: start_job NAME RANKS COMMAND [KEY=VALUE]..., then end_job NAME sets `code`.
start_job() {
    job "$@" &
    background=$!
}
end_job() {
    wait "$background"
    code=$?
}
has_steps() { # NAME COUNT: so many steps are done (and their checkpoints written, but the last one's perhaps)
    [ -s "$work/$1/metrics.jsonl" ] && [ "$(steps_of "$1")" -ge "$2" ]
}
# killed_job STEPS NAME RANKS COMMAND [KEY=VALUE]...: a run whose processes all get SIGKILL at a random moment after so many steps. One that
# is done before that is started anew, and hit sooner.
killed_job() {
    local steps=$1 name=$2 delay
    shift
    for delay in 0.$((RANDOM % 3)) 0.05 0 0; do
        start_job "$@"
        within "$limit" has_steps "$name" "$steps" || fail "$name did not get to step $steps" "$work/$name.log"
        sleep "$delay"
        kill_all
        end_job
        kill_all
        if [ "$code" != 0 ]; then
            echo "killed $name after step $(steps_of "$name")"
            return
        fi
        rm -rf "${work:?}/$name"
    done
    fail "$name is always done before it can be killed"
}
