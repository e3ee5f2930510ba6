"""Rows of dialogues are cleaned, filtered and parted: case set right, what a filter takes counted
with examples, test rows kept out.

What is done lies in `OUT.work/` until all is, under a digest of sources, settings and code: first
pieces of rows, each judged row by row in several processes (`datasets`); then one pass in the order
of the rows, for what depends on it, with its index in an SQLite file."""

import hashlib
import json
import os
import re
import shutil
import sqlite3
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from zephyr.config import BadInput
from zephyr.data.jsonl import json_line, read_rows, report_path, require_output, write_json
from zephyr.data.rows import has_lone_surrogate, parse_line
from zephyr.data.sources import Source, held_out_split, open_sources
from zephyr.distill import clean
from zephyr.distill.clean import Row, Turns

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
WORK_FOLDER, WORK_FILES = (
    re.compile("[0-9a-f]{32}"),
    re.compile(r"done|index\.sqlite.*|(piece-\d{5}|cache-|tmp).*"),
)  # what lies in `OUT.work/`
PIECE_ROWS, PIECE_BYTES = 4096, 2**26  # in memory at a time
COLUMNS = {
    "source": "int32",
    "place": "string",
    "line": "large_binary",
    "truecased": "bool",
    "taken": "string",
    "why": "large_string",
    "excerpt": "string",
    "contaminated": "large_string",
    "dialogue": "binary",
    "opening": "binary",
    "signature": "binary",
}


@dataclass(frozen=True)
class PrepareSettings:
    truecase: bool = True  # capitals at sentence starts, and "I"
    drop_refusals: bool = True  # "I don't have personal opinions", where nothing personal was asked
    near_duplicates: float | None = (
        0.8  # estimated Jaccard of word 5-grams from which a row is one; null: off
    )
    decontaminate: tuple[str, ...] = ()  # files of benchmark prompts
    ngram: int = 13  # words in common with a benchmark prompt that make a row contaminated
    language: str | None = None  # of the rows that stay, as "en"; null: any
    min_words: int | None = None  # of all turns together; null: no limit
    max_words: int | None = None
    min_turns: int | None = None  # of user and assistant together; null: no limit
    max_turns: int | None = None
    held_out: tuple[
        str, ...
    ] = ()  # files: none of their dialogues, nor one of the same first turn, is trained on
    on_bad_row: Literal["error", "skip"] = "error"  # skip: counted with the other filters' rows
    workers: int = 1  # processes; the output does not depend on it


class Index:
    """What rows are compared with, in an SQLite file of which 16 MB at most are in memory; each
    filter says why it takes a row, or ""."""

    def __init__(self, path: Path, jaccard: float | None) -> None:
        path.unlink(missing_ok=True)
        self.file, self.jaccard = sqlite3.connect(path, isolation_level=None), jaccard or 1.0
        # as long a band as finds 98 of 100 pairs of just that Jaccard: the fewer rows are looked at
        # in vain
        self.band = next(
            (
                r
                for r in range(16, 1, -1)
                if (1 - self.jaccard**r) ** (clean.PERMUTATIONS // r) <= 0.02
            ),
            1,
        )
        self.file.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-16384; BEGIN;"
            "CREATE TABLE held(digest BLOB PRIMARY KEY) WITHOUT ROWID; CREATE TABLE seen(digest BLOB PRIMARY KEY, place TEXT);"
            "CREATE TABLE kept(number INTEGER PRIMARY KEY, place TEXT, signature BLOB);"
            "CREATE TABLE bands(key INTEGER, number INTEGER, PRIMARY KEY(key, number)) WITHOUT ROWID"
        )

    def add_held_out(self, digests: Iterable[bytes]) -> None:
        """Remember digests of held-out rows."""
        self.file.executemany(
            "INSERT OR IGNORE INTO held VALUES(?)", ((digest,) for digest in digests if digest)
        )

    def held_out(self, row: Row) -> str:
        found = self.file.execute(
            "SELECT 1 FROM held WHERE digest IN (?, ?)", (row["dialogue"], row["opening"])
        ).fetchone()
        return "the dialogue, or its first turn, is held out" if found else ""

    def duplicate(self, row: Row) -> str:
        """Of the first row of the same dialogue; this is remembered where it is the first."""
        if self.file.execute(
            "INSERT OR IGNORE INTO seen VALUES(?, ?)", (row["dialogue"], row["place"])
        ).rowcount:
            return ""
        return "of {}".format(
            *self.file.execute(
                "SELECT place FROM seen WHERE digest = ?", (row["dialogue"],)
            ).fetchone()
        )

    def near_duplicate(self, row: Row) -> str:
        """Of the first kept row that is as near as wanted; this is remembered where there is
        none."""
        signature, size = row["signature"] or b"", 4 * self.band
        bands = [
            b"%d:" % start + signature[start : start + size]
            for start in range(0, len(signature) - size + 1, size)
        ]
        keys = [
            int.from_bytes(hashlib.blake2b(band, digest_size=8).digest(), "little", signed=True)
            for band in bands
        ]
        for place, its in self.file.execute(
            "SELECT place, signature FROM kept WHERE number IN (SELECT number FROM bands WHERE key IN "
            f"({','.join('?' * len(keys))})) ORDER BY number",
            keys,
        ):
            if (
                np.mean(np.frombuffer(signature, "<u4") == np.frombuffer(its, "<u4"))
                >= self.jaccard
            ):
                return f"of {place}"
        if signature:
            number = self.file.execute(
                "INSERT INTO kept(place, signature) VALUES(?, ?)", (row["place"], signature)
            ).lastrowid
            self.file.executemany("INSERT INTO bands VALUES(?, ?)", [(key, number) for key in keys])
        return ""


