#!/usr/bin/env python3
"""Makes the goldens under tests/goldens again: make_goldens.py [qwen_goldens | rl_goldens | ...]. All of them by default."""

import importlib
import sys

import oracle_common  # noqa: F401  first: it sets what torch reads at its start

MAKERS = ["qwen_goldens", "family_goldens", "picture_goldens", "lora_goldens", "rl_goldens", "optimizer_goldens", "text_goldens", "tokenizer_goldens", "image_goldens",
          "score_goldens", "gguf_goldens"]


def main():
    chosen = sys.argv[1:] or MAKERS
    unknown = [name for name in chosen if name not in MAKERS]
    if unknown:
        raise SystemExit(f"unknown goldens: {', '.join(unknown)}; there are {', '.join(MAKERS)}")
    for name in chosen:
        importlib.import_module(name).main()


if __name__ == "__main__":
    main()
