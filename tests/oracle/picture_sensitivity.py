"""How far the log-probs of a golden move when one rule of the model is broken. A golden that does not move proves nothing."""

import copy
from unittest import mock

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.clip import modeling_clip
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llava_next import modeling_llava_next
from transformers.models.siglip import modeling_siglip

from picture_cases import CASES, IMAGE, is_llava

THRESHOLD = 0.01
# Rules without effect by mathematics, and why: here a move is an error.
WITHOUT_EFFECT = {"tower: no k bias": "it adds the same to all scores of a query, which softmax does not see"}


def zeroed(*parts):
    def change(model):
        for name, parameter in model.named_parameters():
            if all(part in name for part in parts):
                parameter.zero_()
    return change


def ones(*parts):
    def change(model):
        for name, parameter in model.named_parameters():
            if all(part in name for part in parts):
                parameter.fill_(1.0)
    return change


def replaced(path, module):
    def change(model):
        owner, name = path.rsplit(".", 1)
        setattr(model.get_submodule(owner), name, module)
    return change


def settings(root, kind, **values):
    def change(model):
        for module in model.get_submodule(root).modules():
            if isinstance(module, kind):
                for name, value in values.items():
                    setattr(module, name, value(module) if callable(value) else value)
    return change


def activation(owner, name):
    """Another activation in every module below `owner` that has one."""
    def change(model):
        for module in model.get_submodule(owner).modules():
            for attribute in ("activation_fn", "act"):
                if attribute in dict(module.named_children()):
                    setattr(module, attribute, ACT2FN[name])
    return change


def tower_changes(settings_of_tower):
    attention = (modeling_clip.CLIPAttention, modeling_siglip.SiglipAttention)
    act = settings_of_tower["hidden_act"]
    changes = {
        "tower: no positions": zeroed("vision_tower", "position_embedding"),
        "tower: eps 1e-6": settings("model.vision_tower", nn.LayerNorm, eps=1e-6),
        "tower: patch columns ordered y, x, channel": lambda m: m.model.vision_tower.embeddings.patch_embedding.weight.copy_(
            m.model.vision_tower.embeddings.patch_embedding.weight.permute(0, 2, 3, 1).reshape(
                m.model.vision_tower.embeddings.patch_embedding.weight.shape)),
        "tower: rows and columns of a patch swapped": lambda m: m.model.vision_tower.embeddings.patch_embedding.weight.copy_(
            m.model.vision_tower.embeddings.patch_embedding.weight.transpose(2, 3).clone()),
        "tower: scores not scaled": settings("model.vision_tower", attention, scale=1.0),
        "tower: another activation": activation("model.vision_tower", "gelu" if act == "quick_gelu" else "quick_gelu"),
    }
    if settings_of_tower["num_attention_heads"] > 1:
        changes["tower: one head"] = settings(
            "model.vision_tower", attention, head_dim=lambda a: a.embed_dim)
    if act in ("gelu", "gelu_pytorch_tanh"):
        changes["tower: gelu by tanh for erf, or the other way"] = activation("model.vision_tower", "gelu" if act != "gelu" else "gelu_pytorch_tanh")
    for part in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "layer_norm1", "layer_norm2"):
        changes[f"tower: no {part.split('_proj')[0]} bias"] = zeroed("vision_tower.encoder", part, "bias")
    for part in ("layer_norm1", "layer_norm2"):
        changes[f"tower: {part} weight one"] = ones("vision_tower.encoder", part, "weight")
    return changes


def llava_changes(case):
    states = case["config"]["vision_feature_layer"]
    vision, act = case["config"]["vision_config"], case["config"]["projector_hidden_act"]
    changes = tower_changes(vision)
    other = [*reversed(states)] if isinstance(states, list) else states - 1
    changes |= {
        "packing: newline zero": zeroed("image_newline"),
        "tower: other hidden states": lambda m: setattr(m.config, "vision_feature_layer", other),
        "projector: another activation": activation("model.multi_modal_projector",
                                                     "gelu" if act == "quick_gelu" else "quick_gelu"),
    }
    if act != "quick_gelu":
        changes["projector: gelu by tanh for erf, or the other way"] = activation("model.multi_modal_projector",
                                                       "gelu" if act != "gelu" else "gelu_pytorch_tanh")
    if case["config"].get("multimodal_projector_bias", True):
        for part in ("linear_1", "linear_2"):
            changes[f"projector: no {part} bias"] = zeroed(f"multi_modal_projector.{part}.bias")
    if vision["model_type"] == "clip_vision_model":
        changes |= {
            "tower: no class row": zeroed("class_embedding"),
            "tower: no pre_layrnorm": replaced("model.vision_tower.pre_layrnorm", nn.Identity()),
            "tower: the last row dropped for the class row": drop_last_row,
        }
    return changes


def drop_last_row(model):
    model.config.vision_feature_select_strategy = "full"
    projector = model.model.multi_modal_projector
    forward = projector.forward
    projector.forward = lambda rows: forward(rows[:, :-1])


def soft_norm(function):
    def change(model):
        norm = model.model.multi_modal_projector.mm_soft_emb_norm
        norm.forward = lambda x: function(norm, x)
    return change


