"""Commands read rows from sources and write rows to a file, with a report beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, overload

from zephyr.config import BadInput
from zephyr.data.rows import Row, check_row
from zephyr.data.sources import open_sources
from zephyr.training.files import atomic_writer, synced_digest, write_atomic
from zephyr.training.ranks import rank

T = TypeVar("T")


@overload
def read_rows(sources: Sequence[str | Path]) -> Iterator[tuple[str, dict[str, object]]]: ...
@overload
def read_rows(
    sources: Sequence[str | Path], read: Callable[[Row], T]
) -> Iterator[tuple[str, T]]: ...
def read_rows(
    sources: Sequence[str | Path], read: Callable[[Row], object] = dict
) -> Iterator[tuple[str, object]]:
    """The place and the value of every row of the sources `path-or-hub-id[:split]`.

    read: makes the value of a row; the row itself by default.
    Raises: BadInput naming file and line, also for a ValueError of `read`."""
    for source in open_sources([str(source) for source in sources]):
        for raw in source.rows():
            try:
                yield raw.place, read(check_row(raw.value))
            except ValueError as error:
                raise BadInput(f"{raw.place}: {error}") from None


def require_output(out: Path, sources: Sequence[str | Path]) -> None:
    """Check the output before any work is done or paid for; makes its folder.

    Raises: BadInput if `out` or its report is a folder, is a source or lies in one, or if its
        folder cannot be made."""
    used = set()
    for source in sources:
        path = os.path.expanduser(source)
        used.add(Path(path if os.path.exists(path) else path.partition(":")[0]).resolve())
    for file in (out, report_path(out)):
        if file.is_dir():
            raise BadInput(f"out: {file} is a folder, expected a file of its own")
        if not used.isdisjoint((file.resolve(), *file.resolve().parents)):
            raise BadInput(f"out: {file} is among the sources, expected a file of its own")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"out: the folder of {out} can't be made: {error.strerror}") from None


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Write one JSON object a line, UTF-8, and make the folders above.

    The file appears under its name once all rows are written. Under torchrun every rank makes the
    rows, and rank 0 writes them. Returns: the number of rows.
    Raises: BadInput if the disk refuses."""
    if rank():
        return sum(1 for _ in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with atomic_writer(path) as file:
            for row in rows:
                file.write(json_line(row))
                count += 1
    except OSError as error:
        raise BadInput(f"{path} can't be written: {error.strerror}") from None
    return count


def json_line(row: Mapping[str, object]) -> bytes:
    """The row as a line of readable UTF-8. Half of a surrogate pair, which UTF-8 cannot encode, is
    escaped."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def report_path(out: Path) -> Path:
    """Where `save_report` writes."""
    return out.with_suffix(".report.json")


def save_report(out: Path, report: Mapping[str, object]) -> dict[str, object]:
    """Write the report of a command beside its output, with the name and SHA-256 of the output.

    Returns: the report as it was written."""
    whole = {**report, "out": out.name, "sha256": synced_digest(out)}
    write_json(report_path(out), whole)
    return whole


def write_json(path: Path, value: object) -> None:
    """Write the value as indented JSON, atomically, and make its folder. Under torchrun only rank 0
    writes."""
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = json.dumps(value, indent=1, ensure_ascii=False)
        write_atomic(path, written.encode("utf-8", "backslashreplace") + b"\n")
