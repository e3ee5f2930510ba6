"""Here the files and datasets that a config names become raw rows, each with the place where a
person finds it."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ArrowException, BufferReader, parquet

from zephyr.config import BadInput
from zephyr.data.folders import SPLIT, data_suffix, folder_files
from zephyr.data.rows import TOO_DEEP_OR_LONG, reject_duplicate_keys

if TYPE_CHECKING:
    from datasets import Dataset

SUPPORTED_SOURCES = ".jsonl, .json or .parquet (also with .gz), a folder of those, or a hub dataset"
MAX_LINE_BYTES = 2**26  # bytes of a row's line, unpacked: of the longest conversations a hundredth
MAX_VALUES = (
    2**28
)  # of a column in a row group: thousands of millions of equal ones take a few bytes
MAX_UNPACKED_BYTES = (
    2**31
)  # bytes, unpacked, of a .json.gz or .parquet.gz, which can only be read as a whole


class RawRow(NamedTuple):
    """A row as it was found. `place`: for a person; `default_id`: source:number, from 1; `value`:
    the row, or a .jsonl's undecoded line."""

    place: str
    default_id: str
    value: object


class Source(NamedTuple):
    """One file or dataset. `digest`: of its bytes, or the dataset's fingerprint; `rows()` reads it
    from the beginning. `split`: the words that tell its split, of spec, folder and file, or the
    dataset's own name for it; "" where there are none."""

    name: str
    digest: str
    rows: Callable[[], Iterator[RawRow]]
    split: str = ""


def open_sources(specs: tuple[str, ...] | list[str]) -> list[Source]:
    """Every file or dataset that the specs `path-or-hub-id[[:subset]:split]` name, in order; a
    folder gives its files by name.

    Raises: BadInput for what does not exist, holds no data, has no such split or subset, or needs
    one named."""
    sources = [source for spec in specs for source in _open(spec)]
    if len({source.name for source in sources}) < len(
        sources
    ):  # two files of one name: their rows' ids need the whole path
        sources = [source for spec in specs for source in _open(spec, whole_path=True)]
    return sources


def held_out_split(source: Source) -> str:
    """What the source's split is called where that says that it is not for training (`test_sft`,
    `validation`, `eval`); else ""."""
    found = SPLIT.search(source.split.lower())
    return "" if found is None or found[1].startswith("train") else found[1]


def _open(spec: str, whole_path: bool = False) -> list[Source]:
    path, split = Path(os.path.expanduser(spec)), None
    if not os.path.exists(path) and ":" in spec:
        head, _, split = spec.partition(":")
        path = Path(os.path.expanduser(head))
    if os.path.isdir(path):  # unlike Path's, these take a name that no file can have
        return _open_folder(path, split, whole_path)
    if os.path.isfile(path):
        if split is not None:
            raise BadInput(f"{path} is one file and has no split {split!r}, wanted the path alone")
        return [_file_source(path, str(path) if whole_path else path.name, _split_words(path))]
    name = str(path)
    if name.startswith((".", "/", "~", "$")) or data_suffix(path) or name.count("/") != 1:
        raise BadInput(f"{spec!r} does not exist, wanted {SUPPORTED_SOURCES}")
    subset, _, named = (split or "").rpartition(":")
    return [_hub_source(name, subset or None, named or None)]


def _open_folder(folder: Path, named: str | None, whole_path: bool) -> list[Source]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return [_dataset_source(folder.name, *_saved_dataset(folder, named))]
    return [
        _file_source(
            path,
            str(path) if whole_path else f"{folder.name}/{path.relative_to(folder)}",
            _split_words(path, split),
        )
        for path, split in folder_files(folder, named)
    ]


def _split_words(path: Path, split: str = "") -> str:
    """The folder where it is called as splits are ("dev" may be anything), `split`, the file's
    name."""
    parent = path.parent.name
    folder = (
        parent
        if re.fullmatch("(train|test|val|valid|validation|eval)(_(sft|gen|prefs))?", parent)
        else ""
    )
    return "/".join(filter(None, (folder, split, path.name)))


def _file_source(path: Path, name: str, split: str) -> Source:
    kind = data_suffix(path)
    if re.search("[\ud800-\udfff]", name):
        raise BadInput(
            f"{str(path)!r}: the name is not UTF-8, wanted one that rows can be called by"
        )
    if kind is None:
        raise BadInput(f"{path} is of no known kind, wanted {SUPPORTED_SOURCES}")
    rows = {".jsonl": _lines, ".json": _json_rows, ".parquet": _parquet_rows}[kind]
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return Source(name, digest.hexdigest(), lambda: _whole(path, partial(rows, path, name)), split)


