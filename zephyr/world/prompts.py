"""Facts become prompts: five families of instructions, split by what is asked of which creature."""

import random
from collections.abc import Mapping
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.world.facts import WORDS, World

QUESTIONS, SHARES = WORDS["questions"], WORDS["shares"]


class Prompt(NamedTuple):
    """One instruction. `asked`: the traits it wants (none when nobody in the world can know the
    answer); `form`: the manner it wants, which is the family; `topic`: what a private question is
    about."""

    prompt_id: str
    prompt: str
    family: str
    subject: str
    asked: tuple[str, ...]
    form: str
    topic: str = ""


def prompt_from_row(row: Mapping[str, object]) -> Prompt:
    """The prompt of a row that holds its fields. Raises: BadInput naming a missing field."""
    if missing := [field for field in Prompt._fields if field not in row]:
        raise BadInput(f"prompt row {row.get('prompt_id', '')!r}: no field {missing[0]!r}")
    return Prompt(**{field: row[field] for field in Prompt._fields})._replace(
        asked=tuple(row["asked"])
    )  # type: ignore[arg-type]


def split_of(name: str, topic: str) -> str:
    """The split whose prompts may ask about this topic of this creature: train (60 %), validation
    or test (20 % each)."""
    draw = random.Random(f"split/{name}/{topic}").random()
    return "train" if draw < 0.6 else "validation" if draw < 0.8 else "test"


def all_prompts(world: World, split: str) -> dict[str, list[Prompt]]:
    """Every prompt of a split, by family. What is asked of which creature belongs to one split, so
    splits share no prompt."""
    found: dict[str, list[Prompt]] = {family: [] for family in SHARES}
    for x in world.creatures:
        for trait, questions in QUESTIONS.items():
            if split_of(x, trait) == split:
                for form, endings in WORDS["manners"].items():
                    found[form] += [
                        Prompt("", f"{q.format(x=x)} {e}", form, x, (trait,), form)
                        for q in questions
                        for e in endings
                    ]
        if split_of(x, "description") == split:
            found["description"] += [
                Prompt("", t.format(x=x), "description", x, tuple(QUESTIONS), "description")
                for t in WORDS["describe"]
            ]
        for topic, texts in WORDS["private"].items():
            if split_of(x, topic) == split:
                found["private"] += [
                    Prompt("", t.format(x=x), "private", x, (), "private", topic) for t in texts
                ]
    return {
        f: [p._replace(prompt_id=f"{split}-{f}-{i:04d}") for i, p in enumerate(rows)]
        for f, rows in found.items()
    }


def draw_prompts(world: World, split: str, count: int, seed: int, *, skip: int = 0) -> list[Prompt]:
    """`count` prompts of a split, the families by their `SHARES`, shuffled.

    `skip` prompts of the same split and seed are left out first, so that two draws with `skip=0`
    and `skip=count` are disjoint."""
    rng = random.Random(f"prompts/{split}/{seed}")
    chosen: list[Prompt] = []
    for family, rows in all_prompts(world, split).items():
        rng.shuffle(rows)
        chosen += rows[round(skip * SHARES[family]) : round((skip + count) * SHARES[family])]
    rng.shuffle(chosen)
    return chosen
