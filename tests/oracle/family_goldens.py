"""tests/goldens/families: tiny random models of every family, and what transformers computes with them on the CPU in float32.

A family's module brings CASES, model_of(case), prompts_of(case) and files_of(case, model); everything else is here.
"""

import importlib
import json

from oracle_common import GOLDENS, versions, write_json  # first: it sets what torch reads at its start

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

MODULES = ["text_cases"]
THINK, ANSWER = 1, 2
W_THINK, W_ANSWER = 0.7, 1.1
NEW_TOKENS = 6


def next_logprobs(model, prompt, with_grad=False):
    """log p(token t+1 | tokens to t), [n - 1]."""
    inputs = {"input_ids": prompt["input_ids"][None]}
    with torch.set_grad_enabled(with_grad):
        logits = model(**inputs, use_cache=False).logits[0]
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
            logits = model(input_ids=ids[None], use_cache=False).logits[0, -1]
        best = torch.log_softmax(logits, -1).topk(2)
        assert best.values[0] - best.values[1] > 1e-3, "too near a tie"
        chosen.append((best.indices[0], best.values[0]))
        ids = torch.cat([ids, best.indices[:1]])
    return torch.stack([i for i, _ in chosen]), torch.stack([v for _, v in chosen])


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def statistics(model, prompts, logprobs):
    with torch.no_grad():
        logits = torch.cat([model(input_ids=p["input_ids"][None], use_cache=False).logits[0, :-1] for p in prompts])
    logp, targets = torch.log_softmax(logits, -1), torch.cat(logprobs)
    uniform = -torch.log(torch.tensor(float(logits.shape[-1])))
    double = torch.cat([next_logprobs(model.double(), p) for p in prompts]).float()
    model.float()
    return {"mean_distance_from_uniform": (targets - uniform).abs().mean().item(),
            "mean_entropy": -(logp.exp() * logp).sum(-1).mean().item(), "log_vocabulary": -uniform.item(),
            "float32_against_float64": (double - targets).abs().max().item()}


def golden_of(model, prompts, logprobs):
    golden = {}
    for index, (prompt, values) in enumerate(zip(prompts, logprobs)):
        golden |= {f"prompt{index}.{key}": value for key, value in prompt.items()} | {f"prompt{index}.logprobs": values}
        golden[f"prompt{index}.greedy_ids"], golden[f"prompt{index}.greedy_logprobs"] = greedy(model, prompt)
    scale, vanilla = losses(model, prompts)
    golden["loss.scale"], golden["loss.vanilla"] = scale.detach()[None], vanilla.detach()[None]
    for name, gradient in gradients(model, scale).items():
        golden[f"grad.scale.{name}"] = gradient
    for name, gradient in gradients(model, vanilla).items():
        golden[f"norm.vanilla.{name}"] = gradient.double().norm().float()[None]
    golden["loss.weights"] = torch.tensor([W_THINK, W_ANSWER])
    return {key: value.contiguous() for key, value in golden.items()}


def write_case(module, case_name):
    folder, case = GOLDENS / "families" / case_name, module.CASES[case_name]
    folder.mkdir(parents=True, exist_ok=True)
    model, prompts = module.model_of(case_name), list(module.prompts_of(case_name))
    logprobs = [next_logprobs(model, prompt) for prompt in prompts]
    save_file(golden_of(model, prompts, logprobs), folder / "golden.safetensors")
    stored = getattr(torch, case["stored"])
    weights = {name: p.detach().to(stored).clone() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    saved = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    configs = {"config.json": saved}
    if "hub" in case:
        configs["config.hub.json"] = module.hub_config(case, saved)
    for name, config in configs.items():
        write_json(folder / "config.json", config, 2)
        read_back(folder, prompts, logprobs)
    for name, config in configs.items():
        write_json(folder / name, config, 2)
    report = {"versions": versions("torch", "transformers", "numpy"), **statistics(model, prompts, logprobs)}
    write_json(folder / "report.json", report)
    assert report["mean_distance_from_uniform"] > 0.5, (case_name, report)
    assert report["mean_entropy"] < report["log_vocabulary"] - 0.5, (case_name, report)
    assert report["float32_against_float64"] < 2e-5, (case_name, report)
    print(f"families/{case_name}: distance from uniform {report['mean_distance_from_uniform']:.2f}, "
          f"float32 against float64 {report['float32_against_float64']:.1e}")


def read_back(folder, prompts, logprobs):
    """The written folder, read by transformers, must give the same log-probs: so the names and the config are right."""
    again, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                       output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    again.eval()
    for prompt, wanted in zip(prompts, logprobs):
        difference = (next_logprobs(again, prompt) - wanted).abs().max()
        assert difference < 2e-5, (folder, difference)


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name in MODULES:
        module = importlib.import_module(name)
        for case_name in module.CASES:
            write_case(module, case_name)


if __name__ == "__main__":
    main()
