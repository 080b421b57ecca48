#!/usr/bin/env bash
# device: sim, whole: SFT and GRPO with the GPU's kernels, and host code over the runtime's stand-ins. Losses and gradient norms of every step
# are the CPU's within 1e-4 of their size (fp32: some sums run in another order); the sampler's log-probs are the learner's in every bit; one
# and two learners end in the same weights; nothing is left on the device.
. "$(dirname "$0")/../lib/jobs.sh"
"$POISE" doctor 2>/dev/null | grep -q 'device: sim runs' || { echo "skipped: $("$POISE" doctor 2>/dev/null | grep -m1 'simulator')"; exit 77; }
small_model
make_data
close() { # A B KEY: at every step
    [ "$(metric "$1" "$3" | wc -l)" = "$(metric "$2" "$3" | wc -l)" ] || fail "$1 and $2 have $3 at other steps"
    paste <(metric "$1" "$3") <(metric "$2" "$3") |
        awk '{ d = $1 - $2; s = $1; if (d < 0) d = -d; if (s < 0) s = -s; if (!(d <= 1e-4 * s + 1e-6)) bad = 1 } END { exit bad || !NR }' ||
        fail "$3 of $1 and $2 part: $(paste <(metric "$1" "$3") <(metric "$2" "$3") | tr '\n\t' ' /')"
    echo "close $3 ($1, $2): $(paste <(metric "$1" "$3") <(metric "$2" "$3") | tr '\n\t' ' /')"
}
no_leaks() { # NAME
    ! grep '^sim: ' "$work/$1.log" || fail "$1 left something on the device" "$work/$1.log"
}

echo "== SFT"
sft_settings
settings+=(--set optimizer.steps=2 --set sft.batch=2)
must_job cpu 1 sft
must_job sim 1 sft device=sim
close cpu sim loss
close cpu sim gradient_norm
no_leaks sim
must_job sim-two 2 sft device=sim:reverse
same "weights (two learners, threads in reverse)" "$(hash_of sim)" "$(hash_of sim-two)"
"$POISE" sft "${settings[@]}" --set device=sim --set "output=$work/dry" --dry-run >"$work/dry.log" 2>&1 || fail "the dry run failed" "$work/dry.log"
holds "$work/dry.log" '^kernels +sim'

echo "== GRPO"
make_start 200
grpo_settings
settings+=(--set optimizer.steps=1 --set grpo.prompts=2 --set grpo.completions=3 --set grpo.updates=1 --set grpo.max_new_tokens=6)
must_job grpo-cpu 3 grpo
must_job grpo-sim 3 grpo device=sim
all grpo-sim logprob_max_abs_diff 'x == 0'
for key in loss gradient_norm entropy reward tokens; do close grpo-cpu grpo-sim $key; done
no_leaks grpo-sim
