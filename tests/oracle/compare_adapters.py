#!/usr/bin/env python3
"""Adapters against PEFT on small random models: compare_adapters.py POISE [SEED]. Adapters made by PEFT score equal here; merged
here they are PEFT's merge_and_unload; adapters written here load in PEFT with equal log-probs."""

import copy
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from oracle_common import ROOT, random  # first: it sets what torch reads at its start

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

SIZES = dict(vocab_size=1288, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             bos_token_id=1280, eos_token_id=1282, pad_token_id=1280)
BASES = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=False),
    "mistral": MistralConfig(**SIZES, head_dim=12, sliding_window=None, tie_word_embeddings=False),
    "gemma3_text": Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=8),
}
ADAPTERS = {
    "list": dict(r=4, lora_alpha=10, target_modules=["q_proj", "v_proj"]),
    "regex": dict(r=3, lora_alpha=2, target_modules=r".*layers\.[02]\.(self_attn\.[qk]_proj|mlp\.(up|down)_proj)"),
    "all_linear_rslora": dict(r=8, lora_alpha=6, use_rslora=True, target_modules="all-linear", exclude_modules=["k_proj", "down_proj"]),
    "layers": dict(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], layers_to_transform=[1, 2], layers_pattern="layers"),
    "one_layer": dict(r=5, lora_alpha=4, target_modules=["o_proj"], layers_to_transform=0),
    "patterns": dict(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "o_proj", "gate_proj"],
                     exclude_modules=r".*layers\.1\..*", rank_pattern={"layers.0.self_attn.q_proj": 7, "gate_proj": 2},
                     alpha_pattern={r"layers\.2\..*": 3}),
}


def fill(model, *key):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.from_numpy(random(*key, name).standard_normal(tuple(parameter.shape))).float()
            if "lora_" in name:
                parameter.copy_(values * 0.7 / parameter.shape[1] ** 0.5)
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * values if "norm" in name and "Gemma" not in type(model).__name__ else 0.2 * values)
            else:
                parameter.copy_(values * 2 / parameter.shape[1] ** 0.5)
    return model.eval()


def score(poise, folder, prompts, work, *options):
    lines = [{"id": i, "prompt_ids": ids[:2], "completion_ids": ids[2:]} for i, ids in enumerate(prompts)]
    (work / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    subprocess.run([poise, "score", "--model", str(folder), *options, "--input", str(work / "in.jsonl"), "--output", str(work / "out.jsonl")],
                   check=True)
    return [json.loads(line)["logprobs"] for line in (work / "out.jsonl").read_text().splitlines()]


def wanted(model, prompts):
    rows = []
    for ids in prompts:
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0].double(), -1)
        rows.append([logp[at, ids[at + 1]].item() for at in range(1, len(ids) - 1)])
    return rows


def largest(left, right):
    return max(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def write_base(name, seed, folder):
    model = fill(AutoModelForCausalLM.from_config(BASES[name], attn_implementation="eager"), seed, name)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "configs/quickstart" / file, folder / file)
    return model


def compare(poise, name, adapter, seed, work):
    base, folder = work / "base", work / "adapter"
    model = write_base(name, seed, base)
    rng = random(seed, name, adapter)
    prompts = [rng.integers(0, 1280, int(rng.integers(3, 40))).tolist() for _ in range(4)]
    plain = wanted(model, prompts)
    adapted = fill(get_peft_model(copy.deepcopy(model), LoraConfig(**ADAPTERS[adapter])), seed, adapter)
    # fill() touched the base weights, too: take them from the plain model again.
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if "lora_" not in key:
                value.copy_(model.get_parameter(key.removeprefix("base_model.model.").replace(".base_layer", "")))
    adapted.save_pretrained(folder)
    theirs = wanted(adapted, prompts)
    moved = largest(plain, theirs)
    assert moved > 0.1, moved
    ours = largest(theirs, score(poise, base, prompts, work, "--adapter", str(folder)))
    subprocess.run([poise, "merge", "--model", str(base), "--adapter", str(folder), "--output", str(work / "merged")], check=True)
    theirs_merged = adapted.merge_and_unload().state_dict()
    ours_merged = AutoModelForCausalLM.from_pretrained(work / "merged", attn_implementation="eager")
    merged = max((value - ours_merged.state_dict()[key]).abs().max().item() for key, value in theirs_merged.items())
    logits = largest(theirs, wanted(ours_merged.eval(), prompts))
    print(f"{name} {adapter}: moved {moved:.2f}, adapter {ours:.1e}, merged weights {merged:.1e}, logits of the merged {logits:.1e}", flush=True)
    assert ours <= 1e-4 and merged <= 1e-6 and logits <= 1e-4


def compare_trained(poise, name, seed, work):
    """A few steps of `poise sft`; what it writes loads in PEFT."""
    base = work / "base"
    model = write_base(name, seed, base)
    lines = [{"id": i, "messages": [{"role": "user", "content": f"{i} + {i}?"}, {"role": "assistant", "content": f"<think>{i}</think><answer>{2 * i}</answer>"}]}
             for i in range(8)]
    (work / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    subprocess.run([poise, "pack", "--model", str(base), "--input", str(work / "data.jsonl"), "--output", str(work / "data.h5")], check=True, stdout=subprocess.DEVNULL)
    settings = [f"model={base}", f"data.train={work}/data.h5", f"output={work}/run", "lora.rank=4", "lora.alpha=6", "lora.rslora=true", "lora.targets=[all-linear]",
                "lora.exclude=[k_proj]", "optimizer.steps=6", "optimizer.learning_rate=0.02", "sft.batch=4", "metrics.tensorboard=false"]
    subprocess.run([poise, "sft"] + [part for setting in settings for part in ("--set", setting)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    prompts = [random(seed, name, i).integers(0, 1280, 30).tolist() for i in range(3)]
    ours = score(poise, base, prompts, work, "--adapter", str(work / "run/adapter"))
    plain = wanted(model, prompts)
    adapted = PeftModel.from_pretrained(model, work / "run/adapter").eval()
    layers = sum("lora_A" in key for key, _ in adapted.named_parameters())
    moved, different = largest(plain, ours), largest(ours, wanted(adapted, prompts))
    print(f"{name} trained here: {layers} layers, moved {moved:.2f}, in PEFT {different:.1e}", flush=True)
    assert moved > 0.1 and different <= 1e-4 and layers == 6 * 3


def main():
    poise, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    torch.set_num_threads(1)
    for name in BASES:
        for adapter in ADAPTERS:
            with tempfile.TemporaryDirectory() as work:
                compare(poise, name, adapter, seed, pathlib.Path(work))
        with tempfile.TemporaryDirectory() as work:
            compare_trained(poise, name, seed, pathlib.Path(work))


if __name__ == "__main__":
    main()
