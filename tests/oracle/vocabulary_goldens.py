"""tests/goldens/vocabularies: hashes of what transformers makes of generated strings with real vocabularies.

The vocabularies (tests/oracle/vocabularies) are too big to be committed, and so are ids of 20,000 strings each: what is kept is one
SHA-256 for a thousand strings, over ids (beginning-of-text token included where transformers adds it) and decoded texts."""

import hashlib
import json
import os
import pathlib
import struct

from oracle_common import GOLDENS, ROOT, versions

from transformers import AutoTokenizer

import vocabulary_text

STRINGS, BLOCK = 20000, 1000


def folder():
    return pathlib.Path(os.environ.get("POISE_VOCABULARIES", ROOT / "build/vocabularies"))


def bytes_of(text):
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def record(tokenizer, ids):
    return (struct.pack(f"<I{len(ids)}i", len(ids), *ids) + bytes_of(tokenizer.decode(ids))
            + bytes_of(tokenizer.decode(ids, skip_special_tokens=True)))


def blocks(tokenizer):
    groups = vocabulary_text.alphabets()
    size = len(tokenizer)
    hashes = []
    for first in range(0, STRINGS, BLOCK):
        digest = hashlib.sha256()
        for number in range(first, first + BLOCK):
            digest.update(record(tokenizer, tokenizer.encode(vocabulary_text.string(groups, number))))
            digest.update(record(tokenizer, vocabulary_text.some_ids(size, number)))
        hashes.append(digest.hexdigest())
    return hashes


def main():
    known = GOLDENS / "vocabularies/hashes.json"
    result = {"about": "SHA-256 of ids and decoded texts per 1,000 generated strings; see tests/oracle/vocabulary_goldens.py",
              "versions": versions("transformers", "tokenizers"), "strings": STRINGS, "block": BLOCK, "vocabularies": {}}
    for place in sorted(p for p in folder().iterdir() if (p / "config.json").exists()):
        tokenizer = AutoTokenizer.from_pretrained(place)
        result["vocabularies"][place.name] = {"class": type(tokenizer).__name__, "size": len(tokenizer), "blocks": blocks(tokenizer)}
        print(place.name, type(tokenizer).__name__, len(tokenizer), flush=True)
    known.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
