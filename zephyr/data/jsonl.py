"""Rows go to and come from files, and each file that a command writes has its report beside it."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from zephyr.config import BadInput
from zephyr.data.rows import check_row
from zephyr.data.sources import open_sources
from zephyr.training.files import atomic_writer, synced_digest, write_atomic
from zephyr.training.ranks import rank

T = TypeVar("T")


def read_rows(
    sources: Sequence[str | Path], read: Callable[[Mapping[str, object]], T] = dict
) -> Iterator[tuple[str, T]]:
    """The place of every row that the sources `path-or-hub-id[:split]` hold, and what `read` makes
    of it.

    Raises: BadInput naming file and line, also for a ValueError of `read`."""
    for source in open_sources([str(source) for source in sources]):
        for raw in source.rows():
            try:
                yield raw.place, read(check_row(raw.value))
            except ValueError as error:
                raise BadInput(f"{raw.place}: {error}") from None


def require_output(out: Path, sources: Sequence[str | Path]) -> None:
    """Before anything is paid for. Raises: BadInput where `out` or its report is a source or in
    one, is a folder, or can't be made."""
    paths = [os.path.expanduser(source) for source in sources]
    given = {
        Path(path if os.path.exists(path) else path.partition(":")[0]).resolve() for path in paths
    }
    for path in (out, report_path(out)):
        if path.is_dir() or not given.isdisjoint((path.resolve(), *path.resolve().parents)):
            raise BadInput(
                f"out: {path} {'is a folder' if path.is_dir() else 'is among the sources'}, wanted a file of its own"
            )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"out: the folder of {out} can't be made: {error.strerror}") from None


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> int:
    """One JSON object a line, UTF-8, under a temporary name until all are there; makes the folders
    above. Returns their number."""
    if rank():  # under torchrun every rank makes the rows, the first one writes them
        return sum(1 for _ in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with atomic_writer(path) as file:
            for count, row in enumerate(rows, start=1):
                file.write(json_line(row))
    except OSError as error:
        raise BadInput(f"{path} can't be written: {error.strerror}") from None
    return count


def json_line(row: Mapping[str, object]) -> bytes:
    """The row as a line of readable UTF-8; half of a surrogate pair, which UTF-8 can't hold, is
    escaped."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def report_path(out: Path) -> Path:
    return out.with_suffix(".report.json")


def save_report(out: Path, report: Mapping[str, object]) -> dict[str, object]:
    """What a command did, beside its output, with the output's digest; returns it whole."""
    whole = {**report, "out": out.name, "sha256": synced_digest(out)}
    write_json(report_path(out), whole)
    return whole


def write_json(path: Path, value: object) -> None:
    """The value in indented lines, whole or not at all; makes the folder. Under torchrun the first
    rank alone writes."""
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(
            path,
            json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
            + b"\n",
        )
