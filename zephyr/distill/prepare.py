"""SFT rows are cleaned, filtered and separated by split: letter case is corrected, each removed row
is counted under its filter with examples, and held-out rows stay out of training.

Work in progress lies in `OUT.work/`, under a digest of sources, settings and code, until all is
done. First, pieces of rows are checked row by row in several processes (`datasets`). Then one pass
in the order of the rows applies the filters that compare rows, with an index in an SQLite file."""

import hashlib
import json
import os
import re
import shutil
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from zephyr.config import BadInput
from zephyr.data.jsonl import (
    json_line,
    read_rows,
    report_path,
    require_output,
    save_report,
    write_json,
)
from zephyr.data.sources import Source, count_rows, held_out_split, open_sources
from zephyr.distill import clean, dialogue_index, row_checks
from zephyr.distill.clean import Row
from zephyr.distill.dialogue_index import DialogueIndex
from zephyr.distill.row_checks import (
    COLUMNS,
    INPUT_COLUMNS,
    CheckedRow,
    benchmark_ngrams,
    check_line,
)
from zephyr.distill.row_checks import PrepareSettings as PrepareSettings  # as part of this module
from zephyr.distill.shards import Shard, describe_shard
from zephyr.progress import Bar, library_bars, track

if TYPE_CHECKING:
    from datasets import Features

Report = dict[str, object]
FILTERS = (
    "bad_row",
    "lone_surrogate",
    "refusal",
    "language",
    "length",
    "turns",
    "held_out",
    "contaminated",
    "duplicate",
    "near_duplicate",
)
# what lies in `OUT.work/`
WORK_FOLDER = re.compile("[0-9a-f]{32}")
WORK_FILES = re.compile(r"done|index\.sqlite.*|(piece-\d{5}|cache-|tmp).*")
# rows and bytes of a piece, which is in memory at once
PIECE_ROWS = 4096
PIECE_BYTES = 2**26
MAX_EXAMPLES = 5  # of each filter in the report
# files on which the checked rows depend, beside sources and settings
CODE = (__file__, row_checks.__file__, dialogue_index.__file__, clean.__file__, clean.REFUSALS)


class RawLine(NamedTuple):
    """A row as a line of JSON. `source`: its number."""

    source: int
    place: str
    line: bytes


class CheckedPart(NamedTuple):
    """The checked rows of a shard: an Arrow file, and how many of them are of each piece."""

    path: Path
    pieces: Sequence[int]


def prepare(
    sources: Sequence[str],
    out: Path,
    settings: PrepareSettings,
    parts: Sequence[CheckedPart] = (),
) -> Report:
    """Write the rows that no filter removes, in their order.

    The rows of training, or of the only split, go to `out`. If a spec, file or folder calls a split
    test, val, dev, eval, held_out or the like, its rows go to a file beside it, e.g.
    `clean.test_sft.jsonl` beside `clean.jsonl`. Held-out rows pass all filters except `held_out`,
    `duplicate` and `near_duplicate`. Rows keep their fields, and their bytes if their letter case
    was not changed.

    Args:
        sources: of the rows, `path-or-hub-id[:split]`.
        out: a .jsonl file.
        parts: of all shards in their order (`check_shard`); rows are checked here without any.
    Returns:
        The report, which is also written beside `out`. A row counts under the first of `FILTERS`
        that removes it.
    Raises:
        BadInput: for a bad row (with file and line), for a source or a setting that cannot be used,
            if `out` is one of the sources, or if no row is left.
    """
    opened = open_sources(list(sources))
    splits = [held_out_split(source) for source in opened]
    if len(set(splits)) == 1:
        splits = [""] * len(splits)
    outs = output_paths(out, splits)
    check_settings(settings)
    for path in [out, *outs.values()]:
        require_output(path, sources)
    report = describe_inputs(opened, settings)
    work = open_work(out, sources, report)
    done = work / "done"
    done.mkdir(exist_ok=True)
    index = DialogueIndex(work / "index.sqlite", settings.near_duplicates)
    index.add_held_out(held_out_digests(settings.held_out))
    if parts:
        rows, num_rows = partial(read_parts, parts), sum(sum(part.pieces) for part in parts)
    else:
        benchmark_ngrams(settings.decontaminate, settings.ngram)  # before the processes are forked
        files, counts = check_pieces(opened, work, settings)
        rows, num_rows = partial(read_checked, files), sum(counts)
    if any(splits):
        index.add_held_out(split_digests(rows(), splits))
    done_paths = {split: done / path.name for split, path in outs.items()}
    report.update(filter_rows(rows(), num_rows, splits, index, done_paths))
    if not report["rows_kept"]:
        raise BadInput(f"{', '.join(map(str, sources))}: no row is left; {removed_counts(report)}")
    for split, path in outs.items():
        os.replace(done_paths[split], path)
    write_json(report_path(out), report)
    index.close()
    close_work(work)
    return report


