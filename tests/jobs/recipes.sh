#!/usr/bin/env bash
# launch/recipes --mini on a tiny random language model: arithmetic stopped by Ctrl-C, started again to the end, and once more with nothing
# left to do; pictures to the end; what is wrong use.
. "$(dirname "$0")/../lib/jobs.sh"
recipes=$POISE_SOURCE_DIR/launch/recipes
recipe() { # NAME LOG ARGUMENTS...
    local name=$1 log=$2
    shift 2
    timeout -k 5 400 "$recipes/$name" --mini --threads 1 "$@" >"$work/$log.out" 2>"$work/$log.err" </dev/null
}

echo "== a language model"
tiny=$work/tiny
mkdir "$tiny"
cp "$POISE_SOURCE_DIR/configs/quickstart/tokenizer.json" "$tiny"
cat >"$tiny/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1288, "hidden_size": 32, "intermediate_size": 64,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1281,
 "eos_token_id": 1282, "tie_word_embeddings": true}
JSON
cat >"$tiny/tokenizer_config.json" <<'JSON'
{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template":
 "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}
JSON
"$POISE" word-problems --output "$work/first" --sft 8 --rl 0 --dev 0 --test 0 || fail "word-problems ended with $?"
"$POISE" pack --model "$tiny" --input "$work/first/sft.jsonl" --output "$work/first/sft.h5" || fail "pack ended with $?"
"$launch" -n 1 sft --set model="$tiny" --set output="$work/first/run" --set data.train="$work/first/sft.h5" --set init_std=0.05 \
    --set optimizer.steps=1 --set sft.batch=8 >"$work/first.log" 2>&1 || fail "the language model could not be made" "$work/first.log"
language=$work/first/run/model

echo "== arithmetic, stopped"
out=$work/arithmetic
set -m
"$recipes/arithmetic" --mini --threads 1 --model "$language" --out "$out" >"$work/stopped.out" 2>"$work/stopped.err" </dev/null &
background=$!
set +m
within "$limit" test -e "$out/.done.sft" || fail "the recipe did not get to the end of SFT" "$work/stopped.err"
kill -INT -- "-$background"
gone() { ! kill -0 "$background" 2>/dev/null; }
within "$limit" gone || fail "the recipe does not end after Ctrl-C" "$work/stopped.err"
wait "$background"
same "exit code of the stopped recipe" 130 "$?"
holds "$work/stopped.err" 'stopping; the same command goes on'
[ ! -e "$out/report.json" ] || fail "the stopped recipe has a report"

echo "== arithmetic, again"
before=$(stat -c %Y.%s "$out/sft/adapter/adapter_model.safetensors")
recipe arithmetic again --model "$language" --out "$out" || fail "the recipe ended with $?" "$work/again.err"
same "SFT adapter" "$before" "$(stat -c %Y.%s "$out/sft/adapter/adapter_model.safetensors")"
rows() { sed -n 's/^ *"config": *"\(.*\)",*$/\1/p' "$1/report.json" | tr '\n' ' ' | sed 's/ $//'; }
exact() { # RUN STEPS: so many steps, and the sampler's log-probs are the learner's in each
    same "steps of $1" "$2" "$(wc -l <"$1/metrics.jsonl")"
    sed 's/.*"logprob_max_abs_diff":\([^,}]*\).*/\1/' "$1/metrics.jsonl" | grep -qv '^0\.0$' && fail "$1: log-probs differ in a step"
}
same "rows" "base scale_sft scale_sft_grpo" "$(rows "$out")"
same "answers" 12 "$(wc -l <"$out/grpo_eval/samples.jsonl")"
exact "$out/grpo" 3
holds "$out/report.txt" 'scale_sft_grpo'
listing() { (cd "$out" && find . -type f -printf '%p %T@\n' | sort); }
before=$(listing)
recipe arithmetic third --model "$language" --out "$out" || fail "the third start ended with $?" "$work/third.err"
[ "$before" = "$(listing)" ] || fail "the third start changed something"
cmp -s "$work/again.out" "$work/third.out" || fail "the third start shows another report"

echo "== wrong use"
for arguments in "" "--model $language --gguf x.gguf" "--model $language --seed x" "--model $language --steps 3"; do
    # shellcheck disable=SC2086
    recipe arithmetic wrong --out "$work/wrong" $arguments
    same "exit code of '$arguments'" 2 "$?"
done

[ -e /usr/share/datasets/fashion-mnist ] || { echo "pictures skipped: Fashion-MNIST is not installed"; exit 0; }
echo "== pictures"
out=$work/pictures
recipe pictures pictures --model "$language" --out "$out" || fail "the recipe ended with $?" "$work/pictures.err"
same "rows" "captions scale_sft scale_sft_grpo" "$(rows "$out")"
exact "$out/grpo" 3
holds "$out/report.json" '"shuffled_images": *[0-9.]+'
# The captions' stage trains the tower and leaves the language model as it is.
holds "$out/log/captions.log" '^language +0 +[1-9]'
holds "$out/log/captions.log" '^vision +[1-9][0-9]* +0$'
