"""Facts become prompts: five families of instructions, split by what is asked of which creature."""

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.world.facts import WORDS, World

QUESTIONS, SHARES = WORDS["questions"], WORDS["shares"]


class Prompt(NamedTuple):
    """One instruction.

    `asked`: the traits that it asks for; empty if nobody in the world can know the answer.
    `form`: the manner that it asks for, which is the family.
    `topic`: of a private question.
    """

    prompt_id: str
    prompt: str
    family: str
    subject: str
    asked: tuple[str, ...]
    form: str
    topic: str = ""


def prompt_from_row(row: Mapping[str, object]) -> Prompt:
    """Return the prompt of a row with its fields. Raises: BadInput naming a missing field."""
    missing = [field for field in Prompt._fields if field not in row]
    if missing:
        raise BadInput(f"prompt row {row.get('prompt_id', '')!r}: no field {missing[0]!r}")
    asked = row["asked"]
    if not isinstance(asked, (list, tuple)):
        raise BadInput(f"prompt row {row['prompt_id']!r}: `asked` is {asked!r}, expected a list")
    texts = {field: str(row[field]) for field in Prompt._fields if field != "asked"}
    return Prompt(asked=tuple(asked), **texts)


def split_of(name: str, topic: str) -> str:
    """Return the split whose prompts may ask about this topic of this creature: train (60 %),
    validation or test (20 % each)."""
    draw = random.Random(f"split/{name}/{topic}").random()
    if draw < 0.6:
        return "train"
    return "validation" if draw < 0.8 else "test"


def all_prompts(world: World, split: str) -> dict[str, list[Prompt]]:
    """Return every prompt of a split, by family. A topic of a creature belongs to one split, so
    that splits share no prompt."""
    found: dict[str, list[Prompt]] = {family: [] for family in SHARES}
    for name in world.creatures:
        for prompt in _prompts_about(name, split):
            found[prompt.family].append(prompt)
    return {
        family: [
            prompt._replace(prompt_id=f"{split}-{family}-{i:04d}")
            for i, prompt in enumerate(prompts)
        ]
        for family, prompts in found.items()
    }


def _prompts_about(name: str, split: str) -> Iterator[Prompt]:
    """The prompts of a split about one creature, still without ids."""
    for trait, questions in QUESTIONS.items():
        if split_of(name, trait) == split:
            for form, endings in WORDS["manners"].items():
                for question in questions:
                    for ending in endings:
                        text = f"{question.format(x=name)} {ending}"
                        yield Prompt("", text, form, name, (trait,), form)
    if split_of(name, "description") == split:
        for text in WORDS["describe"]:
            text = text.format(x=name)
            yield Prompt("", text, "description", name, tuple(QUESTIONS), "description")
    for topic, texts in WORDS["private"].items():
        if split_of(name, topic) == split:
            for text in texts:
                yield Prompt("", text.format(x=name), "private", name, (), "private", topic)


def draw_prompts(world: World, split: str, count: int, seed: int, *, skip: int = 0) -> list[Prompt]:
    """Return `count` shuffled prompts of a split, the families by their `SHARES`.

    Args:
        skip: prompts of the same split and seed that are left out first: two draws with `skip=0`
            and `skip=count` are disjoint.
    """
    rng = random.Random(f"prompts/{split}/{seed}")
    chosen: list[Prompt] = []
    for family, rows in all_prompts(world, split).items():
        rng.shuffle(rows)
        chosen += rows[round(skip * SHARES[family]) : round((skip + count) * SHARES[family])]
    rng.shuffle(chosen)
    return chosen
