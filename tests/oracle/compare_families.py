#!/usr/bin/env python3
"""Random configurations of each family: transformers against `poise score`, on demand.

    compare_families.py [--cases N] [--seed S] [--family F] [--poise PATH] [--keep DIR] [--tolerance T]

Each case draws sizes, rules, the spelling of config.json (with keys left out, so that class defaults count), the dtype of the stored
weights and how they are cut into files; weights and prompts are random. transformers reads the folder in float32 and its log-probs are
compared with Poise's, with --bf16 both in bfloat16, too; then a PEFT adapter is made, scored beside the weights, merged by `poise merge`, and what that wrote is read by
transformers again. Exit code 1 when a case differs.
"""

import argparse
import collections
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

from oracle_common import ROOT  # first: it sets what torch reads at its start

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file

from text_cases import config_class

FAMILIES = ["llama", "mistral", "qwen2", "gemma3_text"]
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def chance(rng, probability):
    return rng.random() < probability


def pick(rng, *values):
    return values[rng.integers(len(values))]


def draw_rope(rng, newer):
    """One set of rope keys, without theta."""
    kind = pick(rng, "default", "default", "linear", "llama3")
    rope = {} if kind == "default" and chance(rng, 0.5) else {"rope_type": kind}
    if kind != "default":
        rope["factor"] = float(pick(rng, 1.0, 2.0, 3.7, 8.0, 32.0))
    if kind == "llama3":
        low = float(pick(rng, 1.0, 1.5, 2.0))
        rope |= {"low_freq_factor": low, "high_freq_factor": low * pick(rng, 1.5, 4.0)}
        if chance(rng, 0.7):
            rope["original_max_position_embeddings"] = int(pick(rng, 8, 16, 33, 64))
    if not newer and kind == "linear" and chance(rng, 0.5):
        rope["type"] = rope.pop("rope_type")
    return rope


def draw_theta(rng):
    return float(pick(rng, 10.0, 123.4, 5000.0, 10000.0, 500000.0, 1e6))


def rope_keys(rng, family, config):
    newer, two = chance(rng, 0.5), family == "gemma3_text"
    if chance(rng, 0.15):
        return
    if two and newer:
        config["rope_parameters"] = {}
        for kind in ("full_attention", "sliding_attention"):
            if chance(rng, 0.85):
                rope = {"rope_type": "default"} | draw_rope(rng, True)
                config["rope_parameters"][kind] = rope | ({"rope_theta": draw_theta(rng)} if chance(rng, 0.8) else {})
        if not config["rope_parameters"]:
            del config["rope_parameters"]
        return
    if newer:
        rope = {"rope_type": "default"} | draw_rope(rng, True)
        config["rope_parameters"] = rope | ({"rope_theta": draw_theta(rng)} if chance(rng, 0.8) else {})
        return
    if chance(rng, 0.8):
        config["rope_theta"] = draw_theta(rng)
    if two and chance(rng, 0.8):
        config["rope_local_base_freq"] = draw_theta(rng)
    rope = draw_rope(rng, False)
    if rope or chance(rng, 0.5):
        config["rope_scaling"] = rope or None


