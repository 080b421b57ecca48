"""tests/goldens/rl: GRPO-family losses through TRL's own _compute_loss, group advantages, SCALe weights. In float64."""

import math
from types import SimpleNamespace

from oracle_common import GOLDENS, as_floats, random, versions, write_json  # first: it sets what torch reads

import numpy as np
import torch
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

MAX_COMPLETION = 16  # dr_grpo's constant


def batch(name, sequences, longest, spread, on_policy=False):
    """Ragged log-probs as padded lists: what lies outside the mask is finite noise that must not matter."""
    rng = random("rl", name)
    lengths = rng.integers(1, longest + 1, sequences)
    lengths[0] = longest
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    if name == "masked_sequence":
        mask[1] = 0  # a truncated completion that does not count
        mask[2, 1:3] = 0  # a hole: tokens that a tool wrote
    logp = -rng.exponential(1.2, (sequences, longest))
    old = logp if on_policy else np.minimum(logp + spread * rng.standard_normal(logp.shape), -1e-4)
    sampled = np.minimum(old + 0.3 * rng.standard_normal(logp.shape), -1e-4)
    reference = np.minimum(logp + 0.4 * rng.standard_normal(logp.shape), -1e-4)
    advantages = (0.2 + np.abs(rng.standard_normal(sequences))) * np.where(np.arange(sequences) % 2, -1, 1)
    if sequences > 4:
        advantages[-1] = 0.0
    tensors = {"logp": logp, "logp_old": old, "logp_sampled": sampled, "logp_ref": reference, "advantages": advantages}
    # Rounded to float32, so that a float32 reader starts from the same numbers.
    out = {key: torch.from_numpy(value.astype(np.float32)).double() for key, value in tensors.items()}
    return out | {"mask": torch.from_numpy(mask)}


def batches():
    return {"near": batch("near", 4, 8, 0.1), "far": batch("far", 6, 12, 0.8), "on_policy": batch("on_policy", 4, 7, 0, True),
            "masked_sequence": batch("masked_sequence", 5, 9, 0.4)}


def settings():
    """name -> what is set beside the loss type. epsilon_high is TRL's: an offset from 1, but for cispo the cap itself."""
    plain = {"epsilon_low": 0.2, "epsilon_high": 0.2}
    wide = {"epsilon_low": 0.2, "epsilon_high": 0.28}
    cases = {}
    for loss in ("grpo", "bnpo", "dapo", "dr_grpo", "luspo"):
        cases[loss] = {"loss_type": loss, **plain}
        cases[f"{loss}_wide_kl"] = {"loss_type": loss, **wide, "beta": 0.04}
    cases["dapo_kl_bias_corrected"] = {"loss_type": "dapo", **plain, "beta": 0.1, "use_bias_correction_kl": True}
    cases["grpo_delta"] = {"loss_type": "grpo", **plain, "delta": 1.5}
    cases["dapo_truncated_sampling"] = {"loss_type": "dapo", **wide, "beta": 0.04, "sampling_cap": 2.0}
    cases["gspo"] = {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"}
    cases["gspo_wide"] = {"loss_type": "grpo", **plain, "importance_sampling_level": "sequence", "beta": 0.04}
    cases["cispo"] = {"loss_type": "cispo", "epsilon_low": 0.2, "epsilon_high": 1.3}
    return cases


def fake_trainer(chosen, logp):
    """As much of a GRPOTrainer as _compute_loss reads, one process, one micro-batch; the log-probs are a leaf tensor."""
    accelerator = SimpleNamespace(num_processes=1, sync_gradients=True, gather=lambda x: x, gather_for_metrics=lambda x: x,
                                  reduce=lambda x, reduction: x)
    metrics = {"train": type("Metrics", (dict,), {"__missing__": lambda self, key: self.setdefault(key, [])})()}
    args = SimpleNamespace(delta=chosen.get("delta"), use_bias_correction_kl=chosen.get("use_bias_correction_kl", False),
                           steps_per_generation=1, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05)
    return SimpleNamespace(
        args=args, accelerator=accelerator, model=SimpleNamespace(training=True), _metrics=metrics, aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=chosen.get("beta", 0.0),
        loss_type=chosen["loss_type"], importance_sampling_level=chosen.get("importance_sampling_level", "token"),
        epsilon_low=chosen["epsilon_low"], epsilon_high=chosen["epsilon_high"], use_vllm="sampling_cap" in chosen,
        vllm_importance_sampling_correction=True, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        max_completion_length=MAX_COMPLETION,
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros_like(logp), None))


