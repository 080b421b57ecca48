#!/usr/bin/env python3
"""Real models against transformers in fp32: log-probs within 1e-4, greedy text equal wherever the two best logits differ by
more than 1e-3. compare_real.py POISE FILE.gguf...: each file is converted by POISE and read by transformers as it is."""

import json
import pathlib
import subprocess
import sys
import tempfile

import oracle_common  # noqa: F401  first: it sets what torch reads at its start

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

NEW_TOKENS = 24
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome. Both are old cities with many churches.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # prints 5\n",
    "If a train leaves at 10:45 and needs 2 hours and 30 minutes, it arrives at 13:15. Question: when does it arrive if it is 20 minutes late?",
    "Na\u00efve caf\u00e9 \u2014 \u4f60\u597d, \u043f\u0440\u0438\u0432\u0435\u0442! \U0001f642 1,234.50\t(tab)",
    "Once upon a time, in a small village by the sea, there lived a girl who " * 12,
]


def run(poise, command, folder, lines, *options):
    with tempfile.TemporaryDirectory() as work:
        path = pathlib.Path(work)
        (path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        subprocess.run([poise, command, "--model", str(folder), "--input", str(path / "in.jsonl"), "--output", str(path / "out.jsonl"),
                        "--threads", "2", *options], check=True)
        return [json.loads(line) for line in (path / "out.jsonl").read_text().splitlines()]


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def compare_scores(poise, folder, model, prompts):
    lines = [{"id": i, "prompt_ids": ids[:4], "completion_ids": ids[4:]} for i, ids in enumerate(prompts)]
    worst, count = 0.0, 0
    for ids, row in zip(prompts, run(poise, "score", folder, lines)):
        logp = torch.log_softmax(logits_of(model, ids).double(), -1)
        wanted = [logp[at, ids[at + 1]].item() for at in range(3, len(ids) - 1)]
        worst = max([worst] + [abs(a - b) for a, b in zip(wanted, row["logprobs"], strict=True)])
        count += len(wanted)
    return worst, count


def compare_greedy(poise, folder, model, prompts):
    """Each token that Poise chose is transformers' best one, given the tokens before it."""
    lines = [{"id": i, "prompt_ids": ids} for i, ids in enumerate(prompts)]
    same = close = 0
    for ids, row in zip(prompts, run(poise, "generate", folder, lines, "--max-tokens", str(NEW_TOKENS))):
        logits = logits_of(model, ids + row["tokens"])
        for at, token in enumerate(row["tokens"], len(ids) - 1):
            best = logits[at].topk(2)
            if best.values[0] - best.values[1] <= 1e-3:
                close += 1
                continue
            assert int(best.indices[0]) == token, (row["id"], at, int(best.indices[0]), token)
            same += 1
    return same, close


def main():
    poise, files = sys.argv[1], [pathlib.Path(name).resolve() for name in sys.argv[2:]]
    torch.set_num_threads(1)
    for file in files:
        with tempfile.TemporaryDirectory() as work:
            folder = pathlib.Path(work) / "model"
            subprocess.run([poise, "convert", str(file), str(folder)], check=True)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager",
                                                         quantization_config=GgufConfig(dequantize=True)).eval()
            prompts = [tokenizer.encode(text) for text in TEXTS]
            worst, count = compare_scores(poise, folder, model, prompts)
            print(f"{file.name}: largest difference of {count} log-probs {worst:.2e}", flush=True)
            assert worst <= 1e-4, worst
            same, close = compare_greedy(poise, folder, model, [ids[:12] for ids in prompts])
            print(f"{file.name}: {same} greedy tokens equal, {close} more within 1e-3 of the next", flush=True)


if __name__ == "__main__":
    main()
