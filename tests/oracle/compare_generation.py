#!/usr/bin/env python3
"""Greedy text of small random models against transformers' generate: compare_generation.py POISE [SEED]. Equal wherever the two best
logits differ by more than 1e-3, with ends as numbers, lists, in generation_config.json and in config.json."""

import json
import pathlib
import subprocess
import sys
import tempfile

from oracle_common import random  # first: it sets what torch reads at its start

import torch

from compare_adapters import BASES, write_base

NEW_TOKENS = 40


def theirs(model, ids, ends):
    batch = torch.tensor([ids])
    with torch.no_grad():
        made = model.generate(batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=ends)[0].tolist()
        logits = model(torch.tensor([made])).logits[0].float()
    new = made[len(ids):]
    for at in range(len(new)):
        best = logits[len(ids) - 1 + at].topk(2).values
        if best[0] - best[1] <= 1e-3:
            return new[:at], False
    return new, True


def compare(poise, name, seed, where, as_list, work):
    model = write_base(name, seed, work / "model")
    rng = random(seed, name, "generation")
    prompts = [rng.integers(0, 1280, int(rng.integers(1, 60))).tolist() for _ in range(12)]
    # Ends that come up: tokens that the model chooses by itself.
    chosen = [theirs(model, ids, None)[0] for ids in prompts]
    ends = sorted({new[len(new) // 2] for new in chosen[:3] if new})
    ends = ends if as_list else ends[0]
    for file in ("generation_config.json", "config.json"):
        path = work / "model" / file
        settings = json.loads(path.read_text())
        if file == where:
            settings["eos_token_id"] = ends
        path.write_text(json.dumps(settings))
    if where == "config.json":
        (work / "model/generation_config.json").unlink()
    (work / "in.jsonl").write_text("".join(json.dumps({"id": i, "prompt_ids": ids}) + "\n" for i, ids in enumerate(prompts)))
    subprocess.run([poise, "generate", "--model", str(work / "model"), "--input", str(work / "in.jsonl"), "--output", str(work / "out.jsonl"),
                    "--max-tokens", str(NEW_TOKENS)], check=True)
    same = stopped = cut = 0
    for ids, line in zip(prompts, (work / "out.jsonl").read_text().splitlines()):
        row, (wanted, whole) = json.loads(line), theirs(model, ids, ends)
        found = row["tokens"] if whole else row["tokens"][:len(wanted)]
        assert found == wanted, (name, ids, row["tokens"], wanted)
        same, stopped, cut = same + len(wanted), stopped + (row["finish_reason"] == "stop"), cut + (not whole)
    assert stopped, name
    print(f"{name}, ends {ends} in {where}: {same} tokens equal, {stopped} of {len(prompts)} texts ended, {cut} compared up to a near tie", flush=True)


def main():
    poise, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    torch.set_num_threads(1)
    for name in BASES:
        for where, as_list in (("generation_config.json", True), ("config.json", False)):
            with tempfile.TemporaryDirectory() as work:
                compare(poise, name, seed, where, as_list, pathlib.Path(work))


if __name__ == "__main__":
    main()
