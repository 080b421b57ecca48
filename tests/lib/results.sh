# Sourced after jobs.sh: what a training run leaves behind, in one text that is compared.
sha() { # FILE...
    cat "$@" | sha256sum | cut -d ' ' -f 1
}
# results_of NAME STEP: SHA-256 of the weights' file, of the whole state in the checkpoint, of all trajectories (every completion with its
# tokens, log-probs, rewards, advantage and whether it was excluded), and of the metrics without times and without what workers say.
results_of() {
    local folder=$work/$1 weights=$work/$1/model/model.safetensors state
    [ -e "$weights" ] || weights=$folder/adapter/adapter_model.safetensors
    [ -s "$weights" ] || fail "$1 saved no weights" "$work/$1.log"
    state=$("$POISE" inspect "$folder/checkpoints/step-$2.h5" | sed -n 's/^ *SHA-256 of the state:* *//p')
    [ ${#state} = 64 ] || fail "no hash of the state of $1: $state"
    echo "weights $(sha "$weights") state $state"
    if [ -d "$folder/trajectories" ]; then
        local file logs=""
        for file in $(ls "$folder/trajectories" | sort -V); do
            logs="$logs$file $("$POISE" inspect "$folder/trajectories/$file" | sed -n 's/^ *SHA-256 of the contents:* *//p');"
        done
        case $logs in *" ;"*) fail "no hash of some log of $1: $logs" ;; esac
        echo "trajectories $(ls "$folder/trajectories" | wc -l) $(echo "$logs" | sha)"
    fi
    echo "metrics $(sed 's/"time[^,}]*[,}]//g; s/"tokens_per_second[^,}]*[,}]//g; s/"rollout[^,}]*[,}]//g' "$folder/metrics.jsonl" | sha)"
}
