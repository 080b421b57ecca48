"""tests/goldens/families/configs.json: config.json of the text families, with keys left out and in both spellings, and what the
pinned transformers makes of them: sizes, windows, rope frequencies, scales, ids, and how many parameters there are."""

import copy
import json

from oracle_common import GOLDENS, random, versions  # first: it sets what torch reads at its start

import torch
import transformers

from compare_families import FAMILIES, draw_config
from text_cases import CLASSES

CASES = 70
# config.json of released checkpoints, but for keys that no model reads.
RELEASED = [
    {"model_type": "llama", "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
     "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9,
     "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
     "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152},
    {"model_type": "llama", "attention_bias": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
     "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
     "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
     "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                      "rope_type": "llama3"}, "tie_word_embeddings": True, "vocab_size": 128256},
    {"model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
     "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
     "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
     "vocab_size": 32000},
    {"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 2},
    {"model_type": "qwen2", "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
     "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "num_attention_heads": 14,
     "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
     "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936},
    {"model_type": "qwen2", "num_hidden_layers": 30, "use_sliding_window": True},
    {"model_type": "gemma3_text", "_sliding_window_pattern": 6, "attention_bias": False, "attn_logit_softcapping": None,
     "bos_token_id": 2, "eos_token_id": 1, "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
     "hidden_size": 640, "intermediate_size": 2048, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
     "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
     "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": None,
     "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": False, "vocab_size": 262144},
    {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
     "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "type": "linear"}},
    {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}, "rope_theta": 77.0},
    {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 9.0},
     "num_key_value_heads": None, "head_dim": None},
    {"model_type": "llama", "rope_scaling": {}, "rope_parameters": {"rope_theta": 9.0}, "rope_theta": 11.0, "pad_token_id": -1},
    {"model_type": "llama", "max_position_embeddings": 100, "original_max_position_embeddings": 50,
     "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 20}},
    {"model_type": "llama"}, {"model_type": "mistral"}, {"model_type": "qwen2"}, {"model_type": "gemma3_text"},
    {"model_type": "mistral", "sliding_window": None, "layer_types": ["full_attention"] * 32},
    {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": None, "num_hidden_layers": 3, "max_window_layers": 1},
    {"model_type": "qwen2", "head_dim": 40, "attention_bias": False, "mlp_bias": True, "num_key_value_heads": None},
    {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
]


def rotary_frequencies(config):
    """The inverse frequencies that full layers use, and those that sliding layers use."""
    family = CLASSES[config.model_type]
    module = __import__(f"transformers.models.{family.lower()}.modeling_{family.lower()}", fromlist=["x"])
    rotary = getattr(module, f"{family}RotaryEmbedding")(config)
    if config.model_type != "gemma3_text":
        return [rotary.inv_freq] * 2
    return [getattr(rotary, f"{kind}_inv_freq", None) for kind in ("full_attention", "sliding_attention")]


def resolved(raw):
    config = transformers.AutoConfig.for_model(**copy.deepcopy(raw))
    config.validate_rope()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    layers = model.model.layers
    windows = [0] * len(layers)
    for i, layer in enumerate(layers):
        if config.model_type == "mistral":
            windows[i] = config.sliding_window or 0
        elif config.model_type != "llama":
            windows[i] = layer.self_attn.sliding_window or 0
    frequencies = rotary_frequencies(config)
    samples = []
    for window in (0, 1):
        # None: no layer of this type, so nothing reads the rope that would be its.
        values = frequencies[window]
        points = [] if values is None else sorted({0, 1 % len(values), len(values) // 3, len(values) // 2, len(values) - 1})
        samples.append([[i, values[i].item()] for i in points])
    eos = config.eos_token_id
    parameters = list(model.parameters())
    return {"vocabulary": config.vocab_size, "hidden": config.hidden_size, "intermediate": config.intermediate_size,
            "layers": config.num_hidden_layers, "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads,
            "head_dim": layers[0].self_attn.head_dim, "eps": config.rms_norm_eps, "tied": bool(config.tie_word_embeddings),
            "padding": -1 if model.model.embed_tokens.padding_idx is None else model.model.embed_tokens.padding_idx,
            "bos": -1 if config.bos_token_id is None else config.bos_token_id,
            "eos": eos if isinstance(eos, list) else [] if eos is None else [eos],
            "scale": layers[0].self_attn.scaling, "windows": windows, "frequencies": samples,
            "embedding_scale": getattr(model.model.embed_tokens, "scalar_embed_scale", 1.0),
            "activation": type(layers[0].mlp.act_fn).__name__,
            "parameters": len(parameters), "elements": sum(p.numel() for p in parameters)}


def main():
    transformers.logging.set_verbosity_error()
    cases = [{"config": raw, "resolved": resolved(raw)} for raw in RELEASED]
    for family in FAMILIES:
        rng = random("configs", family)
        for _ in range(CASES):
            raw = draw_config(rng, family)
            if rng.random() < 0.4:
                for key in ("num_hidden_layers", "intermediate_size", "vocab_size"):
                    if rng.random() < 0.4 and not (key == "num_hidden_layers" and "layer_types" in raw):
                        del raw[key]
            cases.append({"config": raw, "resolved": resolved(raw)})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    path = GOLDENS / "families/configs.json"
    text = f'{{"versions": {json.dumps(versions("torch", "transformers"))},\n"cases": [\n{lines}\n]}}\n'
    path.write_text(text)
    print(f"families/configs.json: {len(cases)} configurations, {len(text)} bytes")


if __name__ == "__main__":
    main()
