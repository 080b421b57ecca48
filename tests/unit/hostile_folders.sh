#!/usr/bin/env bash
# Folders that strangers made to do harm: every command that reads one ends with an error of its own (exit code 1 or 2 and a sentence),
# soon, without a crash and within a limit of memory that the files could never justify exceeding.
set -u
work=$(mktemp -d "${TMPDIR:-/tmp}/poise-hostile.XXXXXX")
trap 'rm -rf "$work"' EXIT
goldens=$POISE_SOURCE_DIR/tests/goldens
good=$goldens/score/model
cases=0 failed=0
printf '%s\n' '{"id":"a","messages":[{"role":"user","content":"Add 2 and 3."}],"completion":"5"}' >"$work/score.jsonl"
printf '%s\n' '{"id":"a","text":"Add 2 and 3."}' >"$work/tokenize.jsonl"
printf '%s\n' '{"id":"a","messages":[{"role":"user","content":"Add 2 and 3."}]}' >"$work/generate.jsonl"
# A sanitizer's build cannot start with so little address space; there the sanitizer looks at allocations.
limit=1500000
(ulimit -v $limit && "$POISE" --help) >/dev/null 2>&1 || limit=unlimited

# run NAME WANTED COMMAND...: ends with one of these codes in time, and says why where it fails.
run() {
    local name=$1 wanted=$2 code=0
    shift 2
    cases=$((cases + 1))
    rm -rf "$work/out"
    (ulimit -v $limit && exec timeout -s KILL 30 "$POISE" "$@") >"$work/log" 2>&1 </dev/null || code=$?
    [ -z "${VERBOSE:-}" ] || echo "$name: $1: $code: $(tail -n 1 "$work/log" | cut -c1-200)"
    case " $wanted " in *" $code "*) ;; *) echo "FAILED: $name: '$*' ended with $code:" && tail -n 5 "$work/log" && failed=1 ;; esac
    [ "$code" = 0 ] || [ -s "$work/log" ] || { echo "FAILED: $name: '$1' says nothing" && failed=1; }
    if grep -qE 'ERROR: .*Sanitizer|runtime error|out of memory' "$work/log"; then
        echo "FAILED: $name: '$1':" && cat "$work/log" && failed=1
    fi
}
# folder NAME [FROM]: `dir` is a copy of a good model, to be spoiled.
folder() {
    dir=$work/$1
    cp -r "${2:-$good}" "$dir"
    chmod -R u+w "$dir"
}
# refused NAME COMMAND...: these commands (score tokenize generate inspect merge) refuse `dir`.
refused() {
    local name=$1 command
    shift
    for command in "$@"; do
        case $command in
        inspect) run "$name" "1 2" inspect "$dir" ;;
        merge) run "$name" "1 2" merge --model "$dir" --adapter "$work/adapter" --output "$work/out" ;;
        *) run "$name" "1 2" "$command" --model "$dir" --input "$work/$command.jsonl" --output "$work/out" ;;
        esac
        [ ! -e "$work/out" ] || { echo "FAILED: $name: '$command' left an output" && failed=1; }
    done
}
everything="score tokenize generate inspect merge"
with_weights="score generate merge"
set_key() { sed -i -E "s/\"$1\": *[^,{}]*([,}]?)\$/\"$1\": $2\1/" "$dir/config.json"; } # KEY VALUE, on lines of their own
repeat() { head -c "$2" /dev/zero | sed "s/\\x0/$1/g"; }                                 # TEXT COUNT
# bytes HEX...: as bytes.
bytes() { printf '%b' "$(printf '%s' "$*" | tr -d ' ' | sed 's/../\\x&/g')"; }

cp -r "$goldens/lora/attention" "$work/adapter_files"
adapter_from=$(dirname "$(find "$work/adapter_files" -name adapter_config.json | sort | head -n 1)")
cp -r "$adapter_from" "$work/adapter"

# What is spoiled below works unspoiled.
limited=$limit limit=unlimited
folder good
for command in score tokenize generate; do run good 0 "$command" --model "$dir" --input "$work/$command.jsonl" --output "$work/out"; done
run good 0 inspect "$dir"
limit=$limited

# ---- config.json ----
for key in num_hidden_layers hidden_size vocab_size intermediate_size num_attention_heads num_key_value_heads; do
    for value in 1000000000 2147483647 9223372036854775807 99999999999999999999999 -1 0 1.5 1e400 '"4"' null '[4]' '{}'; do
        folder "$key"
        set_key $key "$value"
        grep -qF "\"$key\": $value" "$dir/config.json" || { echo "FAILED: $key is not set" && failed=1; }
        # null is "not given": the class's own default, which does not fit the weights.
        refused "$key=$value" score
        case $value in -1 | 2147483647) refused "$key=$value" generate merge ;; esac
        rm -rf "$dir"
    done
