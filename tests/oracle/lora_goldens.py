"""tests/goldens/lora: adapters in PEFT's layout over a golden model, log-probs and gradients through PEFT."""

import json

from oracle_common import GOLDENS, random, versions, write_json  # first: it sets what torch reads at its start

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import picture_cases
import picture_goldens
import qwen_cases
import qwen_goldens

BASE = "qwen2_5_vl/gqa4_window56_hub"
ADAPTERS = {
    # What recipes train most often: the language model's attention, named by a list.
    "attention": dict(r=4, lora_alpha=10, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    # By a pattern: vision, merger and every MLP too, scaled by alpha / sqrt(r); some layers have another rank.
    "all_rslora": dict(r=8, lora_alpha=6, use_rslora=True,
                       target_modules=r".*(q_proj|v_proj|attn\.qkv|attn\.proj|(gate|up|down)_proj|merger\.mlp\.[02])",
                       rank_pattern={"merger.mlp.0": 3}, alpha_pattern={"merger.mlp.0": 12}),
    # Towers, projector and decoder of the other families. The tower's last layer makes no features: no gradient.
    "llava_next": dict(base="families/llava_next_mistral_hub", r=3, lora_alpha=5,
                       target_modules=r".*(q_proj|v_proj|out_proj|fc[12]|linear_[12]|down_proj)"),
    "gemma3": dict(base="families/gemma3_pool2_hub", r=2, lora_alpha=3,
                   target_modules=["k_proj", "q_proj", "out_proj", "o_proj", "fc1", "fc2", "gate_proj"]),
}


def base_of(name):
    return ADAPTERS[name].get("base", BASE)


def model_of(name):
    group, case = base_of(name).split("/")
    return (qwen_cases if group == "qwen2_5_vl" else picture_cases).model_of(case)


def prompts_of(name, model):
    group, case = base_of(name).split("/")
    with torch.no_grad():
        return list(qwen_cases.prompts_of(case) if group == "qwen2_5_vl" else picture_cases.prompts_of(case, model))


def write_adapter(name):
    folder = GOLDENS / "lora" / name
    oracle = (qwen_goldens if base_of(name).startswith("qwen2_5_vl") else picture_goldens).ORACLE
    prompts = prompts_of(name, model_of(name))
    settings = {key: value for key, value in ADAPTERS[name].items() if key != "base"}
    model = get_peft_model(model_of(name), LoraConfig(bias="none", lora_dropout=0.0, **settings)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                fan_in = parameter.shape[1]
                values = random("lora", name, key).standard_normal(tuple(parameter.shape)) * 0.7 / fan_in**0.5
                parameter.copy_(torch.from_numpy(values))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT writes a model card
    settings = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()  # PEFT keeps a set, whose order changes from run to run
    write_json(folder / "adapter_config.json", settings, 2)
    golden, moved = {}, 0.0
    for index, prompt in enumerate(prompts):
        golden[f"prompt{index}.logprobs"] = oracle.next_logprobs(model, prompt)
        with model.disable_adapter():
            moved = max(moved, (oracle.next_logprobs(model, prompt) - golden[f"prompt{index}.logprobs"]).abs().max().item())
    scale, _ = oracle.losses(model, prompts)
    golden["loss.scale"] = scale.detach()[None]
    scale.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            golden["grad.scale." + key.replace(".default.", ".")] = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    saved = load_file(folder / "adapter_model.safetensors")
    assert {"grad.scale." + key for key in saved} == {key for key in golden if key.startswith("grad.")}
    assert moved > 0.5, moved
    # Written again without PEFT's metadata, whose order changes from run to run.
    save_file(saved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")
    again = PeftModel.from_pretrained(model_of(name), folder).eval()
    difference = max((oracle.next_logprobs(again, p) - golden[f"prompt{i}.logprobs"]).abs().max().item() for i, p in enumerate(prompts))
    assert difference < 2e-5, difference
    return {"adapter": name, "base": base_of(name), "largest_move_of_a_logprob": moved}


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    made = [write_adapter(name) for name in ADAPTERS]
    write_json(GOLDENS / "lora/adapters.json", {"versions": versions("torch", "transformers", "peft"), "adapters": made})
    print("lora")


if __name__ == "__main__":
    main()
