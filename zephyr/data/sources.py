"""The files and datasets that a config names become raw rows, each with its place for errors."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zephyr.config import BadInput
from zephyr.data.folders import SPLIT, data_suffix, folder_files
from zephyr.data.rows import TOO_DEEP_OR_LONG, reject_duplicate_keys
from zephyr.progress import library_bars

if TYPE_CHECKING:
    from datasets import Dataset

SUPPORTED_SOURCES = ".jsonl, .json or .parquet (also with .gz), a folder of those, or a hub dataset"
SPLIT_FOLDER = re.compile("(train|test|val|valid|validation|eval)(_(sft|gen|prefs))?")
MAX_LINE_BYTES = 2**26  # of a line, unpacked; the longest conversations take a hundredth of it
MAX_UNPACKED_BYTES = 2**31  # of a .json.gz or .parquet.gz, which is read as a whole


class RawRow(NamedTuple):
    """A row as it was found.

    place: where it stands, for a person. default_id: `source:number`, from 1, for a row without an
    id. value: the row, or the undecoded line of a .jsonl. entry: which entry of the config's list
    it is of, from 0."""

    place: str
    default_id: str
    value: object
    entry: int = 0


class Source(NamedTuple):
    """One file or dataset.

    digest: SHA-256 of the file's bytes, or the dataset's fingerprint. rows: reads it from the
    beginning. split: the words of spec, folder and file that tell its split, or the dataset's own
    name of it; "" if there are none. num_rows: about how many rows it has, for progress; None where
    only reading it all would tell."""

    name: str
    digest: str
    rows: Callable[[], Iterator[RawRow]]
    split: str = ""
    num_rows: int | None = None


def open_sources(specs: Sequence[str]) -> list[Source]:
    """Every file or dataset that the specs `path-or-hub-id[[:subset]:split]` name, in order; the
    files of a folder by name.

    Raises: BadInput for a spec that does not exist, holds no data, has no such split or subset, or
    has several of which one must be named."""
    return [source for group in open_each(specs) for source in group]


def open_each(specs: Sequence[str]) -> list[list[Source]]:
    """As `open_sources`, the files or datasets of each spec in a list of their own."""
    opened = [_open(spec) for spec in specs]
    names = [source.name for group in opened for source in group]
    if len(set(names)) < len(names):  # files of one name: ids of rows need the whole path
        opened = [_open(spec, whole_path=True) for spec in specs]
    return opened


def held_out_split(source: Source) -> str:
    """The name of the source's split if it is not for training (`test_sft`, `validation`, `eval`),
    else ""."""
    found = SPLIT.search(source.split.lower())
    return "" if found is None or found[1].startswith("train") else found[1]


def count_rows(sources: Sequence[Source], limit: int | None = None) -> int | None:
    """About how many rows the sources have together, at most `limit`; None if it is not known."""
    counts = [source.num_rows for source in sources if source.num_rows is not None]
    if len(counts) < len(sources):
        return None
    return sum(counts) if limit is None else min(limit, sum(counts))


def _open(spec: str, whole_path: bool = False) -> list[Source]:
    path, split = Path(os.path.expanduser(spec)), None
    if not os.path.exists(path) and ":" in spec:
        head, _, split = spec.partition(":")
        path = Path(os.path.expanduser(head))
    if os.path.isdir(path):  # os.path's functions accept names that no file can have, Path's don't
        return _open_folder(path, split, whole_path)
    if os.path.isfile(path):
        if split is not None:
            raise BadInput(
                f"{path} is one file and has no split {split!r}, expected the path alone"
            )
        return [_file_source(path, str(path) if whole_path else path.name, _split_words(path))]
    name = str(path)
    if name.startswith((".", "/", "~", "$")) or data_suffix(path) or name.count("/") != 1:
        raise BadInput(f"{spec!r} does not exist, expected {SUPPORTED_SOURCES}")
    subset, _, named = (split or "").rpartition(":")
    return [_hub_source(name, subset or None, named or None)]


def _open_folder(folder: Path, named: str | None, whole_path: bool) -> list[Source]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return [_dataset_source(folder.name, *_saved_dataset(folder, named))]
    sources = []
    for path, split in folder_files(folder, named):
        name = str(path) if whole_path else f"{folder.name}/{path.relative_to(folder)}"
        sources.append(_file_source(path, name, _split_words(path, split)))
    return sources


def _split_words(path: Path, split: str = "") -> str:
    """The folder if its name is that of a split (not "dev", which may be anything), `split`, and
    the file's name."""
    parent = path.parent.name
    folder = parent if SPLIT_FOLDER.fullmatch(parent) else ""
    return "/".join(filter(None, (folder, split, path.name)))


