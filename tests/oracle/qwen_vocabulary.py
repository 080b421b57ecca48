#!/usr/bin/env python3
"""Qwen2.5's own vocabulary, and what it makes of 20,000 generated strings.

    qwen_vocabulary.py --output DIR [--archive llama_cpp_python-*.tar.gz] [--update]

Takes the vocabulary from the source archive of the package llama-cpp-python (downloaded by pip where --archive is not given), writes
DIR/tokenizer.json, tokenizer_config.json, strings.jsonl (id, text) and expected.jsonl (id, ids, offsets), and compares the ids
with tests/goldens/text/qwen2_5_hashes.json. --update writes that file anew.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

from oracle_common import GOLDENS, versions, write_json

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer

import tricky_text
from quickstart_vocabulary import config, empty_tokenizer

PACKAGE = "llama-cpp-python==0.3.36"
HASHES = GOLDENS / "text/qwen2_5_hashes.json"
COUNT, BLOCK, SEED = 20000, 100, "qwen2_5"
ORDINARY = 151643
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
           "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
# Added too, but ordinary text for skip_special_tokens.
ADDED = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]


def download(folder):
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--no-binary",
                    "llama-cpp-python", "-d", str(folder), PACKAGE], check=True)
    return next(pathlib.Path(folder).glob("llama_cpp_python-*.tar.gz"))


def unpack(archive, folder):
    """Returns the path of the vocabulary file in the archive, unpacked into `folder`."""
    with tarfile.open(archive) as tar:
        member = next(m for m in tar if m.name.endswith("models/ggml-vocab-qwen2.gguf"))
        member.name = "qwen2.gguf"
        tar.extract(member, folder, filter="data")
    return pathlib.Path(folder) / "qwen2.gguf"


def strings_of(field):
    return [bytes(field.parts[i]).decode("utf-8") for i in field.data]


def tokenizer_of(path):
    fields = GGUFReader(path).fields
    tokens, merges = (strings_of(fields[f"tokenizer.ggml.{name}"]) for name in ("tokens", "merges"))
    tokenizer = empty_tokenizer()
    vocabulary = {token: index for index, token in enumerate(tokens[:ORDINARY])}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer.model = models.BPE(vocab=vocabulary, merges=pairs, fuse_unk=False, byte_fallback=False)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    assert tokenizer.token_to_id("<|im_end|>") == 151645 and tokenizer.token_to_id("<|image_pad|>") == 151655
    return tokenizer


def write_folder(tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    added = {str(ORDINARY + i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                                 "special": i < len(SPECIAL)} for i, text in enumerate(SPECIAL + ADDED)}
    write_json(folder / "tokenizer_config.json", config() | {"added_tokens_decoder": added, "additional_special_tokens": SPECIAL[1:]}, 2)


def hashes(rows):
    """One SHA-256 per block of strings, over the ids in decimal."""
    out = []
    for start in range(0, len(rows), BLOCK):
        text = "\n".join(" ".join(map(str, row["ids"])) for row in rows[start:start + BLOCK])
        out.append(hashlib.sha256(text.encode()).hexdigest())
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--archive", type=pathlib.Path)
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = tokenizer_of(unpack(arguments.archive or download(scratch), scratch))
    write_folder(tokenizer, arguments.output)
    texts = tricky_text.BY_HAND + tricky_text.strings(SEED, COUNT - len(tricky_text.BY_HAND))
    through_class = AutoTokenizer.from_pretrained(arguments.output)
    rows = []
    for index, text in enumerate(texts):
        made = tokenizer.encode(text, add_special_tokens=False)
        if index % 20 == 0:
            assert through_class.encode(text, add_special_tokens=False) == made.ids, text
        rows.append({"id": str(index), "ids": made.ids, "offsets": made.offsets})
    for name, lines in (("strings.jsonl", [{"id": str(i), "text": t} for i, t in enumerate(texts)]), ("expected.jsonl", rows)):
        (arguments.output / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = hashes(rows)
    if arguments.update:
        write_json(HASHES, {"versions": versions("tokenizers", "transformers") | {"vocabulary": PACKAGE}, "seed": SEED, "count": COUNT,
                            "block": BLOCK, "about": "SHA-256 of the ids of each block: decimal, blanks between ids, line breaks "
                            "between strings, none at the end", "sha256": made})
    differing = [i for i, (a, b) in enumerate(zip(made, json.loads(HASHES.read_text())["sha256"], strict=True)) if a != b]
    if differing:
        raise SystemExit(f"ids differ from the hashes in blocks {differing[:10]}")
    print(f"{len(texts)} strings in {arguments.output}, as the hashes say")


if __name__ == "__main__":
    main()
