"""The keys that mean something in a row: their lists, their spellings, and `data.columns`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

from zephyr.chat.names import (
    LABELS,
    MASKS,
    is_mark,
    plain,
    restore_spelling,
    unify_keys,
)
from zephyr.data.pair_shapes import PAIRS
from zephyr.data.pair_shapes import SIDES as PAIR_SIDES
from zephyr.data.ratings import NOT_PREFERRED, SIDES, Tie, may_be_verdict, rating_keys
from zephyr.data.rows import Row
from zephyr.data.sft_shapes import TEXTS

T = TypeVar("T")
SYSTEMS = (
    "system",
    "system_prompt",
    "system_message",
    "system_instruction",
    "system_instructions",
    "sys_prompt",
)
COMMON = {"id", "tools", *SYSTEMS}  # read in rows of every shape
UNSUPPORTED_KEYS = {  # key of a row -> what is expected in its place
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "text alone"),
    "functions": "`tools`",
    "function_call": "`tool_calls` in a turn",
    "documents": "them in a turn",
    "context": "it in a turn",
    "persona": "`system`",
    "chat_template_kwargs": "a template that needs none",
}
ROW_LEVEL_MASKS = {  # a mark of a whole row -> what is expected in its place, if it masks the row
    **{mask: "`train` at a turn" for mask in MASKS if mask != "weight"},
    "mask": "`train` at a turn",
    **dict.fromkeys(
        ("sample_weight", "weights", "importance", "loss_weight", "loss_multiplier"), "`weight`"
    ),
}
PROMPT_KEYS = (  # of which one is the prompt, or holds all of it
    "prompt",
    "question",
    "query",
    "instruction",
    "input",
    "conversations",
    "trajectory",
    "messages",
    "conversation",
    "dialogue",
    "dialog",
    "passage",
    "article",
    "document",
    "paragraph",
    "choices",
    "options",
)
VERDICT_KEYS = {"winner", "preference", "preferred", "better", "tie", "margin"}  # see `ratings.py`


def select(row: Row, columns: Mapping[str, str | None]) -> tuple[Row, list[str], list[str]]:
    """The row with its keys renamed as `data.columns` says.

    columns: field -> path of its value: `answers.0` is the first of the list `answers`; None leaves
    the field out.
    Returns: the row, the fields that were found, and the keys that were set aside: those whose name
        a field took, and what a path did not take of its top key."""
    if not columns:
        return row, [], []
    top_keys: dict[str, str] = {}  # path -> the key of the row that it starts at
    values: dict[str, object] = {}
    for field, path in columns.items():
        if path is None:
            continue
        top_keys[path] = path if path in row else path.split(".")[0]
        value = _value_at(row, path)
        if value is not None:
            values[field] = value
    fields = {plain(field) for field in columns}
    used = set(top_keys.values())
    kept, aside = {}, []
    for key, value in row.items():
        if key in used:
            continue
        if plain(str(key)) in fields:
            aside.append(key)
        else:
            kept[key] = value
    for path, top_key in top_keys.items():
        if top_key != path and top_key in row:
            aside.append(f"{top_key}, but for {path}")
    return {**kept, **values}, list(values), aside


def _value_at(value: object, path: str) -> object:
    """The value at a path of keys and list indices, None if there is none. A key may hold dots."""
    if isinstance(value, Mapping) and path in value:
        return value[path]
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def nearest_column(name: str) -> str | None:
    """None if `name` may be a field of `data.columns`: a key of some shape, a rating of a pair, a
    mark or a verdict. Else a hint for the error: the nearest field, or all of them."""
    known_names = {plain(key) for key in known_keys() | {"id"}}
    ratings: dict[str, object] = {name: 1.0}
    ratings.update({_twin(name, side): 1.0 for side in PAIR_SIDES})
    if plain(name) in known_names or rating_keys(ratings):
        return None
    if is_mark(name, True) or may_be_verdict(name):
        return None
    fields = sorted(COMMON | {"weight"} | _shape_keys())
    close = difflib.get_close_matches(name, fields, n=1)
    return f"the nearest is {close[0]}" if close else f"expected one of {', '.join(fields)}"


def _twin(name: str, side: str) -> str:
    """The name of the same rating of a given side: `score_w` and `rejected` make
    `score_rejected`."""
    words = NOT_PREFERRED.sub("rejected", plain(name)).split("_")
    return "_".join(side if word in SIDES else word for word in words)


def _shape_keys() -> frozenset[str]:
    pairs = (shape.needs | shape.may for shape in PAIRS.values())
    texts = (shape.needs | shape.may for shape in TEXTS.values())
    return frozenset().union(*pairs, *texts)


@cache
def known_keys() -> frozenset[str]:
    """The keys that mean something in some row. Each may be spelled otherwise (`names.plain`),
    except `id`."""
    return _shape_keys().union(
        {"weight", "history"},
        LABELS,
        UNSUPPORTED_KEYS,
        ROW_LEVEL_MASKS,
        PROMPT_KEYS,
        VERDICT_KEYS,
        COMMON - {"id"},
    )


def read_unified(read: Callable[[Row], tuple[T, list[str]]], row: Row) -> tuple[T, list[str]]:
    """`read(row)` with every known key under its one name.

    read: returns what it made and the keys that it did not read. Those, and the errors that it
    raises, get the row's own spelling back."""
    unified, spelling = unify_keys(row, known_keys())
    try:
        made, unread = read(unified)
    except (Tie, ValueError) as error:
        raise type(error)(restore_spelling(str(error), spelling.items())) from None
    return made, [spelling.get(key, key) for key in unread]
