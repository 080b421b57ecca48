"""tests/goldens/qwen2_5_vl: tiny random models, and what transformers computes with them on the CPU in float32."""

from oracle_common import GOLDENS, write_json  # first: it sets what torch reads at its start

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from golden_model import Oracle, run, save_tensors, saved_config, write_report
from qwen_cases import CASES, IMAGE, PREPROCESSOR, checkpoint_name, hub_config, model_of, prompts_of
from qwen_sensitivity import sensitivity


def inputs_of(_, prompt):
    """The arguments of a forward pass over one prompt, a batch of one."""
    ids = prompt["input_ids"][None]
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int()}
    if "pixel_values" in prompt:
        inputs |= {"pixel_values": prompt["pixel_values"], "image_grid_thw": prompt["image_grid_thw"]}
    return inputs


ORACLE = Oracle(inputs_of)


def prompt_golden(model, prompt):
    out = dict(prompt)
    position_ids, delta = None, None
    if "pixel_values" in prompt:
        position_ids, delta = model.model.get_rope_index(
            prompt["input_ids"][None], mm_token_type_ids=inputs_of(model, prompt)["mm_token_type_ids"],
            image_grid_thw=prompt["image_grid_thw"])
        with torch.no_grad():
            vision = model.model.visual(prompt["pixel_values"], grid_thw=prompt["image_grid_thw"])
        out["image_features"] = vision.pooler_output
    else:
        position_ids = torch.arange(len(prompt["input_ids"])).expand(3, 1, -1)
        delta = torch.zeros(1, 1, dtype=torch.int64)
    out["position_ids"], out["rope_delta"] = position_ids[:, 0].contiguous(), delta.reshape(1)
    with torch.no_grad():
        hidden = model.model(**inputs_of(model, prompt), use_cache=False).last_hidden_state[0]
    out["last_hidden"] = hidden
    out["logprobs"] = ORACLE.next_logprobs(model, prompt)
    return out | {key: value for key, value in ORACLE.greedy(model, prompt).items() if key != "greedy_gaps"}


def write_case(case_name):
    folder, case = GOLDENS / "qwen2_5_vl" / case_name, CASES[case_name]
    folder.mkdir(parents=True, exist_ok=True)
    model, prompts, spelling = model_of(case_name), list(prompts_of(case_name)), case["spelling"]
    golden = ORACLE.loss_goldens(model, prompts, lambda name: checkpoint_name(name, spelling))
    for index, prompt in enumerate(prompts):
        golden |= {f"prompt{index}.{key}": value for key, value in prompt_golden(model, prompt).items()}
    save_tensors(golden, folder / "golden.safetensors")
    weights = {checkpoint_name(name, spelling): p.detach().clone() for name, p in model.named_parameters()}
    save_tensors(weights, folder / "model.safetensors", format="pt")
    write_json(folder / "config.json", hub_config(case) if spelling == "hub" else saved_config(model), 2)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR, 2)
    ORACLE.read_back(Qwen2_5_VLForConditionalGeneration, folder, model, prompts)
    write_report(folder / "sensitivity.json", ("torch", "transformers", "numpy", "pillow"),
                 {**ORACLE.statistics(model, prompts), **sensitivity(model, prompts, case_name)})


def main():
    run(write_case, CASES, "qwen2_5_vl")


if __name__ == "__main__":
    main()
