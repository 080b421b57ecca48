"""The tiny random text decoders of the goldens: llama, mistral, qwen2, gemma3_text; their settings, weights and prompts."""

import numpy as np
import torch
import transformers

from oracle_common import random

VOCABULARY = 89
THINK, ANSWER = 1, 2
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "gemma3_text": "Gemma3"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}

# Every folder's config.json is one of the two spellings and config.other.json (where given) the other one, for the same model.
# `settings` is what transformers 5 takes; `hub` are keys as released checkpoints of version 4 spell them.
# lengths: tokens of each prompt; stored: the dtype of model.safetensors.
CASES = {
    "llama_gqa3_llama3": dict(
        family="llama", lengths=[7, 39, 1 + 22], stored="float32",
        settings=dict(hidden_size=48, intermediate_size=37, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
                      head_dim=10, rms_norm_eps=1e-2, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                      pad_token_id=5, max_position_embeddings=64, rope_parameters={**LLAMA3, "rope_theta": 500.0}),
        hub=dict(rope_theta=500.0, rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 16})),
    "llama_mha_linear_tied": dict(
        family="llama", lengths=[11, 33, 2], stored="bfloat16",
        settings=dict(hidden_size=40, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, head_dim=10,
                      rms_norm_eps=1e-5, tie_word_embeddings=True, hidden_act="gelu",
                      rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}),
        hub=dict(num_key_value_heads=None, head_dim=None, rope_scaling={"type": "linear", "factor": 2.5})),
    "llama_mqa_default": dict(
        family="llama", lengths=[5, 27], stored="float16",
        settings=dict(hidden_size=36, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
                      head_dim=20, rms_norm_eps=1e-6, tie_word_embeddings=True, pad_token_id=0,
                      rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
        hub=dict(rope_theta=100.0)),
    "mistral_gqa4_window7": dict(
        family="mistral", lengths=[6, 37, 19], stored="float32",
        settings=dict(hidden_size=44, intermediate_size=52, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
                      head_dim=8, rms_norm_eps=1e-2, sliding_window=7, tie_word_embeddings=False,
                      rope_parameters={"rope_type": "default", "rope_theta": 700.0}),
        hub=dict(rope_theta=700.0)),
    "mistral_mha_nowindow": dict(
        family="mistral", lengths=[9, 31], stored="bfloat16",
        settings=dict(hidden_size=42, intermediate_size=30, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=5,
                      head_dim=16, sliding_window=None, tie_word_embeddings=True, pad_token_id=3, hidden_act="gelu_pytorch_tanh",
                      rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}),
        hub=dict(rope_theta=1000.0, rope_scaling={"type": "linear", "factor": 4.0})),
    "qwen2_gqa3_window5": dict(
        family="qwen2", lengths=[8, 35, 13], stored="float32",
        settings=dict(hidden_size=48, intermediate_size=44, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                      rms_norm_eps=1e-2, use_sliding_window=True, sliding_window=5, max_window_layers=2, tie_word_embeddings=False,
                      rope_parameters={"rope_type": "default", "rope_theta": 300.0}),
        hub=dict(rope_theta=300.0, layer_types=None)),
    "qwen2_mqa_llama3_tied": dict(
        family="qwen2", lengths=[3, 41], stored="bfloat16",
        settings=dict(hidden_size=40, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
                      head_dim=14, rms_norm_eps=1e-3, tie_word_embeddings=True, max_position_embeddings=16, pad_token_id=7,
                      rope_parameters={**LLAMA3, "factor": 5.0, "rope_theta": 800.0}),
        hub=dict(rope_theta=800.0, layer_types=None,
                 rope_scaling={"rope_type": "llama3", "factor": 5.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})),
    "gemma3_text_gqa2_pattern3": dict(
        family="gemma3_text", lengths=[7, 43, 17], stored="float32",
        settings=dict(hidden_size=40, intermediate_size=44, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                      head_dim=16, rms_norm_eps=1e-2, query_pre_attn_scalar=5, sliding_window=6, pad_token_id=0,
                      layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
                      rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2000.0},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 60.0}}),
        hub=dict(layer_types=None, sliding_window_pattern=3, rope_theta=2000.0, rope_local_base_freq=60.0,
                 rope_scaling={"rope_type": "linear", "factor": 4.0})),
    "gemma3_text_mqa_untied": dict(
        family="gemma3_text", lengths=[29, 4], stored="bfloat16",
        settings=dict(hidden_size=36, intermediate_size=50, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
                      head_dim=20, query_pre_attn_scalar=168, sliding_window=9, tie_word_embeddings=False, attention_bias=True,
                      layer_types=["full_attention", "sliding_attention", "full_attention"],
                      rope_parameters={"full_attention": {**LLAMA3, "rope_theta": 900.0},
                                       "sliding_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 20.0}})),
    "gemma3_text_mha_defaults": dict(
        family="gemma3_text", lengths=[15, 25], stored="float16",
        settings=dict(hidden_size=24, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=2,
                      head_dim=12, sliding_window=4),
        hub=dict(layer_types=None)),
}


def config_class(family):
    return getattr(transformers, f"{CLASSES[family]}{'Text' if family == 'gemma3_text' else ''}Config")


def model_class(family):
    return getattr(transformers, f"{CLASSES[family]}ForCausalLM")


def config_of(case):
    given = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2)
    config = config_class(case["family"])(**given, **copied(case["settings"]))
    config._attn_implementation = "eager"
    return config


def copied(value):
    """Configurations change the dictionaries they are given."""
    return {k: copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def hub_config(case, saved):
    """config.json in the spelling of version 4: the saved one without what only version 5 writes, and `hub` instead."""
    hub = {k: v for k, v in saved.items() if k not in ("rope_parameters", "dtype", "layer_types")}
    hub |= {"torch_dtype": case["stored"], "transformers_version": "4.41.2", **case["hub"]}
    return {k: v for k, v in hub.items() if v is not None or k in saved}


def weight_of(name, shape, case_name, gemma):
    """Large enough that no part of the model can be left out unnoticed, small enough that nothing saturates."""
    rng = random("weights", case_name, name)
    if name.endswith("bias"):
        return 0.5 * rng.standard_normal(shape)
    if "norm" in name:
        return (0.0 if gemma else 1.0) + 0.4 * rng.standard_normal(shape)
    if "embed_tokens" in name or "lm_head" in name:
        return rng.standard_normal(shape) * (2.0 if gemma and "embed" in name else 2.4) / np.sqrt(shape[-1])
    gain = {"q_proj": 1.6, "k_proj": 1.6, "o_proj": 1.4, "down_proj": 1.4}
    chosen = next((gain[part] for part in name.split(".") if part in gain), 1.3)
    return rng.standard_normal(shape) * chosen / np.sqrt(shape[-1])


def model_of(case_name):
    case = CASES[case_name]
    model = model_class(case["family"])(config_of(case)).float().eval()
    stored = getattr(torch, case["stored"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = weight_of(name, tuple(parameter.shape), case_name, case["family"] == "gemma3_text")
            parameter.copy_(torch.from_numpy(values).to(stored))
    model.tie_weights()
    return model


def prompts_of(case_name):
    """Per prompt: input_ids [n], segments [n] (0 no loss, 1 think, 2 answer; of the token itself). The padding id occurs, too."""
    case = CASES[case_name]
    pad = config_of(case).pad_token_id
    for index, length in enumerate(case["lengths"]):
        rng = random("prompt", case_name, index)
        ids = rng.integers(0, VOCABULARY, length)
        if pad is not None and length > 4:
            ids[[1, length - 2]] = pad
        answer = max(1, length // 4)
        # The last prompt of a case has no reasoning: the think term is then left out.
        think = 0 if index == len(case["lengths"]) - 1 else length // 3
        segments = [0] * (length - think - answer) + [THINK] * think + [ANSWER] * answer
        yield {"input_ids": torch.tensor(ids), "segments": torch.tensor(segments, dtype=torch.int32)}