def prepare(sources: Sequence[str], out: Path, settings: PrepareSettings) -> Report:
    """Write the rows that no filter takes, in their order: those of training, or of a sole split,
    to `out`; those of a split that spec, file or folder call test, val, dev, eval, held_out or the
    like to one beside it, as `clean.test_sft.jsonl` beside `clean.jsonl`.

    Rows keep their fields, and their bytes if not truecased. Held-out rows pass all filters but
    held_out, duplicate, near_duplicate. Returns: the report, also written beside `out`; a row
    counts under the first filter, in their order, that takes it. Raises: BadInput for a bad row
    (file and line), for a source or setting that can't be used, for an `out` among the sources."""
    opened, benchmarks, held = map(
        open_sources, (sources, settings.decontaminate, settings.held_out)
    )
    splits = [held_out_split(source) for source in opened]
    splits = splits if len(set(splits)) > 1 else [""] * len(splits)
    beside = out.name.removesuffix(".jsonl")
    outs = {
        split: out.with_name(f"{beside}.{split}.jsonl") if split else out
        for split in sorted(set(splits))
    }
    _check(settings, sources, [out, *outs.values()])
    report: Report = {
        name: [
            {
                "name": source.name,
                "digest": source.digest,
                "split": held_out_split(source) or "train",
            }
            for source in some
        ]
        for name, some in (("sources", opened), ("benchmarks", benchmarks), ("held_out", held))
    }
    report["settings"] = {
        name: value for name, value in asdict(settings).items() if name != "workers"
    }
    optional = {"datasketch": settings.near_duplicates, "py3langid": settings.language}
    report["versions"] = {
        name: version(name)
        for name in ("datasets", "pyarrow", "numpy", *(name for name in optional if optional[name]))
    }
    key = json.dumps(
        [
            list(sources),
            report,
            *(
                Path(str(module)).read_text("utf-8")
                for module in (__file__, clean.__file__, clean.REFUSALS)
            ),
        ]
    )
    work = out.with_name(out.name + ".work") / hashlib.sha256(key.encode()).hexdigest()[:32]
    _remove_earlier(work)
    done = work / "done"
    done.mkdir(parents=True, exist_ok=True)
    _benchmark(settings.decontaminate, settings.ngram)  # here, so that all processes have it
    index = Index(work / "index.sqlite", settings.near_duplicates)
    index.add_held_out(
        digest for _, both in read_rows(settings.held_out, _held_digests) for digest in both
    )
    pieces = [
        file
        for n, piece in enumerate(_pieces(_lines(opened)))
        for file in _judged(piece, work / f"piece-{n:05d}.arrow", settings)
    ]
    index.add_held_out(
        row[name]
        for row in _rows(pieces if any(splits) else [])
        if splits[row["source"]]
        for name in ("dialogue", "opening")
    )
    report |= _filter_rows(
        pieces, splits, index, {split: done / path.name for split, path in outs.items()}
    )
    if not report["rows_kept"]:
        raise BadInput(
            f"{', '.join(map(str, sources))}: no row is left; left out: { {name: of['rows'] for name, of in report['removed'].items()} }"
        )
    for path in outs.values():
        os.replace(done / path.name, path)
    write_json(report_path(out), report)
    index.file.close()
    shutil.rmtree(work)
    with suppress(OSError):  # where somebody put something beside it meanwhile
        work.parent.rmdir()
    return report


def _remove_earlier(work: Path) -> None:
    """Remove the work of runs of other settings. Raises: BadInput naming what no run made, before
    anything is removed."""
    folder = work.parent
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        raise BadInput(
            f"out: {folder} is {'a link' if folder.is_symlink() else 'a file'}, wanted a folder for what is half done, or "
            "nothing; remove it, or name another out"
        )
    found = sorted(folder.glob("*"))
    for path in found:
        ours = WORK_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        if (
            other := next(
                (inner for inner in sorted(path.iterdir()) if not WORK_FILES.fullmatch(inner.name)),
                None,
            )
            if ours
            else path
        ):
            raise BadInput(
                f"out: {other} is nothing that prepare made, and {folder} is removed when all is done; move it, or name another out"
            )
    for path in set(found) - {work}:
        shutil.rmtree(path)


