"""Here the files and datasets that a config names become raw rows, each with the place where a person finds it."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pyarrow import ArrowException, BufferReader, parquet

from zephyr.config import NOT_YAML, BadInput, parse_yaml
from zephyr.data.rows import TOO_MUCH, each_once

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".parquet")
WANTED = ".jsonl, .json or .parquet (also with .gz), a folder of those, or a hub dataset"
HELD_OUT = re.compile(r"(train|test|val|dev|eval)", re.IGNORECASE)  # names that say which split a file is
SPLIT = re.compile(r"(?:^|[^a-z])((train|test|val|dev|eval|held[_-]?out)(?:ing|set|id|idation|elopment|uation)?(?:_[a-z]+)?)(?![a-z])")


LONGEST_LINE = 2**26  # bytes of a row's line, unpacked: of the longest conversations a hundredth
LARGEST_WHOLE = 2**31  # bytes, unpacked, of a .json.gz or .parquet.gz, which can only be read as a whole


class RawRow(NamedTuple):
    """A row as it was found. `place`: for a person; `default_id`: source:number, from 1; `value`: the row, or a .jsonl's undecoded line."""
    place: str
    default_id: str
    value: object


class Source(NamedTuple):
    """One file or dataset. `digest`: of its bytes, or the dataset's fingerprint; `rows()` reads it from the beginning. `split`: the words
    that tell its split, of spec, folder and file, or the dataset's own name for it; "" where there are none."""
    name: str
    digest: str
    rows: Callable[[], Iterator[RawRow]]
    split: str = ""


def open_sources(specs: tuple[str, ...] | list[str]) -> list[Source]:
    """Every file or dataset that the specs `path-or-hub-id[[:subset]:split]` name, in order; a folder gives its files by name.

    Raises: BadInput for what does not exist, holds no data, has no such split or subset, or needs one named."""
    sources = [source for spec in specs for source in _open(spec)]
    if len({source.name for source in sources}) < len(sources):  # two files of one name: their rows' ids need the whole path
        sources = [source for spec in specs for source in _open(spec, whole_path=True)]
    return sources


def held_out_split(source: Source) -> str:
    """What the source's split is called where that says that it is not for training (`test_sft`, `validation`, `eval`); else ""."""
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
    if name.startswith((".", "/", "~", "$")) or _kind(path) or name.count("/") != 1:
        raise BadInput(f"{spec!r} does not exist, wanted {WANTED}")
    subset, _, named = (split or "").rpartition(":")
    return [_hub_source(name, subset or None, named or None)]


def _open_folder(folder: Path, split: str | None, whole_path: bool) -> list[Source]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return [_dataset_source(folder.name, *_saved_dataset(folder, split))]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _kind(path)
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not files:
        raise BadInput(f"the folder {folder} holds no data, wanted files of {', '.join(SUFFIXES)} (also with .gz)")
    files, split = _of_subset(folder, files, split)
    splits = {path: _split_of(path, folder) for path in files}
    found = ", ".join(sorted(set(splits.values())))
    if split is not None:
        files = [path for path in files if splits[path] == split]
        if not files:
            raise BadInput(f"the folder {folder} has no split {split!r}, it has {found}")
    elif len(set(splits.values())) > 1 and any(HELD_OUT.match(name) for name in splits.values()):
        raise BadInput(f"the folder {folder} has the splits {found}, wanted one named, as in {folder}:{found.split(',')[0]}")
    return [_file_source(path, str(path) if whole_path else f"{folder.name}/{path.relative_to(folder)}", _split_words(path, splits[path]))
            for path in files]


def _of_subset(folder: Path, files: list[Path], named: str | None) -> tuple[list[Path], str | None]:
    """The files of the subset in `subset[:split]`, and the split. A subset is what the folder's card says (`configs` of README.md), else
    what the folders say in which files lie, `data` and those named as splits apart. Raises: BadInput where there are several and none
    is named."""
    def subset_of(path: Path) -> str:
        return "/".join(part for part in path.relative_to(folder).parent.parts if part != "data" and not HELD_OUT.match(part)) or "."

    def of_card(globs: list[str]) -> list[Path]:
        return [path for path in files if any(fnmatch(path.relative_to(folder).as_posix(), glob) for glob in globs)]
    subsets = {name: of_card(globs) for name, globs in _configs(folder).items()}
    for path in () if subsets else files:
        subsets.setdefault(subset_of(path), []).append(path)
    found = sorted(subsets)
    subset, _, split = (named or "").partition(":")
    if len(found) == 1 and subset != found[0]:
        return files, named
    if subset not in found:
        wanted = f"has the subsets {', '.join(found)}, wanted one named, as in {folder}:{found[0]}:{split or subset or 'train'}"
        raise BadInput(f"the folder {folder} {wanted}")
    return subsets[subset], split or None


def _configs(folder: Path) -> dict[str, list[str]]:
    """Subset -> patterns of its files, of the header of a dataset card; none where it names one subset or none. Raises: BadInput for a
    header that is no YAML."""
    card = folder / "README.md"
    head = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL) if card.is_file() else None
    try:
        header = parse_yaml(head[1]) if head else None
    except NOT_YAML as error:
        raise BadInput(f"{card}: its header is no YAML: {error}") from None
    configs = header.get("configs") if isinstance(header, dict) else None
    named = [of for of in configs or () if isinstance(of, dict) and "config_name" in of]
    return {str(of["config_name"]): list(_globs(of.get("data_files"))) for of in named} if len(named) > 1 else {}


def _globs(files: object) -> Iterator[str]:
    """The patterns in `data_files`: a text, a list of them, or of objects with a `path`."""
    if isinstance(files, str):
        yield files
    for inner in files if isinstance(files, list) else [files["path"]] if isinstance(files, dict) and "path" in files else ():
        yield from _globs(inner)