def evaluate(chosen, data):
    logp = data["logp"].clone().requires_grad_()
    trainer = fake_trainer(chosen, logp)
    shape = data["mask"].shape
    inputs = {"prompt_ids": torch.zeros(shape[0], 1, dtype=torch.long), "prompt_mask": torch.ones(shape[0], 1),
              "completion_ids": torch.zeros(shape, dtype=torch.long), "completion_mask": data["mask"],
              "advantages": data["advantages"], "old_per_token_logps": data["logp_old"],
              "ref_per_token_logps": data["logp_ref"], "num_items_in_batch": data["mask"].sum()}
    if "sampling_cap" in chosen:
        inputs["importance_sampling_ratio"] = (data["logp_old"] - data["logp_sampled"]).exp().clamp(max=chosen["sampling_cap"])
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    measured = {key: values[0] for key, values in trainer._metrics["train"].items()
                if key in ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")}
    return {"loss": loss.item(), "gradient": as_floats(logp.grad), "metrics": measured}


def losses():
    data = batches()
    cases = []
    for setting, chosen in settings().items():
        for name, tensors in data.items():
            cases.append({"settings": setting, "batch": name} | evaluate(chosen, tensors))
    clipped = next(case["metrics"] for case in cases if case["settings"] == "grpo" and case["batch"] == "far")
    assert clipped["clip_ratio/low_mean"] > 0.05 and clipped["clip_ratio/high_mean"] > 0.05, clipped
    return {
        "versions": versions("torch", "trl"),
        "about": "loss and d loss / d logp of TRL's GRPOTrainer._compute_loss in float64. mask 0: padding or not counted. "
                 "dr_grpo divides by sequences * max_completion_length; grpo, luspo and dr_grpo count fully masked sequences "
                 "in the number of sequences. With one micro-batch bnpo and dapo are the same. In cispo epsilon_high is the cap itself. sampling_cap: the policy term is "
                 "multiplied by min(exp(logp_old - logp_sampled), cap), the KL term is not. Gradients of masked tokens are 0.",
        "max_completion_length": MAX_COMPLETION,
        "settings": settings(),
        "batches": {name: {key: as_floats(v) if v.is_floating_point() else v.tolist() for key, v in tensors.items()}
                    for name, tensors in data.items()},
        "cases": cases,
    }


def advantages():
    rng = random("rl", "advantages")
    groups = {
        "quarters": rng.integers(0, 9, 8) / 4, "binary": rng.integers(0, 2, 8).astype(float), "normal": rng.standard_normal(8),
        "one_right": np.eye(1, 8)[0], "pair": np.array([0.25, 1.75]), "offset": 1000 + rng.standard_normal(6),
        "excluded": np.array([1.0, np.nan, 0.0, 0.5, np.nan, 2.0]), "one_left": np.array([np.nan, 1.5, np.nan]),
        "none_left": np.array([np.nan, np.nan]), "equal": np.full(8, 0.9), "equal_quarter": np.full(4, 1.25),
        "equal_with_excluded": np.array([0.5, np.nan, 0.5]), "single": np.array([2.0]),
    }
    cases = []
    for name, values in groups.items():
        rewards = torch.tensor(values, dtype=torch.float64)
        kept = rewards[~rewards.isnan()]
        alike = len(kept) < 2 or bool((kept == kept[0]).all())
        deviation = rewards - rewards.nanmean()
        zero = torch.zeros_like(rewards)
        scaled = zero if alike else torch.nan_to_num(deviation / (nanstd(rewards) + 1e-4))
        centred = zero if alike else torch.nan_to_num(deviation)
        cases.append({"name": name, "rewards": [None if math.isnan(x) else x for x in values],
                      "mean": None if not len(kept) else kept.mean().item(),
                      "std": None if len(kept) < 2 else nanstd(rewards).item(),
                      "advantages": scaled.tolist(), "advantages_not_scaled": centred.tolist()})
    return {"versions": versions("torch", "trl"),
            "about": "TRL's group advantages in float64, std by its nanstd (divisor n - 1), eps 1e-4; null is an excluded "
                     "completion (advantage 0). One departure from TRL: fewer than two rewards, or equal ones, give exactly 0.",
            "epsilon": 1e-4, "cases": cases}


def kl():
    rng = random("rl", "kl")
    logp = torch.from_numpy(np.float32(-rng.exponential(1.0, 24))).double().requires_grad_()
    ref = torch.from_numpy(np.float32(-rng.exponential(1.0, 24))).double()
    difference = ref - logp
    values = {"k1": -difference, "k2": 0.5 * difference**2, "k3": difference.exp() - difference - 1}
    out = {name: {"value": as_floats(v), "gradient": as_floats(torch.autograd.grad(v.sum(), logp, retain_graph=True)[0])}
           for name, v in values.items()}
    return {"versions": versions("torch"), "about": "per-token KL estimators by their formulas and d value / d logp, float64",
            "logp": as_floats(logp), "logp_ref": as_floats(ref), **out}


def scale_weights():
    runs = []
    for start, end, total in ((1.0, 0.5, 10), (1.0, 0.5, 128), (0.3, 1.2, 7), (1.0, 1.0, 5)):
        weights = [end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total)) for step in range(total + 1)]
        runs.append({"start": start, "end": end, "total_steps": total, "weights": weights})
    return {"about": "w(step) = end + (start - end) / 2 * (1 + cos(pi * step / total)), by the formula, step = completed steps",
            "runs": runs}


def main():
    folder = GOLDENS / "rl"
    write_json(folder / "losses.json", losses(), None)
    write_json(folder / "advantages.json", advantages())
    write_json(folder / "kl.json", kl(), None)
    write_json(folder / "scale_weights.json", scale_weights(), None)
    print("rl")


if __name__ == "__main__":
    main()
