"""The tiny random LLaVA-NeXT and Gemma-3 models of the goldens: their settings, weights, pictures and prompts."""

import numpy as np
import torch
from transformers import (Gemma3Config, Gemma3ForConditionalGeneration, LlavaNextConfig,
                          LlavaNextForConditionalGeneration)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from oracle_common import random
from qwen_cases import ANSWER, THINK, picture

VOCABULARY, WORDS = 120, 100
IMAGE, START, END, EOS, BOS, PAD = 111, 112, 113, 114, 115, 116
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

CLIP = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-2, "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-2,
          "vision_use_head": False}
MISTRAL = {"model_type": "mistral", "vocab_size": VOCABULARY, "hidden_size": 40, "intermediate_size": 44,
           "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
           "rms_norm_eps": 1e-2, "rope_theta": 5000.0, "sliding_window": None, "max_position_embeddings": 4096,
           "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
GEMMA = {"model_type": "gemma3_text", "vocab_size": VOCABULARY, "hidden_size": 36, "intermediate_size": 40,
         "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
         "rms_norm_eps": 1e-2, "query_pre_attn_scalar": 11, "sliding_window": 6, "max_position_embeddings": 4096,
         "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}

# config: config.json as written by hand, as released checkpoints have it; transformers 5's own spelling is written beside it.
# spelling of the tensors: "hub", "v5" (as transformers 5 saves) or "module" (the names of transformers 5's modules).
# images: per prompt the (height, width) of its pictures.
CASES = {
    "llava_next_mistral_hub": dict(
        spelling="hub", config={
            "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next", "ignore_index": -100,
            "image_token_index": IMAGE, "image_grid_pinpoints": [[18, 36], [36, 18], [36, 36], [54, 18], [18, 54]],
            "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float32",
            "transformers_version": "4.39.0.dev0", "use_image_newline_parameter": True, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default", "vocab_size": VOCABULARY,
            "text_config": MISTRAL | {"sliding_window": 9},
            "vision_config": CLIP | {"hidden_size": 30, "intermediate_size": 34, "num_hidden_layers": 4,
                                     "num_attention_heads": 3, "image_size": 18, "patch_size": 6}},
        images=[[], [(18, 18)], [(7, 61), (90, 31)], [(33, 40), (2, 70), (70, 4)]]),
    "llava_next_llama_layers": dict(
        spelling="module", config={
            "model_type": "llava_next", "image_token_index": IMAGE, "image_grid_pinpoints": [[30, 30], [30, 90], [60, 60]],
            "projector_hidden_act": "quick_gelu", "multimodal_projector_bias": False, "tie_word_embeddings": True,
            "vision_feature_layer": [0, -1, 2], "vision_feature_select_strategy": "default",
            "text_config": {k: v for k, v in MISTRAL.items() if k not in ("sliding_window", "rope_theta")} | {
                "model_type": "llama", "num_key_value_heads": 4, "head_dim": 10, "attention_bias": True,
                "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 800.0}},
            "vision_config": CLIP | {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "hidden_act": "gelu",
                                     "num_attention_heads": 2, "image_size": 30, "patch_size": 7}},
        images=[[(30, 30)], [(25, 80), (80, 25)], [], [(61, 60), (2, 200)]]),
    "llava_next_qwen2_siglip_v5": dict(
        spelling="v5", config={
            "model_type": "llava_next", "image_token_index": IMAGE, "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
            "projector_hidden_act": "gelu_pytorch_tanh", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
            "text_config": {k: v for k, v in MISTRAL.items() if k not in ("sliding_window", "head_dim")} | {
                "model_type": "qwen2", "num_attention_heads": 5, "num_key_value_heads": 1},
            "vision_config": SIGLIP | {"hidden_size": 28, "intermediate_size": 30, "num_hidden_layers": 2,
                                       "num_attention_heads": 2, "image_size": 32, "patch_size": 16}},
        images=[[(50, 20)], [], [(64, 64), (30, 31)]]),
    "gemma3_pool2_hub": dict(
        spelling="hub", config={
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": START,
            "eoi_token_index": END, "image_token_index": IMAGE, "eos_token_id": [EOS, 106], "initializer_range": 0.02,
            "mm_tokens_per_image": 9, "torch_dtype": "float32", "transformers_version": "4.50.0.dev0",
            "text_config": GEMMA | {"sliding_window_pattern": 3, "rope_theta": 1000.0, "rope_local_base_freq": 100.0,
                                    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
            "vision_config": SIGLIP | {"hidden_size": 30, "intermediate_size": 34, "num_hidden_layers": 2,
                                       "num_attention_heads": 5, "image_size": 24, "patch_size": 4}},
        images=[[], [(24, 24)], [(9, 60), (70, 20)], []]),
    "gemma3_head72_crops_v5": dict(
        spelling="v5", pan_and_scan=(6, 3, 1.2), config={
            "model_type": "gemma3", "boi_token_index": START, "eoi_token_index": END, "image_token_index": IMAGE,
            "mm_tokens_per_image": 5, "tie_word_embeddings": False,
            "text_config": GEMMA | {"sliding_window": 15, "num_attention_heads": 4, "num_key_value_heads": 2,
                                    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
            "vision_config": SIGLIP | {"hidden_size": 72, "intermediate_size": 20, "num_hidden_layers": 1,
                                       "num_attention_heads": 1, "image_size": 30, "patch_size": 7,
                                       "vision_use_head": True}},
        images=[[(40, 41)], [(20, 70)], [], [(100, 30), (5, 5)]]),
}


def is_llava(case_name):
    return case_name.startswith("llava_next")


def model_class(case_name):
    return LlavaNextForConditionalGeneration if is_llava(case_name) else Gemma3ForConditionalGeneration


def config_of(case_name):
    settings = CASES[case_name]["config"]
    config = (LlavaNextConfig if is_llava(case_name) else Gemma3Config).from_dict(settings)
    config._attn_implementation = "eager"
    return config


def checkpoint_name(name, spelling):
    """The tensor's name in the file, from the module's name in transformers 5."""
    if spelling == "module":
        return name
    tower = "vision_tower.vision_model." if spelling == "hub" else "vision_tower."
    for old, new in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
                     ("model.vision_tower.", tower), ("model.", "")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(name)


def weight_of(name, shape, case_name):
    """Large enough that no part of the model can be left out unnoticed, small enough that nothing saturates."""
    rng = random("weights", case_name, name)
    gemma_norm = not is_llava(case_name) and ("language_model" in name or "soft_emb" in name) and "norm" in name
    if gemma_norm:
        return 0.3 * rng.standard_normal(shape)
    if name.endswith("bias"):
        return 0.4 * rng.standard_normal(shape)
    if "norm" in name or "layrnorm" in name:
        return 1.0 + 0.3 * rng.standard_normal(shape)
    if "image_newline" in name:
        return 0.9 * rng.standard_normal(shape)
    if "class_embedding" in name or "position_embedding" in name:
        return 0.8 * rng.standard_normal(shape)
    if "embed_tokens" in name or "lm_head" in name:
        return rng.standard_normal(shape) * 2.2 / np.sqrt(shape[-1])
    fan_in = shape[0] if "mm_input_projection" in name else int(np.prod(shape[1:]))
    gain = {"q_proj": 1.5, "k_proj": 1.5, "linear_1": 1.5, "linear_2": 1.3, "mm_input_projection_weight": 1.0}
    chosen = next((gain[part] for part in name.split(".") if part in gain), 1.2)
    return rng.standard_normal(shape) * chosen / np.sqrt(fan_in)


def model_of(case_name):
    model = model_class(case_name)(config_of(case_name)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight_of(name, tuple(parameter.shape), case_name)))
    model.tie_weights()
    return model


def preprocessor(case_name):
    """preprocessor_config.json as released checkpoints of the family have it."""
    case = CASES[case_name]
    side = case["config"]["vision_config"]["image_size"]
    if is_llava(case_name):
        return {"image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor",
                "aspect_ratio_setting": "anyres", "crop_size": {"height": side, "width": side}, "do_center_crop": True,
                "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
                "image_grid_pinpoints": case["config"]["image_grid_pinpoints"], "image_mean": CLIP_MEAN,
                "image_std": CLIP_STD, "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": side}}
    crop, most, ratio = case.get("pan_and_scan", (None, None, None))
    return {"image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor",
            **({"always_pan_and_scan": True} if crop is not None else {}),
            "do_convert_rgb": None, "do_normalize": True, "do_pan_and_scan": crop is not None or None, "do_rescale": True,
            "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_seq_length": soft_tokens(case_name),
            "image_std": [0.5, 0.5, 0.5], "pan_and_scan_max_num_crops": most, "pan_and_scan_min_crop_size": crop,
            "pan_and_scan_min_ratio_to_activate": ratio, "resample": 2, "rescale_factor": 1 / 255,
            "size": {"height": side, "width": side}}


def image_processor(case_name):
    settings = {k: v for k, v in preprocessor(case_name).items() if v is not None and k not in (
        "image_processor_type", "processor_class", "aspect_ratio_setting", "image_seq_length", "always_pan_and_scan")}
    return (LlavaNextImageProcessorPil if is_llava(case_name) else Gemma3ImageProcessorPil)(**settings)


def soft_tokens(case_name):
    config = CASES[case_name]["config"]
    side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
    pool = side // int(config["mm_tokens_per_image"] ** 0.5)
    return (side // pool) ** 2


def patch_rows(pixels, patch):
    """[tiles, 3, H, W] -> [tiles * rows * columns, 3 * patch * patch], columns ordered channel, y, x."""
    tiles, side = pixels.shape[0], pixels.shape[-1] // patch
    cut = pixels[:, :, :side * patch, :side * patch].reshape(tiles, 3, side, patch, side, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(tiles * side * side, 3 * patch * patch).contiguous()


def prompts_of(case_name, model):
    """Per prompt: input_ids [n], segments [n] (0 no loss, 1 think, 2 answer; of the token itself), and its pictures:
    pixels [tiles, 3, H, W], image_sizes, image_shapes [images, 9] as image_shape_t has them."""
    case, processor = CASES[case_name], image_processor(case_name)
    vision = case["config"]["vision_config"]
    side = vision["image_size"] // vision["patch_size"]
    for index, sizes in enumerate(case["images"]):
        rng = random("prompt", case_name, index)

        def text(count):
            return rng.integers(0, WORDS, count).tolist()

        ids, pixels, shapes = [BOS, PAD] + text(2), [], []
        for number, (height, width) in enumerate(sizes):
            made = processor([picture((case_name, index, number), height, width)], return_tensors="pt")
            tiles = made["pixel_values"][0] if is_llava(case_name) else made["pixel_values"]
            pixels.append(tiles)
            if is_llava(case_name):
                features = model.model.get_image_features(tiles, torch.tensor([[height, width]])).pooler_output[0].shape[0]
                best = best_grid(case, height, width)
                # Two pictures of one message may stand side by side.
                ids += (text(2) if number != 1 else []) + [IMAGE] * features
                shapes.append([len(tiles), side, side, *best, height, width, 1, features])
            else:
                soft = soft_tokens(case_name)
                for crop in range(len(tiles)):
                    ids += text(1 + crop % 2) + [START] + [IMAGE] * soft + [END]
                shapes.append([len(tiles), side, side, 0, 0, height, width, len(tiles), soft * len(tiles)])
        ids += text(5 + 2 * index)
        segments = [0] * len(ids)
        # The last prompt of a case has no reasoning: the think term is then left out.
        for label, count in ((THINK, 0 if index == len(case["images"]) - 1 else 9 + index), (ANSWER, 3 + index)):
            ids += text(count)
            segments += [label] * count
        ids.append(EOS)
        segments.append(ANSWER)
        prompt = {"input_ids": torch.tensor(ids), "segments": torch.tensor(segments, dtype=torch.int32)}
        if sizes:
            prompt |= {"pixels": torch.cat(pixels), "image_sizes": torch.tensor(sizes),
                       "image_shapes": torch.tensor(shapes, dtype=torch.int32)}
        yield prompt


def best_grid(case, height, width):
    from transformers.image_processing_utils import select_best_resolution
    side = case["config"]["vision_config"]["image_size"]
    best = select_best_resolution((height, width), case["config"]["image_grid_pinpoints"])
    return best[0] // side, best[1] // side