done
folder deep
{ repeat '[' 200000 && repeat ']' 200000; } >"$dir/config.json"
refused deep $everything
folder deep_tokenizer
{ printf '{"a":' && repeat '{"a":' 100000 && printf 1 && repeat '}' 100000 && printf '}'; } >"$dir/tokenizer.json"
refused deep_tokenizer score tokenize generate
for file in config.json tokenizer.json model.safetensors; do
    case $file in
    config.json) commands="score generate inspect merge" ;; # tokenize needs none
    tokenizer.json) commands="score tokenize generate" ;;
    *) commands=$with_weights ;;
    esac
    for how in empty folder pipe cycle null device dangling; do
        folder "$how"
        rm "$dir/$file"
        case $how in
        empty) : >"$dir/$file" ;;
        folder) mkdir "$dir/$file" ;;
        pipe) mkfifo "$dir/$file" ;;
        cycle) ln -s "$file" "$dir/$file" ;;
        null) ln -s /dev/null "$dir/$file" ;;
        device) ln -s /dev/zero "$dir/$file" ;;
        dangling) ln -s /nowhere/at/all "$dir/$file" ;;
        esac
        # shellcheck disable=SC2086
        refused "$file is $how" $commands
        [ "$file" != config.json ] || run "$file is $how" "0 1 2" tokenize --model "$dir" --input "$work/tokenize.jsonl" --output "$work/out"
        rm -rf "$dir"
    done
done
ln -s self "$work/self"
dir=$work/self
refused "a link to itself" $everything
mkfifo "$work/pipe"
dir=$work/pipe
refused "a pipe" $everything

# ---- safetensors ----
st() { # NAME LENGTH_HEX HEADER [DATA]
    folder "$1"
    { bytes "$2" && printf '%s' "$3$4"; } >"$dir/model.safetensors"
    refused "$1" $with_weights
    rm -rf "$dir"
}
st header_2_60 0000000000000010 '{}' ''
st header_all ffffffffffffffff '{}' ''
st header_past_end 0001000000000000 '{}' ''
st header_none 0000000000000000 '' ''
header='{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}'
st shape_overflow "$(printf '%02x' ${#header})00000000000000" "$header" 0123456789abcdef
header='{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
st offsets_past_end "$(printf '%02x' ${#header})00000000000000" "$header" 0123456789abcdef
header='{"a":{"dtype":"F32","shape":[-4],"data_offsets":[16,0]}}'
st offsets_back "$(printf '%02x' ${#header})00000000000000" "$header" 0123456789abcdef
for name in ../../../../../../etc/passwd /etc/passwd ../good/model.safetensors '' . missing.safetensors; do
    folder sharded
    rm "$dir/model.safetensors"
    printf '{"metadata":{},"weight_map":{"model.embed_tokens.weight":"%s"}}' "$name" >"$dir/model.safetensors.index.json"
    refused "a shard '$name'" $with_weights
    if grep -q root: "$work/log"; then echo "FAILED: the log quotes a file outside the folder" && failed=1; fi
    rm -rf "$dir"
done

# ---- tokenizer and template ----
tokenizer() { # NAME JSON
    folder "$1"
    printf '%s' "$2" >"$dir/tokenizer.json"
    printf '{}' >"$dir/config.json" # no class that would build the tokenizer anew
    printf '{}' >"$dir/tokenizer_config.json"
    refused "$1" tokenize
    rm -rf "$dir"
}
tokenizer id_huge '{"model":{"type":"BPE","vocab":{"a":2147483647},"merges":[]}}'
tokenizer id_huger '{"model":{"type":"BPE","vocab":{"a":9223372036854775807},"merges":[]}}'
tokenizer id_negative '{"model":{"type":"BPE","vocab":{"a":-5},"merges":[]}}'
tokenizer merges_unknown '{"model":{"type":"BPE","vocab":{"a":0},"merges":["x y"]}}'
tokenizer unigram_unk '{"model":{"type":"Unigram","vocab":[["a",0]],"unk_id":2147483647}}'
tokenizer unigram_long "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"<unk>\",0],[\"$(repeat A 100000)\",-1]],\"unk_id\":0}}"
tokenizer added_long "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"id\":1,\"content\":\"$(repeat A 100000)\"}]}"
tokenizer regex_bad '{"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(((("},"behavior":"Isolated"},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}'
folder regex_slow
printf '%s' '{"pre_tokenizer":{"type":"Split","pattern":{"Regex":"((a+)+)+(?=b)c"},"behavior":"Isolated"},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}' >"$dir/tokenizer.json"
printf '{}' >"$dir/config.json"
printf '{}' >"$dir/tokenizer_config.json"
printf '{"id":"a","text":"%s"}\n' "$(repeat a 5000)" >"$work/slow.jsonl"
run regex_slow "0 1 2" tokenize --model "$dir" --input "$work/slow.jsonl" --output "$work/out"
template() { # NAME TEXT
    folder "$1"
    rm -f "$dir/tokenizer_config.json"
    printf '%s' "$2" >"$dir/chat_template.jinja"
    refused "template $1" score generate
    rm -rf "$dir"
}
template loops '{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}'
template range_huge '{% for a in range(9223372036854775807) %}{% endfor %}'
template grows '{% set ns = namespace(x="aaaaaaaa") %}{% for a in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}'
template repeats '{{ "aaaaaaaa" * 1000000000 }}'
template recursive '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}'
template deep_open "{{ $(repeat '(' 20000)"
template deep_list "{{ $(repeat '[' 20000)$(repeat ']' 20000) }}"
template deep_if "$(repeat '{% if 1 %}' 20000)"
template deep_filter "{{ 1$(repeat '|list' 100000) }}"
template binary "$(printf '\377\376')"

