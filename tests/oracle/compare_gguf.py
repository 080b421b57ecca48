#!/usr/bin/env python3
"""Compares what `poise convert FILE.gguf DIR` wrote with what transformers makes of the same file: compare_gguf.py FILE.gguf DIR."""

import json
import pathlib
import sys
import tempfile

import oracle_common  # noqa: F401  first: it sets what torch reads at its start

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tricky_text import strings


def compare_weights(file, folder):
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32,
                                                  quantization_config=GgufConfig(dequantize=True)).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    different = [name for name, value in theirs.items() if not torch.equal(value, ours[name])]
    assert not different, different
    print(f"weights: {len(ours)} tensors, {sum(v.numel() for v in ours.values())} values, equal to the bit")


def canonical(value):
    """tokenizer.json without what has no effect on ids: merges are compared whole, the vocabulary as a map."""
    return json.loads(json.dumps(value), object_pairs_hook=lambda pairs: dict(sorted(pairs)))


def compare_tokenizers(file, folder):
    theirs, ours = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as saved:
        theirs.save_pretrained(saved)
        a = canonical(json.loads((pathlib.Path(saved) / "tokenizer.json").read_text()))
    b = canonical(json.loads((pathlib.Path(folder) / "tokenizer.json").read_text()))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            print(f"tokenizer.json differs in '{key}': {str(a.get(key))[:300]} ... {str(b.get(key))[:300]}")
    count = 0
    for text in strings(5, 3000):
        assert theirs.encode(text) == ours.encode(text), text
        ids = theirs.encode(text)
        assert theirs.decode(ids) == ours.decode(ids), text
        count += 1
    assert theirs.chat_template == ours.chat_template
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(theirs, name) == getattr(ours, name), name
    print(f"tokenizer: tokenizer.json {'equal' if a == b else 'differs'}, {count} texts with equal ids")


def main():
    file, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    torch.set_num_threads(1)
    compare_tokenizers(file, folder)
    compare_weights(file, folder)


if __name__ == "__main__":
    main()
