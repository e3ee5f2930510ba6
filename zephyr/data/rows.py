"""Here a line becomes a row, and its id, texts and ratings are read."""

import json
import re
from collections.abc import Mapping

# what python's reader refuses in valid JSON
TOO_DEEP_OR_LONG = "nested too deeply, or holds a number of thousands of digits"


def parse_line(line: bytes) -> object:
    """The JSON value of one line. Raises: ValueError saying what is wrong with it, and in which
    column."""
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=reject_duplicate_keys)
    except KeyError as error:
        raise ValueError(
            f"the line's JSON has the key {error.args[0]!r:.60} twice in one object, wanted each key once"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the line is not UTF-8: byte {error.start + 1} is {line[error.start : error.start + 1]!r}"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the line is no valid JSON: {error.msg} at column {error.pos + 1}, wanted one object a line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line's JSON is {TOO_DEEP_OR_LONG}") from error


def reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. Raises: KeyError with a key that it has twice: which of the two values is
    meant, nobody knows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def check_row(row: object) -> Mapping[str, object]:
    """The row, or that of an undecoded line, if it is an object; keys whose value is null are left
    out, as Arrow writes null for a missing key: in an undecoded line the row's own, else all.
    Raises: ValueError naming what was found."""
    row = parse_line(row) if isinstance(row, bytes) else _without_nulls(row)
    if not isinstance(row, Mapping):
        raise ValueError(
            f"the row is of type {type(row).__name__}, wanted an object with named fields"
        )
    return {key: value for key, value in row.items() if value is not None}


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def has_lone_surrogate(value: object) -> bool:
    """Whether a text anywhere in the JSON value holds half of a surrogate pair: no character, and
    nothing that UTF-8 has bytes for.

    Raises: ValueError for what is nested too deeply to be looked through."""
    try:
        return (
            re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False, default=str))
            is not None
        )
    except RecursionError:
        raise ValueError(f"the row is {TOO_DEEP_OR_LONG}") from None


def row_id(row: Mapping[str, object], default: str | None = None, field: str = "id") -> str:
    """The row's `id` (or that in `field`) as text, `default` where it has none. Raises: ValueError
    for neither text nor whole number."""
    value = row.get(field, default)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(
            f"`{field}` is {type(value).__name__} {value!r:.60}, wanted a string or a whole number"
        )
    if re.search("[\ud800-\udfff]", str(value)):
        raise ValueError(
            f"`{field}` is {value!r:.60}, which holds half of a surrogate pair, wanted text"
        )
    return str(value)


def text(row: Mapping[str, object], field: str) -> str:
    """A field that holds a string. Raises: ValueError where it does not."""
    if not isinstance(row.get(field), str):
        found = (
            f"is {type(row[field]).__name__} {row[field]!r:.60}" if field in row else "is missing"
        )
        raise ValueError(f"`{field}` {found}, wanted a string")
    return str(row[field])
