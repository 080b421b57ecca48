"""bf16.safetensors beside every family golden: what transformers computes with the same folder and prompts in bfloat16.

The measure of our own bfloat16 is its distance from transformers in float32, which must not exceed twice transformers'
own (tests/parity/bf16.c). A family joins by its folders under tests/goldens: config.json, weights, and a
golden.safetensors with promptN.input_ids, promptN.logprobs and whatever else its model's forward takes.
"""

from oracle_common import GOLDENS  # first: it sets what torch reads at its start

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

def case_folders():
    found = sorted(path.parent for path in GOLDENS.glob("*/*/golden.safetensors") if (path.parent / "config.json").exists())
    return [folder for folder in found if "prompt0.logprobs" in load_file(folder / "golden.safetensors")]


def model_of(folder, dtype):
    config = json.loads((folder / "config.json").read_text())
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval(), config


def tiles_of(rows, shapes, vision):
    """Pictures again from patch rows [tiles * side * side, 3 * patch * patch]: [tiles, 3, size, size]. What the patches
    left out at the right and below is not read by the model; it is 0 here."""
    patch, size, side = vision["patch_size"], vision["image_size"], int(shapes[0, 1])
    tiles = int(shapes[:, 0].sum())
    cut = rows.reshape(tiles, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    pixels = torch.zeros(tiles, 3, size, size)
    pixels[:, :, :side * patch, :side * patch] = cut.reshape(tiles, 3, side * patch, side * patch)
    return pixels


def inputs_of(golden, number, config):
    """The arguments of a forward pass over one prompt, a batch of one."""
    ids = golden[f"prompt{number}.input_ids"].reshape(1, -1).long()
    inputs, kind = {"input_ids": ids}, config["model_type"]
    image = config.get("image_token_id", config.get("image_token_index"))
    if kind == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = (ids == image).int()
    if kind == "gemma3":
        inputs["token_type_ids"] = (ids == image).int()
    pixels = golden.get(f"prompt{number}.pixel_values")
    if pixels is None:
        return inputs
    if kind == "qwen2_5_vl":
        return inputs | {"pixel_values": pixels, "image_grid_thw": golden[f"prompt{number}.image_grid_thw"]}
    shapes = golden[f"prompt{number}.image_shapes"]
    inputs["pixel_values"] = tiles_of(pixels, shapes, config["vision_config"])
    return inputs | ({"image_sizes": shapes[:, 5:7].long()} if kind == "llava_next" else {})


def logprobs(model, inputs):
    """log p(token t+1 | tokens to t), [n - 1], from the logits as the model gives them."""
    if "pixel_values" in inputs:
        inputs = inputs | {"pixel_values": inputs["pixel_values"].to(model.dtype)}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0].float()
    return torch.log_softmax(logits[:-1], -1).gather(1, inputs["input_ids"][0, 1:, None])[:, 0]


def write_case(folder):
    golden = load_file(folder / "golden.safetensors")
    whole, config = model_of(folder, torch.float32)
    half, _ = model_of(folder, torch.bfloat16)
    out, worst, number = {}, 0.0, 0
    while f"prompt{number}.input_ids" in golden:
        inputs = inputs_of(golden, number, config)
        right = golden[f"prompt{number}.logprobs"]
        check = (logprobs(whole, inputs) - right).abs().max().item()
        assert check < 1e-4, (folder, number, check)  # the prompts were understood
        out[f"prompt{number}.logprobs"] = logprobs(half, inputs)
        worst = max(worst, (out[f"prompt{number}.logprobs"] - right).abs().max().item())
        number += 1
    save_file(out, folder / "bf16.safetensors")
    print(f"{folder.relative_to(GOLDENS)}: bfloat16 deviates by at most {worst:.3f}")


def main():
    torch.set_num_threads(1)
    for folder in case_folders():
        write_case(folder)


if __name__ == "__main__":
    main()
