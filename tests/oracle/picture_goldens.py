"""tests/goldens/families, those with pictures: tiny random LLaVA-NeXT and Gemma-3 models, and what transformers computes with them on the CPU in
float32."""

from oracle_common import GOLDENS, write_json  # first: it sets what torch reads at its start

import torch

from golden_model import Oracle, run, save_tensors, saved_config, write_report
from picture_cases import CASES, IMAGE, checkpoint_name, model_class, model_of, patch_rows, preprocessor, prompts_of
from picture_sensitivity import sensitivity


def inputs_of(model, prompt):
    """The arguments of a forward pass over one prompt, a batch of one."""
    ids = prompt["input_ids"][None]
    llava = model.config.model_type == "llava_next"
    inputs = {"input_ids": ids} | ({} if llava else {"token_type_ids": (ids == IMAGE).int()})
    if "pixels" in prompt:
        inputs |= {"pixel_values": prompt["pixels"]} | ({"image_sizes": prompt["image_sizes"]} if llava else {})
    return inputs


ORACLE = Oracle(inputs_of)


def features_of(model, prompt):
    inputs = inputs_of(model, prompt)
    with torch.no_grad():
        if model.config.model_type == "llava_next":
            return torch.cat(model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output)
        return model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)


def prompt_golden(model, prompt, patch):
    out = {key: prompt[key] for key in ("input_ids", "segments")}
    if "pixels" in prompt:
        out |= {"pixel_values": patch_rows(prompt["pixels"], patch), "image_shapes": prompt["image_shapes"],
                "image_features": features_of(model, prompt)}
    return out | {"logprobs": ORACLE.next_logprobs(model, prompt)} | ORACLE.greedy(model, prompt)


def write_case(case_name):
    folder, case = GOLDENS / "families" / case_name, CASES[case_name]
    folder.mkdir(parents=True, exist_ok=True)
    model = model_of(case_name)
    with torch.no_grad():
        prompts = list(prompts_of(case_name, model))
    golden = ORACLE.loss_goldens(model, prompts)
    for index, prompt in enumerate(prompts):
        patch = case["config"]["vision_config"]["patch_size"]
        golden |= {f"prompt{index}.{key}": value for key, value in prompt_golden(model, prompt, patch).items()}
    save_tensors(golden, folder / "golden.safetensors")
    weights = {checkpoint_name(name, case["spelling"]): p.detach().clone() for name, p in model.named_parameters()}
    save_tensors(weights, folder / "model.safetensors", format="pt")
    write_folder(folder, case_name, case, model, prompts)
    write_report(folder / "sensitivity.json", ("torch", "transformers", "numpy", "pillow"),
                 {**ORACLE.statistics(model, prompts), **sensitivity(model, prompts, case_name)})


def write_folder(folder, case_name, case, model, prompts):
    if case["spelling"] == "v5":
        processor = {"image_processor": preprocessor(case_name), "processor_class": preprocessor(case_name)["processor_class"]}
        write_json(folder / "processor_config.json", processor, 2)
    else:
        write_json(folder / "preprocessor_config.json", preprocessor(case_name), 2)
    for config in (case["config"], saved_config(model)):
        write_json(folder / "config.json", config, 2)
        ORACLE.read_back(model_class(case_name), folder, model, prompts)
    write_json(folder / "config.hub.json", case["config"], 2)


def main():
    run(write_case, CASES, "families")


if __name__ == "__main__":
    main()
