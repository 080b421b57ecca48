#!/usr/bin/env python3
"""Makes the goldens under tests/goldens again: make_goldens.py [qwen_goldens | rl_goldens | ...]. All of them by default."""

import importlib
import sys
from pathlib import Path

import oracle_common  # noqa: F401  first: it sets what torch reads at its start

# bf16_goldens reads what the others wrote, so it comes last.
MAKERS = sorted((path.stem for path in Path(__file__).parent.glob("*_goldens.py")), key=lambda name: (name == "bf16_goldens", name))


def main():
    chosen = sys.argv[1:] or MAKERS
    unknown = [name for name in chosen if name not in MAKERS]
    if unknown:
        raise SystemExit(f"unknown goldens: {', '.join(unknown)}; there are {', '.join(MAKERS)}")
    for name in chosen:
        importlib.import_module(name).main()


if __name__ == "__main__":
    main()
