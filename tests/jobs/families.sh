#!/usr/bin/env bash
# SFT and GRPO with pictures on tiny LLaVA-NeXT and Gemma-3 folders: the same weights for different layouts, recorded log-probs that are the
# learner's to the bit, adapters over tower and decoder, and parts that stay as they were when they are frozen.
. "$(dirname "$0")/../lib/jobs.sh"
quickstart=$model
base=$work
trap 'work=$base; clean_up' EXIT

# folder NAME: the quickstart's tokenizer and chat template with another family's config.json and image processor.
folder() {
    work=$base/$1
    model=$work/model
    mkdir -p "$work"
    cp -r "$quickstart" "$model"
    rm "$model/note.txt"
    case $1 in
    llava_next)
        cat >"$model/config.json" <<'JSON'
{"model_type": "llava_next", "image_token_index": 1286, "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
 "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu", "tie_word_embeddings": false,
 "text_config": {"model_type": "mistral", "vocab_size": 1288, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "rope_theta": 10000.0, "sliding_window": null, "bos_token_id": 1280,
  "eos_token_id": 1282, "pad_token_id": 1280},
 "vision_config": {"model_type": "clip_vision_model", "hidden_size": 30, "intermediate_size": 64, "num_hidden_layers": 3,
  "num_attention_heads": 3, "image_size": 28, "patch_size": 7}}
JSON
        cat >"$model/preprocessor_config.json" <<'JSON'
{"image_processor_type": "LlavaNextImageProcessor", "crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28},
 "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]], "resample": 3}
JSON
        ;;
    gemma3)
        cat >"$model/config.json" <<'JSON'
{"model_type": "gemma3", "boi_token_index": 1283, "eoi_token_index": 1284, "image_token_index": 1286, "mm_tokens_per_image": 4,
 "text_config": {"model_type": "gemma3_text", "vocab_size": 1288, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 40,
  "sliding_window_pattern": 2, "bos_token_id": 1280, "eos_token_id": 1282, "pad_token_id": 1280},
 "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 30, "intermediate_size": 64, "num_hidden_layers": 2,
  "num_attention_heads": 3, "image_size": 28, "patch_size": 7, "vision_use_head": false}}
JSON
        cat >"$model/preprocessor_config.json" <<'JSON'
{"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}, "resample": 2, "image_mean": [0.5, 0.5, 0.5],
 "image_std": [0.5, 0.5, 0.5]}
JSON
        # Its template writes the token that begins a picture; the rest is put there with the picture's tokens.
        sed -i 's/<|vision_start|><|image_pad|><|vision_end|>/<|vision_start|>/g' "$model/tokenizer_config.json"
        ;;
    esac
}

for family in llava_next gemma3; do
    echo "== $family"
    folder "$family"
    make_data
    grep -h "images" "$work/data.log" | head -n 3
    make_start 150

    sft_settings
    must_job alone 1 sft
    must_job shared 2 sft sft.launch_leaves=3 recompute=block
    has_hash alone
    same "weights of SFT by 1 and 2 learners" "$(hash_of alone)" "$(hash_of shared)"

    must_job frozen 1 sft train.vision=false train.projector=false
    has_hash frozen
    [ "$(hash_of frozen)" != "$(hash_of alone)" ] || fail "a frozen tower ends in the weights of a trained one"

    grpo_settings
    must_job rl 3 grpo roles.learners=1 roles.rollouts=1
    must_job rl-wide 5 grpo roles.learners=2 roles.rollouts=2
    has_hash rl
    same "weights of GRPO by 3 and 5 ranks" "$(hash_of rl)" "$(hash_of rl-wide)"
    some rl gradient_norm 'x > 0'
    all rl logprob_max_abs_diff 'x == 0'
    all rl-wide logprob_max_abs_diff 'x == 0'

    settings+=(--set lora.rank=4 --set "lora.targets=[q_proj, v_proj, fc1, o_proj]")
    must_job adapters 3 grpo roles.learners=1 roles.rollouts=1
    must_job adapters-colocated 2 grpo roles.colocated=true roles.learners=1
    has_hash adapters
    same "adapters of GRPO, apart and colocated" "$(hash_of adapters)" "$(hash_of adapters-colocated)"
    some adapters gradient_norm 'x > 0'
    all adapters logprob_max_abs_diff 'x == 0'
done
