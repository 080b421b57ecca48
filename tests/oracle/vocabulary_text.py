"""Strings and ids for vocabularies, made by the same rule here and in tests/parity/vocabularies.c: what both draw from stands
in tests/goldens/vocabularies/alphabets.json."""

import json

from oracle_common import GOLDENS

ALPHABETS = GOLDENS / "vocabularies/alphabets.json"
MASK = (1 << 64) - 1


class Draws:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed * 0x9E3779B97F4A7C15 & MASK

    def below(self, count):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        value = self.state
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
        return (value ^ value >> 31) % count


def alphabets():
    return json.loads(ALPHABETS.read_text())["groups"]


def item(group, draws):
    if "pieces" in group:
        return group["pieces"][draws.below(len(group["pieces"]))]
    first, last = group["ranges"][draws.below(len(group["ranges"]))]
    return chr(first + draws.below(last - first + 1))


def string(groups, number):
    """One to eight runs, each of one group; now and then a run is one item many times."""
    draws = Draws(number + 1)
    total = sum(group["weight"] for group in groups)
    parts = []
    for _ in range(1 + draws.below(8)):
        place = draws.below(total)
        group = next(g for i, g in enumerate(groups) if place < sum(h["weight"] for h in groups[:i + 1]))
        if draws.below(40) == 0:
            parts.append(item(group, draws) * (20 + draws.below(100)))
        else:
            parts.extend(item(group, draws) for _ in range(1 + draws.below(group["most"])))
    return "".join(parts)


def some_ids(size, number):
    draws = Draws((1 << 32) + number)
    return [draws.below(size) for _ in range(1 + draws.below(12))]