def _split_of(path: Path, folder: Path) -> str:
    """`train` for train.jsonl, train-00000-of-00002.parquet and train/part-1.json.gz."""
    parent = path.relative_to(folder).parent.name
    return parent if HELD_OUT.match(parent) else re.sub(r"-\d+-of-\d+.*$", "", path.name.split(".")[0])


def _split_words(path: Path, split: str = "") -> str:
    """The folder where it is called as splits are ("dev" may be anything), `split`, the file's name."""
    parent = path.parent.name
    folder = parent if re.fullmatch("(train|test|val|valid|validation|eval)(_(sft|gen|prefs))?", parent) else ""
    return "/".join(filter(None, (folder, split, path.name)))


def _kind(path: Path) -> str | None:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in SUFFIXES else None


def _file_source(path: Path, name: str, split: str) -> Source:
    kind = _kind(path)
    if re.search("[\ud800-\udfff]", name):
        raise BadInput(f"{str(path)!r}: the name is not UTF-8, wanted one that rows can be called by")
    if kind is None:
        raise BadInput(f"{path} is of no known kind, wanted {WANTED}")
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
    except (EOFError, OSError, zlib.error, ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise BadInput(f"{path} is damaged after {count} rows, wanted a whole file: {str(error).splitlines()[0]}") from error
    if count == 0:
        raise BadInput(f"{path} holds no rows, wanted at least one")


def _lines(path: Path, name: str, file: BinaryIO) -> Iterator[RawRow]:
    """The lines, in memory one at a time. Raises: BadInput for one over `LONGEST_LINE`: a few kB of gzip can hold a line of gigabytes."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):  # bytes: parted at \n only, not at U+2028
        number += 1
        if len(line) > LONGEST_LINE:
            raise BadInput(f"{path}:{number}: the line is over {LONGEST_LINE} bytes, wanted at most that many for one row; split or remove it")
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
        # To its encoder, maybe another process, a row goes as text: pickle gives up at nested values that JSON can hold.
        lines = [json.dumps(element).encode() for element in json.loads(data.decode("utf-8-sig"), object_pairs_hook=each_once)]
    except KeyError as error:
        raise BadInput(f"{path}: an object of the file's JSON has the key {error.args[0]!r:.60} twice, wanted each key once") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: the file is no valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8: byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: the file's JSON is {TOO_MUCH}") from error
    for number, line in enumerate(lines, start=1):
        yield RawRow(f"{path}, element {number}", f"{name}:{number}", line)


def _read_all(path: Path, file: BinaryIO) -> bytes:
    """What a file holds. Raises: BadInput where a packed one holds over `LARGEST_WHOLE`."""
    data = file.read(LARGEST_WHOLE + 1 if path.suffix == ".gz" else -1)
    if path.suffix == ".gz" and len(data) > LARGEST_WHOLE:
        raise BadInput(f"{path} holds over {LARGEST_WHOLE} bytes, unpacked, wanted at most that many; as .jsonl.gz it is read line by line")
    return data


def _parquet_rows(path: Path, name: str, file: BinaryIO) -> Iterator[RawRow]:
    table = parquet.ParquetFile(BufferReader(_read_all(path, file)) if path.suffix == ".gz" else path)
    values = (value for batch in table.iter_batches(batch_size=1000) for value in batch.to_pylist())
    for number, value in enumerate(values, start=1):
        yield RawRow(f"{path}, row {number}", f"{name}:{number}", value)


def _hub_source(name: str, subset: str | None, split: str | None) -> Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(*filter(None, (name, subset)), split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # OSError: also what the hub and no network raise
        if subsets := re.search(r"among the available configs: \[(.*?)\]|Available: \[(.*?)\]", str(error)):
            names = re.findall(r"'([^']+)'", subsets[1] or subsets[2])
            asked = f"has no subset {subset!r}, it has" if subset else "has the subsets"
            raise BadInput(f"{name} {asked} {', '.join(names)}, wanted one named, as in {name}:{names[0]}:{split or 'train'}") from error
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{name!r} is no file here, and no hub dataset loads: {first_line}; wanted {WANTED}") from error
    whole = name if subset is None else f"{name}:{subset}"
    return _dataset_source(whole, *(loaded, split) if split is not None else _one_split(loaded, whole, None))


def _saved_dataset(folder: Path, split: str | None) -> "tuple[Dataset, str]":
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise BadInput(f"the folder {folder} is a damaged saved dataset: {type(error).__name__}: {error}") from error
    return _one_split(loaded, str(folder), split)


def _one_split(loaded: "Dataset | dict[str, Dataset]", name: str, split: str | None) -> "tuple[Dataset, str]":
    if not isinstance(loaded, dict):
        if split is not None:
            raise BadInput(f"{name} is a dataset without splits, wanted no {split!r}")
        return loaded, str(loaded.split or "")
    chosen = next(iter(loaded)) if split is None and len(loaded) == 1 else split
    if chosen not in loaded:
        found = f"has no split {split!r}" if split is not None else "has more than one split"
        raise BadInput(f"{name} {found}, wanted one of {', '.join(sorted(loaded))}, as in {name}:{sorted(loaded)[0]}")
    return loaded[chosen], chosen


def _dataset_source(name: str, dataset: "Dataset", split: str) -> Source:
    def rows() -> Iterator[RawRow]:
        for number, value in enumerate(dataset, start=1):
            yield RawRow(f"{name}, row {number}", f"{name}:{number}", value)
        if len(dataset) == 0:
            raise BadInput(f"{name} holds no rows, wanted at least one")

    return Source(name, dataset._fingerprint, rows, split)
