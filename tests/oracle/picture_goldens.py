"""tests/goldens/families, those with pictures: tiny random LLaVA-NeXT and Gemma-3 models, and what transformers computes with them on the CPU in
float32."""

import json

from oracle_common import GOLDENS, versions, write_json  # first: it sets what torch reads at its start

import torch
from safetensors.torch import save_file

from picture_cases import (ANSWER, CASES, IMAGE, THINK, checkpoint_name, model_class, model_of, patch_rows,
                           preprocessor, prompts_of)

W_THINK, W_ANSWER = 0.7, 1.1
NEW_TOKENS = 6


def inputs_of(model, prompt):
    """The arguments of a forward pass over one prompt, a batch of one."""
    ids = prompt["input_ids"][None]
    llava = hasattr(model.model, "image_newline")
    inputs = {"input_ids": ids} | ({} if llava else {"token_type_ids": (ids == IMAGE).int()})
    if "pixels" in prompt:
        inputs |= {"pixel_values": prompt["pixels"]} | ({"image_sizes": prompt["image_sizes"]} if llava else {})
    return inputs


def next_logprobs(model, prompt, with_grad=False):
    """log p(token t+1 | tokens to t), [n - 1]."""
    with torch.set_grad_enabled(with_grad):
        logits = model(**inputs_of(model, prompt), use_cache=False).logits[0]
        return torch.log_softmax(logits[:-1], -1).gather(1, prompt["input_ids"][1:, None])[:, 0]


def losses(model, prompts):
    """(SCALe loss, vanilla loss): the first sums w_think * mean + w_answer * mean over prompts, the second is one mean."""
    scale, all_ce = 0.0, []
    for prompt in prompts:
        ce = -next_logprobs(model, prompt, with_grad=True)
        labels = prompt["segments"][1:]
        for label, weight in ((THINK, W_THINK), (ANSWER, W_ANSWER)):
            if (labels == label).any():
                scale = scale + weight * ce[labels == label].mean()
        all_ce.append(ce[labels > 0])
    return scale, torch.cat(all_ce).mean()


def greedy(model, prompt):
    """NEW_TOKENS greedy tokens by whole forward passes, their log-probs, and how far the second logit was. Image tokens are
    never chosen."""
    ids, chosen = prompt["input_ids"], []
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(**inputs_of(model, {**prompt, "input_ids": ids}), use_cache=False).logits[0, -1]
        allowed = logits.clone()
        allowed[111:114] = -torch.inf
        best = allowed.topk(2)
        token = best.indices[0]
        chosen.append((token, torch.log_softmax(logits, -1)[token], best.values[0] - best.values[1]))
        ids = torch.cat([ids, token[None]])
    return [torch.stack(column) for column in zip(*chosen)]


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
    out["logprobs"] = next_logprobs(model, prompt)
    out["greedy_ids"], out["greedy_logprobs"], out["greedy_gaps"] = greedy(model, prompt)
    return out


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def statistics(model, prompts):
    with torch.no_grad():
        logits = torch.cat([model(**inputs_of(model, p), use_cache=False).logits[0, :-1] for p in prompts])
    logp, targets = torch.log_softmax(logits, -1), torch.cat([next_logprobs(model, p) for p in prompts])
    uniform = -torch.log(torch.tensor(float(logits.shape[-1])))
    double = [next_logprobs(model.double(), {k: v.double() if v.is_floating_point() else v for k, v in p.items()})
              for p in prompts]
    model.float()
    return {"mean_distance_from_uniform": (targets - uniform).abs().mean().item(),
            "mean_entropy": -(logp.exp() * logp).sum(-1).mean().item(), "log_vocabulary": -uniform.item(),
            "float32_against_float64": (torch.cat(double).float() - targets).abs().max().item()}


def write_case(case_name):
    from picture_sensitivity import sensitivity
    folder, case = GOLDENS / "families" / case_name, CASES[case_name]
    folder.mkdir(parents=True, exist_ok=True)
    model = model_of(case_name)
    with torch.no_grad():
        prompts = list(prompts_of(case_name, model))
    golden = {}
    for index, prompt in enumerate(prompts):
        patch = case["config"]["vision_config"]["patch_size"]
        golden |= {f"prompt{index}.{key}": value for key, value in prompt_golden(model, prompt, patch).items()}
    scale, vanilla = losses(model, prompts)
    golden["loss.scale"], golden["loss.vanilla"] = scale.detach()[None], vanilla.detach()[None]
    for name, gradient in gradients(model, scale).items():
        golden[f"grad.scale.{name}"] = gradient
    for name, gradient in gradients(model, vanilla).items():
        golden[f"norm.vanilla.{name}"] = gradient.double().norm().float()[None]
    golden["loss.weights"] = torch.tensor([W_THINK, W_ANSWER])
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    weights = {checkpoint_name(name, case["spelling"]): p.detach().clone() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_folder(folder, case_name, case, model, prompts)
    report = {"versions": versions("torch", "transformers", "numpy", "pillow"), **statistics(model, prompts),
              **sensitivity(model, prompts, case_name)}
    write_json(folder / "sensitivity.json", report)
    assert report["mean_distance_from_uniform"] > 0.5 and report["mean_entropy"] < report["log_vocabulary"] - 0.5, report
    assert report["float32_against_float64"] < 2e-5, report["float32_against_float64"]


def write_folder(folder, case_name, case, model, prompts):
    saved = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    if case["spelling"] == "v5":
        processor = {"image_processor": preprocessor(case_name), "processor_class": preprocessor(case_name)["processor_class"]}
        write_json(folder / "processor_config.json", processor, 2)
    else:
        write_json(folder / "preprocessor_config.json", preprocessor(case_name), 2)
    for config in (case["config"], saved):
        write_json(folder / "config.json", config, 2)
        read_back(folder, case_name, model, prompts)
    write_json(folder / "config.hub.json", case["config"], 2)


def read_back(folder, case_name, model, prompts):
    """The written folder, read by transformers, must give the same log-probs: so the names and the config are right."""
    again, info = model_class(case_name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                         output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    again.eval()
    for prompt in prompts:
        difference = (next_logprobs(again, prompt) - next_logprobs(model, prompt)).abs().max()
        assert difference < 2e-5, (folder, difference)


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for case_name in CASES:
        write_case(case_name)
        print(f"families/{case_name}")


if __name__ == "__main__":
    main()