def _whole(path: Path, rows: Callable[[BinaryIO], Iterator[RawRow]]) -> Iterator[RawRow]:
    """All rows of a file; a damaged or empty file is an error, whatever is done with bad rows."""
    count = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for count, row in enumerate(rows(file), start=1):
                yield row
    except (
        EOFError,
        OSError,
        zlib.error,
        ArrowException,
        UnicodeDecodeError,
        OverflowError,
    ) as error:
        raise BadInput(
            f"{path} is damaged after {count} rows, wanted a whole file: {str(error).splitlines()[0]}"
        ) from error
    if count == 0:
        raise BadInput(f"{path} holds no rows, wanted at least one")


def _lines(path: Path, name: str, file: BinaryIO) -> Iterator[RawRow]:
    """The lines, in memory one at a time. Raises: BadInput for one over `MAX_LINE_BYTES`: a few kB of
    gzip can hold a line of gigabytes."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):  # bytes: parted at \n only, not at U+2028
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise BadInput(
                f"{path}:{number}: the line is over {MAX_LINE_BYTES} bytes, wanted at most that many for one row; split or remove it"
            )
        if line.strip():
            yield RawRow(f"{path}:{number}", f"{name}:{number}", line)


def _json_rows(path: Path, name: str, file: BinaryIO) -> Iterator[RawRow]:
    """The elements of a JSON list; a .json that holds one object a line is read as .jsonl."""
    begin = file.read(4096)
    file.seek(0)
    if not begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _lines(path, name, file)
        return
    data = _read_all(path, file)
    try:
        # To its encoder, maybe another process, a row goes as text: pickle gives up at nested
        # values that JSON can hold.
        lines = [
            json.dumps(element).encode()
            for element in json.loads(
                data.decode("utf-8-sig"), object_pairs_hook=reject_duplicate_keys
            )
        ]
    except KeyError as error:
        raise BadInput(
            f"{path}: an object of the file's JSON has the key {error.args[0]!r:.60} twice, wanted each key once"
        ) from None
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path}:{error.lineno}: the file is no valid JSON: {error.msg} at column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8: byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: the file's JSON is {TOO_DEEP_OR_LONG}") from error
    for number, line in enumerate(lines, start=1):
        yield RawRow(f"{path}, element {number}", f"{name}:{number}", line)


def _read_all(path: Path, file: BinaryIO) -> bytes:
    """What a file holds. Raises: BadInput where a packed one holds over `MAX_UNPACKED_BYTES`."""
    data = file.read(MAX_UNPACKED_BYTES + 1 if path.suffix == ".gz" else -1)
    if path.suffix == ".gz" and len(data) > MAX_UNPACKED_BYTES:
        raise BadInput(
            f"{path} holds over {MAX_UNPACKED_BYTES} bytes, unpacked, wanted at most that many; as .jsonl.gz it is read line by line"
        )
    return data


def _parquet_rows(path: Path, name: str, file: BinaryIO) -> Iterator[RawRow]:
    """The rows, in memory `MAX_LINE_BYTES` bytes at a time, or a row group as it is packed. Texts are
    read as indices into a dictionary: a few kB can hold one long text a thousand times.

    Raises: BadInput for a row over `MAX_LINE_BYTES`."""
    whole = _read_all(path, file) if path.suffix == ".gz" else None
    schema = parquet.ParquetFile(path if whole is None else BufferReader(whole)).schema
    columns = [schema.column(i) for i in range(len(schema))]
    texts = [
        of.path
        for of in columns
        if of.physical_type == "BYTE_ARRAY"
        and of.logical_type.type in ("STRING", "NONE", "JSON", "ENUM")
    ]
    table = parquet.ParquetFile(
        path if whole is None else BufferReader(whole), read_dictionary=texts
    )
    number = 0
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        values = max((about.column(i).num_values for i in range(about.num_columns)), default=0)
        if values > MAX_VALUES:
            raise BadInput(
                f"{path}: its row group {group} holds {values} values, wanted at most "
                f"{MAX_VALUES}; write it in smaller row groups"
            )
        size = about.num_rows if about.total_byte_size < MAX_UNPACKED_BYTES else 1000
        for batch in table.iter_batches(batch_size=max(size, 1), row_groups=[group]):
            for part in _parts(batch, path, number):
                for value in part.to_pylist():
                    number += 1
                    yield RawRow(f"{path}, row {number}", f"{name}:{number}", value)


def _parts(batch: pa.RecordBatch, path: Path, before: int) -> Iterator[pa.RecordBatch]:
    """The batch in parts of at most `MAX_LINE_BYTES` bytes, and 1000 rows; `before`: rows of the file
    before it. Raises: BadInput naming a row that is over the limit by itself."""
    bytes_R = sum((row_bytes(column) for column in batch.columns), np.zeros(len(batch), np.int64))
    ends_R, start = np.cumsum(bytes_R), 0
    while start < len(batch):
        if bytes_R[start] > MAX_LINE_BYTES:
            raise BadInput(
                f"{path}, row {before + start + 1}: the row holds {bytes_R[start]} bytes, wanted at most {MAX_LINE_BYTES}; "
                "split or remove it"
            )
        room = MAX_LINE_BYTES + ends_R[start] - bytes_R[start]
        end = min(int(np.searchsorted(ends_R, room, side="right")), start + 1000)
        yield batch.slice(start, end - start)
        start = end


def row_bytes(array: pa.Array) -> np.ndarray:
    """How many bytes each value of the array takes where it stands by itself, int64
    [len(array)]."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        of_words = np.append(row_bytes(array.dictionary), 0)  # the last: of null
        return of_words[array.indices.fill_null(len(array.dictionary)).to_numpy()]
    if pa.types.is_struct(kind):
        return sum(map(row_bytes, array.flatten()), np.full(len(array), 8))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        inner = row_bytes(array.values)
        return np.diff(np.append(0, np.cumsum(inner))[array.offsets.to_numpy()]) + 8
    if any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    ):
        return pc.binary_length(array).fill_null(0).to_numpy().astype(np.int64) + 8
    return np.full(len(array), -(-array.nbytes // max(len(array), 1)))


def _hub_source(name: str, subset: str | None, split: str | None) -> Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(*filter(None, (name, subset)), split=split)
    except (
        OSError,
        ValueError,
        RuntimeError,
        DatasetsError,
    ) as error:  # OSError: also what the hub and no network raise
        if subsets := re.search(
            r"among the available configs: \[(.*?)\]|Available: \[(.*?)\]", str(error)
        ):
            names = re.findall(r"'([^']+)'", subsets[1] or subsets[2])
            asked = f"has no subset {subset!r}, it has" if subset else "has the subsets"
            raise BadInput(
                f"{name} {asked} {', '.join(names)}, wanted one named, as in {name}:{names[0]}:{split or 'train'}"
            ) from error
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"{name!r} is no file here, and no hub dataset loads: {first_line}; wanted {SUPPORTED_SOURCES}"
        ) from error
    whole = name if subset is None else f"{name}:{subset}"
    return _dataset_source(
        whole, *(loaded, split) if split is not None else _one_split(loaded, whole, None)
    )


def _saved_dataset(folder: Path, split: str | None) -> "tuple[Dataset, str]":
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise BadInput(
            f"the folder {folder} is a damaged saved dataset: {type(error).__name__}: {error}"
        ) from error
    return _one_split(loaded, str(folder), split)


def _one_split(
    loaded: "Dataset | dict[str, Dataset]", name: str, split: str | None
) -> "tuple[Dataset, str]":
    if not isinstance(loaded, dict):
        if split is not None:
            raise BadInput(f"{name} is a dataset without splits, wanted no {split!r}")
        return loaded, str(loaded.split or "")
    chosen = next(iter(loaded)) if split is None and len(loaded) == 1 else split
    if chosen not in loaded:
        found = f"has no split {split!r}" if split is not None else "has more than one split"
        raise BadInput(
            f"{name} {found}, wanted one of {', '.join(sorted(loaded))}, as in {name}:{sorted(loaded)[0]}"
        )
    return loaded[chosen], chosen


def _dataset_source(name: str, dataset: "Dataset", split: str) -> Source:
    def rows() -> Iterator[RawRow]:
        for number, value in enumerate(dataset, start=1):
            yield RawRow(f"{name}, row {number}", f"{name}:{number}", value)
        if len(dataset) == 0:
            raise BadInput(f"{name} holds no rows, wanted at least one")

    return Source(name, dataset._fingerprint, rows, split)
