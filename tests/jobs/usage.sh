#!/usr/bin/env bash
# Wrong use ends with code 2 and one sentence that says what to do; --dry-run and config show what a run would be.
. "$(dirname "$0")/../lib/jobs.sh"
make_data

number=0
# wrong PATTERN COMMAND...: code 2, and what it says matches, once.
wrong() {
    local pattern=$1 code said
    shift
    number=$((number + 1))
    timeout -k 5 "$limit" "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    [ "$code" = 2 ] || fail "code $code instead of 2 after: $*" "$work/err"
    said=$(grep -Ec "$pattern" "$work/err")
    [ "$said" = 1 ] || fail "\"$pattern\" was said $said times by: $*" "$work/err"
    [ "$(grep -c '^poise:' "$work/err")" -le 1 ] || fail "more than one sentence from: $*" "$work/err"
    echo "2: $(grep -E "$pattern" "$work/err" | cut -c1-200)"
}
# right PATTERN COMMAND...: code 0, standard output matches.
right() {
    local pattern=$1 code
    shift
    timeout -k 5 "$limit" "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    [ "$code" = 0 ] || fail "code $code after: $*" "$work/err"
    holds "$work/out" "$pattern"
}
sft_settings
sft=(sft "${settings[@]}" --set "output=$work/run")
grpo=(grpo --set "model=$model" --set init_std=0.05 --set "data.train=$work/data/rl.h5" --set "output=$work/grpo")

echo "== commands"
wrong '^usage: poise COMMAND' "$POISE"
wrong "there is no command 'trian'" "$POISE" trian
right '^usage: poise COMMAND' "$POISE" --help
wrong "sft wants -c FILE" "$POISE" sft
wrong "does not take '--steps'" "$POISE" sft --steps
wrong "wants --model DIR, --input FILE and --output" "$POISE" score --model "$model"
wrong "max-tokens must be a whole number.*'many'" "$POISE" generate --model "$model" --input x --output y --max-tokens many
wrong "cannot open .*none.jsonl" "$POISE" tokenize --model "$model" --input "$work/none.jsonl" --output "$work/o"
printf '{"id":1,"text":"a"}\n{"text":"b"}\n' >"$work/no-id.jsonl"
wrong "no-id.jsonl, line 2.*no 'id'" "$POISE" tokenize --model "$model" --input "$work/no-id.jsonl" --output "$work/o"
[ ! -e "$work/o" ] || fail "an output stayed behind after an error"

right '^poise [0-9]+\.[0-9]+' "$POISE" --version
right '^usage: poise score .*--temperature' "$POISE" score --help
right '^usage: poise sft -c FILE' "$POISE" sft -c "$work/none.yaml" --help
right '^usage: poise sft -c FILE' "$launch" -n 1 sft --help
files=(--model "$model" --input "$work/none.jsonl" --output "$work/o")
wrong "score does not take '--num'" "$POISE" score "${files[@]}" --num 7
wrong "tokenize does not take '--adapter'" "$POISE" tokenize "${files[@]}" --adapter x
wrong "pack does not take '--temperature'" "$POISE" pack "${files[@]}" --temperature 2
wrong "generate does not take '--prompts'" "$POISE" generate "${files[@]}" --prompts
wrong "merge does not take '--input'" "$POISE" merge "${files[@]}" --adapter x
wrong "'--seed' wants a value" "$POISE" generate "${files[@]}" --seed
for command in score generate; do
    wrong "no weight type .int8.; use fp32 or bf16" "$POISE" $command "${files[@]}" --input "$work/no-id.jsonl" --dtype int8
done
many=()
for i in {1..65}; do many+=(--set "seed=$i"); done
wrong "takes --set at most 64 times" "$POISE" sft "${many[@]}"
wrong "seed wants a whole number.*'x'" "$POISE_SOURCE_DIR/launch/quickstart" --seed x --out "$work/quick"
wrong "seed wants a whole number.*'100000001'" "$POISE_SOURCE_DIR/launch/quickstart" --seed 100000001 --out "$work/quick"
wrong "seed wants a whole number" "$POISE_SOURCE_DIR/launch/quickstart" --out "$work/quick" --seed
[ ! -e "$work/quick" ] || fail "a quickstart that was refused made its folder"

