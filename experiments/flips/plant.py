"""Exchange the answers of some pairs, chosen at random: labels that are wrong on purpose.

    python experiments/flips/plant.py pairs.jsonl flipped.jsonl [--share 0.05] [--seed 0]

It writes all rows of `prompt`, `chosen` and `rejected` in their order, those that are flipped with
`"planted": true`. Keys that belong to an answer (`score_chosen`, `rejected_model`) go with it:
a wrong label comes from a judge who gave the wrong scores.
"""

import argparse
import random
from collections.abc import Mapping
from pathlib import Path

from zephyr.data.jsonl import read_rows, write_rows


def flip(row: Mapping[str, object]) -> dict[str, object]:
    """The row with `chosen` and `rejected` exchanged in all of its keys."""
    turned = {"chosen": "rejected", "rejected": "chosen"}
    flipped: dict[str, object] = {}
    for key, value in row.items():
        words = [turned.get(word, word) for word in key.split("_")]
        flipped["_".join(words)] = value
    return {**{key: flipped[key] for key in row if key in flipped}, **flipped, "planted": True}


def plant(rows: list[dict[str, object]], share: float, seed: int) -> list[dict[str, object]]:
    """All rows, a share of them flipped. Each row keeps or gets an id."""
    chosen = set(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    named = [{"id": f"pair-{i}", **row} for i, row in enumerate(rows)]
    return [flip(row) if i in chosen else row for i, row in enumerate(named)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [row for _, row in read_rows([options.pairs])]
    planted = plant(rows, options.share, options.seed)
    write_rows(options.out, planted)
    print(f"{options.out}: {len(planted)} rows, {sum('planted' in row for row in planted)} flipped")


if __name__ == "__main__":
    main()