def check_shard(
    sources: Sequence[str], out: Path, settings: PrepareSettings, shard: Shard
) -> Report:
    """Check the rows of a shard, every `shard.of`-th piece of all rows, and write them to an Arrow
    file for `merge.merge`, which compares them with each other.

    Args: out: the Arrow file. Others: as `prepare`.
    Returns: the report beside it.
    Raises: BadInput: as `prepare`.
    """
    opened = open_sources(list(sources))
    check_settings(settings)
    require_output(out, sources)
    inputs = describe_inputs(opened, settings)
    work = open_work(out, sources, inputs)
    benchmark_ngrams(settings.decontaminate, settings.ngram)  # before the processes are forked
    files, counts = check_pieces(opened, work, settings, shard)
    schema = checked_features().arrow_schema
    with pa.OSFile(str(work / "done"), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for path in files:
            with pa.OSFile(path) as piece, pa.ipc.open_stream(piece) as batches:
                for batch in batches:
                    stream.write_batch(batch.cast(schema))
    os.replace(work / "done", out)
    call = {
        "command": "prepare",
        "sources": list(map(str, sources)),
        "settings": inputs["settings"],
    }
    entry = describe_shard(shard, call, prepare_inputs(sources, settings))
    report: Report = {"command": "prepare", "rows": sum(counts), "pieces": counts, "shard": entry}
    report = save_report(out, report)
    close_work(work)
    return report


def prepare_inputs(sources: Sequence[str], settings: PrepareSettings) -> dict[str, str]:
    """The digests of what `prepare` reads, by name, and the versions of what it uses."""
    described = describe_inputs(open_sources(list(sources)), settings)
    found = {
        str(of["name"]): str(of["digest"])
        for kind in ("sources", "benchmarks", "held_out")
        for of in described[kind]  # type: ignore[attr-defined]  # lists, see `describe_inputs`
    }
    versions = described["versions"]
    assert isinstance(versions, dict)
    code = hashlib.sha256("".join(code_texts()).encode()).hexdigest()
    return {**found, **versions, "the code of prepare": code}


def open_work(out: Path, sources: Sequence[str], report: Report) -> Path:
    """The folder of work in progress; that of other inputs is removed. Raises: BadInput naming a
    file that no run made."""
    work = out.with_name(out.name + ".work") / work_digest(sources, report)
    remove_other_work(work)
    work.mkdir(parents=True, exist_ok=True)
    return work


def close_work(work: Path) -> None:
    shutil.rmtree(work)
    with suppress(OSError):  # another program put a file there meanwhile
        work.parent.rmdir()


def output_paths(out: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Return the file of each split; "" is training, or the only split."""
    stem = out.name.removesuffix(".jsonl")
    return {
        split: out.with_name(f"{stem}.{split}.jsonl") if split else out
        for split in sorted(set(splits))
    }


def check_settings(settings: PrepareSettings) -> None:
    """Check what can be checked before a row is read.

    Raises:
        BadInput: naming the setting, also if it needs a library that is not installed.
    """
    limits: tuple[tuple[str, float | None, float], ...] = (
        ("near_duplicates", settings.near_duplicates, 1),
        ("ngram", settings.ngram, 1000),
        ("workers", settings.workers, 1000),
    )
    for name, value, limit in limits:
        if value is not None and not 0 < value <= limit:
            raise BadInput(f"{name} is {value!r}, expected a number > 0 and <= {limit}")
    for unit, low, high in (
        ("words", settings.min_words, settings.max_words),
        ("turns", settings.min_turns, settings.max_turns),
    ):
        if low is not None and high is not None and low > high:
            raise BadInput(
                f"min_{unit} is {low}, max_{unit} is {high}, expected min_{unit} <= max_{unit}"
            )
    if settings.language is not None:
        known = clean.language_identifier().labels
        if settings.language not in known:
            raise BadInput(
                f"language is {settings.language!r}, expected null or one of "
                f"{', '.join(sorted(known))}"
            )
    if settings.near_duplicates is not None:
        clean.empty_minhash()


def describe_inputs(sources: Sequence[Source], settings: PrepareSettings) -> Report:
    """Return the part of the report that is known before the rows are read."""
    inputs = {
        "sources": sources,
        "benchmarks": open_sources(settings.decontaminate),
        "held_out": open_sources(settings.held_out),
    }
    report: Report = {}
    for name, opened in inputs.items():
        report[name] = [
            {
                "name": source.name,
                "digest": source.digest,
                "split": held_out_split(source) or "train",
            }
            for source in opened
        ]
    report["settings"] = {
        name: value for name, value in asdict(settings).items() if name != "workers"
    }
    libraries = ["datasets", "pyarrow", "numpy"]
    if settings.near_duplicates:
        libraries.append("datasketch")
    if settings.language:
        libraries.append("py3langid")
    report["versions"] = {name: version(name) for name in libraries}
    return report


def work_digest(sources: Sequence[str], report: Report) -> str:
    """Return the name of the work folder: work of other inputs or other code is not continued."""
    key = json.dumps([list(map(str, sources)), report, *code_texts()])
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def code_texts() -> list[str]:
    """The files of `CODE`."""
    return [Path(str(file)).read_text("utf-8") for file in CODE]


def remove_other_work(work: Path) -> None:
    """Remove the work of runs of other inputs.

    Raises:
        BadInput: naming a file that no run made, before anything is removed.
    """
    folder = work.parent
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        found = "a link" if folder.is_symlink() else "a file"
        raise BadInput(
            f"out: {folder} is {found}, expected a folder for work in progress, or nothing; "
            "remove it, or choose another out"
        )
    paths = sorted(folder.glob("*"))
    for path in paths:
        foreign = foreign_file(path)
        if foreign:
            raise BadInput(
                f"out: {foreign} was not made by prepare, and {folder} is removed when all is "
                "done; move it, or choose another out"
            )
    for path in paths:
        if path != work:
            shutil.rmtree(path)


def foreign_file(path: Path) -> Path | None:
    """Return what no run made: the path itself, or something in it; None if there is nothing."""
    if not WORK_FOLDER.fullmatch(path.name) or not path.is_dir() or path.is_symlink():
        return path
    for inner in sorted(path.iterdir()):
        if not WORK_FILES.fullmatch(inner.name):
            return inner
    return None


def held_out_digests(files: Sequence[str]) -> Iterator[bytes]:
    """Yield the digests of the dialogues and of the first user turns of held-out files."""
    for _, both in read_rows(files, row_digests):
        yield from both


def row_digests(row: Row) -> tuple[bytes, bytes]:
    """Return the digests of a row's dialogue and of its first user turn. A row that is no dialogue
    is represented by its prompt.

    Raises:
        ValueError: for a row without either.
    """
    try:
        return clean.digests(clean.turns_of(row))
    except ValueError:
        for prompt in clean.prompts(row):
            return clean.digests([("user", prompt)])
        raise


def check_pieces(
    sources: Sequence[Source], work: Path, settings: PrepareSettings, shard: Shard | None = None
) -> tuple[list[str], list[int]]:
    """Check all rows, or those of a shard, piece by piece. Return the Arrow files of the checked
    rows, in order, and the number of rows of each piece.

    Pieces that an earlier run finished are used again.
    """
    files, counts = [], []
    with Bar("check", count_rows(sources), "rows") as bar, library_bars(hide=True):
        for number, piece in enumerate(pieces(raw_lines(sources))):
            if shard is None or number % shard.of == shard.number:
                files += check_piece(piece, work / f"piece-{number:05d}.arrow", settings)
                counts.append(len(piece))
            bar.update(len(piece))
    return files, counts


def raw_lines(sources: Sequence[Source]) -> Iterator[RawLine]:
    """Yield all rows as lines of JSON. Raises: BadInput for a row that JSON cannot hold."""
    for number, source in enumerate(sources):
        for place, _, value, _ in source.rows():
            if isinstance(value, bytes):
                line = value.strip().removeprefix(BOM_UTF8) + b"\n"
            else:
                try:
                    # a row that is no object is written, too: its check finds it bad
                    line = json_line(value)  # type: ignore[arg-type]
                except TypeError as error:
                    raise BadInput(f"{place}: the row can't be written as JSON: {error}") from error
            yield RawLine(number, place, line)


def pieces(lines: Iterator[RawLine]) -> Iterator[list[RawLine]]:
    """Yield the rows in pieces that fit in memory, however long the rows are."""
    piece: list[RawLine] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line.line)
        if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def check_piece(piece: Sequence[RawLine], path: Path, settings: PrepareSettings) -> list[str]:
    """Return the Arrow files of a checked piece, in order. They are made if they do not exist.

    Raises:
        BadInput: for the first bad row, unless bad rows are skipped.
    """
    from datasets import Dataset, Features

    features = checked_features()
    raw = Dataset.from_dict(
        {
            "source": [line.source for line in piece],
            "place": [line.place for line in piece],
            "line": [line.line for line in piece],
        },
        features=Features({name: features[name] for name in INPUT_COLUMNS}),
    )
    checked = raw.map(
        partial(check_line, settings),
        input_columns=INPUT_COLUMNS,
        writer_batch_size=256,
        features=features,
        desc=path.stem,
        num_proc=min(settings.workers, len(raw)) if settings.workers > 1 else None,
        cache_file_name=str(path),
        new_fingerprint=path.stem,
        load_from_cache_file=True,
    )
    if settings.on_bad_row == "error":
        for number, name in enumerate(checked.data.column("filter").to_pylist()):
            if name == "bad_row":
                row = checked[number]
                raise BadInput(f"{row['place']}: {row['reason']}")
    return [file["filename"] for file in checked.cache_files]


def checked_features() -> "Features":
    """The columns of checked rows."""
    from datasets import Features, Value

    return Features({name: Value(kind) for name, kind in COLUMNS.items()})


def read_checked(files: Iterable[str]) -> Iterator[CheckedRow]:
    """Yield checked rows. The files are read and not mapped: pages of a mapped file count as memory
    of the process."""
    for path in files:
        with pa.OSFile(path) as file, pa.ipc.open_stream(file) as batches:
            for batch in batches:
                yield from batch.to_pylist()


def read_parts(parts: Sequence[CheckedPart]) -> Iterator[CheckedRow]:
    """Yield the checked rows of all shards in the order of the sources: piece by piece, in turn."""
    readers = [read_checked([str(part.path)]) for part in parts]
    for number in range(sum(len(part.pieces) for part in parts)):
        turn, of_part = number // len(parts), number % len(parts)
        yield from islice(readers[of_part], parts[of_part].pieces[turn])


def split_digests(rows: Iterable[CheckedRow], splits: Sequence[str]) -> Iterator[bytes]:
    """Yield the digests of the rows of held-out splits."""
    for row in rows:
        if splits[row["source"]]:
            yield row["dialogue"] or b""
            yield row["opening"] or b""


def filter_rows(
    rows: Iterable[CheckedRow],
    num_rows: int,
    splits: Sequence[str],
    index: DialogueIndex,
    outs: Mapping[str, Path],
) -> Report:
    """Write the rows that stay, and return the counts of the report, with examples of what each
    filter removed. num_rows: how many there are."""
    rows_removed: Counter[str] = Counter()
    rows_kept: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {name: [] for name in FILTERS}
    rows_read = num_truecased = 0
    with ExitStack() as stack:
        opened = {split: stack.enter_context(path.open("wb")) for split, path in outs.items()}
        for row in track(rows, "filter", "rows", total=num_rows):
            split = splits[row["source"]]
            name, reason = row["filter"], row["reason"]
            if not name:
                name, reason = compare_row(row, index, is_held_out=bool(split))
            rows_read += 1
            if not name:
                opened[split].write(row["line"])
                rows_kept[split] += 1
                num_truecased += row["truecased"]
                continue
            rows_removed[name] += 1
            if len(examples[name]) < MAX_EXAMPLES:
                examples[name].append(
                    {"place": row["place"], "why": reason or "", "excerpt": row["excerpt"] or ""}
                )
    return {
        "rows_read": rows_read,
        "rows_kept": sum(rows_kept.values()),
        "truecased": num_truecased,
        "files": {path.name: rows_kept[split] for split, path in outs.items()},
        "removed": {
            name: {"rows": rows_removed[name], "examples": examples[name]} for name in FILTERS
        },
    }


def compare_row(row: CheckedRow, index: DialogueIndex, *, is_held_out: bool) -> tuple[str, str]:
    """Apply the filters that compare a row with others, in their order. A row of training that
    passes all of them is in the index afterwards.

    Returns:
        The first filter that removes the row and why; two empty texts if none does.
    """
    steps: tuple[tuple[str, Callable[[CheckedRow], str]], ...] = (
        ("held_out", index.find_held_out),
        ("contaminated", lambda row: row["contaminated"] or ""),
        ("duplicate", index.find_duplicate),
        ("near_duplicate", index.find_near_duplicate),
    )
    for name, find in steps:
        if is_held_out and name != "contaminated":
            continue
        reason = find(row)
        if reason:
            return name, reason
    return "", ""


def removed_counts(report: Report) -> str:
    """Return the number of rows that each filter removed, as text."""
    removed = report["removed"]
    assert isinstance(removed, dict)
    counts = [f"{name} {found['rows']}" for name, found in removed.items() if found["rows"]]
    return f"removed: {', '.join(counts) or 'none'}"