def _check(settings: PrepareSettings, sources: Sequence[str], outs: Sequence[Path]) -> None:
    """What can be known before a row is read. Raises: BadInput."""
    for name, limit in (("near_duplicates", 1), ("ngram", 1000), ("workers", 1000)):
        if (value := getattr(settings, name)) is not None and not 0 < value <= limit:
            raise BadInput(f"{name} is {value!r}, wanted 0 < number <= {limit}")
    for what, low, high in (
        ("words", settings.min_words, settings.max_words),
        ("turns", settings.min_turns, settings.max_turns),
    ):
        if low is not None and high is not None and low > high:
            raise BadInput(
                f"min_{what} is {low}, max_{what} is {high}, wanted the first not above the second"
            )
    if settings.language is not None and settings.language not in (
        known := clean.language_identifier().labels
    ):
        raise BadInput(
            f"language is {settings.language!r}, wanted null or one of {', '.join(sorted(known))}"
        )
    if settings.near_duplicates is not None:
        clean.empty_minhash()  # finds its library missing
    for out in outs:
        require_output(out, sources)


def _lines(sources: Sequence[Source]) -> Iterator[tuple[int, str, bytes]]:
    """All rows as (source's number, place, line of JSON)."""
    for number, source in enumerate(sources):
        for place, _, value in source.rows():
            try:
                yield (
                    number,
                    place,
                    value.strip().removeprefix(BOM_UTF8) + b"\n"
                    if isinstance(value, bytes)
                    else json_line(value),
                )
            except TypeError as error:
                raise BadInput(f"{place}: the row can't be written as JSON: {error}") from error


def _pieces(lines: Iterator[tuple[int, str, bytes]]) -> Iterator[list[tuple[int, str, bytes]]]:
    """The rows in pieces that memory holds, however long rows are."""
    piece, size = [], 0
    for line in lines:
        piece.append(line)
        size += len(line[2])
        if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _judged(
    piece: Sequence[tuple[int, str, bytes]], path: Path, settings: PrepareSettings
) -> list[str]:
    """The Arrow files, in order, of the judged piece; made where they aren't there. Raises:
    BadInput for the first bad row."""
    from datasets import Dataset, Features, Value

    features = Features({name: Value(kind) for name, kind in COLUMNS.items()})
    names = list(COLUMNS)[:3]
    raw = Dataset.from_dict(
        dict(zip(names, map(list, zip(*piece)))),
        features=Features({name: features[name] for name in names}),
    )
    judged = raw.map(
        partial(_judge, settings),
        input_columns=names,
        writer_batch_size=256,
        features=features,
        desc=path.stem,
        num_proc=min(settings.workers, len(raw)) if settings.workers > 1 else None,
        cache_file_name=str(path),
        new_fingerprint=path.stem,
        load_from_cache_file=True,
    )
    bad = [
        n for n, taken in enumerate(judged.data.column("taken").to_pylist()) if taken == "bad_row"
    ]
    if bad and settings.on_bad_row == "error":
        raise BadInput(f"{judged[bad[0]]['place']}: {judged[bad[0]]['why']}")
    return [file["filename"] for file in judged.cache_files]


def _judge(settings: PrepareSettings, source: int, place: str, line: bytes) -> Row:
    """All that can be said of a row by itself, as `COLUMNS`."""
    judged: dict[str, object] = dict.fromkeys(COLUMNS) | {
        "source": source,
        "place": place,
        "line": line,
        "truecased": False,
    }
    try:
        row = parse_line(line)
        turns = clean.turns_of(row)
        if b"\\u" in line and has_lone_surrogate(
            row
        ):  # UTF-8 has no bytes for one: it can only be escaped
            seen = clean.excerpt(next((text for role, text in turns if role != "system"), ""))
            return {
                **judged,
                "taken": "lone_surrogate",
                "why": "half of a surrogate pair, which no file can hold",
                "excerpt": seen,
            }
    except ValueError as error:
        return {**judged, "taken": "bad_row", "why": clean.excerpt(str(error))}
    if settings.truecase and (cased := clean.truecased(row, turns)) != row:
        judged |= {"truecased": True, "line": json_line(cased)}
        turns = clean.turns_of(cased)
    words = [clean.split_words(text) for _, text in turns]
    whole = [word for of_turn in words for word in of_turn]
    judged["excerpt"] = clean.excerpt(next(text for role, text in turns if role != "system"))
    judged["dialogue"], judged["opening"] = clean.digests(turns)
    judged["taken"], judged["why"] = next(
        (found for found in _failed_filters(settings, turns, len(whole)) if found[1]), ("", "")
    )
    known = _benchmark(settings.decontaminate, settings.ngram)
    shared = (
        clean.first_shared_ngram(known, of_turn, short=role == "user")
        for (role, _), of_turn in zip(turns, words)
        if role != "system"
    )
    judged["contaminated"] = next(filter(None, shared), "")
    if settings.near_duplicates is not None and whole:
        judged["signature"] = clean.minhash_signature(clean.hash_ngrams(whole, min(5, len(whole))))
    return judged


