"""The known shapes of an SFT row, and how each becomes turns or plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from zephyr.chat.messages import Messages, join_text_parts, require_no_stringified_turns, shown
from zephyr.chat.names import SPEAKERS, plain, role_of, unify_keys
from zephyr.data.rows import Row, text

T = TypeVar("T")
QUESTIONS = ("prompt", "question", "query")
ANSWERS = ("completion", "response", "answer")


class FieldTurns(NamedTuple):
    """Turns as the row has them, not checked yet, and the field that holds them (for errors)."""

    field: str
    turns: object


@dataclass(frozen=True)
class Shape(Generic[T]):
    """One shape of row. needs: the keys that tell it. may: other keys that `read` reads."""

    needs: frozenset[str]
    may: frozenset[str]
    read: Callable[[Row], T]


def shape(needs: str, may: str, read: Callable[[Row], T]) -> Shape[T]:
    """A shape whose keys are given as words of a text."""
    return Shape(frozenset(needs.split()), frozenset(may.split()), read)


def find_shape(row: Row, table: Mapping[str, Shape[T]]) -> Shape[T] | None:
    """The first shape all of whose needed keys hold something; else the first whose keys are
    there."""
    filled = {key for key, value in row.items() if value not in ("", [], {})}
    for keys in (filled, row.keys()):
        for candidate in table.values():
            if candidate.needs <= keys:
                return candidate
    return None


def answer_text(row: Row, field: str) -> str:
    """A field that holds an answer. Raises: ValueError if it is no string, or is blank."""
    answer = text(row, field)
    if not answer.strip():
        raise ValueError(f"`{field}` is empty ({answer!r:.60}), expected an answer")
    return answer


def joined_text(row: Row, first: str, *others: str) -> str:
    """The text of the first field; those of the others, if they hold any, after an empty line."""
    question = text(row, first)
    given = [text(row, field) for field in others if field in row]
    return "\n\n".join([question, *(part for part in given if part.strip())])


def instruction_text(row: Row) -> str:
    """Alpaca, Dolly: the instruction, then `input` (or `context`) after an empty line.

    Raises: ValueError if both `input` and `context` hold something."""
    if row.get("input") and row.get("context"):
        raise ValueError("`input` and `context` are both given, expected one of them")
    given = "context" if row.get("context") else "input"
    return joined_text(row, "instruction", given)


def _question_answer(question: str, answer: str) -> Callable[[Row], FieldTurns]:
    """Reads two fields, each a text or a list of turns."""

    def read(row: Row) -> FieldTurns:
        turns = [*_turns(row, question, "user"), *_turns(row, answer, "assistant")]
        return FieldTurns(f"{question} + {answer}", turns)

    return read


def _turns(row: Row, field: str, role: str) -> list[object]:
    value = join_text_parts(row[field], field)
    if isinstance(value, list):
        return value
    require_no_stringified_turns(value, field)
    read = answer_text if role == "assistant" else text
    return [{"role": role, "content": read({field: value}, field)}]


def _alpaca(row: Row) -> FieldTurns:
    question = instruction_text(row)
    answer = "response" if "response" in row and "output" not in row else "output"
    turns = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer_text(row, answer)},
    ]
    return FieldTurns(f"instruction + {answer}", turns)


def _ultrachat(row: Row) -> FieldTurns:
    texts = row["data"]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError(
            f"`data` is {shown(texts)}, expected a list of texts, the user's and the assistant's "
            "in turn"
        )
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(texts)]
    return FieldTurns("data", turns)


def _messages(row: Row) -> FieldTurns:
    return FieldTurns("messages", row["messages"])


def _sharegpt(row: Row) -> FieldTurns:
    return FieldTurns("conversations", sharegpt_turns(row["conversations"], "conversations"))


def _plain_text(row: Row) -> str:
    return text(row, "text")


def sharegpt_turns(value: object, field: str) -> Messages:
    """Turns of `from` and `value` as turns of `role` and `content`; turns of the latter stay.

    Raises: ValueError naming the turn."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{field}` is {shown(value)}, expected a list of turns")
    return [_sharegpt_turn(turn, f"{field}[{i}]") for i, turn in enumerate(value)]


def _sharegpt_turn(turn: object, field: str) -> dict[str, object]:
    given: Row = {}
    if isinstance(turn, Mapping):
        if "from" not in turn and any(plain(str(key)) == "role" for key in turn):
            return dict(turn)
        given, _ = unify_keys(turn, frozenset(("from", "value")))
    content = given.get("value")
    others = {key: inner for key, inner in given.items() if key not in ("from", "value")}
    if given.get("from") == "function_call" and isinstance(content, str):
        calls = _function_calls(content, f"{field}.value")
        return {"role": "assistant", "content": "", "tool_calls": calls, **others}
    role = role_of(given.get("from"))
    if role is None or not isinstance(content, str):
        raise ValueError(
            f"`{field}` is {shown(turn)}, expected a turn of `from` ({', '.join(SPEAKERS)}, "
            "function_call) and `value`"
        )
    return {"role": role, "content": content, **others}


def _function_calls(content: str, field: str) -> list[object]:
    """The calls of a ShareGPT turn `function_call`: the JSON text of an object with `name` and
    `arguments`, or of a list of them."""
    try:
        calls = json.loads(content)
    except (ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(
        isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls
    ):
        raise ValueError(
            f"`{field}` is {shown(content)}, expected the JSON text of a call with `name` and "
            "`arguments`, or of a list of calls"
        )
    return [{"type": "function", "function": dict(call)} for call in calls]


# name -> shape; a row has the first shape that `find_shape` finds. The README lists these names.
TEXTS: dict[str, Shape[FieldTurns | str]] = {
    "messages": shape("messages", "", _messages),
    "conversations (ShareGPT)": shape("conversations", "", _sharegpt),
    "data (UltraChat)": shape("data", "", _ultrachat),
    **{
        f"{question}, {answer}": shape(
            f"{question} {answer}", "", _question_answer(question, answer)
        )
        for question in QUESTIONS
        for answer in ANSWERS
    },
    "instruction, input, output (Alpaca)": shape(
        "instruction", "input output context response", _alpaca
    ),
    "input, output": shape("input output", "", _question_answer("input", "output")),
    "text": shape("text", "", _plain_text),
}
