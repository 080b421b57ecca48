"""tests/goldens/qwen2_5_vl: tiny random models, and what transformers computes with them on the CPU in float32."""

import json

from oracle_common import GOLDENS, versions, write_json  # first: it sets what torch reads at its start

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from qwen_cases import ANSWER, CASES, IMAGE, PREPROCESSOR, THINK, checkpoint_name, hub_config, model_of, prompts_of
from qwen_sensitivity import sensitivity

W_THINK, W_ANSWER = 0.7, 1.1
NEW_TOKENS = 6


def inputs_of(prompt):
    """The arguments of a forward pass over one prompt, a batch of one."""
    ids = prompt["input_ids"][None]
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE).int()}
    if "pixel_values" in prompt:
        inputs |= {"pixel_values": prompt["pixel_values"], "image_grid_thw": prompt["image_grid_thw"]}
    return inputs


def next_logprobs(model, prompt, with_grad=False):
    """log p(token t+1 | tokens to t), [n - 1]."""
    with torch.set_grad_enabled(with_grad):
        logits = model(**inputs_of(prompt), use_cache=False).logits[0].float()
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
    """NEW_TOKENS greedy tokens by whole forward passes, and their log-probs."""
    ids, chosen = prompt["input_ids"], []
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(**inputs_of({**prompt, "input_ids": ids}), use_cache=False).logits[0, -1]
        best = torch.log_softmax(logits.float(), -1).max(0)
        chosen.append((best.indices, best.values))
        ids = torch.cat([ids, best.indices[None]])
    return torch.stack([i for i, _ in chosen]), torch.stack([v for _, v in chosen])


def prompt_golden(model, prompt):
    out = dict(prompt)
    position_ids, delta = None, None
    if "pixel_values" in prompt:
        position_ids, delta = model.model.get_rope_index(
            prompt["input_ids"][None], mm_token_type_ids=inputs_of(prompt)["mm_token_type_ids"],
            image_grid_thw=prompt["image_grid_thw"])
        with torch.no_grad():
            vision = model.model.visual(prompt["pixel_values"], grid_thw=prompt["image_grid_thw"])
        out["image_features"] = vision.pooler_output
    else:
        position_ids = torch.arange(len(prompt["input_ids"])).expand(3, 1, -1)
        delta = torch.zeros(1, 1, dtype=torch.int64)
    out["position_ids"], out["rope_delta"] = position_ids[:, 0].contiguous(), delta.reshape(1)
    with torch.no_grad():
        hidden = model.model(**inputs_of(prompt), use_cache=False).last_hidden_state[0]
    out["last_hidden"] = hidden
    out["logprobs"] = next_logprobs(model, prompt)
    out["greedy_ids"], out["greedy_logprobs"] = greedy(model, prompt)
    return out


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def statistics(model, prompts):
    with torch.no_grad():
        logits = torch.cat([model(**inputs_of(p), use_cache=False).logits[0, :-1] for p in prompts])
    logp = torch.log_softmax(logits, -1)
    targets = torch.cat([next_logprobs(model, p) for p in prompts])
    uniform = -torch.log(torch.tensor(float(logits.shape[-1])))
    double = [next_logprobs(model.double(), {k: v.double() if v.is_floating_point() else v for k, v in p.items()})
              for p in prompts]
    model.float()
    return {"mean_distance_from_uniform": (targets - uniform).abs().mean().item(),
            "mean_entropy": -(logp.exp() * logp).sum(-1).mean().item(), "log_vocabulary": -uniform.item(),
            "float32_against_float64": (torch.cat(double).float() - targets).abs().max().item()}


def write_case(case_name):
    folder, case = GOLDENS / "qwen2_5_vl" / case_name, CASES[case_name]
    folder.mkdir(parents=True, exist_ok=True)
    model, prompts = model_of(case_name), list(prompts_of(case_name))
    spelling = case["spelling"]
    golden = {}
    for index, prompt in enumerate(prompts):
        golden |= {f"prompt{index}.{key}": value for key, value in prompt_golden(model, prompt).items()}
    scale, vanilla = losses(model, prompts)
    golden["loss.scale"], golden["loss.vanilla"] = scale.detach()[None], vanilla.detach()[None]
    for name, gradient in gradients(model, scale).items():
        golden[f"grad.scale.{checkpoint_name(name, spelling)}"] = gradient
    for name, gradient in gradients(model, vanilla).items():
        golden[f"norm.vanilla.{checkpoint_name(name, spelling)}"] = gradient.double().norm().float()[None]
    golden["loss.weights"] = torch.tensor([W_THINK, W_ANSWER])
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    weights = {checkpoint_name(name, spelling): p.detach().clone() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if spelling == "hub":
        write_json(folder / "config.json", hub_config(case), 2)
    else:
        saved = json.loads(model.config.to_json_string())
        write_json(folder / "config.json", saved | {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, 2)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR, 2)
    read_back(folder, model, prompts)
    report = {"versions": versions("torch", "transformers", "numpy", "pillow"), **statistics(model, prompts),
              **sensitivity(model, prompts, case_name)}
    write_json(folder / "sensitivity.json", report)
    assert report["mean_distance_from_uniform"] > 0.5 and report["mean_entropy"] < report["log_vocabulary"] - 0.5
    assert report["float32_against_float64"] < 2e-5, report["float32_against_float64"]


def read_back(folder, model, prompts):
    """The written folder, read by transformers, must give the same log-probs: so the names and the config are right."""
    again, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
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
        print(f"qwen2_5_vl/{case_name}")


if __name__ == "__main__":
    main()
