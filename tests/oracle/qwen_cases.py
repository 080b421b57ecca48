"""The tiny random Qwen2.5-VL models of the goldens: their settings, weights, images and prompts."""

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from oracle_common import random

VOCABULARY = 160
VISION_START, VISION_END, IMAGE, VIDEO, EOS, BOS = 151, 152, 153, 154, 155, 156
IDS = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "vision_start_token_id": VISION_START,
       "vision_end_token_id": VISION_END, "image_token_id": IMAGE, "video_token_id": VIDEO}
THINK, ANSWER = 1, 2

# spelling: how config.json and the tensors are named ("hub": as released checkpoints, "v5": as transformers 5 saves).
CASES = {
    "gqa4_window56_hub": dict(
        spelling="hub", hidden=64, mlp=80, layers=2, heads=4, kv_heads=2, theta=1e6, eps=1e-2, sections=[1, 2, 5], tied=False,
        tokens_per_second=2, vision=dict(depth=3, hidden=32, mlp=40, heads=2, window=56, full=[2]),
        images=[[], [(84, 56)], [(140, 112), (28, 196)], []]),
    "gqa6_window112_v5": dict(
        spelling="v5", hidden=96, mlp=72, layers=2, heads=6, kv_heads=2, theta=500.0, eps=1e-3, sections=[2, 3, 3], tied=True,
        tokens_per_second=4, vision=dict(depth=4, hidden=32, mlp=36, heads=4, window=112, full=[1, 3]),
        images=[[], [(140, 168)], [(56, 84), (196, 28)]]),
    "mqa4_head32_hub": dict(
        spelling="hub", hidden=128, mlp=56, layers=2, heads=4, kv_heads=1, theta=1e4, eps=1e-2, sections=[4, 6, 6], tied=True,
        # Faint patches: the first norm of the vision tower then shows its eps.
        patch_gain=1.5e-3, tokens_per_second=2, vision=dict(depth=3, hidden=24, mlp=32, heads=2, window=56, full=[0]),
        images=[[], [(112, 84)], [(56, 140), (84, 28)], [(28, 28)]]),
}


def hub_config(case):
    """config.json as released checkpoints have it: text settings flat, rope_theta and rope_scaling."""
    vision = case["vision"]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        **case.get("ids", IDS),
        "hidden_act": "silu",
        "hidden_size": case["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": case["mlp"],
        "max_position_embeddings": 512,
        "max_window_layers": case["layers"],
        "model_type": "qwen2_5_vl",
        "num_attention_heads": case["heads"],
        "num_hidden_layers": case["layers"],
        "num_key_value_heads": case["kv_heads"],
        "rms_norm_eps": case["eps"],
        "rope_theta": case["theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": case["sections"]},
        "sliding_window": 32768,
        "tie_word_embeddings": case["tied"],
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": vision["depth"],
            "hidden_act": "silu",
            "hidden_size": vision["hidden"],
            "intermediate_size": vision["mlp"],
            "num_heads": vision["heads"],
            "in_chans": 3,
            "out_hidden_size": case["hidden"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": vision["window"],
            "fullatt_block_indexes": vision["full"],
            "tokens_per_second": case["tokens_per_second"],
            "temporal_patch_size": 2,
        },
    }


def config_of(case):
    config = Qwen2_5_VLConfig.from_dict(hub_config(case))
    config._attn_implementation = "eager"
    return config


def checkpoint_name(name, spelling):
    """The tensor's name in the file, from the module's name in transformers 5."""
    if spelling == "v5":
        return name
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def weight_of(name, shape, case_name, patch_gain):
    """Large enough that no part of the model can be left out unnoticed, small enough that nothing saturates."""
    rng = random("weights", case_name, name)
    if name.endswith("bias"):
        return 0.4 * rng.standard_normal(shape)
    if "norm" in name or "ln_q" in name:
        return 1.0 + 0.3 * rng.standard_normal(shape)
    if "embed_tokens" in name or "lm_head" in name:
        return rng.standard_normal(shape) * 2.2 / np.sqrt(shape[-1])
    fan_in = int(np.prod(shape[1:]))
    gain = {"q_proj": 1.3, "k_proj": 1.3, "qkv": 1.4, "o_proj": 1.2, "proj": 1.2, "down_proj": 1.2}
    if "patch_embed" in name:
        return rng.standard_normal(shape) * patch_gain / np.sqrt(fan_in)
    chosen = next((gain[part] for part in name.split(".") if part in gain), 1.2)
    return rng.standard_normal(shape) * chosen / np.sqrt(fan_in)


def model_of(case_name, case=None):
    case = case or CASES[case_name]
    model = Qwen2_5_VLForConditionalGeneration(config_of(case)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = weight_of(name, tuple(parameter.shape), case_name, case.get("patch_gain", 1.2))
            parameter.copy_(torch.from_numpy(values))
    model.tie_weights()
    return model


def picture(key, height, width):
    """An RGB picture with broad shapes and fine noise, as uint8 [height, width, 3]."""
    rng = random("picture", key, height, width)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for _ in range(3):
        a, b, c = rng.uniform(0.02, 0.25, 3)
        wave = np.sin(a * y + 3 * rng.random()) + np.cos(b * x + 3 * rng.random()) + np.sin(c * (x + y))
        planes.append(127 + 50 * wave + rng.normal(0, 25, (height, width)))
    return np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)


PREPROCESSOR = {"min_pixels": 784, "max_pixels": 28 * 28 * 64, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}


def image_processor():
    return Qwen2VLImageProcessorPil(min_pixels=PREPROCESSOR["min_pixels"], max_pixels=PREPROCESSOR["max_pixels"])


def prompts_of(case_name):
    """Per prompt: input_ids [n], segments [n] (0 no loss, 1 think, 2 answer; of the token itself), images."""
    case = CASES[case_name]
    processor = image_processor()
    for index, sizes in enumerate(case["images"]):
        rng = random("prompt", case_name, index)

        def text(count):
            return rng.integers(0, 140, count).tolist()

        ids, pictures = text(4), [picture((case_name, index, i), *size) for i, size in enumerate(sizes)]
        for height, width in sizes:
            ids += text(3) + [VISION_START] + [IMAGE] * (height // 28 * (width // 28)) + [VISION_END]
        ids += text(5 + 2 * index)
        segments = [0] * len(ids)
        # The last prompt of a case has no reasoning: the think term is then left out.
        for label, count in ((THINK, 0 if index == len(case["images"]) - 1 else 9 + index), (ANSWER, 3 + index)):
            ids += text(count)
            segments += [label] * count
        ids.append(EOS)
        segments.append(ANSWER)
        prompt = {"input_ids": torch.tensor(ids), "segments": torch.tensor(segments, dtype=torch.int32)}
        if pictures:
            made = processor(pictures, return_tensors="pt")
            prompt["pixel_values"], prompt["image_grid_thw"] = made["pixel_values"], made["image_grid_thw"]
        yield prompt
