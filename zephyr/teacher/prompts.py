"""A row becomes the prompt that a teacher is asked, as chat messages, and the text of it that a
judge reads."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.data.shapes import prompt_turns

Row = dict[str, object]
Turns = list[dict[str, object]]


def read_prompts(sources: Sequence[str], unread: Counter[str] | None = None) -> Iterator[Row]:
    """Yield the rows of the sources with `prompt` as `prompt_of` makes it, and `prompt_id`: the
    row's own, else its `id`, else the SHA-256 of the prompt.

    Args:
        unread: counts the rows by each key that nothing reads.
    Raises:
        BadInput: with file and line of a row without a prompt, or of a prompt id that comes twice.
    """
    first_place: dict[str, str] = {}

    def read(row: Mapping[str, object]) -> Row:
        prompt, keys = prompt_of(row)
        if unread is not None:
            unread.update(dict.fromkeys(keys, 1))
        return {**row, "prompt": prompt}

    for place, row in read_rows(sources, read):
        digest = hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()
        prompt_id = str(row.get("prompt_id", row.get("id", digest)))
        if prompt_id in first_place:
            raise BadInput(
                f"{place}: prompt_id {prompt_id!r} comes twice, first at {first_place[prompt_id]}"
            )
        first_place[prompt_id] = place
        yield {**row, "prompt_id": prompt_id}


def prompt_of(row: Mapping[str, object]) -> tuple[str | Turns, list[str]]:
    """Return the prompt of a row and the keys that nothing reads.

    Returns:
        A text if the prompt is a single turn, otherwise its turns.
    Raises:
        ValueError: naming the field. Also for a field that means something in training and that a
            teacher cannot be given, like `tools`.
    """
    try:
        turns, unread = prompt_turns(row)
    except ValueError as error:
        advice = "; take it out of the rows, or put it into the prompt"
        raise ValueError(re.sub(r"; data\..*", advice, str(error))) from None
    if len(turns) > 1:
        return [dict(turn) for turn in turns], unread
    return str(turns[0]["content"]), unread


def turns_of(prompt: object) -> Turns:
    """Return the prompt as chat messages.

    Args:
        prompt: a text, or turns, as `prompt_of` returns it.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        return prompt
    raise TypeError(f"the prompt is {type(prompt).__name__}, expected a text or a list of turns")


def format_prompt(row: Mapping[str, object]) -> str:
    """Return the `prompt` of a row as a judge reads it: each turn of a dialogue with its role."""
    prompt = row["prompt"]
    if isinstance(prompt, list):
        return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in prompt)
    return str(prompt)