def _file_source(path: Path, name: str, split: str) -> Source:
    kind = data_suffix(path)
    if re.search("[\ud800-\udfff]", name):
        raise BadInput(f"{str(path)!r}: the name is not UTF-8, expected a name that an id can hold")
    if kind is None:
        raise BadInput(f"{path} is of no known kind, expected {SUPPORTED_SOURCES}")
    rows = {".jsonl": _lines, ".json": _json_rows, ".parquet": _parquet_rows}[kind]
    with path.open("rb") as file:
        digest, lines, end = hashlib.sha256(), 0, b"\n"
        while block := file.read(1 << 20):
            digest.update(block)
            lines, end = lines + block.count(b"\n"), block[-1:]
    count = _parquet_count(path) if path.suffix == ".parquet" else None
    if path.suffix == ".jsonl":
        count = lines + (end != b"\n")
    read = partial(_whole, path, partial(rows, path, name))
    return Source(name, digest.hexdigest(), read, split, count)


def _parquet_count(path: Path) -> int | None:
    """The rows that the file says it has; None where it is damaged, which reading it will tell."""
    from pyarrow import ArrowException, parquet

    try:
        rows: int = parquet.read_metadata(path).num_rows
    except (ArrowException, OSError):
        return None
    return rows


def _whole(path: Path, rows: Callable[[BufferedIOBase], Iterator[RawRow]]) -> Iterator[RawRow]:
    """All rows of a file. A damaged or empty file is an error also with `on_bad_row: skip`."""
    count = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for row in rows(file):
                count += 1
                yield row
    except (EOFError, OSError, zlib.error, UnicodeDecodeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"{path} is damaged after {count} rows, expected a whole file: {reason}"
        ) from error
    if count == 0:
        raise BadInput(f"{path} holds no rows, expected at least one")


