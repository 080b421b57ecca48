#!/usr/bin/env bash
# Each of Poise's own allocations, sends, receives, collectives, opens, writes, flushes and renames fails once. In single-process runs for
# every N, one forked run each (tests/faults/each.h says what is asserted; the short form takes a sample of the allocations); in MPI jobs
# for N, class and rank drawn by the seed: the job ends in time with one sentence that names the rank, leaves no torn file, and the same
# command then ends in the bits of an undisturbed run. Under the address sanitizer a run that fails must not leak either.
# POISE_FAIL_NTH_PART=single|mpi|leaks runs one of the three (leaks: wherever build/asan has the program; tests/sanitizers/check.sh asan),
# POISE_FAIL_NTH_ONLY="NAME..." those single processes only, POISE_FAIL_NTH_MOST=N so many
# allocations of each.
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../lib/stress.sh"
: "${POISE_FAULTS:=$POISE_SOURCE_DIR/build/release/tests/poise_faults}"
[ -x "$POISE_FAULTS" ] || { echo "skipped: $POISE_FAULTS is not built"; exit 77; }
full=$(amount "" full)
[ -z "${POISE_FAIL_NTH_SINGLE:-}" ] || full=$POISE_FAIL_NTH_SINGLE

# Many thousand small runs: in memory where that can be, for their flushes cost time on a disk.
fast=$work
if [ -w /dev/shm ] && [ "$(df --output=avail -k /dev/shm | tail -n 1)" -gt 1000000 ]; then fast=$(mktemp -d /dev/shm/fail-nth.XXXXXX); fi
trap 'code=$?; [ "$fast" = "$work" ] || rm -rf "$fast"; (exit "$code"); clean_up' EXIT
export OMPI_MCA_ess_singleton_isolated=1 # a single process needs no daemon of MPI's beside it

# each NAME ALLOCATIONS RERUN ARGUMENTS...: every N of the other classes, and so many (full form: all) allocations; after every RERUNth
# failure (full form: each) the command is run undisturbed in what is left. @ in an argument is the folder that it writes to.
each() {
    local name=$1 most=$2 rerun=$3 classes=open,write,fsync,rename,send,receive,collective,alloc word arguments=()
    shift 3
    case " ${POISE_FAIL_NTH_ONLY:-$name} " in *" $name "*) ;; *) return ;; esac
    time_left || { echo "no time left for $name"; return; }
    if [ -n "$full" ]; then most=${POISE_FAIL_NTH_MOST:-0} rerun=1; elif [ "$most" = 0 ]; then classes=${classes%,alloc}; fi
    if [ -n "${POISE_FAIL_NTH_CLASSES:-}" ]; then classes=$POISE_FAIL_NTH_CLASSES rerun=0; fi
    for word in "$@"; do arguments+=("${word//@/$fast/$name/out}"); done
    mkdir -p "$fast/$name"
    local left=0
    [ "${POISE_STRESS_SECONDS:-0}" = 0 ] || left=$(((POISE_STRESS_SECONDS - (SECONDS - stress_begun)) / 4 + 1)) # none takes it all
    local io=0
    [ -n "$full" ] || io=${writes:-0}
    POISE_FAULT_EACH=$classes POISE_FAULT_EACH_FOLDER=$fast/$name POISE_FAULT_EACH_RERUN=$rerun \
        POISE_FAULT_EACH_MOST_alloc=$most POISE_FAULT_EACH_MOST_write=$io POISE_FAULT_EACH_MOST_fsync=$io POISE_FAULT_EACH_MOST_rename=$io POISE_FAULT_EACH_MOST_open=$io \
        POISE_FAULT_EACH_SEED=$stress_seed POISE_FAULT_EACH_SECONDS=$left POISE_FAULT_EACH_PARTIAL=${partial:-} \
        POISE_FAULT_EACH_DEADLINE=$limit POISE_FAULT_EACH_COUNTS=$fast/counts "$POISE_FAULTS" "${arguments[@]}" \
        >"$work/$name.each" 2>&1 </dev/null || { defective+=("$name") && cat "$work/$name.each"; }
    echo "$name: $(grep -E '^[a-z]+: [1-9]|defects$' "$work/$name.each" | sed 's/ failed, [0-9]* of them harmless//' | tr '\n' ';')"
    rm -rf "${fast:?}/$name"
}

