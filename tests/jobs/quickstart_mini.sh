#!/usr/bin/env bash
# launch/quickstart --mini: stopped by Ctrl-C in the middle, started again to the end, and once more with nothing left to do.
. "$(dirname "$0")/../lib/jobs.sh"
[ -e /usr/share/datasets/fashion-mnist ] || { echo "skipped: Fashion-MNIST is not installed"; exit 77; }
out=$work/quickstart
quickstart() { timeout -k 5 500 "$POISE_SOURCE_DIR/launch/quickstart" --mini --out "$out" >"$work/$1.out" 2>"$work/$1.err" </dev/null; }
nothing_left() { [ -z "$(processes "poise mpirun")" ]; }

echo "== Ctrl-C"
set -m
"$POISE_SOURCE_DIR/launch/quickstart" --mini --out "$out" >"$work/stopped.out" 2>"$work/stopped.err" </dev/null &
background=$!
set +m
within "$limit" test -e "$out/.done.base_eval" || fail "the quickstart did not get to the first evaluation's end" "$work/stopped.err"
kill -INT -- "-$background"
gone() { ! kill -0 "$background" 2>/dev/null; }
within "$limit" gone || fail "the quickstart does not end after Ctrl-C" "$work/stopped.err"
wait "$background"
code=$?
[ "$code" = 130 ] || fail "the stopped quickstart ended with $code" "$work/stopped.err"
within 10 nothing_left || fail "the stopped quickstart left processes"
grep -q "failed" "$work/stopped.err" && fail "the stopped quickstart speaks of a failure" "$work/stopped.err"
[ ! -e "$out/report.json" ] || fail "the stopped quickstart has a report"
echo "stopped with 130; done by then: $(cd "$out" && echo .done.*)"

echo "== again"
base=$(stat -c %Y.%s "$out/base/model/model.safetensors")
quickstart again || fail "the quickstart ended with $?" "$work/again.err"
same "base model" "$base" "$(stat -c %Y.%s "$out/base/model/model.safetensors")"
report=$out/report.json
# The report's rows are the only objects with a "config".
same "configurations" "base sft scale_sft sft_grpo scale_sft_grpo" "$(sed -n 's/^ *"config": *"\(.*\)",*$/\1/p' "$report" | tr '\n' ' ' | sed 's/ $//')"
same "questions" 36 "$(sed -n 's/^ "n": *\([0-9]*\),$/\1/p' "$report")"
same "log-prob difference" 0 "$(sed -n 's/^ "rollout_learner_logprob_max_abs_diff": *\([0-9.e+-]*\),*$/\1/p' "$report" | sed 's/^0\.0$/0/')"
for wanted in '"majority": *0\.[0-9]+' '"shuffled_images": *[0-9.]+' '"above_shuffled_images_ci95"' '"above_majority"'; do holds "$report" "$wanted"; done
pair() { tr -d ' \n' <"$report" | grep -Eq "\"a\":\"$1\",\"b\":\"$2\",\"difference\":-?[0-9.]+,\"ci95\":\[-?[0-9.e-]+,-?[0-9.e-]+\],.*\"n\":36" || fail "no paired comparison of $1 and $2"; }
for two in "sft base" "scale_sft base" "scale_sft sft" "sft_grpo sft" "scale_sft_grpo scale_sft" "scale_sft_grpo sft_grpo"; do
    # shellcheck disable=SC2086
    pair $two
done
echo "six paired comparisons"
for name in sft_grpo scale_sft_grpo; do
    sed 's/.*"logprob_max_abs_diff":\([^,}]*\).*/\1/' "$out/$name/metrics.jsonl" | grep -qv '^0\.0$' && fail "$name: log-probs differ in a step"
    [ "$(wc -l <"$out/$name/metrics.jsonl")" = 6 ] || fail "$name did $(wc -l <"$out/$name/metrics.jsonl") steps"
done
for name in base sft scale_sft sft_grpo scale_sft_grpo shuffled; do
    [ "$(wc -l <"$out/${name}_eval/samples.jsonl")" = 36 ] || fail "$name: $(wc -l <"$out/${name}_eval/samples.jsonl") answers"
done
holds "$out/report.txt" 'scale_sft_grpo'
holds "$out/report.html" '<html'
if command -v gnuplot >/dev/null; then
    for plot in accuracy loss reward lengths kinds tokens; do
        holds "$out/plots/$plot.svg" '<svg'
        [ "$(head -c 4 "$out/plots/$plot.png" | tail -c 3)" = PNG ] || fail "plots/$plot.png is no PNG"
    done
fi

echo "== nothing left to do"
before=$(cd "$out" && find . -type f ! -name '.done.install' ! -name '.done.build' ! -name '*.log' -printf '%p %T@\n' | sort)
began=$SECONDS
quickstart third || fail "the third start ended with $?" "$work/third.err"
took=$((SECONDS - began))
after=$(cd "$out" && find . -type f ! -name '.done.install' ! -name '.done.build' ! -name '*.log' -printf '%p %T@\n' | sort)
[ "$before" = "$after" ] || fail "the third start changed $(diff <(echo "$before") <(echo "$after") | head -n 5)"
[ "$took" -le 30 ] || fail "the third start took $took s"
cmp -s <(grep -v '^more' "$work/again.out") <(grep -v '^more' "$work/third.out") || fail "the third start shows another report"
echo "nothing changed, $took s"
