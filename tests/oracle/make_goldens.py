#!/usr/bin/env python3
"""Makes the goldens under tests/goldens again: make_goldens.py [qwen_goldens | rl_goldens | ...]. All of them by default."""

import importlib
import sys
from pathlib import Path

import oracle_common  # noqa: F401  first: it sets what torch reads at its start

<<<<<<< HEAD
MAKERS = sorted(path.stem for path in Path(__file__).parent.glob("*_goldens.py"))
=======
MAKERS = ["qwen_goldens", "family_goldens", "picture_goldens", "lora_goldens", "rl_goldens", "optimizer_goldens", "text_goldens", "image_goldens",
          "score_goldens", "gguf_goldens", "bf16_goldens"]
>>>>>>> 9dd3b4e (Models in bf16: the tape, the published copy, KV caches, saving; precision: bf16 and --dtype bf16; goldens of transformers' own bf16)


def main():
    chosen = sys.argv[1:] or MAKERS
    unknown = [name for name in chosen if name not in MAKERS]
    if unknown:
        raise SystemExit(f"unknown goldens: {', '.join(unknown)}; there are {', '.join(MAKERS)}")
    for name in chosen:
        importlib.import_module(name).main()


if __name__ == "__main__":
    main()
