"""A seed becomes the facts of a closed world: creatures and their traits."""

import json
import random
from pathlib import Path
from typing import NamedTuple

import yaml

from zephyr.config import BadInput

WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
VALUES: dict[str, list[str]] = WORDS["values"]


class World(NamedTuple):
    """The facts.

    `values`: trait -> possible words.
    `causes`: trait -> the trait that decides it: the n-th value of one goes with the n-th of the
    other.
    `creatures`: name -> trait -> value.
    """

    values: dict[str, list[str]]
    causes: dict[str, str]
    creatures: dict[str, dict[str, str]]


def build_world(seed: int) -> World:
    """Return the world of a seed: 90 creatures, each with a home, a gait and a food, and the traits
    that follow from them."""
    rng = random.Random(f"world/{seed}")
    creatures: dict[str, dict[str, str]] = {}
    for name in (head + tail for head in WORDS["heads"] for tail in WORDS["tails"]):
        creatures[name] = {}
        for trait, cause in WORDS["causes"].items():
            n = rng.randrange(len(VALUES[trait]))
            creatures[name] |= {cause: VALUES[cause][n], trait: VALUES[trait][n]}
    return World(VALUES, WORDS["causes"], creatures)


def save_world(world: World, path: Path) -> None:
    """Write the facts as one JSON object with the fields of `World`. The judge reads this file."""
    path.write_text(json.dumps(world._asdict(), indent=1) + "\n", encoding="utf-8")


def load_world(path: Path) -> World:
    """Read what `save_world` wrote. Raises: BadInput if it cannot be read, or a field is
    missing."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return World(*(record[field] for field in World._fields))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: expected a world's facts ({', '.join(World._fields)}): {error!r}"
        ) from None
