"""What the makers of model goldens share: log-probs, losses, gradients, greedy continuations of one prompt at a time, and the
figures that tell whether a golden proves anything."""

import json

from oracle_common import versions, write_json  # first: it sets what torch reads at its start

import torch
from safetensors.torch import save_file

THINK, ANSWER = 1, 2
W_THINK, W_ANSWER = 0.7, 1.1
NEW_TOKENS = 6


def text_inputs(model, prompt):
    """The arguments of a forward pass over one prompt, a batch of one."""
    return {"input_ids": prompt["input_ids"][None]}


class Oracle:
    """transformers on prompts: dictionaries with input_ids, segments and whatever inputs_of(model, prompt) makes arguments of."""

    def __init__(self, inputs_of=text_inputs, never=()):
        self.inputs_of, self.never = inputs_of, list(never)

    def logits(self, model, prompt):
        return model(**self.inputs_of(model, prompt), use_cache=False).logits[0]

    def next_logprobs(self, model, prompt, with_grad=False):
        """log p(token t+1 | tokens to t), [n - 1]."""
        with torch.set_grad_enabled(with_grad):
            return torch.log_softmax(self.logits(model, prompt)[:-1], -1).gather(1, prompt["input_ids"][1:, None])[:, 0]

    def losses(self, model, prompts):
        """(SCALe loss, vanilla loss): the first sums w_think * mean + w_answer * mean over prompts, the second is one mean."""
        scale, all_ce = 0.0, []
        for prompt in prompts:
            ce = -self.next_logprobs(model, prompt, with_grad=True)
            labels = prompt["segments"][1:]
            for label, weight in ((THINK, W_THINK), (ANSWER, W_ANSWER)):
                if (labels == label).any():
                    scale = scale + weight * ce[labels == label].mean()
            all_ce.append(ce[labels > 0])
        return scale, torch.cat(all_ce).mean()

    def greedy(self, model, prompt):
        """NEW_TOKENS greedy tokens by whole forward passes, their log-probs, and how far the second logit was. Ids of `never`
        are not chosen."""
        ids, chosen = prompt["input_ids"], []
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                logits = self.logits(model, {**prompt, "input_ids": ids})[-1]
            allowed = logits.clone()
            allowed[self.never] = -torch.inf
            best = allowed.topk(2)
            assert best.values[0] - best.values[1] > 1e-3, "a greedy choice is too near a tie"
            token = best.indices[0]
            chosen.append((token, torch.log_softmax(logits, -1)[token], best.values[0] - best.values[1]))
            ids = torch.cat([ids, token[None]])
        return dict(zip(("greedy_ids", "greedy_logprobs", "greedy_gaps"), (torch.stack(column) for column in zip(*chosen))))

    def loss_goldens(self, model, prompts, name_of=lambda name: name):
        """Both losses, the gradient of the first and the norms of the second's, under the names of the checkpoint."""
        scale, vanilla = self.losses(model, prompts)
        golden = {"loss.scale": scale.detach()[None], "loss.vanilla": vanilla.detach()[None],
                  "loss.weights": torch.tensor([W_THINK, W_ANSWER])}
        for name, gradient in gradients(model, scale).items():
            golden[f"grad.scale.{name_of(name)}"] = gradient
        for name, gradient in gradients(model, vanilla).items():
            golden[f"norm.vanilla.{name_of(name)}"] = gradient.double().norm().float()[None]
        return golden

    def statistics(self, model, prompts):
        with torch.no_grad():
            logits = torch.cat([self.logits(model, prompt)[:-1] for prompt in prompts])
        logp, targets = torch.log_softmax(logits, -1), torch.cat([self.next_logprobs(model, p) for p in prompts])
        uniform = -torch.log(torch.tensor(float(logits.shape[-1])))
        double = [self.next_logprobs(model.double(), {k: v.double() if v.is_floating_point() else v for k, v in p.items()})
                  for p in prompts]
        model.float()
        return {"mean_distance_from_uniform": (targets - uniform).abs().mean().item(),
                "mean_entropy": -(logp.exp() * logp).sum(-1).mean().item(), "log_vocabulary": -uniform.item(),
                "float32_against_float64": (torch.cat(double).float() - targets).abs().max().item()}

    def read_back(self, kind, folder, model, prompts):
        """The written folder, read by transformers, must give the same log-probs: so the names and the config are right."""
        again, info = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        again.eval()
        for prompt in prompts:
            difference = (self.next_logprobs(again, prompt) - self.next_logprobs(model, prompt)).abs().max()
            assert difference < 2e-5, (folder, difference)


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def save_tensors(tensors, path, **metadata):
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata=metadata or None)


def saved_config(model):
    """config.json as save_pretrained writes it."""
    return json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}


def write_report(path, packages, figures):
    """Stops where the golden would prove nothing."""
    report = {"versions": versions(*packages), **figures}
    write_json(path, report)
    assert report["mean_distance_from_uniform"] > 0.5, report
    assert report["mean_entropy"] < report["log_vocabulary"] - 0.5, report
    assert report["float32_against_float64"] < 2e-5, report


def run(write_case, cases, group):
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for case_name in cases:
        write_case(case_name)
        print(f"{group}/{case_name}")
