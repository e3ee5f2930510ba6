"""A row becomes the prompt that a teacher is asked, as turns, and the text that a judge reads."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.data.shapes import prompt_turns

Row = dict[str, object]


def read_prompts(sources: Sequence[str], unread: Counter[str] | None = None) -> Iterator[Row]:
    """Prompt rows with `prompt_id` and `prompt`; `unread`: counts the keys that nothing reads.
    Raises: BadInput naming file and line."""
    seen: dict[str, str] = {}

    def read(row: Mapping[str, object]) -> Row:
        prompt, keys = prompt_of(row)
        if unread is not None:
            unread.update(dict.fromkeys(keys, 1))
        return {**row, "prompt": prompt}

    for place, row in read_rows(sources, read):
        name = str(
            row.get(
                "prompt_id",
                row.get("id", hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()),
            )
        )
        if name in seen:
            raise BadInput(f"{place}: prompt_id {name!r} comes twice, first at {seen[name]}")
        seen[name] = place
        yield {**row, "prompt_id": name}


def prompt_of(row: Mapping[str, object]) -> tuple[str | list[dict[str, str]], list[str]]:
    """The prompt of a row, its text, or its turns where there are several; and the keys that
    nothing reads.

    Raises: ValueError naming the field: also one that training would honour or refuse, and that
    nobody who is asked could be given."""
    try:
        turns, unread = prompt_turns(row)
    except ValueError as error:
        raise ValueError(
            re.sub(
                r"; data\..*", "; take it out of the rows, or put it into the prompt", str(error)
            )
        ) from None
    return turns[0]["content"] if len(turns) == 1 else [dict(turn) for turn in turns], unread


def turns_of(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def format_prompt(row: Row) -> str:
    """A prompt as the judge reads it: turns of a dialogue are marked."""
    return (
        "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in p)
        if isinstance(p := row["prompt"], list)
        else p
    )
