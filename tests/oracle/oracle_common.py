"""What the makers of goldens share: versions, deterministic random numbers, files."""

import importlib.metadata
import json
import os
import pathlib
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The same bits on every run: else MKL picks its code by the alignment of the operands.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests/goldens"


def versions(*names):
    return {name: importlib.metadata.version(name) for name in names}


def random(*key):
    """A random generator for what the key names; the same on every machine."""
    return np.random.Generator(np.random.Philox(zlib.crc32("/".join(map(str, key)).encode())))


def write_json(path, value, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def as_floats(tensor):
    """Nested lists of doubles: JSON then reads back to the same bits."""
    return tensor.detach().double().tolist()
