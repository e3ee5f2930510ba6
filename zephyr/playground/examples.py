"""Prompts to try on a model: those of a file, or those that its run answered while it trained."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from zephyr.data.jsonl import read_rows
from zephyr.teacher.prompts import read_prompts

GENERAL = (
    "Explain why the sky is blue, in two sentences.",
    "Write a polite reply to a friend who is late again.",
    "How can I learn to cook on a small budget?",
    "What is the difference between a virus and a bacterium?",
)
MOST_PROMPTS = 5
MOST_CHARACTERS = 150


def example_prompts(models: Sequence[str], source: str | None) -> list[str]:
    """At most `MOST_PROMPTS` short prompts of a single turn.

    They are those of `source`; without one, those in the samples.jsonl of the run that made one of
    the models (`runs/dpo` made `runs/dpo/model`); without that, none.
    Raises: BadInput for a file that cannot be read.
    """
    if source is not None:
        return first_short(row["prompt"] for row in read_prompts([source]))
    for model in models:
        samples = Path(model.removeprefix("hf:")).parent / "samples.jsonl"
        if samples.is_file():
            return first_short(row.get("prompt") for _, row in read_rows([samples]))
    return []


def first_short(prompts: Iterator[object]) -> list[str]:
    """The first different texts of at most `MOST_CHARACTERS` characters; turns are left out."""
    found: list[str] = []
    for prompt in prompts:
        is_short = isinstance(prompt, str) and len(prompt) <= MOST_CHARACTERS
        if is_short and prompt not in found:
            found.append(str(prompt))
        if len(found) == MOST_PROMPTS:
            break
    return found