# counted WHERE: what each did, and the end of the test where that was not as it should be.
counted() {
    local class tried
    [ ! -e "$fast/counts" ] || while IFS=$'\t' read -r class tried; do
        stress_count "$class failed $1" "$tried"
    done < <(awk -F '\t' '{ n[$1] += $2 } END { for (k in n) if (n[k]) print k "\t" n[k] }' "$fast/counts")
    rm -f "$fast/counts"
    [ ${#defective[@]} = 0 ] || fail "not every fault ends as it should: ${defective[*]}"
}
defective=() # all programs are gone through before the part fails

small_model
make_data
make_start 200
tiny=$work/start/model
head -n 3 "$work/data/test.jsonl" >"$work/data/ask.jsonl"
sed 's/}$/,"completion":"<think>2<\/think><answer>two<\/answer>"}/' "$work/data/ask.jsonl" >"$work/data/completed.jsonl"
echo '{"id":"a","text":"How many bags are there? <think>2.</think>"}' >"$work/text.jsonl"
sft_settings
must_job lora 1 sft save_model=true init_std=0 "model=$tiny" lora.rank=2 optimizer.steps=2 metrics.tensorboard=true
evaluating=(--set "model=$tiny" --set "data.test=$work/data/test.h5" --set eval.max_new_tokens=4 --set eval.limit=6)
settings=("${evaluating[@]}")
must_job evaluated 1 eval
grpo_settings
must_job logged 3 grpo optimizer.steps=1 grpo.prompts=2 grpo.max_new_tokens=8 metrics.trajectories=true

if [ "${POISE_FAIL_NTH_PART:-single}" = single ]; then
    echo "== single processes"
    each config 20 3 config --set "model=$tiny"
    each tokenize 60 10 tokenize --model "$tiny" --input "$work/text.jsonl" --output @/ids.jsonl
    each score 20 10 score --model "$tiny" --input "$work/data/completed.jsonl" --output @/scored.jsonl
    each generate 20 10 generate --model "$tiny" --input "$work/data/ask.jsonl" --output @/generated.jsonl --max-tokens 4 --temperature 1 --num 2
    each convert 20 10 convert "$POISE_SOURCE_DIR/tests/goldens/gguf/llama_pieces/model.gguf" @/converted
    each replay "$(amount 6 0)" 10 replay "$work/logged" --step 1
    each pack 60 10 pack --prompts --model "$tiny" --input "$work/data/ask.jsonl" --output @/packed.h5
    each merge "$(amount 10 0)" 40 merge --model "$tiny" --adapter "$work/lora/adapter" --output @/merged
    for path in "$tiny" "$work/lora" "$work/lora/adapter" "$work/data/sft.h5" "$work/lora/checkpoints/step-2.h5" "$work/evaluated" "$tiny/model.safetensors"; do
        each inspect 20 10 inspect "$path"
    done
    # gnuplot draws each time: the short form takes the classes whose N are few.
    partial='*.svg' POISE_FAIL_NTH_CLASSES=${POISE_FAIL_NTH_CLASSES:-$(amount rename "")} each report 0 0 report --output @/report "a=$work/evaluated,$work/lora"
    if [ -e /usr/share/datasets/fashion-mnist ]; then
        POISE_FAIL_NTH_CLASSES=${POISE_FAIL_NTH_CLASSES:-$(amount open,rename "")} each quickstart-data 0 0 quickstart-data --output @ --seed 3 --base 2 --text 2 --sft 1 --rl 1 --dev 1 --test 1
    fi
    partial='samples*' each eval 20 10 eval "${evaluating[@]}" --set output=@
    sft_settings
    partial='metrics.jsonl' writes=20 each sft 20 20 sft "${settings[@]}" --set output=@ --set optimizer.steps=2 --set checkpoint.every=1 \
        --set checkpoint.on_failure=stop --set save_model=true
    # A disk that fails once does not end a run: what is not written then is written later.
    partial='metrics.jsonl' POISE_FAIL_NTH_CLASSES=${POISE_FAIL_NTH_CLASSES:-$(amount rename "")} each sft-on 0 0 sft "${settings[@]}" \
        --set output=@ --set optimizer.steps=2 --set checkpoint.every=1 --set checkpoint.keep=1 --set checkpoint.wait_s=5
    counted "in a single process"

    echo "== standard output on a full disk"
    for arguments in config "config --reference" "inspect $tiny" "inspect $work/lora" "tokenize --model $tiny --input $work/text.jsonl --output -" --help "sft --help"; do
        # shellcheck disable=SC2086
        "$POISE" $arguments >/dev/full 2>"$work/err"
        same "exit code of poise $arguments with a full standard output" $? 1
        [ "$(grep -c '^poise: ' "$work/err")" = 1 ] || fail "no sentence on stderr" "$work/err"
    done
fi

asan=$POISE_SOURCE_DIR/build/asan/tests/poise_faults
if [ "${POISE_FAIL_NTH_PART:-}" = leaks ] || { [ -n "$full" ] && [ -z "${POISE_FAIL_NTH_PART:-}" ] && [ -x "$asan" ]; }; then
    echo "== leaks"
    plain=$POISE_FAULTS
    POISE_FAULTS=$asan
    . "$POISE_SOURCE_DIR/tests/sanitizers/options.sh"
    ASAN_OPTIONS=$ASAN_OPTIONS:exitcode=99 # whatever the sanitizer finds is no failure of the run's own
    writes=3
    each config 5 0 config --set "model=$tiny"
    each tokenize 10 0 tokenize --model "$tiny" --input "$work/text.jsonl" --output @/ids.jsonl
    each score 10 0 score --model "$tiny" --input "$work/data/completed.jsonl" --output @/scored.jsonl
    each pack 10 0 pack --prompts --model "$tiny" --input "$work/data/ask.jsonl" --output @/packed.h5
    each generate 10 0 generate --model "$tiny" --input "$work/data/ask.jsonl" --output @/generated.jsonl --max-tokens 4 --temperature 1 --num 2
    each merge 10 0 merge --model "$tiny" --adapter "$work/lora/adapter" --output @/merged
    each inspect 10 0 inspect "$work/lora"
    writes=1 partial='samples*' each eval 4 0 eval "${evaluating[@]}" --set output=@
    sft_settings
    writes=1 partial='metrics.jsonl' each sft 4 0 sft "${settings[@]}" --set output=@ --set optimizer.steps=1 --set checkpoint.every=1 \
        --set checkpoint.on_failure=stop --set save_model=true
    counted "and looked at for leaks"
    POISE_FAULTS=$plain
fi

if [ "${POISE_FAIL_NTH_PART:-mpi}" = mpi ]; then
    echo "== MPI jobs"
    classes=(alloc open write fsync rename send receive collective)
    # count_of NAME RANK CLASS: how often the undisturbed run's rank came by.
    count_of() { sed -n "s/^$3 //p" "$work/$1.counts.$2"; }
    # one_fault KIND RANKS: a fault drawn by the seed in a job of that kind, whose undisturbed run is KIND.
    one_fault() {
        local kind=$1 ranks=$2 class rank count=0 name=$1-fault code said file
        until [ "${count:-0}" -gt 0 ]; do
            random ${#classes[@]}
            class=${classes[$drawn]}
            random "$ranks"
            rank=$drawn
            count=$(count_of "$kind" "$rank" "$class")
        done
        random "$count"
        local fault="$class:$((drawn + 1))@$rank"
        rm -rf "${work:?}/$name" "$work/$name.log"
        POISE=$POISE_FAULTS POISE_FAULT=$fault job "$name" "$ranks" "${kind%%-*}"
        code=$?
        [ "$code" != 124 ] && [ "$code" != 137 ] || fail "$kind, $fault: the job hangs" "$work/$name.log"
        grep -Eq 'Segmentation|signal [0-9]+ \((Abort|Bus|Seg|Float)|Sanitizer|stack smashing|double free|corrupt' "$work/$name.log" &&
            fail "$kind, $fault: a process crashed" "$work/$name.log"
        # Who says it is the failing rank itself, or the one that has heard of it. mpirun can lose what a process wrote just before its
        # end; then launch/run's last line, from the result, has to name the rank.
        said=$(grep -Ec "^poise: \[rank $rank\] |^poise: \[rank [0-9]+\] .*rank $rank " "$work/$name.log")
        [ "$said" != 0 ] || said=$(tail -n 1 "$work/$name.log" |
            grep -Ec "^launch/run: (\[rank $rank\] |\[rank [0-9]+\] .*rank $rank |([a-z]+ )?rank $rank ).{20}")
        case $code in
        0) same_result "$kind" "$name" "$fault, harmless" ;;
        1)
            [ "$said" = 1 ] || fail "$kind, $fault: rank $rank says $said sentences" "$work/$name.log"
            [ ! -e "$work/$name/result.json" ] || grep -q '"exit": *1' "$work/$name/result.json" || fail "$kind, $fault: the result is not 1" "$work/$name/result.json"
            for file in "$work/$name"/checkpoints/step-*.h5; do
                [ ! -e "$file" ] || "$POISE" inspect "$file" >"$work/out" 2>&1 || fail "$kind, $fault: $file is torn" "$work/out"
            done
            [ ! -e "$work/$name/model" ] || "$POISE" inspect "$work/$name/model" >"$work/out" 2>&1 || fail "$kind, $fault: the model is torn" "$work/out"
            must_job "$name" "$ranks" "${kind%%-*}"
            same_result "$kind" "$name" "after $fault"
            ;;
        *) fail "$kind, $fault: exit code $code" "$work/$name.log" ;;
        esac
        stress_count "$class failed in an MPI job" 1
    }
    same_result() { # KIND NAME WHAT
        has_hash "$2"
        same "weights ($1, $3)" "$(hash_of "$1")" "$(hash_of "$2")"
        [ -z "$(find "$work/$2" -name '*.tmp.*' -o -name '*.partial-*' -o -name '*.old-*')" ] || fail "$1, $3: left: $(find "$work/$2")" "$work/$2.log"
    }
    undisturbed() { # KIND RANKS
        POISE_FAULT_COUNTS=$work/$1.counts POISE=$POISE_FAULTS must_job "$1" "$2" "${1%%-*}"
    }
    common=(--set checkpoint.every=1 --set checkpoint.wait_s=5 --set deadline.collective_s=25 --set deadline.heartbeat_s=15)
    sft_settings
    sft=("${settings[@]}" "${common[@]}" --set optimizer.steps=3 --set save_model=true)
    grpo_settings
    grpo=("${settings[@]}" "${common[@]}" --set optimizer.steps=2 --set roles.learners=2 --set roles.rollouts=1 --set metrics.trajectories=true
        --set deadline.start_s=40 --set deadline.step_s=40)
    settings=("${sft[@]}")
    undisturbed sft 4
    settings=("${grpo[@]}")
    undisturbed grpo 4
    for ((i = 0; i < $(amount 12 200); i++)); do
        [ "$i" = 0 ] || time_left || break
        if [ $((i % 2)) = 0 ]; then settings=("${sft[@]}") && one_fault sft 4; else settings=("${grpo[@]}") && one_fault grpo 4; fi
    done
fi
