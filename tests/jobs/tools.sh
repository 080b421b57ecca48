#!/usr/bin/env bash
# tokenize, generate, score, pack, inspect, eval, merge on one tiny model: what one writes the next one reads, to the bit.
. "$(dirname "$0")/../lib/jobs.sh"
make_data
make_start 24
tiny=$work/start/model
run() { timeout -k 5 "$limit" "$POISE" "$@" >"$work/out" 2>"$work/err" </dev/null || fail "poise $* ended with $?" "$work/err"; }
# field FILE KEY: the list of a key, a line each.
field() { grep -o "\"$2\":\[[^]]*\]" "$1"; }
identical() { # WHAT A B
    cmp -s "$2" "$3" || fail "$1: $2 and $3 differ: $(diff "$2" "$3" | head -n 4 | cut -c1-300)"
    [ -s "$2" ] || fail "$1: $2 is empty"
    echo "same $1: $(wc -l <"$2") lines"
}
# nearness A B: the largest difference of two files' log-probs.
nearness() {
    paste <(field "$1" logprobs | tr -d '[]' | sed 's/"logprobs"://' | tr , '\n') <(field "$2" logprobs | tr -d '[]' | sed 's/"logprobs"://' | tr , '\n') |
        awk 'NF != 2 { bad = 1 } { d = $1 > $2 ? $1 - $2 : $2 - $1; if (d > most) most = d } END { print bad || !NR ? "unequal" : most }'
}

echo "== tokenize"
cat >"$work/text.jsonl" <<'END'
{"id":"a","text":"How many bags are there? <think>2.</think>\n<answer>two</answer><|im_end|>"}
{"id":"b","text":"Ünïcödé 漢字 \u0000?  tabs\tand   spaces\n\n"}
END
sed -i 's/ \\u0000?//' "$work/text.jsonl"
run tokenize --model "$tiny" --input "$work/text.jsonl" --output "$work/ids.jsonl"
[ "$(grep -o '"decoded":.*' "$work/ids.jsonl" | sed 's/"decoded"://; s/}$//')" = "$(sed 's/.*"text"://; s/}$//' "$work/text.jsonl")" ] ||
    fail "decoded text is not the text" "$work/ids.jsonl"
echo "decoded as it was"

echo "== generate and score"
head -n 5 "$work/data/test.jsonl" >"$work/data/ask.jsonl"
echo '{"id":"plain","messages":[{"role":"user","content":"How many shirts?"}]}' >>"$work/data/ask.jsonl"
for temperature in 0 0.7; do
    generated=$work/generated-$temperature
    run generate --model "$tiny" --input "$work/data/ask.jsonl" --output "$generated" --max-tokens 20 --temperature $temperature --seed 4
    run generate --model "$tiny" --input "$work/data/ask.jsonl" --output "$generated-2" --max-tokens 20 --temperature $temperature --seed 4 --threads 2
    identical "answers with 1 and 2 threads" "$generated" "$generated-2"
    paste -d $'\x01' "$work/data/ask.jsonl" <(field "$generated" tokens | sed 's/"tokens"/"completion_ids"/') | sed 's/}\x01\(.*\)$/,\1}/' >"$work/data/completed.jsonl"
    at=$temperature
    [ $at = 0 ] && at=1 # greedy log-probs are those at temperature 1
    run score --model "$tiny" --input "$work/data/completed.jsonl" --output "$work/scored-$temperature" --temperature "$at" --threads 2
    field "$generated" logprobs >"$work/a"
    field "$work/scored-$temperature" logprobs >"$work/b"
    identical "log-probs of generate and score at temperature $temperature" "$work/a" "$work/b"
    [ "$(wc -l <"$work/a")" = 6 ] || fail "$(wc -l <"$work/a") lines of log-probs"
    [ "$(field "$generated" prompt_ids)" = "$(field "$work/scored-$temperature" prompt_ids)" ] || fail "prompts differ"
done
cmp -s "$work/generated-0" "$work/generated-0.7" && fail "greedy and sampled answers are the same"
run generate --model "$tiny" --input "$work/data/ask.jsonl" --output "$work/three" --max-tokens 8 --temperature 1 --num 3 --seed 4
[ "$(wc -l <"$work/three")" = 18 ] || fail "--num 3 gave $(wc -l <"$work/three") lines"

