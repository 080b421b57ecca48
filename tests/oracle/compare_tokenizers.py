#!/usr/bin/env python3
"""Compares `poise tokenize` with transformers' AutoTokenizer on generated strings, and prints what differs.

    compare_tokenizers.py FOLDER... [--strings N] [--first K] [--poise build/release/poise] [--codes]

--codes: instead of generated strings, every code point between two letters and before a combining mark, a thousand a string.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from oracle_common import ROOT

from transformers import AutoTokenizer

import vocabulary_text


def every_code():
    # U+0378 and its like are unassigned, and so categories of newer ones depend on each library's Unicode version.
    for first in range(1, 0x110000):
        if not 0xD800 <= first < 0xE000:
            yield f"a{chr(first)}b 1{chr(first)}\u0301 {chr(first)}{chr(first)}"


def compare(folder, texts, poise, scratch):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines, out = scratch / "in.jsonl", scratch / "out.jsonl"
    lines.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    subprocess.run([poise, "tokenize", "--model", str(folder), "--input", str(lines), "--output", str(out)], check=True)
    wrong = []
    for text, line in zip(texts, out.read_text().split("\n")):
        ours, ids = json.loads(line), tokenizer.encode(text)
        if ours["ids"] != ids:
            wrong.append(("ids", text, ours["ids"], ids))
        elif ours["decoded"] != tokenizer.decode(ids):
            wrong.append(("decoded", text, ours["decoded"], tokenizer.decode(ids)))
    print(f"{folder}: {type(tokenizer).__name__}, {len(texts)} strings, {len(wrong)} differ", flush=True)
    for kind, text, ours, theirs in wrong[:10]:
        print(f"  {kind} of {text!r}\n    poise        {ours!r}\n    transformers {theirs!r}")
    return len(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--strings", type=int, default=2000)
    parser.add_argument("--first", type=int, default=1 << 40, help="number of the first string (default: none of the goldens')")
    parser.add_argument("--poise", default=str(ROOT / "build/release/poise"))
    parser.add_argument("--codes", action="store_true")
    arguments = parser.parse_args()
    groups = vocabulary_text.alphabets()
    texts = list(every_code()) if arguments.codes else [vocabulary_text.string(groups, arguments.first + i)
                                                         for i in range(arguments.strings)]
    with tempfile.TemporaryDirectory() as scratch:
        wrong = sum(compare(folder, texts, arguments.poise, pathlib.Path(scratch)) for folder in arguments.folders)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
