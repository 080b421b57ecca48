"""tests/goldens/families, those without pictures: tiny random llama, mistral, qwen2 and gemma3_text models, and what transformers
computes with them on the CPU in float32."""

from oracle_common import GOLDENS, write_json  # first: it sets what torch reads at its start

import torch
from transformers import AutoModelForCausalLM

from golden_model import Oracle, run, save_tensors, saved_config, write_report
from text_cases import CASES, hub_config, model_of, prompts_of


def write_case(case_name):
    folder, case, oracle = GOLDENS / "families" / case_name, CASES[case_name], Oracle()
    folder.mkdir(parents=True, exist_ok=True)
    model, prompts = model_of(case_name), list(prompts_of(case_name))
    golden = oracle.loss_goldens(model, prompts)
    for index, prompt in enumerate(prompts):
        values = {**prompt, "logprobs": oracle.next_logprobs(model, prompt), **oracle.greedy(model, prompt)}
        golden |= {f"prompt{index}.{key}": value for key, value in values.items() if key != "greedy_gaps"}
    save_tensors(golden, folder / "golden.safetensors")
    stored = getattr(torch, case["stored"])
    save_tensors({name: p.detach().to(stored).clone() for name, p in model.named_parameters()}, folder / "model.safetensors", format="pt")
    saved = saved_config(model)
    configs = {"config.json": saved} | ({"config.hub.json": hub_config(case, saved)} if "hub" in case else {})
    for config in configs.values():
        write_json(folder / "config.json", config, 2)
        oracle.read_back(AutoModelForCausalLM, folder, model, prompts)
    for name, config in configs.items():
        write_json(folder / name, config, 2)
    write_report(folder / "report.json", ("torch", "transformers", "numpy"), oracle.statistics(model, prompts))


def main():
    run(write_case, CASES, "families")


if __name__ == "__main__":
    main()
