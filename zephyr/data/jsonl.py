"""Rows of feedback, pairs and prompts go to and come from .jsonl files; what they hold is checked by those who use them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from zephyr.config import BadInput


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    """Yields the JSON objects of a .jsonl file. Raises: BadInput naming the file, and the line where it is not an object."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{number}: no JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{path}:{number}: an object is wanted, got {type(row).__name__}")
        yield row


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object per line, UTF-8; makes the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