def gemma_changes(case):
    changes = tower_changes(case["config"]["vision_config"])
    changes |= {
        "tower: no bias of patches": zeroed("patch_embedding.bias"),
        "tower: no post_layernorm": replaced("model.vision_tower.post_layernorm", nn.Identity()),
        "tower: post_layernorm weight one": ones("vision_tower.post_layernorm.weight"),
        "tower: no post_layernorm bias": zeroed("vision_tower.post_layernorm.bias"),
        "pooling: the first patch for the mean": lambda m: setattr(
            m.model.multi_modal_projector, "avg_pool",
            nn.MaxPool2d(1, stride=m.model.multi_modal_projector.kernel_size)),
        "pooling: the largest for the mean": lambda m: setattr(
            m.model.multi_modal_projector, "avg_pool", nn.MaxPool2d(m.model.multi_modal_projector.kernel_size)),
        "soft norm: none": soft_norm(lambda n, x: x),
        "soft norm: weight for 1 + weight": soft_norm(lambda n, x: n._norm(x) * n.weight),
        "soft norm: weight zero": zeroed("mm_soft_emb_norm"),
        "features: scaled as tokens are": lambda m: m.model.multi_modal_projector.mm_input_projection_weight.mul_(
            m.config.text_config.hidden_size ** 0.5),
        "tokens: not scaled": lambda m: m.model.language_model.embed_tokens.embed_scale.fill_(1.0),
    }
    return changes


def first_of_padded(tensor, size):
    """As many rows and columns as unpad_image leaves, from the top left."""
    kept = modeling_llava_next_unpad(tensor, size)
    return tensor[:, :kept.shape[1], :kept.shape[2]]


modeling_llava_next_unpad = modeling_llava_next.unpad_image


def code_changes(case_name):
    """name -> (module, function's name, replacement)."""
    case = CASES[case_name]
    hf = modeling_clip if case["config"]["vision_config"]["model_type"].startswith("clip") else modeling_siglip
    eager = hf.eager_attention_forward

    def causal(module, query, key, value, mask, **kwargs):
        size = query.shape[2]
        return eager(module, query, key, value, torch.full((size, size), -torch.inf).triu(1), **kwargs)

    changes = {"tower: causal attention": (hf, "eager_attention_forward", causal)}
    if is_llava(case_name):
        return changes | {"packing: padding cut at one side": (modeling_llava_next, "unpad_image", first_of_padded)}
    groups = modeling_gemma3.get_block_sequence_ids_for_mask
    return changes | {
        "mask: no image groups": (modeling_gemma3, "get_block_sequence_ids_for_mask",
                                  lambda ids, device=None: torch.full_like(groups(ids, device), -1)),
        "mask: image groups win over the window": (modeling_gemma3, "sliding_window_overlay", group_window),
    }


def group_window(window):
    """A window that an image token does not end: only right for these prompts' own tokens, which the caller sets."""
    ids = group_window.ids

    def inner(batch, head, query, key):
        same = (ids[query] == ids[key]) & (ids[query] >= 0)
        return (key > query - window) | same
    return inner


def input_changes(case_name, prompt):
    changes = {}
    if "pixels" not in prompt:
        return changes
    tiles = prompt["image_shapes"][:, 0].tolist()
    first = torch.split(prompt["pixels"], tiles)
    changes["pictures: tiles in reverse order"] = {
        **prompt, "pixels": torch.cat([torch.cat([t[:1], t[1:].flip(0)]) for t in first])}
    changes["pictures: the whole picture last"] = {**prompt, "pixels": torch.cat([t.roll(-1, 0) for t in first])}
    changes["pictures: black"] = {**prompt, "pixels": torch.zeros_like(prompt["pixels"])}
    return changes


def sensitivity(model, prompts, case_name):
    from picture_goldens import ORACLE
    right = [ORACLE.next_logprobs(model, prompt) for prompt in prompts]
    case = CASES[case_name]

    def move(changed):
        worst = 0.0
        for prompt, reference in zip(prompts, right):
            image = prompt["input_ids"] == IMAGE
            start = image & ~torch.cat([torch.tensor([False]), image[:-1]])
            group_window.ids = torch.where(image, start.cumsum(0) - 1, -1)
            worst = max(worst, (ORACLE.next_logprobs(changed, prompt) - reference).abs().max().item())
        return worst

    moves = {}
    for name, change in (llava_changes(case) if is_llava(case_name) else gemma_changes(case)).items():
        broken = copy.deepcopy(model)
        with torch.no_grad():
            change(broken)
        moves[name] = move(broken)
    for name, (module, function, value) in code_changes(case_name).items():
        with mock.patch.object(module, function, value):
            moves[name] = move(model)
    for prompt, reference in zip(prompts, right):
        for name, changed in input_changes(case_name, prompt).items():
            moved = (ORACLE.next_logprobs(model, changed) - reference).abs().max().item()
            moves[name] = max(moves.get(name, 0.0), moved)
    no_tiles = all(t == 1 for p in prompts if "pixels" in p for t in p["image_shapes"][:, 0])
    for name in ("pictures: tiles in reverse order", "pictures: the whole picture last"):
        if no_tiles:
            moves.pop(name, None)
    family = "llava_next" if is_llava(case_name) else "gemma3"
    without = {name: moves.pop(name) for name in WITHOUT_EFFECT}
    assert max(without.values()) < 2e-5, without
    for name, value in moves.items():
        if value < THRESHOLD:
            print(f"{case_name}: another case must show: {name} ({value:.1e})")
    return {"largest_move_of_a_logprob": {f"{family}: {name}": value for name, value in
                                          sorted(moves.items(), key=lambda item: item[1])},
            "without_effect": {name: WITHOUT_EFFECT[name] for name in without}}
