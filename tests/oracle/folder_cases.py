"""Complete random model folders of every family for compare_folders.py, as released checkpoints have them (4.x: flat keys, old names,
preprocessor_config.json) and as save_pretrained of transformers 5 writes them."""

import json
import os
import pathlib
import shutil

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

import folder_tokenizers
from chat_goldens import BY_HAND, SHIPPED
from compare_families import chance, draw_config, fill, pick
from picture_cases import CLIP, CLIP_MEAN, CLIP_STD, SIGLIP
from picture_cases import checkpoint_name as picture_name
from qwen_cases import checkpoint_name as qwen_name

FAMILIES = ["qwen2_5_vl", "llava_next", "gemma3", "llama", "mistral", "qwen2", "gemma3_text"]
PICTURES = FAMILIES[:3]
REAL = {"qwen2_5_vl": "qwen2", "qwen2": "qwen2", "mistral": "mistral", "llama": "smollm2", "gemma3_text": "gemma-3"}
VOCABULARIES = pathlib.Path(os.environ.get("POISE_VOCABULARIES", "/nonexistent"))
GEMMA_IDS = {"image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"}


def template_of(rng, kind):
    if kind == "qwen":
        return pick(rng, *((SHIPPED / f"{name}.jinja").read_text() for name in ("qwen2_5", "qwen2_5_vl")), BY_HAND["chatml"])
    if kind == "mistral":
        return pick(rng, BY_HAND["mistral"], BY_HAND["llama2"], BY_HAND["zephyr"])
    if kind == "gemma":
        return (SHIPPED / f"{pick(rng, 'gemma3', 'gemma')}.jinja").read_text()
    if kind == "llama3":
        return (SHIPPED / f"{pick(rng, 'llama3', 'llama3_1')}.jinja").read_text()
    return BY_HAND["smollm2"]