echo "== pack and inspect"
run pack --prompts --model "$tiny" --input "$work/data/test.jsonl" --output "$work/again.h5"
holds "$work/out" '^24 samples, 8 images,.* dropped: 0 too long, 0 bad'
run inspect "$work/again.h5"
grep -i hash "$work/out" >"$work/a"
run inspect "$work/data/test.h5"
grep -i hash "$work/out" >"$work/b"
identical "content hash of data packed twice" "$work/a" "$work/b"
run inspect "$work/data/sft.h5"
holds "$work/out" '^ *samples +48 '
run inspect "$work/data/sft.h5" --sample 0 --model "$tiny"
holds "$work/out" ' 1282 +answer .*"<.im_end.>"'
run inspect "$tiny"
holds "$work/out" '^ *family +qwen2_5_vl'
run inspect "$work/start"
holds "$work/out" '^ *result +done'
run inspect "$(ls "$work"/start/checkpoints/*.h5)"
holds "$work/out" '^ *completed steps +24'

echo "== eval"
settings=(--set "model=$tiny" --set "data.test=$work/data/test.h5" --set eval.max_new_tokens=64)
for ranks in 1 2 3; do must_job eval-$ranks $ranks eval "threads=$((ranks % 2 + 1))" "rollout.batch_rows=$((ranks * 7))"; done
identical "samples of 1 and 2 ranks" "$work/eval-1/samples.jsonl" "$work/eval-2/samples.jsonl"
identical "samples of 1 and 3 ranks" "$work/eval-1/samples.jsonl" "$work/eval-3/samples.jsonl"
[ "$(wc -l <"$work/eval-1/samples.jsonl")" = 24 ] || fail "$(wc -l <"$work/eval-1/samples.jsonl") samples"
holds "$work/eval-1/summary.json" '"n": *24'
[ "$(grep -v seconds "$work/eval-1/summary.json")" = "$(grep -v seconds "$work/eval-3/summary.json")" ] || fail "summaries differ"
# The portable kernels are slow enough to be caught in the middle, and give the same bits; where even they were done first, try again.
samples_there() { [ -e "$work/eval-killed/samples.jsonl" ] || [ "$(cat "$work"/eval-killed/samples.rank-*.jsonl 2>/dev/null | wc -l)" -ge 3 ]; }
for try in 1 2 3 4; do
    start_job eval-killed 2 eval rollout.batch_rows=1 device=cpu:portable
    within "$limit" samples_there || fail "no samples came" "$work/eval-killed.log"
    kill_all
    end_job
    kept=$(cat "$work"/eval-killed/samples*.jsonl | wc -l)
    [ "$kept" -ge 24 ] || break
    [ $try -lt 4 ] || fail "the evaluation is always done before it can be killed"
    rm -r "$work/eval-killed"
done
must_job eval-killed 3 eval
echo "killed after $kept samples"
identical "samples after a kill" "$work/eval-1/samples.jsonl" "$work/eval-killed/samples.jsonl"
run inspect "$work/eval-1"
holds "$work/out" '^ *samples +24'
must_job eval-shuffled 1 eval eval.shuffle_images=3
cmp -s "$work/eval-1/samples.jsonl" "$work/eval-shuffled/samples.jsonl" && fail "other images change nothing"

echo "== merge"
sft_settings
must_job lora 1 sft save_model=true init_std=0 "model=$tiny" lora.rank=4 optimizer.learning_rate=1e-2
run inspect "$work/lora/adapter"
holds "$work/out" '^ *rank, alpha +4, 16'
run merge --model "$tiny" --adapter "$work/lora/adapter" --output "$work/merged"
run score --model "$tiny" --input "$work/data/completed.jsonl" --output "$work/plain"
run score --model "$tiny" --adapter "$work/lora/adapter" --input "$work/data/completed.jsonl" --output "$work/adapted"
run score --model "$work/merged" --input "$work/data/completed.jsonl" --output "$work/of-merged"
echo "log-probs: adapter and merged differ by $(nearness "$work/adapted" "$work/of-merged"), adapter and none by $(nearness "$work/adapted" "$work/plain")"
nearness "$work/adapted" "$work/of-merged" | awk '{ exit !($1 != "unequal" && $1 < 1e-3) }' || fail "the merged model is not the adapted one"
nearness "$work/adapted" "$work/plain" | awk '{ exit !($1 != "unequal" && $1 > 1e-2) }' || fail "the adapter changes nothing"