def _failed_filters(
    settings: PrepareSettings, turns: Turns, words: int
) -> Iterator[tuple[str, str]]:
    """The filters of a row by itself, in their order, each with why it takes the row; "" where it
    does not."""
    yield "refusal", clean.excerpt(clean.first_refusal(turns)) if settings.drop_refusals else ""
    code = (
        clean.detect_language("\n".join(text[:1000] for _, text in turns))
        if settings.language
        else ""
    )
    yield "language", code if code != settings.language else ""
    for name, what, count in (
        ("length", "words", words),
        ("turns", "turns", sum(role in ("user", "assistant") for role, _ in turns)),
    ):
        low, high = getattr(settings, f"min_{what}") or 0, getattr(settings, f"max_{what}")
        is_text = name == "turns" and not count  # it has no turns to count
        yield (
            name,
            ""
            if is_text or (low <= count and (high is None or count <= high))
            else f"{count} {what}",
        )


@lru_cache(maxsize=1)
def _benchmark(files: tuple[str, ...], ngram: int) -> Mapping[tuple[int, bool], np.ndarray]:
    """What `clean.first_shared_ngram` looks for: n-grams of longer prompts; shorter prompts whole, those under
    8 words as whole turns only."""
    hashes: dict[tuple[int, bool], list[np.ndarray]] = {}
    for file in files:
        prompts = [
            words
            for _, row in read_rows([file])
            for prompt in clean.prompts(row)
            if (words := clean.split_words(prompt))
        ]
        if not prompts:
            raise BadInput(
                f"{file}: no prompt is read, wanted rows with one of the fields {', '.join(clean.PROMPT_FIELDS)}"
            )
        for words in prompts:
            n = min(ngram, len(words))
            hashes.setdefault((n, n < min(ngram, 8)), []).append(clean.hash_ngrams(words, n))
    return {n: np.unique(np.concatenate(some)) for n, some in hashes.items()}


def _held_digests(row: Row) -> tuple[bytes, bytes]:
    """Of a held-out file's dialogue and first user turn; a row that is no dialogue gives that of
    its prompt."""
    try:
        return clean.digests(clean.turns_of(row))
    except ValueError:
        for prompt in clean.prompts(row):
            return clean.digests([("user", prompt)])
        raise


def _rows(pieces: Iterable[str]) -> Iterator[Row]:
    """Judged rows, read and not mapped: pages of a mapped file count as the process's memory."""
    for path in pieces:
        with pa.OSFile(path) as file, pa.ipc.open_stream(file) as batches:
            for batch in batches:
                yield from batch.to_pylist()


def _filter_rows(
    pieces: Iterable[str], splits: Sequence[str], index: Index, outs: Mapping[str, Path]
) -> Report:
    """Write the rows that stay; returns the counts of the report, with up to five examples of what
    each filter took."""
    late = (
        ("held_out", index.held_out),
        ("contaminated", itemgetter("contaminated")),
        ("duplicate", index.duplicate),
        ("near_duplicate", index.near_duplicate),
    )  # one that comes to the end is in the index
    removed: Report = {name: {"rows": 0, "examples": []} for name in FILTERS}
    totals: Counter[str | Path] = Counter()
    with ExitStack() as stack:
        files = {split: stack.enter_context(path.open("wb")) for split, path in outs.items()}
        for row in _rows(pieces):
            split, taken, why = splits[row["source"]], row["taken"], row["why"]
            for name, takes in late:
                if not taken and (split == "" or name == "contaminated") and (why := takes(row)):
                    taken = name
            totals.update((taken or outs[split], "read"))
            if not taken:
                files[split].write(row["line"])
                totals["truecased"] += row["truecased"]
            elif totals[taken] <= 5:
                removed[taken]["examples"].append(
                    {"place": row["place"], "why": why, "excerpt": row["excerpt"] or ""}
                )
    kept = {path.name: totals[path] for path in outs.values()}
    return {
        "rows_read": totals["read"],
        "rows_kept": sum(kept.values()),
        "truecased": totals["truecased"],
        "files": kept,
        "removed": {name: {**of, "rows": totals[name]} for name, of in removed.items()},
    }
