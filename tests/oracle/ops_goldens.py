"""tests/goldens/ops: single ops by torch and by the modules of transformers that families are made of, and Gemma-3's masks."""

from oracle_common import GOLDENS, random  # first: it sets what torch reads at its start

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.activations import ACT2FN
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import (Gemma3RMSNorm, create_masks_for_vision_model,
                                                        get_block_sequence_ids_for_mask)

FOLDER = GOLDENS / "ops"
ACTIVATIONS = {"silu": "silu", "gelu_erf": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def rounded(tensor):
    return tensor.detach().to(torch.float32).contiguous()


def noise(*key, shape, scale=1.0):
    return torch.from_numpy(np.float32(scale * random("ops", *key).standard_normal(shape)))


def activations():
    """In float64 from float32 inputs, rounded once: f(x), f(x) * up and the gradients of both for dy."""
    x = torch.cat([torch.linspace(-12, 12, 400), noise("x", shape=90), torch.tensor([0.0, -0.0, 1e-6, -1e-6, 1e-3, -1e-3]),
                   torch.tensor([40.0, -40.0, 90.0, -90.0, 300.0, -300.0])]).float()
    out = {"activation.x": x, "activation.up": noise("up", shape=x.shape), "activation.dy": noise("dy", shape=x.shape)}
    up, dy = out["activation.up"].double(), out["activation.dy"].double()
    for name, key in ACTIVATIONS.items():
        f = ACT2FN[key]
        plain = x.double().requires_grad_()
        y = f(plain)
        y.backward(dy)
        out[f"{name}.y"], out[f"{name}.dx"] = rounded(y), rounded(plain.grad)
        gate, linear = x.double().requires_grad_(), up.clone().requires_grad_()
        y = f(gate) * linear
        y.backward(dy)
        out[f"{name}.gated_y"], out[f"{name}.gated_dx"] = rounded(y), rounded(gate.grad)
        out[f"{name}.gated_dup"] = rounded(linear.grad)
        # The function that a bare float32 forward of the reference computes, for scale.
        out[f"{name}.float32"] = f(x)
    return out


def norms():
    """Float32, as the reference computes it."""
    out = {}
    x, dy = noise("norm x", shape=(13, 83), scale=2.0) + 0.7, noise("norm dy", shape=(13, 83))
    weight, bias = noise("norm w", shape=83) * 0.3 + 1.0, noise("norm b", shape=83)
    out["norm.x"], out["norm.dy"], out["norm.weight"], out["norm.bias"] = x, dy, weight, bias
    layer = torch.nn.LayerNorm(83, eps=1e-5)
    rms = Gemma3RMSNorm(83, eps=1e-6)
    for name, module in {"layernorm": layer, "gemma_rmsnorm": rms}.items():
        module.weight.data = weight.clone()
        if name == "layernorm":
            module.bias.data = bias.clone()
        start = x.clone().requires_grad_()
        y = module(start)
        y.backward(dy)
        out[f"{name}.y"], out[f"{name}.dx"], out[f"{name}.dweight"] = rounded(y), rounded(start.grad), module.weight.grad.clone()
    out["layernorm.dbias"] = layer.bias.grad.clone()
    # q_norm and k_norm: over each head's columns.
    heads, size = 5, 16
    x, dy = noise("head x", shape=(7, heads * size)), noise("head dy", shape=(7, heads * size))
    rms = Gemma3RMSNorm(size, eps=1e-6)
    rms.weight.data = noise("head w", shape=size) * 0.3
    start = x.clone().requires_grad_()
    y = rms(start.view(7, heads, size)).reshape(7, heads * size)
    y.backward(dy)
    out |= {"heads.x": x, "heads.dy": dy, "heads.weight": rms.weight.data.clone(), "heads.y": rounded(y),
            "heads.dx": rounded(start.grad), "heads.dweight": rms.weight.grad.clone()}
    return out


def pooling():
    """Gemma-3's projector: a 12 x 12 grid of feature rows, averaged 3 x 3."""
    side, kernel, width = 12, 3, 20
    x, dy = noise("pool x", shape=(side * side, width)), noise("pool dy", shape=((side // kernel) ** 2, width))
    start = x.clone().requires_grad_()
    grid = start.T.reshape(1, width, side, side).contiguous()
    y = torch.nn.AvgPool2d(kernel_size=kernel, stride=kernel)(grid).flatten(2)[0].T
    y.backward(dy)
    return {"pool.x": x, "pool.dy": dy, "pool.y": rounded(y), "pool.dx": rounded(start.grad)}


# Runs of image tokens as (first, length), the prompt's length, the sliding window.
MASKS = [(70, 6, [(3, 20)]), (90, 40, [(0, 17), (18, 30), (60, 30)]), (50, 1, [(5, 12)]), (100, 200, [(10, 64), (80, 5)]),
         (40, 8, [])]


def masks():
    out = {}
    for number, (length, window, runs) in enumerate(MASKS):
        types = torch.zeros(1, length, dtype=torch.long)
        for first, count in runs:
            types[0, first:first + count] = 1
        config = Gemma3TextConfig(sliding_window=window, num_hidden_layers=6, hidden_size=8, vocab_size=8)
        config._attn_implementation = "eager"
        made = create_masks_for_vision_model(config, torch.zeros(1, length, 8), None, None, torch.arange(length)[None],
                                             get_block_sequence_ids_for_mask(types))
        for kind in ("full_attention", "sliding_attention"):
            out[f"mask{number}.{kind}"] = (made[kind][0, 0] == 0).to(torch.uint8).contiguous()
        out[f"mask{number}.image"] = types[0].to(torch.uint8)
        out[f"mask{number}.window"] = torch.tensor([window], dtype=torch.int32)
    return out


def main():
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in (activations() | norms() | pooling()).items()}, FOLDER / "ops.safetensors")
    save_file(masks(), FOLDER / "masks.safetensors")


if __name__ == "__main__":
    main()
