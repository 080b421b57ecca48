"""How far the log-probs of a golden move when one rule of the model is broken. A golden that does not move proves nothing."""

import contextlib
import copy
from unittest import mock

import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as hf

from qwen_cases import IMAGE

THRESHOLD = 0.01
# Rules that goldens of this size cannot show, and why.
EXEMPT = {
    "vision: rms eps 1e-5 for 1e-6": "activations have a mean square near one; the case with faint patches shows it",
    "vision: merger gelu by tanh for erf": "the two curves differ by 5e-4 at most; a tolerance of 1e-4 still sees the move",
}


def logprobs(model, prompt, position_ids=None):
    ids = prompt["input_ids"][None]
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int()}
    if "pixel_values" in prompt:
        inputs |= {"pixel_values": prompt["pixel_values"], "image_grid_thw": prompt["image_grid_thw"]}
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0]
    return torch.log_softmax(logits[:-1], -1).gather(1, prompt["input_ids"][1:, None])[:, 0]


def positions(model, prompt):
    if "pixel_values" not in prompt:
        return torch.arange(len(prompt["input_ids"])).expand(3, 1, -1).clone()
    ids = prompt["input_ids"][None]
    return model.model.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int(),
                                      image_grid_thw=prompt["image_grid_thw"])[0].clone()


def without(part, rows=None):
    """Breaks every tensor whose name ends in `part`: zeroed (biases), only `rows` of thirds where given."""
    def change(model):
        for name, parameter in model.named_parameters():
            if part in name:
                third = parameter.shape[0] // 3
                view = parameter if rows is None else parameter[rows * third:(rows + 1) * third]
                view.zero_()
    return change


def ones(part):
    def change(model):
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.fill_(1.0)
    return change


def setting(path, value):
    """Sets an attribute on every module that has it under the dotted path's owner."""
    owner, attribute = path.rsplit(".", 1)

    def change(model):
        target = model.get_submodule(owner) if owner else model
        setattr(target, attribute, value(target) if callable(value) else value)
    return change


def theta(factor):
    def change(model):
        rotary = model.model.language_model.rotary_emb
        dim = rotary.inv_freq.shape[0]
        base = rotary.config.rope_parameters["rope_theta"] * factor
        rotary.inv_freq.copy_(1.0 / base ** (torch.arange(0, dim).float() / dim))
    return change


def eps(kind, value):
    def change(model):
        root = model.model.visual if kind == "vision" else model.model.language_model
        for module in root.modules():
            if isinstance(module, hf.Qwen2_5_VLRMSNorm):
                module.variance_epsilon = value
    return change


def wrong_groups(model):
    """Query head h reads key head h mod kv_heads, not h // group."""
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        heads, kv, size = attention.num_heads, attention.num_key_value_heads, attention.head_dim
        order = torch.arange(heads).reshape(kv, heads // kv).T.reshape(-1).argsort()
        rows = (order[:, None] * size + torch.arange(size)).reshape(-1)
        attention.q_proj.weight.copy_(attention.q_proj.weight[rows])
        attention.q_proj.bias.copy_(attention.q_proj.bias[rows])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows])