echo "== configuration"
wrong "unknown key 'optimizer.learnin_rate'; the nearest known one is 'optimizer.learning_rate'" "$POISE" "${sft[@]}" --set optimizer.learnin_rate=1
printf 'model: x\nsft:\n  bach: 3\n' >"$work/typo.yaml"
wrong "typo.yaml:3: unknown key 'sft.bach'; the nearest known one is 'sft.batch'" "$POISE" sft -c "$work/typo.yaml"
wrong "cannot open the configuration .*none.yaml" "$POISE" sft -c "$work/none.yaml"
wrong "set wants KEY=VALUE" "$POISE" "${sft[@]}" --set optimizer.steps
wrong "optimizer.steps must lie between 1 and 1000000000, not 0" "$POISE" "${sft[@]}" --set optimizer.steps=0
wrong "optimizer.steps must be a whole number, not 'ten'" "$POISE" "${sft[@]}" --set optimizer.steps=ten
wrong "sft.objective must be one of vanilla.scale.fixed" "$POISE" "${sft[@]}" --set sft.objective=plain
wrong "model is not set|no model" "$POISE" sft --set "data.train=$work/data/sft.h5" --set "output=$work/run"
wrong "none.h5" "$POISE" "${sft[@]}" --set "data.train=$work/none.h5"
wrong "none/config.json" "$POISE" "${sft[@]}" --set "model=$work/none"
wrong "pattern 'no_such_proj' matches no linear layer" "$POISE" "${sft[@]}" --set lora.rank=2 --set 'lora.targets=[no_such_proj]'
mkdir "$work/other" && cp "$model"/*.json "$work/other" && sed -i 's/<|video_pad|>/<|video_pax|>/' "$work/other"/tokenizer*.json
wrong "sft.h5.*tokenizer" "$POISE" "${sft[@]}" --set "model=$work/other"

echo "== world sizes, each said once by all ranks together"
wrong "mpirun -n 3 or more, not -n 1" "$POISE" "${grpo[@]}"
wrong "needs? mpirun -n 5, not -n 3" "$launch" -n 3 "${grpo[@]}" --set roles.learners=2 --set roles.rollouts=2
wrong "need mpirun -n 4, not -n 3" mpirun -n 3 "$POISE" "${grpo[@]}" --set roles.colocated=true --set roles.learners=3
wrong "unknown key" mpirun -n 3 "$POISE" "${grpo[@]}" --set rolls.learners=3
wrong "none.h5" "$launch" -n 3 "${grpo[@]}" --set "data.train=$work/none.h5"
wrong "poise sft does not take '--bogus'" "$launch" -n 3 sft --bogus
wrong "poise eval wants -c FILE" "$launch" -n 3 eval
wrong "there is no canary 'bird'" "$launch" -n 3 canary --only bird

echo "== other commands under mpirun"
right '^ok +MPI test +a collective over 2 ranks worked' "$launch" -n 2 doctor
[ "$(grep -Ec '^[0-9]+ problems?, [0-9]+ warnings?$' "$work/out")" = 1 ] || fail "not one summary of two doctors" "$work/out"

wrong "there is no command 'bird'" "$launch" -n 2 bird
wrong "/nowhere" "$launch" -n 2 inspect /nowhere
wrong "usage: launch/run" "$launch" -n x "${sft[@]}"
wrong "usage: launch/run" "$launch" --replace 1 "${sft[@]}"
wrong "there is no command '--replace'" "$launch" -n 2 -- --replace 1 grpo
right '^steps' "$launch" -n 1 --replace 1 "${sft[@]}" --dry-run

echo "== data without answers"
sed 's/"answer": *[^,}]*, *//' "$work/data/rl.jsonl" | head -n 6 >"$work/data/bare.jsonl"
head -n 2 "$work/data/rl.jsonl" >>"$work/data/bare.jsonl"
"$POISE" pack --prompts --model "$model" --input "$work/data/bare.jsonl" --output "$work/data/bare.h5" >"$work/out" 2>&1 || fail "pack failed" "$work/out"
wrong "6 of 8 samples of .*bare.h5 have no 'answer'.*grpo.reward_answer" "$launch" -n 3 "${grpo[@]}" --set "data.train=$work/data/bare.h5"
sft_settings
settings+=(--set "data.train=$work/data/bare.h5" --set "data.test=$work/data/bare.h5")
must_job unpaid 3 grpo grpo.reward_answer=0 grpo.reward_length=2 grpo.prompts=2 grpo.completions=2 grpo.max_new_tokens=4 optimizer.steps=1
all unpaid completions/excluded 'x == 0'
all unpaid reward/answer 'x == 0'
all unpaid reward 'x >= 0.5'
must_job eval-few 2 eval eval.limit=6 eval.max_new_tokens=2
[ "$(grep -c "no sample of .*bare.h5.* has an 'answer'" "$work/eval-few.log")" = 1 ] || fail "eval does not say once that there are no answers" "$work/eval-few.log"
must_job eval-some 1 eval eval.max_new_tokens=2
grep -q "has an 'answer'" "$work/eval-some.log" && fail "eval says that there are no answers" "$work/eval-some.log"
sft_settings

