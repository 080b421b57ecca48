"""tests/goldens/optimizer: trajectories of torch's AdamW with clipping, and transformers' learning-rate schedules."""

from oracle_common import GOLDENS, as_floats, random, versions, write_json  # first: it sets what torch reads

import numpy as np
import torch
from transformers import optimization

STEPS = 10
SHAPES = {"matrix": (5, 7), "bias": (6,), "frozen_scale": (3, 2)}
RUNS = {
    "plain": dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_norm=None),
    "decay_clip": dict(lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, max_norm=1.0),
    "strong_decay_cosine": dict(lr=3e-2, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, max_norm=0.5, cosine=(2, STEPS)),
    "tiny_gradients": dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, max_norm=1.0, gradient_scale=1e-9),
}


def inputs(name, run, kind):
    """Starting values and gradients, rounded to float32."""
    rng = random("optimizer", name)
    scale = run.get("gradient_scale", 1.0)
    start = {key: np.float32(rng.standard_normal(shape)) for key, shape in SHAPES.items()}
    gradients = [{key: np.float32(scale * rng.standard_normal(shape) * rng.choice([0.1, 1.0])) for key, shape in SHAPES.items()}
                 for _ in range(STEPS)]
    gradients[4]["bias"][:] = 0.0
    return ({key: torch.from_numpy(v).to(kind) for key, v in start.items()},
            [{key: torch.from_numpy(v).to(kind) for key, v in g.items()} for g in gradients])


def trajectory(name, run, kind):
    start, gradients = inputs(name, run, kind)
    parameters = {key: torch.nn.Parameter(value.clone()) for key, value in start.items()}
    groups = [{"params": [parameters["matrix"], parameters["frozen_scale"]]}, {"params": [parameters["bias"]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run["lr"], betas=run["betas"], eps=run["eps"], weight_decay=run["weight_decay"],
                                  foreach=False, fused=False)
    schedule = optimization.get_cosine_schedule_with_warmup(optimizer, *run["cosine"]) if "cosine" in run else None
    steps = []
    for gradient in gradients:
        for key, parameter in parameters.items():
            parameter.grad = gradient[key].clone()
        limit = float("inf") if run["max_norm"] is None else run["max_norm"]
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), limit)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if schedule:
            schedule.step()
        steps.append({"gradient": {key: as_floats(g) for key, g in gradient.items()}, "norm": norm.item(), "lr": lr,
                      "parameters": {key: as_floats(p) for key, p in parameters.items()}})
    moments = {key: {part: as_floats(optimizer.state[p][part]) for part in ("exp_avg", "exp_avg_sq")}
               for key, p in parameters.items()}
    return {"start": {key: as_floats(value) for key, value in start.items()}, "steps": steps, "moments": moments}


def noise(one, other):
    """The largest difference between two trajectories' parameters, relative to the parameter or to 1."""
    worst = 0.0
    for a, b in zip(one["steps"], other["steps"]):
        for key in SHAPES:
            x, y = np.array(a["parameters"][key]), np.array(b["parameters"][key])
            worst = max(worst, float((np.abs(x - y) / np.maximum(np.abs(x), 1)).max()))
    return worst


def adamw():
    runs = []
    for name, run in RUNS.items():
        made = trajectory(name, run, torch.float64)
        shown = {key: value for key, value in run.items() if key != "gradient_scale"}
        runs.append({"name": name, "settings": shown, "no_decay": ["bias"], **made,
                     "float32_against_float64": noise(made, trajectory(name, run, torch.float32))})
    return {"versions": versions("torch", "transformers"),
            "about": "torch.optim.AdamW in float64 from inputs rounded to float32. norm is before clipping; gradients are "
                     "multiplied by min(1, max_norm / (norm + 1e-6)). moments are those after the last step.", "runs": runs}


def rates(make, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer)
    out = []
    for _ in range(total + 1):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


def schedules():
    runs = []
    for warmup, total in ((0, 10), (3, 20), (50, 120), (5, 5), (1, 1)):
        kinds = {
            "cosine": lambda o: optimization.get_cosine_schedule_with_warmup(o, warmup, total),
            "cosine_min_0.1": lambda o: optimization.get_cosine_with_min_lr_schedule_with_warmup(
                o, warmup, total, min_lr_rate=0.1),
            "linear": lambda o: optimization.get_linear_schedule_with_warmup(o, warmup, total),
            "constant": lambda o: optimization.get_constant_schedule_with_warmup(o, warmup),
        }
        runs += [{"kind": kind, "warmup": warmup, "total": total, "rates": rates(make, total)} for kind, make in kinds.items()]
    return {"versions": versions("transformers"),
            "about": "factor of the base rate at each step, rates[i] = after i completed steps, by transformers.optimization",
            "runs": runs}


def main():
    folder = GOLDENS / "optimizer"
    write_json(folder / "adamw.json", adamw(), None)
    write_json(folder / "schedules.json", schedules(), None)
    print("optimizer")


if __name__ == "__main__":
    main()