class Folder:
    """Draws one folder; `path` is then complete."""

    def __init__(self, rng, family, path, real=False):
        self.rng, self.family, self.path = rng, family, path
        self.form = pick(rng, "hub", "hub", "v5")
        self.stored = pick(rng, torch.float32, torch.bfloat16, torch.float16)
        path.mkdir()
        self.tokenizer, self.named, self.kind = self.draw_tokenizer(real)
        self.template = (SHIPPED / f"{family}.jinja").read_text() if family in PICTURES else template_of(rng, self.kind)
        if family == "llava_next" and chance(rng, 0.5):
            self.template = self.template.replace("{{ bos_token }}", "")  # the released one is without
        self.config = {"qwen2_5_vl": self.qwen_vl, "llava_next": self.llava, "gemma3": self.gemma}.get(family, self.text)()
        self.write()

    def draw_tokenizer(self, real):
        if not real:
            return folder_tokenizers.make(self.rng, self.family)
        source = VOCABULARIES / REAL[self.family]
        kind = {"qwen2": "qwen", "gemma-3": "gemma", "smollm2": "smollm"}.get(source.name, source.name)
        loaded = folder_tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
        if self.family == "qwen2_5_vl":
            loaded.add_special_tokens([folder_tokenizers.AddedToken(t, normalized=False, special=True) for t in folder_tokenizers.QWEN_SPECIAL])
        return loaded, json.loads((source / "tokenizer_config.json").read_text()), kind

    def id(self, token):
        return self.tokenizer.token_to_id(token) if token else None

    def text_config(self, family):
        """A decoder of compare_families.py, with the tokenizer's vocabulary and ids."""
        rng = self.rng
        config = draw_config(rng, family)
        size = self.tokenizer.get_vocab_size()
        big = size > 20000
        config["vocab_size"] = size + int(pick(rng, 0, 0, 1, 7, 64))
        config |= {"bos_token_id": self.id(self.named.get("bos_token")), "eos_token_id": self.id(self.named["eos_token"]),
                   "pad_token_id": pick(rng, None, self.id(self.named.get("pad_token")))}
        config["max_position_embeddings"] = 8192
        if big:
            config["hidden_size"] = 24 if family not in ("llama", "gemma3_text") else config["num_attention_heads"] * 4
            config["head_dim"] = 8
        return config

    def text(self):
        return self.text_config(self.family)

    def qwen_vl(self):
        rng = self.rng
        heads = int(pick(rng, 2, 3, 4, 6))
        kv = int(pick(rng, *[k for k in range(1, heads + 1) if heads % k == 0]))
        head, layers = int(pick(rng, 12, 16, 24)), int(pick(rng, 1, 2, 3))
        first, second = int(rng.integers(1, head // 6 + 1)), int(rng.integers(1, head // 6 + 2))
        vision_heads = int(pick(rng, 1, 2, 3))
        depth = int(pick(rng, 1, 2, 3))
        self.window = int(pick(rng, 56, 112, 112))
        config = {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "attention_dropout": 0.0,
            "bos_token_id": self.id("<|endoftext|>"), "eos_token_id": self.id("<|im_end|>"), "vision_start_token_id": self.id("<|vision_start|>"),
            "vision_end_token_id": self.id("<|vision_end|>"), "vision_token_id": self.id("<|vision_pad|>"), "image_token_id": self.id("<|image_pad|>"),
            "video_token_id": self.id("<|video_pad|>"), "hidden_act": "silu", "hidden_size": heads * head, "initializer_range": 0.02,
            "intermediate_size": int(pick(rng, 40, 72, 101)), "max_position_embeddings": 32768, "max_window_layers": layers,
            "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv, "rms_norm_eps": float(pick(rng, 1e-6, 1e-3)),
            "rope_theta": float(pick(rng, 100.0, 10000.0, 1e6)), "sliding_window": 32768, "tie_word_embeddings": bool(chance(rng, 0.5)),
            "rope_scaling": {"type": "mrope", "mrope_section": [first, second, head // 2 - first - second]},
            "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
            "vocab_size": self.tokenizer.get_vocab_size() + int(pick(rng, 0, 3, 50)),
            "vision_config": {"depth": depth, "hidden_act": "silu", "hidden_size": vision_heads * int(pick(rng, 8, 16, 20)),
                              "intermediate_size": int(pick(rng, 24, 51)), "num_heads": vision_heads, "in_chans": 3, "out_hidden_size": heads * head,
                              "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": self.window,
                              "fullatt_block_indexes": sorted({int(rng.integers(0, depth))}), "tokens_per_second": int(pick(rng, 2, 4)),
                              "temporal_patch_size": 2}}
        low, high = int(pick(rng, 784, 3136, 4 * 784)), int(pick(rng, 20, 40, 70)) * 784
        self.processor = {"image_processor_type": pick(rng, "Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"), "processor_class": "Qwen2_5_VLProcessor",
                          "min_pixels": low, "max_pixels": high, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
                          "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
        return config

    def vision(self, base, patch, grid):
        rng = self.rng
        heads = int(pick(rng, 1, 2, 3))
        return base | {"hidden_size": heads * int(pick(rng, 8, 10, 24)), "intermediate_size": int(pick(rng, 20, 37)), "num_attention_heads": heads,
                       "num_hidden_layers": int(pick(rng, 1, 2, 3)), "image_size": patch * grid + int(pick(rng, 0, 0, patch // 3)), "patch_size": patch,
                       "layer_norm_eps": float(pick(rng, 1e-6, 1e-5, 1e-3))}

    def llava(self):
        rng = self.rng
        vision = self.vision(CLIP if chance(rng, 0.75) else SIGLIP, int(pick(rng, 4, 6, 14)), int(pick(rng, 2, 3, 4)))
        clip, side = vision["model_type"] == "clip_vision_model", vision["image_size"]
        vision["num_hidden_layers"] = int(pick(rng, 2, 3, 4))
        strategy = "default" if clip else "full"
        pinpoints = [[side * int(rng.integers(1, 5)), side * int(rng.integers(1, 5))] for _ in range(int(rng.integers(1, 7)))]
        config = {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next", "ignore_index": -100,
                  "image_token_index": self.id("<image>"), "image_grid_pinpoints": pinpoints, "projector_hidden_act": "gelu",
                  "text_config": self.text_config(pick(rng, "mistral", "mistral", "llama")), "torch_dtype": "float16",
                  "transformers_version": "4.39.0.dev0", "use_image_newline_parameter": True, "vision_config": vision,
                  "vision_feature_layer": -int(pick(rng, 1, 2, 2)), "vision_feature_select_strategy": strategy,
                  "tie_word_embeddings": False}
        config["vocab_size"] = config["text_config"]["vocab_size"]
        config["text_config"].pop("tie_word_embeddings", None)
        self.processor = {"image_processor_type": pick(rng, "LlavaNextImageProcessor", "LlavaNextImageProcessorFast"), "processor_class": "LlavaNextProcessor",
                          "aspect_ratio_setting": "anyres", "crop_size": {"height": side, "width": side}, "do_center_crop": True,
                          "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
                          "image_grid_pinpoints": pinpoints, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": int(pick(rng, 2, 3, 3)),
                          "rescale_factor": 1 / 255, "size": {"shortest_edge": side}}
        self.outer = {"processor_class": "LlavaNextProcessor", "patch_size": vision["patch_size"], "image_token": "<image>",
                      "num_additional_image_tokens": int(clip), "vision_feature_select_strategy": strategy}
        return config

    def gemma(self):
        rng = self.rng
        grid = int(pick(rng, 2, 3, 4, 6))
        pool = int(pick(rng, *[p for p in range(1, grid + 1) if grid % p == 0]))
        vision = self.vision(SIGLIP, int(pick(rng, 4, 7, 14)), grid)
        tokens = (grid // pool) ** 2
        config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [self.id("<eos>"), self.id("<end_of_turn>")],
                  **{key: self.id(token) for key, token in GEMMA_IDS.items()}, "initializer_range": 0.02, "mm_tokens_per_image": tokens,
                  "text_config": self.text_config("gemma3_text"), "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
                  "vision_config": vision}
        config["text_config"].pop("tie_word_embeddings", None)
        side = vision["image_size"]
        self.processor = {"image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "do_convert_rgb": None,
                          "do_normalize": True, "do_pan_and_scan": pick(rng, None, None, False, True), "do_rescale": True, "do_resize": True,
                          "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": tokens, "pan_and_scan_max_num_crops": pick(rng, None, 3),
                          "pan_and_scan_min_crop_size": pick(rng, None, 8), "pan_and_scan_min_ratio_to_activate": pick(rng, None, 1.2),
                          "resample": int(pick(rng, 2, 2, 3)), "rescale_factor": 1 / 255, "size": {"height": side, "width": side}}
        self.outer = {"processor_class": "Gemma3Processor", "image_seq_length": tokens}
        return config

    # ---- files ----

    def write(self):
        rng, path = self.rng, self.path
        folder_tokenizers.write(rng, path, self.tokenizer, self.named)
        (path / "config.json").write_text(json.dumps(self.config, indent=1))
        self.write_template()
        if self.family in PICTURES:
            (path / "preprocessor_config.json").write_text(json.dumps(self.processor, indent=1))
            if self.family != "qwen2_5_vl":
                (path / "processor_config.json").write_text(json.dumps(self.outer, indent=1))
        made = transformers.AutoConfig.from_pretrained(path)
        maker = transformers.AutoModelForImageTextToText if self.family in PICTURES else transformers.AutoModelForCausalLM
        model = maker.from_config(made).float()
        self.fill(model)
        model.to(self.stored)
        if self.form == "v5":
            self.write_new(model)
        else:
            self.write_old(model)
        if chance(rng, 0.5):
            ends = self.config.get("eos_token_id")
            (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "do_sample": True, "top_p": 0.8}))

    def fill(self, model):
        if self.family not in PICTURES:
            return fill(model, self.rng, self.family == "gemma3_text", self.stored)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                shape = tuple(parameter.shape)
                values = self.rng.standard_normal(shape)
                if name.endswith("bias"):
                    values *= 0.4
                elif "norm" in name or "ln_q" in name or "layrnorm" in name:
                    gemma = self.family == "gemma3" and ("language_model" in name or "soft_emb" in name)
                    values = (0.0 if gemma else 1.0) + 0.3 * values
                elif "newline" in name or "class_embedding" in name or "position_embedding" in name:
                    values *= 0.8
                else:
                    fan = shape[0] if "mm_input_projection" in name else int(np.prod(shape[1:]))
                    values *= (2.2 if "embed_tokens" in name or "lm_head" in name else 1.3) / np.sqrt(fan)
                parameter.copy_(torch.from_numpy(values).to(self.stored))
        model.tie_weights()

    def write_template(self):
        """Where the chat template stands."""
        rng, path = self.rng, self.path
        place = pick(rng, "tokenizer", "jinja", "json" if self.family in PICTURES else "tokenizer")
        self.place = place
        if place == "json":
            (path / "chat_template.json").write_text(json.dumps({"chat_template": self.template}))
        elif place == "jinja":
            (path / "chat_template.jinja").write_text(self.template)
        else:
            config = json.loads((path / "tokenizer_config.json").read_text()) | {"chat_template": self.template}
            (path / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False))

    def write_new(self, model):
        again = self.path.parent / "again"
        model.save_pretrained(again, max_shard_size=pick(self.rng, "5GB", "60KB"))
        if self.family in PICTURES:
            transformers.AutoProcessor.from_pretrained(self.path).save_pretrained(again)
        else:
            transformers.AutoTokenizer.from_pretrained(self.path).save_pretrained(again)
        shutil.rmtree(self.path)
        again.rename(self.path)

    def write_old(self, model):
        rng = self.rng
        name_of = {"qwen2_5_vl": lambda name: qwen_name(name, "hub"), "llava_next": lambda name: picture_name(name, "hub"),
                   "gemma3": lambda name: picture_name(name, "hub")}.get(self.family, lambda name: name)
        tensors = {name_of(name): p.detach().clone().contiguous() for name, p in model.named_parameters()}
        if chance(rng, 0.5):
            save_file(tensors, self.path / "model.safetensors", metadata={"format": "pt"})
            return
        names, parts = list(tensors), int(rng.integers(2, 4))
        where = {name: f"model-{int(rng.integers(1, parts + 1)):05d}-of-{parts:05d}.safetensors" for name in names}
        for file in set(where.values()):
            save_file({name: tensors[name] for name in names if where[name] == file}, self.path / file, metadata={"format": "pt"})
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