def _lines(path: Path, name: str, file: BufferedIOBase) -> Iterator[RawRow]:
    """The lines, one at a time in memory. Lines end at \\n only, not at U+2028.

    Raises: BadInput for a line over `MAX_LINE_BYTES`: a few kB of gzip can hold one of
    gigabytes."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise BadInput(
                f"{path}:{number}: the line is over {MAX_LINE_BYTES} bytes, expected at most that "
                "many for one row; split or remove it"
            )
        if line.strip():
            yield RawRow(f"{path}:{number}", f"{name}:{number}", line)


def _json_rows(path: Path, name: str, file: BufferedIOBase) -> Iterator[RawRow]:
    """The elements of a JSON list. A .json that holds one object a line is read as .jsonl."""
    begin = file.read(4096)
    file.seek(0)
    if not begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _lines(path, name, file)
        return
    for number, line in enumerate(_json_lines(path, _read_all(path, file)), start=1):
        yield RawRow(f"{path}, element {number}", f"{name}:{number}", line)


def _json_lines(path: Path, data: bytes) -> list[bytes]:
    """Each element of a JSON list as a line: pickle, which sends rows to the workers, fails on
    nesting that JSON can hold."""
    try:
        elements = json.loads(data.decode("utf-8-sig"), object_pairs_hook=reject_duplicate_keys)
        return [json.dumps(element).encode() for element in elements]
    except KeyError as error:
        raise BadInput(
            f"{path}: an object of the file's JSON has the key {error.args[0]!r:.60} twice, "
            "expected each key once"
        ) from None
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path}:{error.lineno}: the file is no valid JSON: {error.msg} at column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8: byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: the file's JSON is {TOO_DEEP_OR_LONG}") from error


def _read_all(path: Path, file: BufferedIOBase) -> bytes:
    """The bytes of a file. Raises: BadInput if a .gz holds over `MAX_UNPACKED_BYTES`."""
    data = file.read(MAX_UNPACKED_BYTES + 1 if path.suffix == ".gz" else -1)
    if path.suffix == ".gz" and len(data) > MAX_UNPACKED_BYTES:
        raise BadInput(
            f"{path} holds over {MAX_UNPACKED_BYTES} bytes, unpacked, expected at most that many; "
            "as .jsonl.gz it is read line by line"
        )
    return data


def _parquet_rows(path: Path, name: str, file: BufferedIOBase) -> Iterator[RawRow]:
    from zephyr.data.parquet import parquet_rows

    data = _read_all(path, file) if path.suffix == ".gz" else None
    for number, value in enumerate(parquet_rows(path, data), start=1):
        yield RawRow(f"{path}, row {number}", f"{name}:{number}", value)


def _hub_source(name: str, subset: str | None, split: str | None) -> Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with library_bars():
            loaded = load_dataset(*filter(None, (name, subset)), split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # no network: an OSError
        raise BadInput(_hub_error(error, name, subset, split)) from error
    whole = name if subset is None else f"{name}:{subset}"
    if split is not None:
        return _dataset_source(whole, loaded, split)
    return _dataset_source(whole, *_one_split(loaded, whole, None))


def _hub_error(error: Exception, name: str, subset: str | None, split: str | None) -> str:
    listed = re.search(r"among the available configs: \[(.*?)\]|Available: \[(.*?)\]", str(error))
    if listed:
        names = re.findall(r"'([^']+)'", listed[1] or listed[2])
        has = f"has no subset {subset!r}, it has" if subset else "has the subsets"
        return (
            f"{name} {has} {', '.join(names)}, expected one of them to be named, as in "
            f"{name}:{names[0]}:{split or 'train'}"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{name!r} is no file here, and no hub dataset loads: {first_line}; "
        f"expected {SUPPORTED_SOURCES}"
    )


def _saved_dataset(folder: Path, split: str | None) -> tuple[Dataset, str]:
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise BadInput(
            f"the folder {folder} is a damaged saved dataset: {type(error).__name__}: {error}"
        ) from error
    return _one_split(loaded, str(folder), split)


def _one_split(
    loaded: Dataset | dict[str, Dataset], name: str, split: str | None
) -> tuple[Dataset, str]:
    if not isinstance(loaded, dict):
        if split is not None:
            raise BadInput(f"{name} is a dataset without splits, expected no {split!r}")
        return loaded, str(loaded.split or "")
    chosen = next(iter(loaded)) if split is None and len(loaded) == 1 else split
    if chosen is None or chosen not in loaded:
        found = f"has no split {split!r}" if split is not None else "has more than one split"
        names = sorted(loaded)
        raise BadInput(
            f"{name} {found}, expected one of {', '.join(names)}, as in {name}:{names[0]}"
        )
    return loaded[chosen], chosen


def _dataset_source(name: str, dataset: Dataset, split: str) -> Source:
    def rows() -> Iterator[RawRow]:
        for number, value in enumerate(dataset, start=1):
            yield RawRow(f"{name}, row {number}", f"{name}:{number}", value)
        if len(dataset) == 0:
            raise BadInput(f"{name} holds no rows, expected at least one")

    return Source(name, dataset._fingerprint, rows, split, len(dataset))
