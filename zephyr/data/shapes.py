"""A row of any known shape becomes a conversation, plain text, or a pair.

The shapes are tables in `sft_shapes.py` and `pair_shapes.py`; this module applies them. A key that
a shape reads is used. A key that means something and that the shape does not read is refused by
name (`refusals.py`). All others are returned as not read, and end in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from zephyr.chat.messages import (
    Messages,
    check_messages,
    check_tools,
    history_turns,
    require_no_stringified_turns,
    shown,
    unread_keys,
    with_system,
)
from zephyr.chat.names import LABELS, parse_label
from zephyr.data.keys import COMMON, SYSTEMS, read_unified
from zephyr.data.pair_shapes import PAIRS, PLAIN_PAIR, SIDES, PairFields
from zephyr.data.ratings import check_verdicts_agree, margins, rating_keys
from zephyr.data.refusals import (
    refuse_bad_answer,
    refuse_labelled_turn,
    refuse_unread,
    require_one_prompt,
    shape_hint,
)
from zephyr.data.rows import Row
from zephyr.data.sft_shapes import TEXTS, FieldTurns, Shape, find_shape, instruction_text


class Conversation(NamedTuple):
    """Turns, what the row calls each (for errors), and the tools that the assistant may call."""

    turns: Messages
    names: list[str]
    tools: list[Mapping[str, object]] | None = None


def pair_row(row: Row, is_plain: bool = False) -> tuple[dict[str, object], list[str]]:
    """The row as `chat.tokenize_pair` reads it, and the keys that nothing reads.

    is_plain: read the row as `prompt`, `chosen` and `rejected`, whatever other keys it has.
    Returns: `prompt`, `chosen`, `rejected`, and of `history`, `system`, `id`, `tools`, `weight`,
        `margins` (tuple of floats, `ratings.margins`) those that the row has.
    Raises: ValueError naming the key, what was found and what was expected; Tie for a row that
        prefers neither answer."""
    return read_unified(partial(_pair_row, is_plain=is_plain), row)


def _pair_row(row: Row, is_plain: bool) -> tuple[dict[str, object], list[str]]:
    shape = _pair_shape(row, is_plain)
    pair = shape.read(row)
    sides = {side: pair.fields[side] for side in SIDES}
    rated = rating_keys({**row, **sides})
    reads = COMMON | {"weight"} | rated | shape.needs | shape.may
    refuse_unread(row, reads)
    reads |= check_verdicts_agree(row, reads)
    for side, answer in sides.items():
        last_turn = answer[-1] if isinstance(answer, list) and answer else answer
        refuse_labelled_turn(last_turn, side, is_rejected=side == "rejected")
    made = {key: row[key] for key in ("id", "tools", "weight") if key in row}
    made["system"] = _system(row)
    made.update(pair.fields)
    made["margins"] = (*margins({**row, **sides}), *pair.margins) or None
    require_one_prompt(row, reads, made)
    unread = _unread_in_pair(row, reads, rated, pair, made)
    return {key: value for key, value in made.items() if value is not None}, unread


def _pair_shape(row: Row, is_plain: bool) -> Shape[PairFields]:
    """Raises: ValueError for a row of no known shape, naming a key that is missing."""
    plain_pair = PAIRS[PLAIN_PAIR]
    is_plain = is_plain or row.keys() >= {"prompt", "messages", "chosen", "rejected"}
    shape = plain_pair if is_plain else find_shape(row, PAIRS)
    if shape is not None and not (shape is plain_pair and _lacks_prompt(row)):
        return shape
    missing = next((side for side in SIDES if side not in row), "prompt")
    if missing == "prompt":
        require_no_stringified_turns(row["chosen"], "chosen")
    raise ValueError(
        f"`{missing}` is missing; the row has the fields {sorted(row)!s:.200}, "
        f"{shape_hint(row, pairs=True)}"
    )


def _lacks_prompt(row: Row) -> bool:
    """Lists of messages may hold the prompt, a text cannot."""
    return "prompt" not in row and isinstance(row["chosen"], str)


def _unread_in_pair(
    row: Row, reads: set[str], rated: set[str], pair: PairFields, made: Row
) -> list[str]:
    """Keys of the row, of objects in it and of turns that nothing reads."""
    holds_rating = {key: _unread_beside_rating(row[key], key, rated) for key in row}
    unread = [key for key, inside in holds_rating.items() if key not in reads and inside is None]
    unread += pair.unread
    for inside in holds_rating.values():
        unread += inside or []
    for field in ("prompt", *SIDES):
        keys = unread_keys(made.get(field), field, masks=True)
        unread += [key for key in keys if key not in rated]
    return unread


def _unread_beside_rating(value: object, path: str, rated: set[str]) -> list[str] | None:
    """The paths in an object that holds a rating, those that are no rating; None if the value
    neither is a rating nor holds one."""
    if not isinstance(value, Mapping) or not any(key.startswith(f"{path}.") for key in rated):
        return [] if path in rated else None
    unread: list[str] = []
    for key, inner in value.items():
        inside = _unread_beside_rating(inner, f"{path}.{key}", rated)
        unread += [f"{path}.{key}"] if inside is None else inside
    return unread


def sft_row(row: Row) -> Messages | str:
    """The turns of an SFT row, or its plain text. Raises: ValueError as `sft_conversation`."""
    made, _ = sft_conversation(row)
    return made if isinstance(made, str) else made.turns


def sft_conversation(row: Row) -> tuple[Conversation | str, list[str]]:
    """The conversation of an SFT row, or its plain text, and the keys that nothing reads.

    Raises: ValueError naming the key, what was found and what was expected."""
    return read_unified(_sft_conversation, row)


def _sft_conversation(row: Row) -> tuple[Conversation | str, list[str]]:
    shape = find_shape(row, TEXTS)
    if shape is None:
        raise ValueError(
            f"the row has the fields {sorted(row)!s:.200}, {shape_hint(row, pairs=False)}"
        )
    is_text = shape is TEXTS["text"]
    reads = COMMON | {"history", "weight", *LABELS} | shape.needs | shape.may
    refuse_unread(row, reads)
    refuse_bad_answer(row, labelled=not is_text)
    unread = [
        key
        for key in row
        if key not in reads
        or (key in LABELS and key not in shape.needs and (is_text or _says_nothing(row, key)))
    ]
    made = shape.read(row)
    if isinstance(made, str):
        _refuse_beside_text(row)
        return made, unread
    conversation = _with_history_and_system(row, made, reads)
    return conversation, [*unread, *unread_keys(made.turns, made.field)]


def _says_nothing(row: Row, label: str) -> bool:
    return parse_label(label, row[label]) is None


def _refuse_beside_text(row: Row) -> None:
    for key in ("history", "tools", *SYSTEMS):
        if row.get(key):
            raise ValueError(
                f"`{key}` is {shown(row[key])}, which plain text has no place for; "
                f"data.columns.{key}=null leaves it out"
            )


def _with_history_and_system(row: Row, made: FieldTurns, reads: set[str]) -> Conversation:
    """The turns that a shape read, checked, after the row's `history` and `system`."""
    field = made.field
    turns = check_messages(made.turns, field)
    history = history_turns(row.get("history"))
    given = made.turns if isinstance(made.turns, Sequence) else ()
    for i, turn in enumerate(given):
        if turns[i]["role"] == "assistant":
            refuse_labelled_turn(turn, f"{field}[{i}]")
    require_one_prompt(row, reads, turns)
    names = [f"{field}[{i}]" for i in range(len(turns))]
    if history:
        first = 1 if turns[0]["role"] == "system" else 0
        turns = check_messages([*turns[:first], *history, *turns[first:]], field)
        history_names = [f"history[{i // 2}][{i % 2}]" for i in range(len(history))]
        names = [*names[:first], *history_names, *names[first:]]
    if turns[-1]["role"] != "assistant":
        raise ValueError("the conversation ends with a user turn, expected the assistant's last")
    turns, names = with_system(_system(row), turns, names)
    return Conversation(turns, names, check_tools(row.get("tools")))


