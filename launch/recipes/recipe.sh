# Sourced by the recipes beside it: their options, stages that run once each, and jobs that stop and go on.
#
# A recipe sets `name` before it sources this, and then calls `stage` for each of its steps. Afterwards $out is the folder of results, $poise
# the executable, $language the language model's folder, and $seed, $threads, $mini (0 or 1) are what was asked for.
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
usage="usage: launch/recipes/$name (--gguf FILE | --model DIR) [--seed N] [--out DIR] [--threads N] [--mini]"
wrong() { echo "launch/recipes/$name: $1" >&2; echo "$usage" >&2; exit 2; }
number() { [[ $2 =~ ^[0-9]{1,9}$ ]] || wrong "$1 wants a whole number, not '$2'"; }
gguf="" language="" seed=0 out="" threads=2 mini=0
while [ $# -gt 0 ]; do
    case $1 in
    --mini) mini=1; shift; continue ;;
    --help | -h) echo "$usage"; exit 0 ;;
    --gguf | --model | --seed | --out | --threads) [ -n "${2:-}" ] || wrong "$1 wants a value" ;;
    *) wrong "does not take '$1'" ;;
    esac
    case $1 in
    --gguf) gguf=$2 ;;
    --model) language=$2 ;;
    --seed) number "$1" "$2"; seed=$2 ;;
    --out) out=$2 ;;
    --threads) number "$1" "$2"; threads=$2 ;;
    esac
    shift 2
done
[ -n "$gguf$language" ] || wrong "wants a model to start from"
[ -z "$gguf" ] || [ -z "$language" ] || wrong "takes --gguf or --model, not both"
[ -n "$out" ] || { out=runs/$name; [ "$seed" = 0 ] || out=runs/$name-seed$seed; }
poise=${POISE:-$root/build/release/poise}
[ -x "$poise" ] || wrong "$poise is not there; launch/build makes it"
export POISE=$poise
mkdir -p "$out/log" || exit 1

exec 9>&2 # a trap that runs inside a stage would write to the stage's log
job=""
stopping=0
on_stop() {
    stopping=1
    echo "$name: stopping; the same command goes on from here" >&9
    [ -z "$job" ] || kill -TERM "$job" 2>/dev/null
}
trap on_stop INT TERM

# stage NAME COMMAND...: runs a command once; what it says goes to log/NAME.log. A command that was stopped returns 130.
stage() {
    local stage=$1 began=$SECONDS code
    shift
    if [ -e "$out/.done.$stage" ]; then return; fi
    echo "$name: $stage ($out/log/$stage.log)" >&2
    "$@" >>"$out/log/$stage.log" 2>&1
    code=$?
    if [ "$code" = 130 ] || [ "$stopping" = 1 ]; then exit 130; fi
    if [ "$code" != 0 ]; then
        echo "$name: $stage failed (exit $code); the end of $out/log/$stage.log:" >&2
        tail -n 15 "$out/log/$stage.log" >&2
        exit "$code"
    fi
    echo $((SECONDS - began)) >"$out/.done.$stage"
}
# In the background and waited for, so that a signal to the recipe is passed on at once.
run_job() {
    "$root/launch/run" "$@" 9>&- &
    job=$!
    while kill -0 "$job" 2>/dev/null; do wait "$job"; done # a trapped signal ends a wait early
    wait "$job"
    local code=$?
    job=""
    return "$code"
}
# train NAME RANKS COMMAND DATA SETTINGS...: the configuration is configs/RECIPE/NAME.yaml.
train() {
    local run=$1 ranks=$2 command=$3 data=$4 setting
    shift 4
    local settings=(--set "output=$out/$run" --set "data.train=$out/data/$data.h5" --set "seed=$seed" --set "threads=$threads")
    for setting in "$@"; do settings+=(--set "$setting"); done
    if [ "$mini" = 1 ]; then settings+=(--set optimizer.steps=3 --set optimizer.warmup_steps=1 --set checkpoint.every=1); fi
    run_job -n "$ranks" "$command" -c "$root/configs/$name/$run.yaml" "${settings[@]}" || return $?
    # A run that was asked to stop ends well, but has nothing to show yet.
    [ -d "$out/$run/model" ] || [ -d "$out/$run/adapter" ] || return 130
}
# evaluate NAME SETTINGS...
evaluate() {
    local run=$1 setting
    shift
    local settings=(--set "output=$out/$run" --set "data.test=$out/data/test.h5" --set "threads=$threads")
    for setting in "$@"; do settings+=(--set "$setting"); done
    run_job -n 1 eval -c "$root/configs/$name/eval.yaml" "${settings[@]}" || return $?
    [ -s "$out/$run/summary.json" ] || return 130
}
# pack MODEL FILES-WITH-RESPONSES FILES-OF-PROMPTS
pack() {
    local file
    for file in $2; do "$poise" pack --model "$1" --input "$out/data/$file.jsonl" --output "$out/data/$file.h5" || return 1; done
    for file in $3; do "$poise" pack --prompts --model "$1" --input "$out/data/$file.jsonl" --output "$out/data/$file.h5" || return 1; done
}
finish() { # shows the report
    [ ! -t 1 ] || echo
    cat "$out/report.txt"
}

if [ -n "$gguf" ]; then
    language=$out/language
    stage convert "$poise" convert "$gguf" "$language"
fi
