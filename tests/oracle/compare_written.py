#!/usr/bin/env python3
"""Folders written by Poise in transformers: compare_written.py POISE FOLDER... For each golden model, an adapter of zeros is merged
(which changes nothing), and transformers must find every tensor of the written folder under its name, with the same bits."""

import json
import pathlib
import subprocess
import sys
import tempfile

import oracle_common  # noqa: F401  first: it sets what torch reads at its start

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText


def load(folder):
    kind = AutoModelForImageTextToText if hasattr(AutoConfig.from_pretrained(folder), "vision_config") else AutoModelForCausalLM
    model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    return model


def compare(poise, folder, work):
    model = load(folder)
    name, weight = next((key, value) for key, value in model.named_parameters() if key.endswith("q_proj.weight") and "vision" not in key)
    module = name.removesuffix(".weight")
    adapter = work / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [module]}))
    save_file({f"base_model.model.{module}.lora_A.weight": torch.zeros(1, weight.shape[1]),
               f"base_model.model.{module}.lora_B.weight": torch.zeros(weight.shape[0], 1)}, adapter / "adapter_model.safetensors")
    subprocess.run([poise, "merge", "--model", str(folder), "--adapter", str(adapter), "--output", str(work / "written")], check=True)
    written = load(work / "written").state_dict()
    different = [key for key, value in model.state_dict().items() if not torch.equal(value, written[key])]
    assert not different, different
    print(f"{folder.parent.name}/{folder.name}: {len(written)} tensors equal", flush=True)


def main():
    torch.set_num_threads(1)
    for folder in sys.argv[2:]:
        with tempfile.TemporaryDirectory() as work:
            compare(sys.argv[1], pathlib.Path(folder).resolve(), pathlib.Path(work))


if __name__ == "__main__":
    main()