# ---- adapters ----
for change in '"r": 1000000000' '"r": -1' '"r": 0' '"r": 2.5' '"r": 99999999999999999999' '"lora_alpha": 1e400' '"target_modules": {"a": 1}' \
    '"target_modules": "((((("' '"base_model_name_or_path": [[[[' '"modules_to_save": ["lm_head"]'; do
    rm -rf "$work/adapter"
    cp -r "$adapter_from" "$work/adapter"
    key=${change%%:*}
    printf '{"peft_type":"LORA","task_type":"CAUSAL_LM",%s%s%s%s}' "$change" "$([ "$key" = '"r"' ] || echo ',"r":4')" \
        "$([ "$key" = '"lora_alpha"' ] || echo ',"lora_alpha":8')" \
        "$([ "$key" = '"target_modules"' ] || echo ',"target_modules":["q_proj","v_proj"]')" >"$work/adapter/adapter_config.json"
    folder with_adapter
    run "adapter $change" "1 2" merge --model "$dir" --adapter "$work/adapter" --output "$work/out"
    run "adapter $change" "1 2" score --model "$dir" --adapter "$work/adapter" --input "$work/score.jsonl" --output "$work/out"
    run "adapter $change" "0 1 2" inspect "$work/adapter"
    rm -rf "$dir"
done

# ---- GGUF ----
magic="47475546 03000000"
gguf() { # NAME HEX
    bytes "$magic$2" >"$work/$1.gguf"
    for command in "convert $work/$1.gguf $work/out" "inspect $work/$1.gguf"; do
        # shellcheck disable=SC2086
        run "$1" "1 2" $command
        [ ! -e "$work/out" ] || { echo "FAILED: $1: an output is left" && failed=1; }
    done
}
gguf tensors_2_63 "00000000000000800100000000000000"
gguf pairs_2_63 "01000000000000000000000000000080"
gguf both_all "ffffffffffffffffffffffffffffffff"
gguf string_2_63 "000000000000000001000000000000000000000000000080 61626364"
gguf value_2_63 "000000000000000001000000000000000100000000000000 61 08000000 0000000000000080 6162"
gguf list_2_60 "000000000000000001000000000000000100000000000000 61 09000000 00000000 0000000000000010 6162"
gguf lists_deep "000000000000000001000000000000000100000000000000 61 $(repeat '09000000 0100000000000000' 1 | sed 's/ //') $(for ((i = 0; i < 3000; i++)); do printf '090000000100000000000000'; done)"
gguf dimensions "010000000000000000000000000000000100000000000000 61 ffffffff 0100000000000000"
gguf shape_overflow "010000000000000000000000000000000100000000000000 61 02000000 00000000000000400400000000000000 00000000 0000000000000000"
gguf align_zero "000000000000000001000000000000001100000000000000 67656e6572616c2e616c69676e6d656e74 04000000 00000000"
for how in empty folder pipe device; do
    case $how in
    empty) : >"$work/$how.gguf" ;;
    folder) mkdir "$work/$how.gguf" ;;
    pipe) mkfifo "$work/$how.gguf" ;;
    device) ln -s /dev/zero "$work/$how.gguf" ;;
    esac
    run "gguf $how" "1 2" convert "$work/$how.gguf" "$work/out"
    run "gguf $how" "1 2" inspect "$work/$how.gguf"
done
[ "$failed" = 0 ] || exit 1
echo "$cases cases, each ended with an error of its own"
