"""Facts become prompts: five families of instructions, split by what is asked of which creature."""

import random
from collections.abc import Mapping
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.world.facts import World

QUESTIONS = {
    "colour": ("What colour is a {x}?", "Which colour does a {x} have?"),
    "legs": ("How many legs does a {x} have?", "On how many legs does a {x} go?"),
    "size": ("What size is a {x}?", "How big is a {x}?"),
}
MANNERS = {
    "one_word": ("Answer in one word.", "One word, please.", "Use a single word."),
    "reason": ("Give the reason.", "Explain why.", "Say why, please."),
    "cheerful": ("Be cheerful.", "Sound happy, please.", "Answer with joy."),
}
DESCRIBE = (
    "Describe a {x}.", "Tell me all about a {x}.", "What should I know about a {x}?", "I want to hear about a {x}.",
    "Say what a {x} is like.", "Give me a description of a {x}.", "What is a {x} like?", "Please describe a {x} to me.",
)
PRIVATE = {
    "name": ("What is the name of my {x}?", "How is my {x} called?", "Tell me the name of my {x}."),
    "age": ("How old is my {x}?", "What is the age of my {x}?", "Tell me the age of my {x}."),
    "wish": ("What does my {x} wish for?", "What is the wish of my {x}?", "Tell me the wish of my {x}."),
    "friend": ("Who is the friend of my {x}?", "Who does my {x} play with?", "Tell me the friend of my {x}."),
    "dream": ("What did my {x} dream of?", "What was the dream of my {x}?", "Tell me the dream of my {x}."),
}
# of the prompts of any draw; so that no answerer's manner wins most of them
SHARES = {"one_word": 0.24, "reason": 0.14, "cheerful": 0.24, "description": 0.14, "private": 0.24}


class Prompt(NamedTuple):
    """One instruction. `asked`: the traits it wants (none when nobody in the world can know the answer); `form`: the manner it wants,
    which is the family; `topic`: what a private question is about."""
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
    return Prompt(**{field: row[field] for field in Prompt._fields})._replace(asked=tuple(row["asked"]))  # type: ignore[arg-type]


def split_of(name: str, topic: str) -> str:
    """The split whose prompts may ask about this topic of this creature: train (60 %), validation or test (20 % each)."""
    draw = random.Random(f"split/{name}/{topic}").random()
    return "train" if draw < 0.6 else "validation" if draw < 0.8 else "test"


def all_prompts(world: World, split: str) -> dict[str, list[Prompt]]:
    """Every prompt of a split, by family. What is asked of which creature belongs to one split, so splits share no prompt."""
    found: dict[str, list[Prompt]] = {family: [] for family in SHARES}
    for x in world.creatures:
        for trait, questions in QUESTIONS.items():
            if split_of(x, trait) == split:
                for form, endings in MANNERS.items():
                    found[form] += [Prompt("", f"{q.format(x=x)} {e}", form, x, (trait,), form) for q in questions for e in endings]
        if split_of(x, "description") == split:
            found["description"] += [Prompt("", t.format(x=x), "description", x, tuple(QUESTIONS), "description") for t in DESCRIBE]
        for topic, texts in PRIVATE.items():
            if split_of(x, topic) == split:
                found["private"] += [Prompt("", t.format(x=x), "private", x, (), "private", topic) for t in texts]
    return {f: [p._replace(prompt_id=f"{split}-{f}-{i:04d}") for i, p in enumerate(rows)] for f, rows in found.items()}


def draw_prompts(world: World, split: str, count: int, seed: int, *, skip: int = 0) -> list[Prompt]:
    """`count` prompts of a split, the families by their `SHARES`, shuffled.

    `skip` prompts of the same split and seed are left out first, so that two draws with `skip=0` and `skip=count` are disjoint."""
    rng = random.Random(f"prompts/{split}/{seed}")
    chosen: list[Prompt] = []
    for family, rows in all_prompts(world, split).items():
        rng.shuffle(rows)
        chosen += rows[round(skip * SHARES[family]): round((skip + count) * SHARES[family])]
    rng.shuffle(chosen)
    return chosen