def prompt_turns(row: Row) -> tuple[Messages, list[str]]:
    """The turns up to the user's last of a row that is asked, not trained, and the keys that
    nothing reads.

    The turns are those of `prompt`, `messages`, or `instruction` (`input`, `context`).
    Raises: ValueError as `sft_conversation`; also for `tools`."""
    return read_unified(_prompt_turns, row)


def _prompt_turns(row: Row) -> tuple[Messages, list[str]]:
    fields = ("messages", "prompt", "instruction")
    field = next((key for key in fields if row.get(key) not in (None, "", [])), None)
    if field is None:
        raise ValueError(
            f"the row has the fields {sorted(row)!s:.200}, expected `prompt`, `messages` or "
            "`instruction` (`input`)"
        )
    reads = {"id", "prompt_id", "source", "reference", "history", field, *SYSTEMS}
    if field == "instruction":
        reads |= {"input", "context"}
    refuse_unread(row, reads)
    if check_tools(row.get("tools")):
        raise ValueError(
            f"`tools` is {shown(row['tools'])}, which nobody who answers is given; "
            "data.columns.tools=null leaves it out"
        )
    require_no_stringified_turns(row[field], field)
    given = row[field]
    if not isinstance(given, list):
        content = instruction_text(row) if field == "instruction" else given
        given = [{"role": "user", "content": content}]
    turns = check_messages(given, field)
    history = history_turns(row.get("history"))
    last = max(i for i, turn in enumerate(turns) if turn["role"] in ("user", "tool"))
    if field != "messages" and last < len(turns) - 1:
        raise ValueError(f"`{field}` ends with an assistant turn, expected the user's last")
    require_one_prompt(row, reads, [turns, history])
    turns = turns[: last + 1]
    first = 1 if turns[0]["role"] == "system" else 0
    turns = [*turns[:first], *history, *turns[first:]]
    turns, _ = with_system(_system(row), turns, [f"{field}[0]"])
    unread = [key for key in row if key not in reads and key != "tools"]
    return turns, [*unread, *unread_keys(row[field], field)]


def _system(row: Row) -> object:
    """The row's system text. Raises: ValueError for two that differ."""
    given = [(key, row[key]) for key in SYSTEMS if row.get(key, "") != ""]
    if not given:
        return None
    first, system = given[0]
    for key, value in given[1:]:
        if value != system:
            raise ValueError(f"`{first}` and `{key}` differ, expected one of them")
    return system