echo "== resume"
must_job run 1 sft optimizer.stop_after=1
holds "$work/run/result.json" '"state": *"done"'
right '^steps' "$POISE" "${sft[@]}" --dry-run
[ -e "$work/run/result.json" ] || fail "a dry run removed the result of a run"
wrong "mpirun -n 3 or more, not -n 2" "$launch" -n 2 grpo "${settings[@]}" --set "output=$work/run"
[ ! -e "$work/run/result.json" ] || fail "a refused run left an earlier run's result"
wrong "go on from .*step-1.h5.*under another training configuration" "$POISE" "${sft[@]}" --set optimizer.learning_rate=1e-5
wrong "with other training data" "$POISE" "${sft[@]}" --set "data.train=$work/data/rl.h5"
wrong "already holds a checkpoint of step 1; set resume: true" "$POISE" "${sft[@]}" --set resume=false

echo "== dry runs"
dry() { # RANKS PATTERN COMMAND...
    right "$2" "$launch" -n "$1" "${@:3}" --dry-run
    holds "$work/out" '^ *learning_rate: '
    holds "$work/out" '^memory of one learner'
    holds "$work/out" '^language +[0-9]+'
    holds "$work/out" '^ *values kept for backward +[0-9.]+ MiB'
}
dry 2 '^rank 1: learner 1$' "${sft[@]}" --set "output=$work/dry"
dry 4 '^rank 2: rollout 1$' "${grpo[@]}" --set "output=$work/dry"
holds "$work/out" '^rank 3: reward$'
holds "$work/out" '^ *vision launch +[0-9.]*[1-9][0-9.]* MiB'
dry 3 '^rank 1: learner 1 \+ rollout 1$' "${grpo[@]}" --set "output=$work/dry" --set roles.colocated=true --set grpo.staleness=0
wrong "colocated generates from the current weights only" "$launch" -n 2 "${grpo[@]}" --set roles.colocated=true --set grpo.staleness=1 --dry-run
wrong "under another training configuration" "$launch" -n 2 "${sft[@]}" --set optimizer.learning_rate=1e-5 --dry-run
wrong "already holds a checkpoint of step 1; set resume: true" "$POISE" "${sft[@]}" --set resume=false --dry-run
right '^steps      1 to 6 of 6' "$POISE" "${sft[@]}" --dry-run
eval=(eval --set "model=$model" --set init_std=0.05 --set "output=$work/dry")
right '^rank 0: eval 0$' "$launch" -n 1 "${eval[@]}" --set "data.test=$work/data/test.h5" --dry-run
holds "$work/out" 'MiB'
holds "$work/out" '^data .*test.h5, [0-9]+ of [0-9]+ samples'
wrong "none.h5" "$launch" -n 2 "${eval[@]}" --set "data.test=$work/none.h5" --dry-run
[ ! -e "$work/dry" ] || fail "a dry run made its output folder"
right '^ *steps: 7' "$POISE" config -c "$POISE_SOURCE_DIR/configs/quickstart/sft.yaml" --set optimizer.steps=7
cp "$work/out" "$work/printed.yaml"
right '^ *steps: 7' "$POISE" config -c "$work/printed.yaml"
cmp "$work/out" "$work/printed.yaml" || fail "a printed configuration reads back to another one"
right 'sft.pack_tokens' "$POISE" config --reference