def draw_config(rng, family):
    heads = int(pick(rng, 1, 2, 3, 4, 6, 8))
    kv = int(pick(rng, *[k for k in range(1, heads + 1) if heads % k == 0]))
    size = int(pick(rng, 2, 4, 6, 8, 10, 16, 20, 24, 64))
    whole = family in ("llama", "gemma3_text")
    hidden = heads * int(pick(rng, 2, 4, 6, 8, 12, 16)) if whole or chance(rng, 0.5) else int(rng.integers(max(heads * 2, 9), 70))
    layers = int(pick(rng, 1, 2, 3, 4, 7))
    config = {"model_type": family, "vocab_size": int(pick(rng, 17, 64, 101, 257, 600)), "hidden_size": hidden,
              "intermediate_size": int(pick(rng, 8, 24, 37, 64, 130)), "num_hidden_layers": layers, "num_attention_heads": heads,
              "head_dim": size, "num_key_value_heads": kv, "max_position_embeddings": int(pick(rng, 32, 64, 4096)),
              "rms_norm_eps": float(pick(rng, 1e-6, 1e-5, 1e-3, 1e-2)), "tie_word_embeddings": bool(chance(rng, 0.5)),
              "pad_token_id": pick(rng, None, 0, 3), "bos_token_id": 1, "eos_token_id": pick(rng, 2, [2, 4], None)}
    if family == "llama":
        config |= {"attention_bias": bool(chance(rng, 0.5)), "mlp_bias": bool(chance(rng, 0.5))}
    windows = (1, 2, 5, 16, 17, 31, 500)
    if family == "mistral":
        config["sliding_window"] = pick(rng, None, *windows)
    if family == "qwen2":
        config |= {"use_sliding_window": bool(chance(rng, 0.7)), "sliding_window": pick(rng, *windows),
                   "max_window_layers": int(rng.integers(0, layers + 1))}
    if family == "gemma3_text":
        config |= {"attention_bias": bool(chance(rng, 0.3)), "sliding_window": pick(rng, *windows),
                   "query_pre_attn_scalar": int(pick(rng, 1, 7, 64, 168, 256)), "sliding_window_pattern": int(pick(rng, 1, 2, 3, 6))}
    activation = {"gemma3_text": "hidden_activation"}.get(family, "hidden_act")
    config[activation] = pick(rng, *(["gelu_pytorch_tanh"] * 3 if family == "gemma3_text" else ["silu"] * 3), "gelu", "silu",
                              "gelu_pytorch_tanh", "quick_gelu", "gelu_new")
    if family in ("qwen2", "gemma3_text") and chance(rng, 0.4):
        types = [pick(rng, "full_attention", "sliding_attention") for _ in range(layers)]
        if family == "gemma3_text" or config["use_sliding_window"]:
            config["layer_types"] = types
    rope_keys(rng, family, config)
    for key in ("head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
                activation, "sliding_window", "max_window_layers", "query_pre_attn_scalar", "sliding_window_pattern",
                "max_position_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"):
        if key in config and chance(rng, 0.12):
            del config[key]
    if family == "qwen2" and "use_sliding_window" not in config:
        config.pop("layer_types", None)  # transformers fails on sliding layers without a window
    if "num_key_value_heads" not in config and family in ("mistral", "qwen2", "gemma3_text"):
        config["num_key_value_heads"] = kv  # their class defaults (8, 32, 4) seldom divide
    if "head_dim" not in config and family != "gemma3_text" and (hidden // heads) % 2:
        config["head_dim"] = size
    if family == "gemma3_text" and "head_dim" not in config and hidden > 64:
        config["head_dim"] = size
    return config


def fill(model, rng, gemma, stored):
    """Weights large enough that log-probs are far from uniform; as the stored dtype rounds them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.standard_normal(tuple(parameter.shape))
            if name.endswith("bias"):
                values *= 0.5
            elif "norm" in name:
                values = (0.0 if gemma else 1.0) + 0.4 * values
            else:
                values *= (2.2 if "embed" in name or "lm_head" in name else 1.4) / np.sqrt(parameter.shape[-1])
            parameter.copy_(torch.from_numpy(values).to(stored))
    model.tie_weights()


def reference(model, prompts):
    """Log-probs of the completions, and how far float32 is from float64 there: no comparison can be finer than that."""
    out, noise = reference_in(model, prompts), 0.0
    noise = distance(reference_in(model.double(), prompts), out)
    model.float()
    return out, noise


def reference_in(model, prompts):
    out = []
    for prompt, completion in prompts:
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        logp = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        out.append(logp[len(prompt) - 1:].float())
    return out


def read(folder, dtype=torch.float32):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager",
                                                                    output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def run(poise, *arguments):
    done = subprocess.run([str(poise), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments[:1]))} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return done.stderr


def score(poise, folder, prompts, adapter=None, dtype="fp32"):
    lines = folder.parent / "input.jsonl"
    lines.write_text("".join(json.dumps({"id": i, "prompt_ids": p, "completion_ids": c}) + "\n" for i, (p, c) in enumerate(prompts)))
    output = folder.parent / "output.jsonl"
    extra = ["--dtype", dtype] + (["--adapter", adapter] if adapter else [])
    said = run(poise, "score", "--model", folder, "--input", lines, "--output", output, *extra)
    read_lines = [json.loads(line) for line in output.read_text().splitlines()]
    return [torch.tensor(line["logprobs"]) for line in read_lines], said


def distance(ours, theirs):
    assert [len(a) for a in ours] == [len(b) for b in theirs]
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs))


def deviation(ours, theirs):
    """Root of the mean square, over all tokens."""
    return (torch.cat(ours) - torch.cat(theirs)).square().mean().sqrt().item()


def make_folder(rng, family, work):
    folder, config = work / "model", draw_config(rng, family)
    stored = pick(rng, torch.float32, torch.bfloat16, torch.float16)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    made = transformers.AutoConfig.from_pretrained(folder)
    assert type(made) is config_class(family)
    model = transformers.AutoModelForCausalLM.from_config(made).float()
    fill(model, rng, family == "gemma3_text", stored)
    model.to(stored).save_pretrained(folder, max_shard_size=pick(rng, "5GB", "20KB", "4KB"))
    # What save_pretrained writes is the newer spelling; the drawn one counts.
    if chance(rng, 0.75):
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder, config, stored


def draw_prompts(rng, vocabulary):
    def ids(count):
        return rng.integers(0, vocabulary, count).tolist()
    return [(ids(int(rng.integers(1, 40))), ids(int(rng.integers(1, 45)))) for _ in range(4)]


def make_adapter(rng, folder, work):
    model = read(folder)
    rank = int(pick(rng, 1, 3, 8))
    config = peft.LoraConfig(r=rank, lora_alpha=float(pick(rng, 1, 4, 16)), use_rslora=bool(chance(rng, 0.3)), task_type="CAUSAL_LM",
                             target_modules=list(rng.choice(ADAPTED, int(rng.integers(1, 8)), replace=False)))
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape)) * 0.4 / np.sqrt(parameter.shape[-1])))
    adapted.save_pretrained(work / "adapter")
    return adapted.eval()


def compare(family, seed, number, poise, has_bf16, work):
    rng = np.random.Generator(np.random.Philox(key=[seed, number * 7 + FAMILIES.index(family)]))
    folder, config, stored = make_folder(rng, family, work)
    prompts = draw_prompts(rng, config["vocab_size"])
    theirs, noise = reference(read(folder), prompts)
    uniform = -float(np.log(config["vocab_size"]))
    result = {"uniform": torch.cat(theirs).sub(uniform).abs().mean().item(), "config": config}
    ours, _ = score(poise, folder, prompts)
    result["plain"], result["noise"] = distance(ours, theirs), {"plain": noise}
    if has_bf16:
        halves, _ = score(poise, folder, prompts, dtype="bf16")
        result["bf16"] = deviation(halves, theirs), deviation(reference_in(read(folder, torch.bfloat16), prompts), theirs)
    adapted = make_adapter(rng, folder, work)
    wanted, noise = reference(adapted, prompts)
    ours, _ = score(poise, folder, prompts, work / "adapter")
    result["adapter"] = distance(ours, wanted)
    run(poise, "merge", "--model", folder, "--adapter", work / "adapter", "--output", work / "merged")
    names = set(load_file(work / "merged/model.safetensors"))
    merged = read(work / "merged")
    assert names <= set(merged.state_dict()), names - set(merged.state_dict())
    result["written"] = distance(reference_in(merged, prompts), wanted)
    result["noise"] |= {"adapter": noise, "written": noise}
    return result


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=30)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--family", choices=FAMILIES)
    arguments.add_argument("--poise", type=pathlib.Path, default=ROOT / "build/release/poise")
    arguments.add_argument("--tolerance", type=float, default=1e-4)
    arguments.add_argument("--bf16", action="store_true", help="the two in bfloat16, too")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    failed, has_bf16 = 0, options.bf16
    for family in [options.family] if options.family else FAMILIES:
        worst, done, sharp, least, ratios = collections.Counter(), 0, 0, 99.0, []
        for number in range(options.first, options.first + options.cases):
            work = pathlib.Path(tempfile.mkdtemp(prefix="poise-compare."))
            try:
                result = compare(family, options.seed, number, options.poise, has_bf16, work)
                if has_bf16:
                    ratios.append(result["bf16"][0] / max(result["bf16"][1], 1e-9))
                if ratios and ratios[-1] > 2:
                    print(f"{family} {number}: bfloat16 deviates by {result['bf16'][0]:.3g}, transformers' by {result['bf16'][1]:.3g}\n"
                          f"  {json.dumps(result['config'])}", flush=True)
                done, least = done + 1, min(least, result["uniform"])
                moves = {key: result[key] for key in ("plain", "adapter", "written")}
                worst |= collections.Counter({k: v for k, v in moves.items() if v > 0})
                over = [key for key in moves if not moves[key] <= options.tolerance]
                # Where float32 itself is that far from float64 a difference says nothing; such cases are counted.
                if over and all(moves[key] <= 4 * result["noise"][key] for key in over):
                    sharp += 1
                elif over:
                    failed += 1
                    print(f"{family} {number}: differs {moves}, float32 from float64 {result['noise']}\n  {json.dumps(result['config'])}", flush=True)
            except Exception as problem:
                failed += 1
                text = json.dumps(json.loads((work / "model/config.json").read_text())) if (work / "model/config.json").exists() else ""
                print(f"{family} {number}: {type(problem).__name__}: {str(problem)[:700]}\n  {text}", flush=True)
            finally:
                shutil.rmtree(work)
        print(f"{family}: {done} of {options.cases} compared; largest difference of a log-prob: "
              + ", ".join(f"{key} {worst[key]:.1e}" for key in ("plain", "adapter", "written"))
              + f"; {sharp} over the tolerance as float32 is, too; least distance from uniform {least:.2f}"
              + (f"; bfloat16's deviation over transformers' own: median {np.median(ratios):.2f}, largest {max(ratios):.2f}" if ratios else ""), flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
