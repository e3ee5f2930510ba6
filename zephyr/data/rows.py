"""Here a raw row becomes what `chat` encodes: a checked conversation, plain text, or a pair with its id."""

import json
import re
from collections.abc import Mapping

from zephyr.chat import Messages, check_messages

SFT_SHAPES = "`messages`, `prompt` and `completion`, `instruction` (`input`) and `output`, or `text`"
TOO_MUCH = "nested too deeply, or holds a number of thousands of digits"  # what python's reader refuses in valid JSON


def parse_line(line: bytes) -> object:
    """The JSON value of one line. Raises: ValueError saying what is wrong with it, and in which column."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: byte {error.start + 1} is {line[error.start : error.start + 1]!r}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is no valid JSON: {error.msg} at column {error.pos + 1}, wanted one object a line") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line's JSON is {TOO_MUCH}") from error


def check_row(row: object) -> Mapping[str, object]:
    """The row, or that of an undecoded line, if it is an object; keys whose value is null are left out, as Arrow writes null for a
    missing key. Raises: ValueError naming what was found."""
    row = parse_line(row) if isinstance(row, bytes) else row
    if not isinstance(row, Mapping):
        raise ValueError(f"the row is of type {type(row).__name__}, wanted an object with named fields")
    return {key: value for key, value in row.items() if value is not None}


def row_id(row: Mapping[str, object], default: str | None = None, field: str = "id") -> str:
    """The row's `id` (or that in `field`) as text, `default` where it has none. Raises: ValueError for neither text nor whole number."""
    value = row.get(field, default)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"`{field}` is {type(value).__name__} {value!r:.60}, wanted a string or a whole number")
    if re.search("[\ud800-\udfff]", str(value)):
        raise ValueError(f"`{field}` is {value!r:.60}, which holds half of a surrogate pair, wanted text")
    return str(value)


def preference(row: Mapping[str, object]) -> float | None:
    """`score_chosen` - `score_rejected` of a pair; None where it has not both. Raises: ValueError for one that is no finite number."""
    scores = {name: row[name] for name in ("score_chosen", "score_rejected") if name in row}
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) < 1e300:
            raise ValueError(f"`{name}` is {type(score).__name__} {score!r:.60}, wanted a finite number")
    return scores["score_chosen"] - scores["score_rejected"] if len(scores) == 2 else None


def sft_row(row: Mapping[str, object]) -> Messages | str:
    """The conversation of an SFT row, or its plain text.

    Shapes, first match: `messages` (UltraChat); `prompt` and `completion` (strings, or lists of messages);
    `instruction`, `input`, `output` (Alpaca: a non-empty input follows the instruction after an empty line); `text`.
    Raises: ValueError naming field, what was found and what was wanted."""
    if "messages" in row:
        turns = check_messages(row["messages"])
    elif "prompt" in row and "completion" in row:
        turns = check_messages([*_turns(row, "prompt", "user"), *_turns(row, "completion", "assistant")], "prompt + completion")
    elif "instruction" in row:
        words, given = text(row, "instruction"), text({"input": "", **row}, "input")
        question = f"{words}\n\n{given}" if given.strip() else words
        answer = {"role": "assistant", "content": _answer(row, "output")}
        turns = check_messages([{"role": "user", "content": question}, answer], "instruction + output")
    elif "text" in row:
        return text(row, "text")
    else:
        raise ValueError(f"the row has the fields {sorted(row)!s:.200}, wanted {SFT_SHAPES}")
    if turns[-1]["role"] != "assistant":
        raise ValueError("the conversation ends with a user turn, wanted the assistant's last")
    return turns


def _turns(row: Mapping[str, object], field: str, role: str) -> list[object]:
    value = row[field]
    if isinstance(value, list):
        return list(value)
    return [{"role": role, "content": _answer(row, field) if role == "assistant" else text(row, field)}]


def _answer(row: Mapping[str, object], field: str) -> str:
    if not text(row, field).strip():
        raise ValueError(f"`{field}` is empty ({row[field]!r:.60}), wanted an answer")
    return text(row, field)


def text(row: Mapping[str, object], field: str) -> str:
    """A field that holds a string. Raises: ValueError where it does not."""
    if not isinstance(row.get(field), str):
        found = f"is {type(row[field]).__name__} {row[field]!r:.60}" if field in row else "is missing"
        raise ValueError(f"`{field}` {found}, wanted a string")
    return str(row[field])
