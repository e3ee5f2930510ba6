"""A line becomes a row, a mapping of keys to values; its id and texts are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

Row = Mapping[str, object]

# what Python's reader refuses in valid JSON
TOO_DEEP_OR_LONG = "nested too deeply, or holds a number of thousands of digits"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_line(line: bytes) -> object:
    """The JSON value of one line.

    Raises: ValueError that says what is wrong with the line, and in which column."""
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=reject_duplicate_keys)
    except KeyError as error:
        raise ValueError(
            f"the line's JSON has the key {error.args[0]!r:.60} twice in one object, expected each "
            "key once"
        ) from None
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1]
        raise ValueError(f"the line is not UTF-8: byte {error.start + 1} is {byte!r}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the line is no valid JSON: {error.msg} at column {error.pos + 1}, expected one "
            "object a line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line's JSON is {TOO_DEEP_OR_LONG}") from error


def reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Raises: KeyError with a key that it has twice: nothing says which of the
    two values is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def check_row(row: object) -> dict[str, object]:
    """The row without the keys whose value is null: Arrow writes null for a missing key.

    row: an object, or an undecoded line. Of a line only the row's own nulls are left out, of an
    object also those inside of it.
    Raises: ValueError for a line that is no JSON, and for a value that is no object."""
    row = parse_line(row) if isinstance(row, bytes) else _without_nulls(row)
    if not isinstance(row, Mapping):
        raise ValueError(
            f"the row is of type {type(row).__name__}, expected an object with named fields"
        )
    return {key: value for key, value in row.items() if value is not None}


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def has_lone_surrogate(value: object) -> bool:
    """Whether a text anywhere in the JSON value holds half of a surrogate pair, which is no
    character and which UTF-8 cannot encode.

    Raises: ValueError for a value that is nested too deeply to be searched."""
    try:
        written = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        raise ValueError(f"the row is {TOO_DEEP_OR_LONG}") from None
    return LONE_SURROGATE.search(written) is not None


def row_id(row: Row, default: str | None = None, field: str = "id") -> str:
    """The row's `id` (or another field) as text; `default` if it has none.

    Raises: ValueError for a value that is neither text nor a whole number, or that UTF-8 cannot
    encode."""
    value = row.get(field, default)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(
            f"`{field}` is {type(value).__name__} {value!r:.60}, expected a string or a whole "
            "number"
        )
    if LONE_SURROGATE.search(str(value)):
        raise ValueError(
            f"`{field}` is {value!r:.60}, which holds half of a surrogate pair, expected text"
        )
    return str(value)


def text(row: Row, field: str) -> str:
    """A field that holds a string. Raises: ValueError if it is missing or of another type."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    found = f"is {type(value).__name__} {value!r:.60}" if field in row else "is missing"
    raise ValueError(f"`{field}` {found}, expected a string")