def paired_rotation(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def model_changes(case):
    changes = {
        "vision: full attention in every block": setting("model.visual.fullatt_block_indexes", lambda v: range(len(v.blocks))),
        "vision: windows in every block": setting("model.visual.fullatt_block_indexes", []),
        "vision: window twice as large": setting("model.visual.window_size", lambda v: v.window_size * 2),
        "vision: rotary inverse frequencies zero": lambda m: m.model.visual.rotary_pos_emb.inv_freq.zero_(),
        "vision: rms eps 1e-5 for 1e-6": eps("vision", 1e-5),
        "vision: merger gelu by tanh for erf": lambda m: setattr(m.model.visual.merger.mlp, "1", torch.nn.GELU("tanh")),
        "vision: no q bias": without("attn.qkv.bias", 0),
        "vision: no k bias": without("attn.qkv.bias", 1),
        "vision: no v bias": without("attn.qkv.bias", 2),
        "vision: second frame ignored": lambda m: m.model.visual.patch_embed.proj.weight[:, :, 1].zero_(),
        "vision: frames swapped with channels": lambda m: m.model.visual.patch_embed.proj.weight.copy_(
            m.model.visual.patch_embed.proj.weight.transpose(1, 2).reshape(m.model.visual.patch_embed.proj.weight.shape)),
        "text: rope theta x 4": theta(4),
        "text: rms eps 1e-6": eps("text", 1e-6),
        "text: no q bias": without("q_proj.bias"),
        "text: no k bias": without("k_proj.bias"),
        "text: no v bias": without("v_proj.bias"),
        "text: m-rope sections rotated": setting(
            "model.language_model.rotary_emb.mrope_section", case["sections"][1:] + case["sections"][:1]),
    }
    for part in ("attn.proj.bias", "mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias", "merger.mlp.0.bias",
                 "merger.mlp.2.bias"):
        changes[f"vision: no {part}"] = without(part)
    for part in ("norm1", "norm2", "ln_q"):
        changes[f"vision: {part} weight one"] = ones(part)
    for part in ("input_layernorm", "post_attention_layernorm", "language_model.norm"):
        changes[f"text: {part} weight one"] = ones(part)
    if case["heads"] != case["kv_heads"] and case["kv_heads"] > 1:
        changes["text: key heads dealt out in turn"] = wrong_groups
    return changes


@contextlib.contextmanager
def replaced(name, value):
    with mock.patch.object(hf, name, value):
        yield


def order_changes():
    """Changes of the code rather than of the weights: name -> (function's name in the module, replacement)."""
    window_index, position_ids = hf.get_vision_window_index, hf.get_vision_position_ids

    def no_reorder(grid, **kwargs):
        index, lengths = window_index(grid, **kwargs)
        return torch.arange(len(index)), lengths

    def swapped(grid, *args, **kwargs):
        ids = position_ids(grid, *args, **kwargs)
        return ids.flip(-1) if ids.shape[-1] == 2 else ids.flip(0)

    def row_major(grid, *args, **kwargs):
        ids = [torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).reshape(-1, 2)
               for _, h, w in grid.tolist()]
        ids = torch.cat(ids)
        like = position_ids(grid, *args, **kwargs)
        return ids if like.shape[-1] == 2 else ids.T

    return {
        "vision: windows cut without reordering": ("get_vision_window_index", no_reorder),
        "vision: rows and columns swapped in rope": ("get_vision_position_ids", swapped),
        "vision: rope positions in row-major order": ("get_vision_position_ids", row_major),
        "both: rope turns neighbouring pairs, not halves": ("rotate_half", paired_rotation),
    }


def merger_not_restored(model):
    visual = model.model.visual
    forward = visual.forward

    def changed(pixels, grid_thw, **kwargs):
        out = forward(pixels, grid_thw, **kwargs)
        index, _ = hf.get_vision_window_index(grid_thw, spatial_merge_size=2, window_size=visual.window_size, patch_size=14)
        out.pooler_output = out.pooler_output[index]
        return out
    visual.forward = changed


def input_changes(model, prompt):
    """name -> (prompt, position ids) with one rule of the inputs broken."""
    right = positions(model, prompt)
    length = right.shape[-1]
    changes = {}
    for axis, name in enumerate(("time", "row", "column")):
        broken = right.clone()
        broken[axis] = torch.arange(length)
        changes[f"positions: {name} axis is the token's index"] = (prompt, broken)
    after = (prompt["input_ids"] == IMAGE).nonzero()
    if len(after):
        last = int(after[-1]) + 1
        broken = right.clone()
        broken[:, :, last:] = torch.arange(last, length)
        changes["positions: text after an image goes on at its index"] = (prompt, broken)
        swapped = right[[0, 2, 1]].clone()
        changes["positions: rows and columns swapped"] = (prompt, swapped)
        rows = prompt["pixel_values"].clone()
        changes["images: second row of each 2x2 block swapped"] = (
            {**prompt, "pixel_values": rows.reshape(-1, 4, 1176)[:, [0, 2, 1, 3]].reshape(-1, 1176)}, right)
    return changes


def sensitivity(model, prompts, case_name):
    from qwen_cases import CASES
    right = [logprobs(model, prompt) for prompt in prompts]

    def move(changed, pairs=None):
        return max((logprobs(changed, p, ids) - r).abs().max().item()
                   for (p, ids), r in zip(pairs or [(p, None) for p in prompts], right))

    moves = {}
    for name, change in model_changes(CASES[case_name]).items():
        broken = copy.deepcopy(model)
        with torch.no_grad():
            change(broken)
        moves[name] = move(broken)
    broken = copy.deepcopy(model)
    merger_not_restored(broken)
    moves["vision: merger rows left in window order"] = move(broken)
    for name, (function, value) in order_changes().items():
        with replaced(function, value):
            moves[name] = move(model)
    for prompt, reference in zip(prompts, right):
        for name, (changed, ids) in input_changes(model, prompt).items():
            moved = (logprobs(model, changed, ids) - reference).abs().max().item()
            moves[name] = max(moves.get(name, 0.0), moved)
    weak = {name: value for name, value in moves.items() if value < THRESHOLD}
    unexplained = [name for name in weak if name not in EXEMPT]
    if unexplained:
        raise SystemExit(f"{case_name}: too weak a golden: { {name: weak[name] for name in unexplained} }")
    return {"largest_move_of_a_logprob": dict(sorted(moves.items(), key=lambda item: item[1])),
            "below_the_threshold": {name: EXEMPT[name] for name in weak}}
